"""What a site encodes, over a set of queries: the measures of `consistency` and `information`, and a negative control.

Particles of Monte Carlo and exact members follow the task's inputs inside epsilon and count as they are. Candidates of a decoder do not: they
are replaced by texts that are weighted by their probability as inputs, unless no bits are wanted.

The control is how often the members of one query's preimage have the properties of another query; the preimages of its activations are found by
the same method. The activation of another input can agree with a query by chance only, so a property whose control rises above its base rate is an
artefact: of the queries, of the decoder, or of the measure.

Shapes: Q queries, P donors (inputs whose activations replace the queries' own in the control).
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.measures import consistency, information
from inversionview_jax.measures.consistency import ActivationReading, FeatureConsistency, Members
from inversionview_jax.measures.information import Information, InformationResult
from inversionview_jax.measures.properties import Background, properties
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Reader, Request
from inversionview_jax.reading.source import Source
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.tasks import Task

# Version 2: a reading's rows are called "features" ("says" before), verdicts "encodes", "partly encodes", "-", and the information's counts
# "inputs_inside" and "draws_inside" ("met" and "found" before). Version 3: "method", "from_prior" and "problem" of a reading; the counts of an
# information are null where its bits are those of Monte Carlo or of an exact preimage.
FORMAT, FORMAT_VERSION = "inversionview-readings", 3
_STEPS = {
  "decoder": "candidates",
  "exact": "inputs",
}  # method -> what is counted while preimages are drawn; else particles


@dataclasses.dataclass(frozen=True, repr=False)
class Readings(ShowsTable):
  """What a set of activations encodes.

  Attributes:
    reader, task: names; of a target where no decoder was used.
    each: the reading of each query by itself.
    information: of each query; None where it was not requested.
    preimages: the candidates or particles behind them.
    rows: the properties over all queries, most certain first, with their control.
    donors: how many other activations the control had for each query.
    method: by which the preimages were found.
  """

  reader: str
  task: str
  each: tuple[ActivationReading, ...]
  information: tuple[Information, ...] | None
  preimages: tuple[Preimage, ...]
  rows: tuple[FeatureConsistency, ...]
  donors: int
  method: str = "decoder"

  @property
  def from_prior(self) -> bool:
    """Whether members follow the task's inputs inside epsilon; see `ActivationReading.from_prior`."""
    return all(reading.from_prior for reading in self.each)

  @property
  def encoded(self) -> list[FeatureConsistency]:
    """The properties with the verdict "encodes", most certain first."""
    return [row for row in self.rows if row.verdict == "encodes"]

  @property
  def control_encoded(self) -> list[FeatureConsistency]:
    """The properties with the verdict "encodes" in the control; there should be none."""
    return [row for row in self.rows if row.control is not None and row.control_verdict == "encodes"]

  def bits(self) -> tuple[float, float] | None:
    """Mean information over the queries and its standard error: that of the estimates or that between queries, whichever is larger.

    None where no query has an estimate.
    """
    known = [one for one in self.information or () if one.bits is not None]
    if not known:
      return None
    values = np.array([one.bits for one in known])
    own = math.sqrt(sum(one.error**2 for one in known)) / len(known)
    between = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), max(own, float(between))

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    each = [reading.to_dict() for reading in self.each]
    if self.information is not None:
      each = [one | {"information": bits.to_dict()} for one, bits in zip(each, self.information, strict=True)]
    bits = self.bits()
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "version": __version__,
      "reader": self.reader,
      "task": self.task,
      "method": self.method,
      "donors": self.donors,
      "bits": bits and {"mean": bits[0], "error": bits[1]},
      "rows": [row.to_dict() for row in self.rows],
      "queries": each,
    }

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything but the candidates; also written to `path`, whole or not at all."""
    text = json.dumps(_finite(self.to_dict()), allow_nan=False, indent=1, ensure_ascii=False)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def _table(self) -> Table:
    query, bits = self.each[0].query, self.bits()
    title = f"{query.site} at {query.label or query.position!r}, {len(self.each)} queries (reader {self.reader})"
    title += "" if bits is None else f": {bits[0]:.2f} ± {bits[1]:.2f} bits"
    rows = [
      (
        str(row),
        str(row.rate),
        f"{row.base:.3f}",
        "" if row.control is None else f"{row.control.value:.3f}",
        row.verdict,
      )
      for row in self.rows
      if row.verdict != "-"
    ]
    if not rows:
      return Table(title, notes="encodes none of the task's features")
    return Table(title, ("property", "inside epsilon (95 %)", "random", "control", ""), tuple(rows))


def read(
  source: Source,
  requests: Sequence[Request],
  *,
  donors: Sequence[Request] | None = None,
  with_information: bool = True,
  tokens: bool = True,
  expressions: Sequence[str] = (),
  inputs: int = 8192,
  draws: int = 768,
  seed: int = 0,
  progress: Callable[[str, int, int], object] = lambda step, done, total: None,
) -> Readings:
  """Measures what a set of activations encodes.

  Args:
    source: what their preimages are drawn from, and how.
    requests: the queries, with one epsilon, metric and match.
    donors: whose activations the control takes; None: those of the other queries, which must then be random inputs.
    with_information: whether to measure bits. Those of Monte Carlo from the prior and of exact preimages are their own; for a method that
      starts from the decoder they are estimated by `information.measure`, whose weighted texts take the place of the decoder's candidates.
      Without, candidates count as often as they were drawn.
    tokens: whether plain tokens are included besides features.
    expressions: over the features, more properties (`grammar.expression`).
    inputs, draws: see `information.measure`.
    seed: of all that is drawn.
    progress: called with the current step, how much of it is done and of how much.

  Raises:
    InversionViewError: no queries, or several epsilons, metrics or kinds of match.
  """
  if not requests:
    raise InversionViewError("no queries: give at least one")
  if len({(request.epsilon, request.metric, request.match) for request in requests}) > 1:
    raise InversionViewError("the queries have several epsilons, metrics or kinds of match: measure them apart")
  everyone = [*requests, *(donors or ())]
  preimages = source.preimages(
    everyone, effects=False, seed=seed, progress=functools.partial(progress, _STEPS.get(source.method, "particles"))
  )
  found: list[Information | None] = [None] * len(preimages)
  weighted: list[InformationResult] = []
  if with_information:
    found = [Information.of(preimage) for preimage in preimages]
    if source.reader is not None and None in found:
      # Of particles only the queries' own bits are wanted; of candidates the weighted texts of the donors, too.
      wanted = preimages if source.method == "decoder" else preimages[: len(requests)]
      weighted = _estimates(source.reader, wanted, inputs, draws, seed, progress)
      found[: len(weighted)] = [one.information for one in weighted]
  progress("", 1, 1)
  task, n = source.task, len(requests)
  by_weight = bool(weighted) and source.method == "decoder"
  members = [one.members for one in weighted] if by_weight else [Members.of(preimage, task) for preimage in preimages]
  each = [
    _reading(preimage, task, texts if by_weight else None, tokens, expressions)
    for preimage, texts in zip(preimages[:n], members[:n], strict=True)
  ]
  control = _control(task, preimages, members, n, donors is None, tokens, expressions)
  return Readings(
    reader=preimages[0].reader,
    task=task.name,
    each=tuple(each),
    information=tuple(one for one in found[:n] if one is not None) or None,
    preimages=tuple(preimages[:n]),
    rows=_over_queries(each, control),
    donors=(n - 1) if donors is None else len(donors),
    method=source.method,
  )


def of_preimages(
  preimages: Sequence[Preimage], task: Task, *, tokens: bool = True, expressions: Sequence[str] = ()
) -> Readings:
  """What a set of activations encodes, from preimages that are there already; the queries are each other's donors.

  Args:
    preimages: of random inputs, at one site and position, from a method whose members follow the task's inputs.
    task: of the inputs.
    tokens, expressions: see `read`.

  Raises:
    InversionViewError: no preimages.
  """
  if not preimages:
    raise InversionViewError("no queries: give at least one")
  members = [Members.of(preimage, task) for preimage in preimages]
  each = [_reading(preimage, task, None, tokens, expressions) for preimage in preimages]
  found = [one for one in map(Information.of, preimages) if one is not None]
  control = _control(task, preimages, members, len(preimages), True, tokens, expressions)
  return Readings(
    reader=preimages[0].reader,
    task=task.name,
    each=tuple(each),
    information=tuple(found) or None,
    preimages=tuple(preimages),
    rows=_over_queries(each, control),
    donors=len(preimages) - 1,
    method=preimages[0].method,
  )


def _estimates(
  reader: Reader,
  preimages: Sequence[Preimage],
  inputs: int,
  draws: int,
  seed: int,
  progress: Callable[[str, int, int], object],
) -> list[InformationResult]:
  """The bits of preimages that have none of their own, and the weighted texts behind them."""
  results = []
  for number, p in enumerate(preimages):
    progress("information", number, len(preimages))
    how: dict[str, Any] = {"epsilon": p.epsilon, "metric": p.metric, "match": p.match}
    results += information.measure(reader, [p.query], inputs=inputs, draws=draws, seed=seed + number, **how)
  return results


def _reading(
  preimage: Preimage, task: Task, members: Members | None, tokens: bool, expressions: Sequence[str]
) -> ActivationReading:
  """The reading of one query from its preimage, or from weighted texts; the diversity is that of the preimage in either case."""
  reading = consistency.activation_reading(preimage, task, members, tokens, expressions)
  drawn = Members.of(preimage, task).within(preimage.epsilon)
  return dataclasses.replace(reading, diversity=consistency.diversity(drawn, Background.of(task)))


def _over_queries(each: Sequence[ActivationReading], control: dict[str, Rate]) -> tuple[FeatureConsistency, ...]:
  """The properties over all queries, with mean rates."""
  by_name: dict[str, list[FeatureConsistency]] = {}
  for reading in each:
    for row in reading.rows:
      if row.rate.count:
        by_name.setdefault(row.feature, []).append(row)
  rows = []
  for name, own in by_name.items():
    mean = float(np.mean([row.rate.value for row in own]))
    # A query's rate lies between 0 and 1, so the variance of the mean is at most that of a share of as many trials.
    rate = own[0].rate if len(own) == 1 else Rate(mean * len(own), len(own))
    rows.append(
      FeatureConsistency(
        feature=name,
        value=own[0].value if len(own) == 1 else "",
        rate=rate,
        base=float(np.mean([row.base for row in own])),
        bits=float(np.mean([row.bits for row in own])),
        queries=len(own),
        control=control.get(name),
      )
    )
  return consistency.ordered(rows)


def _control(
  task: Task,
  preimages: Sequence[Preimage],
  members: Sequence[Members],
  n: int,
  among: bool,
  tokens: bool,
  expressions: Sequence[str] = (),
) -> dict[str, Rate]:
  """The rate at which members of another activation's preimage have a query's properties: name -> rate.

  Args:
    task: of the preimages.
    preimages, members: of the queries, then of the donors.
    n: Q.
    among: whether the queries are each other's donors.
    tokens, expressions: see `read`.
  """
  donors = range(n) if among else range(n, len(preimages))
  has = [consistency.of_query(preimage.query, task, preimage.match, tokens, expressions) for preimage in preimages[:n]]
  names = {name for one in has for name in one}
  shares: dict[str, np.ndarray] = {name: np.full((n, len(donors)), np.nan) for name in names}
  for p, donor in enumerate(donors):
    inside = members[donor].within(preimages[donor].epsilon)
    if not len(inside):
      continue
    values_of = properties(task, inside.tokens, inside.position, expressions)
    weight = inside.weight / inside.weight.sum()
    for q in range(n):
      if among and donor == q:
        continue
      for name, value in has[q].items():
        shares[name][q, p] = weight[values_of[name] == value].sum()
  means = {name: _mean(table, among) for name, table in shares.items()}
  return {name: rate for name, rate in means.items() if rate is not None}


def _mean(table: np.ndarray, among: bool) -> Rate | None:
  """The mean over pairs of a query and a donor, float[Q, P] with NaN for pairs that do not count.

  Pairs that share an activation are dependent, so the standard error is the jackknife's over activations (Tukey, 1958); the `count` of the
  rate is the number of independent trials with that error.
  """
  known = ~np.isnan(table)
  if not known.any():
    return None
  values, mean = np.where(known, table, 0.0), float(np.nanmean(table))
  left_out = []
  for one in range(table.shape[1]):
    kept = known.copy()
    kept[:, one] = False
    if among:
      kept[one, :] = False
    if kept.any():
      left_out.append(float(values[kept].mean()))
  count, variance = float(known.any(axis=0).sum()), 0.0
  if left_out:
    variance = (count - 1) / max(count, 1) * float(((np.array(left_out) - np.mean(left_out)) ** 2).sum())
  if variance > 0 and 0 < mean < 1:
    count = min(max(count, mean * (1 - mean) / variance), float(known.sum()))
  return Rate(mean * count, count)


def _finite(value):
  """The same data with None for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {key: _finite(v) for key, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
