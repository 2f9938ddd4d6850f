"""What a place says, over a set of queries: the measures of `consistency` and `information`, and a control that must read as nothing.

The control asks how often the members of one query's preimage have what another query has. An activation that is not the query's own can
agree with it by chance only, so a property whose control rises above its base rate is an artefact: of the queries, of the decoder, or of the
measure.

Shapes: Q queries, P donors (whose activations stand in for the queries' own).
"""

import dataclasses
import json
import math
import os
from collections.abc import Sequence

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.measures import consistency, information
from inversionview_jax.measures.consistency import Members, FeatureConsistency, ActivationReading
from inversionview_jax.measures.information import Information
from inversionview_jax.measures.properties import Background, properties
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading.reader import Request, Reader

FORMAT, FORMAT_VERSION = "inversionview-readings", 1


@dataclasses.dataclass(frozen=True)
class Readings:
  """What a set of activations says.

  Attributes:
    reader, task: names.
    each: what each query says by itself.
    information: of each query; None where it was not asked for.
    preimages: the candidates behind them.
    rows: the properties over all queries, most certain first, with their control.
    donors: how many other activations the control had for each query.
  """

  reader: str
  task: str
  each: tuple[ActivationReading, ...]
  information: tuple[Information, ...] | None
  preimages: tuple[Preimage, ...]
  rows: tuple[FeatureConsistency, ...]
  donors: int

  @property
  def encoded(self) -> list[FeatureConsistency]:
    """The properties that are said, most certain first."""
    return [row for row in self.rows if row.verdict == "encodes"]

  @property
  def control_encoded(self) -> list[FeatureConsistency]:
    """The properties that the control says; there should be none."""
    return [row for row in self.rows if row.control is not None and row.control_verdict == "encodes"]

  def bits(self) -> tuple[float, float] | None:
    """Mean information over the queries and its standard error, of the estimates and between the queries; None where it is not known."""
    told = [one for one in self.information or () if one.bits is not None]
    if not told:
      return None
    values = np.array([one.bits for one in told])
    own = math.sqrt(sum(one.error**2 for one in told)) / len(told)
    between = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), max(own, float(between))

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    each = [saying.to_dict() for saying in self.each]
    if self.information is not None:
      each = [one | {"information": told.to_dict()} for one, told in zip(each, self.information, strict=True)]
    bits = self.bits()
    return {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "version": __version__,
      "reader": self.reader,
      "task": self.task,
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


def held_out(reader: Reader, site: str, position: int | str, count: int, seed: int = 0) -> list[Request]:
  """Queries of one place on random inputs of the task's test split; inputs without such a position are passed over.

  Raises:
    InversionViewError: no input has the position.
  """
  task = reader.task
  order = np.random.default_rng(seed).permutation(task.split("test"))
  asks, refused = [], None
  for row in task.tokens(order[: 20 * count]):
    if len(asks) == count:
      break
    try:
      task.position(row, position)
    except InversionViewError as error:
      refused = error
      continue
    asks.append(Request(task.tokenizer.text(row), site, position))
  if not asks:
    raise refused or InversionViewError(f"{count} queries: ask for at least 1")
  return asks


def read(
  reader: Reader,
  asks: Sequence[Request],
  *,
  donors: Sequence[Request] | None = None,
  with_information: bool = True,
  tokens: bool = True,
  expressions: Sequence[str] = (),
  num_samples: int | None = None,
  inputs: int = 8192,
  draws: int = 768,
  seed: int = 0,
  progress=lambda what, done, of: None,
) -> Readings:
  """Measures what a set of activations says.

  Args:
    reader: of their site.
    asks: the queries, with one epsilon, metric and match.
    donors: whose activations the control takes; None: those of the other queries, which must then be random inputs.
    with_information: whether to estimate bits; members are then weighted as they occur among the task's inputs. Without, candidates count as
      they were drawn.
    tokens: whether plain tokens are looked at besides features.
    expressions: over the features, to be looked at besides (`grammar.expression`).
    num_samples: candidates per query; None: as the task does.
    inputs, draws, seed: see `information.measure`.
    progress: called with what is done, how much of it and of how much.

  Raises:
    InversionViewError: no queries, or several epsilons, metrics or kinds of match.
  """
  if not asks:
    raise InversionViewError("no queries: give at least one")
  if len({(ask.epsilon, ask.metric, ask.match) for ask in asks}) > 1:
    raise InversionViewError("the queries have several epsilons, metrics or kinds of match: measure them apart")
  everyone = [*asks, *(donors or ())]
  preimages, found = [], []
  for start in range(0, len(everyone), 8):
    progress("candidates", start, len(everyone))
    preimages += reader.preimages(everyone[start : start + 8], effects=False, num_samples=num_samples, seed=seed)
  if with_information:
    first = preimages[0]
    for start, preimage in enumerate(preimages):
      progress("information", start, len(preimages))
      found += information.measure(
        reader,
        [preimage.query],
        epsilon=first.epsilon,
        metric=first.metric,
        match=first.match,
        inputs=inputs,
        draws=draws,
        seed=seed + start,
      )
  progress("", 1, 1)
  task, n = reader.task, len(asks)
  members = [one.members for one in found] or [Members.of(preimage, task) for preimage in preimages]
  each = []
  for preimage, texts in zip(preimages[:n], members[:n], strict=True):
    told = consistency.activation_reading(preimage, task, texts, tokens, expressions)
    # How often candidates repeat themselves is a question about candidates.
    drawn = consistency.diversity(Members.of(preimage, task).within(preimage.epsilon), Background.of(task))
    each.append(dataclasses.replace(told, diversity=drawn))
  control = _control(task, preimages, members, n, donors is None, tokens, expressions)
  return Readings(
    reader=reader.name,
    task=task.name,
    each=tuple(each),
    information=tuple(one.information for one in found[:n]) if found else None,
    preimages=tuple(preimages[:n]),
    rows=_over(each, control),
    donors=(n - 1) if donors is None else len(donors),
  )


def _over(each: Sequence[ActivationReading], control: dict[str, Rate]) -> tuple[FeatureConsistency, ...]:
  """The properties over all queries, in their mean."""
  by_name: dict[str, list[FeatureConsistency]] = {}
  for saying in each:
    for row in saying.rows:
      if row.rate.count:
        by_name.setdefault(row.feature, []).append(row)
  rows = []
  for name, own in by_name.items():
    mean = float(np.mean([row.rate.value for row in own]))
    # A query's rate lies between 0 and 1, so the mean over queries varies no more than a share of that many trials.
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


def _control(task, preimages, members, n: int, among: bool, tokens: bool, expressions=()) -> dict[str, Rate]:
  """The rate at which members of another activation's preimage have what a query has.

  Args:
    preimages, members: of the queries and the donors behind them.
    n: Q.
    among: whether the queries are each other's donors.
  """
  donors = range(n) if among else range(n, len(preimages))
  has = [consistency.of_query(preimage.query, task, preimage.match, tokens, expressions) for preimage in preimages[:n]]
  names = {name for one in has for name in one}
  shares: dict[str, np.ndarray] = {name: np.full((n, len(donors)), np.nan) for name in names}
  for p, donor in enumerate(donors):
    inside = members[donor].within(preimages[donor].epsilon)
    if not len(inside):
      continue
    found, weight = (
      properties(task, inside.tokens, inside.position, expressions),
      inside.weight / inside.weight.sum(),
    )
    for q in range(n):
      if among and donor == q:
        continue
      for name, value in has[q].items():
        shares[name][q, p] = weight[found[name] == value].sum()
  made = {name: _mean(table, among) for name, table in shares.items()}
  return {name: rate for name, rate in made.items() if rate is not None}


def _mean(table: np.ndarray, among: bool) -> Rate | None:
  """The mean over pairs of a query and a donor, float[Q, P] with NaN for those that are not looked at; leaving out one activation after the
  other says how well it is known (Tukey, 1958)."""
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
  count = float(known.any(axis=0).sum())
  spread = (
    (count - 1) / max(count, 1) * float(((np.array(left_out) - np.mean(left_out)) ** 2).sum()) if left_out else 0.0
  )
  if spread > 0 and 0 < mean < 1:
    count = min(max(count, mean * (1 - mean) / spread), float(known.sum()))
  return Rate(mean * count, count)


def _finite(value):
  """Numbers that JSON does not have become null."""
  if isinstance(value, dict):
    return {key: _finite(v) for key, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
