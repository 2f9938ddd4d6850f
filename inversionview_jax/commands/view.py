"""`inversionview view`: the preimage of one activation."""

import argparse
import pathlib

from inversionview_jax.commands import at_least
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold

_ABOUT = """\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
"""


def add_parser(commands) -> None:
  view = commands.add_parser(
    "view",
    help="show the preimage of one activation",
    description=_ABOUT,
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
  view.set_defaults(run=run)


def run(args, rest) -> int:
  at_least(args, shown=1)
  for path in (args.html, args.json):
    # Before the work, not after it: a page that cannot be written is known now.
    if path:
      check_can_hold(path)
    if path and pathlib.Path(path).is_dir():
      raise InversionViewError(f"cannot write {path}: it is a folder; give the name of a file")
  from inversionview_jax.preimage import render
  from inversionview_jax.reading.reader import load_reader

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
