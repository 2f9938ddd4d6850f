"""The parts of a transformer: activation functions, norms, linear maps, rotary embeddings.

Shapes: B batch, T tokens, H heads, K d_head, R pairs of rotated dimensions.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models.config import TransformerConfig

_GELU_A, _GELU_B = (2.0 / jnp.pi) ** 0.5, 0.044715


@jax.custom_jvp
def gelu_new(x: jax.Array) -> jax.Array:
  """GPT-2's tanh approximation of GELU (Hendrycks and Gimpel, 2016), whose derivative shares the tanh and keeps one array."""
  return 0.5 * x * (1.0 + jnp.tanh(_GELU_A * (x + _GELU_B * x * x * x)))


@gelu_new.defjvp
def _gelu_new_jvp(primals, tangents):
  (x,), (d_x,) = primals, tangents
  t = jnp.tanh(_GELU_A * (x + _GELU_B * x * x * x))
  slope = 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * _GELU_A * (1.0 + 3.0 * _GELU_B * x * x)
  return 0.5 * x * (1.0 + t), slope * d_x


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu_new": gelu_new,
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
}


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


def norm(config: TransformerConfig) -> nn.Module:
  """A norm as this architecture has them."""
  return NORMS[config.norm](config.norm_eps)


class Linear(nn.Module):
  """x @ kernel + bias, with kernel [in, out] as in Hugging Face's GPT-2."""

  features: int
  std: float = 0.02
  use_bias: bool = True
  dot_general: numerics.DotGeneral = numerics.matmul

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.normal(self.std), (x.shape[-1], self.features))
    out = self.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      out = out + numerics.broadcast_rows(bias.astype(x.dtype), out.shape)
    return out


def rotate(x: jax.Array, positions: jax.Array, frequencies: Sequence[float], gain: float = 1.0) -> jax.Array:
  """Rotary position embedding (Su et al., 2021): turns dimension i of a head against dimension i + R, as Hugging Face pairs them.

  Args:
    x: float[B, T, H, K], K = 2 R.
    positions: int32[T] or int32[B, T].
    frequencies: R floats; pair i turns by positions * frequencies[i].
    gain: cos and sin are multiplied by this.

  Returns:
    float[B, T, H, K], in the dtype of x.
  """
  angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)  # [..., T, 1, R]
  cos, sin = gain * jnp.cos(angles), gain * jnp.sin(angles)
  one, other = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1).astype(x.dtype)
