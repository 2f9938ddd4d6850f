"""`inversionview evaluate`: how far to trust a reader."""

import argparse
import dataclasses
import json
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.files import make_folder, write_whole

_DESCRIPTION = """\
Measure a reader on inputs that its training did not see: how often one temperature-1 sample lies within epsilon, next to what random
inputs reach; and, where all inputs of the task can be enumerated, how its candidates compare with exact preimages.

  inversionview evaluate --reader addition --out E
  inversionview evaluate --reader W --out E --queries 500 --exact 50 --completeness 4

Writes evaluation.json and rates.png to E, and completeness.json and .png if asked for.
"""


def add_parser(commands: Any) -> None:
  """Adds `evaluate` to the commands."""
  parser = flags.add_command(commands, "evaluate", run, "measure how far to trust a reader", _DESCRIPTION)
  flags.add(parser, "reader", default="addition")
  flags.add(parser, "out", required=True)
  flags.add(parser, "target", unset="the one stored with the reader, or named by it")
  parser.add_argument(
    "--queries", type=int, default=200, help="queries per site, for the in-epsilon rate (default: 200)"
  )
  parser.add_argument(
    "--exact",
    type=int,
    help="queries in all that are compared with exact preimages (default: 50 where the task can enumerate, else 0)",
  )
  flags.add(parser, "mixture")
  flags.add(parser, "num-samples")
  parser.add_argument(
    "--completeness",
    type=int,
    default=0,
    help="queries whose distances are compared with log-probabilities over many inputs (default: 0)",
  )
  parser.add_argument(
    "--inputs",
    type=int,
    help="for --completeness, so many random inputs (default: all of the task, minutes per query on a CPU)",
  )
  parser.add_argument(
    "--noise-draws",
    type=int,
    default=1,
    help="for --completeness, draws of noise 0.1 (the paper: 500; default: 1, without noise)",
  )
  flags.add(parser, "seed", default=0)
  parser.add_argument("--no-plots", action="store_true", help="write no figures (they need matplotlib)")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Measures, prints the tables and writes the files."""
  del rest
  flags.check_at_least(args, queries=1, exact=0, num_samples=1, completeness=0, inputs=1, draws=1, seed=0)
  from inversionview_jax.measures import coverage, evaluation, held_out
  from inversionview_jax.reading import load_reader
  from inversionview_jax.sampling import exact
  from inversionview_jax.show import charts

  if not args.no_plots:
    charts.check()
  reader = load_reader(args.reader, args.target)
  task = reader.task
  if args.exact or args.completeness:
    exact.every_input(task)
  mixture = task.mixture if args.mixture is None else task.mixture_named(args.mixture)
  if args.num_samples is not None:
    mixture = dataclasses.replace(mixture, num_samples=args.num_samples)
  folder = make_folder(args.out)
  found = evaluation.evaluate(
    reader,
    queries=args.queries,
    exact_queries=(50 if task.enumerable else 0) if args.exact is None else args.exact,
    mixture=mixture,
    seed=args.seed,
  )
  found.to_json(folder / "evaluation.json")
  _print(found)
  written = ["evaluation.json"]
  if not args.no_plots:
    charts.rates(folder / "rates.png", found)
    written.append("rates.png")
  if args.completeness:
    asked = held_out.held_out_queries(reader, args.completeness, args.seed + 2, every_site=False)
    parts = coverage.completeness(reader, asked, args.inputs, draws=args.draws, seed=args.seed)
    _print_completeness(parts)
    table = {"format": "inversionview-completeness", "format_version": 2, "draws": args.draws}
    table["queries"] = [one.to_dict() for one in parts]
    write_whole(folder / "completeness.json", json.dumps(table, allow_nan=False) + "\n")
    written.append("completeness.json")
    if not args.no_plots:
      charts.completeness(folder / "completeness.png", parts)
      written.append("completeness.png")
  print(f"written to {folder}: {', '.join(written)}")
  return 0


def _table(*columns: str):
  from rich.table import Table

  table = Table(box=None, pad_edge=False, header_style="dim")
  for name in columns:
    table.add_column(name, justify="left" if name in ("site", "position", "query") else "right", no_wrap=True)
  return table


def _print(found) -> None:
  from rich.console import Console

  console = Console(highlight=False)
  console.print(
    f"reader {found.reader}, target {found.target}, epsilon {found.epsilon:g}, {found.metric}; held-out queries\n",
    markup=False,
  )
  rates = _table("site", "rate", "95 %", "random inputs")
  for site in found.sites:
    low, high = site.rate.low, site.rate.high
    rates.add_row(site.name, f"{site.rate.value:.3f}", f"{low:.3f} - {high:.3f}", f"{site.base:.3f}")
  told = found.summary()
  half = 1.96 * told["rate_standard_error"]
  rates.add_row(
    "mean", f"{told['rate']:.3f}", f"{told['rate'] - half:.3f} - {told['rate'] + half:.3f}", f"{told['base']:.3f}"
  )
  console.print(rates)
  console.print("rate: share of queries whose one temperature-1 sample lies within epsilon\n")
  by_label = _table("rate in %", *(label or "-" for label in found.labels))
  for site in found.sites:
    cells = [f"{100 * site.by_label[label][0].value:.0f}" if label in site.by_label else "" for label in found.labels]
    by_label.add_row(site.name, *cells)
  console.print(by_label)
  console.print()
  if not found.exact:
    return
  against = _table("site", "queries", "members (median)", "precision", "coverage", "features", "distinct")
  for name, own in [
    *((s.name, [one for one in found.exact if one.site == s.name]) for s in found.sites),
    ("all", found.exact),
  ]:
    if own:
      against.add_row(name, str(len(own)), *_means(own))
  console.print(against)
  settings = ", ".join(f"({temperature:g}, {eta:g})" for temperature, eta in found.mixture.settings)
  console.print(
    f"against exact preimages: {found.mixture.num_samples:,} candidates at (temperature, noise) {settings}; precision: share inside epsilon; "
    "coverage: share of members given at least a tenth of their uniform share; features: share of their values that were found\n"
  )


def _means(own) -> list[str]:
  import numpy as np

  features = [np.mean(list(one.features.values())) for one in own if one.features]
  return [
    f"{np.median([one.size for one in own]):,.0f}",
    *(f"{np.mean([getattr(one, name) for one in own]):.3f}" for name in ("precision", "coverage")),
    f"{np.mean(features):.3f}" if features else "",
    f"{np.mean([one.distinct for one in own]):,.0f}",
  ]


def _print_completeness(parts) -> None:
  from rich.console import Console

  table = _table("site", "position", "query", "inputs inside", "probability inside", "outside", "AUC")
  for one in parts:
    said = one.to_dict()
    order = "" if said["auc"] is None else f"{said['auc']:.4f}"
    inside, outside = said["inside"], said["outside"]
    table.add_row(
      one.site,
      one.label,
      one.text,
      f"{inside['inputs']:,}",
      f"{inside['probability']:.3f}",
      f"{outside['probability']:.3f}",
      order,
    )
  Console(highlight=False).print(table)
  print(
    "probability: what the decoder gives these inputs in sum; AUC: P(an input inside is given more than one outside)\n"
  )
