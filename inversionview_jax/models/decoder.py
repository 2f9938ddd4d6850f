"""The conditional decoder p(text | activation, site) (paper, section 2.2 and appendix on the decoder).

The activation, next to an embedding of its site, goes through a residual network; for each layer of a transformer J projections of
the result (the paper: one) join that layer's keys and values.

Shapes: N pairs, T tokens, D width of the activation, S sites, R = D + S, L layers, J slots and M width of the decoder, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import values
from inversionview_jax.devices import numerics
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.config import MOST_TOKENS, MOST_WIDTH, Compute, TransformerConfig
from inversionview_jax.models.layers import Linear, layer_norm
from inversionview_jax.models.transformer import Transformer

NORMALIZATIONS = ("none", "standard", "whiten")
NEVER = -1e9  # a logit that no sample will have
MOST_SLOTS = 1024  # also of residual blocks


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """The shape of a decoder; plain data that is stored beside its parameters.

  Attributes:
    transformer: the language model it is built on; its n_ctx and vocabulary are those of the texts it writes.
    sites: short names; a site is addressed by its index here.
    d_activation: D.
    encoder_blocks: residual blocks between activation and transformer.
    encoder_width: of their residual stream and inside them; 0: R and D, as in the paper.
    n_slots: J; with several, each position of the text can attend to what concerns it.
    normalize: what happens to an activation first, with statistics of its own site that are stored with the parameters: "none" (the
      paper), "standard" (mean 0 and variance 1 in each dimension), "whiten" (in each principal direction).
    forbidden: token ids that are never written (BOS and PAD).
    site_width: of the embedding of a site; 0: S, as in the paper.
    encoder_inner: width inside the residual blocks; 0: `encoder_width`, or D.
    site_inputs: whether each site has a matrix of its own into the encoder's residual stream, beside the one that all share: the principal
      directions of one site have nothing to do with those of another. Needs an `encoder_width`.
  """

  transformer: TransformerConfig
  sites: tuple[str, ...]
  d_activation: int
  encoder_blocks: int = 6
  encoder_width: int = 0
  n_slots: int = 1
  normalize: str = "none"
  forbidden: tuple[int, ...] = ()
  site_width: int = 0
  encoder_inner: int = 0
  site_inputs: bool = False

  def __post_init__(self) -> None:
    """Raises `InversionViewError` for an attribute of another type or out of its range, and for sizes that do not go together."""
    sizes = {
      "d_activation": 1,
      "n_slots": 1,
      "encoder_blocks": 0,
      "encoder_width": 0,
      "site_width": 0,
      "encoder_inner": 0,
    }
    for name, low in sizes.items():
      values.whole(name, getattr(self, name), low, MOST_SLOTS if name in ("n_slots", "encoder_blocks") else MOST_WIDTH)
    object.__setattr__(self, "sites", values.sequence("sites", self.sites, values.text, MOST_WIDTH))
    token = functools.partial(values.whole, low=0, high=MOST_TOKENS)
    object.__setattr__(self, "forbidden", values.sequence("forbidden", self.forbidden, token, MOST_TOKENS))
    values.switch("site_inputs", self.site_inputs)
    if self.normalize not in NORMALIZATIONS:
      raise one_of("normalization", self.normalize, NORMALIZATIONS)
    if not self.sites:
      raise InversionViewError("sites = [] must name at least one site")
    if self.site_inputs and not self.encoder_width:
      raise InversionViewError("site_inputs = True needs an encoder_width above 0")

  @classmethod
  def from_dict(cls, stored: dict) -> "DecoderConfig":
    """The inverse of `dataclasses.asdict`, as `TransformerConfig.from_dict`."""
    return cls(
      **{**stored, "transformer": TransformerConfig.from_dict(values.mapping("transformer", stored["transformer"]))}
    )


def _by_site(x, matrices, site):
  """float[N, D] times the matrix of its own site, float[S, D, E]: float[N, E]."""
  # Every site's matrix on every row, then the row's own: cheaper than gathering a matrix per row.
  every = jnp.einsum("nd,sde->nse", x, matrices)
  return jnp.take_along_axis(every, site[:, None, None], axis=1)[:, 0]


class ActivationEncoder(nn.Module):
  """(activation, site) -> J slots for each layer of the transformer; with `cross_width` the encoding itself, as one slot for all layers."""

  config: DecoderConfig
  dot_general: numerics.DotGeneral = numerics.matmul

  @nn.compact
  def __call__(self, activation: jax.Array, site: jax.Array, encoding_only: bool = False) -> jax.Array:
    """The slots of activations.

    Args:
      activation: float32[N, D].
      site: int32[N], indices into `config.sites`.
      encoding_only: return the encoding float32[N, R] instead, before its projections to slots.

    Returns:
      float32[N, L, J, M]; with `cross_width` float32[N, L, 1, R].
    """
    c = self.config
    mean = self.variable("stats", "mean", jnp.zeros, (len(c.sites), c.d_activation)).value
    x = activation.astype(jnp.float32)
    if c.normalize == "standard":
      scale = self.variable("stats", "scale", jnp.ones, (len(c.sites), c.d_activation)).value
      x = (x - mean[site]) * scale[site]
    elif c.normalize == "whiten":
      turn = self.variable("stats", "turn", jnp.zeros, (len(c.sites), c.d_activation, c.d_activation)).value
      x = _by_site(x, turn, site) - jnp.einsum("sd,sde->se", mean, turn)[site]
    own = 0.0
    if c.site_inputs:  # starts at zero, so that a finished decoder can be given one
      each = self.param("site_inputs", nn.initializers.zeros, (len(c.sites), c.d_activation, c.encoder_width))
      own = _by_site(x, each, site)
    names = self.param("site_embed", nn.initializers.normal(1.0), (len(c.sites), c.site_width or len(c.sites)))
    x = jnp.concatenate([x, names[site]], axis=-1)
    if c.encoder_width:
      # Not under the matmul policy: distances depend on an activation's last digits.
      x = Linear(c.encoder_width, std=x.shape[-1] ** -0.5, name="widen")(x) + own
    for block in range(c.encoder_blocks):
      inner = c.encoder_inner or c.encoder_width or c.d_activation
      y = layer_norm(name=f"ln_{block}")(x)
      y = jax.nn.relu(Linear(inner, dot_general=self.dot_general, name=f"in_{block}")(y))
      x = x + Linear(x.shape[-1], dot_general=self.dot_general, name=f"out_{block}")(y)
    x = layer_norm(name="ln_f")(x)
    if encoding_only:
      return x
    if c.transformer.cross_width:
      return jnp.broadcast_to(x[:, None, None, :], (x.shape[0], c.transformer.n_layers, 1, x.shape[-1]))
    m = c.transformer.d_model
    slots = []
    for layer in range(c.transformer.n_layers):
      projected = Linear(c.n_slots * m, dot_general=self.dot_general, name=f"slot_{layer}")(x)
      slots.append(layer_norm(name=f"slot_ln_{layer}")(projected.reshape(*x.shape[:-1], c.n_slots, m)))
    return jnp.stack(slots, axis=1)


class Decoder(nn.Module):
  """p(text | activation, site). Variables: "params", and "stats" (normalization, not trained)."""

  config: DecoderConfig
  compute: Compute = Compute()

  def setup(self) -> None:
    self.encoder = ActivationEncoder(self.config, self.compute.dot_general)
    self.transformer = Transformer(self.config.transformer, self.compute)

  def __call__(
    self, tokens: jax.Array, activation: jax.Array, site: jax.Array, *, deterministic: bool = True
  ) -> jax.Array:
    """int32[N, T], float32[N, D], int32[N] -> float32[N, T, V]: logits of the token behind each position."""
    return self.logits(tokens, self.encoder(activation, site), deterministic=deterministic)

  def slots(self, activation: jax.Array, site: jax.Array) -> jax.Array:
    """float32[N, D], int32[N] -> float32[N, L, J, M]."""
    return self.encoder(activation, site)

  def encode(self, activation: jax.Array, site: jax.Array) -> jax.Array:
    """float32[N, D], int32[N] -> float32[N, R]: the encoder's output, before its projections to slots."""
    return self.encoder(activation, site, encoding_only=True)

  def logits(self, tokens: jax.Array, slots: jax.Array, *, deterministic: bool = True) -> jax.Array:
    """int32[N, T], float32[N, L, J, M] -> float32[N, T, V]."""
    return self._allowed(self.transformer(tokens, slots=slots, deterministic=deterministic).logits)

  def init_cache(self, slots: jax.Array, length: int) -> tuple:
    """`Transformer.init_cache`."""
    return self.transformer.init_cache(slots, length)

  def extend_cache(self, cache: tuple, tokens: int) -> tuple:
    """`Transformer.extend_cache`."""
    return self.transformer.extend_cache(cache, tokens)

  def step(self, tokens: jax.Array, position: jax.Array, cache: tuple) -> tuple[jax.Array, tuple]:
    """int32[N] at int32[] and the cache -> float32[N, V] logits of the next token, and the cache."""
    logits, cache = self.transformer.step(tokens, position, cache, self.config.n_slots)
    return self._allowed(logits), cache

  def _allowed(self, logits):
    forbidden = np.zeros(self.config.transformer.vocab_size, bool)
    forbidden[list(self.config.forbidden)] = True
    return jnp.where(forbidden, NEVER, logits)


