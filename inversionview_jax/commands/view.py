"""`inversionview view`: the preimage of one activation."""

import argparse
import pathlib
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold

_DESCRIPTION = """\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
"""


def add_parser(commands: Any) -> None:
  """Adds `view` to the commands."""
  parser = flags.add_command(commands, "view", run, "show the preimage of one activation", _DESCRIPTION)
  parser.add_argument("text", help="an input of the task, or the beginning of one")
  flags.add(parser, "reader", default="addition")
  flags.add(parser, "target", unset="the one stored with the reader, or named by it")
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
  flags.add(parser, "shown", default=100)
  parser.add_argument("--merge", action="store_true", help="show equal candidates once, with how often they were drawn")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "no-color")
  parser.add_argument("--html", metavar="FILE", help="also write one self-contained page")
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Draws the preimage, writes what was requested and prints it."""
  del rest
  flags.check_at_least(args, shown=1)
  for path in (args.html, args.json):
    if not path:
      continue
    check_can_hold(path)  # before the work, not after it
    if pathlib.Path(path).is_dir():
      raise InversionViewError(f"cannot write {path}: it is a folder; give the name of a file")
  from inversionview_jax.preimage import render
  from inversionview_jax.reading import load_reader

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
