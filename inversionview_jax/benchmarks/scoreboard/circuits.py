"""The circuit of a compiled program, found by patching, against the program's own graph.

A pair is an input and another whose activations are put into it, one at a time; outputs are read at one symbol. A node's score is by how much
that output changes when the node's activation is taken from the other input, as a share of the difference between two inputs' outputs; an edge's, the
same when only what its target reads of its source is (path patching). Inputs of a pair may differ in length: what is at a symbol that one of them
lacks is left as it is.

Shapes: N pairs, T tokens, O values of the output, D width of the residual stream.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from inversionview_jax.benchmarks.scoreboard import runs
from inversionview_jax.benchmarks.scoreboard.answers import Answers, Component
from inversionview_jax.benchmarks.scoreboard.runs import Change, Ran
from inversionview_jax.measures.rates import auc
from inversionview_jax.targets import Target

# Share of the change of the output from which a node or an edge counts as part of the circuit. Compiled programs have no small effects, only rare
# ones (a bracket that decides one text in a hundred), above 1e-7 of rounding.
THRESHOLD = 1e-3
_ROUNDING = 1e-5  # of an activation's change: smaller ones are what float32 leaves
_OF_NODES, _OF_EDGES = 400, 100  # pairs whose output is read at a symbol; there are ten times as many edges

Edge = tuple[Component, Component]
Scores = dict[int, dict[Component, float]]  # symbol of the output -> component -> score


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of inputs of a program.

  Attributes:
    clean, corrupted: int32[N, T].
    symbol: int[N], the symbol at which the output is read.
    shortest: int[N], symbols that both have.
  """

  clean: np.ndarray
  corrupted: np.ndarray
  symbol: np.ndarray
  shortest: np.ndarray

  @classmethod
  def of(cls, answers: Answers, seed: int, each: int) -> "Pairs":
    """`each` pairs for every symbol at which the output takes several values.

    The values of the clean inputs are drawn evenly: with random ones a rare output would hardly be seen. Of the corrupted inputs one half is
    random; the other is as near as there is, a symbol or two away, so that what changes is not all at once.
    """
    rng, rows = np.random.default_rng(seed), []
    label = answers.task.program.expressions[-1].label
    for symbol in range(answers.longest):
      output = answers.values[:, answers.names.index(answers.variable(label, symbol))]
      known = np.flatnonzero(answers.having(symbol) & (output >= 0))
      different = np.unique(output[known])
      if len(different) < 2:
        continue
      for number in range(each):
        clean = rng.choice(known[output[known] == rng.choice(different)])
        others = known[known != clean]
        if number % 2:
          away = (answers.tokens[others] != answers.tokens[clean]).sum(axis=1)
          others = others[away == away.min()]
        rows.append((clean, rng.choice(others), symbol))
    table = np.array(rows, np.int64).reshape(-1, 3)
    shortest = np.minimum(answers.lengths[table[:, 0]], answers.lengths[table[:, 1]])
    return cls(answers.tokens[table[:, 0]], answers.tokens[table[:, 1]], table[:, 2], shortest)

  def columns(self, symbol: int) -> np.ndarray:
    """int[N]: the position of a symbol, -1 in pairs of which one lacks it."""
    return np.where(self.shortest > symbol, symbol + 1, -1)


@dataclasses.dataclass(frozen=True, eq=False)
class Circuit:
  """Scores of the nodes and edges of a program, for the output at each symbol.

  Attributes:
    nodes: symbol of the output -> component -> share of the output's change.
    edges: the same for (source, target); those that are not listed have 0.
    changes: the same for components, of how much the activation itself differs between the inputs of a pair: what looks at no output has.
  """

  nodes: Scores
  edges: dict[int, dict[Edge, float]]
  changes: Scores


def find(answers: Answers, seed: int = 0) -> Circuit:
  """Patches every component alone, and every component's part of what each later one reads."""
  nodes, changes = _nodes(answers, Pairs.of(answers, seed, _OF_NODES))
  return Circuit(nodes, _edges(answers, Pairs.of(answers, seed, _OF_EDGES)), changes)