def initial(config: DecoderConfig, key: jax.Array) -> dict:
  """The variables of a new decoder: "params", and "stats" with mean 0 and scale 1."""
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.d_activation)), jnp.zeros(1, jnp.int32)
  return dict(Decoder(config).init(key, *blank))


def token_count_head(config: DecoderConfig, times: int) -> Linear:
  """Linear map from the encoding, float32[N, R], to logits of each token's count, float32[N, V * times]: 0 to `times` - 2, or more."""
  return Linear(config.transformer.vocab_size * times)


def log_prob(
  decoder: Decoder, variables: dict, tokens: jax.Array, activation: jax.Array, site: jax.Array, pad_id: int
) -> jax.Array:
  """log p(text | activation, site), summed over its tokens with EOS: int32[N, T], float32[N, D], int32[N] -> float32[N]."""
  logits: Any = decoder.apply(variables, tokens, activation, site)
  return jnp.sum(token_log_probs(logits, tokens) * (tokens != pad_id)[:, 1:], axis=-1)


def token_log_probs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
  """float32[..., T, V], int32[..., T] -> float32[..., T - 1]: log p(token t | tokens before it) for t = 1 ... T - 1."""
  log_p = jax.nn.log_softmax(logits[..., :-1, :], axis=-1)
  return jnp.take_along_axis(log_p, tokens[..., 1:, None], axis=-1)[..., 0]


