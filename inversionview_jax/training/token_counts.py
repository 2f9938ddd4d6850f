"""An auxiliary loss: how often each token occurs in the text, predicted from the encoder's output alone.

Shapes: N pairs (text, activation), T tokens, V vocabulary, R width of the encoder's output, C = `COUNT_CLASSES`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from inversionview_jax.models.decoder import DecoderConfig, token_count_head

COUNT_CLASSES = 11  # 0-9, and 10 or more
HEAD = "count_head"  # name of the head's parameters, beside the encoder's and the transformer's


def initial_head(config: DecoderConfig, key: jax.Array, width: int) -> dict:
  """Random parameters of the head for an encoder whose output has R = `width`."""
  return token_count_head(config, COUNT_CLASSES).init(key, jnp.zeros(width))["params"]


def occurrences(tokens: jax.Array, vocab_size: int) -> jax.Array:
  """int32[..., T] -> int32[..., V]: how often each token occurs in a text, at most `COUNT_CLASSES` - 1."""
  counts = jnp.sum(tokens[..., None] == jnp.arange(vocab_size), axis=-2)
  return jnp.minimum(counts, COUNT_CLASSES - 1)


def token_count_loss(config: DecoderConfig, head: Any, encoding: jax.Array, counts: jax.Array) -> jax.Array:
  """Cross-entropy of the number of occurrences, summed over the vocabulary.

  Args:
    config: of the decoder.
    head: parameters from `initial_head`.
    encoding: float32[N, R], output of the encoder.
    counts: int32[N, V], the `occurrences` in the texts.

  Returns:
    float32[N].
  """
  logits: Any = token_count_head(config, COUNT_CLASSES).apply({"params": head}, encoding)
  log_p = jax.nn.log_softmax(logits.reshape(*counts.shape, COUNT_CLASSES))
  return -jnp.take_along_axis(log_p, counts[..., None], axis=-1)[..., 0].sum(axis=-1)
