"""Exact preimages: enumeration agrees with running the target by hand, on any devices, and refuses what it cannot do."""

import jax
import numpy as np
import pytest

from inversionview_jax import distance, sites, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Queries

TASK = tasks.get("addition")
SITES = tuple(map(sites.parse, ("x0.pre", "a0.1", "m0", "x1.post")))
INDEX = np.random.default_rng(0).integers(TASK.num_inputs, size=1500)  # not a multiple of what one call takes

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def queries(small_target):
  """Every site; the minimum over positions and one position only; both metrics."""
  run = small_target.run(TASK.tokens(INDEX[:1]), capture=SITES)
  settings = [(0, 2, -1, 0), (1, 8, -1, 0), (3, 5, 5, 0), (2, 8, -1, 1), (1, 4, 9, 1)]
  site, at, position, metric = (np.array(x, np.int32) for x in zip(*settings))
  z = np.stack([np.asarray(run[SITES[s]])[0, t] for s, t in zip(site, at)])
  return Queries(z, site, position, metric)


@pytest.fixture(scope="module")
def distances(small_target, queries, meshes):
  return exact.distances(small_target, TASK, SITES, queries, INDEX, meshes(1))


def test_distances_are_those_of_running_the_target(distances, small_target, queries):
  tokens = TASK.tokens(INDEX)
  run = small_target.run(tokens, capture=SITES)
  counted = np.asarray(TASK.counted_mask(tokens))
  for q in range(len(queries.site)):
    captured = np.asarray(run[SITES[queries.site[q]]])
    each = np.asarray(distance.distance(list(distance.METRICS)[queries.metric[q]], captured, queries.activation[q]))
    allowed = counted & ((queries.position[q] < 0) | (np.arange(tokens.shape[1]) == queries.position[q]))
    each = np.where(allowed, each, np.inf)
    np.testing.assert_allclose(distances.distance[q], each.min(axis=1), atol=2e-6)
    nearest = np.take_along_axis(each, np.maximum(distances.position[q], 0)[:, None].astype(int), axis=1)[:, 0]
    np.testing.assert_allclose(nearest, each.min(axis=1), atol=2e-6)


def test_an_input_is_in_its_own_preimage_and_members_are_those_within_epsilon(distances):
  assert distances.distance[0, 0] < 1e-6 and distances.position[0, 0] == 2
  members = distances.members(0, 0.1)
  assert INDEX[0] in members
  np.testing.assert_array_equal(members, INDEX[distances.distance[0] <= np.float32(0.1)])
  assert 0 < len(members) < len(INDEX)


def test_devices_do_not_matter(distances, small_target, queries, meshes):
  other = exact.distances(small_target, TASK, SITES, queries, INDEX, meshes(8))
  np.testing.assert_allclose(other.distance, distances.distance, atol=2e-6)
  np.testing.assert_array_equal(other.position, distances.position)


def test_part_of_the_queries_gives_their_part_of_the_answer(distances, small_target, queries, meshes):
  some = jax.tree.map(lambda x: x[[3, 1]], queries)  # other sites, so another program
  np.testing.assert_allclose(
    exact.distances(small_target, TASK, SITES, some, INDEX, meshes(1)).distance, distances.distance[[3, 1]], atol=2e-6
  )


def test_position_that_an_input_does_not_have_is_no_match(small_target, queries):
  short, long = TASK.index(TASK.tokens_of([100, 600], [100, 700]))  # answers of 3 and of 4 digits
  at_last = Queries(queries.activation[:1], queries.site[:1], np.array([12], np.int32), queries.metric[:1])
  distances = exact.distances(small_target, TASK, SITES, at_last, np.array([short, long]))
  assert distances.distance[0, 0] == np.inf and distances.position[0, 0] == -1
  assert np.isfinite(distances.distance[0, 1]) and distances.position[0, 1] == 12


def test_every_input_of_addition_and_none_of_counting():
  assert len(exact.every_input(TASK)) == 810_000
  with pytest.raises(InversionViewError, match="task 'counting' cannot be enumerated"):
    exact.every_input(tasks.get("counting"))


def test_more_than_fits_is_refused_and_what_would_fit_is_named(small_target, queries, monkeypatch):
  monkeypatch.setattr(exact, "_free_memory", lambda: 2 * len(INDEX) * 5)
  with pytest.raises(InversionViewError, match="use at most 2 queries at a time"):
    exact.distances(small_target, TASK, SITES, queries, INDEX)


def test_index_is_the_inverse_of_tokens_and_knows_what_is_no_input():
  np.testing.assert_array_equal(TASK.index(TASK.tokens(INDEX)), INDEX)
  wrong_sum = TASK.tokens_of([615], [861], [1475])
  broken = TASK.tokens_of([615], [861])
  broken[0, 4] = 3
  assert TASK.index(np.concatenate([wrong_sum, broken])).tolist() == [-1, -1]