def _nodes(answers: Answers, pairs: Pairs) -> tuple[Scores, Scores]:
  """Of every component the effect, and the change of its activation."""
  if not len(pairs.symbol):
    return {}, {}
  clean, corrupted = (runs.run(answers.target, tokens) for tokens in (pairs.clean, pairs.corrupted))
  output = _Output.of(pairs, clean, corrupted)
  effects: Scores = {symbol: {} for symbol in output.scale}
  changes: Scores = {symbol: {} for symbol in output.scale}
  for component in answers.components:
    delta = _delta(pairs, component, clean, corrupted)
    moved = np.abs(delta).max() > _ROUNDING
    found = output.effects(_with(answers, pairs, component, corrupted)) if moved else {}
    norms = np.linalg.norm(delta, axis=1) if moved else np.zeros(len(delta))
    for symbol in output.scale:
      effects[symbol][component] = found.get(symbol, 0.0)
      changes[symbol][component] = float(norms[pairs.symbol == symbol].mean())
  return effects, changes


def _edges(answers: Answers, pairs: Pairs) -> dict[int, dict[Edge, float]]:
  """Of every edge whose target writes something else the effect."""
  if not len(pairs.symbol):
    return {}
  clean, corrupted = (runs.run(answers.target, tokens) for tokens in (pairs.clean, pairs.corrupted))
  output = _Output.of(pairs, clean, corrupted)
  edges: dict[int, dict[Edge, float]] = {symbol: {} for symbol in output.scale}
  for source in answers.components:
    delta = _delta(pairs, source, clean, corrupted)
    if np.abs(delta).max() > _ROUNDING:
      for target, scores in _edges_from(answers, pairs, source, delta, clean, output):
        for symbol, value in scores.items():
          edges[symbol][source, target] = value
  return edges


@dataclasses.dataclass(frozen=True, eq=False)
class _Output:
  """How much an edit changes the output at each pair's symbol, as a share of the difference between its two inputs."""

  pairs: Pairs
  clean: np.ndarray  # float32[N, O]
  scale: dict[int, float]

  @classmethod
  def of(cls, pairs: Pairs, clean: Ran, corrupted: Ran) -> "_Output":
    one, other = (ran.logits[np.arange(len(pairs.symbol)), pairs.symbol + 1] for ran in (clean, corrupted))
    difference = np.linalg.norm(other - one, axis=1)
    symbols = sorted(set(pairs.symbol.tolist()))
    return cls(pairs, one, {s: float(difference[pairs.symbol == s].mean()) for s in symbols})

  def effects(self, ran: Ran) -> dict[int, float]:
    """Symbol -> the mean share."""
    now = ran.logits[np.arange(len(self.pairs.symbol)), self.pairs.symbol + 1]
    change = np.linalg.norm(now - self.clean, axis=1)
    # A model whose output never differs has no scale; then nothing changes it.
    return {s: float(change[self.pairs.symbol == s].mean()) / max(scale, 1e-9) for s, scale in self.scale.items()}


