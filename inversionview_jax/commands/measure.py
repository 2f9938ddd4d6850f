"""`inversionview measure`: what an activation encodes, in numbers."""

import argparse
import dataclasses
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inversionview_jax import terminal
from inversionview_jax.commands import flags, source
from inversionview_jax.commands.inputs import texts_of
from inversionview_jax.files import check_can_hold
from inversionview_jax.progress import bars

if TYPE_CHECKING:
  from rich.console import Console
  from rich.table import Table

  from inversionview_jax.measures.consistency import FeatureConsistency
  from inversionview_jax.measures.readings import Readings

_VERDICTS = {
  "encodes": "[bold]yes[/]",
  "partly encodes": "partly",
  "-": "[dim]-[/]",
}  # short, so that the table fits 80 columns
_DESCRIPTION = f"""\
Measure what an activation encodes: the properties that the inputs inside epsilon share with the query, most certain first, next to how often
random inputs have them and to a control with the activations of other inputs; and the information in bits, log2 of 1 over the share of inputs
inside epsilon.

  inversionview measure "615+861=1476" --site a0.0 --position =
  inversionview measure --reader W --site x1.mid --position A1 --queries 50 --json measures.json
  inversionview measure --target addition --site a1.1 --position = --texts inputs.txt

Without texts, held-out inputs of the task are the queries.

{source.METHODS_HELP}
The default is monte_carlo: bits need a start from the prior, and what is called encoded should not depend on what a decoder lacks. Particles
count as they are. With decoder+monte_carlo and decoder, bits are estimated by importance sampling, and candidates of the decoder are
replaced by its weighted texts; with --no-bits they count as they were drawn, and what they share is not called encoded.
"""
# Flags of this command that the estimate of bits has where a preimage has none of its own.
_ESTIMATE = ("inputs", "draws")
_USES: dict[str, Any] = {"decoder": _ESTIMATE, "decoder+monte_carlo": _ESTIMATE}


