"""What an activation encodes: which properties of the query its preimage agrees on, beside how often random inputs do.

The feature consistency rate of a property is the share of the preimage's members whose value is the query's (InverseScope, arXiv
2506.07406). It has to be compared with the base rate, the share of random inputs with that value; `FeatureConsistency.certainty` is the
rate corrected for it.

Plain data in, plain data out; nothing here needs JAX.

Shapes: N texts, T tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures.properties import AROUND, Background, differing, properties
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.tasks import Task

# Certainties from which a property is encoded or partly encoded, by the lower end of the interval.
ENCODES, PARTLY_ENCODES = 0.5, 0.1
# Verdict -> what displays call it where candidates count as the decoder drew them.
UNWEIGHTED = {"encodes": "shared", "partly encodes": "partly shared", "-": "-"}
STEPS = (0.25, 0.5, 1.0, 1.5, 2.0)  # multiples of epsilon, for the stability of a reading


@dataclasses.dataclass(frozen=True)
class Members:
  """Texts near an activation, with weights.

  Particles of Monte Carlo and exact members count once each: they follow the task's inputs inside epsilon as they are.

  Attributes:
    tokens: int32[N, T], with BOS, EOS and PAD.
    distance: float32[N].
    position: int32[N], of the minimum; -1 where no position could be compared.
    weight: float64[N]; how often it was drawn, or an importance weight.
  """

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray
  weight: np.ndarray

  @classmethod
  def of(cls, preimage: Preimage, task: Task) -> "Members":
    """The candidates or particles of a preimage, weighted by how often each was drawn; not the proposals that Monte Carlo rejected."""
    return cls.of_samples(preimage.particles, task)

  @classmethod
  def of_samples(cls, samples: Sequence[Sample], task: Task) -> "Members":
    """Some samples of a preimage, weighted by how often each was drawn."""
    tokens = np.full((len(samples), task.length), task.tokenizer.pad_id, np.int32)
    for row, sample in zip(tokens, samples, strict=True):
      text = sample.tokens[: task.length - 1]
      row[0], row[1 : 1 + len(text)] = task.tokenizer.bos_id, text
      if sample.ended and 1 + len(text) < task.length:
        row[1 + len(text)] = task.tokenizer.eos_id
    columns = [[getattr(s, name) for s in samples] for name in ("distance", "position", "count")]
    return cls(
      tokens, np.array(columns[0], np.float32), np.array(columns[1], np.int32), np.array(columns[2], np.float64)
    )

  def within(self, epsilon: float) -> "Members":
    """The members inside epsilon."""
    inside = self.distance <= np.float32(epsilon)
    return Members(*(getattr(self, field.name)[inside] for field in dataclasses.fields(self)))

  def __len__(self) -> int:
    return len(self.weight)

  @property
  def effective(self) -> float:
    """The effective sample size (Kish, 1965); for weights that are counts, their sum."""
    if not len(self):
      return 0.0
    if (self.weight == np.round(self.weight)).all():  # counts
      return float(self.weight.sum())
    return float(self.weight.sum() ** 2 / (self.weight**2).sum())


@dataclasses.dataclass(frozen=True)
class FeatureConsistency:
  """How consistently the members of a preimage share one property of the query.

  Attributes:
    feature: name of the property.
    value: the query's; "" over several queries.
    rate: the feature consistency rate: share of the preimage's members with the query's value. Over several queries, its mean.
    base: share of random inputs with the query's value.
    bits: relative entropy of the property's distribution among the members to that among random inputs.
    queries: how many it was averaged over.
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
    """The rate corrected for chance: 0 at the base rate, 1 where all members agree (as Cohen's kappa corrects agreement)."""
    return certainty_of(self.rate.value, self.base)

  @property
  def verdict(self) -> str:
    """ "encodes", "partly encodes" or "-"."""
    return _verdict(self.rate, self.base)

  @property
  def control_verdict(self) -> str | None:
    """The verdict on the control; it should be "-"."""
    return None if self.control is None else _verdict(self.control, self.base)

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    control = self.control and self.control.to_dict() | {"verdict": self.control_verdict}
    return {
      "feature": self.feature,
      "value": self.value,
      "verdict": self.verdict,
      "certainty": self.certainty,
      "rate": self.rate.to_dict(),
      "base": self.base,
      "bits": self.bits,
      "queries": self.queries,
      "control": control,
    }

  def __str__(self) -> str:
    """Such as "C2 = 0"; the name alone over several queries."""
    return f"{self.feature} = {self.value}" if self.value else self.feature


def certainty_of(rate: float, base: float) -> float:
  """(rate - base) / (1 - base): 0 at the base rate, 1 where all members agree."""
  return (rate - base) / (1.0 - base)


