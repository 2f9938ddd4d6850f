"""`inversionview evaluate`: measures how far to trust a reader."""

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import terminal
from inversionview_jax.commands import flags, source
from inversionview_jax.commands.tables import make_table
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import output_folder, write_whole
from inversionview_jax.progress import bar, following

if TYPE_CHECKING:
  from inversionview_jax.measures.coverage import Completeness, ExactComparison
  from inversionview_jax.measures.evaluation import Evaluation
  from inversionview_jax.measures.methods import MethodComparison
  from inversionview_jax.reading import Reader
  from inversionview_jax.sites import Site
  from inversionview_jax.targets import Target
  from inversionview_jax.tasks import Mixture, Task

_NAMES = ("site", "position", "query")  # columns that hold names
_DESCRIPTION = """\
Measure a reader on inputs that its training did not see: how often one temperature-1 sample lies within epsilon, next to how often a random
input does; and, where all inputs of the task can be enumerated, how its candidates compare with exact preimages.

  inversionview evaluate --reader addition --out E
  inversionview evaluate --reader W --out E --queries 500 --exact 50 --completeness 4
  inversionview evaluate --reader addition --out E --method all --queries 20
  inversionview evaluate --target T --task addition --out E --method monte_carlo

Writes evaluation.json and rates.png to E, and with --completeness also completeness.json and .png. --method monte_carlo,
decoder+monte_carlo and all (these two and the decoder's candidates, on the same queries) compare samples with exact preimages where the
inputs can be enumerated: inside epsilon, marginals, bits, seconds and target runs; they write methods.json. monte_carlo needs no reader.
"""
_ALL = "all"
# The flags of this command alone that measure the decoder.
_DECODER = ("exact", "completeness", "inputs", "noise_draws", "no_plots")


