"""The flags that several commands share, each with one spelling and one help text, and the flags that were renamed."""

import argparse
import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from inversionview_jax import bounds, config_schema
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage.methods import SETTINGS
from inversionview_jax.terminal import print_text


class Parser(argparse.ArgumentParser):
  """A parser whose refusals are `InversionViewError`: one line, like those of everything else."""

  def error(self, message: str) -> NoReturn:
    # argparse: "argument --particles: 1 must be ..." and "unrecognized arguments: ..."
    message = re.sub(r"^argument (-\S+): (?=.* must be )", r"\1 ", message).removeprefix("argument ")
    raise InversionViewError(f"{message}; see {self.prog} --help")

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    """As argparse's; it makes an empty list of the value in --flag=--, whatever the flag's type (Python before 3.13)."""
    for argument in itertools.takewhile(lambda argument: argument != "--", args or ()):
      if re.fullmatch("--[^=]*=--", argument):
        self.error(f"argument {argument[:-3]}: '--' is no value")
    return super().parse_known_args(args, namespace)


@dataclasses.dataclass(frozen=True)
class Whole:
  """Type of a flag: a whole number in a range, written in decimal digits.

  Attributes:
    low, high: the smallest and the largest value.
  """

  low: int
  high: int

  def __call__(self, text: str) -> int:
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and self.low <= int(text) <= self.high:
      return int(text)
    raise argparse.ArgumentTypeError(f"{_short(text)} must be a whole number from {self.low:,} to {self.high:,}")


@dataclasses.dataclass(frozen=True)
class Number:
  """Type of a flag: a finite number in a range.

  Attributes:
    low, high: the smallest and the largest value.
    above: whether it must be above `low`.
  """

  low: float
  high: float
  above: bool = False

  def __call__(self, text: str) -> float:
    try:
      value = float(text) if len(text) <= 40 and text.isascii() and "_" not in text else math.nan
    except ValueError:
      value = math.nan
    if self.low <= value <= self.high and not (self.above and value == self.low):
      return value
    least = f"above {self.low:g} and at most" if self.above else f"from {self.low:g} to"
    raise argparse.ArgumentTypeError(f"{_short(text)} must be a number {least} {self.high:g}")


def given(text: str) -> str:
  """Type of a flag: any text but the empty one, which would otherwise be taken for a flag that was left out."""
  if text:
    return text
  raise argparse.ArgumentTypeError("'' must be something; leave the flag out for its default")


def _short(text: str) -> str:
  """A value for a message; of a long one its beginning."""
  return text if len(text) <= 40 else f"{text[:20]}... ({len(text):,} characters)"


def count(name: str, least: int | None = None) -> Whole:
  """Type of a flag: the count of this name in `bounds.COUNTS`, of which `least` can be larger."""
  low, high = bounds.COUNTS[name]
  return Whole(low if least is None else least, high)


def number(name: str, above: bool = False) -> Number:
  """Type of a flag: the number of this name in `bounds.NUMBERS`."""
  return Number(*bounds.NUMBERS[name], above=above)


@dataclasses.dataclass(frozen=True)
class Flag:
  """One flag as `add` defines it.

  Attributes:
    help: one line, without the default.
    type: of its value: a `Whole` or a `Number`; None for text, bool for a switch.
    metavar: name of its value in --help; None: the flag's own name.
    unset: what holds when it is not given and has no default value; "" where the help says so.
  """

  help: str
  type: Callable[[str], Any] | None = None
  metavar: str | None = None
  unset: str = ""


# Method -> the flags that mean something with it alone, or with some of the methods.
METHODS = {
  method: tuple("temperature" if name == "temperatures" else name for name in names)
  for method, names in SETTINGS.items()
}

