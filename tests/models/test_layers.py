"""What transformers are made of: gradients of a linear map and of what is added to every row, whichever way they are computed."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import parallel
from inversionview_jax.models.layers import Linear, compiling_for, from_rows_last, rows_last, shortens, spread

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


@pytest.fixture(params=[False, True], ids=("as it is", "tiles"))
def tiles(request, monkeypatch):
  """Short products as this CPU makes them, with tiles or without."""
  if request.param and not parallel.has_tiles():
    pytest.skip("no AMX here")
  monkeypatch.setattr(parallel, "has_tiles", lambda: True)
  options = parallel.compiler_options("cpu") if request.param else None
  return lambda function: jax.jit(function, compiler_options=options)


def shortened(x):
  return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


SQUARE, LONG = 128, 256


@pytest.mark.parametrize("sizes", [(LONG, SQUARE), (SQUARE, LONG)], ids=("tall", "wide"))
def test_quick_products_have_bfloat16_factors_and_exact_sums_forwards_and_backwards(sizes, tiles):
  rng = np.random.default_rng(2)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3, sizes[0]), sizes))
  weight = rng.normal(size=(ROWS, 3, sizes[1])).astype(np.float32)
  module = Linear(sizes[1], bias=False, quick=True)

  def both(x, kernel):
    out, back = jax.vjp(lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x), x, kernel)
    return out, *back(weight)

  a, k, w = shortened(x), shortened(kernel), shortened(weight)
  expected = a @ k, w @ k.T, np.einsum("btd,bte->de", a, w)
  for own, by_hand in zip(tiles(both)(x, kernel), expected, strict=True):
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, by_hand, rtol=0, atol=1e-5 * np.abs(by_hand).max())
  assert np.abs(np.asarray(tiles(both)(x, kernel)[0]) - x @ kernel).max() > 1e-3  # shortened indeed


def test_quick_products_do_not_depend_on_how_many_rows_there_are_nor_on_what_comes_after(tiles):
  rng = np.random.default_rng(3)
  x, kernel = rng.normal(size=(600, SQUARE)).astype(np.float32), rng.normal(size=(SQUARE, LONG)).astype(np.float32)

  def product(x, kernel):
    return Linear(LONG, bias=False, quick=True).apply({"params": {"kernel": kernel}}, x)

  whole = np.asarray(tiles(product)(x, kernel))
  for rows in (1, 3, 64, 75):
    np.testing.assert_allclose(tiles(product)(x[:rows], kernel), whole[:rows], rtol=0, atol=2e-5)
  # What follows may ask for another order in memory, with which XLA's CPU backend fails.
  turned = tiles(lambda x, kernel: product(x, kernel).T.reshape(-1) + 1.0)(x, kernel)
  np.testing.assert_allclose(turned, whole.T.reshape(-1) + np.float32(1.0), rtol=0, atol=2e-5)
  np.testing.assert_allclose(tiles(lambda x, kernel: product(x.T, kernel))(x.T, kernel), whole, rtol=0, atol=2e-5)


def test_rows_last_is_the_same_product(tiles):
  rng = np.random.default_rng(4)
  x, kernel = rng.normal(size=(70, SQUARE)).astype(np.float32), rng.normal(size=(SQUARE, LONG)).astype(np.float32)
  for quick in (False, True):
    a, k = (shortened(x), shortened(kernel)) if quick else (x.astype(np.float64), kernel.astype(np.float64))
    close = {"rtol": 0, "atol": 1e-5 * np.abs(a @ k).max()}
    np.testing.assert_allclose(tiles(functools.partial(rows_last, quick=quick))(x, kernel), (a @ k).T, **close)
    np.testing.assert_allclose(tiles(functools.partial(from_rows_last, quick=quick))(x.T, kernel), a @ k, **close)


def test_products_are_short_only_where_that_is_allowed_quicker_and_enough(monkeypatch):
  kernel = jnp.zeros((SQUARE, LONG))
  monkeypatch.setattr(parallel, "has_tiles", lambda: True)
  assert shortens(kernel, quick=True)
  assert not shortens(kernel, quick=False)
  assert not shortens(kernel[:, :64], quick=True)
  with jax.default_matmul_precision("float32"):
    assert not shortens(kernel, quick=True)
  with jax.default_matmul_precision("bfloat16"):
    assert shortens(kernel, quick=True)
  with compiling_for("tpu"):
    assert not shortens(kernel, quick=True)
  monkeypatch.setattr(parallel, "has_tiles", lambda: False)
  assert not shortens(kernel, quick=True)
