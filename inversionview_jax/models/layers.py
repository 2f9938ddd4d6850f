"""What transformers are made of: activations, norms, linear maps, rotary embeddings.

Shapes: B batch, T tokens, H heads, K d_head, R pairs of rotated dimensions.
"""

import contextlib
import contextvars
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import parallel

_compiling_for = contextvars.ContextVar("compiling_for", default="")


@contextlib.contextmanager
def compiling_for(platform: str):
  """What is traced inside is for this platform, "cpu" or "tpu", and not for the devices that JAX has here."""
  before = _compiling_for.set(platform)
  try:
    yield
  finally:
    _compiling_for.reset(before)


def for_a_cpu() -> bool:
  """Whether what is traced now is for a CPU."""
  return (_compiling_for.get() or jax.default_backend()) == "cpu"


_FEW, _MANY = 8, 256  # rows
_GELU_A, _GELU_B = (2.0 / jnp.pi) ** 0.5, 0.044715


@jax.custom_vjp
def gelu_new(x: jax.Array) -> jax.Array:
  """GPT-2's tanh approximation of GELU (Hendrycks and Gimpel, 2016), with its gradient by hand: one tanh for both passes."""
  return 0.5 * x * (1.0 + jnp.tanh(_GELU_A * (x + _GELU_B * x * x * x)))


def _gelu_new_forward(x):
  t = jnp.tanh(_GELU_A * (x + _GELU_B * x * x * x))
  slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _GELU_A * (1.0 + 3.0 * _GELU_B * x * x)
  return 0.5 * x * (1.0 + t), slope


gelu_new.defvjp(_gelu_new_forward, lambda slope, g: (g * slope,))

