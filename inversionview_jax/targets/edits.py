"""Edits: activations that are changed while a target runs, checked and turned into arrays.

Shapes: B rows, T tokens, P positions of each row, W width of the activation, H heads.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import site_shapes
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.sites import Site
from inversionview_jax.targets import replacements
from inversionview_jax.targets.arrays import to_array
from inversionview_jax.targets.edit_positions import Cells, resolve_cells
from inversionview_jax.targets.inputs import Rows
from inversionview_jax.targets.overwritten import refuse_overwritten, same_activation
from inversionview_jax.targets.positions import is_traced

if TYPE_CHECKING:
  from inversionview_jax.targets.target import Target

CAPTURABLE = tuple(sites.KINDS)
MODES = ("set", "add", "scale", "zero", "mean", "resample")
_HEADS_FIRST = ("scores", "pattern")  # captured as [B, H, T, T], changed by position


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """Changes the activation at a site.

  Attributes:
    site: either notation; one vector per position, or all heads of a layer ("a0", "q0", "p0").
    position: an index, a negative index, a label of the target's task; a list of these or a slice, for several positions of every row; int[B]
      with one index per row (an array; a list of as many numbers is refused as ambiguous), or [B, P] with P of them ([1, P]: of every row);
      None for all positions. A negative index counts from the last token of each text where texts are run or a mask is given, and from the
      end of the row of T where token ids are.
    value: of "set" and "add" float[W], float[B, W], or float[B, P, W] for several positions (float[B, T, W] for all); of all heads of a layer
      float[H, W], and so on; of scores and patterns in the order in which they are captured, [B, H, T, T]. Of "scale" the same, or a number.
      Of "mean" and "resample" texts or token ids, or None for these inputs. An array of NumPy, JAX or torch; may be traced
      (differentiated, batched, ...).
    mode: "set" (the activation becomes the value), "add" (the value is added), "scale" (is multiplied), "zero"; "mean" (becomes the mean over
      texts at that position) or "resample" (becomes what it is in another text, each row's drawn at random), both without other edits.
    seed: of "resample".
  """

  site: str | Site
  position: Any
  value: Any = None
  mode: str = "set"
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class _Placed:
  """An edit whose site, mode and position have been checked."""

  edit: Edit
  site: Site
  cells: Cells

  @property
  def sets(self) -> bool:
    """Whether nothing is left of the activation that was there."""
    return self.edit.mode not in ("add", "scale")


def resolve_edits(target: "Target", edits: Sequence[Edit], rows: Rows, in_order: bool = False) -> tuple[SiteEdit, ...]:
  """Edits as the forward pass takes them. Shapes are always checked, values where they are known (not traced).

  Args:
    target: that is run.
    edits: as given.
    rows: the inputs.
    in_order: whether edits may change one activation one after the other, in their order, and may overwrite another.

  Raises:
    InversionViewError: an unknown site or mode, a position out of range or on padding, a value of another shape; without `in_order` two edits of the
      same activation whose order matters, or one that another overwrites.
  """
  placed = [_place(target, edit, rows) for edit in edits]
  if not in_order:
    _refuse_in_vain(target, placed, rows)
  chained = in_order and len(placed) > 1
  values = replacements.of_inputs(target, [(p.site, p.edit, p.cells) for p in placed], rows)
  return tuple(
    one for p, value in zip(placed, values, strict=True) for one in _site_edits(target, p, value, rows, chained)
  )


def resolve_edit(target: "Target", edit: Edit, rows: Rows) -> SiteEdit:
  """`resolve_edits` of one, of a site that is not all heads' writes ("a0")."""
  return resolve_edits(target, [edit], rows)[0]


def _place(target: "Target", edit: Edit, rows: Rows) -> _Placed:
  site = target.site(edit.site, CAPTURABLE)
  if edit.mode not in MODES:
    raise one_of(f"mode of the edit of {site}:", edit.mode, MODES)
  if edit.mode == "zero" and edit.value is not None:
    raise InversionViewError(f"the edit of {site} to zero takes no value; leave it out, or take mode='set'")
  if edit.mode in ("set", "add", "scale") and edit.value is None:
    raise InversionViewError(f"the edit of {site} needs a value for mode={edit.mode!r}")
  return _Placed(edit, site, resolve_cells(target, site, edit.position, rows))


def _site_edits(target: "Target", placed: _Placed, value: Any, rows: Rows, chained: bool) -> list[SiteEdit]:
  """One `SiteEdit`, or of all heads' writes one for each head; `value` is that of "mean" and "resample"."""
  site, cells = placed.site, placed.cells
  batch, length = rows.tokens.shape
  shape = site_shapes.shape(target.config, site, length)
  if value is None:
    value = _value(site, placed.edit, shape, cells, batch, length)
  mode = "set" if placed.sets else placed.edit.mode
  position, mask = (cells.index if cells.single else None), cells.mask
  if cells.several:
    row = jnp.arange(batch)[:, None]
    value = jnp.zeros((batch, length, *shape), jnp.float32).at[row, cells.index].set(value)
    mask = jnp.zeros((batch, length), bool).at[row, cells.index].set(True)
  layer = jnp.int32(site.layer or 0)

  def made(kind, head, value):
    return SiteEdit(kind, layer, jnp.int32(head), position, value, mask, mode, chained)

  if site.kind == "heads":
    return [made("head", head, value[..., head, :]) for head in range(shape[0])]
  return [made(site.kind, site.head or 0, value)]


def _value(site: Site, edit: Edit, shape: tuple[int, ...], cells: Cells, batch: int, length: int) -> jax.Array:
  """float32[B, ...] of a single position, float32[B, P, ...] of several, float32[B, T, ...] of all."""
  if edit.mode == "zero":
    value = jnp.zeros(shape)
  else:
    value = _numbers(site, edit.value)
  between: tuple[int, ...] = () if cells.single else (cells.index.shape[1] if cells.several else length,)
  full, heads_first = (batch, *between, *shape), site.kind in _HEADS_FIRST and not cells.single
  wanted = (batch, shape[0], *between, *shape[1:]) if heads_first else full
  if value.shape == wanted and heads_first:
    return value.swapaxes(1, 2)
  if value.shape == () and edit.mode == "scale" or value.shape in (wanted, shape):
    return jnp.broadcast_to(value, full)
  raise InversionViewError(f"the edit of {site} needs a value of shape {wanted} or {shape}, got {value.shape}")


def _numbers(site: Site, given: Any) -> jax.Array:
  """float32 of any array, also torch's; raises `InversionViewError` for what is none."""
  given = to_array(given)
  try:
    known = not is_traced(*jax.tree.leaves(given)) and not isinstance(given, jax.Array)
    if known and np.asarray(given).dtype.kind not in "fiubV":
      raise TypeError  # V: bfloat16
    return jnp.asarray(given, jnp.float32)
  except (TypeError, ValueError):
    raise InversionViewError(f"the edit of {site} needs an array of numbers, got {type(given).__name__}") from None


def refuse_overlap(
  what: str,
  addresses: Sequence[tuple[str, Site, np.ndarray | jax.Array | None]],
  commuting: Sequence[str] = (),
  remedy: str = "keep one",
) -> None:
  """Raises `InversionViewError` if two of `addresses` share an activation: then one of them would silently have no effect.

  Args:
    what: what each of them is, such as "edits"; for the message.
    addresses: (name, site, positions), where positions are int[B], bool[B, T], or None for all of them; traced ones are not compared.
    commuting: of each address "", or a name: those of one name may share an activation, since both take effect in any order.
    remedy: for the message.
  """
  for i, (name, site, at) in enumerate(addresses):
    for j, (other_name, other_site, other_at) in enumerate(addresses[:i]):
      if not same_activation(site, other_site) or is_traced(at, other_at):
        continue
      if commuting and commuting[i] and commuting[i] == commuting[j]:
        continue
      if _meet(at, other_at):
        names = " and ".join(dict.fromkeys((other_name, name)))
        raise InversionViewError(
          f"two {what} of the same activation, {names}: one of them would have no effect, or their order matters; {remedy}"
        )


def _meet(at: Any, other: Any) -> bool:
  """Whether two sets of positions, int[B], bool[B, T] or None for all, share one in some row."""
  if at is None or other is None:
    return True
  at, other = np.asarray(at), np.asarray(other)
  if at.ndim == other.ndim:
    return bool((at == other).any() if at.ndim == 1 else (at & other).any())
  mask, index = (at, other) if at.ndim == 2 else (other, at)
  return bool(mask[np.arange(len(index)), index].any())


def _refuse_in_vain(target: "Target", placed: Sequence[_Placed], rows: Rows) -> None:
  """Raises `InversionViewError` for edits that meet, or of which one is overwritten; traced positions are not looked at."""
  if len(placed) < 2:
    return
  length = rows.tokens.shape[1]
  addresses = [(p.site.short, p.site, p.cells.address(length)) for p in placed]
  modes = ["" if p.sets else p.edit.mode for p in placed]
  refuse_overlap("edits", addresses, modes, "keep one, or give in_order=True to make them one after the other")
  if rows.padding is None or is_traced(*(at for _, _, at in addresses)):
    return
  known = [(name, site, None if at is None else np.asarray(at)) for name, site, at in addresses]
  steps, sets = np.ones((1, len(known)), bool), np.array([p.sets for p in placed])
  refuse_overwritten("edits", known, steps, ~rows.padding, target.config, sets)
