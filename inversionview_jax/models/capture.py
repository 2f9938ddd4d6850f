"""Reading and replacing activations while a forward pass runs.

Captures and edits are data, not callbacks: a capture is an array that comes back, an edit is an array with an address, so that a sweep
over heads and positions compiles once and jit prunes what nobody reads.

Shapes: B batch, T tokens, P positions, H heads, G key/value heads, D d_model, K d_head, V vocabulary, C cached positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from inversionview_jax.sites import Site


@flax.struct.dataclass
class SiteEdit:
  """Replace the activation of one site at one position per row, or at all positions.

  Attributes:
    kind: the kind of the site (static; everything else is data).
    layer, head: int32[]; 0 where the kind has none.
    position: int32[B], or None for all positions.
    value: float[B, D], or float[B, T, D] for all positions.
  """

  kind: str = flax.struct.field(pytree_node=False)
  layer: jax.Array
  head: jax.Array
  position: jax.Array | None
  value: jax.Array

  def hit(self, layer: int, length: int) -> jax.Array:
    """bool[B, T]: where this edit replaces the activation of `layer`."""
    if self.position is None:
      hit = jnp.ones((self.value.shape[0], length), bool)
    else:
      hit = jnp.arange(length)[None, :] == self.position[:, None]
    return hit & (self.layer == layer)

  def replacement(self) -> jax.Array:
    """float[B, T or 1, D]."""
    return self.value if self.position is None else self.value[:, None, :]


@flax.struct.dataclass
class Output:
  """What a forward pass returns.

  Attributes:
    logits: float32[B, T, V], or None if they were not computed.
    captured: site -> activation; float[B, T, D] (or [B, P, D] with `at`), heads [B, T, H, D], pattern [B, H, T, T].
    cache: per layer (keys, values), float[B, C, G, K] each, or None.
    chosen: float[B, P, D], the one site that `choose` named for each row and position; None without `choose`.
  """

  logits: jax.Array | None
  captured: dict[Site, jax.Array]
  cache: Any = None
  chosen: jax.Array | None = None

  def __getitem__(self, site: Site) -> jax.Array:
    return self.captured[site]


@flax.struct.dataclass
class Padded:
  """Texts with padding in front of them or between their tokens.

  Attributes:
    mask: bool[B, T], True for the tokens of a text: what is attended to.
    positions: int32[B, T], the position of each token in its text, counted from 0 over the tokens of `mask`; 0 before the first.
  """

  mask: jax.Array
  positions: jax.Array

  @classmethod
  def of_mask(cls, mask: jax.Array) -> "Padded":
    """Of an attention mask, bool[B, T]."""
    return cls(mask, jnp.maximum(jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1, 0))


def rows_at(x: jax.Array, at: jax.Array | None) -> jax.Array:
  """float[B, T, ...], int32[B, P] or None -> the rows at these positions, float[B, P, ...]."""
  if at is None:
    return x
  return jnp.take_along_axis(x, at.reshape(at.shape + (1,) * (x.ndim - 2)), axis=1)


@jax.custom_jvp
def _unfused(x, never):
  """x, which nothing is fused with; `never`, int32[], is zero."""
  return jax.lax.fori_loop(0, never, lambda _, y: -y, x)


@_unfused.defjvp
def _unfused_jvp(primals, tangents):
  """The identity's: JAX has no reverse mode for a loop whose length is data."""
  return _unfused(*primals), tangents[0]