def _verdict(rate: Rate, base: float) -> str:
  least = certainty_of(rate.low, base)
  return "encodes" if least > ENCODES else "partly encodes" if least > PARTLY_ENCODES else "-"


@dataclasses.dataclass(frozen=True)
class Diversity:
  """How different the drawn members are from each other.

  Attributes:
    drawn: how many draws fell inside epsilon.
    distinct: how many different texts they are.
    effective: the number of equally probable texts of which draws would have as many duplicates; inf where none was drawn twice.
    differ: share of the tokens in which two of them differ, mean over pairs.
    base: the same of random inputs.
  """

  drawn: int
  distinct: int
  effective: float
  differ: float
  base: float

  def to_dict(self) -> dict:
    """Plain data for JSON; numbers that JSON does not have are None."""
    return {
      name: None if isinstance(value, float) and not math.isfinite(value) else value
      for name, value in dataclasses.asdict(self).items()
    }


@dataclasses.dataclass(frozen=True, repr=False)
class ActivationReading(ShowsTable):
  """What one activation encodes.

  Attributes:
    query: the activation and its input.
    epsilon, metric, match: of the preimage.
    rows: every property that the query has, most certain first.
    diversity: of the members.
    stability: epsilon -> {property: its rate}, from the same members; epsilons inside which none lie are left out.
    from_prior: whether the members follow the task's inputs inside epsilon: particles, exact members or weighted texts. Candidates as the
      decoder draws them do not: what they share is a property of the decoder, too, and displays do not call it encoded.
    problem: why the particles cannot be relied on; "" if they can.
  """

  query: Query
  epsilon: float
  metric: str
  match: str
  rows: tuple[FeatureConsistency, ...]
  diversity: Diversity
  stability: dict[float, dict[str, float]]
  from_prior: bool = False
  problem: str = ""

  @property
  def encoded(self) -> list[FeatureConsistency]:
    """The properties with the verdict "encodes", most certain first."""
    return [row for row in self.rows if row.verdict == "encodes"]

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    query = {name: getattr(self.query, name) for name in ("text", "site", "position", "label")}
    return {
      "query": query,
      **{name: getattr(self, name) for name in ("epsilon", "metric", "match")},
      "features": [row.to_dict() for row in self.rows],
      "diversity": self.diversity.to_dict(),
      "stability": [{"epsilon": epsilon, "rates": rates} for epsilon, rates in self.stability.items()],
      "from_prior": self.from_prior,
      "problem": self.problem,
    }

  def _table(self) -> Table:
    label = self.query.label or self.query.position
    title = f"{self.query.site} at {label!r} of {self.query.text!r}: {self.diversity.drawn:,} inside epsilon = {self.epsilon:g}"
    rows = [
      (str(row), str(row.rate), f"{row.base:.3f}", f"{row.bits:.2f}", self.verdict_of(row))
      for row in self.rows
      if row.verdict != "-"
    ]
    notes = [] if self.from_prior else ["candidates as the decoder drew them"]
    notes += [f"not converged: {self.problem}"] if self.problem else []
    if not rows:
      nothing = "encodes none of the task's features" if self.diversity.drawn else "no candidate lies inside epsilon"
      return Table(title, notes="; ".join([nothing, *notes]))
    if left := len(self.rows) - len(rows):
      notes.append(f"{left} more properties: no more consistent than among random inputs")
    return Table(title, ("property", "inside epsilon (95 %)", "random", "bits", ""), tuple(rows), "; ".join(notes))

  def verdict_of(self, row: FeatureConsistency) -> str:
    """The verdict on a row, as displays name it: candidates as the decoder drew them share a property or partly share it."""
    return row.verdict if self.from_prior else UNWEIGHTED[row.verdict]


def activation_reading(
  preimage: Preimage,
  task: Task | None = None,
  members: Members | None = None,
  tokens: bool = True,
  expressions: Sequence[str] = (),
) -> ActivationReading:
  """What an activation encodes, from its candidates or particles alone; of a decoder's candidates, another epsilon (`preimage.at`) needs no model.

  Args:
    preimage: the query with its candidates.
    task: of the preimage; None: found by its name, which a task over the texts of a language model is not.
    members: other texts in place of the candidates, with distances to the query, such as weighted ones
      (`information.InformationResult.members`).
    tokens: whether plain tokens are included besides the task's features.
    expressions: more properties, such as "F1 + S1 >= 10" (`grammar.expression`).

  Raises:
    InversionViewError: a preimage of another task, or an expression that is not understood.
  """
  task = tasks.get(preimage.task) if task is None else task
  if preimage.task != task.name:
    raise InversionViewError(f"this preimage is of the task {preimage.task!r}, not of {task.name!r}")
  every = Members.of(preimage, task) if members is None else members
  inside = every.within(preimage.epsilon)
  # Particles and exact members are a sample of what lies inside epsilon, not of what lies further out.
  steps = [step for step in STEPS if step <= 1 or members is not None or preimage.method == "decoder"]
  background, query = Background.of(task), preimage.query
  random = background.at(query.label or query.position, expressions)
  has = of_query(query, task, preimage.match, tokens, expressions)
  values_of = properties(task, inside.tokens, inside.position, expressions)
  rows = [_consistency(name, value, values_of[name], inside, random[name], task) for name, value in has.items()]
  return ActivationReading(
    query,
    preimage.epsilon,
    preimage.metric,
    preimage.match,
    ordered(rows),
    diversity(inside, background),
    _stability(every, has, task, preimage.epsilon, steps, expressions),
    from_prior=members is not None or preimage.method != "decoder",
    problem="" if members is not None else preimage.problem,
  )


