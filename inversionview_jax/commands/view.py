"""`inversionview view`: the preimage of one activation."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import check_can_hold
from inversionview_jax.progress import bar_of

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage

_DESCRIPTION = """\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
  inversionview view "615+861=1476" --target addition --site a1.3 --position 3        # no reader: Monte Carlo on the target

--method decoder: candidates of the reader's decoder. monte_carlo: particles from the task's prior, moved until all lie inside epsilon; the
decoder is not used, and not needed. decoder+monte_carlo: the same from the decoder's candidates. exact: every input of a small task.
"""


def add_parser(commands: Any) -> None:
  """Adds `view` to the commands."""
  parser = flags.add_command(commands, "view", run, "show the preimage of one activation", _DESCRIPTION)
  parser.add_argument("text", help="an input of the task, or the beginning of one")
  flags.add(parser, "reader", unset="addition")
  flags.add(
    parser, "target", unset="the one stored with the reader, or named by it; without --reader, no reader is used"
  )
  flags.add(parser, "task", unset="the target's own; only without --reader")
  flags.add(parser, "method", unset="decoder; without a reader monte_carlo")
  flags.add(parser, "site", required=True)
  flags.add(parser, "position", required=True)
  flags.add(parser, "epsilon")
  flags.add(parser, "metric")
  flags.add(parser, "match", default="anywhere")
  parser.add_argument(
    "--temperature",
    type=float,
    action="append",
    help="sampling temperature (may be repeated; default: the mixture's)",
  )
  parser.add_argument(
    "--noise",
    type=float,
    action="append",
    help="Gaussian noise on the activation, in units of its standard deviation; one, or one for each temperature",
  )
  flags.add(parser, "num-samples")
  flags.add(parser, "mixture")
  flags.add(parser, "particles")
  flags.add(parser, "budget")
  flags.add(parser, "shown", default=100)
  parser.add_argument("--merge", action="store_true", help="show equal candidates once, with how often they were drawn")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "no-color")
  parser.add_argument("--html", metavar="FILE", help="also write one self-contained page")
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Finds the preimage, writes what was requested and prints it."""
  del rest
  method = _method(args)
  for path in (args.html, args.json):
    if not path:
      continue
    check_can_hold(path)  # before the work, not after it
    if pathlib.Path(path).is_dir():
      raise InversionViewError(f"cannot write {path}: it is a folder; give the name of a file")
  from inversionview_jax.preimage import render

  preimage = _of_target(args, method) if args.reader is None and args.target else _of_reader(args, method)
  if args.merge:
    preimage = preimage.merged()
  if args.json:
    preimage.to_json(args.json)
  if args.html:
    render.write_page(args.html, preimage, shown=args.shown)
  render.print_preimage(preimage, shown=args.shown, colors=not args.no_color)
  return 0


def _method(args: argparse.Namespace) -> str:
  """The method of --method, or the default; raises `InversionViewError` where other flags do not go with it."""
  flags.check_at_least(args, shown=1, particles=2, budget=1)
  alone = args.reader is None and args.target is not None
  method = args.method or ("monte_carlo" if alone else "decoder")
  if method not in flags.METHODS:
    raise one_of("method", method, tuple(flags.METHODS))
  if alone and "decoder" in method:
    raise InversionViewError(
      f"--method {method} needs a reader, which has the decoder: give --reader, or use monte_carlo"
    )
  if args.task and not alone:
    raise InversionViewError(
      "--task has no effect with a reader, which has its task: leave it out, or give --target without --reader"
    )
  flags.check_used(args, method)
  return method


def _of_reader(args: argparse.Namespace, method: str) -> "Preimage":
  from inversionview_jax.reading import load_reader
  from inversionview_jax.reading.enumeration import exact_preimage

  reader = load_reader(args.reader or "addition", args.target)
  if method == "exact":
    return exact_preimage(reader.target, *_query(args), task=reader.task, name=reader.name, **_distance(args))
  decoding = {
    "temperatures": args.temperature,
    "noise": args.noise,
    "num_samples": args.num_samples,
    "mixture": args.mixture,
  }
  settings = _distance(args) | decoding | flags.sampling_of(args)
  if method == "decoder":
    return reader.preimage(*_query(args), **settings)
  with bar_of("Monte Carlo") as progress:
    return reader.preimage(*_query(args), **settings, method=method, progress=progress)


def _of_target(args: argparse.Namespace, method: str) -> "Preimage":
  """The preimage of a target without a reader."""
  from inversionview_jax.reading import preimage
  from inversionview_jax.reading.enumeration import exact_preimage
  from inversionview_jax.targets import load_target, task_and_target

  if args.task:
    task, target = task_and_target(args.task, args.target)
  else:
    target = load_target(args.target)
    task = target.resolve_task()
    if task is None:
      raise InversionViewError(f"the target {args.target} names no task: give --task, or --reader")
  if method == "exact":
    return exact_preimage(target, *_query(args), task=task, **_distance(args))
  with bar_of("Monte Carlo") as progress:
    return preimage(target, *_query(args), task=task, **_distance(args), **flags.sampling_of(args), progress=progress)


def _query(args: argparse.Namespace) -> tuple[str, str, str]:
  return args.text, args.site, args.position


def _distance(args: argparse.Namespace) -> dict[str, Any]:
  return {name: getattr(args, name) for name in ("epsilon", "metric", "match", "seed")}