def add_parser(commands: Any) -> None:
  """Adds `evaluate` to the commands."""
  parser = flags.add_command(commands, "evaluate", run, "measure how far to trust a reader", _DESCRIPTION)
  flags.add(parser, "reader", unset="addition, unless --target is given")
  flags.add(parser, "out", required=True)
  flags.add(parser, "target", unset="the one stored with the reader, or named by it")
  flags.add(parser, "task", unset="the reader's, or the target's own")
  flags.add(parser, "site", repeated=True, unset="those of the reader, or of the task")
  flags.add(parser, "method", default="decoder")
  parser.add_argument(
    "--queries",
    type=flags.count("queries"),
    help="queries per site, for the in-epsilon rate (default: 200); of other methods in all, the sites in turn (default: 50)",
  )
  parser.add_argument(
    "--exact",
    type=flags.count("exact_queries"),
    help="queries in all that are compared with exact preimages (default: 50 where the task can enumerate, 0 of a language model)",
  )
  flags.add(parser, "mixture")
  flags.add(parser, "num-samples")
  flags.add(parser, "particles")
  flags.add(parser, "budget")
  parser.add_argument(
    "--completeness",
    type=flags.count("exact_queries"),
    default=0,
    help="queries whose distances are compared with log-probabilities over many inputs (default: 0)",
  )
  parser.add_argument(
    "--inputs",
    type=flags.Whole(1, 10**9),
    help="for --completeness, so many random inputs (default: all of the task, minutes per query on a CPU)",
  )
  parser.add_argument(
    "--noise-draws",
    type=flags.count("noise_draws"),
    help="for --completeness, draws of noise 0.1 (the paper: 500; default: 1, without noise)",
  )
  flags.add(parser, "seed", default=0)
  parser.add_argument("--no-plots", action="store_true", help="write no figures (they need matplotlib)")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Measures, prints the tables and writes the files."""
  del rest
  methods = tuple(flags.METHODS)[:3]
  if args.method not in (*methods, _ALL):
    raise one_of("method", args.method, (*methods, _ALL))
  flags.check_used(args, "decoder+monte_carlo" if args.method == _ALL else args.method, decoder=_DECODER)
  if args.method != "decoder":
    return _methods(args)
  if args.task or args.site:
    raise InversionViewError("--task and --site have no effect with --method decoder: leave them out")
  from inversionview_jax.measures.evaluation import evaluate
  from inversionview_jax.reading import load_reader
  from inversionview_jax.sampling import exact
  from inversionview_jax.show import charts

  if not args.no_plots:
    charts.check()
  reader = load_reader(args.reader or "addition", args.target)
  task = reader.task
  if args.exact or args.completeness:
    exact.every_input(task)  # raises for a task that cannot enumerate, before the work
  mixture = _mixture(task, args)
  with output_folder(args.out) as folder:
    with following("queries"):
      evaluation = evaluate(
        reader,
        queries=200 if args.queries is None else args.queries,
        exact_queries=_default_exact(task) if args.exact is None else args.exact,
        mixture=mixture,
        seed=args.seed,
      )
    _print_rates(evaluation)  # before it is written: a full disk does not cost the figures
    if evaluation.exact:
      _print_exact(evaluation)
    evaluation.to_json(folder / "evaluation.json")
    written = ["evaluation.json"]
    if not args.no_plots:
      charts.rates(folder / "rates.png", evaluation)
      written.append("rates.png")
    if args.completeness:
      written += _completeness(reader, args, folder)
  terminal.print_text(f"written to {folder}: {', '.join(written)}")
  return 0


def _default_exact(task: "Task") -> int:
  """Queries per site for exact preimages: none of a language model, where the enumeration of a list of texts takes hours."""
  from inversionview_jax.tasks import LanguageTask

  return 50 if task.enumerable and not isinstance(task, LanguageTask) else 0


def _methods(args: argparse.Namespace) -> int:
  """Compares methods on the same queries, prints the table and writes it."""
  from inversionview_jax.measures import held_out
  from inversionview_jax.measures.methods import METHODS, compare_methods

  methods = METHODS if args.method == _ALL else (args.method,)
  read = _target_alone(args) if source.without_reader(args) else _of_reader(args)
  target, task, sites = read if isinstance(read, tuple) else (read.target, read.task, read.sites)
  if isinstance(read, tuple) and methods != ("monte_carlo",):
    raise InversionViewError(
      f"--method {args.method} needs a reader, which has the decoder: give --reader, or use monte_carlo"
    )
  task.moves()  # raises for a task that has none, before a folder is made
  if args.mixture is not None:
    task.mixture_named(args.mixture)
  # The queries that the decoder's candidates are compared on, for the same number and seed.
  count = 50 if args.queries is None else args.queries
  queries = held_out.queries_of(target, task, sites, count, args.seed + 1, every_site=False)
  with output_folder(args.out) as folder:
    with bar(args.method, len(queries) * len(methods)) as advance:
      comparison = compare_methods(read, queries, methods, **source.settings_of(args), seed=args.seed, progress=advance)
    _print_methods(comparison)
    comparison.to_json(folder / "methods.json")
  terminal.print_text(f"written to {folder}: methods.json")
  return 0


def _of_reader(args: argparse.Namespace) -> "Reader":
  from inversionview_jax.reading import load_reader

  if args.task or args.site:
    raise InversionViewError(
      "--task and --site have no effect with a reader, which has its own: leave them out, or give --target without --reader"
    )
  return load_reader(args.reader or "addition", args.target)


def _target_alone(args: argparse.Namespace) -> "tuple[Target, Task, tuple[Site, ...]]":
  """The target, its task and the sites of the queries."""
  target, task = source.target_and_task(args)
  names = args.site or task.default_sites(target.config.n_layers, target.config.n_heads)
  return target, task, tuple(map(target.site, names))


def _mixture(task: "Task", args: argparse.Namespace) -> "Mixture":
  """The mixture of --mixture and --num-samples."""
  mixture = task.mixture if args.mixture is None else task.mixture_named(args.mixture)
  return mixture if args.num_samples is None else dataclasses.replace(mixture, num_samples=args.num_samples)


def _completeness(reader: "Reader", args: argparse.Namespace, folder: pathlib.Path) -> list[str]:
  """Measures completeness and prints it; returns the names of the files that were written."""
  from inversionview_jax.measures import coverage, held_out
  from inversionview_jax.show import charts

  draws = args.noise_draws or 1
  queries = held_out.held_out_queries(reader, args.completeness, args.seed + 2, every_site=False)
  with following("log-probabilities"):
    results = coverage.completeness(reader, queries, args.inputs, draws=draws, seed=args.seed)
  _print_completeness(results)
  content = {
    "format": "inversionview-completeness",
    "format_version": 2,
    "draws": draws,
    "queries": [result.to_dict() for result in results],
  }
  write_whole(folder / "completeness.json", json.dumps(content, allow_nan=False) + "\n")
  if args.no_plots:
    return ["completeness.json"]
  charts.completeness(folder / "completeness.png", results)
  return ["completeness.json", "completeness.png"]


def _print_rates(evaluation: "Evaluation") -> None:
  """The in-epsilon rate of each site, and by label of the position."""

  console = terminal.console(highlight=False)
  console.print(
    f"reader {evaluation.reader}, target {evaluation.target}, epsilon {evaluation.epsilon:g}, {evaluation.metric}; "
    "held-out queries\n",
    markup=False,
  )
  table = make_table("site", "rate", "95 %", "random inputs", left=_NAMES, no_wrap=True)
  for site in evaluation.sites:
    rate = site.rate
    table.add_row(site.name, f"{rate.value:.3f}", f"{rate.low:.3f} - {rate.high:.3f}", f"{site.base:.3f}")
  summary = evaluation.summary()
  mean, half = summary["rate"], 1.96 * summary["rate_standard_error"]
  table.add_row("mean", f"{mean:.3f}", f"{mean - half:.3f} - {mean + half:.3f}", f"{summary['base']:.3f}")
  console.print(table)
  console.print("rate: share of queries whose one temperature-1 sample lies within epsilon\n")
  table = make_table("rate in %", *(label or "-" for label in evaluation.labels), no_wrap=True)
  for site in evaluation.sites:
    rates = [site.by_label.get(label) for label in evaluation.labels]
    table.add_row(site.name, *("" if rate is None else f"{100 * rate[0].value:.0f}" for rate in rates))
  console.print(table)
  console.print()


def _print_exact(evaluation: "Evaluation") -> None:
  """The candidates against exact preimages, by site and over all."""

  console = terminal.console(highlight=False)
  columns = ("site", "queries", "members (median)", "precision", "coverage", "features", "distinct")
  table = make_table(*columns, left=_NAMES, no_wrap=True)
  for site in evaluation.sites:
    if comparisons := [one for one in evaluation.exact if one.site == site.name]:
      table.add_row(site.name, *_means(comparisons))
  table.add_row("all", *_means(evaluation.exact))
  console.print(table)
  mixture = evaluation.mixture
  settings = ", ".join(f"({temperature:g}, {eta:g})" for temperature, eta in mixture.settings)
  console.print(
    f"against exact preimages: {mixture.num_samples:,} candidates at (temperature, noise) {settings}; precision: share inside epsilon; "
    "coverage: share of members given at least a tenth of their uniform share; features: share of their values that occur among the candidates\n"
  )


def _print_methods(comparison: "MethodComparison") -> None:
  """Each method by site and over all."""

  from inversionview_jax.measures.methods import COLUMNS
  from inversionview_jax.preimage.data import METHODS

  console = terminal.console(highlight=False)
  source = f"reader {comparison.reader}, target" if comparison.reader else "target"
  console.print(
    f"{source} {comparison.target}, epsilon {comparison.epsilon:g}, {comparison.metric}; "
    f"{comparison.particles:,} particles, at most {comparison.budget:,} target runs; held-out queries\n",
    markup=False,
  )
  for method in comparison.methods:
    console.print(METHODS[method])
    table = make_table(*COLUMNS, left=_NAMES, no_wrap=True)
    for row in comparison.table_rows(method):
      table.add_row(*row)
    console.print(table)
    console.print()
  console.print(
    "n: queries; members: of the exact preimage (median); inside: share of the candidates or particles within epsilon; distinct: different ones "
    "inside, relative to as many draws from the exact preimage; TV: total variation of one token's marginals from the exact ones, relative to the "
    "same; bits: mean absolute error; s: seconds (median); runs: of the target; conv.: share of the queries that converged\n"
  )


def _means(comparisons: "Sequence[ExactComparison]") -> list[str]:
  """The cells of a row of `_print_exact` after the name."""
  import numpy as np

  features = [np.mean(list(one.features.values())) for one in comparisons if one.features]
  return [
    str(len(comparisons)),
    f"{np.median([one.size for one in comparisons]):,.0f}",
    *(f"{np.mean([getattr(one, name) for one in comparisons]):.3f}" for name in ("precision", "coverage")),
    f"{np.mean(features):.3f}" if features else "",
    f"{np.mean([one.distinct for one in comparisons]):,.0f}",
  ]


def _print_completeness(results: "Sequence[Completeness]") -> None:
  """The decoder's probability of the inputs inside epsilon and outside, a row for each query."""

  columns = ("site", "position", "query", "inputs inside", "probability inside", "outside", "AUC")
  table = make_table(*columns, left=_NAMES, no_wrap=True)
  for result in results:
    data = result.to_dict()
    inside, outside = data["inside"], data["outside"]
    table.add_row(
      result.site,
      result.label,
      result.text,
      f"{inside['inputs']:,}",
      f"{inside['probability']:.3f}",
      f"{outside['probability']:.3f}",
      "" if data["auc"] is None else f"{data['auc']:.4f}",
    )
  terminal.console(highlight=False).print(table)
  terminal.print_text(
    "probability: of these inputs under the decoder, in sum; AUC: probability that an input inside has a larger one than an input outside\n"
  )
