"""Preimages by Monte Carlo on the target: no decoder and no training, for any task that has a prior and moves.

A preimage is a conditional distribution, p(x | D(f(x), z) <= epsilon) under the task's prior. That is approximate Bayesian computation, and this is
its standard sampler, adaptive sequential Monte Carlo with a falling threshold (Del Moral, Doucet and Jasra, 2012): particles drawn from the
prior; at each level the threshold falls to a quantile of their distances, the survivors are resampled (systematically) and moved by
Metropolis-Hastings sweeps that leave the prior inside the threshold invariant, until it is epsilon. The surviving shares multiply to the
probability of the preimage, which gives bits for free. The particles are two islands that never mix: where they disagree, so would another run.

Shapes: N particles, T tokens, K kinds of moves, U uniforms of one move, D width of the activation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.collect import in_pieces
from inversionview_jax.sampling.sampler import distances
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

_ISLANDS = 2
_COMPOSED = 3  # moves of one proposal, at most
_REJECTED = 256  # proposals just outside epsilon that are kept
_MAX_LEVELS = 200
_ROUNDING = np.float32(
  1e-5
)  # relative; equal distances of different inputs differ by less, those of unequal ones by more


@dataclasses.dataclass(frozen=True)
class Settings:
  """How long to sample.

  Attributes:
    particles: N; a multiple of twice the number of devices.
    keep: share of the particles that a level keeps.
    moves: accepted moves of a particle, on average, after which a level is done.
    final_moves: the same at the final level.
    sweeps: of one call of the program, at most.
    disagreement: of the islands, in units of what two independent samples of their size show, up to which they count as agreeing.
  """

  particles: int = 1024
  keep: float = 0.5
  moves: float = 1.5
  final_moves: float = 6.0
  sweeps: int = 24
  disagreement: float = 1.6


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a run.

  Attributes:
    epsilon: its threshold.
    survivors: share of the particles that the threshold kept.
    acceptance: kind of move -> accepted share of its proposals (of those that begin with it).
    distinct: different particles at the end of the level.
    moved: share of the particles that changed at least once.
    sweeps: how many there were.
  """

  epsilon: float
  survivors: float
  acceptance: dict[str, float]
  distinct: int
  moved: float
  sweeps: int


