"""Matmul policies and their derivatives, and which form of a sum is right for what a program is compiled for."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import cpu, numerics, parallel
from inversionview_jax.devices.numerics import bf16_matmul, broadcast_rows, compiled_for, matmul

pytestmark = pytest.mark.optimized

ROWS, SQUARE, LONG = 90, 128, 256
DENSE, COLUMNS_LAST = (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ()))


@pytest.fixture(params=[False, True], ids=("forced on", "AMX"))
def bf16_program(request, monkeypatch):
  """Compiles a function as this package's programs are, on a CPU with AMX: simulated on any CPU, and real where there is one."""
  if request.param and not cpu.has_amx():
    pytest.skip("no AMX here")
  monkeypatch.setattr(cpu, "has_amx", lambda: True)
  options = numerics.compiler_options("cpu") if request.param else None

  def program(function):
    def call(*args):
      with compiled_for("cpu"):
        return jax.jit(function, compiler_options=options)(*args)

    return call

  return program


def rounded(x):
  return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


# What a trace is compiled for.


def test_sums_are_safe_in_this_packages_programs_and_off_the_cpu_but_not_under_a_plain_jit():
  seen = []

  def function(x):
    seen.append((numerics.platform(), numerics.has_safe_sums()))
    return x

  program, x = parallel.jit(function), jnp.ones(3)
  jax.jit(function)(x)
  program(x)
  jax.jit(program)(x)  # traced again: JAX's caches keep the two compilations apart
  with compiled_for("tpu"):
    jax.jit(function)(x)
  jax.jit(function)(x)
  program(x)
  assert seen == [("cpu", False), ("cpu", True), ("tpu", True)]


def test_inner_programs_are_compiled_with_the_outer_one():
  seen = []
  inner = parallel.jit(lambda x: (seen.append(numerics.has_safe_sums()), x * 2)[1])
  outer = parallel.jit(lambda x: inner(x) + 1)
  np.testing.assert_array_equal(outer(jnp.arange(3.0)), [1, 3, 5])
  np.testing.assert_array_equal(jax.jit(lambda x: inner(x) + 1)(jnp.arange(3.0)), [1, 3, 5])
  assert seen == [True, False]


# float32.


@pytest.mark.parametrize("sizes", [(40, 12), (12, 40)], ids=("tall", "wide"))
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_dense_layer_with_the_policy_has_the_derivatives_of_the_product(sizes, platform):
  rng = np.random.default_rng(0)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3, sizes[0]), sizes))
  goal = rng.normal(size=(ROWS, 3, sizes[1])).astype(np.float32)
  module = nn.Dense(sizes[1], use_bias=False, dot_general=matmul)

  def loss(x, kernel):
    return jnp.sum((module.apply({"params": {"kernel": kernel}}, x) - goal) ** 2)

  difference = 2 * (x @ kernel - goal)
  expected = difference @ kernel.T, np.einsum("btd,bte->de", x, difference)
  with compiled_for(platform):
    for own, by_hand in zip(jax.jit(jax.grad(loss, argnums=(0, 1)))(x, kernel), expected, strict=True):
      np.testing.assert_allclose(own, by_hand, rtol=1e-4, atol=1e-3)
    step = tuple(rng.normal(size=g.shape).astype(np.float32) for g in expected)
    _, along = jax.jvp(loss, (x, kernel), step)
  np.testing.assert_allclose(along, sum(np.sum(g * s) for g, s in zip(expected, step, strict=True)), rtol=1e-4)
  each = jax.vmap(
    jax.grad(lambda kernel, row: jnp.sum((module.apply({"params": {"kernel": kernel}}, row)) ** 2)), (None, 0)
  )
  np.testing.assert_allclose(
    each(kernel, x).sum(axis=0), np.einsum("btd,bte->de", x, 2 * (x @ kernel)), rtol=1e-4, atol=1e-3
  )


def test_other_products_than_a_dense_layers_are_lax_dot_generals():
  rng = np.random.default_rng(1)
  a, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 5), (3, 5, 6)))
  dimensions = (((2,), (1,)), ((0,), (0,)))
  for policy in (matmul, bf16_matmul):
    np.testing.assert_array_equal(policy(a, b, dimensions), jax.lax.dot_general(a, b, dimensions))
    half = policy(a.astype(jnp.bfloat16), b[0].astype(jnp.bfloat16), (((2,), (0,)), ((), ())), None, jnp.float32)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, rounded(a) @ rounded(b[0]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(300,), (5, 60), (4,)], ids=("many", "two axes", "few"))
