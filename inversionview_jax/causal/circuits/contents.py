"""What each node of a circuit carries: the features that its epsilon-preimages share over many queries, each tested causally.

Preimages are drawn by rejection from one set of random inputs for all nodes and queries; where too few inputs lie inside epsilon and the
target is small, by Monte Carlo.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from inversionview_jax.causal.circuits.nodes import REST, Node
from inversionview_jax.causal.estimates import Estimate
from inversionview_jax.causal.verification import verify
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import readings
from inversionview_jax.measures.consistency import FeatureConsistency
from inversionview_jax.measures.held_out import held_out_requests
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading.rejection import FEWEST, preimages_of_random_inputs
from inversionview_jax.reading.requests import Request
from inversionview_jax.reading.source import Source, has_moves
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task

_PROPERTIES = 8  # of a node that are kept
_KEPT = 2  # preimages of a node that are kept
_TESTED = 3  # features of a node that are tested causally


@dataclasses.dataclass(frozen=True)
class Carried:
  """A property that a node carries.

  Attributes:
    property: a feature, an expression over features, or a token.
    rate, base: how many inputs inside epsilon share the query's value, mean over queries, and how many random inputs do.
    control: the same rate for activations of other inputs; None where it was not measured.
    verdict: "encodes" or "partly encodes".
    only, rest: share of the answer's change that the node brings in pairs that differ in the feature only, and in everything but it
      (`verify`); None where that was not or cannot be tested.
  """

  property: str
  rate: float
  base: float
  control: float | None
  verdict: str
  only: Estimate | None = None
  rest: Estimate | None = None

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    causal = None
    if self.only is not None or self.rest is not None:
      causal = {"only": self.only and self.only.to_data(), "rest": self.rest and self.rest.to_data()}
    names = ("property", "rate", "base", "control", "verdict")
    return {name: getattr(self, name) for name in names} | {"causal": causal}


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a node carries.

  Attributes:
    carried: properties, most certain first.
    bits: of information, mean over queries and its standard error; None where none could be estimated.
    queries: how many activations were read.
    preimages: of the first of them.
    problem: why the reading cannot be relied on; "" if it can.
  """

  carried: tuple[Carried, ...]
  bits: tuple[float, float] | None
  queries: int
  preimages: tuple[Preimage, ...]
  problem: str = ""


def contents_of(
  target: Target,
  task: Task,
  nodes: Sequence[Node],
  *,
  queries: int,
  inputs: int,
  monte_carlo: bool,
  seed: int = 0,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Contents]:
  """What each node carries, by its name; nodes without a position of their own ("rest") are left out.

  Args:
    target, task: what is read.
    nodes: of the circuit.
    queries: activations of each node, of held-out inputs.
    inputs: random inputs from which preimages are drawn.
    monte_carlo: whether Monte Carlo finds the preimages of which too few of them are members.
    seed: of what is drawn.
    progress: called with the nodes that are done, and all of them.
  """
  source = Source.of(target, "monte_carlo" if has_moves(task) else None, task=task)
  requests: dict[str, list[Request]] = {}
  for node in nodes:
    if node.position != REST:
      requests[node.name] = held_out_requests(source, node.site, node.position, queries, seed)
  every = [request for own in requests.values() for request in own]
  drawn = iter(preimages_of_random_inputs(target, task, every, inputs=inputs, seed=seed)) if every else iter(())
  found = {}
  for number, (name, own) in enumerate(requests.items()):
    preimages = [next(drawn) for _ in own]
    few = [i for i, p in enumerate(preimages) if not p.converged]
    if few and monte_carlo and has_moves(task):
      # Of many queries some suffice: those that random inputs do not reach are the rarest, and leaving them out would bias the reading.
      for i in few[: max(4, queries // 8)]:
        preimages[i] = source.preimage(own[i], seed=seed + i)
    found[name] = _contents(preimages, task)
    progress(number + 1, len(requests))
  return found


def _contents(preimages: Sequence[Preimage], task: Task) -> Contents:
  usable = [p for p in preimages if p.inside and (p.converged or p.method == "monte_carlo")]
  lacking = len(preimages) - len(usable)
  problem = f"{lacking} of {len(preimages)} activations have fewer than {FEWEST} of the random inputs inside epsilon"
  if not usable:
    return Contents((), None, 0, tuple(preimages[:_KEPT]), problem)
  features = bool(task.features(task.tokens(task.split("test")[:1])))
  read = readings.of_preimages(usable, task, tokens=not features, expressions=task.expressions)
  rows = [row for row in read.rows if row.verdict != "-"]
  kept = [row for row in rows if not _implied(row, rows)][:_PROPERTIES]
  carried = tuple(
    Carried(row.feature, row.rate.value, row.base, row.control and row.control.value, row.verdict) for row in kept
  )
  return Contents(carried, read.bits(), len(usable), tuple(usable[:_KEPT]), problem if lacking else "")


def _implied(row: FeatureConsistency, rows: Sequence[FeatureConsistency]) -> bool:
  """Whether it is an expression over features that are all encoded by themselves."""
  names = row.feature.split(" + ")
  encoded = {other.feature for other in rows if other.verdict == "encodes"}
  return len(names) > 1 and encoded.issuperset(names)


def tested(
  target: Target, task: Task, node: Node, contents: Contents, *, predict: str, pairs: int, seed: int
) -> Contents:
  """The same with the causal test of its first features."""
  known = set(task.features(task.tokens(task.split("test")[:1])))
  carried, left = list(contents.carried), _TESTED
  for i, one in enumerate(carried):
    if one.property not in known or not left:
      continue
    left -= 1
    try:
      verdict = verify(
        target, node.site, node.position, one.property, task=task, predict=predict, pairs=pairs, seed=seed
      )
    except InversionViewError:  # no pairs differ in this feature alone, or none with this answer
      continue
    carried[i] = dataclasses.replace(one, only=verdict.only.share, rest=verdict.rest.share)
  return dataclasses.replace(contents, carried=tuple(carried))


def from_dict(data: Mapping) -> Carried:
  """A property as `Carried.to_dict` wrote it."""
  causal = data.get("causal") or {}
  names = ("property", "rate", "base", "control", "verdict")
  sides = {side: Estimate.from_data(causal.get(side)) for side in ("only", "rest")}
  return Carried(*(data[name] for name in names), **sides)