def statistics(activations: np.ndarray, site: np.ndarray, n_sites: int, normalize: str) -> dict:
  """The encoder's "stats" from a sample: float32[N, D], int[N] -> {"mean": [S, D], ...} as `normalize` needs."""
  width = activations.shape[1]
  mean, scale = np.zeros((n_sites, width)), np.ones((n_sites, width))
  turn = np.zeros((n_sites, width, width)) if normalize == "whiten" else None
  for s in range(n_sites):
    own = activations[site == s].astype(np.float64)
    mean[s] = own.mean(axis=0)
    spread = own.std(axis=0)
    scale[s] = 1.0 / np.maximum(spread, 1e-3 * spread.max() + 1e-12)
    if turn is None:
      continue
    values, vectors = np.linalg.eigh(np.cov(own.T))
    # A head writes into d_head of D directions; the others hold rounding noise and stay out.
    kept = values > 1e-6 * values.max()
    turn[s] = vectors * np.where(kept, 1.0 / np.sqrt(np.where(kept, values, 1.0)), 0.0)
  out = {"mean": mean}
  if normalize == "standard":
    out["scale"] = scale
  if normalize == "whiten":
    out["turn"] = turn  # type: ignore[assignment]
  return {name: value.astype(np.float32) for name, value in out.items()}
