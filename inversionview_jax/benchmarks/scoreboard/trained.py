"""Trained models with known answers: parts of the shipped targets that carry one variable, as patching or the architecture shows.

A trained part has no list of what it writes, so an answer needs evidence that no reader of the activation has: the architecture (an embedding is a
function of the token and its position), or patching (`causal.verify`). "Carries C2" then means: from inputs in which C2 alone differs, the patched
part brings at least `SHARE` of the change of the prediction (KL); from inputs in which everything but C2 differs, at most `LEAK` of what it brought
before, and of all variables that have such a share it is the one with the smallest leak by far. Parts that mix variables have no answer here.

An activation of such a part may have more in it than what is used. So no variable's level sets are its preimages, and readers name every variable that
is settled by more than a half; what is named beside the answer counts as wrong.

Shapes: N inputs, V variables, Q queries, D width of the residual stream.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax import sites
from inversionview_jax.benchmarks.scoreboard import naming, partitions, reading
from inversionview_jax.errors import one_of
from inversionview_jax.measures import properties
from inversionview_jax.measures.consistency import Members
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Request
from inversionview_jax.reading.source import Source
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target, load_target
from inversionview_jax.tasks import Task

SHARE, LEAK = 0.4, 0.025  # see above
# Random ones, of which queries and base rates are taken, and preimages of tasks that can be enumerated.
_INPUTS = 32_768
_RUN = 1024  # of these, whose activations are read and probed
# Activations of a part that are read: among the inputs, and by Monte Carlo, which takes seconds for each.
_READ, _SAMPLED = 48, 6


@dataclasses.dataclass(frozen=True, order=True)
class Part:
  """A site at the position of a label.

  Attributes:
    site: of the target.
    symbol: the label.
    variables: what it carries; () for a constant.
    shown_by: "patching" or "architecture".
  """

  site: Site
  symbol: str
  variables: tuple[str, ...]
  shown_by: str

  def __str__(self) -> str:
    """Such as "a0.0@="."""
    return f"{self.site.short}@{self.symbol}"


def _parts(shown_by: str, *rows: tuple[str, str, tuple[str, ...]]) -> tuple[Part, ...]:
  return tuple(Part(sites.parse(site), symbol, variables, shown_by) for site, symbol, variables in rows)


@functools.cache
def answers() -> dict[str, tuple[Part, ...]]:
  """Name of a shipped target -> the parts whose variables are known."""
  digits = [("x0.pre", digit, (digit,)) for digit in ("F1", "F2", "F3", "S1", "S2", "S3")]
  return {
    "addition": (
      *_parts("architecture", *digits, ("x0.pre", "+", ()), ("x0.pre", "=", ())),
      *_parts(
        "patching", ("a0.0", "=", ("C2",)), ("a0.1", "=", ("C3",)), ("a0.2", "=", ("C1",)), ("a0.1", "A1", ("C3",))
      ),
    ),
    "counting": (
      # Both tokens occur once, behind the letters.
      *_parts("architecture", ("x0.pre", "|", ("length",)), ("x0.pre", ":", ("length",))),
      *_parts("patching", ("m1", ":", ("count",))),
    ),
  }


def check(name: str) -> None:
  """Raises `InversionViewError` for a target without known answers."""
  if name not in answers():
    raise one_of("trained target", name, answers())


@dataclasses.dataclass(frozen=True, eq=False)
class TrainedAnswers:
  """A trained target with the values of its task's variables on random inputs.

  Attributes:
    target, task: the target.
    components: the parts whose variables are known.
    index: int64[N], the inputs.
    tokens: int32[N, T], of these.
    names: V features of the task and expressions over them.
    values: int64[N, V]; -1 where an input has none.
  """

  target: Target
  task: Task
  components: tuple[Part, ...]
  index: np.ndarray
  tokens: np.ndarray
  names: tuple[str, ...]
  values: np.ndarray

  @classmethod
  def of(cls, name: str, seed: int = 0) -> "TrainedAnswers":
    """Of a shipped target; raises `InversionViewError` for one without known answers."""
    check(name)
    target = load_target(name)
    task = target.resolve_task()
    assert task is not None
    index = np.random.default_rng(seed).integers(task.num_inputs, size=_INPUTS)
    tokens = np.asarray(task.tokens(index))
    names = (*task.features(tokens[:1]), *task.expressions)
    return cls(target, task, answers()[name], index, tokens, names, values_of(task, names, tokens))

  def columns(self, symbol: str) -> np.ndarray:
    """int32[N]: the position of a label."""
    if symbol not in self._columns:
      self._columns[symbol] = self.task.positions(self.tokens, symbol)
    return self._columns[symbol]

  @functools.cached_property
  def _columns(self) -> dict[str, np.ndarray]:
    return {}

  def symbols(self, symbol: str) -> np.ndarray:
    """int32[N]: the token at the position of a label."""
    return self.tokens[np.arange(len(self.tokens)), self.columns(symbol)]

  def expressions(self, part: Part) -> tuple[str, ...]:
    """The same as what it carries: nobody wrote an expression."""
    return part.variables

  def written(self, part: Part) -> tuple[str, ...]:
    """The variables that it carries."""
    return part.variables

  def partitions(self, symbol: str) -> Mapping[str, np.ndarray]:
    """Variable -> its partition of the inputs, int32[N]."""
    del symbol
    return self._partitions

  @functools.cached_property
  def _partitions(self) -> dict[str, np.ndarray]:
    return {name: partitions.partition(column) for name, column in zip(self.names, self.values.T, strict=True)}

  def candidates(self, symbol: str) -> tuple[str, ...]:
    """What a part can carry: the variables, but constants and doubles."""
    del symbol
    kept: dict[bytes, str] = {}
    for name in self.names:
      if self._partitions[name].any():
        kept.setdefault(self._partitions[name].tobytes(), name)
    return tuple(kept.values())

  def activations(self, part: Part) -> np.ndarray:
    """float32[P, D]: of the first inputs, whose activations are read and probed."""
    written = self._ran[part.site]
    return written[np.arange(len(written)), self.columns(part.symbol)[: len(written)]]

  @functools.cached_property
  def _ran(self) -> dict[Site, np.ndarray]:
    sites_read = tuple(dict.fromkeys(part.site for part in self.components))
    run: Any = self.target.run(self.tokens[:_RUN], sites_read)
    return {site: np.asarray(run[site], np.float32) for site in sites_read}


def values_of(task: Task, names: Sequence[str], tokens: np.ndarray) -> np.ndarray:
  """int64[N, V]: the values of expressions; -1 where a text has none."""
  features, columns = task.features(tokens), []
  for name in names:
    if name in features:
      columns.append(np.asarray(features[name]))
      continue
    value, known = properties.evaluate(task, name, tokens)
    columns.append(np.where(known, value, -1))
  return np.stack(columns, axis=1)


def read(known: TrainedAnswers, most: int | None, seed: int) -> list[naming.Named]:
  """What each part carries, by the preimages of its activations in random inputs: every variable that they settle by more than a half.

  Where the task can be enumerated, preimages lie among the inputs, at the position of the part; else they are those of Monte Carlo.

  Args:
    known: the target.
    most: activations of a part; None: 48, or 6 by Monte Carlo, and never more by that.
    seed: of what is drawn.
  """
  count = min(_READ if most is None else most, _RUN)
  if not known.task.enumerable:
    count = min(count, _SAMPLED)
  rows = [np.random.default_rng(seed).choice(_RUN, count, replace=False) for _ in known.components]
  found = _read_within(known, rows) if known.task.enumerable else _sampled(known, rows, seed)
  return [naming.certain(evidence) for evidence in found]


def _read_within(known: TrainedAnswers, rows: Sequence[np.ndarray]) -> list[naming.Evidence]:
  """Evidence from the members among the inputs, all of them measured in one pass."""
  task, sites_read = known.task, tuple(dict.fromkeys(part.site for part in known.components))
  parts = list(zip(known.components, rows, strict=True))
  queries = Queries.of(
    np.concatenate([known.activations(part)[own] for part, own in parts]),
    np.concatenate([np.full(len(own), sites_read.index(part.site)) for part, own in parts]),
    task.metric,
    np.concatenate([known.columns(part.symbol)[own] for part, own in parts]),
  )
  inside: Any = exact.distances(known.target, task, sites_read, queries, known.index).distance <= np.float32(
    task.epsilon
  )
  out, start = [], 0
  for part, own in parts:
    members = inside[start : start + len(own)]
    members[np.arange(len(own)), own] = True  # whatever the rounding of another batch
    out.append(reading.evidence_of(known, part.symbol, own, members))
    start += len(own)
  return out


def _sampled(known: TrainedAnswers, rows: Sequence[np.ndarray], seed: int) -> list[naming.Evidence]:
  """Evidence from particles, at any position: the positions themselves differ between inputs."""
  source, out = Source.of(known.target, "monte_carlo", task=known.task), []
  for part, own in zip(known.components, rows, strict=True):
    texts = [known.task.tokenizer.text(row) for row in known.tokens[own]]
    preimages = source.preimages([Request(text, part.site.short, part.symbol) for text in texts], seed=seed)
    out.append(_evidence(known, part, own, preimages))
  return out


def _evidence(known: TrainedAnswers, part: Part, rows: np.ndarray, preimages: Sequence[Preimage]) -> naming.Evidence:
  names = known.candidates(part.symbol)
  table = known.values[:, [known.names.index(name) for name in names]]
  inside, kept, bits = [], [], []
  for row, preimage in zip(rows, preimages, strict=True):
    tokens = Members.of(preimage, known.task).within(preimage.epsilon).tokens
    if len(tokens) and preimage.converged:
      inside.append(values_of(known.task, names, tokens) == table[row])
      kept.append(row)
      bits.append(preimage.bits or 0.0)
  return naming.Evidence(names, np.array(bits), inside, table[None] == table[kept][:, None])
