"""What a compiled program says about its own transformer: the variable that each head and MLP writes at each position, and which of them others read.

A component is a head or an MLP at one position. Its variable there is the value of a RASP expression at that symbol. The program's own graph
says which values it is computed from: of the same symbol for an elementwise expression, of others where a selector looks at them.

Shapes: N inputs, V variables, I symbols of the longest input, L layers, H heads, T tokens.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.benchmarks.scoreboard import partitions, runs
from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained.tracr import CompiledProgram
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target, load_target
from inversionview_jax.tasks.program_task import ProgramTask
from inversionview_jax.tasks.programs import PREFIX, is_program, rasp

_WIDTH = "_selector_width_attn_output"  # Tracr's label of what the head of a selector's width writes: 1 / (1 + width)
_ROUNDING = (
  1e-6  # of the norm of the residual stream: a head that writes nothing writes what float32 leaves of it, 6e-8
)


@dataclasses.dataclass(frozen=True, order=True)
class Component:
  """A head or an MLP at one position.

  Attributes:
    layer: its layer.
    head: its number; -1 for the MLP.
    symbol: the position, as RASP counts the symbols: BOS is in front of 0.
  """

  layer: int
  head: int
  symbol: int

  @property
  def site(self) -> Site:
    """Of the head or the MLP."""
    return Site("mlp", self.layer) if self.head < 0 else Site("head", self.layer, self.head)

  @property
  def column(self) -> int:
    """Index of the position among the tokens."""
    return self.symbol + 1

  def __str__(self) -> str:
    """Such as "a0.0@i2"."""
    return f"{self.site.short}@i{self.symbol}"


@dataclasses.dataclass(frozen=True, eq=False)
class Answers:
  """A compiled program with the values of its expressions on many inputs.

  Attributes:
    target, task: the compiled program.
    index: int64[N], the inputs: all of them, or a sample.
    tokens: int32[N, T], of these.
    names: V names of variables, such as "hist_1_at_2"; an expression at a symbol.
    values: int32[N, V], of the variables; -1 behind the end of an input.
    complete: whether these are all inputs of the task.
  """

  target: Target
  task: ProgramTask
  index: np.ndarray
  tokens: np.ndarray
  names: tuple[str, ...]
  values: np.ndarray
  complete: bool

  @classmethod
  def of(cls, target: Target, most: int, seed: int = 0) -> "Answers":
    """The answers of a compiled program, on all of its inputs or on `most` random ones.

    Raises:
      InversionViewError: a target that was not compiled from a program, or a selector that is more than one comparison.
    """
    task = target.resolve_task()
    if target.program is None or not isinstance(task, ProgramTask):
      raise InversionViewError(
        f"the scoreboard needs programs that say what each part writes, such as tracr:hist; {target.name!r} is none"
      )
    complete = task.num_inputs <= most
    index = (
      np.arange(task.num_inputs)
      if complete
      else np.sort(np.random.default_rng(seed).integers(task.num_inputs, size=most))
    )
    tokens = task.tokens(index)
    features = task.features(tokens)
    made = cls(target, task, index, tokens, tuple(features), np.stack(list(features.values()), axis=1), complete)
    made._find_parents()  # refuses what is not handled
    return made

  @property
  def longest(self) -> int:
    """I, the most symbols of an input."""
    return self.task.program.longest

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """int64[N], symbols of each input."""
    return (self.tokens == self.task.tokenizer.eos_id).argmax(axis=1) - 1

  def having(self, symbol: int) -> np.ndarray:
    """bool[N]: the inputs with a symbol at this place."""
    return self.lengths > symbol

  def symbols(self, symbol: int) -> np.ndarray:
    """int32[N]: the tokens at this place, of the inputs that have it."""
    return self.tokens[self.having(symbol)][:, symbol + 1]

  @functools.cached_property
  def _labels(self) -> tuple[str, ...]:
    return tuple(node.label for node in self.task.program.expressions)

  def variable(self, label: str, symbol: int) -> str:
    """The name of the variable that is this expression at this symbol."""
    return self.names[self._labels.index(label.removesuffix(_WIDTH)) * self.longest + symbol]

  @functools.cached_property
  def components(self) -> tuple[Component, ...]:
    """All heads and MLPs at all symbols, those that write nothing included."""
    c = self.target.config
    return tuple(
      Component(layer, head, symbol)
      for layer in range(c.n_layers)
      for head in range(-1, c.n_heads)
      for symbol in range(self.longest)
    )

  @property
  def _program(self) -> CompiledProgram:
    assert self.target.program is not None
    return self.target.program

  @functools.cached_property
  def _writes(self) -> dict[str, dict[str, set[str]]]:
    """Site -> label of an expression (or of a selector's width, as a head writes it) -> the labels of residual dimensions it has there."""
    return {
      # An MLP takes the head's 1 / (1 + width) out of the residual stream again; nobody reads that.
      site: {
        base: found for base, found in self._grouped(labels).items() if site[0] == "a" or not base.endswith(_WIDTH)
      }
      for site, labels in self._program.writes.items()
    }

  def _grouped(self, labels: Sequence[str]) -> dict[str, set[str]]:
    known = {label for name in self._labels for label in (name, name + _WIDTH)}
    out: dict[str, set[str]] = {}
    for label in labels:
      base = label if label in known else label.rsplit(":", 1)[0]
      if base in known:  # not the indices and the constant
        out.setdefault(base, set()).add(label)
    return out

  def written(self, component: Component) -> tuple[str, ...]:
    """The variables that it writes and that are not constant over the inputs with this symbol, one of those that split them alike."""
    parts = self.partitions(component.symbol)
    names = {self.variable(label, component.symbol): None for label in self._writes[component.site.short]}
    kept: dict[bytes, str] = {}
    for name in names:
      if parts[name].any():
        kept.setdefault(parts[name].tobytes(), name)
    return tuple(kept.values())

  def expressions(self, component: Component) -> tuple[str, ...]:
    """Labels of the expressions that it writes, constant or not."""
    return tuple(dict.fromkeys(label.removesuffix(_WIDTH) for label in self._writes[component.site.short]))

  def partitions(self, symbol: int) -> Mapping[str, np.ndarray]:
    """Variable -> its partition of the inputs with a symbol at this place, int32[N]; of a constant all zeros."""
    return self._partitions[symbol]

  @functools.cached_property
  def _partitions(self) -> list[dict[str, np.ndarray]]:
    return [
      {
        name: partitions.partition(column)
        for name, column in zip(self.names, self.values[self.having(symbol)].T, strict=True)
      }
      for symbol in range(self.longest)
    ]

  def candidates(self, symbol: int) -> tuple[str, ...]:
    """What a component at this symbol can write: every expression at every symbol, but constants and doubles.

    Of variables that split the inputs with this symbol alike it is one, the symbol's own where there is one.
    """
    return self._candidates[symbol]

  @functools.cached_property
  def _candidates(self) -> list[tuple[str, ...]]:
    out = []
    for symbol, parts in enumerate(self._partitions):
      kept: dict[bytes, str] = {}
      for name in sorted(self.names, key=lambda name: not name.endswith(f"_at_{symbol}")):
        if parts[name].any():
          kept.setdefault(parts[name].tobytes(), name)
      out.append(tuple(kept.values()))
    return out

  @functools.cached_property
  def _parents(self) -> dict[str, tuple[tuple[str, str, Any], ...]]:
    return self._find_parents()

  def _find_parents(self) -> dict[str, tuple[tuple[str, str, Any], ...]]:
    """Label that is written -> (label that it is computed from, how, its selector): of the "same" symbol, as "query", "key" or "value" of a head."""
    r = rasp()
    out: dict[str, tuple[tuple[str, str, Any], ...]] = {}
    for node in self.task.program.expressions:
      if isinstance(node, r.SelectorWidth):
        out[node.label] = ((node.label + _WIDTH, "same", None),)
        out[node.label + _WIDTH] = self._selected(node.selector)
      elif isinstance(node, r.Aggregate):
        out[node.label] = (*self._selected(node.selector), (node.sop.label, "value", node.selector))
      else:
        out[node.label] = tuple((child.label, "same", None) for child in node.children)
    return out

  def _selected(self, selector: Any) -> tuple[tuple[str, str, Any], ...]:
    if not isinstance(selector, rasp().Select):
      raise InversionViewError(
        f"{self.task.name}: the scoreboard does not handle the selector {selector.label} ({type(selector).__name__})"
      )
    return (selector.queries.label, "query", selector), (selector.keys.label, "key", selector)

  @functools.cached_property
  def ran(self) -> runs.Ran:
    """The target on the inputs."""
    return runs.run(self.target, self.tokens)

  def activations(self, component: Component) -> np.ndarray:
    """float32[N, D]: of the inputs that have its position; what is rounding of the residual stream is exactly 0."""
    written = self.ran.written(component.site)[self.having(component.symbol), component.column]
    return np.where(np.linalg.norm(written, axis=1, keepdims=True) > self._rounding, written, 0)

  @functools.cached_property
  def _rounding(self) -> float:
    return float(_ROUNDING * np.linalg.norm(self.ran.stream, axis=-1).max())

  def _sources(self, target: Component, seen: bool) -> list[tuple[Component, str, str]]:
    """(component, label that it writes, label of the target that is computed from it) of everything that varies and that the target reads."""
    if (target, seen) not in self._known_sources:
      self._known_sources[target, seen] = self._find_sources(target, seen)
    return self._known_sources[target, seen]

  @functools.cached_property
  def _known_sources(self) -> dict[tuple[Component, bool], list[tuple[Component, str, str]]]:
    return {}

  def _find_sources(self, target: Component, seen: bool) -> list[tuple[Component, str, str]]:
    short, found = target.site.short, []
    for own in self._writes[short]:
      for label, how, selector in self._parents.get(own, ()):
        for source in self._writers(label, self._symbols(target, how, selector, seen)):
          if source.layer > target.layer or (source.layer == target.layer and not (source.head >= 0 > target.head)):
            continue
          if self._reads(short, how) & self._writes[source.site.short][label]:
            found.append((source, label, own))
    return found

  def _reads(self, short: str, how: str) -> set[str]:
    name = short if how == "same" else f"{short} {how[0]}"
    return set(self._program.reads[name])

  def _symbols(self, target: Component, how: str, selector: Any, seen: bool) -> list[int]:
    """The symbols whose values are read: what a selector's outcome depends on, and what it selects for some values."""
    if how == "same":
      return [target.symbol]
    last = target.symbol if self.target.config.causal else self.longest - 1
    looks = [self._looks(selector, key, target.symbol, seen) for key in range(last + 1)]
    if how == "query":
      return [target.symbol] if any("query" in found for found in looks) else []
    return [key for key, found in enumerate(looks) if how in found]

  def _looks(self, selector: Any, key: int, query: int, seen: bool) -> set[str]:
    """Of a selector at two symbols: "key" and "query" if its outcome depends on them, "value" if it selects for some values that they take."""

    def holds(u: Any, q: Any) -> bool:
      return u is not None and q is not None and bool(selector.predicate(u, q))

    keys, asked = self._taken(selector.keys, key, seen), self._taken(selector.queries, query, seen)
    table = np.array([[holds(u, q) for q in asked] for u in keys]).reshape(len(keys), len(asked))
    depends = {
      "key": (table != table[:1]).any(),
      "query": (table != table[:, :1]).any(),
      "value": table.any(),
    }
    return {name for name, true in depends.items() if true}

  def _taken(self, node: Any, symbol: int, seen: bool) -> list[Any]:
    """The values, as RASP has them, that an expression takes at a symbol over the inputs (`seen`), or could take anywhere."""
    if isinstance(node, rasp().IndicesType):
      return [symbol]
    number = self._labels.index(node.label)
    if not seen:
      return list(self.task.program.spaces[number])
    rows = np.flatnonzero(self.having(symbol))
    codes, first = np.unique(self.values[rows, number * self.longest + symbol], return_index=True)
    # One input for each value; -1 is where the program is not defined.
    chosen = [row for code, row in zip(codes, rows[first], strict=True) if code >= 0]
    evaluated = [self._evaluated(int(row))[number] for row in chosen]
    return [values[symbol] for values in evaluated if values is not None]

  def _evaluated(self, row: int) -> tuple[Any, ...]:
    if row not in self._known_values:
      self._known_values[row] = self.task.program.evaluate(self.task.symbols(self.tokens[row].tolist()))
    return self._known_values[row]

  @functools.cached_property
  def _known_values(self) -> dict[int, tuple[Any, ...]]:
    return {}

  def _writers(self, label: str, symbols: Sequence[int]) -> list[Component]:
    """The components that write this label at these symbols, where it is not constant."""
    return [component for component in self._all_writers.get(label, ()) if component.symbol in symbols]

  @functools.cached_property
  def _all_writers(self) -> dict[str, list[Component]]:
    out: dict[str, list[Component]] = {}
    for component in self.components:
      for label in self._writes[component.site.short]:
        if self.partitions(component.symbol)[self.variable(label, component.symbol)].any():
          out.setdefault(label, []).append(component)
    return out

  def circuit(self, symbol: int) -> tuple[frozenset[Component], frozenset[tuple[Component, Component]]]:
    """The components, and the edges between them, that the output at one symbol is computed from by what varies over the inputs.

    A selector looks at what its outcome depends on: for components by the values that there are at these symbols, which is what they are patched
    with. For edges by all values of the expressions: where only one path into a part is patched, what it writes need not occur in any input.
    """
    return self._reached(symbol, True)[0], self._reached(symbol, False)[1]

  def _reached(self, symbol: int, seen: bool) -> tuple[frozenset[Component], frozenset[tuple[Component, Component]]]:
    output = self._labels[-1]
    pending = [(component, output) for component in self._writers(output, [symbol])]
    done, edges = set(pending), set()
    while pending:
      target, written = pending.pop()
      for source, label, own in self._sources(target, seen):
        if own != written:
          continue
        edges.add((source, target))
        if (source, label) not in done:
          done.add((source, label))
          pending.append((source, label))
    return frozenset(component for component, _ in done), frozenset(edges)


def full_name(name: str) -> str:
  """Of a program: "tracr:hist" for "hist"."""
  return name if is_program(name) else PREFIX + name


def load(name: str, most: int, seed: int = 0) -> Answers:
  """The answers of a program by its name, such as "hist", "tracr:hist" or "tracr:hist,max_seq_len=6".

  Raises:
    InversionViewError: no such program, or see `Answers.of`.
  """
  return Answers.of(load_target(full_name(name)), most, seed)
