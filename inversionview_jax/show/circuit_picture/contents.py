"""The content of a circuit.json as checked, frozen dataclasses; what a picture does not show is left alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError

FORMAT, FORMAT_VERSION = "inversionview-circuit", 1
LOGITS = "logits"  # the target of edges to the answer
THROUGH = ("q", "k", "v", "in", "out")
KINDS = ("head", "mlp")
_MOST = 100_000  # nodes, edges, points of the curve
_REMEDY = "give the content of a circuit.json that `inversionview circuit` wrote"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over pairs of inputs with its standard error (None where it is not known)."""

  mean: float
  se: float | None = None

  def percent(self, error: bool = True) -> str:
    """As a percentage, with its standard error where that is half a percent or more."""
    spread = 100 * self.se if error and self.se is not None else 0.0
    return f"{_whole(100 * self.mean)} %" if spread < 0.5 else f"{_whole(100 * self.mean)} ± {_whole(spread)} %"


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A property that a node's activation encodes.

  Attributes:
    name: the property, with the query's value where it has one.
    rate, base, control: the share of inputs that have it inside epsilon, at random, and inside epsilon of another activation.
    verdict: "encodes" or "partly encodes".
    only, rest: share of the causal effect when only the property differs, and when everything but the property does.
  """

  name: str
  rate: float
  base: float
  control: float | None
  verdict: str
  only: float | None
  rest: float | None


@dataclasses.dataclass(frozen=True)
class Read:
  """A query at which a node was read.

  Attributes:
    text, position: the input, and the index of the token; None where it is not known.
    inside: number of members inside epsilon.
    file: of its preimage, beside the circuit's; "" where there is none.
  """

  text: str
  inside: int
  file: str
  position: int | None


@dataclasses.dataclass(frozen=True)
class Node:
  """A head or an MLP at a position; `effect` is the share of the answer's change that it alone brings when it is patched."""

  name: str
  site: str
  kind: str
  layer: int
  position: str
  effect: Estimate
  attribution: float | None
  order: int
  encodes: tuple[Encoded, ...]
  bits: Estimate | None
  queries: tuple[Read, ...]
  problem: str

  @property
  def query(self) -> Read | None:
    """The first query at which it was read."""
    return self.queries[0] if self.queries else None


@dataclasses.dataclass(frozen=True)
class Edge:
  """What a node brings to another through its queries, keys, values or input; to `LOGITS` through "out"."""

  source: str
  target: str
  through: str
  effect: Estimate


@dataclasses.dataclass(frozen=True)
class Point:
  """Faithfulness of the circuit with so many nodes, of random ones of the same size, and the node by which it grew."""

  size: int
  faithfulness: Estimate
  random: Estimate | None
  node: str


@dataclasses.dataclass(frozen=True)
class Circuit:
  """A circuit; `inputs` maps the names of the embeddings to their positions."""

  target: str
  task: str
  answer: str
  clean: str
  corrupted: str
  pairs: int
  total_nodes: int
  positions: tuple[str, ...]
  faithfulness: Estimate
  size: int
  nodes: tuple[Node, ...]
  inputs: Mapping[str, str]
  edges: tuple[Edge, ...]
  curve: tuple[Point, ...]
  cpr: float | None
  cmd: float | None
  random_cpr: float | None
  settings: Mapping[str, Any]
  target_runs: int | None
  version: str

  @property
  def title(self) -> str:
    """Names the answer and the target."""
    answer = f"{self.answer} in " if self.answer else ""
    return f"Circuit of {answer}{self.target}"

  @property
  def columns(self) -> list[str]:
    """The positions that hold a node or an embedding, in the order of the text."""
    used = dict.fromkeys([node.position for node in self.nodes] + list(self.inputs.values()))
    known = [position for position in self.positions if position in used]
    return known + [position for position in used if position not in known]

  @property
  def by_order(self) -> list[Node]:
    """The nodes, the most important first."""
    return sorted(self.nodes, key=lambda node: node.order)

  @property
  def random_faithfulness(self) -> Estimate | None:
    """That of random circuits of the chosen size."""
    return next((point.random for point in self.curve if point.size == self.size), None)


def read(table: Mapping[str, Any]) -> Circuit:
  """The circuit of a circuit.json's content.

  Raises:
    InversionViewError: another format, a newer version of it, or a part that is missing or malformed.
  """
  top = _Fields(table, "the circuit")
  name, version = top.get("format", values.text), top.get("format_version", _count)
  if name != FORMAT:
    raise InversionViewError(f"the format is {values.brief(name)}, not {FORMAT!r}; {_REMEDY}")
  if version > FORMAT_VERSION:
    raise InversionViewError(
      f"format_version {version} is newer than the {FORMAT_VERSION} this package reads; upgrade inversionview_jax"
    )
  example = _Fields(top.maybe("example", values.mapping) or {}, "example")
  circuit = Circuit(
    target=top.get("target", values.text),
    task=top.get("task", values.text),
    answer=top.maybe("answer", values.text) or "",
    clean=example.maybe("clean", values.text) or "",
    corrupted=example.maybe("corrupted", values.text) or "",
    pairs=top.get("pairs", _count),
    total_nodes=top.get("total_nodes", _count),
    positions=top.get("positions", _list_of(values.text)),
    faithfulness=top.get("faithfulness", _estimate),
    size=top.get("size", _count),
    nodes=top.get("nodes", _list_of(_node)),
    inputs=dict(top.get("inputs", _list_of(_input))),
    edges=top.get("edges", _list_of(_edge)),
    curve=tuple(sorted(top.get("curve", _list_of(_point)), key=lambda point: point.size)),
    cpr=top.maybe("cpr", _any_number),
    cmd=top.maybe("cmd", _any_number),
    random_cpr=top.maybe("random_cpr", _any_number),
    settings=top.maybe("settings", values.mapping) or {},
    target_runs=top.maybe("target_runs", _count),
    version=top.maybe("version", values.text) or "",
  )
  _check_names(circuit)
  return circuit


