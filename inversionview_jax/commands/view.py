"""`inversionview view`: the preimage of one activation."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags, source
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold
from inversionview_jax.progress import bar_of

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage

_DESCRIPTION = f"""\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
  inversionview view "615+861=1476" --target addition --site a1.3 --position 3        # no reader: Monte Carlo on the target
  inversionview view "615+861=1476" --target addition --site a1.1 --site a1.0 --position =     # both together

{source.METHODS_HELP}
Several sites or positions must match together (--method monte_carlo, the default then): the largest of their distances counts.
"""


def add_parser(commands: Any) -> None:
  """Adds `view` to the commands."""
  parser = flags.add_command(commands, "view", run, "show the preimage of one activation", _DESCRIPTION)
  parser.add_argument("text", help="an input of the task, or the beginning of one")
  source.add_flags(parser)
  flags.add(parser, "site", required=True, repeated=True)
  flags.add(parser, "position", required=True, repeated=True)
  parser.add_argument(
    "--directions",
    metavar="FILE",
    help="compare activations along these directions only: .npy or .safetensors, [K, width] (--method monte_carlo)",
  )
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
  flags.add(parser, "shown", default=100)
  parser.add_argument("--merge", action="store_true", help="show equal candidates once, with how often they were drawn")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "no-color")
  parser.add_argument("--html", metavar="FILE", help="also write one self-contained page")
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Finds the preimage, writes what was requested and prints it."""
  del rest
  flags.check_at_least(args, shown=1)
  for path in (args.html, args.json):
    if not path:
      continue
    check_can_hold(path)  # before the work, not after it
    if pathlib.Path(path).is_dir():
      raise InversionViewError(f"cannot write {path}: it is a folder; give the name of a file")
  from inversionview_jax.preimage import render

  preimage = _together(args) if _several(args) else _alone(args)
  if args.merge:
    preimage = preimage.merged()
  if args.json:
    preimage.to_json(args.json)
  if args.html:
    render.write_page(args.html, preimage, shown=args.shown)
  render.print_preimage(preimage, shown=args.shown, colors=not args.no_color)
  return 0


def _several(args: argparse.Namespace) -> bool:
  """Whether several activations are compared, or projections of one."""
  return len(args.site) > 1 or len(args.position) > 1 or args.directions is not None


def _alone(args: argparse.Namespace) -> "Preimage":
  """The preimage of one activation."""
  from inversionview_jax.reading import Request

  drawn_from = source.source_of(args)
  request = Request(args.text, args.site[0], args.position[0], args.epsilon, args.metric, args.match)
  if drawn_from.method in ("decoder", "exact"):
    return drawn_from.preimage(request, seed=args.seed)
  with bar_of("target runs") as progress:
    return drawn_from.preimage(request, seed=args.seed, progress=progress)


def _together(args: argparse.Namespace) -> "Preimage":
  """The preimage of several activations, or of what they are along some directions."""
  if args.method not in (None, "monte_carlo"):
    what = "--directions" if args.directions else "several sites or positions"
    raise InversionViewError(f"{what} and --method {args.method} do not go together: use --method monte_carlo")
  drawn_from = source.source_of(args, "monte_carlo")
  drawn_from.task.moves()  # raises where there are none
  from inversionview_jax.reading import preimage

  with bar_of("target runs") as progress:
    return preimage(
      drawn_from.target,
      args.text,
      args.site,
      args.position,
      task=drawn_from.task,
      epsilon=args.epsilon,
      metric=args.metric,
      match=args.match,
      directions=args.directions,
      **source.settings_of(args),
      seed=args.seed,
      progress=progress,
    )
