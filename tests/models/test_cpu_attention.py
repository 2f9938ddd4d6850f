"""Attention by multiply-and-sum against attention by matmuls: forward, gradients, and cached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import parallel
from inversionview_jax.devices.numerics import compiled_for
from inversionview_jax.models import attention, cpu_attention
from inversionview_jax.models.config import Compute

pytestmark = pytest.mark.optimized

B, P, S, H, K, G, C = 3, 4, 6, 4, 8, 2, 7


def weigh(scores, seen, axis):
  pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=axis)
  return pattern, pattern


def random(*shapes):
  rng = np.random.default_rng(0)
  return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("batch", [1, B])
def test_whole_texts(batch):
  q, k, v, weight = random((batch, P, H, K), (batch, S, H, K), (batch, S, H, K), (batch, P, H, K))
  seen = np.tri(P, S, S - P, dtype=bool)[None, None]

  def outputs(attend):
    def run(q, k, v):
      z, pattern = attend(q, k, v, weigh, seen)
      return jnp.sum(z * weight) + jnp.sum(pattern**2), (z, pattern)

    return parallel.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(q, k, v)

  own, expected = outputs(cpu_attention.attend), outputs(attention.attend)
  assert expected[0][1][0].shape == (batch, P, H, K) and expected[0][1][1].shape == (batch, H, P, S)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), own, expected)


@pytest.mark.parametrize("batch", [1, B])
@pytest.mark.parametrize("width", [K, 40])  # sums over more than 32 numbers are made in parts
def test_one_token_against_a_cache(batch, width):
  q, keys, values, weight = random(
    (G, H // G, width, batch), (C, G, width, batch), (C, G, width, batch), (G, H // G, width, batch)
  )
  seen = (np.arange(C) <= 4)[:, None, None, None]

  def outputs(attend):
    def run(q, keys, values):
      z = attend(q, keys, values, weigh, seen)
      return jnp.sum(z * weight), z

    return parallel.jit(jax.value_and_grad(run, argnums=(0, 1, 2), has_aux=True))(q, keys, values)

  own, expected = outputs(cpu_attention.attend_cached), outputs(attention.attend_cached)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-5), own, expected)


def test_it_is_for_small_matrices_on_a_cpu():
  q, k = np.zeros((B, 20, H, 32)), np.zeros((B, 20, H, 32))
  with compiled_for("cpu"):
    assert cpu_attention.is_faster(q, k)
    assert not cpu_attention.is_faster(q, np.zeros((B, 21, H, 32)))
    assert not cpu_attention.is_faster(np.zeros((B, 20, H, 33)), k)
  with compiled_for("tpu"):
    assert not cpu_attention.is_faster(q, k)


@pytest.mark.parametrize(
  "implementation, automatic, sums",
  [("auto", True, True), ("auto", False, False), ("plain", True, False), ("multiply_and_sum", False, True)],
)
def test_implementation_may_be_chosen(implementation, automatic, sums):
  assert attention.uses_sums(Compute(attention=implementation), automatic) == sums
