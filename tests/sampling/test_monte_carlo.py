"""Monte Carlo preimages against exact ones of a task that can be enumerated; on any devices; and what is said where they cannot be relied on."""

import functools

import jax
import numpy as np
import pytest

from inversionview_jax import sites, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.monte_carlo import MonteCarlo
from inversionview_jax.sampling.nearness import Nearness
from inversionview_jax.sampling.particles import Settings, disagreement
from inversionview_jax.targets import load_target
from inversionview_jax.tasks.moves import Move, choice, symmetric

SITES = tuple(map(sites.parse, ("x0.pre", "a1.1", "x1.post")))
N = 512

pytestmark = pytest.mark.usefixtures("quick_to_compile")


class Digits(tasks.Task):
  """Four digits; the first is 9 in seven of sixteen inputs and uniform in the others, and the rest are uniform. Several indices are one text."""

  tokenizer = tasks.get("addition").tokenizer
  length = 6
  num_inputs = 16_000
  enumerable = True

  def tokens(self, index):
    index = np.asarray(index)[:, None]
    t, first = self.tokenizer, np.minimum(index // 1000, 9)
    rest = index // [100, 10, 1] % 10
    ends = (np.full_like(first, token) for token in (t.bos_id, t.eos_id))
    return np.concatenate([next(ends), first, rest, next(ends)], axis=1).astype(np.int32)

  def log_prior(self, tokens):
    xp = tokens.__array_namespace__()
    right = ((tokens[:, 1:5] >= 0) & (tokens[:, 1:5] <= 9)).all(axis=1)
    return xp.where(right, xp.log(xp.where(tokens[:, 1] == 9, 7.0, 1.0) / 16_000), -xp.inf)

  def moves(self):
    return (Move("redraw a digit", 2, self.redraw), Move("one up", 2, self.one_up, 0.5))

  def redraw(self, uniforms, tokens):
    xp = tokens.__array_namespace__()
    at = xp.arange(6)[None, :] == 1 + choice(uniforms[:, :1], 4)
    return xp.where(at, choice(uniforms[:, 1:], 10), tokens), symmetric(tokens)

  def one_up(self, uniforms, tokens):
    """One digit up (once in four) or down; above 9 it is no input."""
    xp = tokens.__array_namespace__()
    at = xp.arange(6)[None, :] == 1 + choice(uniforms[:, :1], 4)
    up = uniforms[:, 1] < 0.25
    ratio = xp.log(xp.where(up, 3.0, 1 / 3)).astype(xp.float32)
    return tokens + at * xp.where(up, 1, -1).astype(tokens.dtype)[:, None], ratio

  def loss_mask(self, tokens):
    return tokens >= 0


TASK = Digits()


def query_of(target, index, site, position, where=-1):
  tokens = TASK.tokens(np.array([index]))
  z = np.asarray(target.run(tokens, [SITES[site]])[SITES[site]])[0, position]
  return Queries.of(z[None], site, "euclidean", where)


@pytest.fixture(scope="module")
def sampler(small_target, meshes):
  return MonteCarlo(small_target, TASK, SITES, meshes(1), Settings(particles=N))


@pytest.fixture(scope="module")
def every(small_target, meshes):
  """A function (queries) -> float32[inputs], the distance of every input."""
  index = exact.every_input(TASK)
  return lambda queries: exact.distances(small_target, TASK, SITES, queries, index, meshes(1)).distance[0]


@pytest.mark.parametrize(
  ("site", "position", "share"),
  [(0, 3, 0.05), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, 4, 0.02), (2, 4, 0.01))), (2, 3, 0.3)],
)
def test_particles_are_the_exact_preimage(sampler, small_target, every, site, position, share):
  query = query_of(small_target, 4321, site, position, position)
  distance = every(query)
  epsilon = float(np.quantile(distance, share))
  members = np.flatnonzero(distance <= np.float32(epsilon))
  population = sampler.run(query, epsilon, seed=1)
  assert population.converged and population.problem == ""
  assert (population.distance <= np.float32(epsilon)).all() and np.isfinite(TASK.log_prior(population.tokens)).all()
  np.testing.assert_allclose(population.distance, every_of(small_target, query, population.tokens), atol=2e-6)
  truth = -np.log2(len(members) / TASK.num_inputs)
  assert abs(population.bits - truth) <= 4 * population.bits_error + 0.1
  # Marginals: total variation against what as many independent members show.
  inputs, rng = TASK.tokens(members), np.random.default_rng(0)
  ideal = np.mean([variation(inputs[rng.integers(len(inputs), size=N)], inputs) for _ in range(20)])
  assert variation(population.tokens, inputs) <= 2.5 * ideal + 0.005
  outside = population.rejected_distance
  assert len(outside) > 20 and (outside > np.float32(epsilon)).all() and (np.diff(outside) >= 0).all()
  assert len(np.unique(population.rejected_tokens, axis=0)) == len(outside)
  assert population.target_runs == N * (1 + sum(level.sweeps for level in population.levels))