def of_query(
  query: Query, task: Task, match: str = "anywhere", tokens: bool = True, expressions: Sequence[str] = ()
) -> dict[str, int]:
  """The properties of a query that are not the same for all inputs: name -> value."""
  random = Background.of(task).at(query.label or query.position, expressions)
  row = np.full((1, task.length), task.tokenizer.pad_id, np.int32)
  row[0, : len(query.tokens)] = query.tokens[: task.length]
  own = {*task.features(row), *task.expressions, *expressions}
  has = {}
  for name, values in properties(task, row, np.array([query.position]), expressions).items():
    included = name in own or (tokens and (match == "anywhere" or name not in AROUND))
    if included and values[0] != -1 and name in random:
      has[name] = int(values[0])
  return has


def ordered(rows: Sequence[FeatureConsistency]) -> tuple[FeatureConsistency, ...]:
  """The rows by certainty, highest first; of equal ones the one with the lower base rate first."""
  return tuple(sorted(rows, key=lambda row: (-round(certainty_of(row.rate.low, row.base), 6), row.base)))


def _consistency(
  name: str, value: int, values: np.ndarray, inside: Members, random: np.ndarray, task: Task
) -> FeatureConsistency:
  """One row: int32[N] values of the members and int32[M] of random inputs against the query's value."""
  same = float(inside.weight[values == value].sum())
  total, effective = float(inside.weight.sum()), inside.effective
  rate = Rate(effective * same / total, effective) if total else Rate(0, 0)
  plain = name.startswith("token ") or name in AROUND
  shown = task.tokenizer.strings([value])[0] if plain else str(value + 1 if value < 0 else value)
  bits = _bits(values, inside.weight, effective, random)
  return FeatureConsistency(name, shown, rate, float(np.mean(random == value)), bits)


def _bits(values: np.ndarray, weight: np.ndarray, effective: float, random: np.ndarray) -> float:
  """Relative entropy in bits of values among members to those among random inputs, less its bias in small samples (Miller, 1955)."""
  if not len(values):
    return math.nan
  distinct, which = np.unique(values, return_inverse=True)
  inside = np.bincount(which, weight) / weight.sum()
  outside = np.array([max(np.mean(random == value), 0.5 / len(random)) for value in distinct])
  used = inside > 0
  plain = float(np.sum(inside[used] * np.log2(inside[used] / outside[used])))
  return max(plain - (int(used.sum()) - 1) / (2 * max(effective, 1.0) * math.log(2)), 0.0)


def diversity(inside: Members, background: Background) -> Diversity:
  """The diversity of members, beside that of random inputs."""
  if not len(inside):
    return Diversity(0, 0, math.nan, math.nan, background.differ)
  _, which = np.unique(inside.tokens, axis=0, return_inverse=True)
  counts = np.bincount(which.reshape(-1), inside.weight)
  drawn = inside.effective
  # The probability that two different draws are the same text.
  chance = ((counts**2).sum() / counts.sum() ** 2 * drawn - 1.0) / max(drawn - 1.0, 1e-9)
  effective = 1.0 / chance if chance > 1e-9 else math.inf
  differ = differing(inside.tokens, inside.weight, background.varying)
  return Diversity(round(drawn), int((counts > 0).sum()), effective, differ, background.differ)


def _stability(
  every: Members, has: dict[str, int], task: Task, epsilon: float, steps: Sequence[float], expressions: Sequence[str]
) -> dict[float, dict[str, float]]:
  """The rate of each property at multiples of epsilon."""
  rates = {}
  for step in steps:
    inside = every.within(step * epsilon)
    if len(inside):
      values_of = properties(task, inside.tokens, inside.position, expressions)
      share = inside.weight / inside.weight.sum()
      rates[float(f"{step * epsilon:.6g}")] = {
        name: float(share[values_of[name] == value].sum()) for name, value in has.items()
      }
  return rates