def test_what_is_added_to_every_row_has_the_sum_over_rows_as_its_gradient(rows):
  rng = np.random.default_rng(1)
  x, weight = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(*rows, 7, 3)).astype(np.float32)
  out, back = jax.vjp(lambda x: broadcast_rows(x, (*rows, 7, 3)), x)
  np.testing.assert_array_equal(out, np.broadcast_to(x, (*rows, 7, 3)))
  np.testing.assert_allclose(back(weight)[0], weight.sum(axis=tuple(range(len(rows)))), rtol=1e-5, atol=1e-4)


# bfloat16 inputs, float32 sums.


@pytest.mark.parametrize("sizes", [(LONG, SQUARE), (SQUARE, LONG)], ids=("tall", "wide"))
def test_bf16_matmuls_have_bfloat16_inputs_and_float32_sums_forwards_and_backwards(sizes, bf16_program):
  rng = np.random.default_rng(2)
  x, kernel = (rng.normal(size=s).astype(np.float32) for s in ((ROWS, 3, sizes[0]), sizes))
  weight = rng.normal(size=(ROWS, 3, sizes[1])).astype(np.float32)
  module = nn.Dense(sizes[1], use_bias=False, dot_general=bf16_matmul)

  def both(x, kernel):
    out, back = jax.vjp(lambda x, kernel: module.apply({"params": {"kernel": kernel}}, x), x, kernel)
    return out, *back(weight)

  a, k, w = rounded(x), rounded(kernel), rounded(weight)
  expected = a @ k, w @ k.T, np.einsum("btd,bte->de", a, w)
  for own, by_hand in zip(bf16_program(both)(x, kernel), expected, strict=True):
    assert own.dtype == jnp.float32
    np.testing.assert_allclose(own, by_hand, rtol=0, atol=1e-5 * np.abs(by_hand).max())
  assert np.abs(np.asarray(bf16_program(both)(x, kernel)[0]) - x @ kernel).max() > 1e-3  # the inputs were rounded


def test_bf16_matmuls_have_a_forward_derivative_and_one_of_the_gradient(bf16_program):
  rng = np.random.default_rng(5)
  x, kernel, d_x, d_kernel = (
    rng.normal(size=s).astype(np.float32) for s in ((ROWS, LONG), (LONG, SQUARE), (ROWS, LONG), (LONG, SQUARE))
  )

  def product(x, kernel):
    return bf16_matmul(x, kernel, DENSE)

  out, along = bf16_program(lambda *args: jax.jvp(product, args[:2], args[2:]))(x, kernel, d_x, d_kernel)
  by_hand = rounded(d_x) @ rounded(kernel) + rounded(x) @ rounded(d_kernel)
  np.testing.assert_allclose(along, by_hand, rtol=0, atol=1e-5 * np.abs(by_hand).max())
  np.testing.assert_allclose(out, rounded(x) @ rounded(kernel), rtol=0, atol=1e-3)
  # The Hessian of half the squared norm, in one direction: J'J d plus a term that is linear in the product.
  grad = jax.grad(lambda x: 0.5 * jnp.sum(product(x, kernel) ** 2))
  _, hessian = bf16_program(lambda x, d_x: jax.jvp(grad, (x,), (d_x,)))(x, d_x)
  exact = d_x @ kernel @ kernel.T
  np.testing.assert_allclose(hessian, exact, rtol=0, atol=0.02 * np.abs(exact).max())


def test_bf16_matmuls_of_a_batch_have_the_same_numbers(bf16_program):
  rng = np.random.default_rng(6)
  x, kernel = rng.normal(size=(3, ROWS, SQUARE)).astype(np.float32), rng.normal(size=(SQUARE, LONG)).astype(np.float32)

  def both(x, kernel):
    out, back = jax.vjp(lambda x, kernel: bf16_matmul(x, kernel, DENSE), x, kernel)
    return out, *back(out)

  batched = bf16_program(jax.vmap(both, (0, None)))(x, kernel)
  for i in range(3):
    for own, one in zip(batched, bf16_program(both)(x[i], kernel), strict=True):
      np.testing.assert_allclose(own[i], one, rtol=0, atol=2e-3 * np.abs(one).max())