ACTIVATIONS = {
  "gelu_new": gelu_new,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


def normal(std: float):
  return nn.initializers.normal(std)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def spread(x, shape: tuple[int, ...]):
  """`jnp.broadcast_to`, in front of the axes of x only, with a gradient that is quick to sum on a CPU."""
  return jnp.broadcast_to(x, shape)


@spread.defjvp
def _spread_jvp(shape, primals, tangents):
  (x,), (d_x,) = primals, tangents
  rows = math.prod(shape[: len(shape) - x.ndim])
  if rows < _MANY or not for_a_cpu():
    return spread(x, shape), jnp.broadcast_to(d_x, shape)
  # The sum over rows, which this is backwards, as a matrix product: XLA's CPU backend sums many rows at a quarter of that speed, and computes
  # again what it sums. One row of the product is wanted; Eigen is slow with a single one.
  few = jnp.pad(d_x.reshape(1, -1), ((0, _FEW - 1), (0, 0)))
  return spread(x, shape), (jnp.ones((rows, _FEW), d_x.dtype) @ few).reshape(shape)


class LayerNorm(nn.Module):
  """LayerNorm in float32, with the two-pass variance (the one-pass one loses digits that distances need)."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * scale + bias).astype(x.dtype)


class RMSNorm(nn.Module):
  """Division by the root mean square (Zhang and Sennrich, 2019), in float32; the mean stays in."""

  eps: float = 1e-5

  @nn.compact
  def __call__(self, x):
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


@jax.custom_jvp
def _product(rows, kernel):
  return rows @ kernel


@_product.defjvp
def _product_jvp(primals, tangents):
  (rows, kernel), (d_rows, d_kernel) = primals, tangents
  if kernel.shape[0] > kernel.shape[1] and for_a_cpu():
    # The gradient of a tall kernel as that of a wide one, which Eigen makes in half the time; the barrier keeps XLA from turning it back.
    wide = jax.lax.optimization_barrier(d_kernel.T)
    by_kernel = jax.lax.dot_general(rows, wide, (((1,), (1,)), ((), ())))
  else:
    by_kernel = rows @ d_kernel
  return rows @ kernel, d_rows @ kernel + by_kernel


_TILED = 128  # width from which tiles pay
_NOT_ASKED = (None, "default", "fastest", "bfloat16", "BF16_BF16_F32")


def may_be_quick(mesh, config=None) -> bool:
  """Whether products of what is trained or sampled on this mesh may be short at all: each device has whole matrices, and the config that it is
  trained by, if any, does not ask for float32 (`compute.dtype`)."""
  compute = (config or {}).get("compute") or {}
  return mesh.shape[parallel.MODEL] == 1 and compute.get("dtype") != "float32"


def shortens(kernel, quick: bool) -> bool:
  """Whether products with this kernel, float32[D, E], take bfloat16 factors and float32 sums.

  As they do on a TPU: where `quick` allows it, the hardware is two to four times as fast at it (a CPU with AMX), and JAX was not asked for
  more (`jax_default_matmul_precision`). The number of rows does not matter, or results would depend on the number of devices.
  """
  wanted = quick and jax.config.jax_default_matmul_precision in _NOT_ASKED
  return wanted and min(kernel.shape) >= _TILED and for_a_cpu() and parallel.has_tiles()


def _in_order(x):
  """x as it is, one row after the other in memory: XLA's CPU backend fails on products of bfloat16 with a result in any other order."""
  return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def shortened(x):
  """A factor of `short_dot`: x in bfloat16."""
  return _in_order(x.astype(jnp.bfloat16))


def short_dot(a, b, axis: int):
  """bfloat16[M, E] times bfloat16[E, N] (axis 0) or bfloat16[N, E] (axis 1), both `shortened`: float32[M, N], summed in float32."""
  return _in_order(jax.lax.dot_general(a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32))


def _short(a, b, axis: int):
  """`short_dot` of float[M, E] and float[E, N] or float[N, E]."""
  return short_dot(shortened(a), shortened(b), axis)


@jax.custom_vjp
def _short_product(rows, kernel):
  return _short(rows, kernel, 0).astype(rows.dtype)


def _short_product_backward(kept, gradient):
  rows, kernel = kept
  # Tiles want their first factor in order, so one of the two is turned: the narrower.
  tall = kernel.shape[0] > kernel.shape[1]
  by_kernel = _short(gradient.T, rows, 0).T if tall else _short(rows.T, gradient, 0)
  return _short(gradient, kernel, 1).astype(rows.dtype), by_kernel.astype(kernel.dtype)


_short_product.defvjp(lambda rows, kernel: (_short_product(rows, kernel), (rows, kernel)), _short_product_backward)


def rows_last(x, kernel, quick: bool = False):
  """float[B, D] times float32[D, E] -> float[E, B]."""
  if shortens(kernel, quick):
    return _short(kernel.T, x, 1).astype(x.dtype)
  return jnp.einsum("bd,de->eb", x, kernel.astype(x.dtype))


def from_rows_last(x, kernel, quick: bool = False):
  """float[D, B] times float32[D, E] -> float[B, E]. The product takes x as it lies; to turn it costs a CPU more."""
  if shortens(kernel, quick):
    return _short(kernel.T, x, 0).T.astype(x.dtype)
  return jax.lax.dot_general(x, kernel.astype(x.dtype), (((0,), (0,)), ((), ())))


class Linear(nn.Module):
  """x @ kernel + bias, with kernel [in, out] as in Hugging Face's GPT-2; `quick`: as `shortens` has it."""

  features: int
  std: float = 0.02
  bias: bool = True
  quick: bool = False

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", normal(self.std), (x.shape[-1], self.features))
    # As one matrix of rows: XLA's CPU backend is up to seven times slower on the gradient of the batched product.
    rows = x.reshape(-1, x.shape[-1])
    if shortens(kernel, self.quick):
      rows = _short_product(rows, kernel)
    else:
      rows = _product(rows, kernel.astype(x.dtype))
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      rows = rows + spread(bias.astype(x.dtype), rows.shape)
    return rows.reshape(*x.shape[:-1], self.features)


def rotate(x, positions, frequencies, gain: float = 1.0):
  """Rotary position embedding (Su et al., 2021): turns dimension i of a head against dimension i + R, as Hugging Face pairs them.

  Args:
    x: float[B, T, H, K], K = 2 R.
    positions: int32[T] or int32[B, T].
    frequencies: R floats; pair i turns by positions * frequencies[i].
    gain: cos and sin are multiplied by this.
  """
  angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)  # [..., T, 1, R]
  cos, sin = gain * jnp.cos(angles), gain * jnp.sin(angles)
  one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1).astype(x.dtype)
