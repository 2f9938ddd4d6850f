"""Self-attention of a transformer: over whole texts, and one token at a time over a cache.

Shapes: B batch, T tokens, P positions, S keys, H heads, G key/value heads, J slots, D d_model, K d_head, C cached positions.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models import cpu_attention
from inversionview_jax.models.capture import Padded, Recorder, rows_at
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


def _softmax_beside(sinks: jax.Array, scores: jax.Array, axis: int) -> jax.Array:
  """`jax.nn.softmax` of scores beside one score more for each head, whose weight is left out.

  Args:
    sinks: the scores of the heads, of a shape that broadcasts with `scores`, with 1 on `axis`.
    scores: float32, those of the keys on `axis`.
    axis: of the keys.
  """
  most = jnp.max(scores, axis=axis, keepdims=True)
  sinks = sinks.astype(scores.dtype)
  most = jax.lax.stop_gradient(jnp.maximum(most, sinks))
  weights = jnp.exp(scores - most)
  return weights / (jnp.sum(weights, axis=axis, keepdims=True) + jnp.exp(sinks - most))


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
    if c.sinks:
      self.sinks = self.param("sinks", nn.initializers.zeros, (c.n_heads,))
    self.dropout, self.dropout_resid = nn.Dropout(c.dropout_attn), nn.Dropout(c.dropout_resid)

  @property
  def window(self) -> int:
    return self.config.windows[self.layer] if self.config.windows else 0

  def queries(self, x: jax.Array, positions: jax.Array, length: int, recorder: Recorder | None = None) -> jax.Array:
    """float[B, T, D], int32[T] or int32[B, T], of so many tokens in all -> float[B, T, H, K]."""
    q = self._normed_heads(self._through("q", self.q(x), recorder), "q_norm")
    return self._through("rot_q", self._rotated(q, positions, length), recorder)

  def keys_values(
    self, x: jax.Array, positions: jax.Array | None = None, length: int = 0, recorder: Recorder | None = None
  ) -> KeysValues:
    """float[B, T, D], int32[T] -> two float[B, T, G, K]; None for slots, which have no position: their keys are not turned."""
    k = self._rotated(self._normed_heads(self._through("k", self.k(x), recorder), "k_norm"), positions, length)
    return self._through("rot_k", k, recorder), self._heads(self._through("v", self.v(x), recorder))

  def _through(self, kind: str, x: jax.Array, recorder: Recorder | None) -> jax.Array:
    """`Recorder.inner_heads` of float[B, T, H, K] or float[B, T, H * K], in the shape that it has."""
    if recorder is None or not recorder.uses(kind, f"{kind}_heads"):
      return x
    heads = self._heads(x) if x.ndim == 3 else x
    return recorder.inner_heads(kind, self.layer, heads).reshape(x.shape)

  def _heads(self, x):
    return x.reshape(*x.shape[:-1], -1, self.config.d_head)

  def _normed_heads(self, x, name):
    """float[B, T, H * K] -> float[B, T, H, K], behind the norm of this name if there is one."""
    if not self.config.qk_norm:
      return self._heads(x)
    normed = getattr(self, name)
    return self._heads(normed(x)) if self.config.qk_norm_joint else normed(self._heads(x))

  def _rotated(self, x, positions, length):
    """Queries or keys turned by their positions; `length` is how many tokens are run."""
    c = self.config
    if not c.rotary or self.layer in c.unrotated or positions is None:
      return x
    if self.layer in c.local_layers:
      return rotate(x, positions, c.local_rotary, c.local_rotary_gain, c.rotary_adjacent)
    frequencies = c.long_rotary if c.long_rotary and length > c.long_from else c.rotary
    return rotate(x, positions, frequencies, c.rotary_gain, c.rotary_adjacent)

  def _weigh(self, scores, seen, axis, dtype, deterministic, sinks=None, through=lambda kind, x: x):
    """Softmax over the keys that are seen, on `axis`: weights in `dtype`, after dropout, and the pattern before it, float32.

    `sinks` are the heads' own scores, as `_softmax_beside` takes them; `through` captures and edits the "scores" and the "pattern".
    """
    c = self.config
    scores = scores.astype(jnp.float32)
    if c.attn_scale:
      scores = scores / (c.query_width or c.d_head) ** 0.5
    if c.attn_scale_by_layer:
      scores = scores / (self.layer + 1)
    if c.attn_cap:
      scores = c.attn_cap * jnp.tanh(scores / c.attn_cap)
    scores = through("scores", jnp.where(seen, scores, -jnp.inf))
    pattern = jax.nn.softmax(scores, axis=axis) if sinks is None else _softmax_beside(sinks, scores, axis)
    pattern = through("pattern", pattern)
    return self.dropout(pattern, deterministic=deterministic).astype(dtype), pattern

  def mix(
    self,
    x: jax.Array,
    slot: jax.Array | None = None,
    deterministic: bool = True,
    at: jax.Array | None = None,
    padded: Padded | None = None,
    recorder: Recorder | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Each head's mixture of values before W_O.

    Args:
      x: float[B, T, D], normalized residual stream.
      slot: float[B, J, D] or None; J keys and values in front that every position sees; never a query.
      deterministic: False applies dropout to the weights.
      at: int32[B, P] or None; the positions that query, all T by default.
      padded: of texts with padding in front or inside; None for texts that begin in the first column.
      recorder: captures and edits of queries, keys, values, scores and patterns.

    Returns:
      z float[B, T or P, H, K] and the pattern float32[B, H, T or P, T (+J with slots, in front)].
    """
    positions = jnp.arange(x.shape[1])
    query_positions = positions[None, :] if at is None else at  # [B or 1, T or P]
    turned = positions if padded is None else padded.positions
    query_turned = query_positions if padded is None else rows_at(turned, at)
    q = self.queries(rows_at(x, at), query_turned, x.shape[1], recorder)
    k, v = self.keys_values(x, turned, x.shape[1], recorder)
    seen = (positions <= query_positions[..., None]) | (not self.config.causal)
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

    sums = uses_sums(self.compute, numerics.has_safe_sums() and cpu_attention.is_faster(q, k))
    heads = (-1, 1) if sums else (-1, 1, 1)  # [B, P, H, S] or [B, H, P, S]
    sinks = self.sinks.reshape(heads) if self.config.sinks else None

    def through(kind, x):
      if recorder is None or not recorder.uses(kind, f"head_{kind}"):
        return x
      x = recorder.inner_scores(kind, self.layer, x.swapaxes(1, 2) if sums else x)  # which have heads in front
      return x.swapaxes(1, 2) if sums else x

    def weigh(scores, seen, axis):
      return self._weigh(scores, seen, axis, x.dtype, deterministic, sinks, through)

    return (cpu_attention.attend if sums else attend)(q, k, v, weigh, seen)

  def _for_each_head(self, x):
    """float[B, T, G, K] -> float[B, T, H, K]: consecutive heads share a key/value head."""
    share = self.config.n_heads // self.config.kv_heads
    return x if share == 1 else jnp.repeat(x, share, axis=-2)

  def cached_keys_values(
    self, x: jax.Array, positions: jax.Array | None = None, length: int = 0, recorder: Recorder | None = None
  ) -> KeysValues:
    """float[B, T, D], int32[T] -> two float[T, G, K, B]: `keys_values`, as the cache holds them."""
    if recorder is not None and recorder.uses("k", "rot_k", "v"):
      k, v = self.keys_values(x, positions, length, recorder)
      return jnp.moveaxis(k, 0, -1), jnp.moveaxis(v, 0, -1)
    if self._linear_only:
      return self._rows_last(self.k, x), self._rows_last(self.v, x)
    return jnp.moveaxis(self.keys_values(x, positions, length)[0], 0, -1), self._rows_last(self.v, x)

  def mix_cached(
    self, x: jax.Array, cache: KeysValues, at: jax.Array, slots: int, recorder: Recorder | None = None
  ) -> tuple[jax.Array, KeysValues]:
    """Each head's mixture of values for one new token, against the slots and the tokens before it.

    Args:
      x: float[B, 1, D], normalized residual stream.
      cache: (keys, values), float[C, G, K, B] each. Rows are the last axis, so that a CPU sums many rows at a time; over the last axis it
        adds one number after the other.
      at: int32[], the token's position.
      slots: J, the slots in front of the tokens.
      recorder: captures this token's queries, keys and values.

    Returns:
      float[H * K, B], and the cache with this token.
    """
    position, index, length = jnp.reshape(at, (1,)), at + slots, cache[0].shape[0] - slots
    fast = self._linear_only and not (recorder is not None and recorder.uses("q", "rot_q"))
    q = self._rows_last(self.q, x) if fast else jnp.moveaxis(self.queries(x, position, length, recorder), 0, -1)
    q = q.reshape(self.config.kv_heads, -1, *q.shape[-2:])  # [G, H / G, K, B]: consecutive heads share a key/value head
    new = self.cached_keys_values(x, position, length, recorder)
    keys, values = (
      jax.lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), index, axis=0)
      for old, x in zip(cache, new, strict=True)
    )
    indices = jnp.arange(keys.shape[0])
    seen = indices <= index
    if self.window:
      seen &= (indices > index - self.window) | (indices < slots)

    sinks = self.sinks.reshape(1, self.config.kv_heads, -1, 1) if self.config.sinks else None  # of [C, G, H / G, B]

    def weigh(scores, seen, axis):
      return self._weigh(scores, seen, axis, x.dtype, True, sinks)

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