def every_of(target, query, tokens):
  """Distances at the query's position, from running the target by hand."""
  site, at = SITES[int(query.site[0])], int(query.position[0])
  z = np.asarray(target.run(tokens, [site])[site])[:, at]
  return np.linalg.norm(z - query.activation, axis=1) / np.linalg.norm(query.activation)


def variation(tokens, members):
  def share(rows):
    return np.stack([np.bincount(column, minlength=10) / len(rows) for column in rows[:, 1:5].T])

  return 0.5 * np.abs(share(tokens) - share(members)).sum(axis=1).mean()


def test_devices_do_not_matter(sampler, small_target, meshes):
  query = query_of(small_target, 4321, 1, 4)
  one = sampler.run(query, 0.2, seed=3)
  eight = MonteCarlo(small_target, TASK, SITES, meshes(8), Settings(particles=N)).run(query, 0.2, seed=3)
  for name in ("tokens", "position", "rejected_tokens"):
    np.testing.assert_array_equal(getattr(one, name), getattr(eight, name), err_msg=name)
  np.testing.assert_allclose(one.distance, eight.distance, atol=2e-6)
  assert (one.bits, one.target_runs, one.converged) == (eight.bits, eight.target_runs, eight.converged)
  other = sampler.run(query, 0.2, seed=4)
  assert (other.tokens != one.tokens).any()