@dataclasses.dataclass(frozen=True)
class Population:
  """What a run ends with.

  Attributes:
    tokens, distance, position: int32[N, T], float32[N], int32[N], the particles, which follow the prior inside the last threshold.
    rejected_tokens, rejected_distance, rejected_position: the nearest different proposals outside epsilon, nearest first.
    bits: -log2 of the prior's probability of the preimage, and its standard error; None where epsilon was not reached or the start was not
      the prior.
    bits_error: the standard error: that of the surviving shares, or half of what the two islands differ by, whichever is larger.
    converged: whether epsilon was reached, the particles have moved enough, and the two islands agree. Where the start was not the prior, both
      islands had it in common, and what it lacks and no move reaches is lacking in both.
    problem: why it has not converged; "" if it has.
    target_runs: inputs that the target was run on.
    levels: see `Level`.
  """

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray
  rejected_tokens: np.ndarray
  rejected_distance: np.ndarray
  rejected_position: np.ndarray
  bits: float | None
  bits_error: float | None
  converged: bool
  problem: str
  target_runs: int
  levels: tuple[Level, ...]


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
  ):
    """Builds the program; nothing is compiled before `run`.

    Raises:
      InversionViewError: a task without moves or prior, or a number of particles that does not divide.
    """
    self.sites, self.settings = tuple(sites), settings or Settings()
    self._target, self._task = target, task
    self._mesh = parallel.make_mesh() if mesh is None else mesh
    devices = self._mesh.shape[parallel.DATA]
    if self.settings.particles < 2 or self.settings.particles % (_ISLANDS * devices):
      raise InversionViewError(
        f"{self.settings.particles} particles do not divide into two populations on {devices} {'device' if devices == 1 else 'devices'}: "
        f"use a multiple of {_ISLANDS * devices}"
      )
    self._moves = task.moves()
    if type(task).log_prior is Task.log_prior:
      raise InversionViewError(
        f"the task {task.name!r} has moves but no log_prior of its own, which Monte Carlo runs on JAX arrays: define Task.log_prior()"
      )
    weights = np.cumsum([move.weight for move in self._moves])
    self._cumulative = (weights / weights[-1]).astype(np.float32)
    self._sweep = parallel.jit(self._sweeps, parallel.platform(self._mesh))
    self._measure = parallel.jit(self._distances, parallel.platform(self._mesh))
    self._params = parallel.replicate(target.params, self._mesh)

  def run(
    self,
    query: Queries,
    epsilon: float,
    seed: int = 0,
    start: np.ndarray | None = None,
    budget: int = 200_000,
    progress: Callable[[Level], object] | None = None,
  ) -> Population:
    """Samples the preimage of one activation.

    Args:
      query: a single one.
      epsilon: the threshold.
      seed: the particles are a function of it, on any number of devices.
      start: int32[M, T], texts to begin with; draws from the prior take the place of those that are no inputs, and of those that N lacks.
        None: draws from the prior alone.
      budget: target runs after which sampling ends, converged or not; at least one sweep is done.
      progress: called after each level.
    """
    run = _Run(self, query, np.float32(epsilon), seed, start, budget)
    while not run.done:
      level = run.next_level()
      if progress is not None:
        progress(level)
    return run.population()

  def log_prior(self, tokens: Any) -> Any:
    """float32[N], -inf for texts that are no inputs."""
    return self._task.log_prior(tokens)

  def _distances(self, params, query: Queries, tokens):
    """float32[N] and int32[N]: each particle's nearest position to the query, over all devices."""

    def shard(params, query, tokens):
      def run(tokens):
        site = jnp.broadcast_to(query.site, (len(tokens), 1))
        activations = self._target.module.apply(
          {"params": params}, tokens, choose=(self.sites, site), logits=False
        ).chosen
        rows = [
          jnp.broadcast_to(x, (len(tokens), *x.shape[1:])) for x in (query.activation, query.position, query.metric)
        ]
        return distances(activations, *rows, self._task.counted_mask(tokens))

      return in_pieces(self._target.module, run, tokens)

    whole, data = PartitionSpec(), PartitionSpec(parallel.DATA)
    program = parallel.per_device(shard, self._mesh, (whole, whole, data), (data, data))
    return program(params, query, tokens)

  def _propose(self, uniforms, tokens, prior):
    """One to three moves in a row; a move to a text that is no input is not made, so that ratios need to hold between inputs only.

    Args:
      uniforms: float32[N, 1 + 3 (1 + U)].
      tokens: int32[N, T], inputs.
      prior: float32[N], their log prior.

    Returns:
      int32[N, T]; float32[N], its log prior; float32[N], log q(old | new) - log q(new | old); and int32[N], the kind of the first move.
    """
    width = max(move.uniforms for move in self._moves)
    count = 1 + (uniforms[:, 0] * _COMPOSED).astype(jnp.int32)
    ratio, kinds = jnp.zeros(len(tokens)), []
    for i in range(_COMPOSED):
      mine = uniforms[:, 1 + i * (1 + width) : 1 + (i + 1) * (1 + width)]
      kind = jnp.minimum(
        jnp.searchsorted(jnp.asarray(self._cumulative), mine[:, 0], side="right"), len(self._moves) - 1
      )
      moved, log_q = tokens, jnp.zeros(len(tokens))
      for k, move in enumerate(self._moves):
        proposal, move_ratio = move.propose(mine[:, 1 : 1 + move.uniforms], tokens)
        moved, log_q = jnp.where((kind == k)[:, None], proposal, moved), jnp.where(kind == k, move_ratio, log_q)
      moved_prior = self.log_prior(moved)
      used = (i < count) & jnp.isfinite(moved_prior)
      tokens, prior = jnp.where(used[:, None], moved, tokens), jnp.where(used, moved_prior, prior)
      ratio += jnp.where(used, log_q, 0.0)
      kinds.append(kind)
    return tokens, prior, ratio, kinds[0]

  def _sweeps(self, params, query: Queries, key, epsilon, goal, wanted, most, state):
    """Metropolis-Hastings sweeps inside `epsilon`, until particles have moved `wanted` times on average, or `most` sweeps were done.

    Args:
      goal: the run's epsilon, outside of which rejected proposals are kept.
      state: tokens, distance, position, log prior and moves of each particle; tokens, distance and position of the rejected.

    Returns:
      The state; proposals and accepted ones of each kind, int32[K]; and the number of sweeps.
    """
    kinds = jnp.arange(len(self._moves))
    width = 1 + _COMPOSED * (1 + max(move.uniforms for move in self._moves))

    def going(carry):
      return (carry[0] < most) & (jnp.mean(carry[1]["moves"].astype(jnp.float32)) < wanted)

    def sweep(carry):
      step, state, proposed, accepted = carry
      keys = parallel.fold_in_each(jax.random.fold_in(key, step), jnp.arange(len(state["tokens"])))
      uniforms = jax.vmap(lambda key: jax.random.uniform(key, (1 + width,)))(keys)
      new, prior, ratio, kind = self._propose(uniforms[:, 1:], state["tokens"], state["prior"])
      far, where = self._distances(params, query, new)
      accept = jnp.log(uniforms[:, 0]) < prior - state["prior"] + ratio
      inside, changed = far <= epsilon, (new != state["tokens"]).any(axis=1)
      rejected = _nearest_outside(state, new, far, where, far > goal)
      moved = accept & inside & changed

      def updated(name, value):
        return jnp.where(moved if value.ndim == 1 else moved[:, None], value, state[name])

      state = {
        **{
          name: updated(name, x)
          for name, x in (("tokens", new), ("distance", far), ("position", where), ("prior", prior))
        },
        **rejected,
        "moves": state["moves"] + moved,
      }
      mine = kind[:, None] == kinds
      return step + 1, state, proposed + mine.sum(axis=0), accepted + (mine & moved[:, None]).sum(axis=0)

    zero = jnp.zeros(len(self._moves), jnp.int32)
    step, state, proposed, accepted = jax.lax.while_loop(going, sweep, (jnp.int32(0), state, zero, zero))
    return state, proposed, accepted, step


