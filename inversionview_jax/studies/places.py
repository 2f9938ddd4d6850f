"""The study of sites at positions: their preimages among one pool of inputs, what these share, the direct effect, and patching.

Shapes: P places, Q queries, N inputs of the pool, M pairs, T tokens, D d_model.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.preimage import Preimage
from inversionview_jax.sites import Site
from inversionview_jax.studies import effects, pool
from inversionview_jax.studies.effects import TOGETHER, DirectEffect, PatchEffect, Twins
from inversionview_jax.studies.readings import SiteReading, read
from inversionview_jax.studies.samples import preimage_of
from inversionview_jax.studies.stages import Stages
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

Progress = Callable[[str, int, int], object]
_PART = 1024  # inputs of the pool whose distances are stored at a time
# Of the task's epsilon, at which a place is read: what it encodes coarsely, and what more it encodes finely.
SCALES = (1.0, 0.5, 0.25)


@dataclasses.dataclass(frozen=True)
class Place:
  """A site at a labelled position."""

  site: Site
  position: str

  @property
  def name(self) -> str:
    return f"{self.site.short}@{self.position}"


@dataclasses.dataclass(frozen=True, eq=False)
class Questions:
  """What a study finds out about every place.

  Attributes:
    queries: int64[Q], inputs of the task.
    index: int64[N], the pool.
    features: names, of which readings consist.
    apart: the feature in which members must differ for a rate of its own; "": none.
    twins: of each feature that is verified.
    compared: feature -> int32[M] each, the two tokens whose logits are compared when it is patched.
    direct: the feature whose pairs direct effects are measured on.
    foil: int32[M], the token with which the answer is compared there.
    most_bos: heads are read at queries where they attend to BOS less than this; 1: at all.
  """

  queries: np.ndarray
  index: np.ndarray
  features: tuple[str, ...]
  apart: str
  twins: Mapping[str, Twins]
  compared: Mapping[str, tuple[np.ndarray, np.ndarray]]
  direct: str
  foil: np.ndarray
  most_bos: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class PlaceStudy:
  """One place.

  Attributes:
    site, position: of the place.
    measures: what else is known of it, by name: its share of the residual update, where it attends to.
    role: its part in the circuit, where the task has roles.
    readings: what its preimages share, at the task's epsilon and at smaller ones.
    direct: its direct effect; None where it does not write at the answer's position.
    patches: of the features that are verified.
    preimages: of some queries.
  """

  site: str
  position: str
  measures: dict[str, float]
  role: str
  readings: tuple[SiteReading, ...]
  direct: DirectEffect | None
  patches: tuple[PatchEffect, ...]
  preimages: tuple[Preimage, ...]

  @property
  def named(self) -> dict[str, float]:
    """The features that a reading names, with the largest epsilon at which one does."""
    found: dict[str, float] = {}
    for reading in self.readings:
      for name in reading.named:
        found.setdefault(name, reading.epsilon)
    return found

  @property
  def verified(self) -> dict[str, float]:
    """Of `named`, those that patching confirms."""
    agreeing = {patch.feature for patch in self.patches if patch.agrees}
    return {name: epsilon for name, epsilon in self.named.items() if name in agreeing}

  @property
  def verdict(self) -> str:
    """What is claimed, in words."""
    if not any(reading.queries for reading in self.readings):
      return "not read: too few members, or it attends to BOS"
    if not self.named:
      return "names no feature"
    parts = []
    for reading in self.readings:
      if names := [name for name, epsilon in self.named.items() if epsilon == reading.epsilon]:
        parts.append(f"{', '.join(names)} ({reading.epsilon:g})")
    claim = f"encodes {'; '.join(parts)}"
    if self.verified:
      return f"{claim}; patching agrees on {', '.join(self.verified)}"
    tested = {patch.feature for patch in self.patches} & {*self.named}
    return f"{claim}; " + ("patching does not agree" if tested else "not tested by patching")

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON, without the preimages."""
    return {
      "site": self.site,
      "position": self.position,
      "role": self.role,
      "measures": self.measures,
      "readings": [reading.to_data() for reading in self.readings],
      "direct": self.direct and self.direct.to_data(),
      "patches": [patch.to_data() for patch in self.patches],
      "verified": self.verified,
      "verdict": self.verdict,
    }


def spread(values: np.ndarray, count: int) -> np.ndarray:
  """int64[<= count]: indices of values int[N] in turn, so that no value has many before another has one."""
  turn = np.zeros(len(values), np.int64)
  for value in np.unique(values):
    which = np.flatnonzero(values == value)
    turn[which] = np.arange(len(which))
  return np.sort(np.argsort(turn, kind="stable")[:count])


