"""CPUs: the compiler options of this package's programs, and matmuls on AMX tiles with bfloat16 inputs and float32 sums.

Shapes: M and N rows and columns of a product, E what it sums over.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_YNNPACK, _SINGLE_DOTS = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"


@functools.cache
def has_amx() -> bool:
  """Whether this host's CPU multiplies bfloat16 matrices in tiles (Intel's AMX) and XLA has the option that lets it."""
  try:
    return "amx_bf16" in pathlib.Path("/proc/cpuinfo").read_text() and _is_option(_SINGLE_DOTS)
  except OSError:  # not Linux
    return False


@functools.cache
def compiler_options() -> dict[str, str] | None:
  """XLA's options for this package's programs on a CPU: no YNNPACK fusions, which attention by multiply-and-sum needs; None where XLA has none.

  With jaxlib 0.10.2 (not with 0.11.2 and 0.12.0) a fusion of a multiplication and a sum for YNNPACK returns wrong numbers, larger than the
  right ones, where an operand is broadcast along a new axis of size 1 in front, as in attention of one text:
  ``x.reshape(1, T, H, K)[:, :, None] * y.reshape(1, T, H, K)[:, None]`` summed over K. Nothing of this package that runs under a plain
  `jax.jit` has that form (`numerics.has_safe_sums`).
  On an AMX host single products stay with YNNPACK, because nothing else of XLA's uses the tiles.
  """
  fusions = _SINGLE_DOTS if has_amx() else ""
  return {_YNNPACK: fusions} if _is_option(fusions) else None


@functools.cache
def _is_option(fusions: str) -> bool:
  """Whether this jaxlib takes `fusions` as a value of its YNNPACK option."""
  try:
    jax.jit(lambda: jnp.zeros(()), compiler_options={_YNNPACK: fusions}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True


def bf16_dot(lhs: jax.Array, rhs: jax.Array, axes: tuple[int, int] = (1, 0)) -> jax.Array:
  """The product of two matrices, rounded to bfloat16 first and summed in float32; gradients are such products too.

  A primitive of its own, because the gradient that JAX derives for a product of bfloat16 multiplies a float32 cotangent, without tiles.

  Args:
    lhs: float[M, E], or float[E, M] if `axes[0]` is 0.
    rhs: float[E, N], or float[N, E] if `axes[1]` is 1.
    axes: of lhs and rhs that are summed over.

  Returns:
    float32[M, N].
  """
  return _bf16_dot.bind(lhs, rhs, axes=tuple(axes))


def _product(lhs, rhs, *, axes):
  if (
    axes == (0, 0) and rhs.shape[1] < lhs.shape[1]
  ):  # tiles want lhs as [M, E], so one of the two is transposed: the smaller
    return _product(rhs, lhs, axes=axes).T
  short = _row_major((lhs.T if axes[0] == 0 else lhs).astype(jnp.bfloat16))
  other = short if rhs is lhs and axes[0] == 1 else _row_major(rhs.astype(jnp.bfloat16))
  dimensions = (((1,), (axes[1],)), ((), ()))
  return _row_major(jax.lax.dot_general(short, other, dimensions, preferred_element_type=jnp.float32))


def _row_major(x):
  """x in row-major layout: XLA's CPU backend fails on bfloat16 products with operands or results in any other."""
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def _lhs_transpose(cotangent, lhs, rhs, *, axes):
  """[M, N] -> as lhs."""
  i, k = axes
  out = bf16_dot(cotangent, rhs, (1, 1 - k)) if i else bf16_dot(rhs, cotangent, (1 - k, 1))
  return out.astype(lhs.aval.dtype)


def _rhs_transpose(cotangent, lhs, rhs, *, axes):
  """[M, N] -> as rhs."""
  i, k = axes
  out = bf16_dot(cotangent, lhs, (0, 1 - i)) if k else bf16_dot(lhs, cotangent, (1 - i, 0))
  return out.astype(rhs.aval.dtype)


def _batched(operands, batch_axes, *, axes):
  """The same numbers in float32, in which products of rounded inputs are exact: XLA's CPU backend fails on batched bfloat16 products."""

  def one(lhs, rhs):
    rounded = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (lhs, rhs))
    return jax.lax.dot_general(*rounded, (((axes[0],), (axes[1],)), ((), ())))

  return jax.vmap(one, in_axes=tuple(batch_axes))(*operands), 0


_bf16_dot = Primitive("bf16_dot")
_bf16_dot.def_impl(jax.jit(_product, static_argnames="axes"))
_bf16_dot.def_abstract_eval(
  lambda lhs, rhs, *, axes: jax.core.ShapedArray((lhs.shape[1 - axes[0]], rhs.shape[1 - axes[1]]), jnp.float32)
)
mlir.register_lowering(_bf16_dot, mlir.lower_fun(_product, multiple_results=False))
ad.defbilinear(_bf16_dot, _lhs_transpose, _rhs_transpose)
batching.primitive_batchers[_bf16_dot] = _batched
