"""The flags that choose what preimages are drawn from and how, and the `reading.Source` that they describe: the same in every command."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.terminal import print_message

if TYPE_CHECKING:
  from jax.sharding import Mesh

  from inversionview_jax.reading.source import Source
  from inversionview_jax.targets import Target
  from inversionview_jax.tasks import Task

# The defaults of --method in words: that of `Source.of`, and that of commands which need bits or whose readers are compared.
DEFAULT_METHOD = (
  "decoder+monte_carlo, or decoder where the task has no moves or is of a language model; without a reader monte_carlo"
)
METHODS_HELP = """\
--method decoder: candidates of the reader's decoder, the paper's method. monte_carlo: particles from the task's prior, moved until all lie
inside epsilon; the decoder is not used, and not needed. decoder+monte_carlo: the same from the decoder's candidates, which is faster and can
miss what these lack. exact: every input of a small task.
"""


def add_flags(
  parser: argparse.ArgumentParser,
  *,
  default: str = DEFAULT_METHOD,
  decoding: Sequence[str] = ("num-samples", "mixture"),
  reader: str = "addition",
) -> None:
  """Adds --reader, --target, --task, --method and the settings of the methods.

  Args:
    parser: of the command.
    default: the method that is used without --method, in words.
    decoding: the settings of the decoder that the command has.
    reader: what is read when neither a reader nor a target is given, in words.
  """
  flags.add(parser, "reader", unset=reader)
  flags.add(
    parser, "target", unset="the one stored with the reader, or named by it; without --reader, no reader is used"
  )
  flags.add(parser, "task", unset="the target's own; only without --reader")
  flags.add(parser, "method", unset=default)
  for name in decoding:
    flags.add(parser, name)
  flags.add(parser, "particles")
  flags.add(parser, "budget")


def check(args: argparse.Namespace, default: str | None = None, **uses: tuple[str, ...]) -> str | None:
  """The method of these flags before anything is loaded; None, or the command's default, where it depends on the task.

  Args:
    args: with the flags of `add_flags`.
    default: the method without --method, where the command has another default than `Source.of`.
    uses: method -> flags of this command alone that mean something with it.

  Raises:
    InversionViewError: an unknown method, or flags that do not go with it.
  """
  method, alone = args.method or default, without_reader(args)
  if method is not None and method not in flags.METHODS:
    raise one_of("method", method, tuple(flags.METHODS))
  if alone and args.method is None:
    method = "monte_carlo"
  if alone and method is not None and "decoder" in method:
    raise InversionViewError(
      f"--method {method} needs a reader, which has the decoder: give --reader, or use monte_carlo"
    )
  if args.task and not alone:
    raise InversionViewError(
      "--task has no effect with a reader, which has its task: leave it out, or give --target without --reader"
    )
  if method is not None and (alone or args.method is not None or method == "decoder"):
    flags.check_used(args, method, **uses)
  return method


def without_reader(args: argparse.Namespace) -> bool:
  """Whether a target is read alone."""
  return args.reader is None and args.target is not None


def source_of(
  args: argparse.Namespace, default: str | None = None, *, mesh: "Mesh | None" = None, **uses: tuple[str, ...]
) -> "Source":
  """Loads the reader or the target that the flags name, and checks the method and its settings.

  Where no method is given, Monte Carlo is the default and the task has no moves or is of a language model, the decoder is used; see
  `note_decoder`.

  Args:
    args, default, uses: as for `check`.
    mesh: of the reader.

  Raises:
    InversionViewError: as `check` does; a reader or target that cannot be loaded, or a method that it cannot be read by.
  """
  method = check(args, default, **uses)
  from inversionview_jax.reading import load_reader
  from inversionview_jax.reading.source import Source, monte_carlo_by_default

  if without_reader(args):
    target, task = target_and_task(args)
    return Source.of(target, method, task=task, **settings_of(args))
  reader = load_reader(args.reader or "addition", args.target, mesh=mesh)
  if args.method is None and method != "decoder" and not monte_carlo_by_default(reader.task):
    method = "decoder"
  made = Source.of(reader, method)
  flags.check_used(args, made.method, **uses)
  return made.by(made.method, **settings_of(args))


def note_decoder(args: argparse.Namespace, made: "Source") -> None:
  """Says in a line on stderr why the decoder is used where Monte Carlo is the default of other tasks; called once nothing else is refused."""
  if args.method is None and made.method == "decoder":
    from inversionview_jax.reading.source import has_moves

    why = (
      "is of a language model, for which Monte Carlo takes minutes"
      if has_moves(made.task)
      else "has no moves, which Monte Carlo needs"
    )
    print_message(f"the task {made.task.name!r} {why}: --method decoder is used")


def note_other_text(task: "Task", text: str) -> None:
  """Says in a line on stderr that a text is no input of the task, of which the target has seen others only."""
  import numpy as np

  from inversionview_jax.tasks.tokenizer_base import encode_with_bos

  if not task.may_be_input(encode_with_bos(task.tokenizer, text)):
    example = task.tokenizer.text(task.tokens(np.zeros(1, np.int64))[0].tolist())
    print_message(
      f"{text!r} is neither an input of the task {task.name!r}, such as {example!r}, nor the beginning of one: its target has seen none like it"
    )


def target_and_task(args: argparse.Namespace) -> "tuple[Target, Task]":
  """The target of --target and its task; raises `InversionViewError` where it has none and --task names none."""
  from inversionview_jax.targets import load_target, task_and_target

  files = getattr(args, "task_texts", None)
  if args.task or files:
    settings = {"files": (files,)} if files else None
    task, target = task_and_target(args.task or "text", args.target, settings=settings)
    return target, task
  target = load_target(args.target)
  own = target.resolve_task()
  if own is None:
    raise InversionViewError(f"the target {args.target} names no task: give --task, or --reader")
  return target, own


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
  """The settings of a method that were given, by the names of `Reader.preimage`'s arguments."""
  names = {
    "temperature": "temperatures",
    "noise": "noise",
    "num_samples": "num_samples",
    "mixture": "mixture",
    "particles": "particles",
    "budget": "budget",
  }
  return {name: value for flag, name in names.items() if (value := getattr(args, flag, None)) is not None}
