"""The attention to an activation of the decoder's cross-attention variant (paper, appendix on the decoder).

Shapes: B batch, T tokens, J slots of width R, H heads, D d_model, K d_head.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models import attention, cpu_attention
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.layers import Linear


class CrossAttention(nn.Module):
  """Attention of every position to slots, and to a learned null key and value. Scores are not scaled (as released)."""

  config: TransformerConfig
  compute: Compute

  def setup(self) -> None:
    c, dot_general = self.config, self.compute.dot_general
    self.q = Linear(c.n_heads * c.d_head, c.init_std, dot_general=dot_general)
    self.kv = Linear(2 * c.n_heads * c.d_head, c.init_std, dot_general=dot_general)
    self.o = Linear(c.d_model, c.init_std / (2 * c.n_layers) ** 0.5, dot_general=dot_general)
    self.no_op_k = self.param("no_op_k", nn.initializers.zeros, (c.n_heads, c.d_head))
    self.no_op_v = self.param("no_op_v", nn.initializers.zeros, (c.n_heads, c.d_head))
    self.dropout_resid = nn.Dropout(c.dropout_resid)

  def keys_values(self, slot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """float[B, J, R] -> two float[B, 1 + J, H, K]; the learned null in front."""
    c = self.config
    both = []
    for own, null in zip(jnp.split(self.kv(slot), 2, axis=-1), (self.no_op_k, self.no_op_v), strict=True):
      own = own.reshape(*own.shape[:-1], c.n_heads, c.d_head)
      null = jnp.broadcast_to(null.astype(own.dtype), (own.shape[0], 1, c.n_heads, c.d_head))
      both.append(jnp.concatenate([null, own], axis=1))
    return both[0], both[1]

  def __call__(self, x: jax.Array, keys: jax.Array, values: jax.Array, deterministic: bool = True) -> jax.Array:
    """float[B, T, D] and what `keys_values` returns -> float[B, T, D]."""
    c = self.config
    q = self.q(x).reshape(*x.shape[:-1], c.n_heads, c.d_head)

    def weigh(scores, seen, axis):
      del seen  # every slot is seen
      pattern = jax.nn.softmax(scores.astype(jnp.float32), axis=axis)
      return pattern.astype(x.dtype), pattern

    sums = attention.uses_sums(self.compute, numerics.has_safe_sums() and cpu_attention.is_faster(q, keys))
    mixed, _ = (cpu_attention if sums else attention).attend(q, keys, values, weigh, None)
    return self.dropout_resid(self.o(mixed.reshape(*x.shape[:-1], -1)), deterministic=deterministic)
