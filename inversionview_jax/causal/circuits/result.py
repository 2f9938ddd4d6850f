"""A circuit as plain data: nodes with what they carry, edges, and the curve of faithfulness over size.

Shapes: V nodes that can reach the answer.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

from inversionview_jax._version import __version__
from inversionview_jax.causal.circuits import contents as what
from inversionview_jax.causal.circuits.contents import Carried
from inversionview_jax.causal.circuits.edges import Edge
from inversionview_jax.causal.circuits.search import Point, point_from_data, point_to_data
from inversionview_jax.causal.estimates import Estimate, read_estimate
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.preimage import Preimage
from inversionview_jax.tables import ShowsTable, Table, plus_minus

FORMAT, FORMAT_VERSION = "inversionview-circuit", 1
_SHOWN = 20  # nodes in a table


@dataclasses.dataclass(frozen=True)
class CircuitNode:
  """A head or an MLP at a position.

  Attributes:
    name: such as "a0.3@=".
    site, position: short name of the site, and the position's label.
    layer, head: where it lies; the head is None for an MLP.
    effect: share of the change of the answer that it brings alone, patched from the corrupted input; None where it was not measured.
    attribution: the same by integrated gradients from everything ablated to nothing.
    order: 1 for the node that left last when nodes were removed.
    carried: what its preimages share, by certainty times bits.
    bits: of information, mean over queries and its standard error; None where it was not measured.
    queries: how many activations were read.
    problem: why the reading cannot be relied on; "" if it can.
  """

  name: str
  site: str
  position: str
  layer: int
  head: int | None
  effect: Estimate | None
  attribution: float
  order: int
  carried: tuple[Carried, ...] = ()
  bits: tuple[float, float] | None = None
  queries: int = 0
  problem: str = ""

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    data: dict[str, Any] = {"name": self.name, "site": self.site, "kind": "mlp" if self.head is None else "head"}
    data |= {"layer": self.layer, "head": self.head, "position": self.position}
    data |= {"effect": self.effect and self.effect.to_data(), "attribution": self.attribution, "order": self.order}
    data |= {"encodes": [one.to_dict() for one in self.carried], "queries_read": self.queries, "problem": self.problem}
    return data | {"bits": self.bits and {"mean": self.bits[0], "se": self.bits[1]}}

  @classmethod
  def from_dict(cls, data: Mapping) -> "CircuitNode":
    """A node as `to_dict` wrote it."""
    bits = data.get("bits")
    own = {name: data[name] for name in ("name", "site", "position", "layer", "head", "order", "problem")}
    return cls(
      **own,
      effect=Estimate.from_data(data["effect"]),
      attribution=float(data["attribution"]),
      carried=tuple(what.from_dict(one) for one in data["encodes"]),
      bits=None if bits is None else (bits["mean"], bits["se"]),
      queries=int(data.get("queries_read", 0)),
    )


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Circuit(ShowsTable):
  """The smallest set of heads and MLPs at positions that keeps a target's answer while everything else is resample-ablated.

  Attributes:
    target, task: names.
    answer: label of the answer token that is predicted.
    example: the clean and the corrupted text of the first pair.
    pairs: on which it was measured, which the search did not see.
    positions: labels in the order of the text.
    clean, corrupted: logit differences of the whole model, and with all nodes ablated.
    size: number of nodes that were kept.
    faithfulness: (LD(circuit) - LD(all ablated)) / (LD(model) - LD(all ablated)), LD the mean logit difference.
    nodes: those of the circuit, the most important first.
    inputs: labels of the positions at which embeddings of clean and corrupted inputs differ; embeddings are never ablated.
    edges: between them, strongest first.
    curve: faithfulness over size, from 0 to all V nodes.
    cpr, cmd: the area under the curve and its distance from 1 over the share of nodes (as MIB defines them over edges).
    random_cpr, random_cmd: the same for random sets of nodes.
    effects: node name -> effect, of every node whose effect was measured.
    order: all V nodes by name, the last to leave first: the first k are the circuit of size k.
    settings: of the search.
    target_runs: how many inputs the target was run on to find and measure it, without what its nodes carry; a gradient counts three.
    architecture: what MIB's format needs of the target.
    preimages: node name -> preimages of its first queries; () of a circuit that was read from a file.
  """

  target: str
  task: str
  answer: str
  example: tuple[str, str]
  pairs: int
  positions: tuple[str, ...]
  clean: Estimate
  corrupted: Estimate
  size: int
  faithfulness: Estimate
  nodes: tuple[CircuitNode, ...]
  inputs: tuple[str, ...]
  edges: tuple[Edge, ...]
  curve: tuple[Point, ...]
  cpr: float
  cmd: float
  random_cpr: float | None
  random_cmd: float | None
  effects: dict[str, Estimate]
  order: tuple[str, ...]
  settings: dict[str, Any]
  target_runs: int
  architecture: dict[str, Any]
  preimages: dict[str, tuple[Preimage, ...]] = dataclasses.field(default_factory=dict)

  @property
  def total_nodes(self) -> int:
    """V."""
    return len(self.order)

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    nodes = []
    for node in self.nodes:
      own = self.preimages.get(node.name, ())
      queries = [
        {
          "text": p.query.text,
          "position": p.query.position,
          "inside": len(p.inside),
          "file": preimage_file(node.name, i),
        }
        for i, p in enumerate(own)
      ]
      nodes.append(node.to_dict() | {"queries": queries})
    data: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__}
    data |= {name: getattr(self, name) for name in ("target", "task", "answer", "pairs", "total_nodes", "size")}
    data["example"] = dict(zip(("clean", "corrupted"), self.example, strict=True))
    data["positions"] = list(self.positions)
    data["logit_difference"] = {"clean": self.clean.to_data(), "corrupted": self.corrupted.to_data()}
    data |= {"faithfulness": self.faithfulness.to_data(), "nodes": nodes}
    data["inputs"] = [{"name": f"embed@{label}", "position": label} for label in self.inputs]
    data["edges"] = [dataclasses.asdict(edge) | {"effect": edge.effect.to_data()} for edge in self.edges]
    data["curve"] = [point_to_data(point) for point in self.curve]
    data |= {name: getattr(self, name) for name in ("cpr", "cmd", "random_cpr", "random_cmd")}
    data["effects"] = {name: effect.to_data() for name, effect in self.effects.items()}
    return data | {
      "order": list(self.order),
      "settings": self.settings,
      "target_runs": self.target_runs,
      "architecture": self.architecture,
    }

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything but the preimages; also written to `path`, whole or not at all."""
    text = json.dumps(self.to_dict(), allow_nan=False, indent=1, ensure_ascii=False)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  @classmethod
  def from_dict(cls, data: Mapping) -> "Circuit":
    """A circuit as `to_dict` wrote it; raises `InversionViewError` for other data."""
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
      raise InversionViewError("this is no circuit: give a circuit.json that `inversionview circuit` wrote")
    if data.get("format_version") != FORMAT_VERSION:
      raise InversionViewError(
        f"the circuit has format version {data.get('format_version')!r}; this release reads {FORMAT_VERSION}"
      )
    try:
      return _read(cls, data)
    except (KeyError, TypeError, ValueError) as error:
      raise InversionViewError(f"the circuit is damaged ({error!r}): write it again") from None

  def to_mib(self) -> dict[str, Any]:
    """The circuit in the format of the MIB benchmark's circuit track (EAP-IG's graphs): importance scores of all nodes and edges.

    MIB's nodes and edges have no positions: a part's score is that of the position where it is largest, and it is in the graph if it is in
    the circuit at some position. An edge that was not measured has score 0.
    """
    return _mib(self)

  def _table(self) -> Table:
    title = (
      f"Circuit of {self.answer or 'the answer'} in {self.target} ({self.task}): {self.size} of {self.total_nodes} nodes, "
      f"faithfulness {plus_minus(self.faithfulness.mean, self.faithfulness.se)}"
    )
    rows = []
    for node in self.nodes[:_SHOWN]:
      carried = ", ".join(
        f"{one.property}{'' if one.verdict == 'encodes' else ' (partly)'}" for one in node.carried[:3]
      )
      if carried and node.problem:
        carried += f"; {node.queries} of {self.settings.get('queries')} activations read"
      bits = "" if node.bits is None else f"{node.bits[0]:.1f}"
      effect = "" if node.effect is None else plus_minus(node.effect.mean, node.effect.se, 100, " %")
      rows.append((node.name, effect, bits, carried or node.problem or "-"))
    left = len(self.nodes) - len(rows)
    note = f"{left} more" if left else ""
    return Table(title, ("node", "effect alone", "bits", "encodes"), tuple(rows), note)