def _nearest_outside(state, tokens, distance, position, outside) -> dict[str, jax.Array]:
  """The nearest different proposals outside epsilon so far: those that were kept and those of this sweep, as many as before."""
  far = jnp.concatenate([state["rejected_distance"], jnp.where(outside, distance, jnp.inf)])
  tokens = jnp.concatenate([state["rejected_tokens"], tokens])
  position = jnp.concatenate([state["rejected_position"], position])
  # Equal texts side by side, by a hash among those at one distance; few of them would fill all places otherwise.
  hashed = (
    tokens.astype(jnp.uint32) * (jnp.arange(1, tokens.shape[1] + 1, dtype=jnp.uint32) * np.uint32(2654435761))
  ).sum(axis=1)
  order = jnp.lexsort((hashed, far))
  again = (tokens[order][1:] == tokens[order][:-1]).all(axis=1)
  far = far.at[order[1:]].set(jnp.where(again, jnp.inf, far[order[1:]]))
  nearest = jnp.argsort(far)[: len(state["rejected_distance"])]
  return {"rejected_tokens": tokens[nearest], "rejected_distance": far[nearest], "rejected_position": position[nearest]}


class _Run:
  """One query on its way from the prior to epsilon; small arrays on the host, one program call per level."""

  def __init__(self, sampler: MonteCarlo, query: Queries, epsilon: np.float32, seed: int, start, budget: int):
    self._budget = budget
    self._sampler, self._query, self._goal = sampler, query, epsilon
    self._settings, task = sampler.settings, sampler._task
    count = self._settings.particles
    self._rng, self._key = np.random.default_rng([seed, 0x51C]), jax.random.key(seed)
    tokens = np.asarray(task.tokens(self._rng.integers(task.num_inputs, size=count)), np.int32)
    self._from_prior = start is None
    if start is not None:
      valid = np.asarray(start, np.int32)[np.isfinite(np.asarray(task.log_prior(np.asarray(start))))][:count]
      tokens[: len(valid)] = valid
      tokens = tokens[self._rng.permutation(count)]
    self._island = np.arange(count) * _ISLANDS // count
    distance, position = map(np.asarray, sampler._measure(sampler._params, query, tokens))
    self._state = {
      "tokens": tokens,
      "distance": distance,
      "position": position,
      "prior": np.asarray(sampler.log_prior(jnp.asarray(tokens)), np.float32),
      "moves": np.zeros(count, np.int32),
      "rejected_tokens": np.zeros((_REJECTED, tokens.shape[1]), np.int32),
      "rejected_distance": np.full(_REJECTED, np.inf, np.float32),
      "rejected_position": np.full(_REJECTED, -1, np.int32),
    }
    self._epsilon, self._runs, self._levels = np.float32(np.inf), count, []
    self._log2, self._variance = np.zeros(_ISLANDS), np.zeros(_ISLANDS)
    self._calls, self._crossed, self.done = 0, False, False

  def next_level(self) -> Level:
    """Lowers the threshold, resamples and sweeps; at epsilon, sweeps until converged or out of budget."""
    s = self._settings
    if self._epsilon > self._goal:
      survivors = self._resample(self._next_epsilon())
    else:
      survivors = 1.0
    final = self._epsilon <= self._goal
    left = max(1, (self._budget - self._runs) // s.particles)
    level = self._sweep(survivors, s.final_moves if final else s.moves, min(s.sweeps, left))
    self._levels.append(level)
    stuck = len(self._levels) >= _MAX_LEVELS
    self.done = stuck or self._runs + s.particles > self._budget or (final and not self._problem())
    return level

  def _next_epsilon(self) -> np.float32:
    """The quantile of the distances; where so many are tied that it does not fall, the largest distance below the last threshold."""
    distance, above = np.sort(self._state["distance"]), 1 + _ROUNDING
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
    for island in range(_ISLANDS):
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
    for name in ("tokens", "distance", "position", "prior"):
      self._state[name] = self._state[name][picked]
    self._state["moves"] = np.zeros_like(self._state["moves"])
    return float(np.mean(shares))

  def _sweep(self, survivors: float, wanted: float, most: int) -> Level:
    sampler = self._sampler
    # Moves of the calls before count, so that the final level goes on where it was.
    wanted = wanted if self._state["moves"].mean() < wanted else np.inf
    key = jax.random.fold_in(self._key, self._calls)
    self._calls += 1
    out = sampler._sweep(
      sampler._params, self._query, key, self._epsilon, self._goal, np.float32(wanted), np.int32(most), self._state
    )
    state, proposed, accepted, sweeps = jax.tree.map(np.asarray, out)
    self._state = state
    self._runs += int(sweeps) * self._settings.particles
    rates = accepted / np.maximum(proposed, 1)
    return Level(
      epsilon=float(self._epsilon),
      survivors=survivors,
      acceptance={move.name: float(rate) for move, rate in zip(sampler._moves, rates, strict=True)},
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
    ratio = disagreement(self._state["tokens"], self._island, self._sampler._task.tokenizer.vocab_size)
    if ratio > self._settings.disagreement:
      return f"two independent populations disagree, {ratio:.1f} times as much as independent samples would"
    return ""

  def population(self) -> Population:
    """The result so far."""
    s, problem = self._state, self._problem()
    order = np.argsort(s["distance"], kind="stable")
    _, first = np.unique(s["rejected_tokens"], axis=0, return_index=True)
    kept = np.array(sorted(i for i in first if np.isfinite(s["rejected_distance"][i])), int)
    bits = self._from_prior and self._epsilon <= self._goal
    # Log-means of independent estimates: their average has their variance over their number, in bits.
    error = max(np.sqrt(self._variance.mean() / _ISLANDS) / np.log(2), np.ptp(self._log2) / 2)
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


def disagreement(tokens: np.ndarray, island: np.ndarray, vocabulary: int) -> float:
  """Total variation between the token marginals of two islands, over what two independent samples of their size show on average.

  Args:
    tokens: int32[N, T].
    island: int[N], 0 or 1.
    vocabulary: V.

  Returns:
    The ratio of the two, each summed over positions; 0 where all particles are equal.
  """
  counts = [
    np.stack([np.bincount(column, minlength=vocabulary) for column in tokens[island == i].T]) for i in range(_ISLANDS)
  ]
  sizes = [count[0].sum() for count in counts]
  found = 0.5 * np.abs(counts[0] / sizes[0] - counts[1] / sizes[1]).sum()
  p = (counts[0] + counts[1]) / sum(sizes)
  # |difference| of two means of a share p: sqrt(2 / pi) times its standard deviation sqrt(p (1 - p) (1 / n + 1 / m)).
  expected = 0.5 * np.sqrt(2 / np.pi * p * (1 - p) * sum(1 / size for size in sizes)).sum()
  return float(found / expected) if expected else 0.0
