"""Right numbers under plain `jax.jit`, `grad`, `jvp` and `vmap`: against finite differences, torch's autograd, and whole texts.

Whatever is compiled here by `jax.jit` has XLA's default options, as in a user's own program.
"""

import functools
import itertools
import pathlib

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import targets, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.decoder import Decoder, DecoderConfig, log_prob
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.targets import Edit

pytestmark = pytest.mark.optimized

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TASK = tasks.get("addition")
TOKENS = TASK.tokens_of([615, 123, 999], [861, 456, 100])
POSITION, HIGH, LOW = 4, 3, 5  # and two tokens, whose logits are compared behind the last one
SITES = ("x0.pre", "a0.1", "x0.mid", "m0", "x0.post", "a1.0", "x1.mid", "m1")
TORCHS = ("x0.mid", "x0.post", "m0", "a0.1")  # of which there are torch's gradients with respect to an edit's value


def difference(logits):
  """float32[B]: the difference of two logits behind the last token."""
  return logits[:, -1, HIGH] - logits[:, -1, LOW]


def last_difference(target, tokens, site, position, value):
  return difference(target.run(tokens, edits=[Edit(site, position, value)]).logits)


@functools.cache
def golden(name):
  return targets.load_target(GOLDEN / name, convention="raw"), dict(np.load(GOLDEN / name / "expected.npz"))["tokens"]


@pytest.fixture
def unoptimized():
  """For derivatives, which XLA's optimizations have no part in; cached steps are compiled as a user's program is."""
  with compilation.quick():
    yield


# Gradients of a logit difference.


# Of two conventions: LayerNorm, and RMS norm with rotary embeddings.
_SLOW = pytest.mark.slow
EACH_GOLDEN = pytest.mark.parametrize("name", [pytest.param("default", marks=_SLOW), "llama"])


@EACH_GOLDEN
def test_gradients_with_respect_to_an_edits_value_are_torchs(name, unoptimized):
  (target, tokens), expected = golden(name), np.load(GOLDEN / name / "gradients.npz")
  for site in TORCHS:
    loss = functools.partial(last_difference, target, tokens, site, POSITION)
    total, gradient = jax.value_and_grad(lambda value, loss=loss: jnp.sum(loss(value)))(expected["value"])
    np.testing.assert_allclose(total, expected[f"difference/{site}"].sum(), rtol=0, atol=1e-4)
    np.testing.assert_allclose(gradient, expected[f"set/{site}"], rtol=0, atol=1e-4)


@EACH_GOLDEN
def test_gradients_with_respect_to_embeddings_and_captured_sites_are_torchs(name, unoptimized):
  (target, tokens), expected = golden(name), np.load(GOLDEN / name / "gradients.npz")
  stored = {"embed": "embed", "x0.pre": "embed", "a0.1": "a0", "x0.mid": "x0.mid", "m0": "m0", "x0.post": "x0.post"}
  values = target.run(tokens, capture=list(stored))
  for site, key in stored.items():
    grad = jax.grad(lambda value, site=site: jnp.sum(last_difference(target, tokens, site, None, value)))
    np.testing.assert_allclose(grad(values[site]), expected[key], rtol=0, atol=1e-4 * np.abs(expected[key]).max())


