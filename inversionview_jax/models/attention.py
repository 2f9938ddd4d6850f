"""Self-attention of a transformer: over whole texts, and one token at a time over a cache.

Shapes: B batch, T tokens, P positions, S keys, H heads, G key/value heads, J slots, D d_model, K d_head, C cached positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models import cpu_attention
from inversionview_jax.models.capture import Padded, rows_at
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.cpu_attention import Weigh
from inversionview_jax.models.layers import Linear, norm, rotate

KeysValues = tuple[jax.Array, jax.Array]


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, weigh: Weigh, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Each head's weighted sum of values.

  Args:
    q: float[B, P, H, K].
    k, v: float[B, S, H, K].
    weigh: the masked softmax.
    seen: bool[B or 1, 1, P, S], or None for all keys.

  Returns:
    z float[B, P, H, K] and the pattern float32[B, H, P, S].
  """
  weights, pattern = weigh(jnp.einsum("bqhk,bshk->bhqs", q, k), seen, -1)
  return jnp.einsum("bhqs,bshk->bqhk", weights, v), pattern


def attend_cached(q: jax.Array, keys: jax.Array, values: jax.Array, weigh: Weigh, seen: jax.Array) -> jax.Array:
  """Each head's weighted sum of cached values, for one query per row; rows are the last axis, as in the cache.

  Args:
    q: float[G, H / G, K, B].
    keys, values: float[C, G, K, B].
    weigh: as for `attend`.
    seen: bool[C, 1, 1, 1].

  Returns:
    float[G, H / G, K, B].
  """
  weights, _ = weigh(jnp.einsum("ghkb,cgkb->cghb", q, keys), seen, 0)
  return jnp.einsum("cghb,cgkb->ghkb", weights, values)


def uses_sums(compute: Compute, automatic: bool) -> bool:
  """Whether to multiply and sum (`cpu_attention`), by `compute.attention`; `automatic` where that is "auto"."""
  return automatic if compute.attention == "auto" else compute.attention == "multiply_and_sum"


