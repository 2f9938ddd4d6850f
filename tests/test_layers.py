"""What transformers are made of: gradients of a linear map and of what is added to every row, whichever way they are computed."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import parallel
from inversionview_jax.layers import Linear, compiling_for, spread

ROWS, TALL, WIDE = 90, 40, 12  # so many that a bias has its gradient from a matrix product


@pytest.mark.parametrize("sizes", [(TALL, WIDE), (WIDE, TALL)], ids=("tall", "wide"))
@pytest.mark.parametrize("platform", ["", "tpu"])
def test_gradients_of_a_linear_map_are_those_of_its_product(sizes, platform):
  rng = np.random.default_rng(0)
  x, kernel, bias = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3, sizes[0]), sizes, sizes[1:]))
  wanted = rng.normal(size=(ROWS, 3, sizes[1])).astype(np.float32)
  module = Linear(sizes[1])

  def far(x, kernel, bias):
    return jnp.sum((module.apply({"params": {"kernel": kernel, "bias": bias}}, x) - wanted) ** 2)

  def each_row(x, kernel, bias):  # as with dropout, where every row has a key of its own
    made = jax.vmap(lambda row: module.apply({"params": {"kernel": kernel, "bias": bias}}, row))(x)
    return jnp.sum((made - wanted) ** 2)

  off = 2 * (x @ kernel + bias - wanted)
  by_hand = off @ kernel.T, np.einsum("btd,bte->de", x, off), off.sum(axis=(0, 1))
  with compiling_for(platform) if platform else contextlib.nullcontext():
    for loss in (far, each_row):
      for own, expected in zip(parallel.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, kernel, bias), by_hand, strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-4, atol=1e-3)
  # And forwards: the same derivative in one direction.
  step = tuple(rng.normal(size=g.shape).astype(np.float32) for g in by_hand)
  _, along = jax.jvp(far, (x, kernel, bias), step)
  np.testing.assert_allclose(along, sum(np.sum(g * s) for g, s in zip(by_hand, step, strict=True)), rtol=1e-4)


@pytest.mark.parametrize("rows", [(300,), (5, 60), (4,)], ids=("many", "two axes", "few"))
def test_what_is_added_to_every_row_has_the_sum_over_rows_as_its_gradient(rows):
  rng = np.random.default_rng(1)
  x, weight = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(*rows, 7, 3)).astype(np.float32)
  out, back = jax.vjp(lambda x: spread(x, (*rows, 7, 3)), x)
  np.testing.assert_array_equal(out, np.broadcast_to(x, (*rows, 7, 3)))
  np.testing.assert_allclose(back(weight)[0], weight.sum(axis=tuple(range(len(rows)))), rtol=1e-5, atol=1e-4)
