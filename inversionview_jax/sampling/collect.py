"""Texts -> (text, activation, site): the training pairs of a decoder, made on the device inside the training step.

One forward pass of the target serves several (site, position) pairs of each text, and activations are taken at those positions only.

Shapes: B texts, T tokens, P pairs per text, N = B * P, S sites, D width.
"""

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp

from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sites import Site

_PIECE = 32 * 2**20  # bytes of the widest array that a target computes for the texts it is run on at once


@flax.struct.dataclass
class Pairs:
  """tokens int32[N, T], activation float32[N, D], site int32[N] (index into the sites), position int32[N].

  weight: float32[N], 0 for a pair that is no training example; None where all are.
  """

  tokens: jax.Array
  activation: jax.Array
  site: jax.Array
  position: jax.Array
  weight: jax.Array | None = None


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
  bos_attention: float | None = None,
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
    bos_attention: None, or for heads the position of `query_mask` that attends to BOS least instead of a random one, and only where it attends
      to BOS less than this (paper, factual recall: 0.6); a head that attends to BOS moves nothing.
  """
  batch, length = tokens.shape
  mask = query_mask(tokens)
  if bos_attention is None:
    at, site = draw(tokens, keys, mask, site_logits, pairs_per_text, bos_rate)
    activation, weight = activations_at(target, params, tokens, at, site, sites), None
  else:
    where, which = _keys(keys, 2)
    every, found, heeds = attentive(target, params, tokens, mask, where, sites, bos_attention)
    at, site, weight = _among(which, heeds, site_logits, pairs_per_text, bos_rate)
    place = jnp.where(at, len(sites), 0) + site  # at BOS, or where the site was found to say something
    activation = jnp.take_along_axis(found, place[..., None], axis=1)
    at = jnp.where(at, 0, jnp.take_along_axis(every, site, axis=1))
    weight = weight.reshape(-1)
  return Pairs(
    jnp.broadcast_to(tokens[:, None, :], (batch, pairs_per_text, length)).reshape(-1, length),
    activation.reshape(-1, activation.shape[-1]),
    site.reshape(-1),
    at.reshape(-1),
    weight,
  )


def in_pieces(target: Transformer, run: Callable, tokens, *rest):
  """run(tokens, *rest), a few texts at a time where all at once would need much room.

  What a large target computes on the way is wider than what is taken of it: 256 texts of 24 tokens through the MLPs of GPT-2 small need
  as much as all 157 activations of each. A piece's widest array stays below 32 MiB, which is still thousands of rows to multiply.

  Args:
    target: its width is counted.
    run: of arrays with B rows, to a pytree of arrays with B rows.
    tokens: int32[B, T].
    rest: more arrays (or keys) with B rows.
  """
  c = target.config
  widest = tokens.shape[1] * max(c.d_mlp * (2 if c.gated else 1), 3 * c.n_heads * c.d_head, c.d_model) * 4
  batch = len(tokens)
  pieces = next((n for n in range(1, batch) if batch % n == 0 and batch // n * widest <= _PIECE), batch)
  if pieces == 1:
    return run(tokens, *rest)
  parts = jax.tree.map(lambda x: x.reshape(pieces, -1, *x.shape[1:]), (tokens, *rest))
  found = jax.lax.map(lambda part: run(*part), parts)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)


def attentive(target: Transformer, params, tokens, mask, keys, sites: Sequence[Site], most: float):
  """Of every site the activation at one position of each text: of a head the one of `mask` that attends to BOS least (paper, factual recall).

  Args:
    target, params: the frozen target.
    tokens: int32[B, T].
    mask: bool[B, T].
    keys: key[B]; sites other than heads take a random position of the mask.
    sites: S of them.
    most: the attention to BOS from which on a head's position does not count.

  Returns:
    positions int32[B, S]; activations float32[B, 2 S, D], at these positions and then at BOS; bool[B, S], whether they count.
  """
  return in_pieces(target, lambda *part: _attentive(target, params, *part, sites, most), tokens, mask, keys)


def _attentive(target: Transformer, params, tokens, mask, keys, sites: Sequence[Site], most: float):
  any_position = jax.vmap(lambda key, allowed: jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf)))(
    keys, mask
  )
  seen = {}

  def least(site):
    def at(attention):
      to_bos = jnp.where(mask, attention[:, :, 0], jnp.inf)
      best = jnp.argmin(to_bos, axis=1)
      seen[site] = best, jnp.take_along_axis(to_bos, best[:, None], axis=1)[:, 0] < most
      return with_bos(best)

    return at

  def with_bos(position):
    return jnp.stack([position, jnp.zeros_like(position)], axis=1).astype(jnp.int32)

  at = {site: least(site) if site.kind == "head" else with_bos(any_position) for site in sites}
  out = target.apply({"params": params}, tokens, capture=tuple(sites), at=at, logits=False)
  counted = jnp.any(mask, axis=1)
  position, counts = zip(*(seen.get(site, (any_position, counted)) for site in sites), strict=True)
  found = jnp.stack([out[site] for site in sites], axis=2).astype(jnp.float32)  # [B, 2, S, D]
  return jnp.stack(position, 1).astype(jnp.int32), found.reshape(len(tokens), -1, found.shape[-1]), jnp.stack(counts, 1)


def _keys(keys, count: int):
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def _among(keys, counts, site_logits, pairs_per_text: int, bos_rate: float):
  """-> bool[B, P] at BOS, int32[B, P] sites among those that count (any at BOS), and float32[B, P], 0 where a text has none."""

  def one(key, counts):
    which, bos = jax.random.split(key)
    at_bos = jax.random.bernoulli(bos, bos_rate, (pairs_per_text,))
    allowed = counts | at_bos[:, None]
    usable = jnp.any(allowed, axis=1)
    drawn = jax.random.categorical(which, jnp.where(allowed | ~usable[:, None], site_logits, -jnp.inf), axis=-1)
    return at_bos, drawn.astype(jnp.int32), usable.astype(jnp.float32)

  return jax.vmap(one)(keys, counts)


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

  def run(tokens, at, site):
    out = target.apply({"params": params}, tokens, at=at, choose=(tuple(sites), site), logits=False)
    return out.chosen.astype(jnp.float32)

  return in_pieces(target, run, tokens, at, site)


def activations_each(target: Transformer, params, tokens, at, sites: Sequence[Site]):
  """int32[B, T] texts, int32[B, E * S] positions, the sites in turn E times over -> float32[B, E * S, D].

  No more of any site is kept, so that it takes little more room than what it returns.
  """
  count = len(sites)

  def run(tokens, at):
    where = {site: at[:, i::count] for i, site in enumerate(sites)}
    out = target.apply({"params": params}, tokens, capture=tuple(sites), at=where, logits=False)
    found = jnp.stack([out[site] for site in sites], axis=2)  # [B, E, S, D]
    return found.reshape(*at.shape, -1).astype(jnp.float32)

  return in_pieces(target, run, tokens, at)
