"""`inversionview measure`: what an activation says, in numbers."""

import argparse
import pathlib
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold

_DESCRIPTION = """\
Say what an activation says: the properties that the inputs inside epsilon share with the query, most certain first, next to how often random
inputs do and to a control in which the activations are those of other inputs; and the information in bits, log2 of 1 over the share of
inputs inside epsilon.

  inversionview measure "615+861=1476" --site a0.0 --position =
  inversionview measure --reader W --site x1.mid --position A1 --queries 50 --json measures.json
  inversionview measure --site a1.1 --position = --texts inputs.txt

Without texts, held-out inputs of the task are asked.
"""


def add_parser(commands: Any) -> None:
  """Adds `measure` to the commands."""
  parser = flags.add_command(commands, "measure", run, "measure what an activation encodes", _DESCRIPTION)
  parser.add_argument("text", nargs="*", help="inputs of the task (default: held-out ones)")
  flags.add(parser, "texts")
  parser.add_argument("--queries", type=int, help="so many held-out inputs (default: 20)")
  flags.add(parser, "reader", default="addition")
  flags.add(parser, "site", required=True)
  flags.add(parser, "position", required=True)
  flags.add(parser, "epsilon")
  flags.add(parser, "metric")
  flags.add(parser, "match", default="anywhere")
  parser.add_argument(
    "--controls",
    type=int,
    default=16,
    help="for given texts: activations of other inputs that serve as the control (held-out inputs are each other's; default: 16)",
  )
  flags.add(parser, "num-samples")
  parser.add_argument("--inputs", type=int, default=8192, help="random inputs for the bits (default: 8192)")
  parser.add_argument("--draws", type=int, default=768, help="texts of the decoder for the bits (default: 768)")
  parser.add_argument(
    "--no-bits", action="store_true", help="no information in bits; candidates count as they are drawn"
  )
  parser.add_argument("--no-tokens", action="store_true", help="the task's features only, not plain tokens")
  parser.add_argument(
    "--feature",
    action="append",
    default=[],
    help='an expression to measure besides, such as "F1 + S1 >= 10" or "F2 %% 2"; may be repeated',
  )
  flags.add(parser, "shown", default=20)
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Measures and prints the table."""
  del rest
  flags.check_at_least(args, queries=2, num_samples=1, controls=2, inputs=64, draws=12, shown=1, seed=0)
  texts = texts_of(args)
  if args.json:
    check_can_hold(args.json)
  import dataclasses

  from inversionview_jax.measures import held_out, readings
  from inversionview_jax.reading import Request, load_reader
  from inversionview_jax.tasks.grammar import expression

  reader = load_reader(args.reader)
  known = reader.task.features(reader.task.tokens([0]))
  for feature in args.feature:
    expression(feature, known, 1)  # known now, not after the work
  donors = None
  if texts:
    asks = [Request(text, args.site, args.position) for text in texts]
    others = held_out.held_out_requests(reader, args.site, args.position, args.controls + len(texts), args.seed)
    donors = [ask for ask in others if ask.text not in texts][: args.controls]
  else:
    asks = held_out.held_out_requests(reader, args.site, args.position, args.queries or 20, args.seed)
  how = {"epsilon": args.epsilon, "metric": args.metric, "match": args.match}
  asks = [dataclasses.replace(ask, **how) for ask in asks]
  donors = donors and [dataclasses.replace(ask, **how) for ask in donors]
  with _progress() as progress:
    found = readings.read(
      reader,
      asks,
      donors=donors,
      with_information=not args.no_bits,
      tokens=not args.no_tokens,
      expressions=args.feature,
      num_samples=args.num_samples,
      inputs=args.inputs,
      draws=args.draws,
      seed=args.seed,
      progress=progress,
    )
  if args.json:
    found.to_json(args.json)
  show(found, args.shown)
  return 0


def texts_of(args) -> list[str]:
  texts = list(args.text)
  if args.texts:
    try:
      texts += [line for line in pathlib.Path(args.texts).read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
      raise InversionViewError(f"cannot read {args.texts}: {error}; give a file with one input on each line") from None
    if not texts:
      raise InversionViewError(f"{args.texts} has no inputs; write one on each line")
  if texts and getattr(args, "queries", None) is not None:
    raise InversionViewError(f"--queries {args.queries} asks held-out inputs; leave it out when texts are given")
  if len(set(texts)) < len(texts):
    twice = next(text for text in texts if texts.count(text) > 1)
    raise InversionViewError(f"the text {twice!r} is given twice; give each once")
  return texts


class _progress:
  """A bar on a terminal; nothing elsewhere."""

  def __enter__(self):
    from rich.console import Console
    from rich.progress import Progress

    self._bar = Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal)
    self._bar.__enter__()
    self._tasks = {}
    return self

  def __call__(self, what: str, done: int, of: int) -> None:
    if what and what not in self._tasks:
      self._tasks[what] = self._bar.add_task(what, total=of)
    for name, task in self._tasks.items():
      self._bar.update(task, completed=done if name == what else of)

  def __exit__(self, *error):
    self._bar.__exit__(*error)


def show(found, shown: int = 20) -> None:
  """Prints what was measured."""
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  from inversionview_jax.distance import MATCHES, METRICS

  first, n = found.each[0], len(found.each)
  query = first.query
  place = query.label or query.position
  of = repr(query.text) if n == 1 else f"{n} inputs"
  console = Console(highlight=False)
  console.print(
    escape(f'{query.site} at "{place}" of {of} (reader {found.reader}, task {found.task})\nepsilon {first.epsilon:g}, ')
    + f"{METRICS[first.metric]}, {MATCHES[first.match]}"
  )
  inside = [told.rate for told in found.preimages]
  console.print(f"in-epsilon rate {100 * sum(inside) / n:.0f} % of candidates")
  _show_bits(console, found)
  drawn = [one.diversity for one in found.each if one.diversity.drawn]
  if drawn:
    mean = [sum(getattr(one, name) for one in drawn) / len(drawn) for name in ("distinct", "drawn", "differ", "base")]
    console.print(
      f"diversity: {mean[0]:.0f} distinct among {mean[1]:.0f} inside; two of them differ in {100 * mean[2]:.0f} % of the tokens "
      f"(random inputs: {100 * mean[3]:.0f} %)"
    )
  else:
    console.print("no candidate lies inside epsilon: nothing can be said")
  console.print()
  table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
  for name in ("property", *(["value"] if n == 1 else [])):
    table.add_column(name, no_wrap=True)
  for name in ("inside ε", "95 %", "random", "certainty", "bits", "control"):
    table.add_column(name, justify="right", no_wrap=True)
  table.add_column("", no_wrap=True)
  for row in found.rows[:shown]:
    control = "" if row.control is None else f"{row.control.value:.2f}"
    if row.control is not None and row.control_verdict != "-":
      control += "!"
    table.add_row(
      escape(row.feature),
      *([escape(row.value)] if n == 1 else []),
      f"{row.rate.value:.3f}",
      f"{row.rate.low:.2f}-{row.rate.high:.2f}",
      f"{row.base:.3f}",
      f"{row.certainty:.2f}",
      f"{row.bits:.2f}",
      control,
      {"encodes": "[bold]encodes[/]", "-": "[dim]-[/]"}.get(row.verdict, row.verdict),
    )
  console.print(table)
  if len(found.rows) > shown:
    console.print(f"... {len(found.rows) - shown} more (--shown)")
  console.print(
    "[dim]inside ε: share of the preimage that agrees with the query; random: of random inputs; certainty: what of the gap between random and 1 "
    "is closed; bits: what is told of the property; control: inside ε of other inputs' activations[/]\n"
  )
  _show_summary(console, found)


def _show_bits(console, found) -> None:
  bits = found.bits()
  if found.information is None:
    return
  if bits is None:
    console.print(f"information: {found.information[0].warning}")
    return
  known = [one for one in found.information if one.bits is not None]
  shares = [one.share for one in known]
  console.print(
    f"information {bits[0]:.2f} ± {bits[1]:.2f} bits"
    + (
      f" (from {min(one.bits for one in known):.2f} to {max(one.bits for one in known):.2f})" if len(known) > 1 else ""
    )
    + f"; {100 * sum(shares) / len(shares):.3g} % of the task's inputs lie inside"
  )
  for warning in sorted({one.warning for one in found.information} - {""}):
    which = sum(one.warning == warning for one in found.information)
    console.print(f"  {f'{which} of {len(found.information)}: ' if len(found.information) > 1 else ''}{warning}")


def _show_summary(console, found) -> None:
  from rich.markup import escape

  names = (
    ", ".join(row.feature + (f" = {row.value}" if row.value else "") for row in found.encoded) or "nothing of these"
  )
  console.print(escape(f"says: {names}"))
  control = ", ".join(row.feature for row in found.control_encoded)
  if any(row.control is not None for row in found.rows):
    console.print(escape(f"the control ({found.donors} other activations for each query) says: {control or 'nothing'}"))
  wide = found.each[0].stability
  if len(found.each) == 1 and found.encoded:
    steps = ", ".join(
      f"ε {epsilon:g}: {min(rates[row.feature] for row in found.encoded):.2f}" for epsilon, rates in wide.items()
    )
    console.print(f"lowest rate of what is said, over epsilon: {steps}")
