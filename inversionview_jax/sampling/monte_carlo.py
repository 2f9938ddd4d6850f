"""Preimages by Monte Carlo on the target: no decoder and no training, for any task that has a prior and moves.

A preimage is a conditional distribution, p(x | D(f(x), z) <= epsilon) under the task's prior. That is approximate Bayesian computation, and this is
its standard sampler, adaptive sequential Monte Carlo with a falling threshold (Del Moral, Doucet and Jasra, 2012): particles drawn from the
prior; at each level the threshold falls to a quantile of their distances, the survivors are resampled (systematically) and moved by
Metropolis-Hastings sweeps that leave the prior inside the threshold invariant (`sweeps.py`), until it is epsilon. The surviving shares multiply
to the probability of the preimage, which gives bits for free. The particles are two islands that never mix: where they disagree, so would another
run.

Shapes: N particles, T tokens, D width of the activation, R activations of a query, P directions.
"""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.nearness import Nearness
from inversionview_jax.sampling.particles import ISLANDS, Level, Population, Settings, disagreement
from inversionview_jax.sampling.sweeps import TaskSweeps
from inversionview_jax.sampling.text_sweeps import TextSweeps
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

_MAX_LEVELS = 200
# Relative; equal distances of different inputs differ by less, those of unequal ones by more.
_ROUNDING = np.float32(1e-5)


class MonteCarlo:
  """The sampler of one target and task, compiled once for all queries.

  Attributes:
    sites: what `Queries.site` points into.
    settings: see `Settings`.
  """

  def __init__(
    self,
    target: Target,
    task: Task,
    sites: tuple[Site, ...],
    mesh: Mesh | None = None,
    settings: Settings | None = None,
    joint: bool = False,
    program: TaskSweeps | TextSweeps | None = None,
  ):
    """Builds the program; nothing is compiled before `run`.

    Args:
      target, task: what is read, and its inputs.
      sites: those of the queries.
      mesh: particles are divided over its data axis; all devices by default.
      settings: how long to sample.
      joint: whether a query has an activation at each of `sites`, and the largest of their distances counts.
      program: starts and sweeps in place of those by the task's moves and prior; the task then has tokens and positions only.

    Raises:
      InversionViewError: a task without moves or prior, or a number of particles that does not divide.
    """
    self.sites, self.settings = tuple(sites), settings or Settings()
    mesh = parallel.make_mesh() if mesh is None else mesh
    devices = mesh.shape[parallel.DATA]
    if self.settings.particles < 2 or self.settings.particles % (ISLANDS * devices):
      raise InversionViewError(
        f"{self.settings.particles} particles do not divide into two populations on {devices} {'device' if devices == 1 else 'devices'}: "
        f"use a multiple of {ISLANDS * devices}"
      )
    self._vocabulary = task.tokenizer.vocab_size
    if program is None:
      program = TaskSweeps(target, task, Nearness(target, task, self.sites, mesh, joint))
    self._program: TaskSweeps | TextSweeps = program

  def run(
    self,
    query: Queries,
    epsilon: float,
    seed: int = 0,
    start: np.ndarray | None = None,
    budget: int = 200_000,
    progress: Callable[[Level], object] | None = None,
    basis: np.ndarray | None = None,
    watch: Callable[[Population], object] | None = None,
  ) -> Population:
    """Samples the preimage of one activation, or of several together.

    Args:
      query: a single one; one for each of `sites` if `joint`.
      epsilon: the threshold.
      seed: the particles are a function of it, on any number of devices.
      start: int32[M, T], texts to begin with; draws from the prior take the place of those that are no inputs, and of those that N lacks.
        None: draws from the prior alone.
      budget: target runs after which sampling ends, converged or not; at least one sweep is done.
      progress: called after each level.
      basis: float32[P, D], orthonormal rows; activations are projected on them, and those of the query are float32[R, P].
      watch: called with the particles at the start, which have no levels, and after each level; they have not converged.
    """
    run = _Run(self, query, np.float32(epsilon), seed, start, budget, basis)
    if watch is not None:
      watch(run.population())
    while not run.done:
      level = run.next_level()
      if progress is not None:
        progress(level)
      if watch is not None and not run.done:
        watch(run.population())
    run.take_inside()
    return run.population()


