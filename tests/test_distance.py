"""Distances between activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import distance
from inversionview_jax.errors import InversionViewError

QUERY = np.array([3.0, 4.0], np.float32)  # of length 5
ACTIVATIONS = np.array(
  [
    [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [-3.0, -4.0]],
    [[4.0, -3.0], [3.0, 4.5], [3.0, 4.0], [3.0, 4.0]],
    [[3.0, 4.0], [3.0, 4.0], [3.0, 4.0], [3.0, 4.0]],
  ],
  np.float32,
)
EUCLIDEAN = [[0.0, 1.0, 1.0, 2.0], [50**0.5 / 5, 0.1, 0.0, 0.0], [0.0] * 4]
COSINE = [[0.0, 1.0, 0.0, 2.0], [1.0, 1 - 27 / (5 * 29.25**0.5), 0.0, 0.0], [0.0] * 4]
COUNTED = np.array([[False, True, True, True], [True, True, False, False], [False] * 4])


@pytest.mark.parametrize("metric, expected", [("euclidean", EUCLIDEAN), ("cosine", COSINE)])
def test_distance_is_the_one_computed_by_hand(metric, expected):
  got = distance.distance(metric, jnp.asarray(ACTIVATIONS), jnp.asarray(QUERY))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, expected, atol=1e-6)
  one_query_per_row = jnp.broadcast_to(QUERY, (3, 1, 2))
  np.testing.assert_array_equal(distance.distance(metric, jnp.asarray(ACTIVATIONS), one_query_per_row), got)


def test_euclidean_distance_is_normalized_by_the_query_and_cosine_is_symmetric():
  one, other = jnp.array([3.0, 4.0]), jnp.array([0.0, 1.0])
  np.testing.assert_allclose(distance.distance("euclidean", one, other), 18**0.5, rtol=1e-6)
  np.testing.assert_allclose(distance.distance("euclidean", other, one), 18**0.5 / 5, rtol=1e-6)
  np.testing.assert_allclose(distance.distance("cosine", one, other), 0.2, rtol=1e-6)
  np.testing.assert_allclose(distance.distance("cosine", other, one), 0.2, rtol=1e-6)


@pytest.mark.parametrize("metric", distance.METRICS)
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e-11])
def test_zero_is_at_distance_0_of_zero_and_outside_any_epsilon_below_1_of_everything_else(metric, scale):
  zero, other = np.zeros(2, np.float32), QUERY * np.float32(scale)
  left_by_softmax = np.array([0, 2e-18], np.float32)  # which counts as zero
  for make in (np.asarray, jnp.asarray):
    activations, far = make(np.stack([zero, left_by_softmax, other])), make(other)
    for query in (zero, left_by_softmax):
      to_zero = np.asarray(distance.distance(metric, activations, make(query)))
      assert (to_zero[:2] == 0).all() and 1 <= to_zero[2] < np.inf
    from_zero = np.asarray(distance.distance(metric, activations, far))
    np.testing.assert_allclose(from_zero, [1.0, 1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("metric", distance.METRICS)
def test_the_size_of_the_activations_does_not_matter(metric):
  ones = distance.distance(metric, jnp.asarray(ACTIVATIONS), jnp.asarray(QUERY))
  for scale in (1e-9, 1e9):
    got = distance.distance(metric, jnp.asarray(ACTIVATIONS * scale), jnp.asarray(QUERY * np.float32(scale)))
    np.testing.assert_allclose(got, ones, atol=1e-6)


@pytest.mark.parametrize("metric", distance.METRICS)
def test_bfloat16_activations_are_compared_in_float32(metric):
  key, other = jax.random.split(jax.random.key(0))
  activation = jax.random.normal(key, (5, 300)).astype(jnp.bfloat16)
  query = jax.random.normal(other, (300,)).astype(jnp.bfloat16)
  got = distance.distance(metric, activation, query)
  assert got.dtype == jnp.float32
  wide, wide_query = np.asarray(activation, np.float64), np.asarray(query, np.float64)
  if metric == "euclidean":
    expected = np.linalg.norm(wide - wide_query, axis=-1) / np.linalg.norm(wide_query)
  else:
    expected = 1 - wide @ wide_query / np.linalg.norm(wide, axis=-1) / np.linalg.norm(wide_query)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "metric, minima, positions",
  [("euclidean", [1.0, 0.1, np.inf], [1, 1, -1]), ("cosine", [0.0, COSINE[1][1], np.inf], [2, 1, -1])],
)
def test_minimum_ignores_padding_and_is_infinite_where_nothing_counts(metric, minima, positions):
  distances = distance.distance(metric, jnp.asarray(ACTIVATIONS), jnp.asarray(QUERY))
  minimum, position = jax.jit(distance.masked_min)(distances, jnp.asarray(COUNTED))
  np.testing.assert_allclose(minimum, minima, atol=1e-6)
  np.testing.assert_array_equal(position, positions)
  assert (minimum.dtype, position.dtype) == (jnp.float32, jnp.int32)


def test_minimum_is_taken_row_by_row_over_all_leading_axes():
  distances, counted = np.array([[[2.0, 1.0], [3.0, 4.0]]], np.float32), np.array([[[True, True], [False, True]]])
  minimum, position = distance.masked_min(jnp.asarray(distances), jnp.asarray(counted))
  np.testing.assert_array_equal(minimum, [[1.0, 4.0]])
  np.testing.assert_array_equal(position, [[1, 1]])


@pytest.mark.parametrize("name", ["cosin", "l2", ""])
def test_unknown_metric_is_named_with_the_known_ones(name):
  with pytest.raises(InversionViewError) as caught:
    distance.distance(name, jnp.ones(2), jnp.ones(2))
  assert repr(name) in str(caught.value)
  assert all(metric in str(caught.value) for metric in distance.METRICS)


@pytest.mark.parametrize("metric", distance.METRICS)
def test_numpy_arrays_give_the_same_without_jax(metric):
  got = distance.distance(metric, ACTIVATIONS, QUERY)
  assert isinstance(got, np.ndarray) and got.dtype == np.float32
  np.testing.assert_allclose(got, distance.distance(metric, jnp.asarray(ACTIVATIONS), jnp.asarray(QUERY)), atol=1e-6)


@pytest.mark.parametrize("metric", distance.METRICS)
def test_gradients_are_those_of_finite_differences_and_finite_where_the_distance_is_zero(metric):
  def far(activation):
    return distance.distance(metric, activation, jnp.asarray(QUERY))

  at = np.array([1.0, -2.0])
  steps = [np.eye(2)[i] * 1e-3 for i in range(2)]
  exact = {
    "euclidean": lambda x: np.linalg.norm(x - QUERY) / 5,
    "cosine": lambda x: 1 - x @ QUERY / np.linalg.norm(x) / 5,
  }[metric]
  expected = [(exact(at + step) - exact(at - step)) / 2e-3 for step in steps]
  np.testing.assert_allclose(jax.grad(far)(jnp.asarray(at, jnp.float32)), expected, atol=1e-5)
  for singular in (QUERY, np.zeros(2, np.float32)):
    assert np.isfinite(jax.grad(far)(jnp.asarray(singular))).all()
  for activation in (QUERY, np.zeros(2, np.float32)):  # of a query that is zero, and with respect to it
    both = jax.grad(lambda z, query: distance.distance(metric, z, query), argnums=(0, 1))
    assert np.isfinite(both(jnp.asarray(activation), jnp.zeros(2))).all()
