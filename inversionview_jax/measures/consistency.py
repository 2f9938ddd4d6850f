"""What an activation says: which properties of the query its preimage agrees on, next to how often random inputs do.

The feature consistency rate of a property is the share of the preimage's members that have it as the query has it (InverseScope, arXiv
2506.07406). It means nothing without the share of random inputs that have it so, the base rate; `FeatureConsistency.certainty` is what is left of
the one when the other is taken away.

Plain data in, plain data out; nothing here needs JAX.

Shapes: N texts, T tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures.properties import AROUND, Background, differing, properties
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Preimage, Query
from inversionview_jax.tasks import Task

# A property is said where more than half of what a guess leaves open is settled, and hinted at where more than a tenth is; both by the
# lower end of the interval.
ENCODES, PARTLY_ENCODES = 0.5, 0.1
STEPS = (0.25, 0.5, 1.0, 1.5, 2.0)  # of epsilon, for the stability of a reading


@dataclasses.dataclass(frozen=True)
class Members:
  """Texts near an activation, with weights.

  Attributes:
    tokens: int32[N, T], with BOS, EOS and PAD.
    distance: float32[N].
    position: int32[N], where each is nearest; -1 where nothing could be compared.
    weight: float64[N]; all 1 for candidates as they were drawn.
  """

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray
  weight: np.ndarray

  @classmethod
  def of(cls, preimage: Preimage, task: Task) -> "Members":
    """The candidates of a preimage, each as often as it was drawn."""
    tokens = np.full((len(preimage.samples), task.length), task.tokenizer.pad_id, np.int32)
    for row, sample in zip(tokens, preimage.samples, strict=True):
      text = sample.tokens[: task.length - 1]
      row[0], row[1 : 1 + len(text)] = task.tokenizer.bos_id, text
      if sample.ended and 1 + len(text) < task.length:
        row[1 + len(text)] = task.tokenizer.eos_id
    columns = [[getattr(s, name) for s in preimage.samples] for name in ("distance", "position", "count")]
    return cls(
      tokens, np.array(columns[0], np.float32), np.array(columns[1], np.int32), np.array(columns[2], np.float64)
    )

  def within(self, epsilon: float) -> "Members":
    """Those inside epsilon."""
    inside = self.distance <= np.float32(epsilon)
    return Members(*(getattr(self, field.name)[inside] for field in dataclasses.fields(self)))

  def __len__(self) -> int:
    return len(self.weight)

  @property
  def effective(self) -> float:
    """How many equally weighted members know as much (Kish, 1965); for counts, how many there are."""
    if not len(self):
      return 0.0
    if (self.weight == np.round(self.weight)).all():  # drawn so often
      return float(self.weight.sum())
    return float(self.weight.sum() ** 2 / (self.weight**2).sum())


@dataclasses.dataclass(frozen=True)
class FeatureConsistency:
  """One property, and what the preimage says of it.

  Attributes:
    feature: its name.
    value: what the query has; "" over several queries.
    rate: the feature consistency rate: share of the preimage's members that have the same. Over several queries, its mean.
    base: share of random inputs that have the same.
    bits: what the members tell of it: relative entropy of its distribution among them to that among random inputs.
    queries: how many it was taken over.
    control: the same rate for activations of other inputs; None where it was not measured.
  """

  feature: str
  value: str
  rate: Rate
  base: float
  bits: float
  queries: int = 1
  control: Rate | None = None

  @property
  def certainty(self) -> float:
    """0 for a guess, 1 for what all members agree on."""
    return certainty_of(self.rate.value, self.base)

  @property
  def verdict(self) -> str:
    """ "encodes", "partly encodes" or "-"."""
    return _verdict(self.rate, self.base)

  @property
  def control_verdict(self) -> str | None:
    """What the control reads; it should be "-"."""
    return None if self.control is None else _verdict(self.control, self.base)

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    told = {"feature": self.feature, "value": self.value, "verdict": self.verdict, "certainty": self.certainty}
    told |= {"rate": self.rate.to_dict(), "base": self.base, "bits": self.bits, "queries": self.queries}
    control = self.control and self.control.to_dict() | {"verdict": self.control_verdict}
    return told | {"control": control}


def certainty_of(rate: float, base: float) -> float:
  """What of the gap between random inputs and all members agreeing is closed: 0 for a guess, 1 for certainty."""
  return (rate - base) / (1.0 - base)


def _verdict(rate: Rate, base: float) -> str:
  least = certainty_of(rate.low, base)
  return "encodes" if least > ENCODES else "partly encodes" if least > PARTLY_ENCODES else "-"


@dataclasses.dataclass(frozen=True)
class Diversity:
  """How different the members are that were drawn.

  Attributes:
    drawn: how many draws fell inside epsilon.
    distinct: how many different texts they are.
    effective: of how many equally probable texts draws would repeat themselves as often; inf where none was drawn twice.
    differ: share of the tokens in which two of them differ, mean over pairs.
    base: the same of random inputs.
  """

  drawn: int
  distinct: int
  effective: float
  differ: float
  base: float

  def to_dict(self) -> dict:
    told = dataclasses.asdict(self)
    return {
      name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in told.items()
    }


@dataclasses.dataclass(frozen=True)
class ActivationReading:
  """What one activation says.

  Attributes:
    query: which.
    epsilon, metric, match: what the members were held against.
    rows: every property that the query has, most certain first.
    diversity: of the members.
    stability: epsilon -> {property: its rate}, from the same candidates; epsilons inside which none lie are left out.
  """

  query: Query
  epsilon: float
  metric: str
  match: str
  rows: tuple[FeatureConsistency, ...]
  diversity: Diversity
  stability: dict[float, dict[str, float]]

  @property
  def encoded(self) -> list[FeatureConsistency]:
    """The properties that are said, most certain first."""
    return [row for row in self.rows if row.verdict == "encodes"]

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    query = {name: getattr(self.query, name) for name in ("text", "site", "position", "label")}
    return {
      "query": query,
      **{name: getattr(self, name) for name in ("epsilon", "metric", "match")},
      "says": [row.to_dict() for row in self.rows],
      "diversity": self.diversity.to_dict(),
      "stability": [{"epsilon": epsilon, "rates": rates} for epsilon, rates in self.stability.items()],
    }


def activation_reading(
  preimage: Preimage,
  task: Task,
  members: Members | None = None,
  tokens: bool = True,
  expressions: Sequence[str] = (),
) -> ActivationReading:
  """What an activation says, from its candidates alone; another epsilon (`preimage.at`) needs no model.

  Args:
    preimage: the query with its candidates.
    task: whose they are.
    members: other texts in place of the candidates, such as weighted ones (`information.Found.members`); with distances to the query.
    tokens: whether plain tokens are looked at besides the task's features.
    expressions: to be looked at besides, such as "F1 + S1 >= 10" (`grammar.expression`).

  Raises:
    InversionViewError: a preimage of another task, or an expression that is not understood.
  """
  if preimage.task != task.name:
    raise InversionViewError(f"this preimage is of the task {preimage.task!r}, not of {task.name!r}")
  every = Members.of(preimage, task) if members is None else members
  inside = every.within(preimage.epsilon)
  background, query = Background.of(task), preimage.query
  random = background.at(query.label or query.position, expressions)
  has = of_query(query, task, preimage.match, tokens, expressions)
  found = properties(task, inside.tokens, inside.position, expressions)
  rows = [_said(name, value, found[name], inside, random[name], task) for name, value in has.items()]
  return ActivationReading(
    query,
    preimage.epsilon,
    preimage.metric,
    preimage.match,
    ordered(rows),
    diversity(inside, background),
    _stability(every, has, task, preimage.epsilon, expressions),
  )


def of_query(
  query: Query, task: Task, match: str = "anywhere", tokens: bool = True, expressions: Sequence[str] = ()
) -> dict[str, int]:
  """The properties of a query that are worth asking about: a name -> its value."""
  random = Background.of(task).at(query.label or query.position, expressions)
  row = np.full((1, task.length), task.tokenizer.pad_id, np.int32)
  row[0, : len(query.tokens)] = query.tokens[: task.length]
  own = {*task.features(row), *task.expressions, *expressions}
  has = {}
  for name, values in properties(task, row, np.array([query.position]), expressions).items():
    wanted = name in own or (tokens and (match == "anywhere" or name not in AROUND))
    if wanted and values[0] != -1 and name in random:
      has[name] = int(values[0])
  return has


def ordered(rows: Sequence[FeatureConsistency]) -> tuple[FeatureConsistency, ...]:
  """Most certain first; of two that are equally so, the one that random inputs share less."""
  return tuple(sorted(rows, key=lambda row: (-round(certainty_of(row.rate.low, row.base), 6), row.base)))


def _said(name: str, value: int, found, inside: Members, random, task: Task) -> FeatureConsistency:
  same = float(inside.weight[found == value].sum())
  total, effective = float(inside.weight.sum()), inside.effective
  rate = Rate(effective * same / total, effective) if total else Rate(0, 0)
  plain = name.startswith("token ") or name in AROUND
  shown = task.tokenizer.strings([value])[0] if plain else str(value + 1 if value < 0 else value)
  bits = _bits(found, inside.weight, effective, random)
  return FeatureConsistency(name, shown, rate, float(np.mean(random == value)), bits)


def _bits(found: np.ndarray, weight: np.ndarray, effective: float, random: np.ndarray) -> float:
  """Relative entropy in bits of values among members to those among random inputs, less what it has by chance (Miller, 1955)."""
  if not len(found):
    return math.nan
  values, which = np.unique(found, return_inverse=True)
  inside = np.bincount(which, weight) / weight.sum()
  outside = np.array([max(np.mean(random == value), 0.5 / len(random)) for value in values])
  used = inside > 0
  plain = float(np.sum(inside[used] * np.log2(inside[used] / outside[used])))
  return max(plain - (int(used.sum()) - 1) / (2 * max(effective, 1.0) * math.log(2)), 0.0)


def diversity(inside: Members, background: Background) -> Diversity:
  """How different the members are; see `Diversity`."""
  if not len(inside):
    return Diversity(0, 0, math.nan, math.nan, background.differ)
  _, which = np.unique(inside.tokens, axis=0, return_inverse=True)
  counts = np.bincount(which.reshape(-1), inside.weight)
  drawn = inside.effective
  # Two draws are the same with this probability; no draw is compared with itself.
  chance = ((counts**2).sum() / counts.sum() ** 2 * drawn - 1.0) / max(drawn - 1.0, 1e-9)
  effective = 1.0 / chance if chance > 1e-9 else math.inf
  differ = differing(inside.tokens, inside.weight, background.varying)
  return Diversity(round(drawn), int((counts > 0).sum()), effective, differ, background.differ)


def _stability(
  every: Members, has: dict[str, int], task: Task, epsilon: float, expressions
) -> dict[float, dict[str, float]]:
  rates = {}
  for step in STEPS:
    inside = every.within(step * epsilon)
    if len(inside):
      found = properties(task, inside.tokens, inside.position, expressions)
      share = inside.weight / inside.weight.sum()
      rates[float(f"{step * epsilon:.6g}")] = {
        name: float(share[found[name] == value].sum()) for name, value in has.items()
      }
  return rates
