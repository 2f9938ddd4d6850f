"""`inversionview scoreboard`: readers and circuits on compiled programs, whose parts are known."""

import argparse
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold
from inversionview_jax.progress import bar, is_hidden
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from inversionview_jax.benchmarks.scoreboard import ProgramScore

_DESCRIPTION = """\
Score readers and circuits on programs that Tracr compiles into transformers (extra `tracr`): the program says which variable every head and MLP
writes, and which of them are read on the way to the output.

  inversionview scoreboard --json scoreboard.json
  inversionview scoreboard --programs hist sort "reverse,max_seq_len=4"
  inversionview scoreboard --programs hist,max_seq_len=9 --method monte_carlo --queries 4 --no-circuits
  inversionview scoreboard --trained addition

Variables: a reader names one of all expressions of the program at all positions, for every head and MLP at every position. Beside preimages, in the
same run: linear probes (all that they decode, and the best one), the text alone, and the preimages of another component. No decoder is trained
for these programs. Trained models: the parts of the shipped targets that carry one variable, as patching or the architecture shows. Circuits: scores of nodes by patching from another input, of edges by path patching, against the program's own graph.
benchmarks/README.md explains the columns.
"""


def add_parser(commands: Any) -> None:
  """Adds `scoreboard` to the commands."""
  parser = flags.add_command(commands, "scoreboard", run, "score readers on programs with known answers", _DESCRIPTION)
  parser.add_argument(
    "--programs",
    nargs="+",
    metavar="NAME",
    type=flags.given,
    help="programs of Tracr's library, with settings behind commas, or package.module:NAME (default: the whole library)",
  )
  parser.add_argument(
    "--trained",
    nargs="+",
    metavar="NAME",
    type=flags.given,
    help="trained targets whose answers are known: addition, counting (default: both, none with --programs)",
  )
  parser.add_argument(
    "--method", type=flags.given, help="exact or monte_carlo (default: exact where there are at most 4,096 inputs)"
  )
  parser.add_argument(
    "--queries", type=flags.count("queries"), help="different activations of each component, at most (default: 24)"
  )
  flags.add(parser, "particles")
  parser.add_argument("--no-circuits", action="store_true", help="leave out nodes and edges")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints the table and what was missed, and writes the JSON."""
  del rest
  if args.json:
    check_can_hold(args.json)
  if args.particles is not None and args.method != "monte_carlo":
    raise InversionViewError("--particles has no effect without --method monte_carlo: leave it out, or give that")
  from inversionview_jax.benchmarks.scoreboard import scoreboard, trained
  from inversionview_jax.tasks.programs import LIBRARY

  programs = [] if args.trained and not args.programs else args.programs
  shipped = args.trained or (None if programs is not None else list(trained.answers()))
  count = len(LIBRARY if programs is None else programs) + len(shipped or ())
  how: dict[str, Any] = {} if args.queries is None else {"queries": args.queries}
  with bar("programs", count) as advance:

    def progress(one: "ProgramScore") -> None:
      if not is_hidden():
        print_text(str(one), error=True, flush=True)
      advance(1)

    board = scoreboard(
      programs,
      trained_targets=shipped,
      method=args.method,
      particles=args.particles,
      circuit=not args.no_circuits,
      seed=args.seed,
      progress=progress,
      **how,
    )
  print_text(str(board))
  for line in board.misses():
    print_text(line)
  if args.json:
    board.to_json(args.json)
  return 0
