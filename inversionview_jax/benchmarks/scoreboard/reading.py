"""Preimages of every component of a program, as evidence for what it writes; and the readers that see no preimage.

Shapes: N inputs with the position, Q queries, M members, V variables, D width of the residual stream, C components.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from inversionview_jax import distance
from inversionview_jax.benchmarks.scoreboard import naming
from inversionview_jax.benchmarks.scoreboard.answers import Answers, Component
from inversionview_jax.measures.consistency import Members
from inversionview_jax.reading import Request
from inversionview_jax.reading.source import Source
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Queries


class Known(Protocol):
  """Inputs with the values of what a component can write: of a program, or of a trained target's task."""

  def candidates(self, symbol: Any) -> tuple[str, ...]:
    """Names of variables at a position, of which no two split the inputs alike and none is constant."""

  def partitions(self, symbol: Any) -> Mapping[str, np.ndarray]:
    """Variable -> int32[N], its partition of the inputs that have the position."""

  def symbols(self, symbol: Any) -> np.ndarray:
    """int32[N]: the tokens there."""


def queries(activations: np.ndarray, most: int, epsilon: float, metric: str, seed: int) -> np.ndarray:
  """int64[Q]: rows, in random order, none of which lies within epsilon of one before; float32[N, D] of them are given."""
  order = np.random.default_rng(seed).permutation(len(activations))
  near: np.ndarray = np.zeros(len(activations), bool)
  chosen: list[int] = []
  for row in order:
    if not near[row]:
      chosen.append(row)
      near |= np.asarray(distance.distance(metric, jnp.asarray(activations), jnp.asarray(activations[row]))) <= epsilon
      if len(chosen) == most or near.all():
        break
  return np.array(chosen)


def read_exactly(
  answers: Answers, components: Sequence[Component], *, most: int, epsilon: float, metric: str, seed: int
) -> list[naming.Named]:
  """What each component encodes, by the exact preimages of up to `most` of its activations (`sampling.exact`), among these inputs."""
  sites = tuple(dict.fromkeys(component.site for component in components))
  chosen = [queries(answers.activations(c), most, epsilon, metric, seed) for c in components]
  stacked = Queries.of(
    np.concatenate([answers.activations(c)[rows] for c, rows in zip(components, chosen, strict=True)]),
    np.concatenate([np.full(len(rows), sites.index(c.site)) for c, rows in zip(components, chosen, strict=True)]),
    metric,
    np.concatenate([np.full(len(rows), c.column) for c, rows in zip(components, chosen, strict=True)]),
  )
  distances = exact.distances(answers.target, answers.task, sites, stacked, answers.index).distance
  inside: Any = distances <= np.float32(epsilon)
  start, out = 0, []
  for component, rows in zip(components, chosen, strict=True):
    members = inside[start : start + len(rows)][:, answers.having(component.symbol)]
    zero: Any = ~answers.activations(component).any(axis=1)
    members[zero[rows]] = zero
    members[np.arange(len(rows)), rows] = True  # whatever the rounding of another batch
    start += len(rows)
    out.append(naming.name(evidence_of(answers, component.symbol, rows, members)))
  return out


def evidence_of(answers: "Known", symbol: Any, rows: np.ndarray, members: np.ndarray) -> naming.Evidence:
  """Evidence from preimages within the inputs themselves.

  Args:
    answers: with the inputs.
    symbol: the position of the component whose activations they are of.
    rows: int64[Q], the queries, among the N inputs that have the position.
    members: bool[Q, N].
  """
  names, parts = answers.candidates(symbol), answers.partitions(symbol)
  table = np.stack([parts[name] for name in names], axis=1) if names else np.zeros((members.shape[1], 0), np.int32)
  random = table[None] == table[rows][:, None]
  inside = [same[member] for same, member in zip(random, members, strict=True)]
  return naming.Evidence(names, -np.log2(members.mean(axis=1)), inside, random)


def read_by_sampling(
  answers: Answers,
  components: Sequence[Component],
  *,
  most: int,
  epsilon: float,
  metric: str,
  seed: int,
  particles: int | None = None,
) -> list[naming.Named]:
  """What each component encodes, by Monte Carlo on the target: for programs whose inputs are too many to enumerate."""
  out = []
  source = Source.of(answers.target, "monte_carlo", task=answers.task, particles=particles)
  for number, component in enumerate(components):
    activations = answers.activations(component)
    # What is 0 but for rounding has no direction that could be compared: its preimage is taken from the inputs themselves.
    there = np.flatnonzero(activations.any(axis=1))
    if not len(there):
      out.append(naming.Named((), True, 1.0, 0.0, {}))
      continue
    rows = there[queries(activations[there], most, epsilon, metric, seed)]
    having = answers.having(component.symbol)
    texts = [answers.task.tokenizer.text(row) for row in answers.tokens[having][rows]]
    requests = [Request(text, component.site.short, component.column, epsilon, metric, "position") for text in texts]
    preimages = source.preimages(requests, seed=seed + number)
    names = answers.candidates(component.symbol)
    columns = [answers.names.index(name) for name in names]
    table = answers.values[having][:, columns]
    random = table[None] == table[rows][:, None]
    inside, bits = [], []
    for preimage, row in zip(preimages, rows, strict=True):
      tokens = Members.of(preimage, answers.task).within(epsilon).tokens
      values = np.stack(list(answers.task.features(tokens).values()), axis=1)[:, columns]
      inside.append(values == table[row])
      bits.append(max((preimage.bits or 0.0) + np.log2(having.mean()), 0.0))
    zero = ~activations.any(axis=1)
    if zero.any():
      same = table == table[zero.argmax()]
      inside.append(same[zero])
      random = np.concatenate([random, same[None]])
      bits.append(float(-np.log2(zero.mean())))
    out.append(naming.name(naming.Evidence(names, np.array(bits), inside, random)))
  return out


def read_text(
  answers: "Known", components: Sequence[Any], name: Callable[[naming.Evidence], naming.Named] = naming.name
) -> list[naming.Named]:
  """What a reader says who sees the text and no activation: that a component encodes what stands at its position.

  The same naming, by `name`, of the inputs with the query's symbol there in place of the preimage.
  """
  known: dict[Any, naming.Named] = {}
  for symbol in dict.fromkeys(component.symbol for component in components):
    symbols = answers.symbols(symbol)
    _, rows = np.unique(symbols, return_index=True)
    known[symbol] = name(evidence_of(answers, symbol, rows, symbols[None] == symbols[rows][:, None]))
  return [known[component.symbol] for component in components]


def read_others(components: Sequence[Any], named: Sequence[naming.Named], seed: int = 0) -> list[naming.Named]:
  """What the reader named for another component at the same position, drawn at random: right by chance only."""
  rng = np.random.default_rng(seed)
  out = []
  for component in components:
    others = [
      name
      for other, name in zip(components, named, strict=True)
      if other.symbol == component.symbol and other.site != component.site
    ]
    out.append(others[rng.integers(len(others))] if others else naming.Named((), False, 0.0, 0.0, {}))
  return out
