"""The smallest set of nodes that keeps the answer: elimination, the curve over sizes, and what random sets of the same size do.

Elimination starts from all nodes and removes those whose removal costs least, one at a time where few are left and in blocks where many are.
What a removal costs is measured where there are few nodes; where there are many, it is attributed first (integrated gradients from all
ablated to the present set), a part of the set at a time, until few are left. The cost is a loss of faithfulness, so that what works against the
answer leaves first and a circuit may do better than the whole model; or, with the objective "cmd", a loss of nearness to the whole model.

Shapes: N pairs, V nodes, S sets.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.causal.circuits.ablation import Ablation
from inversionview_jax.causal.circuits.nodes import Node
from inversionview_jax.causal.estimates import Estimate, read_estimate, share
from inversionview_jax.errors import InversionViewError

# What a search keeps: nodes that bring the answer about, or those with which the circuit behaves as the whole model does.
OBJECTIVES = ("faithfulness", "cmd")
FEW = 400  # nodes whose removals are all measured
_ONE_BY_ONE = 24  # from this size on nodes leave one at a time
_FREE = 0.001  # of the whole difference: a block whose removal costs no more leaves together
_PART = 0.15  # of the set that leaves together otherwise
_ATTRIBUTED_PART = 0.25
_RANDOM_SETS = 10


@dataclasses.dataclass(frozen=True)
class Elimination:
  """The nodes in the order in which they left.

  Attributes:
    order: V nodes, the last to leave first: the first k of them are the circuit of size k.
    measured: sizes at which the set itself was measured while nodes left, ascending.
  """

  order: tuple[Node, ...]
  measured: tuple[int, ...]

  def set_of(self, size: int) -> tuple[Node, ...]:
    """The circuit of this size."""
    return self.order[:size]


def eliminate(ablation: Ablation, few: int = FEW, steps: int = 4, objective: str = "faithfulness") -> Elimination:
  """Removes all nodes, those that matter least first.

  Args:
    ablation: of the pairs on which the search is done.
    few: nodes from which on every removal is measured; above, they are attributed.
    steps: points of the integrated gradients.
    objective: one of `OBJECTIVES`; "cmd" keeps the logit difference near that of the whole model, as the measure CMD asks.
  """
  kept, left, sizes = list(ablation.grid.nodes), [], [len(ablation.grid.nodes)]
  clean, corrupted = ablation.whole().mean(axis=1)
  total = clean - corrupted

  def lost(value: Any) -> Any:
    return -value if objective == "faithfulness" else np.abs(clean - value)

  while len(kept) > few:
    scores = ablation.attribution(kept, steps)
    position = {node: i for i, node in enumerate(ablation.grid.nodes)}
    each = {node: float(scores[position[node]]) for node in kept}
    ranked = sorted(kept, key=lambda node: each[node] if objective == "faithfulness" else abs(each[node]))
    part = min(max(1, int(_ATTRIBUTED_PART * len(kept))), len(kept) - few)
    left += ranked[:part]
    kept = ranked[part:]
    sizes.append(len(kept))
  now = lost(ablation.logit_difference([kept]).mean() if kept else corrupted)
  while kept:
    without = lost(ablation.logit_difference([_but(kept, node) for node in kept]).mean(axis=1))
    leave, now = _block(ablation, kept, without, now, total, lost)
    left += [kept[i] for i in leave]
    kept = [node for i, node in enumerate(kept) if i not in set(leave.tolist())]
    sizes.append(len(kept))
  return Elimination(tuple(reversed(left)), tuple(sorted(set(sizes))))


def _but(nodes: Sequence[Node], one: Node) -> list[Node]:
  return [node for node in nodes if node is not one]


def _block(
  ablation: Ablation,
  kept: Sequence[Node],
  without: np.ndarray,
  now: float,
  total: float,
  lost: Callable[[float], float],
) -> tuple[np.ndarray, float]:
  """The indices of the nodes that leave together, cheapest first, and what is lost without them.

  Args:
    ablation, kept: the set.
    without: float64[V], what is lost without each of its nodes.
    now: what is lost with all of them.
    total: the whole logit difference.
    lost: of a logit difference.
  """
  cost = without - now
  order = np.argsort(cost, kind="stable")
  if len(kept) > _ONE_BY_ONE:
    free = order[: int((cost[order] <= _FREE * total).sum())]
    part = order[: max(1, int(_PART * len(kept)))]
    for block in [free, part] if len(free) > len(part) else [part]:
      while len(block) > 1:
        gone = set(block.tolist())
        rest = [node for i, node in enumerate(kept) if i not in gone]
        then = lost(float(ablation.logit_difference([rest]).mean()))
        # What nodes cost one by one adds up where they act alone; where together they cost more, fewer leave.
        if then - now <= max(_FREE * total, 1.5 * float(cost[block].sum())):
          return block, then
        block = block[: len(block) // 2]
  return order[:1], float(without[order[0]])


@dataclasses.dataclass(frozen=True)
class Point:
  """One size of the curve.

  Attributes:
    size: number of nodes that are kept.
    faithfulness: of the circuit, on pairs that the search did not see.
    random: of random sets of this size, over sets and pairs; None where it was not measured.
    node: the name of the node by which this circuit is larger than that of one node fewer; "" for none.
  """

  size: int
  faithfulness: Estimate
  random: Estimate | None
  node: str


def point_to_data(point: Point) -> dict:
  """A point as plain data."""
  random = None if point.random is None else point.random.to_data()
  return {"size": point.size, "faithfulness": point.faithfulness.to_data(), "random": random, "node": point.node}


def point_from_data(data: Mapping) -> Point:
  """A point as `point_to_data` wrote it."""
  return Point(data["size"], read_estimate(data["faithfulness"]), Estimate.from_data(data["random"]), data["node"])


@dataclasses.dataclass(frozen=True)
class Curve:
  """Faithfulness over the size of the circuit.

  Attributes:
    points: by size, from 0 to all V nodes.
    clean, corrupted: float64[N], logit differences of the whole model, and with everything ablated.
  """

  points: tuple[Point, ...]
  clean: np.ndarray
  corrupted: np.ndarray

  def area(self, random: bool = False) -> float:
    """CPR as MIB defines it, the area under the curve over the share of nodes that are kept (there: of edges); trapezoids."""
    return _area(self.points, random, lambda f: f)

  def distance(self, random: bool = False) -> float:
    """CMD as MIB defines it: the area between the curve and 1."""
    return _area(self.points, random, lambda f: abs(1 - f))

  def smallest(self, faithfulness: float, most: int | None = None) -> int:
    """The smallest size from which on no smaller circuit is as faithful as this; the most faithful of those allowed where none is.

    Args:
      faithfulness: that is wanted.
      most: the largest size; None: any.
    """
    allowed = [p for p in self.points if p.size > 0 and (most is None or p.size <= most)]
    if not allowed:
      raise InversionViewError("the curve has no circuit of this size")
    enough = [p.size for p in allowed if p.faithfulness.mean >= faithfulness]
    return min(enough) if enough else max(allowed, key=lambda p: p.faithfulness.mean).size


def _area(points: Sequence[Point], random: bool, of) -> float:
  values = [(p.size, p.random if random else p.faithfulness) for p in points]
  known = [(size, of(f.mean)) for size, f in values if f is not None]
  if len(known) < 2:
    return math.nan
  sizes, heights = (np.array(x, np.float64) for x in zip(*known, strict=True))
  return float(np.trapezoid(heights, sizes / points[-1].size))


def curve(
  ablation: Ablation, elimination: Elimination, sizes: Sequence[int], seed: int = 0, random_sets: int = _RANDOM_SETS
) -> Curve:
  """Measures circuits of these sizes, and as many random sets of each, on the pairs of `ablation`.

  Args:
    ablation: of pairs that the search did not see.
    elimination: the circuits.
    sizes: that are measured; 0 and V always are.
    seed: of the random sets.
    random_sets: of each size; 0 for none.
  """
  nodes = ablation.grid.nodes
  sizes = sorted({0, len(nodes), *(size for size in sizes if 0 < size < len(nodes))})
  clean, corrupted = ablation.whole()
  found = ablation.logit_difference([elimination.set_of(size) for size in sizes])
  rng, random = np.random.default_rng(seed), {}
  if random_sets:
    drawn = [
      [nodes[i] for i in rng.choice(len(nodes), size, replace=False)] for size in sizes for _ in range(random_sets)
    ]
    values = ablation.logit_difference(drawn).reshape(len(sizes), random_sets, -1)
    random = {size: _random_estimate(x, clean, corrupted) for size, x in zip(sizes, values, strict=True)}
  points = []
  for size, values in zip(sizes, found, strict=True):
    f = share(values - corrupted, clean - corrupted)
    if f is None:
      raise InversionViewError(
        "the corrupted inputs do not change the answer: there is nothing that a circuit could explain"
      )
    grew = elimination.order[size - 1].name if size else ""
    points.append(Point(size, f, random.get(size), grew))
  return Curve(tuple(points), clean, corrupted)


def _random_estimate(values: np.ndarray, clean: np.ndarray, corrupted: np.ndarray) -> Estimate:
  """float64[R, N] -> the mean faithfulness of R sets and its standard error between sets."""
  each = (values.mean(axis=1) - corrupted.mean()) / (clean.mean() - corrupted.mean())
  se = float(each.std(ddof=1) / math.sqrt(len(each))) if len(each) > 1 else math.nan
  return Estimate(float(each.mean()), se, len(each))


def sizes_of(elimination: Elimination, total: int) -> list[int]:
  """Sizes for a curve: all small ones, then in steps of about a seventh."""
  sizes, size = list(range(1, min(total, 17))), 16.0
  while size < total:
    size *= 1.15
    sizes.append(min(round(size), total))
  return sorted({*sizes, *(size for size in elimination.measured if size)})