def _check_names(circuit: Circuit) -> None:
  """Raises `InversionViewError` for two nodes of one name, and for an edge from or to one that is not there."""
  names = [node.name for node in circuit.nodes]
  if twice := [name for name in names if names.count(name) > 1]:
    raise InversionViewError(f"two nodes are named {values.brief(twice[0])}; {_REMEDY}")
  for k, edge in enumerate(circuit.edges):
    for end, name, known in (
      ("source", edge.source, {*names, *circuit.inputs}),
      ("target", edge.target, {*names, LOGITS}),
    ):
      if name not in known:
        raise InversionViewError(f"{end} of edges[{k}], {values.brief(name)}, is not among the nodes; {_REMEDY}")


class _Fields:
  """The entries of an object, each checked when it is taken."""

  def __init__(self, table: Any, name: str):
    if not isinstance(table, Mapping):
      raise InversionViewError(f"{name} = {values.brief(table)} must be an object with keys; {_REMEDY}")
    self._table, self._name = table, name

  def get(self, key: str, check: Callable[[str, Any], T]) -> T:
    """The value of a key that must be there."""
    if key not in self._table:
      raise InversionViewError(f"{self._name} has no {key!r}; {_REMEDY}")
    return check(f"{key} of {self._name}", self._table[key])

  def maybe(self, key: str, check: Callable[[str, Any], T]) -> T | None:
    """The value of a key that may be missing or null."""
    return None if self._table.get(key) is None else self.get(key, check)


def _node(name: str, table: Any) -> Node:
  fields = _Fields(table, name)
  return Node(
    name=fields.get("name", values.text),
    site=fields.get("site", values.text),
    kind=fields.get("kind", lambda key, value: values.choice(key, value, KINDS)),
    layer=fields.get("layer", _count),
    position=fields.get("position", values.text),
    effect=fields.get("effect", _estimate),
    attribution=fields.maybe("attribution", _any_number),
    order=fields.get("order", _count),
    encodes=fields.maybe("encodes", _list_of(_encoded)) or (),
    bits=fields.maybe("bits", _estimate),
    queries=fields.maybe("queries", _list_of(_read)) or (),
    problem=fields.maybe("problem", values.text) or "",
  )


def _encoded(name: str, table: Any) -> Encoded:
  fields = _Fields(table, name)
  value = fields.maybe("query_value", values.text)
  causal = _Fields(fields.maybe("causal", values.mapping) or {}, f"causal of {name}")
  stated = fields.get("property", values.text)
  return Encoded(
    name=stated if value is None else f"{stated} = {value or '∅'}",
    rate=fields.get("rate", _any_number),
    base=fields.get("base", _any_number),
    control=fields.maybe("control", _any_number),
    verdict=fields.get("verdict", values.text),
    only=causal.maybe("only", _share),
    rest=causal.maybe("rest", _share),
  )


def _read(name: str, table: Any) -> Read:
  fields = _Fields(table, name)
  return Read(
    fields.get("text", values.text),
    fields.get("inside", _count),
    fields.maybe("file", values.text) or "",
    fields.maybe("position", _count),
  )


def _input(name: str, table: Any) -> tuple[str, str]:
  fields = _Fields(table, name)
  return fields.get("name", values.text), fields.get("position", values.text)


def _edge(name: str, table: Any) -> Edge:
  fields = _Fields(table, name)
  through = fields.get("through", lambda key, value: values.choice(key, value, THROUGH))
  return Edge(
    fields.get("source", values.text), fields.get("target", values.text), through, fields.get("effect", _estimate)
  )


def _point(name: str, table: Any) -> Point:
  fields = _Fields(table, name)
  return Point(
    fields.get("size", _count),
    fields.get("faithfulness", _estimate),
    fields.maybe("random", _estimate),
    fields.maybe("node", values.text) or "",
  )


def _estimate(name: str, table: Any) -> Estimate:
  fields = _Fields(table, name)
  return Estimate(fields.get("mean", _any_number), fields.maybe("se", _any_number))


def _share(name: str, value: Any) -> float:
  """A number, or the mean of an estimate."""
  return _estimate(name, value).mean if isinstance(value, Mapping) else _any_number(name, value)


def _any_number(name: str, value: Any) -> float:
  return values.number(name, value, -1e30, 1e30)


def _count(name: str, value: Any) -> int:
  return values.whole(name, value, 0, 2**53)


def _list_of(check: Callable[[str, Any], T]) -> Callable[[str, Any], tuple[T, ...]]:
  return lambda name, value: values.sequence(name, value, check, _MOST)


def _whole(number: float) -> str:
  """A number without decimals, and never "-0"."""
  return f"{round(number) + 0:d}"
