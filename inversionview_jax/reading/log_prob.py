"""Log-probabilities of texts under a reader's decoder, plain, at several temperatures, and of a sampling mixture.

Shapes: N texts, T tokens, D width of the activation, K temperatures, or settings of a mixture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, token_log_probs
from inversionview_jax.sampling.candidates import Array
from inversionview_jax.sampling.mixtures import add_noise

if TYPE_CHECKING:
  from inversionview_jax.reading.reader import Reader

_TEXTS = 512  # texts of one program


def mixture_log_prob(
  reader: "Reader",
  activation: Array,
  site: int,
  tokens: np.ndarray,
  settings: Sequence[tuple[float, float]],
  draws: int = 8,
  seed: int = 0,
) -> np.ndarray:
  """log of the probability with which one candidate of a sampling mixture is each of these texts.

  The probability at (temperature, eta) is the mean over `draws` of the noise; the mixture's is the mean over its settings.

  Args:
    reader: whose decoder.
    activation: float32[D].
    site: index into the reader's sites.
    tokens: int32[N, T].
    settings: K pairs of (temperature, eta).
    draws: of the noise, for settings with an eta above 0.
    seed: of the noise.

  Returns:
    float64[N].
  """
  terms, weights = [], []
  rng = np.random.default_rng(seed)
  activation = np.asarray(activation, np.float32)
  for eta in sorted({noise for _, noise in settings}):
    temperatures = [temperature for temperature, noise in settings if noise == eta]
    for _ in range(draws if eta else 1):
      normal = rng.standard_normal(activation.shape).astype(np.float32)
      terms.append(log_probs(reader, add_noise(activation, eta, normal), site, tokens, temperatures))
      weights.append(np.full(len(temperatures), 1.0 / (len(settings) * (draws if eta else 1))))
  # Not scipy.special.logsumexp: its weights `b` would be an array of the size of `terms`.
  log_p, weight = np.concatenate(terms), np.concatenate(weights)
  top = log_p.max(axis=0)
  with np.errstate(divide="ignore"):
    return np.where(np.isinf(top), -np.inf, top + np.log(weight @ np.exp(log_p - np.where(np.isinf(top), 0.0, top))))


def log_probs(
  reader: "Reader", activation: Array, site: int, tokens: np.ndarray, temperatures: Sequence[float]
) -> np.ndarray:
  """log p(text | activation, site) at several temperatures; 0 is greedy decoding: 0 for the most likely text, -inf for all others.

  Args:
    reader: whose decoder.
    activation: float32[D].
    site: index into the reader's sites.
    tokens: int32[N, T].
    temperatures: K of them.

  Returns:
    float64[K, N].
  """
  tokens, temperature = np.asarray(tokens, np.int32), np.asarray(temperatures, np.float32)
  # Few texts are padded to a power of two, so that few shapes are compiled.
  size = min(_TEXTS, 1 << (len(tokens) - 1).bit_length())
  pad_id = reader.task.tokenizer.pad_id

  def program(chunk):
    return _tempered(reader.sampler.decoder, reader.variables, chunk, activation, np.int32(site), temperature, pad_id)

  return parallel.in_chunks(program, tokens, size).T.astype(np.float64)


def _tempered_log_probs(module: Decoder, variables, tokens, activation, site, temperatures, pad_id: int):
  """float32[N, K]."""
  n = len(tokens)
  logits = module.apply(variables, tokens, jnp.broadcast_to(activation, (n, len(activation))), jnp.full(n, site))
  counted = (tokens != pad_id)[:, 1:]

  def at(temperature):
    warm = jnp.sum(token_log_probs(logits / jnp.where(temperature > 0, temperature, 1.0), tokens) * counted, axis=-1)
    greedy = jnp.all((jnp.argmax(logits[:, :-1], axis=-1) == tokens[:, 1:]) | ~counted, axis=-1)
    return jnp.where(temperature > 0, warm, jnp.where(greedy, 0.0, -jnp.inf))

  return jax.lax.map(at, temperatures).T


_tempered = parallel.jit(_tempered_log_probs, static_argnums=(0, 6))
plain_log_prob = parallel.jit(decoder.log_prob, static_argnums=(0, 5))
