"""Training pairs of a decoder: texts -> (text, activation, site), made on the device inside the training step.

One forward pass of the target serves several (site, position) pairs of each text, and activations are taken at those positions only.

Shapes: B texts, T tokens, P pairs per text, N = B * P, S sites, D width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from inversionview_jax.models import site_shapes
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sites import Site

_PIECE = 32 * 2**20  # bytes of the widest array that a target computes for the texts it is run on at once


@flax.struct.dataclass
class Pairs:
  """Texts with an activation of each.

  Attributes:
    tokens: int32[N, T].
    activation: float32[N, D].
    site: int32[N], index into the sites.
    position: int32[N].
    weight: float32[N], 0 for a pair that is not a training example; None where all are.
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
    bos_rate: share of pairs taken at BOS instead (paper: 1 %), where the activation has no information about the text.
    bos_attention: None, or for heads the position of `query_mask` that attends to BOS least instead of a random one, and only where it attends
      to BOS less than this (paper, factual recall: 0.6); a head that attends to BOS moves no information.

  Returns:
    N = B * P pairs, those of each text together.
  """
  batch, length = tokens.shape
  mask = query_mask(tokens)
  if bos_attention is None:
    at, site = draw(tokens, keys, mask, site_logits, pairs_per_text, bos_rate)
    activation, weight = activations_at(target, params, tokens, at, site, sites), None
  else:
    position_keys, site_keys = _split(keys, 2)
    positions, activations, counted = attentive(target, params, tokens, mask, position_keys, sites, bos_attention)
    at_bos, site, weight = _draw_counted(site_keys, counted, site_logits, pairs_per_text, bos_rate)
    column = jnp.where(at_bos, len(sites), 0) + site  # the second half of the activations is at BOS
    activation = jnp.take_along_axis(activations, column[..., None], axis=1)
    at = jnp.where(at_bos, 0, jnp.take_along_axis(positions, site, axis=1))
    weight = weight.reshape(-1)
  return Pairs(
    jnp.broadcast_to(tokens[:, None, :], (batch, pairs_per_text, length)).reshape(-1, length),
    activation.reshape(-1, activation.shape[-1]),
    site.reshape(-1),
    at.reshape(-1),
    weight,
  )


def in_pieces(target: Transformer, run: Callable, tokens, *rest) -> Any:
  """run(tokens, *rest), in chunks of texts where all at once would need much memory.

  Intermediate arrays of a large target are wider than the captured activations: 256 texts of 24 tokens through the MLPs of GPT-2 small
  need as much memory as all 157 activations of each. A chunk's widest array stays below 32 MiB, which is still thousands of rows to multiply.

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
  return in_parts(pieces, run, tokens, *rest)


def in_parts(count: int, run: Callable, *arrays) -> Any:
  """run(*arrays) of arrays with B rows, in so many equal parts, one after the other; `count` divides B."""
  if count == 1:
    return run(*arrays)
  parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), arrays)
  results = jax.lax.map(lambda part: run(*part), parts)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), results)


