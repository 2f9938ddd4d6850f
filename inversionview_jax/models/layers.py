"""The parts of a transformer: activation functions, norms, linear maps, rotary embeddings.

Shapes: B batch, T tokens, H heads, K d_head, R pairs of rotated dimensions.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.norms import LayerNorm, RMSNorm

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "silu": jax.nn.silu,
  "gelu_10": lambda x: jnp.clip(jax.nn.gelu(x, approximate=False), -10, 10),
  "hardswish": jax.nn.hard_swish,
  "laplace": lambda x: 0.5 * (1 + jax.lax.erf((x - 0.707107) / (0.282095 * 2**0.5))),
  "leaky_relu": jax.nn.leaky_relu,
  "linear": lambda x: x,
  "mish": jax.nn.mish,
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "relu6": jax.nn.relu6,
  "sigmoid": jax.nn.sigmoid,
  "sqrtsoftplus": lambda x: jnp.sqrt(jax.nn.softplus(x)),
  "tanh": jnp.tanh,
  "solu": lambda x: x * jax.nn.softmax(x.astype(jnp.float32), axis=-1).astype(x.dtype),
}
ACTIVATIONS["solu_ln"] = ACTIVATIONS["solu"]  # of an MLP with a LayerNorm behind its activation function


class NoNorm(nn.Module):
  """What stands in place of the last norm of a model without norms: x times a scale, which is 1."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    return x * scale.astype(x.dtype)


def norm(config: TransformerConfig, compute: Compute = Compute(), name: str | None = None, kind: str = "") -> nn.Module:
  """A norm as this architecture has them (or of another kind), computed in float32."""
  kind = kind or config.norm
  if kind == "none":
    return NoNorm(name=name)
  if kind == "rms":
    return RMSNorm(config.norm_eps, dtype=jnp.dtype(compute.dtype), name=name)
  return layer_norm(config.norm_eps, compute, name)


def layer_norm(eps: float = 1e-5, compute: Compute = Compute(), name: str | None = None) -> LayerNorm:
  """A LayerNorm that computes as `compute` says."""
  return LayerNorm(eps, dtype=jnp.dtype(compute.dtype), name=name)


class Linear(nn.Module):
  """x @ kernel + bias, with kernel [in, out] as in Hugging Face's GPT-2.

  `flax.linen.Dense` but for the bias, whose gradient is a matmul on a CPU (`numerics.broadcast_rows`): with flax's sum over rows a training
  step of the shipped addition decoder takes 18% more CPU time (541 against 457 ms, 256 pairs, AVX2).
  """

  features: int
  std: float = 0.02
  use_bias: bool = True
  dot_general: numerics.DotGeneral = numerics.matmul

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param("kernel", nn.initializers.normal(self.std), (x.shape[-1], self.features))
    out = self.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    if self.use_bias:
      bias = self.param("bias", nn.initializers.zeros, (self.features,))
      out = out + numerics.broadcast_rows(bias.astype(x.dtype), out.shape)
    return out


def rotate(
  x: jax.Array, positions: jax.Array, frequencies: Sequence[float], gain: float = 1.0, adjacent: bool = False
) -> jax.Array:
  """Rotary position embedding (Su et al., 2021): turns dimension i of a head against dimension i + R, as Hugging Face pairs them.

  Dimensions from 2 R on stay.

  Args:
    x: float[B, T, H, K], K of 2 R or more.
    positions: int32[T] or int32[B, T].
    frequencies: R floats; pair i turns by positions * frequencies[i].
    gain: cos and sin are multiplied by this.
    adjacent: whether dimension 2 i is turned against 2 i + 1 instead.

  Returns:
    float[B, T, H, K], in the dtype of x.
  """
  angles = positions[..., None, None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)  # [..., T, 1, R]
  cos, sin = gain * jnp.cos(angles), gain * jnp.sin(angles)
  turned = 2 * len(frequencies)
  wide = x[..., :turned].astype(jnp.float32)
  one, other = (wide[..., ::2], wide[..., 1::2]) if adjacent else jnp.split(wide, 2, axis=-1)
  pairs = [one * cos - other * sin, other * cos + one * sin]
  out = jnp.stack(pairs, axis=-1).reshape(wide.shape) if adjacent else jnp.concatenate(pairs, axis=-1)
  out = out.astype(x.dtype)
  return out if turned == x.shape[-1] else jnp.concatenate([out, x[..., turned:]], axis=-1)