def study(
  target: Target,
  task: Task,
  places: Sequence[Place],
  questions: Questions,
  stages: Stages,
  progress: Progress,
  *,
  measures: Sequence[dict[str, float]] | None = None,
  roles: Sequence[str] | None = None,
  shown: int = 2,
  seed: int = 0,
) -> list[PlaceStudy]:
  """The study of each place, all of them from one pass over the pool.

  Args:
    target, task: what is read.
    places: P of them, heads.
    questions: that are put to all of them.
    stages: where steps are stored.
    progress: called with the step, how much of it is done and of how much.
    measures, roles: of each place.
    shown: preimages that are kept of each place.
    seed: of the choice of samples that are kept.
  """
  rows = task.tokens(questions.queries)
  at = {name: task.positions(rows, name) for name in dict.fromkeys(p.position for p in places)}
  caught = _captured(target, places, rows, at)
  tokens = task.tokens(questions.index)
  distance, position = _distances(target, task, places, caught.activation, tokens, stages, progress)
  values = task.features(tokens)
  place_of = {int(index): number for number, index in enumerate(questions.index)}
  own = np.array([place_of.get(int(query), -1) for query in questions.queries])
  read_at = [
    np.flatnonzero((caught.attention[p, :, 0] < questions.most_bos) | (questions.most_bos >= 1))
    for p in range(len(places))
  ]
  readings = [
    tuple(
      read(distance[p, kept], scale * task.epsilon, values, own[kept], questions.features, questions.apart)
      for scale in SCALES
    )
    for p, kept in enumerate(read_at)
  ]
  named = {
    place.name: {name for one in reading for name in one.named} for place, reading in zip(places, readings, strict=True)
  }
  patches = _patches(target, task, places, named, questions, stages, progress)
  direct = _direct(target, places, questions, stages, progress)
  found = []
  for p, place in enumerate(places):
    kept = read_at[p]
    # Queries with many members, all of which are kept.
    size = (distance[p, kept] <= np.float32(task.epsilon)).sum(axis=1)
    some = kept[np.argsort(-size * (size <= 200), kind="stable")[:shown]]
    preimages = [
      preimage_of(
        target,
        task,
        place.site,
        rows[q],
        int(at[place.position][q]),
        caught.activation[p, q],
        caught.attention[p, q],
        tokens,
        distance[p, q],
        position[p, q],
        task.epsilon,
        len(tokens) == task.num_inputs and task.enumerable,
        seed,
      )
      for q in some
    ]
    own_measures = {"to BOS": float(caught.attention[p, :, 0].mean())} | (measures[p] if measures else {})
    found.append(
      PlaceStudy(
        place.site.short,
        place.position,
        own_measures,
        roles[p] if roles else "",
        readings[p],
        direct.get(place.name),
        tuple(patches.get(place.name, ())),
        tuple(preimages),
      )
    )
  return found


def _captured(target: Target, places: Sequence[Place], rows: np.ndarray, at: Mapping[str, np.ndarray]) -> pool.Captured:
  """The activations and attention of every place at the queries."""
  activation: list[np.ndarray] = [np.zeros(0)] * len(places)
  attention: list[np.ndarray] = [np.zeros(0)] * len(places)
  for name, positions in at.items():
    which = [p for p, place in enumerate(places) if place.position == name]
    caught = pool.captured(target, [places[p].site for p in which], rows, positions)
    for number, p in enumerate(which):
      activation[p], attention[p] = caught.activation[number], caught.attention[number]
  return pool.Captured(np.stack(activation), np.stack(attention))


def _distances(target, task, places, activations, tokens, stages: Stages, progress: Progress):
  """float32[P, Q, N] and int8[P, Q, N], a part of the pool at a time; inputs of one part have nearly the same length."""
  order = np.argsort((tokens != task.tokenizer.pad_id).sum(axis=1), kind="stable")
  sites = [place.site for place in places]
  shape = (*activations.shape[:2], len(tokens))
  distance, position = np.empty(shape, np.float32), np.empty(shape, np.int8)
  for start in range(0, len(order), _PART):
    part = order[start : start + _PART]

    def make(part=part, start=start):
      report = lambda done, total: progress("pool", start + done, len(order))
      one = pool.nearest(target, task, sites, activations, tokens[part], progress=report)
      return {"distance": one.distance.astype(np.float16), "position": one.position}

    stored = stages.arrays(f"pool-{start // _PART:03d}", make)
    distance[:, :, part], position[:, :, part] = stored["distance"], stored["position"]
  return distance, position


def _patches(
  target, task, places, named: Mapping[str, set[str]], questions: Questions, stages: Stages, progress: Progress
) -> dict[str, list[PatchEffect]]:
  """The patch effects of each place, by its name: of the features that its readings name."""
  found: dict[str, list[PatchEffect]] = {}
  work = []
  for name in questions.twins:
    for label in dict.fromkeys(p.position for p in places):
      sites = [p.site for p in places if p.position == label and name in named[p.name]]
      work += [(name, label, sites[start : start + TOGETHER]) for start in range(0, len(sites), TOGETHER)]
  # All pairs in one shape, for which one program is compiled.
  ends = [
    at.max()
    for twins in questions.twins.values()
    for pairs in (twins.only, twins.rest)
    for at in (pairs.clean_at, pairs.corrupted_at)
  ]
  width = int(max(ends)) + 1
  for done, (name, label, sites) in enumerate(work):
    progress("patching", done, len(work))
    twins = questions.twins[name]

    def make(twins=twins, label=label, sites=sites, name=name):
      pairs = (twins.only.clean, twins.only.corrupted, twins.rest.corrupted)
      at = tuple(task.positions(rows, label) for rows in pairs)
      return effects.patched_differences(target, twins, sites, at, questions.compared[name], width)

    differences = stages.arrays(f"patch-{name}-{label}-{'-'.join(site.short for site in sites)}", make)
    for s, site in enumerate(sites):
      found.setdefault(Place(site, label).name, []).append(effects.patch_effect(name, differences, s))
  return found


def _direct(target, places, questions: Questions, stages: Stages, progress: Progress) -> dict[str, DirectEffect]:
  """The direct effect of each place at END, by its name."""
  writers = [place for place in places if place.position == "END"]
  if questions.direct not in questions.twins or not writers:
    return {}
  progress("direct effects", 0, 1)
  sites = [place.site for place in writers]
  pairs = questions.twins[questions.direct].only
  values = stages.arrays("direct", lambda: effects.direct_values(target, pairs, questions.foil, sites))
  return {place.name: effects.direct_effect(values, number) for number, place in enumerate(writers)}