FLAGS = {
  # What is read.
  "reader": Flag("a shipped reader, or the workdir of a trained one"),
  "target": Flag("the target model: a shipped name, a folder, a checkpoint, or OWNER/NAME[@REVISION] on the Hugging Face Hub", unset="the one that ships for the task"),
  "family": Flag(
    "package.module:NAME of the model family of your own that reads the target's folder", unset="one of this package's"
  ),
  "ignore-config-key": Flag(
    "a key of the target's config.json that changes nothing of what the model computes", metavar="KEY", unset="none"
  ),
  "task": Flag("name of a task, or package.module:Name"),
  "convention": Flag(
    "how the target's weights are processed: centered or raw", unset="centered; raw for models with RMSNorm"
  ),
  "site": Flag("a site: a0.3 or blocks.0.attn.hook_result.3 (a head), x0.pre, x1.mid, x1.post (residual), m1 (MLP)"),
  "position": Flag('a position: an index (BOS is 0, -1 is the last) or a label of the task, such as "=", "+", "A1"'),
  "texts": Flag("a file of inputs, one on each line", metavar="FILE"),
  # What counts as near.
  "epsilon": Flag("threshold on the distance", number("epsilon", above=True), unset="the task's"),
  "metric": Flag("euclidean (normalized) or cosine", unset="the task's"),
  "match": Flag('"anywhere": minimum over positions; "position": the position of the query only'),
  # How candidates are drawn, and how many are shown.
  "mixture": Flag(
    'sampling mixture: one of the task\'s, such as "paper", or package.module:NAME', unset="the task's first"
  ),
  "num-samples": Flag("candidates for each query", count("num_samples"), unset="the mixture's"),
  "method": Flag("how preimages are found: {}".format(", ".join(METHODS))),
  "particles": Flag("of Monte Carlo: how many; a multiple of twice the number of devices", count("particles"), unset="1024; 128 with --prior"),
  "budget": Flag("of Monte Carlo: runs of the target after which it ends, converged or not", count("budget"), unset="200000; 8000 with --prior"),
  "prior": Flag('"model": in place of a task, any text, with the probability that the target gives it (a language model); with --reader, its decoder writes the first texts'),
  "growth": Flag("with --prior: by how many tokens a text may be longer or shorter than the query", count("growth"), unset="0"),
  "start": Flag(
    'with --prior: "query" (copies of it, heated and cooled) or "prior" (texts that the model writes; gives bits)', unset="query"
  ),
  "shown": Flag("at most so many are shown", count("shown")),
  "seed": Flag("seed of everything that is drawn", count("seed")),
  # Where it runs, and where results go.
  "config": Flag("a config of this project by its name, such as addition:tiny, or a file; --config.KEY=VALUE changes a setting", metavar="NAME|FILE[:VARIANT]"),
  "workdir": Flag("the folder of this run: checkpoints, logs, the finished model", metavar="DIR"),
  "out": Flag("the folder for the results; made if it does not exist", metavar="DIR"),
  "json": Flag("also write the results as JSON", metavar="FILE"),
  "no-color": Flag("print no colors (so does the environment variable NO_COLOR)", bool),
  "coordinator": Flag("address of process 0, reachable from all hosts", metavar="HOST:PORT", unset="detected"),
  "num-processes": Flag("number of processes", Whole(1, 100_000), metavar="N", unset="detected"),
  "process-id": Flag("index of this process, from 0", Whole(0, 99_999), metavar="I", unset="detected"),
}  # fmt: skip

# (commands, old flag) -> new flag. An empty tuple stands for all commands.
RENAMED = (
  ((), "--num_processes", "--num-processes"),
  ((), "--process_id", "--process-id"),
  (("sample",), "--queries", "--requests"),
  (("sample",), "--sites", "--site (once for each site)"),
  (("evaluate",), "--draws", "--noise-draws"),
  (("bench",), "--no-rivals", "--no-torch"),
)


def add(
  parser: Any,
  name: str,
  *,
  required: bool = False,
  repeated: bool = False,
  default: Any = None,
  unset: str | None = None,
) -> None:
  """Adds a shared flag to a command's parser (or to a group of one).

  Args:
    parser: the parser or the group.
    name: a key of `FLAGS`.
    required: whether the command refuses to run without it.
    repeated: whether it may be given several times; its value is then a list.
    default: its value when it is not given.
    unset: what holds then, in words, where it differs from `Flag.unset`.
  """
  flag = FLAGS[name]
  notes = ["may be repeated"] if repeated else []
  unset = flag.unset if unset is None else unset
  if default is not None or (unset and not required):
    notes.append(f"default: {unset if default is None else default}")
  options: dict[str, Any] = {"help": flag.help + (f" ({'; '.join(notes)})" if notes else ""), "default": default}
  if flag.type is bool:
    parser.add_argument(f"--{name}", action="store_true", help=options["help"])
    return
  if repeated:
    options["action"] = "append"
  if required:  # a group of alternatives takes no such argument
    options["required"] = True
  parser.add_argument(f"--{name}", type=flag.type or given, metavar=flag.metavar, **options)


