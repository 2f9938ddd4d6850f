"""The attention to an activation of the decoder's cross-attention variant (paper, appendix on the decoder).

Shapes: B batch, T tokens, J slots of width R, H heads, D d_model, K d_head.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.models.layers import Linear


class CrossAttention(nn.Module):
  """Attention of every position to slots, and to a learned key and value that say nothing. Scores are not scaled (as released)."""

  config: object  # a TransformerConfig, whose module imports this one

  def setup(self):
    c = self.config
    self.q = Linear(c.n_heads * c.d_head, std=c.init_std, quick=c.quick)
    self.kv = Linear(2 * c.n_heads * c.d_head, std=c.init_std, quick=c.quick)
    self.o = Linear(c.d_model, std=c.init_std / (2 * c.n_layers) ** 0.5, quick=c.quick)
    self.no_op_k = self.param("no_op_k", nn.initializers.zeros, (c.n_heads, c.d_head))
    self.no_op_v = self.param("no_op_v", nn.initializers.zeros, (c.n_heads, c.d_head))
    self.dropout_resid = nn.Dropout(c.dropout_resid)

  def keys_values(self, slot):
    """float[B, J, R] -> two float[B, 1 + J, H, K]; the learned one in front."""
    c = self.config
    each = []
    for own, nothing in zip(jnp.split(self.kv(slot), 2, axis=-1), (self.no_op_k, self.no_op_v), strict=True):
      own = own.reshape(*own.shape[:-1], c.n_heads, c.d_head)
      nothing = jnp.broadcast_to(nothing.astype(own.dtype), (own.shape[0], 1, c.n_heads, c.d_head))
      each.append(jnp.concatenate([nothing, own], axis=1))
    return tuple(each)

  def __call__(self, x, keys, values, deterministic=True):
    """float[B, T, D] and what `keys_values` returns -> float[B, T, D]."""
    c = self.config
    q = self.q(x).reshape(*x.shape[:-1], c.n_heads, c.d_head)
    scores = jnp.sum(q[:, :, None] * keys[:, None], axis=-1).astype(jnp.float32)  # [B, T, 1 + J, H]
    pattern = jax.nn.softmax(scores, axis=2).astype(x.dtype)
    mixed = jnp.sum(pattern[..., None] * values[:, None], axis=2)
    return self.dropout_resid(self.o(mixed.reshape(*x.shape[:-1], -1)), deterministic=deterministic)
