"""How numbers are computed on each backend: what a program is compiled for, and matmul policies, which layers take as their `dot_general`.

A policy is a function with the signature of `jax.lax.dot_general`, so `flax.linen.Dense` takes it too. A kernel is the operand [in, out]
that is contracted over its first axis (the second operand, if both are).
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from inversionview_jax.devices import cpu

DotGeneral = Callable[..., jax.Array]
Dimensions = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]  # of `jax.lax.dot_general`

# The platform for which this package compiles what is traced now, with `compiler_options`; None under a `jax.jit` of somebody else.
# Part of the keys of JAX's caches, so nothing that was traced for one compilation is reused in the other.
_compiled_for = jax.make_user_context(None)

BF16_WIDTH = 128  # of a kernel's narrower side, from which AMX tiles are faster than float32 products
_BF16_PRECISIONS = (None, "default", "fastest", "bfloat16", "BF16_BF16_F32")  # of `jax_default_matmul_precision`
_SUM_COLUMNS, _SUM_ROWS = 8, 256


def compiled_for(platform: str) -> contextlib.AbstractContextManager:
  """What is traced inside is compiled for this platform ("cpu", "gpu", "tpu") with `compiler_options(platform)`."""
  return _compiled_for(platform)


def compiler_options(platform: str) -> dict[str, str] | None:
  """The options with which this package compiles its programs for a platform; they change speed only (`cpu.compiler_options`)."""
  return cpu.compiler_options() if platform == "cpu" else None


def platform() -> str:
  """The platform for which the present trace is compiled; JAX's default backend unless `compiled_for` names one."""
  return _compiled_for.value or jax.default_backend()


def has_safe_sums() -> bool:
  """Whether products may be written as multiply-and-sum: everywhere but on a CPU under a plain `jax.jit`.

  On a CPU XLA may make a YNNPACK fusion of it, with wrong numbers (`cpu.compiler_options`); only this package's programs switch that off.
  """
  return platform() != "cpu" or _compiled_for.value == "cpu"


def uses_bf16(kernel: jax.Array) -> bool:
  """Whether `bf16_matmul` rounds its inputs for this kernel, float[D, E].

  It does in this package's programs on a CPU with AMX, where that is two to four times as fast, for kernels of at least `BF16_WIDTH`, unless
  `jax_default_matmul_precision` is higher. The number of rows has no part in it, or results would depend on the number of devices.
  """
  precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
  allowed = _compiled_for.value == "cpu" and precision in _BF16_PRECISIONS
  return allowed and min(kernel.shape) >= BF16_WIDTH and cpu.has_amx()


def matmul_policy(mesh: Mesh, config: Mapping | None = None) -> DotGeneral:
  """The policy for what is trained or sampled on a mesh: `bf16_matmul` where each device holds whole matrices, otherwise `matmul`.

  Args:
    mesh: ("data", "model").
    config: of the training, if any; with `compute.dtype` = "float32" products stay float32.
  """
  compute = (config or {}).get("compute") or {}
  return bf16_matmul if mesh.shape["model"] == 1 and compute.get("dtype") != "float32" else matmul


def matmul(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Dimensions,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """`jax.lax.dot_general`, with inputs [..., D] to a kernel [D, E] as one matrix of rows.

  XLA's CPU backend is slower on the gradient of the batched product: 12% of a training step of the shipped addition decoder (AVX2).
  """
  if not _is_dense(lhs, rhs, dimension_numbers):
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, precision, preferred_element_type)
  rows = lhs.reshape(-1, lhs.shape[-1])
  out = jax.lax.dot_general(rows, rhs, (((1,), (0,)), ((), ())), precision, preferred_element_type)
  return out.reshape(*lhs.shape[:-1], rhs.shape[1])


def bf16_matmul(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: Dimensions,
  precision: Any = None,
  preferred_element_type: Any = None,
) -> jax.Array:
  """Matmuls take bfloat16 inputs and accumulate in float32, as on a TPU, where `uses_bf16`; `matmul` elsewhere.

  The result has the inputs' dtype. Gradients are computed in the same way, with the cotangent rounded too.
  """
  ((lhs_axes, rhs_axes), batch) = dimension_numbers
  if _is_dense(lhs, rhs, dimension_numbers):
    lhs_rows, axes, shape = lhs.reshape(-1, lhs.shape[-1]), (1, 0), (*lhs.shape[:-1], rhs.shape[1])
  elif lhs.ndim == rhs.ndim == 2 and len(lhs_axes) == 1 and not any(batch):
    lhs_rows, axes, shape = lhs, (lhs_axes[0] % 2, rhs_axes[0] % 2), None
  else:
    return matmul(lhs, rhs, dimension_numbers, precision, preferred_element_type)
  if not uses_bf16(rhs if axes[1] == 0 else lhs):
    return matmul(lhs, rhs, dimension_numbers, precision, preferred_element_type)
  out = cpu.bf16_dot(lhs_rows, rhs, axes).astype(preferred_element_type or lhs.dtype)
  return out if shape is None else out.reshape(shape)


def _is_dense(lhs, rhs, dimension_numbers) -> bool:
  """Whether this is a product as `flax.linen.Dense` makes it: [..., D] times [D, E]."""
  (lhs_axes, rhs_axes), batch = dimension_numbers
  last = tuple(axis % lhs.ndim for axis in lhs_axes) == (lhs.ndim - 1,)
  return rhs.ndim == 2 and last and tuple(axis % 2 for axis in rhs_axes) == (0,) and not any(batch)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def broadcast_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """`jnp.broadcast_to` along new axes in front; its gradient, the sum over rows, is a matmul on a CPU."""
  return jnp.broadcast_to(x, shape)


@broadcast_rows.defjvp
def _broadcast_rows_jvp(shape, primals, tangents):
  (x,), (d_x,) = primals, tangents
  rows = math.prod(shape[: len(shape) - x.ndim])
  if rows < _SUM_ROWS or platform() != "cpu":
    return broadcast_rows(x, shape), jnp.broadcast_to(d_x, shape)
  # XLA's CPU backend sums many rows at a quarter of the speed of a product with ones, and computes again what it sums. One row of the
  # product is needed; Eigen is slow with a single one.
  padded = jnp.pad(d_x.reshape(1, -1), ((0, _SUM_COLUMNS - 1), (0, 0)))
  return broadcast_rows(x, shape), (jnp.ones((rows, _SUM_COLUMNS), d_x.dtype) @ padded).reshape(shape)
