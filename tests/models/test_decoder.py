"""The conditional decoder: slots, cache, normalization, and p(text | activation, site) as a distribution over texts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.devices import cpu, numerics, parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.decoder import ActivationEncoder, Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sites import Site

TASK = tasks.get("addition")
PAD, BOS, EOS = TASK.tokenizer.pad_id, TASK.tokenizer.bos_id, TASK.tokenizer.eos_id
TOKENS = TASK.tokens_of([615, 123, 999, 250], [861, 456, 100, 249])
N, T = TOKENS.shape

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def config(small_decoder):
  return small_decoder[0]


@pytest.fixture(scope="module")
def variables(small_decoder):
  return small_decoder[1]


@pytest.fixture(scope="module")
def queries(config):
  """Activations float32[N, D] and sites int32[N]."""
  return np.random.default_rng(2).normal(size=(N, config.d_activation)).astype(np.float32), np.array(
    [0, 3, 5, 2], np.int32
  )


@pytest.fixture(scope="module")
def slots(config):
  shape = (N, config.transformer.n_layers, config.n_slots, config.transformer.d_model)
  return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def jitted(config, method, compute=None, **static):
  module = Decoder(config, compute or Compute())
  return parallel.jit(lambda variables, *args: module.apply(variables, *args, method=method, **static))


def step_by_step(config, variables, tokens, slots, grown=0, compute=None):
  """float32[N, T, V]: the logits of cached steps, one token at a time; the cache is extended for the last `grown` tokens."""
  step = jitted(config, "step", compute)
  cache = jitted(config, "init_cache", compute, length=tokens.shape[1] - grown)(variables, slots)
  out = []
  for position in range(tokens.shape[1]):
    if grown and position == tokens.shape[1] - grown:
      cache = jitted(config, "extend_cache", compute, tokens=grown)(variables, cache)
    logits, cache = step(variables, tokens[:, position], jnp.int32(position), cache)
    out.append(logits)
  return np.stack(out, axis=1)


# Slots and cache.


def test_cached_decoding_equals_scoring_of_the_whole_text(config, variables, slots):
  whole = np.asarray(jitted(config, "logits")(variables, TOKENS, slots))
  assert whole[..., :10].std() > 0.5
  np.testing.assert_allclose(step_by_step(config, variables, TOKENS, slots), whole, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_cached_decoding_with_heads_wider_than_are_summed_at_a_time(random_variables):
  config = TransformerConfig(TASK.tokenizer.vocab_size, T, n_layers=2, n_heads=2, d_model=96, d_mlp=32)
  module = Transformer(config)
  params = jax.tree.map(jnp.asarray, random_variables(0.2, 4, module, jnp.zeros((1, 1), jnp.int32)))
  slots = np.random.default_rng(5).normal(size=(N, 2, 1, 96)).astype(np.float32)
  whole = module.apply(params, TOKENS, slots=slots).logits
  step = parallel.jit(lambda *args: module.apply(params, *args, method="step"))
  cache = module.apply(params, slots, T, method="init_cache")
  assert np.std(whole) > 0.3
  for position in range(T):
    logits, cache = step(TOKENS[:, position], jnp.int32(position), cache)
    np.testing.assert_allclose(logits, whole[:, position], rtol=0, atol=1e-4)


def test_bf16_matmuls_come_near_full_ones_in_whole_texts_and_in_cached_steps(random_variables, monkeypatch):
  monkeypatch.setattr(cpu, "has_amx", lambda: True)

  def program(function):
    def call(*args, **named):
      with numerics.compiled_for("cpu"):
        return jax.jit(function)(*args, **named)

    return call

  full = TransformerConfig(TASK.tokenizer.vocab_size, T, n_layers=2, n_heads=4, d_model=128, d_mlp=256)
  params = jax.tree.map(jnp.asarray, random_variables(0.1, 4, Transformer(full), jnp.zeros((1, 1), jnp.int32)))
  slots = np.random.default_rng(5).normal(size=(N, 2, 1, 128)).astype(np.float32)
  module = Transformer(full, Compute(dot_general=numerics.bf16_matmul))
  expected, whole = (program(m.apply)(params, TOKENS, slots=slots).logits for m in (Transformer(full), module))
  near = {"rtol": 0, "atol": 0.03 * np.std(expected)}
  np.testing.assert_allclose(whole, expected, **near)
  assert np.abs(whole - expected).max() > 1e-4  # they are others
  step = program(lambda *args: module.apply(params, *args, method="step"))
  cache = program(lambda slots: module.apply(params, slots, T, method="init_cache"))(slots)
  for position in range(T):
    logits, cache = step(TOKENS[:, position], jnp.int32(position), cache)
    np.testing.assert_allclose(logits, expected[:, position], **near)


def test_a_cache_that_grows_gives_the_same(config, variables, slots):
  once, twice = (step_by_step(config, variables, TOKENS, slots, grown) for grown in (0, 2))
  np.testing.assert_allclose(twice, once, rtol=0, atol=1e-6)


def test_scores_are_those_of_the_encoders_slots(config, variables, queries):
  slots = jitted(config, "slots")(variables, *queries)
  assert slots.shape == (N, config.transformer.n_layers, config.n_slots, config.transformer.d_model)
  whole = jitted(config, "__call__")(variables, TOKENS, *queries)
  assert whole.shape == (N, T, config.transformer.vocab_size) and whole.dtype == jnp.float32  # a slot is never a query
  np.testing.assert_allclose(jitted(config, "logits")(variables, TOKENS, slots), whole, rtol=0, atol=1e-5)


def test_activation_site_and_its_embedding_reach_the_logits_at_every_position(config, variables, queries):
  call = jitted(config, "__call__")
  activation, site = queries
  original = np.asarray(call(variables, TOKENS, activation, site))
  params = variables["params"]
  renamed = {**params["encoder"], "site_embed": -params["encoder"]["site_embed"]}
  for changed in (
    call(variables, TOKENS, activation[::-1], site),
    call(variables, TOKENS, activation, (site + 1) % len(config.sites)),
    call({**variables, "params": {**params, "encoder": renamed}}, TOKENS, activation, site),
  ):
    assert (np.abs(changed - original).max(axis=-1) > 1e-3).all()


def test_slot_is_a_key_and_value_of_its_own_layer_that_every_token_sees_and_nothing_else(config, variables, slots):
  captured = [Site(kind, layer) for kind in ("pattern", "pre") for layer in (0, 1)]
  run = parallel.jit(lambda params, slots: Transformer(config.transformer).apply(
      {"params": params}, TOKENS, slots=slots, capture=captured
  ))  # fmt: skip
  params = variables["params"]["transformer"]
  out = run(params, slots)
  for layer in (0, 1):
    pattern = np.asarray(out[Site("pattern", layer)])
    assert pattern.shape == (N, config.transformer.n_heads, T, config.n_slots + T)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
    allowed = np.concatenate([np.ones((T, config.n_slots), bool), np.tri(T, dtype=bool)], axis=1)
    assert (pattern[..., allowed] > 0).all() and (pattern[..., ~allowed] == 0).all()
  other = slots.copy()
  other[:, 1] += 1
  changed = run(params, other)
  np.testing.assert_array_equal(changed[Site("pre", 0)], out[Site("pre", 0)])
  np.testing.assert_array_equal(changed[Site("pre", 1)], out[Site("pre", 1)])
  assert (np.abs(changed.logits - out.logits).max(axis=-1) > 1e-3).all()

  def deaf(path, leaf):  # no keys, no values
    return np.zeros_like(leaf) if {"k", "v"} & {key.key for key in path} else leaf

  params = jax.tree_util.tree_map_with_path(deaf, params)
  np.testing.assert_array_equal(run(params, slots).logits, run(params, other).logits)


def test_logits_have_no_gradient_from_later_tokens_and_some_from_the_slots(config, variables, slots):
  readout = jax.random.normal(jax.random.key(1), (config.transformer.vocab_size,))  # the sum alone could cancel
  transformer = Transformer(config.transformer)

  def read(params, embedded, slots):
    edit = SiteEdit("embed", jnp.int32(0), jnp.int32(0), None, embedded[None])
    return transformer.apply({"params": params}, TOKENS[:1], slots=slots[None], edits=[edit]).logits[0] @ readout  # [T]

  params = variables["params"]["transformer"]
  of_tokens, of_slots = parallel.jit(jax.jacrev(read, argnums=(1, 2)))(params, params["embed"][TOKENS[0]], slots[0])
  depends = np.abs(of_tokens).max(axis=-1)  # [T of the logits, T of the token]
  assert (depends[~np.tri(T, dtype=bool)] == 0).all() and (depends[np.tri(T, dtype=bool)] > 1e-6).all()
  assert (np.abs(of_slots).max(axis=-1) > 1e-6).all()


def test_bfloat16_compute_gives_float32_logits_near_those_of_float32(config, variables, queries):
  half = Compute(dtype="bfloat16")
  exact = jax.nn.softmax(jitted(config, "__call__")(variables, TOKENS, *queries))
  logits = jitted(config, "__call__", half)(variables, TOKENS, *queries)
  assert logits.dtype == jnp.float32
  gap = np.abs(jax.nn.softmax(logits) - exact)
  assert 1e-4 < gap.max() < 0.05
  stepped = step_by_step(config, variables, TOKENS, jitted(config, "slots", half)(variables, *queries), compute=half)
  assert stepped.dtype == np.float32
  assert np.abs(jax.nn.softmax(stepped) - exact).max() < 0.05


def test_each_site_may_have_a_matrix_of_its_own_into_the_encoder(config, variables, queries):
  """Zeros change nothing, other numbers the slots of that site alone."""
  more = dataclasses.replace(config, site_inputs=True)
  own = np.zeros((len(config.sites), config.d_activation, config.encoder_width), np.float32)

  def slots(own):
    params = {**variables["params"], "encoder": {**variables["params"]["encoder"], "site_inputs": own}}
    return np.asarray(jitted(more, "slots")({**variables, "params": params}, *queries))

  without = np.asarray(jitted(config, "slots")(variables, *queries))
  np.testing.assert_array_equal(slots(own), without)
  own[3] = np.random.default_rng(6).normal(size=own[3].shape)
  moved = np.abs(slots(own) - without).max(axis=(1, 2, 3))
  assert (moved > 0.1).tolist() == (queries[1] == 3).tolist() and (moved[queries[1] != 3] == 0).all()


# A distribution over texts.


def test_forbidden_tokens_have_probability_zero(config, variables, slots):
  assert config.forbidden == (BOS, PAD)
  whole = jitted(config, "logits")(variables, TOKENS, slots)
  for logits in (whole, step_by_step(config, variables, TOKENS, slots)):
    p = np.asarray(jax.nn.softmax(logits, axis=-1))
    assert (p[..., [BOS, PAD]] == 0).all()
    assert (np.delete(p, [BOS, PAD], axis=-1) > 0).all()
    np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)


def test_log_prob_is_the_sum_over_tokens_with_eos_but_without_padding(config, variables, queries):
  score = parallel.jit(decoder.log_prob, static_argnums=(0, 5))
  got = score(Decoder(config), variables, TOKENS, *queries, PAD)
  logits = step_by_step(config, variables, TOKENS, jitted(config, "slots")(variables, *queries))
  log_p = np.asarray(jax.nn.log_softmax(logits, axis=-1))
  for row, tokens in enumerate(TOKENS):
    used = [int(t) for t in tokens if t != PAD]
    assert used[0] == BOS and used[-1] == EOS
    by_hand = sum(log_p[row, place - 1, token] for place, token in enumerate(used) if place > 0)
    assert got[row] == pytest.approx(by_hand, rel=1e-5)
  assert TOKENS[1, -1] == PAD
  shorter = score(Decoder(config), variables, TOKENS[1:2, :-1], queries[0][1:2], queries[1][1:2], PAD)
  assert shorter[0] == pytest.approx(float(got[1]), rel=1e-6)


def test_probabilities_of_all_texts_sum_to_one(random_variables):
  a, b, bos, eos, pad = range(5)
  length = 5
  config = DecoderConfig(
    TransformerConfig(5, length, 2, 2, 16, 32), ("x0.pre", "m0"), 4, encoder_blocks=1, forbidden=(bos, pad)
  )
  texts = [
    [bos, *text, *([eos] if len(text) < length - 1 else [])]
    for n in range(length)
    for text in itertools.product((a, b), repeat=n)
  ]  # as sampling makes them: to EOS, or to the longest length
  tokens = np.array([text + [pad] * (length - len(text)) for text in texts], np.int32)
  activation, site = np.ones((len(texts), 4), np.float32), np.ones(len(texts), np.int32)
  variables = random_variables(0.3, 0, Decoder(config), tokens, activation, site)
  p = np.exp(
    parallel.jit(decoder.log_prob, static_argnums=(0, 5))(Decoder(config), variables, tokens, activation, site, pad)
  )
  assert len(p) == 31 and p.max() > 5 * p.min() > 0
  assert p.sum() == pytest.approx(1, abs=1e-5)


# Normalization.


def sample_of(rank=None, seed=0):
  """Activations of three sites with different means and covariances, float64[N, 6], and their sites."""
  rng = np.random.default_rng(seed)
  site = np.arange(3000) % 3
  turn = rng.normal(size=(3, 6, 6)) * np.array([1e-2, 1.0, 30.0])[:, None, None]
  if rank is not None:
    turn[:, rank:] = 0
  return np.einsum("nd,nde->ne", rng.normal(size=(3000, 6)), turn[site]) + rng.normal(size=(3, 6))[site], site


def test_standard_statistics_give_mean_0_and_variance_1_in_each_dimension_of_each_site():
  activations, site = sample_of()
  statistics = decoder.statistics(activations.astype(np.float32), site, 3, "standard")
  assert set(statistics) == {"mean", "scale"}
  for s in range(3):
    normalized = (activations[site == s] - statistics["mean"][s]) * statistics["scale"][s]
    np.testing.assert_allclose(normalized.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(normalized.var(axis=0), 1, atol=1e-4)


@pytest.mark.parametrize("rank", [6, 2])
def test_whitening_gives_the_identity_covariance_in_the_directions_that_vary_and_drops_the_others(rank):
  activations, site = sample_of(rank)
  statistics = decoder.statistics(activations.astype(np.float32), site, 3, "whiten")
  assert set(statistics) == {"mean", "turn"}
  for s in range(3):
    own = activations[site == s]
    whitened = (own - statistics["mean"][s]) @ statistics["turn"][s]
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(whitened.T), np.diag(np.arange(6) >= 6 - rank).astype(float), atol=1e-3)
    # Rounding noise in a direction that the site never used does not become a signal.
    noisy = (
      own + 1e-6 * own.std() * np.random.default_rng(1).normal(size=own.shape) - statistics["mean"][s]
    ) @ statistics["turn"][s]
    np.testing.assert_allclose(noisy, whitened, atol=1e-2)


def test_constant_dimension_does_not_blow_up():
  activations, site = sample_of()
  activations[:, 2] = 0.25
  for normalize in ("standard", "whiten"):
    statistics = decoder.statistics(activations.astype(np.float32), site, 3, normalize)
    assert all(np.isfinite(value).all() for value in statistics.values())
    if normalize == "standard":
      spread = activations[site == 1].std(axis=0)
      assert statistics["scale"][1, 2] <= 1.001e3 / spread.max()


@pytest.mark.parametrize("normalize", ["standard", "whiten"])
def test_encoder_normalizes_with_the_statistics_of_each_rows_own_site(normalize, random_variables):
  """So that sites that are shifted and scaled, together with their statistics, give the same slots."""
  transformer = TransformerConfig(5, 4, 2, 2, 16, 32)
  config = DecoderConfig(transformer, ("x0.pre", "m0", "m1"), 6, encoder_blocks=1, normalize=normalize)
  encoder = ActivationEncoder(config)
  activations, site = sample_of()
  moved = activations * np.array([7.0, 0.5, 2.0])[site][:, None] + np.array([3.0, -1.0, 10.0])[site][:, None]
  params = random_variables(0.3, 0, encoder, jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32))["params"]
  slots = []
  for own in (activations, moved):
    stats = decoder.statistics(own, site, 3, normalize)
    slots.append(
      np.asarray(
        parallel.jit(encoder.apply)({"params": params, "stats": stats}, own[:30].astype(np.float32), site[:30])
      )
    )
  assert slots[0].std(axis=0).min() > 1e-3
  if normalize == "whiten":  # a direction found by eigenvectors has no sign of its own
    turns = [decoder.statistics(own, site, 3, normalize)["turn"] for own in (activations, moved)]
    assert (np.sign(turns[0]) == np.sign(turns[1])).all()
  np.testing.assert_allclose(slots[0], slots[1], atol=2e-3)


def test_unknown_normalization_is_named():
  with pytest.raises(InversionViewError, match="'standart'.*standard"):
    DecoderConfig(TransformerConfig(5, 4, 2, 2, 16, 32), ("x0.pre",), 6, encoder_blocks=1, normalize="standart")