@pytest.mark.slow
def test_a_target_split_over_a_model_axis_is_the_same(sampler, small_target):
  query, mesh = query_of(small_target, 4321, 1, 4), parallel.make_mesh(data=2, model=2, devices=jax.devices()[:4])
  split = MonteCarlo(small_target, TASK, SITES, mesh, Settings(particles=N))
  whole, found = (made.run(query, 0.2, seed=3, budget=4 * N) for made in (sampler, split))
  np.testing.assert_array_equal(whole.tokens, found.tokens)
  np.testing.assert_allclose(whole.distance, found.distance, atol=2e-6)
  kernel = split._program._params["blocks_0"]["mlp"]["fc"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size / 2


def test_a_small_budget_ends_with_what_was_reached(sampler, small_target):
  query = query_of(small_target, 4321, 2, 4)
  population = sampler.run(query, 0.001, budget=3 * N)
  assert not population.converged and population.bits is None and population.bits_error is None
  assert "epsilon was not reached" in population.problem and population.target_runs <= 3 * N
  assert len(population.tokens) == N and (population.distance <= population.levels[-1].epsilon).all()


def test_a_budget_that_ends_above_epsilon_takes_what_is_inside(sampler, small_target, every):
  query = query_of(small_target, 4321, 2, 4)
  epsilon = float(np.quantile(every(query), 0.2))  # the first threshold is near the median
  population = sampler.run(query, epsilon, budget=2 * N)
  assert (population.distance <= np.float32(epsilon)).all() and population.levels[-1].sweeps == 0
  assert not population.converged and "have moved 0.0 times" in population.problem
  assert abs(population.bits - np.log2(1 / 0.2)) < 4 * population.bits_error + 0.1


def test_an_epsilon_that_only_the_query_meets(sampler, small_target, every):
  query = query_of(small_target, 4321, 2, 4, 4)
  distance = np.sort(every(query))
  assert distance[1] > 4e-4
  population = sampler.run(query, 2e-4)
  np.testing.assert_array_equal(np.unique(population.tokens, axis=0), TASK.tokens(np.array([4321])))
  assert population.converged and population.levels[-1].distinct == 1
  assert abs(population.bits - np.log2(16_000)) < 4 * population.bits_error + 0.5


@pytest.mark.parametrize("index, bits", [(3123, 4.0), (12_123, np.log2(16 / 7))])
def test_inputs_at_one_distance_are_all_taken(sampler, small_target, index, bits):
  """The first position sees the first digit only: ten distances, and all inputs with the same digit tie."""
  population = sampler.run(query_of(small_target, index, 2, 1, 1), 1e-3)
  assert population.converged and (population.tokens[:, 1] == min(index // 1000, 9)).all()
  assert abs(population.bits - bits) < 4 * population.bits_error + 0.05
  assert population.levels[-1].distinct > 0.5 * N * (1 - np.exp(-1000 / N))  # of the thousand inputs


def test_texts_to_begin_with_may_be_few_and_no_inputs(sampler, small_target):
  query = query_of(small_target, 4321, 1, 4)
  start = np.concatenate([TASK.tokens(np.array([4321, 4321])), np.full((1, 6), TASK.tokenizer.pad_id, np.int32)])
  population = sampler.run(query, 0.2, start=start)
  assert population.bits is None and population.converged and np.isfinite(TASK.log_prior(population.tokens)).all()


@pytest.mark.parametrize(
  "default", ["exchanges with drawn inputs", pytest.param("a list of the inputs", marks=pytest.mark.slow)]
)
def test_a_task_without_moves_of_its_own_is_sampled_by_the_default_ones(small_target, meshes, every, default):
  """From texts that all begin with 0, and from the prior: both end where the exact preimage is."""

  class Still(Digits):
    moves = tasks.Task.moves

  class Listed(Still):
    log_prior = tasks.Task.log_prior

  task, index = (Listed if default.startswith("a list") else Still)(), 9876
  query = query_of(small_target, index, 0, 2, 2)  # the embedding of the second digit: 1,600 indices, or so
  sampler = MonteCarlo(small_target, task, SITES, meshes(1), Settings(particles=N, final_moves=40.0))
  bits = np.log2(task.num_inputs / (every(query) <= np.float32(1e-3)).sum())
  population = sampler.run(query, 1e-3)
  assert population.converged and (population.tokens[:, 2] == 8).all()
  assert abs(population.bits - bits) < 4 * population.bits_error + 0.05
  begun = sampler.run(query, 1e-3, start=task.tokens(np.full(N, 876)))
  for found in (population, begun):
    share = (found.tokens[:, 1] == 9).mean()  # seven of sixteen
    assert abs(share - 7 / 16) < 4 * np.sqrt(7 / 16 * 9 / 16 / N)


def test_what_cannot_be_sampled_is_refused_in_one_line(small_target, meshes):
  class NoPrior(Digits):
    enumerable = False
    log_prior = tasks.Task.log_prior

  class NeitherPriorNorMoves(NoPrior):
    moves = tasks.Task.moves

  class OnTheHost(Digits):
    def log_prior(self, tokens):
      return np.log(np.array(tokens)[:, 0])

  class OneNumber(Digits):
    def log_prior(self, tokens):
      return tokens.sum()

  for task, devices, particles, message in (
    (TASK, 8, 24, "24 particles do not divide into two populations on 8 devices: use a multiple of 16"),
    (TASK, 1, 7, "7 particles do not divide into two populations on 1 device: use a multiple of 2"),
    (NoPrior(), 1, 8, "has no log_prior, the probability of its inputs"),
    (NeitherPriorNorMoves(), 1, 8, "has no moves and no log_prior, which Monte Carlo needs: define Task.log_prior"),
    (OnTheHost(), 1, 8, "log_prior of the task .*OnTheHost' does not run on JAX arrays inside jit .TracerArray"),
    (OneNumber(), 1, 8, r"log_prior .* gives arrays of shapes \[\(\)\] for tokens of shape \(2, 6\), not \[\(2,\)\]"),
  ):
    with pytest.raises(InversionViewError, match=message) as caught:
      MonteCarlo(small_target, task, SITES, meshes(devices), Settings(particles=particles))
    assert "\n" not in str(caught.value)


def test_disagreement_is_one_for_independent_samples_and_large_for_others():
  rng = np.random.default_rng(0)
  island = np.arange(2000) % 2
  same = np.mean([disagreement(rng.integers(10, size=(2000, 6)), island, 10) for _ in range(20)])
  assert abs(same - 1) < 0.1
  differ = np.where(island[:, None] == 0, rng.integers(5, size=(2000, 6)), rng.integers(10, size=(2000, 6)))
  # Halves of the values against all of them: a variation of 0.5, where 1,000 and 1,000 draws show 0.051.
  assert abs(disagreement(differ, island, 10) - 9.8) < 0.5
  assert disagreement(np.ones((2000, 6), int), island, 10) == 0


def test_computing_what_a_query_and_its_inputs_need_is_computing_everything(meshes):
  target, task = load_target("counting"), tasks.get("counting")
  names = tuple(map(target.site, ("a0.0", "x0.mid", "x1.post")))
  near = Nearness(target, task, names, meshes(2))
  assert len(near._widths) > 2 and len(near._sites_of) > 1
  programs = jax.jit(near), jax.jit(functools.partial(near, whole=True))
  rows = np.asarray(task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=600)), np.int32)
  mixed, rows = rows[:64], rows[np.argsort((rows != task.tokenizer.pad_id).sum(axis=1))]
  run = target.run(rows[:1], names)
  for where in (-1, 30):  # some texts have no position 30
    for i, site in enumerate(names):
      query = Queries.of(np.asarray(run[site])[0, 3][None], i, "euclidean", where)
      for tokens in (rows[:64], mixed, rows[-64:]):
        some, everything = (program(target.params, query, None, tokens) for program in programs)
        np.testing.assert_allclose(some[0], everything[0], rtol=1e-5, atol=2e-6)
        np.testing.assert_array_equal(some[1], everything[1])
  # Parts of different widths are the same on any number of devices.
  query = Queries.of(np.asarray(run[names[-1]])[0, 3][None], 0, "euclidean", -1)
  many = [jax.jit(Nearness(target, task, names[-1:], meshes(n)))(target.params, query, None, rows) for n in (1, 8)]
  np.testing.assert_array_equal(many[0], many[1])
