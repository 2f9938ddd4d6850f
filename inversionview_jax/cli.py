"""The command line, `inversionview COMMAND ...`; `inversionview --help` lists the commands."""

import argparse
import os
import pathlib
import sys

from inversionview_jax.commands import (
  at_least,
  bench,
  evaluate,
  explore,
  export,
  heads,
  import_,
  interpret,
  measure,
  patch,
  plan,
  report,
  sample,
  verify,
)
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, make_folder
from inversionview_jax.stop import AGAIN, Stopped, listen

# In the order in which --help lists them, behind view, train-target and train.
_COMMANDS = (sample, explore, report, evaluate, measure, interpret, heads, patch, verify, export, import_, plan, bench)
_WITH_CONFIG = ("train-target", "train", "patch", "heads", "report", "plan")  # take settings of a config

_VIEW = """\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
"""

_TRAIN = """\
Any setting of the config can be changed:

  inversionview {name} --config configs/addition.py:tiny --workdir W --config.seed=1 --config.{key}.lr=0.003

Running the same command again resumes from the newest checkpoint in the workdir. SIGTERM saves and exits with code 75, which means
"again". On several hosts run the same command on each of them: TPU slices, SLURM and Open MPI are recognised; elsewhere give --coordinator,
--num_processes and --process_id.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs a command; returns the exit code: 0; 2 for bad input (one line on stderr, no traceback); 75 if it was stopped and can go on."""
  own_process = argv is None
  argv = sys.argv[1:] if argv is None else argv
  if own_process and argv[:1] in (["train"], ["train-target"]):
    listen()  # before anything that takes time
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  args.argv = argv  # for what says how it was made
  if rest and args.command not in _WITH_CONFIG:
    parser.error(f"unknown argument {rest[0]!r}; see inversionview {args.command} --help")
  try:
    return _leaving(args.run(args, rest))
  except InversionViewError as error:
    print(f"inversionview: {' '.join(str(error).split())}", file=sys.stderr)
    return _leaving(2)
  except Stopped as stopped:
    print(f"inversionview: {stopped}; the same command goes on from there", file=sys.stderr)
    return _leaving(AGAIN)
  except KeyboardInterrupt:
    print("inversionview: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
    return 130
  except BrokenPipeError:  # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _leaving(code: int) -> int:
  """The exit code, once the other hosts know, if there are any."""
  if hosts := sys.modules.get("inversionview_jax.hosts"):
    hosts.finish(code)
  return code


def _parser() -> argparse.ArgumentParser:
  from inversionview_jax import __version__

  parser = argparse.ArgumentParser(
    prog="inversionview",
    description="Read what a neural activation says.",
    epilog="inversionview COMMAND --help says more.",
  )
  parser.add_argument("--version", action="version", version=f"inversionview_jax {__version__}")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  view = commands.add_parser(
    "view",
    help="show the preimage of one activation",
    description=_VIEW,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  view.add_argument("text", help="an input of the task, or the beginning of one")
  view.add_argument("--reader", default="addition", help="a shipped reader or a workdir (default: addition)")
  view.add_argument("--target", help="where the target is (default: the one stored with, or named by, the reader)")
  view.add_argument(
    "--site", required=True, help="a0.3 or blocks.0.attn.hook_result.3; x0.pre, x1.mid, x1.post, m1, ..."
  )
  view.add_argument("--position", required=True, help='an index (BOS is 0) or a label such as "=", "+", "A1"')
  view.add_argument("--epsilon", type=float, help="threshold on the distance (default: the task's)")
  view.add_argument("--metric", help="euclidean (normalized) or cosine (default: the task's)")
  view.add_argument(
    "--match",
    default="anywhere",
    help='"anywhere": minimum over positions; "position": only at the query\'s (default: anywhere)',
  )
  view.add_argument(
    "--temperature",
    type=float,
    action="append",
    help="sampling temperature; may be repeated (default: the task's mixture)",
  )
  view.add_argument(
    "--noise",
    type=float,
    action="append",
    help="Gaussian noise on the activation, in units of its spread; one, or one per temperature",
  )
  view.add_argument("--num-samples", type=int, help="candidates to draw (default: the mixture's, 1024)")
  view.add_argument(
    "--mixture", help='how candidates are drawn, such as "paper" (default: the first of the task\'s mixtures)'
  )
  view.add_argument("--shown", type=int, default=100, help="how many of them to show (default: 100)")
  view.add_argument("--merge", action="store_true", help="equal candidates once, with how often they were drawn")
  view.add_argument("--seed", type=int, default=0)
  view.add_argument("--no-color", action="store_true", help="no colours (NO_COLOR works too)")
  view.add_argument("--html", metavar="FILE", help="also write one self-contained page")
  view.add_argument("--json", metavar="FILE", help="also write the data (Preimage.from_json reads it)")
  view.set_defaults(run=_view)

  for name, key, run, about in (
    ("train-target", "target.optimizer", _train_target, "train a target model on its task"),
    ("train", "optimizer", _train, "train a decoder on a target's activations"),
  ):
    train = commands.add_parser(
      name,
      help=about,
      description=about.capitalize() + ".",
      epilog=_TRAIN.format(name=name, key=key),
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", required=True, help="a config file and a variant, such as configs/addition.py:tiny")
    train.add_argument("--workdir", required=True, help="where everything of this run goes")
    _add_hosts(train)
    if name == "train":
      train.add_argument(
        "--target", help="a target to read (default: the one in the workdir, else the task's shipped one)"
      )
    train.set_defaults(run=run)
  for module in _COMMANDS:
    module.add_parser(commands)
  return parser


def _add_hosts(command) -> None:
  """The flags by which processes on several hosts find one another, where the environment does not say."""
  command.add_argument("--coordinator", default="", metavar="HOST:PORT", help="the first process, as all can reach it")
  command.add_argument("--num_processes", type=int, default=0, help="how many processes there are")
  command.add_argument("--process_id", type=int, default=-1, help="which of them this is, from 0")


def _join(hosts, args) -> None:
  from inversionview_jax import recovery

  recovery.quiet()
  hosts.start(args.coordinator, args.num_processes, args.process_id)
  hosts.speak_as_one()


def _view(args, rest) -> int:
  at_least(args, shown=1)
  for path in (args.html, args.json):
    # Before the work, not after it: a page that cannot be written is known now.
    if path:
      check_can_hold(path)
    if path and pathlib.Path(path).is_dir():
      raise InversionViewError(f"cannot write {path}: it is a folder; give the name of a file")
  from inversionview_jax import render
  from inversionview_jax.reader import load_reader

  reader = load_reader(args.reader, args.target)
  preimage = reader.preimage(
    args.text,
    args.site,
    args.position,
    epsilon=args.epsilon,
    metric=args.metric,
    match=args.match,
    temperatures=args.temperature,
    noise=args.noise,
    num_samples=args.num_samples,
    mixture=args.mixture,
    seed=args.seed,
  )
  if args.merge:
    preimage = preimage.merged()
  if args.json:
    preimage.to_json(args.json)
  if args.html:
    render.write_page(args.html, preimage, shown=args.shown)
  render.print_preimage(preimage, shown=args.shown, colors=not args.no_color)
  return 0


def load_config(path: str, overrides: list[str]):
  """A config file with its variant and overrides, as the flags `--config` and `--config.key=value` give them.

  Raises:
    InversionViewError: no such file or variant, an unknown key (the closest are named), or a value of another type.
  """
  import difflib

  from absl import flags
  from ml_collections import ConfigDict, config_flags

  argv = ["inversionview", f"--config={path}", *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
  file = pathlib.Path(path.split(":")[0])
  if not file.is_file():
    raise InversionViewError(
      f"no config file {file}; configs of this project are in configs/, for example configs/addition.py:tiny"
    )
  sys.modules.pop("config_config", None)  # a config that was read before, whose names would be found again
  try:
    left = values(argv)
    config = values.config
  except (AttributeError, KeyError) as error:
    asked = [
      argument.split("=")[0].removeprefix("--config.") for argument in overrides if argument.startswith("--config.")
    ]
    known = config_flags_defaults(path) if asked else []
    if not (unknown := [key for key in asked if key not in known]):
      raise InversionViewError(f"config {path}: {' '.join(str(error).split())}") from None
    near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5) or sorted(known)[:12]
    raise InversionViewError(f"unknown config key {unknown[0]!r} in {path}; closest: {', '.join(near)}") from None
  except (flags.Error, ValueError, TypeError, OSError, SyntaxError) as error:
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    raise InversionViewError(f"config {path}: {lines[-1].strip() if 'Traceback' in str(error) else lines[0]}") from None
  if not isinstance(config, ConfigDict):
    raise InversionViewError(f"config {path}: it has no get_config that returns a ConfigDict")
  if left[1:]:
    raise InversionViewError(f"unknown argument {left[1]!r}; settings look like --config.steps=1000")
  return config


def config_flags_defaults(path: str) -> list[str]:
  """Every key of a config, dotted."""
  from ml_collections import ConfigDict

  def keys(config, prefix=""):
    for name, value in config.items():
      yield prefix + name
      if isinstance(value, ConfigDict):
        yield from keys(value, f"{prefix}{name}.")

  return list(keys(load_config(path, [])))


def _train_target(args, overrides) -> int:
  from inversionview_jax import data, hosts, objectives, parallel, tasks, training

  config = load_config(args.config, overrides)
  _join(hosts, args)
  task, folder = tasks.get(config.task), make_folder(args.workdir) / "target"
  settings = config.target.copy_and_resolve_references()
  settings.unlock()
  settings.seed = config.seed
  for name in training.OF_THE_RUN:  # where and how it is computed, said once for both models
    if name in config and name not in settings:
      settings[name] = config[name]
  mesh = parallel.mesh_of(settings)
  training.refuse_workdir(settings, folder, mesh)
  rows, held_out = _rows(data, task, config)
  print(config)
  parallel.use_compilation_cache()
  metrics = training.train(objectives.TargetObjective(task, settings, held_out, mesh), rows, settings, folder, mesh)
  print(f"accuracy of whole answers, {metrics['held_out']:,.0f} held-out inputs: {metrics['accuracy']:.5f}")
  for name, value in metrics.items():
    if name.startswith("accuracy_"):
      print(f"{name}: {value:.5f}")
  print(f"target: {folder}")
  return 0


def _train(args, overrides) -> int:
  from inversionview_jax import data, hosts, objectives, parallel, tasks, training

  config = load_config(args.config, overrides)
  _join(hosts, args)
  mesh = parallel.mesh_of(config)
  training.refuse_workdir(config, pathlib.Path(args.workdir) / "decoder", mesh)
  of_a_model = tasks.is_language(config.task)
  task, target, source, workdir = (_language_target if of_a_model else _own_target)(args, config, mesh)
  rows, held_out = _rows(data, task, config)
  print(config)
  print(f"target: {source}")
  metrics = training.train(
    objectives.DecoderObjective(task, config, target, rows, held_out, mesh), rows, config, workdir / "decoder", mesh
  )
  print(f"in-epsilon rate, mean over sites: {metrics['rate']:.3f}; lowest: {metrics['rate_lowest']:.3f}")
  for name, value in metrics.items():
    if name.startswith("rate/"):
      print(f"  {name.removeprefix('rate/'):8} {value:.3f}")
  print(f"reader: {workdir}")
  return 0


def _own_target(args, config, mesh):
  """-> task, target, where it came from, and the workdir, which now holds a copy of it."""
  from inversionview_jax import hosts, tasks
  from inversionview_jax.target import load_target, refuse_other_tokenizer

  task, workdir = tasks.get(config.task), make_folder(args.workdir)
  own = workdir / "target"
  has_own = (own / "model.json").exists()
  source = args.target or (str(own) if has_own else task.name)
  dtype = (config.get("compute") or {}).get("target_dtype", "") or None
  target = load_target(source, tokenizer=task.tokenizer, dtype=dtype, mesh=mesh)
  refuse_other_tokenizer(target, task, source)
  if has_own and args.target and load_target(own).fingerprint != target.fingerprint:
    raise InversionViewError(
      f"{workdir} has another target than {source}; use another --workdir, or leave out --target"
    )
  hosts.all_true(True)  # all have looked before one writes
  if (
    not has_own and hosts.writer()
  ):  # so that the workdir is a reader on its own, and goes on with this target when resumed
    load_target(source, convention="raw", tokenizer=task.tokenizer).save(own)
  return task, target, source, workdir


def _language_target(args, config, mesh):
  """The same for a language model, of which the workdir says where it is."""
  from inversionview_jax import hosts, reference

  where = pathlib.Path(args.workdir) / "target"
  said = reference.said_in(where)
  source = args.target or (said and said["path"]) or config.target.path
  target, task = reference.load_for(config.task, config, source, names=tuple(config.sites), mesh=mesh)
  if said and said["fingerprint"] != target.fingerprint:
    raise InversionViewError(
      f"{args.workdir} reads another target or other layers ({said['path']}); use another --workdir"
    )
  hosts.all_true(True)  # as above
  workdir = make_folder(args.workdir)
  if hosts.writer():
    reference.write(where, source, target)
  return task, target, source, workdir


def _rows(data, task, config):
  where = {"config": config.data.config, "data_dir": config.data.dir or None}
  return data.load_rows(task, "train", **where), data.load_rows(task, "test", **where)


if __name__ == "__main__":
  sys.exit(main())
