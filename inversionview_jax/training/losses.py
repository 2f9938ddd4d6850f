"""Cross-entropy on the tokens of a mask, and batches with dropout whose randomness does not depend on the devices.

Shapes: B texts, T tokens, N pairs (text, activation), D width of the activation, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.models import decoder
from inversionview_jax.sampling.mixtures import add_noise


def summed_cross_entropy(logits: jax.Array, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The summed loss float32[] of the next tokens within a mask, and the mask's sum float32[].

  Args:
    logits: float32[B, T, V].
    tokens: int32[B, T].
    mask: bool or float[B, T], the weight of each token; the first token of a text is never predicted.
  """
  mask = mask[:, 1:].astype(jnp.float32)
  return -jnp.sum(decoder.token_log_probs(logits, tokens) * mask), jnp.sum(mask)


def apply_with_dropout(module: nn.Module, variables: Any, keys: jax.Array, *args: Any, **kwargs: Any) -> Any:
  """`module.apply` on a batch, with dropout if the module's config has any.

  Args:
    module: a transformer or a decoder.
    variables: its variables.
    keys: key[B], one for each row, so that the result does not depend on the number of devices.
    args, kwargs: arrays with B rows.
  """
  config = getattr(module.config, "transformer", module.config)
  if not config.has_dropout:
    return module.apply(variables, *args, **kwargs)

  def one(key, row, named):
    row, named = jax.tree.map(lambda x: x[None], (row, named))
    return module.apply(variables, *row, **named, deterministic=False, rngs={"dropout": key})

  return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(keys, args, kwargs))


def with_random_noise(activation: jax.Array, keys: jax.Array, most: float) -> jax.Array:
  """Activations with Gaussian noise of eta * std(z), eta uniform in [0, most] for each; the sampling mixtures add it with a fixed eta.

  Args:
    activation: float32[N, D].
    keys: key[N].
    most: the largest eta.
  """

  def one(z, key):
    eta_key, noise_key = jax.random.split(key)
    return add_noise(z, most * jax.random.uniform(eta_key), jax.random.normal(noise_key, z.shape))

  return jax.vmap(one)(activation, keys)