@pytest.mark.parametrize(
  "shapes, axes", [(((LONG, 70), (LONG, SQUARE)), (0, 0)), (((LONG, SQUARE), (70, LONG)), (0, 1))]
)
def test_bf16_matmuls_of_matrices_that_lie_otherwise(shapes, axes, bf16_program):
  rng = np.random.default_rng(4)
  a, b = (rng.normal(size=s).astype(np.float32) for s in shapes)
  weight = rng.normal(size=(a.shape[1 - axes[0]], b.shape[1 - axes[1]])).astype(np.float32)
  dimensions = (((axes[0],), (axes[1],)), ((), ()))

  def both(a, b):
    out, back = jax.vjp(functools.partial(bf16_matmul, dimension_numbers=dimensions), a, b)
    return out, *back(weight)

  def exact(a, b):
    out, back = jax.vjp(functools.partial(jax.lax.dot_general, dimension_numbers=dimensions), a, b)
    return out, *back(rounded(weight).astype(np.float32))

  expected = exact(rounded(a).astype(np.float32), rounded(b).astype(np.float32))
  for own, by_hand in zip(bf16_program(both)(a, b), expected, strict=True):
    np.testing.assert_allclose(own, by_hand, rtol=0, atol=1e-5 * np.abs(by_hand).max())


def test_bf16_matmuls_do_not_depend_on_how_many_rows_there_are_nor_on_what_comes_after(bf16_program):
  rng = np.random.default_rng(3)
  x, kernel = rng.normal(size=(600, SQUARE)).astype(np.float32), rng.normal(size=(SQUARE, LONG)).astype(np.float32)

  def product(x, kernel):
    return bf16_matmul(x, kernel, DENSE)

  whole = np.asarray(bf16_program(product)(x, kernel))
  for rows in (1, 3, 64, 75):
    np.testing.assert_allclose(bf16_program(product)(x[:rows], kernel), whole[:rows], rtol=0, atol=2e-5)
  # What follows may want another layout, with which XLA's CPU backend fails.
  turned = bf16_program(lambda x, kernel: product(x, kernel).T.reshape(-1) + 1.0)(x, kernel)
  np.testing.assert_allclose(turned, whole.T.reshape(-1) + np.float32(1.0), rtol=0, atol=2e-5)
  np.testing.assert_allclose(
    bf16_program(lambda x, kernel: product(x.T, kernel))(x.T, kernel), whole, rtol=0, atol=2e-5
  )


@pytest.mark.parametrize("policy", [matmul, bf16_matmul])
def test_rows_may_be_the_last_axis(policy, bf16_program):
  rng = np.random.default_rng(4)
  x, kernel = rng.normal(size=(70, SQUARE)).astype(np.float32), rng.normal(size=(SQUARE, LONG)).astype(np.float32)
  a, k = (rounded(x), rounded(kernel)) if policy is bf16_matmul else (x.astype(np.float64), kernel.astype(np.float64))
  close = {"rtol": 0, "atol": 1e-5 * np.abs(a @ k).max()}
  to_last = bf16_program(lambda x, kernel: policy(kernel, x, (((0,), (1,)), ((), ()))))
  np.testing.assert_allclose(to_last(x, kernel), (a @ k).T, **close)
  np.testing.assert_allclose(
    bf16_program(lambda x, kernel: policy(x, kernel, COLUMNS_LAST))(x.T, kernel), a @ k, **close
  )


def test_inputs_are_rounded_only_where_that_is_allowed_faster_and_enough(monkeypatch):
  kernel = jnp.zeros((SQUARE, LONG))
  monkeypatch.setattr(cpu, "has_amx", lambda: True)
  assert not numerics.uses_bf16(kernel)  # under a plain jit
  with compiled_for("cpu"):
    assert numerics.uses_bf16(kernel)
    assert not numerics.uses_bf16(kernel[:, :64])
    with jax.default_matmul_precision("float32"):
      assert not numerics.uses_bf16(kernel)
    with jax.default_matmul_precision("bfloat16"):
      assert numerics.uses_bf16(kernel)
  with compiled_for("tpu"):
    assert not numerics.uses_bf16(kernel)
  monkeypatch.setattr(cpu, "has_amx", lambda: False)
  with compiled_for("cpu"):
    assert not numerics.uses_bf16(kernel)


@pytest.mark.parametrize("model, config, policy", [
  (1, None, bf16_matmul), (1, {"compute": {"dtype": "bfloat16"}}, bf16_matmul), (1, {"compute": {"dtype": "float32"}}, matmul), (2, None, matmul),
])  # fmt: skip
def test_policy_of_a_mesh(model, config, policy):
  assert numerics.matmul_policy(parallel.make_mesh(model=model), config) is policy
