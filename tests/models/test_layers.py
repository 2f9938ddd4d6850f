"""The parts of a transformer, under every derivative."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import parallel
from inversionview_jax.devices.numerics import compiled_for
from inversionview_jax.models import norms
from inversionview_jax.models.layers import Linear

ROWS, TALL, WIDE = 90, 40, 12  # so many rows that the gradient of a bias is a matmul


@pytest.mark.parametrize("sizes", [(TALL, WIDE), (WIDE, TALL)], ids=("tall", "wide"))
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_derivatives_of_a_linear_map(sizes, platform):
  rng = np.random.default_rng(0)
  x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3, sizes[0]), sizes, sizes[1:]))
  goal = rng.normal(size=(ROWS, 3, sizes[1])).astype(np.float32)
  module = Linear(sizes[1])

  def loss(x, kernel, bias):
    return jnp.sum((module.apply({"params": {"kernel": kernel, "bias": bias}}, x) - goal) ** 2)

  def each_row(x, kernel, bias):  # as with dropout, where every row has a key of its own
    out = jax.vmap(lambda row: module.apply({"params": {"kernel": kernel, "bias": bias}}, row))(x)
    return jnp.sum((out - goal) ** 2)

  difference = 2 * (x @ kernel + bias - goal)
  expected = difference @ kernel.T, np.einsum("btd,bte->de", x, difference), difference.sum(axis=(0, 1))
  with compiled_for(platform):
    for function in (loss, each_row):
      for own, by_hand in zip(jax.jit(jax.grad(function, argnums=(0, 1, 2)))(x, kernel, bias), expected, strict=True):
        np.testing.assert_allclose(own, by_hand, rtol=1e-4, atol=1e-3)
  for own, by_hand in zip(parallel.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, kernel, bias), expected, strict=True):
    np.testing.assert_allclose(own, by_hand, rtol=1e-4, atol=1e-3)
  # And forwards: the same derivative in one direction.
  step = tuple(rng.normal(size=g.shape).astype(np.float32) for g in expected)
  _, along = jax.jvp(loss, (x, kernel, bias), step)
  np.testing.assert_allclose(along, sum(np.sum(g * s) for g, s in zip(expected, step, strict=True)), rtol=1e-4)


@pytest.mark.parametrize(
  ("name", "dtype"), [("LayerNorm", "float32"), ("RMSNorm", "float32"), ("LayerNorm", "bfloat16")]
)
def test_norms_are_those_of_flax(name, dtype):
  two_pass = {"use_fast_variance": False} if name == "LayerNorm" else {}
  ours, theirs = getattr(norms, name)(1e-5, dtype=dtype), getattr(nn, name)(1e-5, dtype=dtype, **two_pass)
  keys = jax.random.split(jax.random.key(0), 3)
  x = 5 + jax.random.normal(keys[0], (2, 200, 8), dtype)  # of 400 rows the gradients are summed as a matmul
  scale, bias = 1 + jax.random.normal(keys[1], (2, 8))
  params = {"scale": scale, "bias": bias} if name == "LayerNorm" else {"scale": scale}
  direction = jax.random.normal(keys[2], x.shape)

  def value_and_gradients(module):
    def value(params, x):
      out = module.apply({"params": params}, x)
      return jnp.sum(out * direction), out

    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params, x)

  (_, out), gradients = value_and_gradients(ours)
  (_, expected), expected_gradients = value_and_gradients(theirs)
  assert out.dtype == expected.dtype
  np.testing.assert_array_equal(out, expected)
  tolerance = 1e-5 if dtype == "float32" else 2e-2
  for mine, wanted in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
    np.testing.assert_allclose(np.float32(mine), np.float32(wanted), rtol=tolerance, atol=tolerance * 10)