class _Run:
  """One query on its way from the prior to epsilon; small arrays on the host, one program call per level."""

  def __init__(self, sampler: MonteCarlo, query: Queries, epsilon: np.float32, seed: int, start, budget: int, basis):
    self._program, self._settings, self._vocabulary = sampler._program, sampler.settings, sampler._vocabulary
    self._query, self._basis, self._goal, self._budget = query, basis, epsilon, budget
    self._rng, self._key = np.random.default_rng([seed, 0x51C]), jax.random.key(seed)
    count, self._from_prior = self._settings.particles, start is None
    self._state = self._program.begin(query, basis, self._rng, start, count)
    self._island = np.arange(count) * ISLANDS // count
    self._epsilon, self._runs = np.float32(np.inf), int(self._state.pop("target_runs", count))
    self._levels: list[Level] = []
    self._log2, self._variance = np.zeros(ISLANDS), np.zeros(ISLANDS)
    self._calls, self._crossed, self.done = 0, False, False

  def next_level(self) -> Level:
    """Lowers the threshold, resamples and sweeps; at epsilon, sweeps until converged or out of budget."""
    s = self._settings
    if self._epsilon > self._goal:
      survivors = self._resample(self._next_epsilon())
    else:
      survivors = 1.0
    final = bool(self._epsilon <= self._goal)
    left = max(1, (self._budget - self._runs) // s.particles)
    level = self._sweep(survivors, s.final_moves if final else s.moves, min(s.sweeps, left))
    self._levels.append(level)
    stuck = len(self._levels) >= _MAX_LEVELS
    self.done = stuck or self._runs + s.particles > self._budget or (final and not self._problem())
    return level

  def take_inside(self) -> None:
    """Where the budget ended above epsilon and a tenth of the particles lies inside, all are drawn from these; they have not moved since."""
    if self._epsilon > self._goal and (self._state["distance"] <= self._goal).mean() >= 0.1:
      survivors = self._resample(self._goal)
      distinct = len(np.unique(self._state["tokens"], axis=0))
      self._levels.append(Level(float(self._goal), survivors, {}, distinct, moved=0.0, sweeps=0))

  def _next_epsilon(self) -> np.float32:
    """The quantile of the distances; where so many are tied that it does not fall, the largest distance below the last threshold."""
    distance, above = np.sort(self._state["distance"]), 1 + _ROUNDING
    if self._runs >= self._settings.cooling * self._budget and distance[0] <= self._goal:
      return self._goal
    epsilon = distance[int(self._settings.keep * (len(distance) - 1))] * above
    if not epsilon < self._epsilon:
      below = distance[distance * above < self._epsilon / above]
      epsilon = below[-1] * above if len(below) else self._epsilon
    return np.float32(max(self._goal, epsilon))

  def _resample(self, epsilon: np.float32) -> float:
    """Systematic resampling of each island's survivors, int[N]; an island without any takes the other's."""
    self._epsilon = epsilon
    distance = self._state["distance"]
    picked, shares = np.empty(len(distance), int), []
    for island in range(ISLANDS):
      mine = np.flatnonzero(self._island == island)
      alive = mine[distance[mine] <= epsilon]
      share = max(len(alive), 0.5) / len(mine)
      if not len(alive):
        self._crossed, alive = True, np.flatnonzero(distance <= epsilon)
      shares.append(share)
      self._log2[island] += np.log2(share)
      self._variance[island] += (1 - share) / share / len(mine)
      places = (np.arange(len(mine)) + self._rng.random()) / len(mine) * len(alive)
      picked[mine] = alive[np.minimum(places.astype(int), len(alive) - 1)]
    particles = {name: x[picked] for name, x in self._state.items() if not name.startswith("rejected_")}
    self._state |= particles | {"moves": np.zeros_like(particles["moves"])}
    return float(np.mean(shares))

  def _sweep(self, survivors: float, wanted: float, most: int) -> Level:
    # Moves of the calls before count, so that the final level goes on where it was.
    wanted = wanted if self._state["moves"].mean() < wanted else np.inf
    key = jax.random.fold_in(self._key, self._calls)
    self._calls += 1
    state, proposed, accepted, sweeps = self._program.sweep(
      self._query, self._basis, key, (float(self._epsilon), float(self._goal)), (wanted, most), self._state
    )
    self._state = state
    self._runs += int(sweeps) * self._settings.particles
    rates = accepted / np.maximum(proposed, 1)
    return Level(
      epsilon=float(self._epsilon),
      survivors=survivors,
      acceptance={name: float(rate) for name, rate in zip(self._program.kinds, rates, strict=True)},
      distinct=len(np.unique(state["tokens"], axis=0)),
      moved=float((state["moves"] > 0).mean()),
      sweeps=int(sweeps),
    )

  def _problem(self) -> str:
    """Why the particles cannot be relied on yet, or "" if they can."""
    if self._epsilon > self._goal:
      return f"epsilon was not reached: the smallest threshold is {self._epsilon:.4g}"
    if len(np.unique(self._state["tokens"], axis=0)) == 1:
      # Nothing but the query, or one other input, lies inside: both populations must have come to it by themselves.
      return (
        "only one of two populations found an input inside epsilon, and it is a single one" if self._crossed else ""
      )
    if self._state["moves"].mean() < self._settings.final_moves / 2 or (self._state["moves"] > 0).mean() < 0.9:
      return f"particles have moved {self._state['moves'].mean():.1f} times on average inside epsilon"
    ratio = disagreement(self._state["tokens"], self._island, self._vocabulary)
    if ratio > self._settings.disagreement:
      return f"two independent populations disagree, {ratio:.1f} times as much as independent samples would"
    return self._program.problem(self._state["tokens"], self._island)

  def population(self) -> Population:
    """The result so far."""
    s, problem = self._state, self._problem()
    order = np.argsort(s["distance"], kind="stable")
    _, first = np.unique(s["rejected_tokens"], axis=0, return_index=True)
    kept = np.array(sorted(i for i in first if np.isfinite(s["rejected_distance"][i])), int)
    bits = self._from_prior and self._epsilon <= self._goal
    # Log-means of independent estimates: their average has their variance over their number, in bits.
    error = max(np.sqrt(self._variance.mean() / ISLANDS) / np.log(2), np.ptp(self._log2) / 2)
    return Population(
      tokens=s["tokens"][order],
      distance=s["distance"][order],
      position=s["position"][order],
      rejected_tokens=s["rejected_tokens"][kept],
      rejected_distance=s["rejected_distance"][kept],
      rejected_position=s["rejected_position"][kept],
      bits=float(np.abs(self._log2.mean())) if bits else None,
      bits_error=float(error) if bits else None,
      converged=not problem,
      problem=problem,
      target_runs=self._runs,
      levels=tuple(self._levels),
    )
