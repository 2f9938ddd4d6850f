"""The nodes of a circuit: a head or an MLP at a position, and what of it a set of nodes leaves alone.

Positions are grouped by the task's labels, so that "=" is one position of a node whatever its index in each text; what has no label is "rest".

Shapes: N pairs, T tokens, L layers, H heads, G groups of positions, V nodes.
"""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task
from inversionview_jax.tasks.contrast import Pairs
from inversionview_jax.tasks.pairs_file import TextPairs

REST = "rest"


@dataclasses.dataclass(frozen=True, order=True)
class Node:
  """A head or an MLP at the positions of one label.

  Attributes:
    layer: its layer.
    part: its head; for the MLP, the number of heads.
    group: of positions, an index into `Grid.labels`.
    site: short name, such as "a0.3" or "m1".
    position: the label.
  """

  layer: int
  part: int
  group: int
  site: str = dataclasses.field(compare=False)
  position: str = dataclasses.field(compare=False)

  @property
  def name(self) -> str:
    """Such as "a0.3@="."""
    return f"{self.site}@{self.position}"

  @property
  def index(self) -> tuple[int, int, int]:
    """Where it lies in an array [L, H + 1, G]."""
    return self.layer, self.part, self.group


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """Pairs of inputs whose tokens line up, and the nodes that lie between them and the answer.

  Attributes:
    clean, corrupted: int32[N, T].
    read_at: int32[N], from where the answer is predicted.
    answer, foil: int32[N], the answers of the clean and of the corrupted input.
    group: int32[N, T], the group of each position; -1 behind the one that is read, where nothing reaches the answer.
    labels: G names, in the order of the text.
    nodes: V of them, all that can reach the answer, by layer.
    config: of the target.
  """

  clean: np.ndarray
  corrupted: np.ndarray
  read_at: np.ndarray
  answer: np.ndarray
  foil: np.ndarray
  group: np.ndarray
  labels: tuple[str, ...]
  nodes: tuple[Node, ...]
  config: TransformerConfig

  @classmethod
  def of(cls, target: Target, task: Task | None, pairs: Pairs | TextPairs) -> "Grid":
    """The grid of these pairs.

    Raises:
      InversionViewError: a pair whose texts differ in length up to the position that is read, or no pair that has two answers.
    """
    pairs = _with_two_answers(pairs)
    unequal = pairs.clean_at != pairs.corrupted_at
    if unequal.any():
      i = int(np.argmax(unequal))
      raise InversionViewError(
        f"pair {i}: the answer follows position {pairs.clean_at[i]} of the clean and {pairs.corrupted_at[i]} of the corrupted input; "
        "a circuit needs pairs whose tokens line up"
      )
    length = max(pairs.clean.shape[1], pairs.corrupted.shape[1])
    clean, corrupted = (_padded(tokens, length) for tokens in (pairs.clean, pairs.corrupted))
    reach = np.asarray(pairs.clean_at)[:, None] >= np.arange(length)
    if not target.config.causal:
      reach = np.ones_like(reach)
    group, labels = _groups(task, clean, reach)
    read = np.unique(group[np.arange(len(group)), pairs.clean_at])
    read_at, answer, foil = (np.asarray(x, np.int32) for x in (pairs.clean_at, pairs.answer, pairs.foil))
    nodes = _nodes(target.config, labels, read)
    return cls(clean, corrupted, read_at, answer, foil, group, labels, nodes, target.config)

  def __len__(self) -> int:
    return len(self.clean)

  @functools.cached_property
  def by_name(self) -> dict[str, Node]:
    """Every node by its name."""
    return {node.name: node for node in self.nodes}

  @functools.cached_property
  def differing(self) -> tuple[int, ...]:
    """The groups at whose positions some pair has different tokens."""
    return tuple(np.unique(self.group[(self.clean != self.corrupted) & (self.group >= 0)]).tolist())

  def named(self, name: str) -> Node:
    """The node of a name such as "a0.3@="; raises `InversionViewError` for one that is not there."""
    if name not in self.by_name:
      raise one_of("node", name, self.by_name)
    return self.by_name[name]

  def keep(self, nodes: Iterable[Node]) -> np.ndarray:
    """bool[L, H + 1, G]: True for these nodes."""
    kept = np.zeros((self.config.n_layers, self.config.n_heads + 1, len(self.labels)), bool)
    for node in nodes:
      kept[node.index] = True
    return kept

  def of_nodes(self, values: np.ndarray) -> np.ndarray:
    """[..., L, H + 1, G] -> [..., V], in the order of `nodes`."""
    index = tuple(np.array([node.index for node in self.nodes]).T)
    return values[(..., *index)]

  def digest(self) -> str:
    """A short digest of the pairs."""
    content = b"".join(np.ascontiguousarray(x).tobytes() for x in (self.clean, self.corrupted, self.answer, self.foil))
    return hashlib.sha256(content).hexdigest()[:16]

  def __getitem__(self, rows: slice) -> "Grid":
    """The grid of some of the pairs, with the same groups and nodes."""
    per_row = ("clean", "corrupted", "read_at", "answer", "foil", "group")
    return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in per_row})

  def like(self, other: "Grid") -> "Grid":
    """This grid's pairs in the groups of another, so that one set of nodes means the same in both.

    Raises:
      InversionViewError: a label that the other grid does not have.
    """
    if missing := [label for label in self.labels if label not in other.labels]:
      raise InversionViewError(f"the position {missing[0]!r} is in some pairs only: draw more pairs")
    to = np.array([other.labels.index(label) for label in self.labels])
    group = np.where(self.group < 0, -1, to[np.maximum(self.group, 0)])
    return dataclasses.replace(self, group=group.astype(np.int32), labels=other.labels, nodes=other.nodes)