def preimage_file(name: str, number: int) -> str:
  """Where the preimage of a node's query is saved, beside circuit.json."""
  safe = "".join(c if c.isalnum() or c in "._-@" else f"_{ord(c):x}" for c in name)
  return f"preimages/{safe}.{number}.json"


def _read(cls: type[Circuit], data: Mapping) -> Circuit:
  plain = ("target", "task", "answer", "pairs", "size", "cpr", "cmd", "random_cpr", "random_cmd", "settings")
  return cls(
    **{name: data[name] for name in (*plain, "target_runs", "architecture")},
    example=(data["example"]["clean"], data["example"]["corrupted"]),
    positions=tuple(data["positions"]),
    clean=read_estimate(data["logit_difference"]["clean"]),
    corrupted=read_estimate(data["logit_difference"]["corrupted"]),
    faithfulness=read_estimate(data["faithfulness"]),
    nodes=tuple(map(CircuitNode.from_dict, data["nodes"])),
    inputs=tuple(one["position"] for one in data["inputs"]),
    edges=tuple(Edge(e["source"], e["target"], e["through"], read_estimate(e["effect"])) for e in data["edges"]),
    curve=tuple(map(point_from_data, data["curve"])),
    effects={name: read_estimate(one) for name, one in data["effects"].items()},
    order=tuple(data["order"]),
  )


