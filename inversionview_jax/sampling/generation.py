"""Generation of texts by a decoder: ancestral, greedy and stratified sampling with a preallocated key-value cache.

Shapes: R rows (one text each), Q queries, T tokens, L layers, M width of the decoder, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp

from inversionview_jax.models.decoder import NEVER, Decoder
from inversionview_jax.models.transformer import TransformerConfig

# Steps from which, and layers up to which, growing the cache once pays: compiling two loops takes longer.
_LONG, _SHALLOW = 24, 4


def generate(
  decoder: Decoder,
  variables: dict,
  slots: jax.Array,
  keys: jax.Array,
  temperature: jax.Array,
  stratum: jax.Array | None = None,
  suppressed: tuple[jax.Array, jax.Array] | None = None,
  *,
  length: int,
  bos_id: int,
  eos_id: int,
  pad_id: int,
) -> jax.Array:
  """Draws one text per row.

  Args:
    decoder: the module.
    variables: of the decoder.
    slots: float32[R, L, J, M], or as `Decoder.slots` makes them.
    keys: key[R]; a row's text depends on its key, slots, temperature and stratum alone.
    temperature: float32[R]; 0 takes the most likely token.
    stratum: float32[R, 2] or None, as in `Rows`.
    suppressed: None, or (bool[Q, T, V], int32[R]): tokens not drawn at a position, and each row's query.
    length: T, with BOS.
    bos_id, eos_id, pad_id: of the tokenizer.

  Returns:
    int32[R, T]: BOS, the text, EOS if it was reached within T tokens, PAD.
  """
  rows = slots.shape[0]
  divisor = jnp.where(temperature > 0, temperature, 1.0)[:, None]

  def unfinished(until, carry):
    step, _, _, ended, _ = carry
    return (step < until) & ~jnp.all(ended)

  def body(carry):
    step, tokens, cache, ended, interval = carry
    logits, cache = decoder.apply(variables, tokens[:, step], step, cache, method="step")
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(keys)
    allowed = logits > NEVER
    if suppressed is not None:
      left = allowed & ~suppressed[0][:, step + 1][suppressed[1]]
      allowed = jnp.where(jnp.any(left, axis=-1, keepdims=True), left, allowed)
    logits = jnp.where(
      allowed, logits / divisor, -jnp.inf
    )  # -inf: NEVER / temperature would be drawn at a high enough one
    if stratum is None:
      gumbel = jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:]))(step_keys)
      token = jnp.argmax(logits + jnp.where(temperature > 0, 1.0, 0.0)[:, None] * gumbel, axis=-1)
    else:
      token, interval = _stratified_token(logits, interval, jax.vmap(jax.random.uniform)(step_keys))
      token = jnp.where(temperature > 0, token, jnp.argmax(logits, axis=-1))
    token = jnp.where(ended, pad_id, token.astype(jnp.int32))
    return step + 1, tokens.at[:, step + 1].set(token), cache, ended | (token == eos_id), interval

  tokens = jnp.full((rows, length), pad_id, jnp.int32).at[:, 0].set(bos_id)
  # Attention reads the whole cache at each step, so for long texts the cache starts short and grows.
  ends = _cache_lengths(decoder.config.transformer, length - 1)
  cache = decoder.apply(variables, slots, ends[0], method="init_cache")
  carry = jnp.int32(0), tokens, cache, jnp.zeros(rows, bool), stratum
  for start, end in zip((0, *ends), ends, strict=False):
    if start:
      longer = decoder.apply(variables, carry[2], end - start, method="extend_cache")
      carry = carry[0], carry[1], longer, *carry[3:]
    carry = jax.lax.while_loop(functools.partial(unfinished, end), body, carry)
  return carry[1]


def _cache_lengths(config: TransformerConfig, steps: int) -> tuple[int, ...]:
  """The lengths of the cache, one after the other; the last is `steps`."""
  return (steps // 2, steps) if steps >= _LONG and config.n_layers <= _SHALLOW else (steps,)


def _stratified_token(logits, interval, uniform):
  """Stratified sampling: one token of each row, from this row's sub-interval of the decoder's CDF over sequences.

  The uniform is redrawn inside the remaining sub-interval at each step, which is equivalent to one draw up front. No precision is lost
  over the steps, and once a token's interval lies inside the sub-interval the row samples freely.

  Args:
    logits: float32[R, V], divided by the temperature.
    interval: float32[R, 2], (low, width).
    uniform: float32[R], in [0, 1).

  Returns:
    The token, int32[R], and the sub-interval relative to the token's own interval, float32[R, 2].
  """
  low, width = interval[:, 0], interval[:, 1]
  p = jax.nn.softmax(logits, axis=-1)
  cdf = jnp.cumsum(p, axis=-1)
  cdf = cdf / cdf[:, -1:]  # to end at 1 in spite of rounding
  token = jnp.argmax(cdf > jnp.minimum(low + width * uniform, 1.0 - 1e-7)[:, None], axis=-1)
  high = jnp.take_along_axis(cdf, token[:, None], axis=-1)[:, 0]
  start = jnp.where(token > 0, jnp.take_along_axis(cdf, jnp.maximum(token - 1, 0)[:, None], axis=-1)[:, 0], 0.0)
  size = jnp.maximum(high - start, 1e-30)
  inner_low, inner_high = jnp.maximum(low, start), jnp.minimum(low + width, high)
  inner = (inner_low - start) / size, jnp.maximum(inner_high - inner_low, 0.0) / size
  return token.astype(jnp.int32), jnp.clip(jnp.stack(inner, axis=-1), 0.0, 1.0)
