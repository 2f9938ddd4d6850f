"""Path patching between the nodes of a circuit: what one node's write does to the answer through one input of another.

The clean run goes on with everything as it is, but one input of the receiver (a head's queries, keys or values, or an MLP's input) reads a
residual stream in which the sender's write is that of the corrupted input. Only the receiver's own output at its own positions changes with
it; what lies behind the receiver reacts to that (Wang et al., 2022, "Interpretability in the wild", path patching). All of it is measured on
the target; a linear estimate, the receiver's measured change times the gradient of the logit difference by its output, only chooses which of
many edges are worth it.

Shapes: N pairs, B pairs of a chunk, T tokens.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from inversionview_jax.causal.circuits import paths
from inversionview_jax.causal.circuits.ablation import Ablation
from inversionview_jax.causal.circuits.nodes import Grid, Node
from inversionview_jax.causal.estimates import Estimate, share
from inversionview_jax.devices import parallel

LOGITS = "logits"
WAYS = ("q", "k", "v")


@dataclasses.dataclass(frozen=True)
class Edge:
  """The path from a node, or from the embedding at a position, into another node or the logits.

  Attributes:
    source: name of the sender; "embed@F1" for an embedding.
    target: name of the receiver, or "logits".
    through: "q", "k" or "v" of a head, "in" of an MLP, "out" of the logits.
    effect: share of the whole change of the answer that comes this way.
  """

  source: str
  target: str
  through: str
  effect: Estimate


@dataclasses.dataclass(frozen=True)
class _Sender:
  """A node, or the embedding at the positions of a group."""

  node: Node | None
  group: int

  def arrays(self) -> dict[str, np.int32]:
    layer, part = (-1, 0) if self.node is None else (self.node.layer, self.node.part)
    return {name: np.int32(x) for name, x in (("layer", layer), ("part", part), ("group", self.group))}


@dataclasses.dataclass(frozen=True)
class _Path:
  sender: _Sender
  receiver: Node | None  # None: the logits
  through: str


def find_edges(ablation: Ablation, nodes: Sequence[Node], most: int = 300, least: float = 0.01) -> list[Edge]:
  """The edges between these nodes, the embeddings and the logits, strongest first.

  Args:
    ablation: of the pairs that are patched.
    nodes: of the circuit.
    most: how many edges into nodes are measured; where there are more, those with the largest linear estimate.
    least: edges whose effect is smaller, as a share, are left out.
  """
  grid = ablation.grid
  clean, corrupted = ablation.whole()
  every = possible_paths(grid, nodes)
  inner = [path for path in every if path.receiver is not None]
  chunks = _chunks(ablation)
  if len(inner) > most:
    estimates = _estimates(ablation, chunks[0], inner)
    inner = [inner[i] for i in sorted(np.argsort(-np.abs(estimates), kind="stable")[:most])]
  inner += [path for path in every if path.receiver is None]
  parts = [_measured(ablation, chunk, inner) for chunk in chunks]
  patched = np.concatenate(parts, axis=1)[:, : len(grid)].astype(np.float64)
  edges = []
  for path, values in zip(inner, patched, strict=True):
    effect = share(clean - values, clean - corrupted)
    if effect is not None and abs(effect.mean) >= least:
      edges.append(Edge(*_names(grid, path), path.through, effect))
  return sorted(edges, key=lambda edge: -abs(edge.effect.mean))


def _names(grid: Grid, path: _Path) -> tuple[str, str]:
  node = path.sender.node
  source = f"embed@{grid.labels[path.sender.group]}" if node is None else node.name
  return source, LOGITS if path.receiver is None else path.receiver.name


def possible_paths(grid: Grid, nodes: Sequence[Node]) -> list[_Path]:
  """All paths that the architecture has: from earlier parts, at the same position but for keys and values."""
  heads = grid.config.n_heads
  senders = [_Sender(None, group) for group in grid.differing]
  senders += [_Sender(node, node.group) for node in nodes]
  read = set(np.unique(grid.group[np.arange(len(grid)), grid.read_at]).tolist())
  every = []
  for receiver in nodes:
    for sender in senders:
      if sender.node is not None and not _before(grid, sender.node, receiver):
        continue
      ways = ("in",) if receiver.part == heads else WAYS
      same = sender.group == receiver.group
      seen = same or _can_see(grid, receiver.group, sender.group)
      every += [_Path(sender, receiver, way) for way in ways if same or (way in "kv" and seen)]
  return every + [_Path(sender, None, "out") for sender in senders if sender.group in read]


def _can_see(grid: Grid, receiver: int, sender: int) -> bool:
  """Whether in some pair a position of one group attends to one of the other."""
  if not grid.config.causal:
    return True
  position = np.arange(grid.group.shape[1])
  last = np.where(grid.group == receiver, position, -1).max(axis=1)
  first = np.where(grid.group == sender, position, len(position)).min(axis=1)
  return bool((first <= last).any())


def _before(grid: Grid, sender: Node, receiver: Node) -> bool:
  """Whether what the sender writes is in the residual stream that the receiver reads."""
  if sender.layer != receiver.layer:
    return sender.layer < receiver.layer
  return sender.part < grid.config.n_heads <= receiver.part and not grid.config.parallel


@dataclasses.dataclass(frozen=True, eq=False)
class _Chunk:
  """Pairs on the devices, and the activations of both of their runs (`paths.captures`)."""

  rows: dict
  runs: dict


def _chunks(ablation: Ablation) -> list[_Chunk]:
  """All pairs in chunks of one size; the last one is filled up with copies of its first pair."""
  size, chunks = min(ablation.chunk(), _fitting(ablation)), []
  program = paths.captures(ablation.target.module, ablation.mesh)
  for start in range(0, len(ablation.grid), size):
    rows = {name: parallel.pad_rows(x[start : start + size], size) for name, x in ablation.columns().items()}
    shard = ablation.shard(rows)
    chunks.append(_Chunk(shard, program(ablation.params, shard)))
  ablation.spend(2 * len(ablation.grid))
  return chunks


def _fitting(ablation: Ablation) -> int:
  """Pairs whose captured activations and senders' writes take about a gigabyte, a multiple of the devices."""
  config, length = ablation.target.config, ablation.grid.clean.shape[1]
  each = 4 * length * config.d_model * (8 * config.n_layers + 128)
  devices = ablation.devices
  return devices * max(1, min(2**30 // each, -(-len(ablation.grid) // devices)))


def _changes(ablation: Ablation, chunk: _Chunk, every: Sequence[_Path]) -> dict[_Sender, Any]:
  """What each sender's corrupted write changes in the residual stream, float[B, T, D]."""
  program = paths.sender_change(ablation.target.module, ablation.mesh)
  return {
    sender: program(ablation.params, sender.arrays(), chunk.rows, chunk.runs)
    for sender in dict.fromkeys(path.sender for path in every)
  }


def _outputs(ablation: Ablation, chunk: _Chunk, every: Sequence[_Path]) -> Iterator[tuple[int, Any]]:
  """The index of each path into a node, and the receiver's output with it patched: float[B, T, K], or float[B, T, D] of an MLP."""
  module, mesh = ablation.target.module, ablation.mesh
  changes = _changes(ablation, chunk, every)
  made: dict[tuple, Any] = {}
  for i, path in enumerate(every):
    if path.receiver is None:
      continue
    layer, key = path.receiver.layer, (path.sender, path.receiver.layer, path.through == "in")
    if key not in made:
      made = {key: paths.receiver_outputs(module, mesh, layer, path.through == "in")(
        ablation.params, chunk.runs, changes[path.sender]
      )}  # fmt: skip
    out = made[key]
    yield i, out if path.through == "in" else paths.of_head(out, WAYS.index(path.through), path.receiver.part)


def _by_receiver(every: Sequence[_Path]) -> list[int]:
  """The order in which one output serves several paths: by sender and layer."""

  def key(i: int):
    path = every[i]
    receiver = (-1, 0) if path.receiver is None else (path.receiver.layer, path.receiver.part)
    node = path.sender.node
    return receiver[0], path.through == "in", path.sender.group, () if node is None else node.index, receiver[1]

  return sorted(range(len(every)), key=key)


def _measured(ablation: Ablation, chunk: _Chunk, every: Sequence[_Path]) -> np.ndarray:
  """float32[paths, B]: the logit difference with each path patched."""
  module, mesh, order = ablation.target.module, ablation.mesh, _by_receiver(every)
  ordered = [every[i] for i in order]
  found = np.zeros((len(every), len(chunk.rows["clean"])), np.float32)
  ablation.spend(len(every) * len(chunk.rows["clean"]))

  def done() -> None:
    ablation.progress(len(chunk.rows["clean"]))

  for at, out in _outputs(ablation, chunk, ordered):
    receiver = ordered[at].receiver
    program = paths.patched(module, mesh, ordered[at].through == "in")
    found[order[at]] = parallel.fetch(program(ablation.params, _address(receiver), chunk.rows, out))
    done()
  into_logits = [i for i, path in enumerate(every) if path.receiver is None]
  changes = _changes(ablation, chunk, [every[i] for i in into_logits])
  program = paths.patched_logits(module, mesh)
  for i in into_logits:
    found[i] = parallel.fetch(program(ablation.params, chunk.rows, chunk.runs, changes[every[i].sender]))
    done()
  return found


def _estimates(ablation: Ablation, chunk: _Chunk, every: Sequence[_Path]) -> np.ndarray:
  """float64[paths]: the sum over pairs of each receiver's change times the gradient of the logit difference by its output."""
  module, mesh, order = ablation.target.module, ablation.mesh, _by_receiver(every)
  ordered = [every[i] for i in order]
  gradients = paths.gradients(module, mesh)(ablation.params, chunk.rows)
  ablation.spend(3 * len(chunk.rows["clean"]))
  found: list[tuple[int, Any]] = []
  for at, out in _outputs(ablation, chunk, ordered):
    program: Callable = paths.estimate(mesh, ordered[at].through == "in")
    found.append((order[at], program(_address(ordered[at].receiver), chunk.rows, chunk.runs, gradients, out)))
  values = np.zeros(len(every))
  for i, value in found:
    values[i] = float(parallel.fetch(value))
  return values


def _address(node: Node | None) -> dict[str, np.int32]:
  layer, part, group = node.index if node is not None else (0, 0, 0)
  return {name: np.int32(x) for name, x in (("layer", layer), ("part", part), ("group", group))}