def _at(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """float32[N, T, D] -> [N, D] at int[N] positions; anything where there is none."""
  return values[np.arange(len(columns)), np.maximum(columns, 0)]


def _delta(pairs: Pairs, component: Component, clean: Ran, corrupted: Ran) -> np.ndarray:
  """float32[N, D]: what the component writes more in the corrupted input; 0 where one input lacks its position."""
  columns = pairs.columns(component.symbol)
  one, other = (_at(ran.written(component.site), columns) for ran in (clean, corrupted))
  return np.where(columns[:, None] >= 0, other - one, 0)


def _with(answers: Answers, pairs: Pairs, component: Component, source: Ran) -> Ran:
  """The clean inputs with the activation of a component as it is in another run of N inputs."""
  columns = pairs.columns(component.symbol)
  value = _at(source.written(component.site), columns)
  kind = "mlp" if component.head < 0 else "head"
  return runs.run(answers.target, pairs.clean, Change(kind, component.layer, max(component.head, 0), columns, value))


def _edges_from(
  answers: Answers, pairs: Pairs, source: Component, delta: np.ndarray, clean: Ran, output: _Output
) -> Iterator[tuple[Component, dict[int, float]]]:
  """Every later component that reads what the source writes, and symbol -> the effect of that edge."""
  columns = pairs.columns(source.symbol)
  for layer in range(source.layer, answers.target.config.n_layers):
    for kind in ("pre", "mid"):
      if layer == source.layer and (kind == "pre" or source.head < 0):
        continue  # the heads of a layer come first, then its MLP
      if not _reads(answers.target, layer, kind, delta):
        continue
      ran = runs.run(answers.target, pairs.clean, Change(kind, layer, 0, columns, delta))
      for target in _readers(answers, layer, kind, source):
        there = pairs.columns(target.symbol)
        before, now = (_at(one.written(target.site), there) for one in (clean, ran))
        if np.abs(np.where(there[:, None] >= 0, now - before, 0)).max() > _ROUNDING:
          yield target, output.effects(_with(answers, pairs, target, ran))


def _reads(target: Target, layer: int, kind: str, delta: np.ndarray) -> bool:
  """Whether queries, keys or values of a layer's heads, or its MLP, see any of this in the stream, which no norm divides: float32[N, D]."""
  block = target.params[f"blocks_{layer}"]
  parts = [block["mlp"]["fc"]] if kind == "mid" else [block["attn"][name] for name in "qkv"]
  return any(np.abs(delta @ np.asarray(part["kernel"])).max() > _ROUNDING for part in parts)


def _readers(answers: Answers, layer: int, kind: str, source: Component) -> Sequence[Component]:
  """The heads of a layer at all positions, or its MLP at the source's."""
  if kind == "mid":
    return [Component(layer, -1, source.symbol)]
  return [component for component in answers.components if component.layer == layer and component.head >= 0]


@dataclasses.dataclass(frozen=True)
class Found:
  """Scores against the truth, over all outputs.

  Attributes:
    auroc: that a true one scores above another, ties counting half; None where there are only true ones, or none.
    right, found, true: how many above the threshold are true, how many there are, how many are true.
    misses: those on one side only, as text.
  """

  auroc: float | None
  right: int
  found: int
  true: int
  misses: tuple[str, ...]


def of_nodes(answers: Answers, scores: Scores) -> Found:
  """Nodes against those that the program's graph leads to, from the output at each symbol that was read."""
  truth = {symbol: answers.circuit(symbol)[0] for symbol in scores}
  return _compared({(s, one): value for s, each in scores.items() for one, value in each.items()},
                   {(s, one) for s, each in truth.items() for one in each}, 0)  # fmt: skip


def of_edges(answers: Answers, scores: dict[int, dict[Edge, float]]) -> Found:
  """Edges against those of the program's graph; every pair that the architecture allows counts."""
  truth = {(s, one) for s in scores for one in answers.circuit(s)[1]}
  known = {(s, one): value for s, each in scores.items() for one, value in each.items()}
  return _compared(known, truth, len(scores) * _possible(answers) - len(known.keys() | truth))


def _possible(answers: Answers) -> int:
  """Pairs of a component and a later one that reads the stream where it writes."""
  c, size = answers.target.config, answers.longest
  reached = size * (size + 1) // 2 if c.causal else size * size
  from_layer = [(c.n_heads + 1) * reached * c.n_heads + (c.n_heads + 1) * size] * (c.n_layers)
  later = sum(layer * count for layer, count in enumerate(from_layer))
  return later + c.n_layers * c.n_heads * size


def _compared(scores: dict, truth: set, silent: int) -> Found:
  """Scores against a truth; `silent` more are neither scored nor true."""
  inside = np.array([scores.get(one, 0.0) for one in truth])
  outside = np.concatenate([[value for one, value in scores.items() if one not in truth], np.zeros(max(silent, 0))])
  found = {one for one, value in scores.items() if value > THRESHOLD}
  misses = [f"{_text(one)} is not found ({scores.get(one, 0.0):.3f})" for one in sorted(truth - found)]
  misses += [f"{_text(one)} is found ({scores[one]:.3f})" for one in sorted(found - truth)]
  return Found(auc(inside, outside), len(found & truth), len(found), len(truth), tuple(misses))


def _text(one: tuple) -> str:
  symbol, what = one
  return f"{what if isinstance(what, Component) else ' -> '.join(map(str, what))} for i{symbol}"
