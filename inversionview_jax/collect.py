"""Texts -> (text, activation, site): the training pairs of a decoder, made on the device inside the training step.

One forward pass of the target serves several (site, position) pairs of each text, and activations are taken at those positions only.

Shapes: B texts, T tokens, P pairs per text, N = B * P, S sites, D width.
"""

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from inversionview_jax.sites import Site
from inversionview_jax.transformer import Transformer


@flax.struct.dataclass
class Pairs:
  """tokens int32[N, T], activation float32[N, D], site int32[N] (index into the sites), position int32[N]."""

  tokens: jax.Array
  activation: jax.Array
  site: jax.Array
  position: jax.Array


def collect(
  target: Transformer,
  params,
  tokens,
  keys,
  *,
  sites: Sequence[Site],
  query_mask: Callable,
  site_logits,
  pairs_per_text: int,
  bos_rate: float,
) -> Pairs:
  """Draws (site, position) pairs for each text and runs the target once.

  Args:
    target, params: the frozen target.
    tokens: int32[B, T].
    keys: key[B], one per text.
    sites: S of them, of vector kinds.
    query_mask: int32[B, T] -> bool[B, T]; positions are drawn uniformly from these.
    site_logits: float32[S]; sites are drawn with these (zeros: uniformly).
    pairs_per_text: P.
    bos_rate: share of pairs taken at BOS instead (paper: 1 %), the activation that carries no information.
  """
  at, site = draw(tokens, keys, query_mask(tokens), site_logits, pairs_per_text, bos_rate)
  activation = activations_at(target, params, tokens, at, site, sites)
  batch, length = tokens.shape
  return Pairs(
    jnp.broadcast_to(tokens[:, None, :], (batch, pairs_per_text, length)).reshape(-1, length),
    activation.reshape(-1, activation.shape[-1]),
    site.reshape(-1),
    at.reshape(-1),
  )


def draw(tokens, keys, mask, site_logits, pairs_per_text: int, bos_rate: float):
  """-> positions int32[B, P] and site indices int32[B, P], from one key per text."""
  del tokens

  def one(key, allowed):
    where, which, bos = jax.random.split(key, 3)
    position = jax.random.categorical(where, jnp.where(allowed, 0.0, -jnp.inf), shape=(pairs_per_text,))
    position = jnp.where(jax.random.bernoulli(bos, bos_rate, (pairs_per_text,)), 0, position)
    return position.astype(jnp.int32), jax.random.categorical(which, site_logits, shape=(pairs_per_text,)).astype(
      jnp.int32
    )

  return jax.vmap(one)(keys, mask)


def activations_at(target: Transformer, params, tokens, at, site, sites: Sequence[Site]):
  """int32[B, T] texts, int32[B, P] positions, int32[B, P] site indices -> float32[B, P, D]."""
  out = target.apply({"params": params}, tokens, capture=tuple(sites), at=at, logits=False)
  return select(out, sites, site[..., None]).astype(jnp.float32)


def select(out, sites: Sequence[Site], index):
  """The activation of the site with this index, which may be another one in each row: `index` broadcasts against [B, P, 1]."""
  chosen = out[sites[0]]
  for i, site in enumerate(sites[1:], start=1):
    chosen = jnp.where(index == i, out[site], chosen)
  return chosen