class Recorder:
  """Collects captures and applies edits as the residual stream flows by; lives for one trace of the forward pass."""

  def __init__(self, capture: Sequence[Site], at, edits: Sequence[SiteEdit], never: jax.Array | None, choose=None):
    self.capture, self.at, self.edits = frozenset(capture), at, tuple(edits)
    self.choose = choose  # (sites, int32[B, P])
    self.chosen: jax.Array | None = None  # the activations that were chosen so far
    self.never = never  # int32[], zero at run time, which the compiler cannot know; None: it may fuse across sites
    self.captured: dict[Site, jax.Array] = {}

  def keep(self, site: Site, make):
    """Keeps make(), float[B, T, ...], under `site` if that is captured."""
    if site in self.captured or site not in self.capture:
      return
    self.captured[site] = make()

  def boundary(self, x):
    """x, which the compiler does not fuse with its neighbours: fused, it would be rounded depending on what is captured or edited.

    A loop whose number of iterations, zero, is known at run time only: `jax.lax.optimization_barrier` is gone by the time XLA's CPU backend
    fuses.
    """
    return x if self.never is None else _unfused(x, self.never)

  def at_positions(self, x, site=None, attention=None):
    """float[B, T, ...] -> the rows at the positions to capture (of this site), float[B, P, ...].

    `attention`, float32[B, T, T] of a head, is what positions may depend on.
    """
    at = self.at.get(site) if isinstance(self.at, Mapping) else self.at
    return rows_at(x, at(attention) if callable(at) else at)

  def _choose(self, kind: str, layer: int | None, x):
    """Keeps float[B, T, D] in the rows and at the positions for which this site is the one that was chosen."""
    if self.choose is None or Site(kind, layer) not in self.choose[0]:
      return
    sites, index = self.choose
    x = self.at_positions(x)
    before = jnp.zeros_like(x) if self.chosen is None else self.chosen
    self.chosen = jnp.where((index == sites.index(Site(kind, layer)))[..., None], x, before)

  def _choose_heads(self, layer: int, attention, z):
    """`_choose` for the heads of a layer: of each row the other heads' mixtures become zeros, so that one matmul serves all."""
    if self.choose is None:
      return
    sites, index = self.choose
    numbers = [
      sites.index(Site("head", layer, h)) if Site("head", layer, h) in sites else -1
      for h in range(attention.config.n_heads)
    ]
    if max(numbers) < 0:
      return
    mine = (index[..., None] == jnp.array(numbers)) & (jnp.array(numbers) >= 0)  # [B, P, H]
    written = attention.write_heads(jnp.where(mine[..., None], self.at_positions(z), 0))
    before = jnp.zeros_like(written) if self.chosen is None else self.chosen
    self.chosen = jnp.where(jnp.any(mine, axis=-1)[..., None], written, before)

  def through(self, kind: str, layer: int | None, x):
    """Applies the edits of a vector site, captures it, and returns the edited activation."""
    x = self.boundary(x)
    for edit in self.edits:
      if edit.kind == kind:
        x = jnp.where(edit.hit(layer or 0, x.shape[1])[..., None], edit.replacement().astype(x.dtype), x)
    x = self.boundary(x)
    self.keep(Site(kind, layer), lambda: self.at_positions(x, Site(kind, layer)))
    self._choose(kind, layer, x)
    return x

  def through_heads(self, layer: int, attention, z, out, pattern):
    """The heads' sum `out` with the edits of heads, each as the difference it makes to its head's write; captures heads.

    Args:
      layer: of the heads.
      attention: its `Attention`.
      z: float[B, T, H, K], the heads' mixtures.
      out: float[B, T, D], the sum of their writes.
      pattern: float32[B, H, T, T].

    Returns:
      float[B, T, D].
    """
    length = z.shape[1]
    edits = [edit for edit in self.edits if edit.kind == "head"]
    z, out = self.boundary(z), self.boundary(out)
    for edit in edits:
      # For one position its row is enough; but a product of fewer rows may round otherwise than that of the capture.
      here = rows_at(z, edit.position[:, None]) if self.never is None and edit.position is not None else z
      difference = edit.replacement().astype(z.dtype) - attention.result(here, edit.head)
      out = out + jnp.where(edit.hit(layer, length)[..., None], difference, 0)

    def written(head, site):
      def rows(x):
        return self.at_positions(x, site, pattern[:, head])

      result = attention.result(rows(z), head)
      for edit in edits:
        hit = rows((edit.hit(layer, length) & (edit.head == head))[..., None])
        value = jnp.broadcast_to(edit.replacement(), (z.shape[0], length, out.shape[-1]))
        result = jnp.where(hit, rows(value).astype(z.dtype), result)
      return result

    every = range(attention.config.n_heads)
    for site in (Site("head", layer, head) for head in every):
      self.keep(site, lambda site=site: written(site.head, site))
    many = Site("heads", layer)
    self.keep(many, lambda: jnp.stack([written(head, many) for head in every], axis=-2))
    self._choose_heads(layer, attention, z)
    return self.boundary(out)