def add_hosts(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that connect processes on several hosts where the environment does not."""
  for name in ("coordinator", "num-processes", "process-id"):
    add(parser, name)


def hosts_of(args: argparse.Namespace) -> tuple[str, int, int]:
  """The values of `add_hosts` as `hosts.start` takes them: "", 0 and -1 for those that were not given."""
  index = -1 if args.process_id is None else args.process_id
  return args.coordinator or "", args.num_processes or 0, index


def add_command(
  commands: Any,
  name: str,
  run: Callable[[argparse.Namespace, list[str]], int],
  summary: str,
  description: str,
  *,
  epilog: str | None = None,
  overrides: bool = False,
) -> argparse.ArgumentParser:
  """Adds a command and returns its parser.

  Args:
    commands: what `ArgumentParser.add_subparsers` returned.
    name: of the command.
    run: takes the parsed arguments and the arguments that are left; returns the exit code.
    summary: one line for `inversionview --help`.
    description: for the command's own help, with its examples.
    epilog: shown after the flags.
    overrides: whether the command takes settings of a config as `--config.KEY=VALUE`; flags are then not abbreviated. Where
      `config_schema.OF_COMMAND` has the keys, --help-config lists them.
  """
  parser = commands.add_parser(
    name,
    help=summary,
    description=description,
    epilog=epilog,
    allow_abbrev=not overrides,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.set_defaults(run=run, overrides=overrides)
  parser.add_argument("--debug", action="store_true", help="show where an error comes from, with its traceback")
  parser.add_argument(
    "--quiet", action="store_true", help="no bars and no log lines on stderr; results and errors stay"
  )
  if name in config_schema.OF_COMMAND:
    parser.add_argument(
      "--help-config",
      action=_PrintKeys,
      nargs=0,
      const=name,
      default=argparse.SUPPRESS,
      help="list the keys of a config, with type, range and meaning, and exit",
    )
  return parser


class _PrintKeys(argparse.Action):
  """Prints the tables of the command that is its `const`, and exits, as --help does."""

  def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
    print_text(config_schema.listed(config_schema.OF_COMMAND[str(self.const)]))
    for task, table in config_schema.INPUTS.items() if self.const in config_schema.WITH_INPUTS else ():
      print_text(f"\nof the task {task}, besides:\n{config_schema.listed(config_schema.under('inputs', table))}")
    parser.exit()


def check_used(args: argparse.Namespace, method: str, **uses: tuple[str, ...]) -> None:
  """Raises `InversionViewError` for the first flag that was given and means nothing with this method.

  Args:
    args: of the command; a flag counts as given where its value is neither None nor False nor 0.
    method: a key of `METHODS`.
    uses: method -> flags of this command alone that mean something with it.
  """
  used = {name: (*flags, *uses.get(name, ())) for name, flags in METHODS.items()}
  for flag in dict.fromkeys(flag for flags in used.values() for flag in flags):
    if flag not in used[method] and getattr(args, flag, None):
      with_method = " or ".join(name for name, flags in used.items() if flag in flags)
      raise InversionViewError(
        f"--{flag.replace('_', '-')} has no effect with --method {method}: leave it out, or use {with_method}"
      )


def refuse_renamed(argv: Sequence[str]) -> None:
  """Raises `InversionViewError` naming the new flag for one that was renamed; `argv` starts with the command."""
  for argument in argv[1:]:
    for commands, old, new in RENAMED:
      if argument.split("=")[0] == old and (not commands or argv[0] in commands):
        raise InversionViewError(f"{old} is now called {new}")
