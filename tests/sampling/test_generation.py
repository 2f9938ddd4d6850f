"""Generation: texts drawn from a decoder with its cache, at a temperature, greedily, and in strata."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.sampling import generation
from inversionview_jax.sampling.candidates import mixture_rows

TASK = tasks.get("addition")
PAD, BOS, EOS = TASK.tokenizer.pad_id, TASK.tokenizer.bos_id, TASK.tokenizer.eos_id
T = TASK.length

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def keys(n, seed=0):
  return parallel.fold_in_each(jax.random.key(seed), jnp.arange(n))


def generator(config, length, bos, eos, pad):
  """A jitted function (variables, slots, keys, temperature) -> tokens."""
  return parallel.jit(lambda variables, slots, keys, temperature: generation.generate(
      Decoder(config), variables, slots, keys, temperature, length=length, bos_id=bos, eos_id=eos, pad_id=pad
  ))  # fmt: skip


@pytest.fixture(scope="module")
def generate(small_decoder):
  """A function (temperature float32[R], first row) -> (tokens, slots) of R rows with slots and keys of their own."""
  config, variables = small_decoder
  compiled = generator(config, T, BOS, EOS, PAD)
  shape = (600, config.transformer.n_layers, config.n_slots, config.transformer.d_model)
  slots = np.random.default_rng(0).normal(scale=5, size=shape).astype(np.float32)

  def run(temperature, start=0):
    stop = start + len(temperature)
    return np.asarray(
      compiled(variables, slots[start:stop], keys(600)[start:stop], jnp.asarray(temperature, jnp.float32))
    ), slots[start:stop]

  return run


def test_texts_do_not_depend_on_whether_the_cache_grows(small_decoder, monkeypatch):
  config, variables = small_decoder
  shape = (20, config.transformer.n_layers, config.n_slots, config.transformer.d_model)
  slots, drawn = np.random.default_rng(0).normal(scale=5, size=shape).astype(np.float32), []
  for long in (1, 1_000):
    monkeypatch.setattr(generation, "_LONG", long)
    drawn.append(generator(config, T, BOS, EOS, PAD)(variables, slots, keys(20), jnp.ones(20)))
  np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e9])
def test_texts_start_with_bos_end_with_eos_or_at_full_length_and_contain_no_forbidden_token(generate, temperature):
  tokens, _ = generate(np.full(600, temperature))
  assert tokens.shape == (600, T) and (tokens[:, 0] == BOS).all()
  ended = 0
  for row in tokens.tolist():
    text = row[1 : row.index(EOS)] if EOS in row else row[1:]
    assert not {BOS, PAD, EOS} & set(text)
    assert row[1 + len(text) :] == [EOS] * (EOS in row) + [PAD] * (T - 2 - len(text))
    ended += EOS in row
  assert 0 < ended < 600
  assert len(np.unique(tokens, axis=0)) > (100 if temperature == 0 else 300)


def test_temperature_0_takes_the_most_likely_token_each_time(generate, small_decoder):
  config, variables = small_decoder
  got, slots = generate(np.zeros(600))
  score = parallel.jit(lambda tokens: Decoder(config).apply(variables, tokens, slots, method="logits"))
  tokens, ended = np.full((600, T), PAD, np.int32), np.zeros(600, bool)
  tokens[:, 0] = BOS
  for place in range(1, T):
    best = np.asarray(score(tokens))[:, place - 1].argmax(axis=-1)
    tokens[:, place] = np.where(ended, PAD, best)
    ended |= tokens[:, place] == EOS
  np.testing.assert_array_equal(got, tokens)


def test_text_depends_on_its_own_key_slots_and_temperature_alone(generate):
  temperature = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.0], 600)
  together, _ = generate(temperature)
  part, _ = generate(temperature[200:500], start=200)
  np.testing.assert_array_equal(part, together[200:500])


@pytest.fixture(scope="module")
def tiny(random_variables):
  """A decoder of texts over two letters, and all texts it can write: (config, variables, slots [L, 1, M], int[15, 4])."""
  a, b, bos, eos, pad = range(5)
  config = DecoderConfig(TransformerConfig(5, 4, 1, 2, 8, 16), ("x0.pre",), 4, encoder_blocks=0, forbidden=(bos, pad))
  texts = [[bos, *text, eos] for n in (0, 1, 2) for text in itertools.product((a, b), repeat=n)]
  texts += [[bos, *text] for text in itertools.product((a, b), repeat=3)]
  texts = np.array([text + [pad] * (4 - len(text)) for text in texts], np.int32)
  variables = random_variables(0.25, 5, Decoder(config), texts, jnp.ones((15, 4)), jnp.zeros(15, jnp.int32))
  return config, variables, np.ones((1, 1, 8), np.float32), texts


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_samples_follow_the_decoders_distribution(tiny, temperature):
  config, variables, slot, texts = tiny
  _, _, bos, eos, pad = range(5)
  count = 4000
  slots = np.broadcast_to(slot, (count, *slot.shape))
  tokens = generator(config, 4, bos, eos, pad)(variables, slots, keys(count, seed=5), jnp.full(count, temperature))
  counts = np.array([(np.asarray(tokens) == text).all(axis=1).sum() for text in texts])
  assert counts.sum() == count

  score = parallel.jit(lambda variables, slots: Decoder(config).apply(variables, texts, slots, method="logits"))

  def chi_square(temperature):
    logits = score(variables, slots[:15])
    log_p = np.asarray(jax.nn.log_softmax(logits / temperature))[:, :-1]
    log_p = np.take_along_axis(log_p, texts[:, 1:, None], axis=2)[..., 0] * (texts[:, 1:] != pad)
    p = np.exp(log_p.sum(axis=1))
    assert p.sum() == pytest.approx(1, abs=1e-5) and count * p.min() > 5
    return np.sum((counts - count * p) ** 2 / (count * p))

  assert chi_square(temperature) < 36.1  # 15 outcomes: exceeded once in a thousand seeds
  assert chi_square(2 * temperature) > 100


def test_strata_partition_the_distribution(small_decoder):
  """Of N rows that partition the unit interval, the number that begin with a text is N times its probability, up to two."""
  config, variables = small_decoder
  n, shape = 500, (1, config.transformer.n_layers, config.n_slots, config.transformer.d_model)
  slots = np.repeat(np.random.default_rng(0).normal(scale=2, size=shape).astype(np.float32), n, axis=0)
  rows = mixture_rows(((1.3, 0.0),), n, stratified=True)
  module, temperature = Decoder(config), jnp.full(n, 1.3)
  tokens = np.asarray(parallel.jit(lambda v, s, k, t, u: generation.generate(
      module, v, s, k, t, u, length=T, bos_id=BOS, eos_id=EOS, pad_id=PAD
  ))(variables, slots, keys(n), temperature, rows.stratum))  # fmt: skip
  logits = parallel.jit(lambda v, x, s: module.apply(v, x, s, method="logits"))(variables, tokens, slots)
  log_p = np.asarray(jax.nn.log_softmax(logits / 1.3))
  for length in (1, 2, 3):
    prefixes, first, counts = np.unique(tokens[:, 1 : 1 + length], axis=0, return_index=True, return_counts=True)
    complete = (prefixes != PAD).all(axis=1)
    p = np.exp(sum(log_p[first, i, prefixes[:, i]] for i in range(length)))
    assert np.abs(counts - n * p)[complete].max() < 2.01
  assert len(counts) > 20
