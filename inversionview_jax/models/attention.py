"""The self-attention of a transformer: over whole texts, and over a cache one token at a time.

Shapes: B batch, T tokens, P positions, H heads, G key/value heads, J slots, D d_model, K d_head, C cached positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.models.capture import rows_at
from inversionview_jax.models.layers import NORMS, Linear, for_a_cpu, from_rows_last, rotate, rows_last

# Queries times keys, and width of a head, up to which attention on a CPU multiplies and sums: XLA's batched products of such small matrices
# are slower (with gradients 3 times at 14 x 14 and width 8, 1.5 times at width 32), its fusions of larger ones slower still (6 times at
# 33 x 33 and width 32), and sums over more than 32 places it writes out first (twice as slow at 14 x 14 and width 64).
_SHORT, _NARROW = 400, 32


class Attention(nn.Module):
  """Causal self-attention with optional extra keys and values (slots) in front and an optional cache."""

  config: object  # a TransformerConfig, whose module imports this one
  layer: int

  def setup(self):
    c = self.config
    self.q = Linear(c.n_heads * c.d_head, std=c.init_std, bias="q" in c.biases, quick=c.quick)
    self.k, self.v = (
      Linear(c.kv_heads * c.d_head, std=c.init_std, bias=name in c.biases, quick=c.quick) for name in "kv"
    )
    # GPT-2 shrinks what writes to the residual stream by the number of writers.
    self.o = Linear(c.d_model, std=c.init_std / (2 * c.n_layers) ** 0.5, bias="o" in c.biases, quick=c.quick)
    if c.qk_norm:
      self.q_norm, self.k_norm = NORMS[c.norm](c.norm_eps), NORMS[c.norm](c.norm_eps)
    self.dropout, self.dropout_resid = nn.Dropout(c.dropout_attn), nn.Dropout(c.dropout_resid)

  @property
  def window(self) -> int:
    return self.config.windows[self.layer] if self.config.windows else 0

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], -1, self.config.d_head)

  def _turned(self, x, positions):
    c = self.config
    if not c.rotary or self.layer in c.unrotated or positions is None:
      return x
    return rotate(x, positions, c.rotary, c.rotary_gain)

  def queries(self, x, positions):
    """float[B, T, D], int32[T] or int32[B, T] -> float[B, T, H, K]."""
    q = self._heads(self.q(x))
    return self._turned(self.q_norm(q) if self.config.qk_norm else q, positions)

  def keys_values(self, x, positions=None):
    """float[B, T, D], int32[T] -> two float[B, T, G, K]; a slot has no position, and its key is not turned."""
    k = self._heads(self.k(x))
    return self._turned(self.k_norm(k) if self.config.qk_norm else k, positions), self._heads(self.v(x))

  def queries_rows_last(self, x, positions):
    """float[B, T, D], int32[T] -> float[T, H, K, B]: `queries`, with the rows of the batch last."""
    return self._rows_last(self.q, x) if self._plain else jnp.moveaxis(self.queries(x, positions), 0, -1)

  def keys_values_rows_last(self, x, positions=None):
    """float[B, T, D], int32[T] -> two float[T, G, K, B]: `keys_values`, as the cache holds them."""
    k = self._rows_last(self.k, x) if self._plain else jnp.moveaxis(self.keys_values(x, positions)[0], 0, -1)
    return k, self._rows_last(self.v, x)

  @property
  def _plain(self) -> bool:
    """Whether queries and keys are just what their linear maps make of x."""
    return not (self.config.qk_norm or self.config.rotary)

  def _rows_last(self, linear, x):
    """`linear` of float[B, T, D] -> float[T, heads, K, B], as the product makes it: to turn it afterwards takes a CPU longer."""
    weights = linear.variables["params"]
    out = jnp.stack([rows_last(x[:, t], weights["kernel"], linear.quick) for t in range(x.shape[1])])
    if "bias" in weights:
      out = out + weights["bias"].astype(x.dtype)[:, None]
    return out.reshape(x.shape[1], -1, self.config.d_head, x.shape[0])

  def _scaled(self, scores):
    c = self.config
    if c.attn_scale:
      scores = scores / (c.query_width or c.d_head) ** 0.5
    return c.attn_cap * jnp.tanh(scores / c.attn_cap) if c.attn_cap else scores

  def _pattern(self, scores, seen, axis=-1):
    """Scores and which of them count, bool, with the places that are attended to on `axis` -> how much each is attended to, float32."""
    return jax.nn.softmax(jnp.where(seen, self._scaled(scores.astype(jnp.float32)), -jnp.inf), axis=axis)

  def _for_each_head(self, x):
    """float[B, T, G, K] -> float[B, T, H, K]: consecutive heads share a key/value head."""
    share = self.config.n_heads // self.config.kv_heads
    return x if share == 1 else jnp.repeat(x, share, axis=-2)

  def mix(self, x, slot=None, deterministic=True, at=None):
    """Each head's mixture of values before W_O.

    Args:
      x: float[B, T, D], normalized residual stream.
      slot: float[B, J, D] or None; J places in front that every position sees; never a query.
      at: int32[B, P] or None; the positions that query, all T by default.

    Returns:
      z float[B, T or P, H, K] and the pattern float32[B, H, T or P, T (+J with slots, in front)].
    """
    positions = jnp.arange(x.shape[1])
    asking = positions[None, :] if at is None else at  # [B or 1, T or P]
    q = self.queries(rows_at(x, at), asking)
    k, v = self.keys_values(x, positions)
    seen = positions <= asking[..., None]
    if self.window:
      seen &= positions > asking[..., None] - self.window
    seen = seen[:, None]  # [B or 1, 1, T or P, T]
    if slot is not None:
      slot_k, slot_v = self.keys_values(slot)
      k, v = jnp.concatenate([slot_k, k], axis=1), jnp.concatenate([slot_v, v], axis=1)
      seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (slot.shape[1], 0)), constant_values=True)
    k, v = self._for_each_head(k), self._for_each_head(v)
    if q.shape[1] * k.shape[1] <= _SHORT and self.config.d_head <= _NARROW and for_a_cpu():
      # What a query weighs lies side by side, [B, T or P, H, T], so that exponentials and sums are made many at a time.
      k, v, seen = k.swapaxes(1, 2), v.swapaxes(1, 2), seen.swapaxes(1, 2)
      pattern = self._pattern(jnp.sum(q[:, :, :, None] * k[:, None], axis=-1), seen)
      weights = self.dropout(pattern, deterministic=deterministic).astype(x.dtype)
      return jnp.sum(weights[..., None] * v[:, None], axis=3), pattern.swapaxes(1, 2)
    pattern = self._pattern(jnp.einsum("bqhk,bshk->bhqs", q, k), seen)
    weights = self.dropout(pattern, deterministic=deterministic).astype(x.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", weights, v), pattern

  def mix_cached(self, x, cache, at, slots: int):
    """One new token, at position `at`, against a cache of J = `slots` and the tokens behind: x float[B, 1, D]; (keys, values) float[C, G, K, B].

    Rows are the last axis of the cache, so that a CPU sums many rows at a time: over the last axis it adds one number after the other.
    """
    position, index = jnp.reshape(at, (1,)), at + slots
    q = self.queries_rows_last(x, position)
    q = q.reshape(self.config.kv_heads, -1, *q.shape[-2:])  # [G, H / G, K, B]: consecutive heads share a key/value head
    new = self.keys_values_rows_last(x, position)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index, axis=0)
      for old, x in zip(cache, new, strict=True)
    )
    # Multiply and sum: with one query per row this beats a batched matrix product of tiny matrices. To be compiled with
    # `parallel.compiler_options`, without which XLA's CPU backend gets products of this form wrong (see there).
    scores = _dot(q, keys[:, :, None])  # [C, G, H / G, B]
    places = jnp.arange(keys.shape[0])
    seen = places <= index
    if self.window:
      seen &= (places > index - self.window) | (places < slots)
    pattern = self._pattern(scores, seen[:, None, None, None], axis=0).astype(x.dtype)
    mixed = jnp.sum(pattern[..., None, :] * values[:, :, None], axis=0)  # [G, H / G, K, B]
    return mixed.reshape(-1, x.shape[0]), (keys, values)

  def write(self, z, deterministic=True):
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes plus b_O."""
    out = self.o(z.reshape(*z.shape[:-2], -1))
    return self.dropout_resid(out, deterministic=deterministic)

  def write_rows_last(self, z):
    """float[H * K, B] -> float[B, 1, D]: the sum of all heads' writes plus b_O."""
    weights = self.o.variables["params"]
    out = from_rows_last(z, weights["kernel"], self.o.quick)
    return (out + weights["bias"].astype(z.dtype) if "bias" in weights else out)[:, None]

  def write_heads(self, z):
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes, without b_O."""
    kernel = self.o.variables["params"]["kernel"]
    return z.reshape(*z.shape[:-2], -1) @ kernel.astype(z.dtype)

  def results(self, z):
    """float[B, T, H, K] -> float[B, T, H, D]: each head's write, without b_O."""
    return jnp.stack([self.result(z, head) for head in range(self.config.n_heads)], axis=-2)

  def result(self, z, head):
    """float[B, T, H, K], head (an int or int32[]) -> float[B, T, D]: one head's write, without b_O.

    Captures and edits both come through here, with the same shapes, so that writing a captured value back is exact.
    """
    c = self.config
    kernel = self.o.variables["params"]["kernel"].reshape(c.n_heads, c.d_head, c.d_model)
    return jnp.take(z, head, axis=-2) @ jnp.take(kernel, head, axis=0).astype(z.dtype)


def _dot(q, keys):
  """float[..., K, B] each -> float[..., B]: summed over K, 32 at a time, because XLA's CPU backend would write the products of more out first."""
  parts = (slice(start, start + 32) for start in range(0, q.shape[-2], 32))
  return sum(jnp.sum(q[..., part, :] * keys[..., part, :], axis=-2) for part in parts)
