"""Where the nodes of a circuit lie in its picture, and the ways of its edges; numbers are units of the SVG's view box.

Rows are layers, from the embeddings at the bottom to the logits on top, only those that hold a node; columns are positions in the order of
the text. Edges run upwards: from the top of a card to the bottom of another, and past the rows between on a lane that no card covers.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence

from inversionview_jax.show.circuit_picture.contents import LOGITS, Circuit, Edge, Node


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Of a picture.

  Attributes:
    card_width: of a node, at most.
    narrow: of a node, at least; cards of one cell are stacked where they would be narrower.
    squeezed: of a node where not even one for each position has room for `narrow`.
    card_height: of a node.
    input_width: of an embedding, and so of a column without nodes.
    gap: between cards side by side.
    gutter: between columns, where edges pass.
    channel: between rows, where edges turn.
    left: of the labels of layers.
    most_width: of the picture, where it can be kept.
  """

  card_width: float
  narrow: float
  squeezed: float
  card_height: float
  input_width: float
  gap: float
  gutter: float
  channel: float
  left: float
  most_width: float


# Beside the curve on a window of 1,440 pixels, and on a phone of 390, no picture is scaled down.
WIDE = Sizes(156, 112, 84, 54, 60, 8, 24, 36, 56, 930)
NARROW = Sizes(56, 44, 33, 34, 33, 3, 7, 26, 18, 346)
MOST_EDGES = 120  # that are drawn
_HEAD = 8.0  # above the logits
_BAR = 26.0  # height of the logits and of the embeddings
_FOOT = 24.0  # below the embeddings, for the labels of positions


@dataclasses.dataclass(frozen=True)
class Box:
  """A rectangle: its left upper corner, width and height."""

  x: float
  y: float
  width: float
  height: float


@dataclasses.dataclass(frozen=True)
class Route:
  """An edge with the SVG path of its way."""

  edge: Edge
  path: str


@dataclasses.dataclass(frozen=True)
class Layout:
  """A picture's geometry.

  Attributes:
    width, height: of all.
    cards: the box of every node.
    inputs: the box of every embedding.
    logits: the box of the answer.
    columns: (position, middle) of every column.
    layers: (layer, top, bottom) of every layer with nodes.
    routes: the drawn edges, weakest first.
    left_out: how many weaker edges are not drawn.
  """

  width: float
  height: float
  cards: dict[str, Box]
  inputs: dict[str, Box]
  logits: Box
  columns: list[tuple[str, float]]
  layers: list[tuple[int, float, float]]
  routes: list[Route]
  left_out: int


def arrange(circuit: Circuit, sizes: Sizes = WIDE, most_edges: int = MOST_EDGES) -> Layout:
  """The layout of a circuit.

  Args:
    circuit: any.
    sizes: of cards and gaps.
    most_edges: that are drawn, the strongest of all.
  """
  cells: _Cells = {}
  for node in sorted(circuit.nodes, key=lambda node: (node.layer, node.kind == "mlp", node.site)):
    cells.setdefault((node.layer, int(node.kind == "mlp")), {}).setdefault(node.position, []).append(node)
  grid = _Grid.of(circuit.columns or [""], cells, sizes)
  rows = _rows(cells, grid.slots)
  height = _HEAD + _BAR + sizes.channel + len(rows) * (sizes.card_height + sizes.channel) + _BAR + _FOOT
  cards: dict[str, Box] = {}
  layers: dict[int, tuple[float, float]] = {}
  y = height - _FOOT - _BAR - sizes.channel
  for layer, by_position in rows:
    y -= sizes.card_height
    layers[layer] = (y, layers.get(layer, (y, y + sizes.card_height))[1])
    for position, nodes in by_position.items():
      x = grid.middle(position) - grid.room(len(nodes)) / 2
      for k, node in enumerate(nodes):
        cards[node.name] = Box(x + k * (grid.card + sizes.gap), y, grid.card, sizes.card_height)
    y -= sizes.channel
  wide = min(sizes.input_width, max(grid.card, sizes.squeezed))
  inputs = {
    name: Box(grid.middle(position) - wide / 2, height - _FOOT - _BAR, wide, _BAR)
    for name, position in circuit.inputs.items()
  }
  logits = Box(sizes.left + sizes.gutter, _HEAD, grid.right - sizes.left - sizes.gutter, _BAR)
  strongest = sorted(circuit.edges, key=lambda edge: -abs(edge.effect.mean))[:most_edges]
  return Layout(
    grid.right + sizes.gutter,
    height,
    cards,
    inputs,
    logits,
    [(position, grid.middle(position)) for position in grid.slots],
    [(layer, top, bottom) for layer, (top, bottom) in layers.items()],
    _Router(cards, inputs, logits, sizes).routes(strongest[::-1]),
    len(circuit.edges) - len(strongest),
  )


