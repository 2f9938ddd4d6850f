"""A language model as the prior over texts: the law, draws of a next token, and one token at a time with the activations to compare.

The law: a number of tokens, uniform among those allowed, and for that many tokens the model's probability of the text behind BOS,
p(x_1) p(x_2 | x_1) ..., each renormalized over the tokens that a text may have: all but special ones. Whether the text ends there plays no part.

Shapes: B texts, C positions (BOS and text), V vocabulary, D width of the residual stream, R activations of a query, P directions.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import distance
from inversionview_jax.models import site_shapes
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target

_BLOCK = 256  # tokens of one block of the two that an inverse CDF takes


@flax.struct.dataclass
class Texts:
  """B texts, and what the model computed for them, which serves again where a text keeps its beginning.

  Attributes:
    tokens: int32[B, C], BOS and the text; anything behind its length.
    length: int32[B], with BOS.
    log_p: float32[B, C], of each token given those before it; 0 for BOS.
    far: float32[B, C, R], distances from the query's activations.
    hidden: float[B, C, D], the residual stream behind the last layer.
    cache: as `Transformer.empty_cache` makes it, rows last.
  """

  tokens: jax.Array
  length: jax.Array
  log_p: jax.Array
  far: jax.Array
  hidden: jax.Array
  cache: Any

  @classmethod
  def specs(cls, rows: Any, rows_last: Any) -> "Texts":
    """Specs with the layout of `Texts`: `rows` for arrays with B rows first, `rows_last` for the cache."""
    return cls(rows, rows, rows, rows, rows, rows_last)


class LanguagePrior:
  """The law of a target over texts, and its steps.

  Attributes:
    target: the model.
    sites: R of them, the i-th for the i-th activation of a query.
    allowed: bool[V], tokens that a text may have.
  """

  def __init__(self, target: Target, sites: tuple[Site, ...], allowed: np.ndarray):
    self.target, self.sites, self.allowed = target, tuple(sites), np.asarray(allowed, bool)

  def blank(self, count: int, length: int) -> Texts:
    """Texts of zeros."""
    c = self.target.config
    dtype = jnp.dtype(self.target.compute.dtype)
    zeros = jnp.zeros((count, length))
    return Texts(
      tokens=jnp.zeros((count, length), jnp.int32),
      length=jnp.full(count, length, jnp.int32),
      log_p=zeros,
      far=jnp.zeros((count, length, len(self.sites))),
      hidden=jnp.zeros((count, length, c.d_model), dtype),
      cache=self.target.module.empty_cache(count, length),
    )

  def next_token(
    self,
    params: Any,
    hidden: jax.Array,
    given: jax.Array,
    draw: jax.Array,
    other: jax.Array,
    before: jax.Array,
    uniform: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The next token of each text.

    Args:
      params: of the target.
      hidden: float[B, D], the residual stream behind the last layer at the token before.
      given: int32[B], taken unless `draw`, bool[B]; a draw is from the model's conditional distribution.
      other: bool[B], whether a draw must differ from `before`, int32[B].
      uniform: float32[B], in [0, 1); draws are a function of it.

    Returns:
      Tokens int32[B]; log p(token | tokens before it), float32[B]; and where `other`, log p(not `before`) - log p(not token), float32[B].
    """
    computed: Any = self.target.module.apply({"params": params}, hidden[:, None], method="logits")
    logits = jnp.where(jnp.asarray(self.allowed), computed[:, 0], -jnp.inf)
    log_z = jax.nn.logsumexp(logits, axis=-1)

    def of(token):
      return jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - log_z

    def drawn():
      p = jnp.exp(logits - log_z[:, None])
      number = jnp.arange(p.shape[1])[None, :]
      is_before = number == before[:, None]
      token = inverse_cdf(jnp.where(other[:, None] & is_before, 0.0, p), uniform)
      token = jnp.where(draw, token, given)
      # Sums without both, so that none is a difference of numbers close to 1.
      rest = jnp.where(is_before | (number == token[:, None]), 0.0, p).sum(axis=-1)
      p_new, p_before = (jnp.take_along_axis(p, at[:, None], axis=-1)[:, 0] for at in (token, before))
      return token, jnp.where(other & draw, jnp.log(rest + p_new) - jnp.log(rest + p_before), 0.0)

    token, ratio = jax.lax.cond(jnp.any(draw), drawn, lambda: (given, jnp.zeros(len(given))))
    return token, of(token), ratio

  def advance(
    self, params: Any, query: Queries, basis: Any, token: jax.Array, position: jax.Array, cache: Any
  ) -> tuple[jax.Array, jax.Array, Any]:
    """One token more.

    Args:
      params: of the target.
      query: R activations.
      basis: float32[P, D], orthonormal rows that activations are projected on; None: on nothing.
      token: int32[B]; position: int32[], 0 for BOS.
      cache: of the tokens before it.

    Returns:
      The residual stream float[B, D] behind the last layer, distances float32[B, R] from the query, and the cache.
    """
    computed: Any = self.target.module.apply(
      {"params": params}, token, position, cache, 0, tuple(dict.fromkeys(self.sites)), method="advance"
    )
    x, cache, captured = computed
    far = []
    for i, site in enumerate(self.sites):
      size = site_shapes.widest(self.target.config, self.sites)
      activation = site_shapes.padded(captured[site][:, 0].astype(jnp.float32), size)
      activation = activation if basis is None else activation @ basis.T
      each = [distance.distance(name, activation, query.activation[i]) for name in distance.METRICS]
      far.append(jnp.where(query.metric[i] == 0, each[0], each[1]))
    return x[:, 0], jnp.stack(far, axis=-1), cache

  def nearest(self, query: Queries, texts: Texts) -> tuple[jax.Array, jax.Array]:
    """float32[B], the largest of R distances, each at its nearest position; and int32[B], the first's position; (inf, -1) for none."""
    counted = jnp.arange(texts.far.shape[1])[None, :] < texts.length[:, None]
    found = [
      distance.masked_min(texts.far[..., i], counted, jnp.broadcast_to(query.position[i], texts.length.shape))
      for i in range(len(self.sites))
    ]
    return jnp.stack([far for far, _ in found]).max(axis=0), found[0][1]


def inverse_cdf(p: jax.Array, uniform: jax.Array) -> jax.Array:
  """One draw of each row: int32[B] from weights float32[B, V], not all zero, and float32[B] in [0, 1).

  Through blocks of tokens: a cumulative sum over a whole vocabulary takes longer, and rounds more.
  """
  count, size = p.shape
  blocks = jnp.pad(p, ((0, 0), (0, -size % _BLOCK))).reshape(count, -1, _BLOCK)
  sums = blocks.sum(axis=-1)
  cdf = jnp.cumsum(sums, axis=-1)
  wanted = uniform * cdf[:, -1]
  block = jnp.minimum((cdf <= wanted[:, None]).sum(axis=-1), cdf.shape[1] - 1)
  chosen = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  low = jnp.take_along_axis(cdf - sums, block[:, None], axis=1)[:, 0]
  inner = (jnp.cumsum(chosen, axis=-1) <= (wanted - low)[:, None]).sum(axis=-1)
  token = block * _BLOCK + jnp.minimum(inner, _BLOCK - 1)
  # Rounding may end just behind a block's last weight.
  weight = jnp.take_along_axis(p, jnp.minimum(token, size - 1)[:, None], axis=-1)[:, 0]
  return jnp.where((token < size) & (weight > 0), token, jnp.argmax(p, axis=-1)).astype(jnp.int32)