@pytest.mark.parametrize("jit", [jax.jit, parallel.jit])
def test_compiled_gradients_are_torchs(jit):
  (target, tokens), expected = golden("default"), np.load(GOLDEN / "default" / "gradients.npz")
  grad = jit(jax.grad(lambda value: jnp.sum(last_difference(target, tokens, "x0.mid", POSITION, value))))
  np.testing.assert_allclose(grad(expected["value"]), expected["set/x0.mid"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("site", [s if s in ("a1.0", "m1") else pytest.param(s, marks=_SLOW) for s in SITES])
def test_gradient_and_forward_derivative_are_those_of_finite_differences(small_target, site, unoptimized):
  value = np.asarray(small_target.run(TOKENS, capture=[site])[site][:, POSITION])
  direction = np.random.default_rng(0).normal(size=value.shape).astype(np.float32)
  loss = functools.partial(last_difference, small_target, TOKENS, site, POSITION)
  step = 1e-2
  expected = (loss(value + step * direction) - loss(value - step * direction)) / (2 * step)  # float32[B]
  _, along = jax.jvp(loss, (value,), (direction,))
  atol = 2e-3 * max(1.0, np.abs(expected).max())
  np.testing.assert_allclose(along, expected, rtol=0, atol=atol)
  gradient = jax.grad(lambda value: jnp.sum(loss(value)))(value)
  np.testing.assert_allclose(np.sum(gradient * direction, axis=-1), along, rtol=1e-4, atol=1e-5)


def test_gradient_of_a_captured_activation_and_of_the_parameters(small_target, unoptimized):
  """Where no logits are computed; and by the parameters, as `jax.grad` of a function of them."""
  value = np.random.default_rng(8).normal(size=small_target.config.d_model).astype(np.float32)

  def norm(value):
    run = small_target.run(TOKENS, capture=["x1.mid"], edits=[Edit("x0.pre", POSITION, value)])
    return jnp.sum(run["x1.mid"][:, -1] ** 2)

  direction = np.random.default_rng(1).normal(size=value.shape).astype(np.float32)
  slope = float(jax.grad(norm)(value) @ direction)
  assert slope == pytest.approx(float(norm(value + 5e-3 * direction) - norm(value - 5e-3 * direction)) / 1e-2, rel=2e-2)
  module, scale = small_target.module, np.float32(1.0)

  @functools.partial(jax.jit, static_argnums=1)
  def loss(scale, exact):
    params = {**small_target.params, "embed": scale * small_target.params["embed"]}
    return jnp.sum(difference(module.apply({"params": params}, TOKENS, exact=exact).logits))

  for exact in (False, True):
    expected = float(loss(scale + 1e-2, exact) - loss(scale - 1e-2, exact)) / 2e-2
    assert float(jax.grad(loss)(scale, exact)) == pytest.approx(expected, rel=1e-2)


def test_batched_values_are_the_values_one_by_one(small_target, unoptimized):
  values = np.random.default_rng(2).normal(size=(4, len(TOKENS), small_target.config.d_model)).astype(np.float32)
  loss = functools.partial(last_difference, small_target, TOKENS, "x0.post", POSITION)
  expected = np.stack([loss(value) for value in values])
  for batched in (jax.vmap(loss), jax.jit(jax.vmap(loss))):
    np.testing.assert_allclose(batched(values), expected, rtol=0, atol=1e-5)
  grad = jax.grad(lambda value: jnp.sum(loss(value)))
  np.testing.assert_allclose(
    jax.jit(jax.vmap(grad))(values), np.stack([grad(value) for value in values]), rtol=0, atol=1e-5
  )


def test_second_derivatives(small_target, unoptimized):
  value = np.random.default_rng(3).normal(size=small_target.config.d_model).astype(np.float32)
  direction = np.random.default_rng(4).normal(size=value.shape).astype(np.float32)
  grad = jax.grad(lambda value: jnp.sum(last_difference(small_target, TOKENS, "x0.mid", POSITION, value)))
  _, along = jax.jvp(grad, (value,), (direction,))
  expected = (grad(value + 1e-2 * direction) - grad(value - 1e-2 * direction)) / 2e-2
  np.testing.assert_allclose(along, expected, rtol=0, atol=5e-3 * np.abs(expected).max())
  backwards = jax.grad(lambda value: grad(value) @ direction)(value)
  np.testing.assert_allclose(backwards, along, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_decoders_log_prob_has_gradients_with_respect_to_the_activation(small_decoder):
  config, variables = small_decoder
  module, site = Decoder(config), np.array([0, 3, 5], np.int32)
  z = np.random.default_rng(5).normal(size=(len(TOKENS), config.d_activation)).astype(np.float32)
  direction = np.random.default_rng(6).normal(size=z.shape).astype(np.float32)

  def log_p(z):
    return jnp.sum(log_prob(module, variables, TOKENS, z, site, TASK.tokenizer.pad_id))

  with compilation.quick():
    program = jax.jit(log_p)
    step = 1e-3 * direction  # the next kink of a ReLU is near
    expected = float(program(z + step) - program(z - step)) / 2e-3
    assert float(np.sum(jax.grad(log_p)(z) * direction)) == pytest.approx(expected, rel=1e-2)
  for jit in (jax.jit, parallel.jit):
    assert float(np.sum(jit(jax.grad(log_p))(z) * direction)) == pytest.approx(expected, rel=1e-2)


# Cached steps under XLA's default options.

_ROTARY = {"rotary": (1.0, 0.3, 0.1, 0.03), "norm": "rms"}
SHAPES = {
  "multi-head": {},
  "one head": {"n_heads": 1},
  "grouped": {"n_kv_heads": 2},
  "one key/value head": {"n_kv_heads": 1},
  "rotary": _ROTARY,
  "window": {"windows": (0, 3)},
  "grouped, rotary, window, norms": _ROTARY | {"n_kv_heads": 2, "windows": (0, 4), "qk_norm": True, "biases": ()},
  "wide heads": {"d_model": 96, "n_heads": 2},
  "cross-attention": {"cross_width": 20},
}


# Each alone runs by hand; these have all of them, and a batch of one is where XLA's fusions are of another kind.
_QUICK = {
  ("multi-head", 1),
  ("multi-head", 3),
  ("grouped, rotary, window, norms", 1),
  ("wide heads", 1),
  ("cross-attention", 1),
}


@pytest.mark.parametrize(
  ("name", "batch"),
  [pytest.param(*case, marks=() if case in _QUICK else _SLOW) for case in itertools.product(SHAPES, (1, 3))],
)
def test_cached_steps_are_the_whole_text_under_a_plain_jit(name, batch, random_variables):
  slots, length, layers = 2, 9, 2 if batch == 1 else 1  # a batch of one is where XLA's fusions are of another kind
  shape = dict(vocab_size=15, n_ctx=9, n_layers=layers, n_heads=4, d_model=32, d_mlp=48) | SHAPES[name]
  config = TransformerConfig(**shape | {"windows": shape.get("windows", ())[-layers:]})
  module = Transformer(config, Compute(attention="plain"))
  rng = np.random.default_rng(7)
  vectors = rng.normal(size=(batch, layers, slots, config.cross_width or config.d_model)).astype(np.float32)
  variables = random_variables(0.2, 8, module, jnp.zeros((1, 1), jnp.int32)) if not config.cross_width else (
    jax.tree.map(np.asarray, random_variables(0.2, 8, _WithSlots(module, vectors[:1]), jnp.zeros((1, 1), jnp.int32)))
  )  # fmt: skip
  tokens = rng.integers(0, 15, (batch, length)).astype(np.int32)
  with compilation.quick():
    expected = np.asarray(
      jax.jit(lambda tokens, slots: module.apply(variables, tokens, slots=slots).logits)(tokens, vectors)
    )
  assert expected.std() > 0.2
  module = Transformer(config)
  whole = jax.jit(lambda tokens, slots: module.apply(variables, tokens, slots=slots).logits)(tokens, vectors)
  np.testing.assert_allclose(whole, expected, rtol=0, atol=5e-5)
  step = jax.jit(lambda *args: module.apply(variables, *args, slots, method="step"))
  cache = jax.jit(lambda slots: module.apply(variables, slots, length, method="init_cache"))(vectors)
  for position in range(length):
    logits, cache = step(tokens[:, position], jnp.int32(position), cache)
    np.testing.assert_allclose(logits, expected[:, position], rtol=0, atol=5e-5)


class _WithSlots:
  """A module that is initialized with slots."""

  def __init__(self, module, slots):
    self._module, self._slots = module, slots

  def init(self, key, tokens):
    return self._module.init(key, tokens, slots=self._slots)


@pytest.mark.slow
def test_sampled_decoders_programs_agree_with_a_plain_jit(random_variables):
  """Our programs (multiply-and-sum, on a CPU) and a user's."""
  config = DecoderConfig(TransformerConfig(15, 9, 1, 4, 32, 48), ("x0.pre",), 16, encoder_blocks=1, n_slots=3)
  module, tokens = Decoder(config), np.random.default_rng(9).integers(0, 15, (1, 9)).astype(np.int32)
  inputs = np.ones((1, 16), np.float32), np.zeros(1, np.int32)
  variables = random_variables(0.2, 10, module, tokens, *inputs)
  loss = lambda variables: jnp.sum(jax.nn.log_softmax(module.apply(variables, tokens, *inputs))[..., 3])
  ours, plain = (jit(jax.value_and_grad(loss))(variables) for jit in (parallel.jit, jax.jit))
  scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(ours))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * scale), ours, plain)