_Cells = dict[tuple[int, int], dict[str, list[Node]]]  # (layer, 0 for heads and 1 for MLPs) -> position -> nodes


@dataclasses.dataclass(frozen=True)
class _Grid:
  """Columns: how many cards lie side by side in each (0: only an embedding), and how wide a card is."""

  slots: dict[str, int]
  card: float
  sizes: Sizes

  @classmethod
  def of(cls, columns: Sequence[str], cells: _Cells, sizes: Sizes) -> "_Grid":
    """As many side by side as the fullest cell has; fewer, which are stacked, where cards would be narrower than `sizes.narrow`."""
    slots = {p: max((len(cell.get(p, ())) for cell in cells.values()), default=0) for p in columns}
    while True:
      card = cls(slots, 0.0, sizes)._card()
      fullest = max(slots, key=lambda p: slots[p])
      if card >= sizes.narrow or slots[fullest] <= 1:
        return cls(slots, min(max(card, sizes.squeezed), sizes.card_width), sizes)
      slots[fullest] = max(_even(len(cell[fullest]), slots[fullest] - 1) for cell in cells.values() if fullest in cell)

  def _card(self) -> float:
    """The width of a card for which the picture has the most that it may have."""
    fixed = self.sizes.left + (len(self.slots) + 1) * self.sizes.gutter
    fixed += sum((n - 1) * self.sizes.gap if n else self.sizes.input_width for n in self.slots.values())
    return (self.sizes.most_width - fixed) / max(sum(self.slots.values()), 1)

  def room(self, cards: int) -> float:
    """The width of so many cards side by side; of none that of an embedding."""
    return cards * (self.card + self.sizes.gap) - self.sizes.gap if cards else self.sizes.input_width

  @property
  def lefts(self) -> dict[str, float]:
    """The left edge of each column."""
    lefts, x = {}, self.sizes.left + self.sizes.gutter
    for position, n in self.slots.items():
      lefts[position] = x
      x += self.room(n) + self.sizes.gutter
    return lefts

  @property
  def right(self) -> float:
    """The right edge of the last column."""
    return max(left + self.room(self.slots[position]) for position, left in self.lefts.items())

  def middle(self, position: str) -> float:
    """Of a column."""
    return self.lefts[position] + self.room(self.slots[position]) / 2


