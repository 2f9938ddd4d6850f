"""Reading and replacing activations while a forward pass runs.

Captures and edits are data, not callbacks: a capture is an array that comes back, an edit is an array with an address, so that a sweep
over heads and positions compiles once and jit prunes what nobody reads.

Shapes: B batch, T tokens, P positions, H heads, G key/value heads, D d_model, K d_head, V vocabulary, C cached positions.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from inversionview_jax.sites import Site


@flax.struct.dataclass
class SiteEdit:
  """Change the activation of one site at one position per row, at some positions, or at all of them.

  Attributes:
    kind: the kind of the site (static, as `mode` and `chained` are; everything else is data).
    layer, head: int32[]; 0 where the kind has none.
    position: int32[B], or None for those of `mask`.
    value: float[B, ...], or float[B, T, ...] without `position`; ... is the shape of the activation at one position.
    mask: bool[B, T], where a value without `position` counts; None for all positions.
    mode: "set", "add" or "scale": the activation becomes the value, or the value is added to it or multiplies it.
    chained: whether several edits of one head may meet, in their order, each acting on what those before it left; costs a product for each pair.
  """

  kind: str = flax.struct.field(pytree_node=False)
  layer: jax.Array
  head: jax.Array
  position: jax.Array | None
  value: jax.Array
  mask: jax.Array | None = None
  mode: str = flax.struct.field(pytree_node=False, default="set")
  chained: bool = flax.struct.field(pytree_node=False, default=False)

  def hit(self, layer: int, length: int) -> jax.Array:
    """bool[B, T]: where this edit changes the activation of `layer`."""
    if self.position is not None:
      hit = jnp.arange(length)[None, :] == self.position[:, None]
    elif self.mask is not None:
      hit = self.mask
    else:
      hit = jnp.ones((self.value.shape[0], length), bool)
    return hit & (self.layer == layer)

  def replacement(self) -> jax.Array:
    """float[B, T or 1, ...]: the value."""
    return self.value if self.position is None else self.value[:, None]

  def changed(self, x: jax.Array) -> jax.Array:
    """The activation float[B, T, ...] as this edit makes it, everywhere."""
    value = self.replacement().astype(x.dtype)
    return {"set": lambda: jnp.broadcast_to(value, x.shape), "add": lambda: x + value, "scale": lambda: x * value}[
      self.mode
    ]()

  def apply(self, x: jax.Array, layer: int | None, head: bool = False) -> jax.Array:
    """float[B, T, ...] with this edit; of one `head` of float[B, T, H, ...], the one that is its data."""
    hit = self.hit(layer or 0, x.shape[1])
    if not head:
      return jnp.where(hit.reshape(hit.shape + (1,) * (x.ndim - 2)), self.changed(x), x)
    mine = hit[..., None] & (jnp.arange(x.shape[2]) == self.head)
    one = self.changed(jnp.take(x, self.head, axis=2))
    return jnp.where(mine.reshape(mine.shape + (1,) * (x.ndim - 3)), jnp.expand_dims(one, 2), x)


@flax.struct.dataclass
class MixEdit:
  """Mix the activations of all parts of one kind, in every layer, with given ones: keep * own + (1 - keep) * value.

  With `keep` of zeros and ones this replaces what is not kept, any set of parts at any set of positions in one compiled program; in between
  it is a point on the straight line between two runs, and the gradient by `keep` is an attribution.

  Attributes:
    kind: "z_heads" or "mlp" (static).
    value: float[B, L, T, H, K] or float[B, L, T, D].
    keep: float[B, L, T, H] or float[B, L, T].
  """

  kind: str = flax.struct.field(pytree_node=False)
  value: jax.Array
  keep: jax.Array

  def apply(self, x: jax.Array, layer: int | None, head: bool = False) -> jax.Array:
    """float[B, T, ...] of `layer`, mixed; what is kept whole is the same to the bit."""
    del head
    keep, value = self.keep[:, layer or 0, ..., None].astype(x.dtype), self.value[:, layer or 0].astype(x.dtype)
    return x + (1 - keep) * (value - x)


@flax.struct.dataclass
class Output:
  """What a forward pass returns.

  Attributes:
    logits: float32[B, T, V], or None if they were not computed.
    captured: site -> activation; float[B, T, D] (or [B, P, D] with `at`), heads [B, T, H, D], scores and pattern [B, H, T, T]; other widths in
      place of D as `site_shapes` has them.
    cache: per layer (keys, values), float[B, C, G, K] each, or None.
    chosen: float[B, P, D], the one site that `choose` named for each row and position; None without `choose`. D is the largest width of these
      sites, and zeros follow where one is less wide.
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

  def __init__(
    self, capture: Sequence[Site], at, edits: Sequence[SiteEdit], never: jax.Array | None, choose=None, width: int = 0
  ):
    self.capture, self.at, self.edits = frozenset(capture), at, tuple(edits)
    self.choose = choose  # (sites, int32[B, P])
    self.width = width  # of the activations that are chosen
    self.chosen: jax.Array | None = None  # the activations that were chosen so far
    self.never = never  # int32[], zero at run time, which the compiler cannot know; None: it may fuse across sites
    self.captured: dict[Site, jax.Array] = {}
    wanted = (*self.capture, *(choose[0] if choose else ()))
    self._edited = frozenset(edit.kind for edit in self.edits)
    self._kinds = self._edited | {site.kind for site in wanted}

  def uses(self, *kinds: str) -> bool:
    """Whether sites of these kinds are captured or edited in some layer."""
    return not self._kinds.isdisjoint(kinds)

  def edits_any(self, *kinds: str) -> bool:
    """Whether sites of these kinds are edited in some layer."""
    return not self._edited.isdisjoint(kinds)

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

  def _add_chosen(self, hit, x):
    """Keeps float[B, P, W] where bool[B, P], with zeros up to the width of the activations that are chosen."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, max(self.width - x.shape[-1], 0))))
    before = jnp.zeros_like(x) if self.chosen is None else self.chosen
    self.chosen = jnp.where(hit[..., None], x, before)

  def choose_one(self, site: Site, make):
    """Keeps make(), float[B, T, D], in the rows and at the positions for which `site` is the one that was chosen."""
    if self.choose is None or site not in self.choose[0]:
      return
    sites, index = self.choose
    self._add_chosen(index == sites.index(site), self.at_positions(make()))

  def _choose_heads(self, kind: str, layer: int, x, write=None):
    """`choose_one` for the heads of a layer, float[B, T, H, K]; `write` makes one activation of the chosen heads' and zeros for the others'."""
    if self.choose is None:
      return
    sites, index = self.choose
    every = [Site(kind, layer, h) for h in range(x.shape[2])]
    numbers = [sites.index(site) if site in sites else -1 for site in every]
    if max(numbers) < 0:
      return
    mine = (index[..., None] == jnp.array(numbers)) & (jnp.array(numbers) >= 0)  # [B, P, H]
    one = jnp.where(mine[..., None], self.at_positions(x), 0)
    self._add_chosen(jnp.any(mine, axis=-1), one.sum(axis=2) if write is None else write(one))

  def through(self, kind: str, layer: int | None, x):
    """Applies the edits of a vector site, captures it, and returns the edited activation."""
    x = self.boundary(x)
    for edit in self.edits:
      if edit.kind == kind:
        x = edit.apply(x, layer)
    x = self.boundary(x)
    self.keep(Site(kind, layer), lambda: self.at_positions(x, Site(kind, layer)))
    self.choose_one(Site(kind, layer), lambda: x)
    return x

  def inner(self, kind: str, layer: int | None, x):
    """`through` of a site inside of a part, where the compiler may fuse unless sites of this kind are captured or edited."""
    return self.through(kind, layer, x) if self.uses(kind) else x

  def inner_heads(self, kind: str, layer: int, x):
    """`inner` of float[B, T, H, K], all heads ("q_heads") and each by itself ("q")."""
    many = f"{kind}_heads"
    if not self.uses(kind, many):
      return x
    x = self.boundary(x)
    for edit in self.edits:
      if edit.kind in (kind, many):
        x = edit.apply(x, layer, head=edit.kind == kind)
    x = self.boundary(x)
    self.keep(Site(many, layer), lambda: self.at_positions(x, Site(many, layer)))
    for head in range(x.shape[2]):
      site = Site(kind, layer, head)
      self.keep(site, lambda site=site: self.at_positions(x[:, :, site.head], site))
    self._choose_heads(kind, layer, x)
    return x

  def inner_scores(self, kind: str, layer: int, x):
    """Edits and captures scores or patterns, float32[B, H, T, S], of all heads (`kind`) and of each by itself; always all positions."""
    one = f"head_{kind}"
    if self.edits_any(kind, one):
      x = self.boundary(x).swapaxes(1, 2)
      for edit in self.edits:
        if edit.kind in (kind, one):
          x = edit.apply(x, layer, head=edit.kind == one)
      x = self.boundary(x.swapaxes(1, 2))
    self.keep(Site(kind, layer), lambda: x)
    for head in range(x.shape[1]):
      self.keep(Site(one, layer, head), lambda head=head: x[:, head])
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

    def edited(result, head, before, select=lambda x: x):
      """A head's write with the edits of it, of float[B, T, D] or of what `select` takes of that."""
      for edit in before:
        hit = select((edit.hit(layer, length) & (edit.head == head))[..., None])
        one = dataclasses.replace(edit, value=select(_all_positions(edit, z.shape, out.shape[-1])), position=None)
        result = jnp.where(hit, one.changed(result), result)
      return result

    for i, edit in enumerate(edits):
      # For one position its row is enough; but a product of fewer rows may round otherwise than that of the capture.
      at = None if self.never is not None or edit.chained or edit.position is None else edit.position[:, None]
      here = attention.result(rows_at(z, at), edit.head)
      if edit.chained:
        here = edited(here, edit.head, edits[:i])
      difference = edit.changed(here) - here
      out = out + jnp.where(edit.hit(layer, length)[..., None], difference, 0)

    def written(head, site):
      def rows(x):
        return self.at_positions(x, site, pattern[:, head])

      return edited(attention.result(rows(z), head), head, edits, rows)

    every = range(attention.config.n_heads)
    for site in (Site("head", layer, head) for head in every):
      self.keep(site, lambda site=site: written(site.head, site))
    many = Site("heads", layer)
    self.keep(many, lambda: jnp.stack([written(head, many) for head in every], axis=-2))
    self._choose_heads("head", layer, z, attention.write_heads)
    return self.boundary(out)


def _all_positions(edit: SiteEdit, shape, width: int):
  """The value of an edit at every position, float[B, T, D]."""
  return jnp.broadcast_to(edit.replacement(), (shape[0], shape[1], width))
