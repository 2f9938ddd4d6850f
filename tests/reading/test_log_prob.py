"""Log-probabilities under the decoder: at several temperatures, and of a sampling mixture."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.measures.held_out import held_out_queries
from inversionview_jax.reading import Reader
from inversionview_jax.reading.log_prob import log_probs, mixture_log_prob
from inversionview_jax.sampling.candidates import mixture_rows

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def reader(small_target, small_decoder):
  return Reader(small_target, TASK, *small_decoder, "small")


@pytest.fixture(scope="module")
def held(reader):
  return held_out_queries(reader, 10)


def draw(reader, queries, rows, seed, effects=True):
  return reader.sampler.run(
    reader.variables, reader.target.params, reader.bos_activations, queries, rows, seed, effects
  )


def test_log_prob_at_temperature_1_is_the_readers_and_at_0_is_greedy(held, reader):
  z, site, tokens = held.queries.activation[3], int(held.queries.site[3]), held.tokens[: 10 * len(reader.sites) : 7]
  warm, greedy = log_probs(reader, z, site, tokens, [1.0, 0.0])
  np.testing.assert_allclose(warm, reader.log_prob(tokens, z, reader.config.sites[site]), rtol=1e-4)
  assert (greedy == -np.inf).all()
  best = draw(reader, held.queries.take(3), mixture_rows(((0.0, 0.0),), 1), 0).tokens
  assert log_probs(reader, z, site, np.asarray(best), [0.0])[0, 0] == 0


def test_log_probs_of_many_texts_are_those_of_each(reader, held):
  z, tokens = held.queries.activation[0], TASK.tokens(np.arange(0, 810_000, 1001))  # more than one program takes
  assert len(tokens) > 512
  many = log_probs(reader, z, 0, tokens, [0.5, 1.0])
  assert many.shape == (2, len(tokens)) and many.dtype == np.float64
  for at in (0, 511, 512, len(tokens) - 1):
    np.testing.assert_allclose(log_probs(reader, z, 0, tokens[at : at + 1], [0.5, 1.0])[:, 0], many[:, at], rtol=1e-4)


@pytest.mark.slow
def test_probability_of_a_mixture_is_how_often_it_is_drawn(reader, held):
  """Of the most frequent texts, at two temperatures, one with noise."""
  one = held.take([0])
  settings, n = ((0.4, 0.0), (0.6, 0.3)), 20_000
  out = draw(reader, one.queries, mixture_rows(settings, n), 5, effects=False)
  texts, counts = np.unique(np.asarray(out.tokens), axis=0, return_counts=True)
  often = np.argsort(-counts)[:5]
  ended = (texts[often] == TASK.tokenizer.eos_id).any(axis=1)
  log_p = mixture_log_prob(
    reader, one.queries.activation[0], int(one.queries.site[0]), texts[often], settings, draws=400
  )
  share = counts[often] / n
  assert share[0] > 0.001 and ended.any()
  error = 5 * np.sqrt(share / n) + 0.1 * share  # of counting, and of 400 draws of the noise
  assert (np.abs(np.exp(log_p) - share) < error)[ended].all()
