"""The result of testing a claim about an activation, and the rule by which it is judged; needs no JAX."""

import dataclasses
import json
import math
import os
from typing import Any

from inversionview_jax._version import __version__
from inversionview_jax.files import write_whole
from inversionview_jax.measures.consistency import ENCODES, certainty_of
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Query
from inversionview_jax.tables import ShowsTable, Table

FORMAT, FORMAT_VERSION = "inversionview-claim", 1
VERDICTS = ("confirmed", "refuted", "not testable")
# The share of the inputs inside epsilon for which a claim has to hold; 1 is too strict, since epsilon is a round number and not the edge of what the
# activation encodes. Of 17 features in each of 8 exact preimages of addition, all shares are 1.000 or at most 0.61 (measures/README.md).
HOLDS = 0.95
COMMON = 0.95  # a claim that more random inputs fulfil states less than a tenth of a bit
SHOWN = 5  # counterexamples that are kept


@dataclasses.dataclass(frozen=True)
class Counterexample:
  """An input inside epsilon for which a claim does not hold.

  Attributes:
    text: the input.
    distance: of its activation to the query's, as the target measured it.
    position: of the nearest activation (BOS is 0); -1 where there is none.
    value: of the claim's expression.
  """

  text: str
  distance: float
  position: int
  value: str


@dataclasses.dataclass(frozen=True)
class OtherActivation:
  """The same claim about another activation of the same text."""

  site: str
  position: int
  rate: float
  verdict: str


@dataclasses.dataclass(frozen=True, repr=False)
class ClaimCheck(ShowsTable):
  """The test of a claim about an activation.

  Attributes:
    claim: the expression.
    query: the activation and its input.
    value: the query's value of the expression; "true" or "false" of a condition, "" where it has none.
    verdict: one of `VERDICTS`.
    why: the reason for it, one line.
    rate, low, high: the share of the inputs inside epsilon for which the claim holds, with its 95 % interval; NaN where there are none.
    drawn, distinct: members inside epsilon, and how many different texts they are, on which the interval rests.
    random: the share of the task's random inputs for which it holds.
    claim_bits: -log2 of `random`: the information that the claim states.
    claim_bits_at_least: whether no random input fulfils it, so that `claim_bits` is a lower bound.
    bits, bits_error: information of the activation; None where the method measures none.
    counterexamples: inputs inside epsilon for which it does not hold, nearest first, the most distinct 5.
    control: how often it holds inside epsilon of the activations of other texts; its `count` is the number of these. None: not measured.
    others: the same claim about other activations of the same text.
    reader, task, method, epsilon, metric, match: of the preimage.
    problem: why the preimage cannot be relied on; "" if it can.
    sentence: what was translated into `claim`; "" if it was given as an expression.
  """

  claim: str
  query: Query
  value: str
  verdict: str
  why: str
  rate: float
  low: float
  high: float
  drawn: int
  distinct: int
  random: float
  claim_bits: float
  claim_bits_at_least: bool
  bits: float | None
  bits_error: float | None
  counterexamples: tuple[Counterexample, ...]
  reader: str
  task: str
  method: str
  epsilon: float
  metric: str
  match: str
  problem: str = ""
  control: Rate | None = None
  others: tuple[OtherActivation, ...] = ()
  sentence: str = ""

  @property
  def baseline(self) -> float | None:
    """How often the claim is confirmed of another activation of the same text, as whoever sees the text alone would have it; None: unknown."""
    if not self.others:
      return None
    return sum(other.verdict == "confirmed" for other in self.others) / len(self.others)

  @property
  def from_prior(self) -> bool:
    """Whether the members follow the task's inputs inside epsilon; not so where a decoder draws them."""
    return self.method != "decoder"

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON; numbers that JSON does not have are None."""
    fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    for name, value in fields.items():
      if isinstance(value, float) and not math.isfinite(value):
        fields[name] = None
    fields["query"] = {name: getattr(self.query, name) for name in ("text", "site", "position", "label")}
    fields["counterexamples"] = [dataclasses.asdict(one) for one in self.counterexamples]
    fields["others"] = [
      dataclasses.asdict(one) | {"rate": None if math.isnan(one.rate) else one.rate} for one in self.others
    ]
    fields["control"] = self.control and self.control.to_dict()
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__}
    return head | fields | {"baseline": self.baseline, "from_prior": self.from_prior}

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything; also written to `path`, whole or not at all."""
    text = json.dumps(self.to_dict(), allow_nan=False, indent=1, ensure_ascii=False)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def _table(self) -> Table:
    label = self.query.label or self.query.position
    title = f"{self.claim!r} of {self.query.site} at {label!r} of {self.query.text!r}: {self.verdict}, {self.why}"
    rows = [("value of the query", self.value)] if self.value else []
    if self.drawn:
      rows.append(
        (
          "holds inside epsilon",
          f"{self.rate:.3f} ({self.low:.2f}-{self.high:.2f}), {self.distinct:,} different inputs",
        )
      )
    if not math.isnan(self.random):
      rows.append(("holds for random inputs", f"{self.random:.3f}"))
      least = "more than " if self.claim_bits_at_least else ""
      own = "" if self.bits is None else f" of the activation's {self.bits:.2f}"
      rows.append(("bits that it states", f"{least}{self.claim_bits:.2f}{own}"))
    if self.control is not None:
      rows.append(("control: other texts", f"{self.control.value:.3f} of {self.control.count:.0f} activations"))
    if self.others:
      passed = sum(other.verdict == "confirmed" for other in self.others)
      rows.append(("other activations of the text", f"confirmed of {passed} in {len(self.others)}"))
    rows += [("counterexample", f"{one.distance:.4f}  {one.text}  ({one.value})") for one in self.counterexamples]
    return Table(title, (), tuple(rows), f"not converged: {self.problem}" if self.problem else "")


def judge(rate: float, low: float, high: float, random: float, problem: str = "") -> tuple[str, str]:
  """One of `VERDICTS`, and the reason for it.

  Confirmed: it holds for at least `HOLDS` of the inputs inside epsilon and settles more than half of what random inputs leave open, both by the
  lower end of the interval. Refuted: for fewer, by the upper end; inputs inside epsilon are counterexamples however they were found.

  Args:
    rate, low, high: the share of inputs inside epsilon for which a claim holds, with its interval.
    random: the share of random inputs.
    problem: why the members do not stand for all inputs inside epsilon; "" if they do.
  """
  figures = f"it holds for {percent(rate)} inside epsilon and {percent(random)} of random inputs"
  if high < HOLDS:
    return "refuted", figures
  if random > COMMON:
    return "not testable", f"{percent(random)} of random inputs fulfil it anyway"
  if problem:
    return "not testable", f"not converged: {problem}"
  if low < HOLDS:
    return "not testable", f"too few different members inside epsilon to decide: {figures}"
  if certainty_of(low, random) <= ENCODES:
    return "not testable", f"{percent(random)} of random inputs fulfil it anyway"
  return "confirmed", figures


def percent(share: float) -> str:
  """Such as "98.5 %"; only what is all or nothing is called so."""
  shown = f"{100 * share:.1f}"
  if shown == "100.0" and share < 1:
    return "nearly 100 %"
  return f"{shown.removesuffix('.0') if share in (0, 1) else shown} %"
