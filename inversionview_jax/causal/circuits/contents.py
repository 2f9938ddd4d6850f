"""What each node of a circuit carries: the features that its epsilon-preimages share over many queries, each tested causally.

Preimages are drawn by rejection from one set of random inputs for all nodes and queries; of activations that encode too much for that, some are
read by Monte Carlo on request. How many could not be read, and that they encode more than so many inputs can show, is part of the result.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from inversionview_jax.reading.source import Source, monte_carlo_by_default
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task

_PROPERTIES = 8  # of a node that are kept
_KEPT = 2  # preimages of a node that are kept
_OF_LANGUAGE = {"particles": 128, "budget": 8_000}  # Monte Carlo on a language model, whose runs are dear


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
    causal: dict | None = None
    for side in ("only", "rest"):
      estimate: Estimate | None = getattr(self, side)
      if estimate is not None:
        data = estimate.to_data()
        causal = (causal or {"only": None, "rest": None}) | {
          side: data["mean"],
          f"{side}_se": data["se"],
          "pairs": data["n"],
        }
    names = ("property", "rate", "base", "control", "verdict")
    return {name: getattr(self, name) for name in names} | {"causal": causal}


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a node carries.

  Attributes:
    carried: properties, by certainty times bits.
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
  monte_carlo: int = 0,
  seed: int = 0,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Contents]:
  """What each node carries, by its name; nodes without a position of their own ("rest") are left out.

  Args:
    target, task: what is read.
    nodes: of the circuit.
    queries: activations of each node, of held-out inputs.
    inputs: random inputs from which preimages are drawn.
    monte_carlo: how many activations of each node that have too few members among them are read by Monte Carlo; the task must have moves.
    seed: of what is drawn.
    progress: called with the nodes that are done, and all of them.
  """
  how: dict[str, Any] = {} if monte_carlo_by_default(task) else _OF_LANGUAGE
  source = Source.of(target, "monte_carlo", task=task, **how) if monte_carlo else None
  requests: dict[str, list[Request]] = {}
  for node in nodes:
    if node.position != REST:
      requests[node.name] = held_out_requests(task, node.site, node.position, queries, seed)
  every = [request for own in requests.values() for request in own]
  drawn = iter(preimages_of_random_inputs(target, task, every, inputs=inputs, seed=seed)) if every else iter(())
  found = {}
  for number, (name, own) in enumerate(requests.items()):
    preimages = [next(drawn) for _ in own]
    few = [i for i, p in enumerate(preimages) if not p.converged]
    for i in few[:monte_carlo]:
      preimages[i] = source.preimage(own[i], seed=seed + i)  # type: ignore[union-attr]
    found[name] = _contents(preimages, task)
    progress(number + 1, len(requests))
  return found


def _contents(preimages: Sequence[Preimage], task: Task) -> Contents:
  usable = [p for p in preimages if p.inside and p.converged]
  problem = _problem(preimages)
  if not usable:
    return Contents((), None, 0, tuple(preimages[:_KEPT]), problem)
  features = bool(task.features(task.tokens(task.split("test")[:1])))
  read = readings.of_preimages(usable, task, tokens=not features, expressions=task.expressions)
  rows = [row for row in read.rows if row.verdict != "-"]
  # Certain and informative: a carry is certain where the sum behind it is nearly so, and says less.
  rows.sort(key=lambda row: -row.certainty * row.bits)
  kept = [row for row in rows if not _implied(row, rows)][:_PROPERTIES]
  carried = tuple(
    Carried(row.feature, row.rate.value, row.base, None if row.control is None else row.control.value, row.verdict)
    for row in kept
  )
  return Contents(carried, read.bits(), len(usable), tuple(usable[:_KEPT]), problem)


def _problem(preimages: Sequence[Preimage]) -> str:
  """How many activations could not be read, and why; "" where all were."""
  count, parts = len(preimages), []
  few = [p for p in preimages if p.method == "rejection" and not p.converged]
  if few:
    inputs = few[0].target_runs or 1
    parts.append(
      f"{len(few)} of {count} activations have fewer than {FEWEST} of {inputs:,} random inputs inside epsilon "
      f"(more than {math.log2(inputs / FEWEST):.1f} bits)"
    )
  if stuck := sum(p.method == "monte_carlo" and not p.converged for p in preimages):
    parts.append(f"Monte Carlo did not converge for {stuck} of {count}")
  return "; ".join(parts)


def _implied(row: FeatureConsistency, rows: Sequence[FeatureConsistency]) -> bool:
  """Whether it is an expression over features that are all encoded by themselves."""
  names = row.feature.split(" + ")
  encoded = {other.feature for other in rows if other.verdict == "encodes"}
  return len(names) > 1 and encoded.issuperset(names)


def tested(
  target: Target,
  task: Task,
  node: Node,
  contents: Contents,
  *,
  predict: str | None,
  features: int,
  pairs: int,
  seed: int,
) -> Contents:
  """The same with the causal test of its first `features`."""
  known = set(task.features(task.tokens(task.split("test")[:1])))
  carried, left = list(contents.carried), features
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
  own: dict[str, Any] = {name: data[name] for name in ("property", "rate", "base", "control", "verdict")}
  sides: dict[str, Any] = {}
  for side in ("only", "rest"):
    if causal.get(side) is not None:
      sides[side] = Estimate.from_data({"mean": causal[side], "se": causal[f"{side}_se"], "n": causal["pairs"]})
  return Carried(**own, **sides)
