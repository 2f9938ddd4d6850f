"""XLA's CPU backend: the fusion with wrong numbers, and the two ways around it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import cpu, parallel

pytestmark = pytest.mark.optimized

T, H, K = 14, 4, 8


@pytest.fixture(scope="module")
def inputs():
  random = np.random.default_rng(0)
  return tuple(random.normal(size=shape).astype(np.float32) for shape in ((T, H * K), (H * K, H * K), (H * K, H * K)))


@pytest.fixture(scope="module")
def expected(inputs):
  x, a, b = (array.astype(np.float64) for array in inputs)
  return np.einsum("qhk,shk->hqs", (x @ a).reshape(T, H, K), (x @ b).reshape(T, H, K))[None]


def queries_keys(x, a, b):
  """Two float[1, T, H, K]: of one text, so that the fusion has a new axis of size 1 in front."""
  return (x @ a).reshape(1, T, H, K), (x @ b).reshape(1, T, H, K)


def test_multiply_and_sum_is_right_in_a_program_of_this_package(inputs, expected):
  """Under a plain `jax.jit` jaxlib 0.10.2 gets this wrong by more than its own size."""

  def scores(*inputs):
    q, k = queries_keys(*inputs)
    return jnp.sum(q[:, :, None] * k[:, None], axis=-1).transpose(0, 3, 1, 2)

  np.testing.assert_allclose(parallel.jit(scores)(*inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_matmuls_are_right_under_a_plain_jit(inputs, expected):
  program = jax.jit(lambda *inputs: jnp.einsum("bqhk,bshk->bhqs", *queries_keys(*inputs)))
  np.testing.assert_allclose(program(*inputs), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("axes", [(1, 0), (1, 1), (0, 0), (0, 1)])
@pytest.mark.parametrize("m, n", [(5, 7), (7, 5)])
def test_bf16_dot_rounds_its_inputs_and_sums_in_float32(axes, m, n):
  random = np.random.default_rng(1)
  a, b = random.normal(size=(m, 6)).astype(np.float32), random.normal(size=(6, n)).astype(np.float32)
  exact = (np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64) for x in (a, b))
  out = jax.jit(lambda a, b: cpu.bf16_dot(a, b, axes))(a if axes[0] else a.T, b.T if axes[1] else b)
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, np.matmul(*exact), rtol=1e-6, atol=1e-6)
