"""`inversionview view`: the preimage of one activation."""

import argparse
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags, source
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold
from inversionview_jax.progress import bar_of

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage
  from inversionview_jax.targets import Target

_DESCRIPTION = f"""\
Show the epsilon-preimage of one activation: inputs that put nearly the same activation there, each confirmed by re-running the target.

  inversionview view "615+861=1476" --reader addition --site a0.0 --position =
  inversionview view "615+861=1476" --reader W --site x1.mid --position A1 --match position --html report.html
  inversionview view "615+861=1476" --target addition --site a1.3 --position 3        # no reader: Monte Carlo on the target
  inversionview view "615+861=1476" --target addition --site a1.1 --site a1.0 --position =     # both together
  inversionview view "The cat sat" --target MODEL.gguf --site x12.mid --position END --prior model     # any text, by a language model

{source.METHODS_HELP}
Several sites or positions must match together (--method monte_carlo, the default then): the largest of their distances counts.
The inputs are those of the task or, of a language model without a reader, the lines of a file (--texts) or the texts that the model itself might
have written (--prior model).
"""


def add_parser(commands: Any) -> None:
  """Adds `view` to the commands."""
  parser = flags.add_command(commands, "view", run, "show the preimage of one activation", _DESCRIPTION)
  parser.add_argument("text", help="an input of the task, or the beginning of one")
  source.add_flags(parser)
  parser.add_argument(
    "--texts",
    dest="task_texts",
    metavar="FILE",
    help="a file of inputs, one on each line (without a reader: what Monte Carlo on a language model draws from)",
  )
  flags.add(parser, "site", required=True, repeated=True)
  flags.add(parser, "position", required=True, repeated=True)
  for name in ("prior", "growth", "start"):
    flags.add(parser, name)
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
    type=flags.number("temperature", above=True),
    action="append",
    help="sampling temperature (may be repeated; default: the mixture's)",
  )
  parser.add_argument(
    "--noise",
    type=flags.number("noise"),
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
  _check(args)
  from inversionview_jax.preimage import render

  if _has_prior(args):
    preimage = _of_texts(args)
  else:
    preimage = _together(args) if _several(args) else _alone(args)
  if args.merge:
    preimage = preimage.merged()
  render.print_preimage(preimage, shown=args.shown, colors=not args.no_color)
  if args.json:
    preimage.to_json(args.json)
  if args.html:
    render.write_page(args.html, preimage, shown=args.shown)
  return 0


def _has_prior(args: argparse.Namespace) -> bool:
  """Whether the texts are those of a prior; raises `InversionViewError` where other flags do not go with it."""
  if args.prior is None:
    if unused := [name for name in ("growth", "start") if getattr(args, name) is not None]:
      raise InversionViewError(f"--{unused[0]} belongs to --prior model: give it, or leave --{unused[0]} out")
    return False
  if args.target is None:
    raise InversionViewError("--prior is for a whole language model: give it with --target")
  if args.reader and args.start is not None:
    raise InversionViewError(
      f"--start {args.start} and --reader do not go together: with a reader, its decoder writes the first texts"
    )
  if args.task:
    raise InversionViewError("the inputs are those of a task, or texts of a prior: give --task or --prior, not both")
  method = "decoder+monte_carlo" if args.reader else "monte_carlo"
  if args.method not in (None, method):
    raise InversionViewError(f"--prior and --method {args.method} do not go together: use --method {method}")
  flags.check_used(args, "monte_carlo")
  return True


def _of_texts(args: argparse.Namespace) -> "Preimage":
  """The preimage of a language model among the texts of a prior."""
  from inversionview_jax.targets import load_target

  chosen = {name: value for name in ("growth", "start") if (value := getattr(args, name)) is not None}
  if args.reader:
    from inversionview_jax.reading import load_reader

    chosen["start"] = load_reader(args.reader, args.target)
  return _by_monte_carlo(args, load_target(args.target), prior=args.prior, **chosen)


def _several(args: argparse.Namespace) -> bool:
  """Whether several activations are compared, or projections of one."""
  return len(args.site) > 1 or len(args.position) > 1 or args.directions is not None


def _alone(args: argparse.Namespace) -> "Preimage":
  """The preimage of one activation."""
  from inversionview_jax.reading import Request

  drawn_from = source.source_of(args)
  request = Request(args.text, args.site[0], args.position[0], args.epsilon, args.metric, args.match)
  drawn_from.check([request])
  source.note_decoder(args, drawn_from)
  source.note_other_text(drawn_from.task, args.text)
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
  return _by_monte_carlo(args, drawn_from.target, task=drawn_from.task)


def _by_monte_carlo(args: argparse.Namespace, target: "Target", **inputs: Any) -> "Preimage":
  """The preimage by Monte Carlo on the target; `inputs` are the arguments of `reading.preimage` that say among which texts."""
  from inversionview_jax.reading import preimage

  given: dict[str, Any] = {name: getattr(args, name) for name in ("epsilon", "metric", "match", "directions", "seed")}
  given |= source.settings_of(args) | inputs
  with bar_of("target runs") as progress:
    return preimage(target, args.text, args.site, args.position, **given, progress=progress)


def _check(args: argparse.Namespace) -> None:
  """Raises `InversionViewError` for flags that do not go together, and for files that cannot be written."""
  if args.task_texts and (not source.without_reader(args) or args.task or args.prior):
    raise InversionViewError(
      "--texts says what the inputs of a --target are: leave out --reader, --task and --prior, and give --target"
    )
  for path in (args.html, args.json):
    if not path:
      continue
    check_can_hold(path)  # before the work, not after it