def attentive(
  target: Transformer, params, tokens, mask, keys, sites: Sequence[Site], most: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The activation of every site at one position of each text: of a head, where it attends to BOS least (paper, factual recall).

  Args:
    target, params: the frozen target.
    tokens: int32[B, T].
    mask: bool[B, T].
    keys: key[B]; sites other than heads take a random position of the mask.
    sites: S of them.
    most: the attention to BOS from which a head's position does not count.

  Returns:
    positions int32[B, S]; activations float32[B, 2 S, D], at these positions and then at BOS; bool[B, S], whether they count.
  """
  run = functools.partial(_attentive, target, params, sites, most)
  return in_pieces(target, run, tokens, mask, keys)


def _attentive(target: Transformer, params, sites: Sequence[Site], most: float, tokens, mask, keys):
  any_position = jax.vmap(lambda key, allowed: jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf)))(
    keys, mask
  )
  of_heads = {}  # site -> (positions, whether they count), filled in while the target runs

  def least_bos_attention(site):
    def at(attention):
      to_bos = jnp.where(mask, attention[:, :, 0], jnp.inf)
      best = jnp.argmin(to_bos, axis=1)
      of_heads[site] = best, jnp.take_along_axis(to_bos, best[:, None], axis=1)[:, 0] < most
      return with_bos(best)

    return at

  def with_bos(position):
    return jnp.stack([position, jnp.zeros_like(position)], axis=1).astype(jnp.int32)

  at = {site: least_bos_attention(site) if site.kind == "head" else with_bos(any_position) for site in sites}
  out: Any = target.apply({"params": params}, tokens, capture=tuple(sites), at=at, logits=False)
  counted = jnp.any(mask, axis=1)
  position, counts = zip(*(of_heads.get(site, (any_position, counted)) for site in sites), strict=True)
  activations = _stacked(target, out, sites)  # [B, 2, S, D]
  activations = activations.reshape(len(tokens), -1, activations.shape[-1])
  return jnp.stack(position, 1).astype(jnp.int32), activations, jnp.stack(counts, 1)


def _split(keys, count: int):
  """key[B] -> key[count, B]."""
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def _draw_counted(keys, counts, site_logits, pairs_per_text: int, bos_rate: float):
  """Sites among those that count (any at BOS), and whether at BOS.

  Args:
    keys: key[B].
    counts: bool[B, S].
    site_logits: float32[S].
    pairs_per_text, bos_rate: as for `collect`.

  Returns:
    bool[B, P] at BOS, int32[B, P] sites, and float32[B, P], 0 where no site of the text counts.
  """

  def one(key, counts):
    which, bos = jax.random.split(key)
    at_bos = jax.random.bernoulli(bos, bos_rate, (pairs_per_text,))
    allowed = counts | at_bos[:, None]
    usable = jnp.any(allowed, axis=1)
    drawn = jax.random.categorical(which, jnp.where(allowed | ~usable[:, None], site_logits, -jnp.inf), axis=-1)
    return at_bos, drawn.astype(jnp.int32), usable.astype(jnp.float32)

  return jax.vmap(one)(keys, counts)


def draw(tokens, keys, mask, site_logits, pairs_per_text: int, bos_rate: float) -> tuple[jax.Array, jax.Array]:
  """Random positions and sites of each text, from one key per text.

  Args:
    tokens: int32[B, T]; not used.
    keys: key[B].
    mask: bool[B, T], positions to draw from.
    site_logits: float32[S].
    pairs_per_text: P.
    bos_rate: share of positions that are BOS instead.

  Returns:
    Positions int32[B, P] and site indices int32[B, P].
  """
  del tokens

  def one(key, allowed):
    where, which, bos = jax.random.split(key, 3)
    position = jax.random.categorical(where, jnp.where(allowed, 0.0, -jnp.inf), shape=(pairs_per_text,))
    position = jnp.where(jax.random.bernoulli(bos, bos_rate, (pairs_per_text,)), 0, position)
    return position.astype(jnp.int32), jax.random.categorical(which, site_logits, shape=(pairs_per_text,)).astype(
      jnp.int32
    )

  return jax.vmap(one)(keys, mask)


def activations_at(target: Transformer, params, tokens, at, site, sites: Sequence[Site]) -> jax.Array:
  """Activations at P positions and sites of each text: int32[B, T], int32[B, P], int32[B, P] -> float32[B, P, D]."""

  def run(tokens, at, site):
    out = target.apply({"params": params}, tokens, at=at, choose=(tuple(sites), site), logits=False)
    return out.chosen.astype(jnp.float32)

  return in_pieces(target, run, tokens, at, site)


def activations_each(target: Transformer, params, tokens, at, sites: Sequence[Site]) -> jax.Array:
  """Activations of every site at E positions of each text: int32[B, T], int32[B, E * S], the sites in turn -> float32[B, E * S, D].

  Only these positions of a site are kept, so it needs little more memory than its result.
  """
  count = len(sites)

  def run(tokens, at):
    where = {site: at[:, i::count] for i, site in enumerate(sites)}
    out = target.apply({"params": params}, tokens, capture=tuple(sites), at=where, logits=False)
    return _stacked(target, out, sites).reshape(*at.shape, -1)  # of [B, E, S, D]

  return in_pieces(target, run, tokens, at)


def _stacked(target: Transformer, out, sites: Sequence[Site]):
  """float32[B, P, S, D] of captured activations; D is the largest width."""
  size = site_shapes.widest(target.config, sites)
  return jnp.stack([site_shapes.padded(out[site], size) for site in sites], axis=2).astype(jnp.float32)
