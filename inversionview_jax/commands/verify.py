"""`inversionview verify`: tests by patching whether an activation carries a feature."""

import argparse
import json
from typing import TYPE_CHECKING, Any

from inversionview_jax import terminal
from inversionview_jax.commands import flags
from inversionview_jax.commands.tables import estimate_text, make_table
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.progress import following

if TYPE_CHECKING:
  from inversionview_jax.causal.verification import Verdict

_DESCRIPTION = """\
Test a reading: patch an activation from inputs that differ in one feature only, and from inputs that differ in everything but it.

  inversionview verify --site a0.3 --position = --feature C2
  inversionview verify --target T --task counting --site a1.0 --position : --feature count

An activation that carries the feature and nothing else explains all of the first change in the answer, and none of the second.
"""


def add_parser(commands: Any) -> None:
  """Adds `verify` to the commands."""
  parser = flags.add_command(commands, "verify", run, "test whether an activation carries a feature", _DESCRIPTION)
  flags.add(parser, "task", default="addition")
  flags.add(parser, "target")
  flags.add(parser, "family")
  flags.add(parser, "ignore-config-key", repeated=True)
  flags.add(parser, "convention")
  flags.add(parser, "site", required=True)
  flags.add(parser, "position", required=True)
  parser.add_argument(
    "--feature",
    required=True,
    help="addition: F1 ... S3, A1 ... A4, C1 C2 C3, length; counting: count, query, length; ioi: IO, S, place, ...",
  )
  parser.add_argument(
    "--predict", help="the answer token that is judged (default: the one predicted there, else the first)"
  )
  parser.add_argument("--where", default="", help='a condition on the clean input, such as "C1 == 0 and F2 + S2 != 9"')
  parser.add_argument("--pairs", type=flags.count("pairs"), default=8192, help="pairs of each kind (default: 8192)")
  parser.add_argument("--split", default="test", help="train or test (default: test)")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints the two kinds of pairs and the effect of the patch in each."""
  del rest
  if args.json:
    check_can_hold(args.json)
  from inversionview_jax.causal import verification
  from inversionview_jax.targets import task_and_target
  from inversionview_jax.tasks.base import index_or_label

  loading = {"convention": args.convention, "family": args.family, "ignore_config_keys": args.ignore_config_key or ()}
  task, target = task_and_target(args.task, args.target, **loading)
  with following("patching"):
    verdict = verification.verify(
      target,
      args.site,
      index_or_label(args.position),
      args.feature,
      task=task,
      predict=args.predict,
      pairs=args.pairs,
      split=args.split,
      seed=args.seed,
      where=args.where,
    )
  _print(verdict, target.name, task.name)
  if args.json:
    settings = {"task": task.name, "split": args.split, "seed": args.seed, "where": args.where}
    content = {"format_version": 1, "target": target.describe()} | settings
    content |= {"pairs_asked": args.pairs} | verdict.to_data()
    write_whole(args.json, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
  return 0


def _print(verdict: "Verdict", target: str, task: str) -> None:
  from inversionview_jax.tasks.contrast import VARY

  console = terminal.console(highlight=False)
  console.print(
    f"{verdict.site} at {verdict.position!r}, feature {verdict.feature}, judged by {verdict.predict} "
    f"(target {target}, task {task})\n",
    markup=False,
  )
  data, first = verdict.to_data(), "pairs that differ in"
  table = make_table(first, f"{verdict.feature} only", f"everything but {verdict.feature}", left=[first])
  sides = [data[vary] for vary in VARY]
  table.add_row("for example", *(" / ".join(side["example"]) for side in sides))
  table.add_row("n", *(f"{side['effect']['n']:,}" for side in sides))
  rows: tuple[tuple[str, str, bool], ...] = (
    (f"{verdict.predict} differs", "answer_differs", True),
    ("logit difference, clean", "original", False),
    ("  the corrupted run takes", "total", False),
    ("  the patch takes", "effect", False),
    ("  as a share", "share", True),
    ("KL of the corrupted run", "total_kl", False),
    ("KL of the patched run", "kl", False),
    ("top token changed", "top_changed", True),
  )
  for label, key, percent in rows:
    table.add_row(label, *(estimate_text(side[key], *((100, " %") if percent else ())) for side in sides))
  console.print(table)
  terminal.print_text(f"\n{verdict}")
