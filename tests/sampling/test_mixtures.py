"""Mixtures: noise, directions, and rounds that suppress rare tokens drawn too often (paper, sampling for factual recall)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading import Reader
from inversionview_jax.sampling import candidates, mixtures
from inversionview_jax.tasks import Mixture, addition

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_vectors_have_the_given_cosine_and_norm():
  z, drawn = (jax.random.normal(jax.random.key(k), (5, 64)) for k in (0, 1))
  cosine, factor = jnp.array([1.0, 0.9, 0.75, 0.0, -0.5]), jnp.array([1.0, 0.4, 2.0, 1.0, 1.0])
  out = mixtures.vectors_at_cosine(z, drawn, cosine, factor)
  norm = np.linalg.norm(out, axis=1)
  np.testing.assert_allclose(norm, factor * np.linalg.norm(z, axis=1), rtol=1e-5)
  np.testing.assert_allclose(np.sum(out * z, axis=1) / norm / np.linalg.norm(z, axis=1), cosine, atol=1e-5)


def test_noise_is_in_units_of_the_querys_standard_deviation():
  z, normal = np.random.default_rng(0).normal(size=(2, 5, 64)).astype(np.float32)
  other = np.ones_like(z)
  eta = np.array([0.0, 0.1, 0.2, 0.5, 1.0], np.float32)
  out = mixtures.add_noise(z, eta, normal)
  assert isinstance(out, np.ndarray) and out.dtype == np.float32
  np.testing.assert_allclose(out, z + eta[:, None] * z.std(axis=1, keepdims=True) * normal, rtol=1e-6)
  np.testing.assert_array_equal(mixtures.add_noise(z[1], 0.1, normal[1]), out[1])
  np.testing.assert_allclose(mixtures.add_noise(jnp.asarray(z), eta, normal), out, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(mixtures.add_noise(other, eta, normal, query=z) - other, out - z, rtol=1e-3, atol=1e-5)


def test_rows_of_directions_have_one_minus_the_cosine():
  rows = candidates.mixture_rows(((1.0, 0.9), (1.0, 0.75)), 6, queries=2, directions=True)
  assert rows.directions.all() and rows.directions.shape == (12,)
  np.testing.assert_allclose(rows.noise, np.tile([0.1, 0.25], 6), atol=1e-6)
  parts = candidates.rows_by_round(rows, 6, 2)
  assert [part.tolist() for part in parts] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
  assert sorted(np.concatenate(candidates.rows_by_round(rows, 6, 4)).tolist()) == list(range(12))


def test_overused_tokens_are_rare_and_drawn_too_often_at_their_position():
  tokens = np.array([[0, 3, 4], [0, 3, 5], [0, 3, 4], [0, 4, 3]])
  rare = np.array([False, False, False, True, False, True])
  out = candidates.overused_tokens(tokens, np.array([0, 0, 0, 1]), 2, rare, 2)
  assert out.shape == (2, 3, 6) and np.argwhere(out).tolist() == [[0, 1, 3]]
  assert not candidates.overused_tokens(tokens, np.array([0, 0, 0, 1]), 2, rare, 3).any()


@pytest.mark.parametrize(
  "wrong", [{"settings": ((1.0, 1.2),), "directions": True}, {"settings": ((1.0, 0.0),), "repeats": 5}]
)
def test_inconsistent_mixtures_are_refused(wrong):
  with pytest.raises(InversionViewError):
    Mixture(**wrong)


class RareDigits(addition.Addition):
  """Additions in which every digit is rare."""

  rare = np.array([token.isdigit() for token in addition.Addition().tokenizer.vocabulary])
  mixtures = {"plain": Mixture(((1.0, 0.0),), num_samples=32)}


@pytest.fixture(scope="module")
def reader(small_target, small_decoder):
  return Reader(small_target, RareDigits(), *small_decoder)


def random_queries(reader, count=2):
  z = np.random.default_rng(0).normal(size=(count, reader.config.d_activation)).astype(np.float32)
  return candidates.Queries.of(z, 0, "euclidean")


def most_often(tokens, digits):
  """The largest count of a digit at a position."""
  return max((tokens == d).sum(axis=0).max() for d in digits)


@pytest.mark.slow
def test_later_rounds_do_not_draw_rare_tokens_that_were_drawn_too_often(reader):
  digits = np.flatnonzero(reader.task.rare)
  mixture = Mixture(((0.2, 0.0),), num_samples=64, rounds=4, repeats=5)
  out, rows = reader.draw_mixture(random_queries(reader), mixture, seed=0)
  plain, _ = reader.draw_mixture(random_queries(reader), Mixture(((0.2, 0.0),), num_samples=64), seed=0)
  parts = candidates.rows_by_round(rows, 64, 4)
  np.testing.assert_array_equal(out.tokens[parts[0]], plain.tokens[parts[0]])  # the first round knows of none before it
  seen = 0
  for number in range(1, 4):
    earlier = np.concatenate(parts[:number])
    used = candidates.overused_tokens(out.tokens[earlier], rows.query[earlier], 2, reader.task.rare, 5)
    seen += used.sum()
    for r in parts[number]:
      at = np.arange(reader.task.length)
      hit = used[rows.query[r], at, out.tokens[r]]
      # unless nothing else was left to write
      assert not hit.any()
  assert seen > 0
  for q in range(2):
    mine = rows.query == q
    assert most_often(out.tokens[mine], digits) < most_often(plain.tokens[mine], digits)


def test_directions_reach_the_decoder_and_distances_are_to_the_query_itself(reader):
  query = random_queries(reader, 1)
  near, rows = reader.draw_mixture(query, Mixture(((1.0, 1.0),), num_samples=32, directions=True), seed=0)
  far, _ = reader.draw_mixture(query, Mixture(((1.0, -1.0),), num_samples=32, directions=True), seed=0)
  assert (near.tokens != far.tokens).any() and (rows.noise == 0).all()
  again, _ = reader.draw_mixture(query, Mixture(((1.0, 1.0),), num_samples=32, directions=True, rounds=2), seed=0)
  np.testing.assert_array_equal(near.tokens, again.tokens)  # in one part or in two


def test_suppression_needs_a_task_with_rare_tokens(small_target, small_decoder):
  plain = Reader(small_target, addition.Addition(), *small_decoder)
  with pytest.raises(InversionViewError, match="rare"):
    plain.draw_mixture(random_queries(plain), Mixture(((1.0, 0.0),), num_samples=8, rounds=2, repeats=5), seed=0)