def _mib(circuit: Circuit) -> dict[str, Any]:
  a = circuit.architecture
  layers, heads, parallel = a["n_layers"], a["n_heads"], a["parallel"]

  def part(name: str) -> str:  # "a0.3@=" -> "a0.h3", "embed@F1" -> "input"
    site = name.split("@", 1)[0]
    return "input" if site == "embed" else site.replace(".", ".h") if site[0] == "a" else site

  in_graph = {part(node.name) for node in circuit.nodes}
  score = {name: 0.0 for name in ["input", *(f"a{n}.h{h}" for n in range(layers) for h in range(heads))]}
  for name, effect in circuit.effects.items():
    score[part(name)] = max(score.get(part(name), 0.0), effect.mean, key=abs)
  measured: dict[str, float] = {}
  for edge in circuit.edges:
    way = f"<{edge.through}>" if edge.through in "qkv" else ""
    key = f"{part(edge.source)}->{edge.target if edge.target == 'logits' else part(edge.target)}{way}"
    measured[key] = max(measured.get(key, 0.0), edge.effect.mean, key=abs)
  nodes: dict[str, dict[str, Any]] = {"input": {"in_graph": True, "score": 1.0}}
  edges: dict[str, None] = {}
  stream = ["input"]
  for layer in range(layers):
    here = [f"a{layer}.h{head}" for head in range(heads)]
    mlp = f"m{layer}"
    for name in [*here, mlp]:
      nodes[name] = {"in_graph": name in in_graph, "score": score.get(name, 0.0)}
    receivers = [f"{name}<{way}>" for name in here for way in "qkv"]
    edges |= dict.fromkeys(f"{source}->{receiver}" for source in stream for receiver in receivers)
    edges |= dict.fromkeys(f"{source}->{mlp}" for source in [*stream, *([] if parallel else here)])
    stream += [*here, mlp]
  edges |= dict.fromkeys(f"{source}->logits" for source in stream)
  nodes["logits"] = {"in_graph": True}
  cfg = {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": parallel, "d_model": a["d_model"]}
  values = {name: {"score": measured.get(name, 0.0), "in_graph": name in measured} for name in edges}
  return {"cfg": cfg, "nodes": nodes, "edges": values}