class Attention(nn.Module):
  """Causal self-attention with optional extra keys and values (slots) in front and an optional cache."""

  config: TransformerConfig
  compute: Compute
  layer: int

  def setup(self) -> None:
    c = self.config

    def linear(features, name, std=c.init_std):
      return Linear(features, std, name in c.biases, self.compute.dot_general)

    self.q = linear(c.n_heads * c.d_head, "q")
    self.k, self.v = linear(c.kv_heads * c.d_head, "k"), linear(c.kv_heads * c.d_head, "v")
    # GPT-2 shrinks what writes to the residual stream by the number of writers.
    self.o = linear(c.d_model, "o", c.init_std / (2 * c.n_layers) ** 0.5)
    if c.qk_norm:
      self.q_norm, self.k_norm = norm(c, self.compute), norm(c, self.compute)
    self.dropout, self.dropout_resid = nn.Dropout(c.dropout_attn), nn.Dropout(c.dropout_resid)

  @property
  def window(self) -> int:
    return self.config.windows[self.layer] if self.config.windows else 0

  def queries(self, x: jax.Array, positions: jax.Array) -> jax.Array:
    """float[B, T, D], int32[T] or int32[B, T] -> float[B, T, H, K]."""
    q = self._heads(self.q(x))
    return self._rotated(self.q_norm(q) if self.config.qk_norm else q, positions)

  def keys_values(self, x: jax.Array, positions: jax.Array | None = None) -> KeysValues:
    """float[B, T, D], int32[T] -> two float[B, T, G, K]; None for slots, which have no position: their keys are not turned."""
    k = self._heads(self.k(x))
    return self._rotated(self.k_norm(k) if self.config.qk_norm else k, positions), self._heads(self.v(x))

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], -1, self.config.d_head)

  def _rotated(self, x, positions):
    c = self.config
    if not c.rotary or self.layer in c.unrotated or positions is None:
      return x
    return rotate(x, positions, c.rotary, c.rotary_gain)

  def _weigh(self, scores, seen, axis, dtype, deterministic):
    """Softmax over the keys that are seen, on `axis`: weights in `dtype`, after dropout, and the pattern before it, float32."""
    c = self.config
    scores = scores.astype(jnp.float32)
    if c.attn_scale:
      scores = scores / (c.query_width or c.d_head) ** 0.5
    if c.attn_cap:
      scores = c.attn_cap * jnp.tanh(scores / c.attn_cap)
    pattern = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=axis)
    return self.dropout(pattern, deterministic=deterministic).astype(dtype), pattern

  def mix(
    self,
    x: jax.Array,
    slot: jax.Array | None = None,
    deterministic: bool = True,
    at: jax.Array | None = None,
    padded: Padded | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Each head's mixture of values before W_O.

    Args:
      x: float[B, T, D], normalized residual stream.
      slot: float[B, J, D] or None; J keys and values in front that every position sees; never a query.
      deterministic: False applies dropout to the weights.
      at: int32[B, P] or None; the positions that query, all T by default.
      padded: of texts with padding in front or inside; None for texts that begin in the first column.

    Returns:
      z float[B, T or P, H, K] and the pattern float32[B, H, T or P, T (+J with slots, in front)].
    """
    positions = jnp.arange(x.shape[1])
    query_positions = positions[None, :] if at is None else at  # [B or 1, T or P]
    turned = positions if padded is None else padded.positions
    q = self.queries(rows_at(x, at), query_positions if padded is None else rows_at(turned, at))
    k, v = self.keys_values(x, turned)
    seen = positions <= query_positions[..., None]
    if self.window:
      seen &= positions > query_positions[..., None] - self.window
    if padded is not None:  # padding sees itself, so that its weights are finite; no text sees it
      seen &= padded.mask[:, None, :] | (positions == query_positions[..., None])
    seen = seen[:, None]  # [B or 1, 1, T or P, T]
    if slot is not None:
      slot_k, slot_v = self.keys_values(slot)
      k, v = jnp.concatenate([slot_k, k], axis=1), jnp.concatenate([slot_v, v], axis=1)
      seen = jnp.pad(seen, ((0, 0), (0, 0), (0, 0), (slot.shape[1], 0)), constant_values=True)
    k, v = self._for_each_head(k), self._for_each_head(v)

    def weigh(scores, seen, axis):
      return self._weigh(scores, seen, axis, x.dtype, deterministic)

    sums = uses_sums(self.compute, numerics.has_safe_sums() and cpu_attention.is_faster(q, k))
    return (cpu_attention.attend if sums else attend)(q, k, v, weigh, seen)

  def _for_each_head(self, x):
    """float[B, T, G, K] -> float[B, T, H, K]: consecutive heads share a key/value head."""
    share = self.config.n_heads // self.config.kv_heads
    return x if share == 1 else jnp.repeat(x, share, axis=-2)

  def cached_keys_values(self, x: jax.Array, positions: jax.Array | None = None) -> KeysValues:
    """float[B, T, D], int32[T] -> two float[T, G, K, B]: `keys_values`, as the cache holds them."""
    k = self._rows_last(self.k, x) if self._linear_only else jnp.moveaxis(self.keys_values(x, positions)[0], 0, -1)
    return k, self._rows_last(self.v, x)

  def mix_cached(self, x: jax.Array, cache: KeysValues, at: jax.Array, slots: int) -> tuple[jax.Array, KeysValues]:
    """Each head's mixture of values for one new token, against the slots and the tokens before it.

    Args:
      x: float[B, 1, D], normalized residual stream.
      cache: (keys, values), float[C, G, K, B] each. Rows are the last axis, so that a CPU sums many rows at a time; over the last axis it
        adds one number after the other.
      at: int32[], the token's position.
      slots: J, the slots in front of the tokens.

    Returns:
      float[H * K, B], and the cache with this token.
    """
    position, index = jnp.reshape(at, (1,)), at + slots
    q = self._rows_last(self.q, x) if self._linear_only else jnp.moveaxis(self.queries(x, position), 0, -1)
    q = q.reshape(self.config.kv_heads, -1, *q.shape[-2:])  # [G, H / G, K, B]: consecutive heads share a key/value head
    new = self.cached_keys_values(x, position)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index, axis=0)
      for old, x in zip(cache, new, strict=True)
    )
    indices = jnp.arange(keys.shape[0])
    seen = indices <= index
    if self.window:
      seen &= (indices > index - self.window) | (indices < slots)

    def weigh(scores, seen, axis):
      return self._weigh(scores, seen, axis, x.dtype, True)

    sums = uses_sums(self.compute, numerics.has_safe_sums())
    mixed = (cpu_attention.attend_cached if sums else attend_cached)(q, keys, values, weigh, seen[:, None, None, None])
    return mixed.reshape(-1, x.shape[0]), (keys, values)

  @property
  def _linear_only(self) -> bool:
    """Whether queries and keys are linear in x: neither normalized nor rotated."""
    return not (self.config.qk_norm or self.config.rotary)

  def _rows_last(self, linear: Linear, x):
    """`linear` of float[B, T, D] -> float[T, heads, K, B], directly from the matmul: to transpose its result takes a CPU longer."""
    weights = linear.variables["params"]
    kernel, dimensions = weights["kernel"].astype(x.dtype), (((0,), (1,)), ((), ()))
    out = jnp.stack([self.compute.dot_general(kernel, x[:, t], dimensions) for t in range(x.shape[1])])
    if "bias" in weights:
      out = out + weights["bias"].astype(x.dtype)[:, None]
    return out.reshape(x.shape[1], -1, self.config.d_head, x.shape[0])

  def write(self, z: jax.Array, deterministic: bool = True) -> jax.Array:
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes plus b_O."""
    out = self.o(z.reshape(*z.shape[:-2], -1))
    return self.dropout_resid(out, deterministic=deterministic)

  def write_cached(self, z: jax.Array) -> jax.Array:
    """What `mix_cached` returns, float[H * K, B] -> float[B, 1, D]: the sum of all heads' writes plus b_O."""
    weights = self.o.variables["params"]
    # The matmul takes z as it lies; to transpose it first costs a CPU more.
    out = self.compute.dot_general(z, weights["kernel"].astype(z.dtype), (((0,), (0,)), ((), ())))
    return (out + weights["bias"].astype(z.dtype) if "bias" in weights else out)[:, None]

  def write_heads(self, z: jax.Array) -> jax.Array:
    """float[B, T, H, K] -> float[B, T, D]: the sum of all heads' writes, without b_O."""
    kernel = self.o.variables["params"]["kernel"]
    return z.reshape(*z.shape[:-2], -1) @ kernel.astype(z.dtype)

  def result(self, z: jax.Array, head: int | jax.Array) -> jax.Array:
    """float[B, T, H, K], head (an int or int32[]) -> float[B, T, D]: one head's write, without b_O.

    Captures and edits both come through here, with the same shapes, so that writing a captured value back is exact.
    """
    c = self.config
    kernel = self.o.variables["params"]["kernel"].reshape(c.n_heads, c.d_head, c.d_model)
    return jnp.take(z, head, axis=-2) @ jnp.take(kernel, head, axis=0).astype(z.dtype)