# Functions that this package compiles.


def test_a_program_of_this_package_works_under_every_transformation_with_donated_and_static_arguments():
  program = functools.partial(parallel.jit, static_argnums=1, donate_argnums=0)(
    lambda x, power: jnp.sum(x**power, axis=-1)
  )
  x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
  np.testing.assert_array_equal(program(jnp.asarray(x), 2), [5, 50])
  np.testing.assert_array_equal(jax.jit(lambda x: program(x, 2))(x), [5, 50])
  np.testing.assert_array_equal(jax.vmap(lambda x: program(x, 2))(x), [5, 50])
  np.testing.assert_array_equal(jax.grad(lambda x: program(x, 2).sum())(x), 2 * x)
  np.testing.assert_array_equal(jax.jit(jax.grad(lambda x: program(x, 3).sum()))(x), 3 * x**2)
  np.testing.assert_array_equal(jax.jvp(lambda x: program(x, 2), (x,), (np.ones_like(x),))[1], [6, 24])
  assert jax.eval_shape(lambda x: program(x, 2), x).shape == (2,)


def test_pmap_works_under_every_transformation(meshes):
  mapped = parallel.pmap(lambda w, x: jax.lax.pmean(jnp.sum(w * x**2), parallel.DATA), meshes(4), (None, 0), None)
  x = np.arange(8.0, dtype=np.float32)
  expected = np.sum(x**2) / 4
  assert mapped(np.float32(2.0), x) == 2 * expected
  assert jax.jit(mapped)(np.float32(2.0), x) == 2 * expected
  np.testing.assert_allclose(jax.grad(mapped)(np.float32(2.0), x), expected, rtol=1e-6)
  np.testing.assert_allclose(jax.jit(jax.grad(mapped))(np.float32(2.0), x), expected, rtol=1e-6)
  np.testing.assert_allclose(jax.jvp(lambda w: mapped(w, x), (np.float32(2.0),), (np.float32(1.0),))[1], expected)
  np.testing.assert_allclose(jax.vmap(lambda w: mapped(w, x))(np.float32([1, 2])), expected * np.float32([1, 2]))