def _padded(tokens: np.ndarray, length: int) -> np.ndarray:
  return np.pad(np.asarray(tokens, np.int32), ((0, 0), (0, length - tokens.shape[1])), mode="edge")


def _with_two_answers(pairs: Pairs | TextPairs) -> Pairs | TextPairs:
  """The pairs whose inputs have different answers: the others have nothing that could be lost."""
  differ = np.asarray(pairs.answer) != np.asarray(pairs.foil)
  if not differ.any():
    raise InversionViewError("no pair has two different answers: there is nothing that a circuit could explain")
  if differ.all() or isinstance(pairs, TextPairs):
    return pairs
  return pairs[differ]


def _groups(task: Task | None, tokens: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
  """int32[N, T], and the G labels in the order in which they come on average."""
  rows: list[list[str]] = []
  for row, used in zip(tokens.tolist(), reach.sum(axis=1).tolist(), strict=True):
    labels = [] if task is None else task.labels(row)[:used]
    rows.append([label or REST for label in labels] if any(labels) else [str(i) for i in range(used)])
  places: Counter[str] = Counter()
  counts: Counter[str] = Counter()
  for labels in rows:
    for i, label in enumerate(labels):
      places[label] += i
      counts[label] += 1
  names = tuple(sorted(counts, key=lambda label: places[label] / counts[label]))
  number = {name: i for i, name in enumerate(names)}
  group = np.full(tokens.shape, -1, np.int32)
  for i, labels in enumerate(rows):
    group[i, : len(labels)] = [number[label] for label in labels]
  return group, names


def _nodes(config: TransformerConfig, labels: Sequence[str], read: np.ndarray) -> tuple[Node, ...]:
  """All nodes; of the last layer only where the answer is read."""
  nodes = []
  for layer in range(config.n_layers):
    for part in range(config.n_heads + (not config.attn_only)):
      site = Site("head", layer, part) if part < config.n_heads else Site("mlp", layer)
      groups = read.tolist() if layer == config.n_layers - 1 else range(len(labels))
      nodes += [Node(layer, part, int(g), site.short, labels[g]) for g in groups]
  return tuple(nodes)
