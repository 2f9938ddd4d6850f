"""`inversionview circuit`: from a task and a target to a causally verified circuit."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax import progress, terminal
from inversionview_jax.commands import flags
from inversionview_jax.files import path_of, write_whole

if TYPE_CHECKING:
  from inversionview_jax.causal.circuits import Circuit

_DESCRIPTION = """\
Find the smallest circuit of an answer: which heads and MLPs at which positions keep it while everything else is resample-ablated, what each of
them carries, and by which edges.

  inversionview circuit --task addition --answer A1 --out C
  inversionview circuit --task ioi --target SmolLM2-135M-Instruct.Q4_1.gguf --nodes 60 --out C
  inversionview circuit --target CHECKPOINT --contrast pairs.jsonl --out C

C then has circuit.json, circuit.html (open it in a browser), circuit.svg, mib.json (the format of the MIB benchmark) and the preimages of its
nodes. A second call with the same settings goes on where the first one was interrupted.
"""


def add_parser(commands: Any) -> None:
  """Adds `circuit` to the commands."""
  parser = flags.add_command(commands, "circuit", run, "find a causally verified circuit", _DESCRIPTION)
  flags.add(parser, "task")
  flags.add(parser, "target")
  flags.add(parser, "family")
  flags.add(parser, "ignore-config-key", repeated=True)
  flags.add(parser, "convention")
  parser.add_argument(
    "--answer", default="", help="label of the answer token (addition: A1 ... A4; default: the first)"
  )
  parser.add_argument("--out", required=True, metavar="FOLDER", help="where the circuit is written")
  parser.add_argument(
    "--faithfulness",
    type=flags.Number(0.0, 1.0, above=True),
    default=0.95,
    help="that the circuit must reach, from 0 to 1 (default: 0.95)",
  )
  parser.add_argument("--nodes", type=flags.count("count"), help="the most nodes (default: as many as it takes)")
  parser.add_argument(
    "--objective",
    type=flags.given,
    default="faithfulness",
    help="what the search keeps: faithfulness (what brings the answer about) or cmd (nearness to the whole model; default: faithfulness)",
  )
  parser.add_argument(
    "--contrast",
    metavar="FILE",
    help="your own pairs, .jsonl with clean, corrupted, answer and foil, in place of the task's",
  )
  parser.add_argument(
    "--pairs", type=flags.count("pairs"), help="pairs to search with (default: 512; 32 of a large target)"
  )
  parser.add_argument(
    "--test-pairs", type=flags.count("pairs", 2), help="pairs to measure with (default: 1024; 64 of a large target)"
  )
  parser.add_argument("--budget", type=flags.count("budget"), help="runs of the target at most (default: no limit)")
  parser.add_argument(
    "--queries",
    type=flags.Whole(0, 1_000_000),
    help="activations of each node that are read; 0: none (default: 16 or 6)",
  )
  parser.add_argument(
    "--inputs", type=flags.count("all_inputs"), help="random inputs for their preimages (default: 65536 or 4096)"
  )
  parser.add_argument(
    "--monte-carlo",
    type=flags.Whole(0, 1000),
    default=0,
    metavar="N",
    help="activations of each node to read by Monte Carlo where too few random inputs are near (default: 0)",
  )
  flags.add(parser, "seed", default=0)


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Writes the circuit and prints it."""
  del rest
  from inversionview_jax.errors import InversionViewError

  out = path_of(args.out)
  if out.exists() and not out.is_dir():
    raise InversionViewError(f"--out {args.out} is a file: give a folder")
  if not args.task and not (args.target and args.contrast):
    raise InversionViewError("--task is missing: name the task, or give --target and --contrast with pairs of your own")
  found = _find(args, out)
  write(found, out)
  terminal.print_text(str(found))
  _print_edges(found)
  random = "" if found.random_cpr is None else f", of random nodes {found.random_cpr:.3f}"
  terminal.print_text(
    f"\nCPR {found.cpr:.3f} (area under the faithfulness curve{random}), CMD {found.cmd:.3f}; {found.target_runs:,} runs of the target\n"
    f"{out / 'circuit.html'} shows it"
  )
  return 0


def _find(args: argparse.Namespace, out: pathlib.Path) -> "Circuit":
  from inversionview_jax.causal.circuits import circuit
  from inversionview_jax.targets import load_target, task_and_target
  from inversionview_jax.tasks import pairs_file

  loading = {"convention": args.convention, "family": args.family, "ignore_config_keys": args.ignore_config_key or ()}
  task = None
  if args.task:
    task, target = task_and_target(args.task, args.target, **loading)
  else:
    target = load_target(args.target, **loading)
  contrast = None
  if args.contrast:
    contrast = pairs_file.read(args.contrast, target, (args.pairs or 512) + (args.test_pairs or 512))
  with progress.StepBars() as bars:
    found = circuit(
      target,
      task,
      answer=args.answer,
      faithfulness=args.faithfulness,
      most=args.nodes,
      pairs=args.pairs,
      test_pairs=args.test_pairs,
      budget=args.budget,
      queries=args.queries,
      inputs=args.inputs,
      monte_carlo=args.monte_carlo,
      objective=args.objective,
      contrast=contrast,
      seed=args.seed,
      out=out,
      progress=bars,
    )
  return found


def write(found: "Circuit", out: pathlib.Path) -> None:
  """Writes circuit.json, mib.json and the pictures, beside the preimages, which the search has kept there."""
  from inversionview_jax.show.circuit_picture import circuit_page, circuit_svg

  out.mkdir(parents=True, exist_ok=True)
  preimages = {name: [json.loads(preimage.to_json()) for preimage in own] for name, own in found.preimages.items()}
  data = found.to_dict()
  write_whole(out / "mib.json", json.dumps(found.to_mib(), allow_nan=False) + "\n")
  write_whole(out / "circuit.svg", circuit_svg(data))
  write_whole(out / "circuit.html", circuit_page(data, preimages))
  found.to_json(out / "circuit.json")


def _print_edges(found: "Circuit") -> None:
  if not found.edges:
    return
  shown = [f"{e.source} -> {e.target} ({e.through}) {100 * e.effect.mean:.0f} %" for e in found.edges[:8]]
  more = f", {len(found.edges) - 8} more" if len(found.edges) > 8 else ""
  terminal.print_text("edges: " + ", ".join(shown) + more)