def add_parser(commands: Any) -> None:
  """Adds `measure` to the commands."""
  parser = flags.add_command(commands, "measure", run, "measure what an activation encodes", _DESCRIPTION)
  parser.add_argument("text", nargs="*", help="inputs of the task (default: held-out ones)")
  flags.add(parser, "texts")
  parser.add_argument("--queries", type=flags.count("queries", least=2), help="so many held-out inputs (default: 20)")
  source.add_flags(parser, default="monte_carlo, or decoder where the task has no moves or is of a language model")
  flags.add(parser, "site", required=True)
  flags.add(parser, "position", required=True)
  flags.add(parser, "epsilon")
  flags.add(parser, "metric")
  flags.add(parser, "match", default="anywhere")
  parser.add_argument(
    "--controls",
    type=flags.count("controls", least=2),
    default=16,
    help="for given texts: activations of other inputs that serve as the control (held-out inputs are each other's; default: 16)",
  )
  parser.add_argument(
    "--inputs",
    type=flags.count("inputs", least=64),
    help="of a method that starts from the decoder: random inputs for the bits (default: 8192)",
  )
  parser.add_argument(
    "--draws",
    type=flags.count("draws", least=12),
    help="of a method that starts from the decoder: its texts for the bits (default: 768)",
  )
  parser.add_argument("--no-bits", action="store_true", help="no information in bits")
  parser.add_argument("--no-tokens", action="store_true", help="the task's features only, not plain tokens")
  parser.add_argument(
    "--feature",
    action="append",
    default=[],
    help='an expression to measure besides, such as "F1 + S1 >= 10", "F2 %% 2" or "token(3)"; may be repeated',
  )
  flags.add(parser, "shown", default=20)
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Measures and prints the table."""
  del rest
  texts = texts_of(args)
  if args.json:
    check_can_hold(args.json)
  source.check(args, "monte_carlo", **_USES)  # before JAX is imported
  import numpy as np

  from inversionview_jax.measures import properties, readings
  from inversionview_jax.measures.held_out import held_out_requests
  from inversionview_jax.reading import Request

  drawn_from = source.source_of(args, "monte_carlo", **_USES)
  drawn_from.check_site(args.site)
  first = drawn_from.task.tokens(np.arange(1))
  for feature in args.feature:
    properties.evaluate(drawn_from.task, feature, first)  # raises for one that cannot be parsed, before the work
  donors = None
  if texts:
    requests = [Request(text, args.site, args.position) for text in texts]
    others = held_out_requests(drawn_from, args.site, args.position, args.controls + len(texts), args.seed)
    donors = [other for other in others if other.text not in texts][: args.controls]
  else:
    requests = held_out_requests(drawn_from, args.site, args.position, args.queries or 20, args.seed)
  threshold = {"epsilon": args.epsilon, "metric": args.metric, "match": args.match}
  requests = [dataclasses.replace(request, **threshold) for request in requests]
  drawn_from.check(requests)  # before the work
  source.note_decoder(args, drawn_from)
  estimate = {name: value for name in _ESTIMATE if (value := getattr(args, name)) is not None}
  with _ProgressBars() as progress:
    result = readings.read(
      drawn_from,
      requests,
      donors=donors and [dataclasses.replace(donor, **threshold) for donor in donors],
      with_information=not args.no_bits,
      tokens=not args.no_tokens,
      expressions=args.feature,
      **estimate,
      seed=args.seed,
      progress=progress,
    )
  print_readings(result, args.shown)
  if args.json:
    result.to_json(args.json)
  return 0


class _ProgressBars:
  """A bar for each step on a terminal; nothing elsewhere."""

  def __enter__(self) -> "_ProgressBars":
    self._bars = bars()
    self._bars.__enter__()
    self._tasks: dict[str, Any] = {}
    return self

  def __call__(self, step: str, done: int, total: int) -> None:
    if step and step not in self._tasks:
      self._tasks[step] = self._bars.add_task(step, total=total)
    for name, task in self._tasks.items():
      self._bars.update(task, completed=done if name == step else total)

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    self._bars.__exit__(kind, error, traceback)


def print_readings(readings: "Readings", shown: int = 20) -> None:
  """Prints what was measured, with at most `shown` rows of the table."""

  console = terminal.console(highlight=False)
  _print_header(console, readings)
  _print_bits(console, readings)
  _print_diversity(console, readings)
  console.print()
  console.print(_table(readings, shown))
  if len(readings.rows) > shown:
    console.print(f"... {len(readings.rows) - shown} more (--shown)")
  console.print(
    "[dim]inside ε: share of the preimage that agrees with the query; random: share of random inputs that do; certainty: how much of the gap "
    "between random and 1 is closed; bits: information about the property; control: inside ε of other inputs' activations[/]\n"
  )
  _print_summary(console, readings)


def _print_header(console: "Console", readings: "Readings") -> None:
  """The query or queries, the threshold, and how many candidates or particles there are."""
  from rich.markup import escape

  from inversionview_jax.distance import MATCHES, METRICS
  from inversionview_jax.preimage.methods import METHODS

  first, n = readings.each[0], len(readings.each)
  query = first.query
  texts = repr(query.text) if n == 1 else f"{n} inputs"
  what = "reader" if "decoder" in readings.method else "target"
  title = (
    f'{query.site} at "{query.label or query.position}" of {texts} ({what} {readings.reader}, task {readings.task})'
  )
  console.print(escape(f"{title}\nepsilon {first.epsilon:g}, ") + f"{METRICS[first.metric]}, {MATCHES[first.match]}")
  if readings.method == "decoder":
    rate = sum(preimage.rate for preimage in readings.preimages) / n
    console.print(f"in-epsilon rate {100 * rate:.0f} % of candidates")
    return
  runs = sum(preimage.target_runs or 0 for preimage in readings.preimages) / n
  console.print(f"{METHODS[readings.method]}: {runs:,.0f} target runs{' a query' if n > 1 else ''}")
  problems = [preimage.problem for preimage in readings.preimages if preimage.converged is False]
  if problems:
    of = f"{len(problems)} of {n} queries have" if n > 1 else "has"
    console.print(escape(f"{of} not converged: {problems[0]}{' (the first of them)' if len(problems) > 1 else ''}"))


def _print_bits(console: "Console", readings: "Readings") -> None:
  """The information in bits, mean over queries, with its warnings."""
  if readings.information is None:
    return
  bits = readings.bits()
  if bits is None:
    console.print(f"information: {readings.information[0].warning}")
    return
  known = [(one.bits, one.share) for one in readings.information if one.bits is not None]
  each = [value for value, _ in known]
  spread = f" (from {min(each):.2f} to {max(each):.2f})" if len(known) > 1 else ""
  share = sum(share for _, share in known) / len(known)
  console.print(
    f"information {bits[0]:.2f} ± {bits[1]:.2f} bits{spread}; {100 * share:.3g} % of the task's inputs lie inside"
  )
  n = len(readings.information)
  for warning in sorted({one.warning for one in readings.information} - {""}):
    count = sum(one.warning == warning for one in readings.information)
    console.print(f"  {f'{count} of {n}: ' if n > 1 else ''}{warning}")


def _print_diversity(console: "Console", readings: "Readings") -> None:
  """How much the candidates inside epsilon differ, mean over queries."""
  each = [one.diversity for one in readings.each if one.diversity.drawn]
  if not each:
    console.print("no candidate lies inside epsilon: nothing can be measured")
    return
  distinct, drawn, differ, base = (
    sum(getattr(one, name) for one in each) / len(each) for name in ("distinct", "drawn", "differ", "base")
  )
  console.print(
    f"diversity: {distinct:.0f} distinct among {drawn:.0f} inside; two of them differ in {100 * differ:.0f} % of the tokens "
    f"(random inputs: {100 * base:.0f} %)"
  )


def _table(readings: "Readings", shown: int) -> "Table":
  """A row for each property, most certain first; the value where there is a single query."""
  from rich.markup import escape
  from rich.table import Table

  single = len(readings.each) == 1
  table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
  for name in ("property", *(["value"] if single else [])):
    table.add_column(name, no_wrap=True)
  for name in ("inside ε", "95 %", "random", "certainty", "bits", "control"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("encodes" if readings.from_prior else "shared", no_wrap=True)
  for row in readings.rows[:shown]:
    table.add_row(
      escape(row.feature),
      *([escape(row.value)] if single else []),
      f"{row.rate.value:.3f}",
      f"{row.rate.low:.2f}-{row.rate.high:.2f}",
      f"{row.base:.3f}",
      f"{row.certainty:.2f}",
      f"{row.bits:.2f}",
      _control(row),
      _VERDICTS[row.verdict],
    )
  return table


def _control(row: "FeatureConsistency") -> str:
  """The control's rate; with "!" where the control encodes the property, too."""
  if row.control is None:
    return ""
  return f"{row.control.value:.2f}" + ("" if row.control_verdict == "-" else "!")


def _print_summary(console: "Console", readings: "Readings") -> None:
  """The properties that are encoded, those of the control, and how stable the former are over epsilon."""
  from rich.markup import escape

  encoded = readings.encoded
  names = ", ".join(row.feature + (f" = {row.value}" if row.value else "") for row in encoded)
  if readings.from_prior:
    console.print(escape(f"encodes: {names}" if names else "encodes none of the task's features"))
  else:
    shared = f"share: {names}" if names else "share none of the task's features"
    console.print(escape(f"the decoder's candidates, as it draws them, {shared}"))
  if any(row.control is not None for row in readings.rows):
    control = ", ".join(row.feature for row in readings.control_encoded)
    does = "encodes" if readings.from_prior else "shares"
    verdict = f"{does}: {control}" if control else f"{does} none of them"
    console.print(escape(f"the control ({readings.donors} other activations for each query) {verdict}"))
  if len(readings.each) == 1 and encoded:
    steps = ", ".join(
      f"ε {epsilon:g}: {min(rates[row.feature] for row in encoded):.2f}"
      for epsilon, rates in readings.each[0].stability.items()
    )
    console.print(f"lowest rate of {'what is encoded' if readings.from_prior else 'these'}, over epsilon: {steps}")