def _rows(cells: _Cells, slots: dict[str, int]) -> list[tuple[int, dict[str, list[Node]]]]:
  """(layer, position -> nodes) of each row of cards, bottom first; a cell that is too full for its column takes several rows."""
  rows = []
  for (layer, _), cell in sorted(cells.items()):
    each = {p: _even(len(nodes), slots[p]) for p, nodes in cell.items()}
    for k in range(max(-(-len(nodes) // each[p]) for p, nodes in cell.items())):
      row = {p: nodes[k * each[p] : (k + 1) * each[p]] for p, nodes in cell.items()}
      rows.append((layer, {p: nodes for p, nodes in row.items() if nodes}))
  return rows


def _even(nodes: int, most: int) -> int:
  """How many lie side by side where at most `most` can, in as few and as even rows as possible: 4 in two rows of 2, not 3 and 1."""
  return -(-nodes // -(-nodes // most))


class _Router:
  """Finds the ways of edges between boxes."""

  def __init__(self, cards: dict[str, Box], inputs: dict[str, Box], logits: Box, sizes: Sizes):
    self._boxes = cards | inputs | {LOGITS: logits}
    self._sizes = sizes
    self._rows: dict[float, list[Box]] = collections.defaultdict(list)  # boxes of cards by their top
    for box in cards.values():
      self._rows[box.y].append(box)

  def routes(self, edges: Sequence[Edge]) -> list[Route]:
    """The way of each edge: (out of its source, lane, into its target); edges that share a side of a card or a lane lie side by side."""
    lanes = [self._lane(edge) for edge in edges]
    ends = [(self._boxes[edge.source], self._boxes[edge.target]) for edge in edges]
    goals = [lane if lane is not None else _middle(target) for lane, (_, target) in zip(lanes, ends, strict=True)]
    origins = [lane if lane is not None else _middle(source) for lane, (source, _) in zip(lanes, ends, strict=True)]
    outs = _spread([(edge.source, goal) for edge, goal in zip(edges, goals, strict=True)])
    ins = _spread([(edge.target, origin) for edge, origin in zip(edges, origins, strict=True)])
    apart = _spread([(f"{lane}", goal) for lane, (goal, _) in zip(lanes, map(_middles, ends), strict=True)])
    ways = []
    for k, (edge, (source, target)) in enumerate(zip(edges, ends, strict=True)):
      x0 = source.x + source.width * (0.5 + 0.36 * outs[k])
      lane = lanes[k]
      x = None if lane is None else lane + 0.36 * self._sizes.gutter * apart[k]
      if edge.target == LOGITS:  # the answer is as wide as the picture: straight up
        x1 = min(max(x0 if x is None else x, target.x + 4), target.x + target.width - 4)
      else:
        x1 = target.x + target.width * (0.5 + 0.36 * ins[k])
      ways.append(Route(edge, self._path(source, target, x0, x, x1)))
    return ways

  def _between(self, source: Box, target: Box) -> list[Box]:
    """The cards in the rows between two boxes."""
    return [box for y, row in self._rows.items() if target.y + target.height <= y < source.y for box in row]

  def _lane(self, edge: Edge) -> float | None:
    """Where the edge passes the rows between, or None where it can go straight: the free x with the shortest way."""
    source, target = self._boxes[edge.source], self._boxes[edge.target]
    x0 = _middle(source)
    x1 = x0 if edge.target == LOGITS else _middle(target)
    between = self._between(source, target)
    if not between:
      return None
    low, high = min(box.x for box in self._boxes.values()), max(box.x + box.width for box in self._boxes.values())
    half, free = self._sizes.gutter / 2, self._sizes.gutter * 0.2
    sides = {box.x - half for box in between} | {box.x + box.width + half for box in between}
    choices = [x0, x1, *sorted(x for x in sides if low - 2 * half <= x <= high + 2 * half)]
    open_lanes = [x for x in choices if all(not box.x - free < x < box.x + box.width + free for box in between)]
    return min(open_lanes, key=lambda x: abs(x - x0) + abs(x - x1), default=None)

  def _path(self, source: Box, target: Box, x0: float, lane: float | None, x1: float) -> str:
    y0, y1, turn = source.y, target.y + target.height, self._sizes.channel
    if lane is None:
      bend = (y0 - y1) * 0.55
      return f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}"
    a, b, bend = y0 - turn, y1 + turn, 0.6 * turn
    return (
      f"M{x0:.1f} {y0:.1f}C{x0:.1f} {y0 - bend:.1f} {lane:.1f} {a + bend:.1f} {lane:.1f} {a:.1f}"
      f"V{b:.1f}C{lane:.1f} {b - bend:.1f} {x1:.1f} {y1 + bend:.1f} {x1:.1f} {y1:.1f}"
    )


def _middle(box: Box) -> float:
  return box.x + box.width / 2


def _middles(ends: tuple[Box, Box]) -> tuple[float, float]:
  return _middle(ends[1]), _middle(ends[0])


def _spread(ends: Iterable[tuple[str, float]]) -> list[float]:
  """From -1 to 1, where each end lies among those of the same group, ordered by where they go; 0 of a single one.

  Args:
    ends: (group, where the other end lies).
  """
  listed = list(ends)
  groups: dict[str, list[int]] = collections.defaultdict(list)
  for k, (group, _) in enumerate(listed):
    groups[group].append(k)
  places = [0.0] * len(listed)
  for members in groups.values():
    members.sort(key=lambda k: listed[k][1])
    reach = min(1.0, (len(members) - 1) / 6)  # a few lie close together
    for rank, k in enumerate(members):
      places[k] = reach * (2 * rank / (len(members) - 1) - 1) if len(members) > 1 else 0.0
  return places
