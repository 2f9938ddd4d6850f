"""Edits: activations that are replaced while a target runs, checked and turned into arrays.

Shapes: B rows, T tokens, D d_model.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.sites import Site
from inversionview_jax.targets.arrays import one_line, to_array
from inversionview_jax.targets.inputs import Rows
from inversionview_jax.targets.overwritten import refuse_overwritten, residual
from inversionview_jax.targets.positions import Position, is_traced, label_positions

if TYPE_CHECKING:
  from inversionview_jax.targets.target import Target

CAPTURABLE = tuple(sites.KINDS)


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
  """Replaces the activation at a site.

  Attributes:
    site: either notation; one vector per position (a head, not all heads of a layer; not the pattern).
    position: an index, a negative index, a label of the target's task, int[B] with one index per row, or None for all positions. A
      negative index counts from the last token of each text where texts are run or a mask is given, and from the end of the row of T where
      token ids are.
    value: float[D], float[B, D], or float[B, T, D] where `position` is None; an array of NumPy, JAX or torch; may be traced
      (differentiated, batched, ...).
  """

  site: str | Site
  position: Position | None
  value: np.ndarray | jax.Array


def resolve_edit(target: "Target", edit: Edit, rows: Rows) -> SiteEdit:
  """An edit as the forward pass takes it. Shapes are always checked, values where they are known (not traced).

  Args:
    target: that is run.
    edit: as given.
    rows: the inputs.

  Raises:
    InversionViewError: an unknown site or one of more than one vector per position, a position out of range or on padding, a value of
      another shape.
  """
  site = target.site(edit.site, CAPTURABLE)
  if site.kind not in sites.VECTOR_KINDS:
    instead = (
      f"; edit its heads, a{site.layer}.0 to a{site.layer}.{target.config.n_heads - 1}" if site.kind == "heads" else ""
    )
    raise InversionViewError(
      f"{str(edit.site)!r} can be captured but not edited, being more than one vector per position{instead}"
    )
  batch, length = rows.tokens.shape
  width = target.config.d_model
  value = _value(site, edit.value)
  shape: tuple[int, ...] = (batch, length, width) if edit.position is None else (batch, width)
  if value.shape not in (shape, (width,)):
    raise InversionViewError(f"the edit of {site} needs a value of shape {shape} or {(width,)}, got {value.shape}")
  value = jnp.broadcast_to(value, shape)
  position = None if edit.position is None else _position_per_row(target, site, edit.position, rows)
  return SiteEdit(site.kind, jnp.int32(site.layer or 0), jnp.int32(site.head or 0), position, value)


def _value(site: Site, given: Any) -> jax.Array:
  """float32 of any array, also torch's; raises `InversionViewError` for what is none."""
  given = to_array(given)
  try:
    known = not is_traced(*jax.tree.leaves(given)) and not isinstance(given, jax.Array)
    if known and np.asarray(given).dtype.kind not in "fiubV":
      raise TypeError  # V: bfloat16
    return jnp.asarray(given, jnp.float32)
  except (TypeError, ValueError):
    raise InversionViewError(f"the edit of {site} needs an array of numbers, got {type(given).__name__}") from None


def _position_per_row(target: "Target", site: Site, given: Any, rows: Rows) -> Any:
  """int32[B], not negative."""
  tokens, lengths = rows.tokens, rows.from_end
  batch, length = tokens.shape
  if isinstance(given, str):
    return label_positions(target, tokens, given)
  given = to_array(given)
  try:
    position: Any = given if is_traced(given) else np.asarray(given)
  except ValueError:  # lists of different lengths
    position = np.empty(0)
  if position.shape not in ((), (batch,)) or not np.issubdtype(position.dtype, np.integer):
    raise InversionViewError(
      f"the edit of {site} needs one position, or one per row ({batch}), got {one_line(given)}; give an edit for each position"
    )
  if is_traced(position, tokens, lengths):
    position = jnp.broadcast_to(position, (batch,))
    return jnp.where(position < 0, position + lengths, position).astype(jnp.int32)
  outside = (position < -lengths) | (position >= length)
  if outside.any():
    wrong = np.broadcast_to(position, (batch,))[np.argmax(np.broadcast_to(outside, (batch,)))]
    raise InversionViewError(f"the edit of {site} touches nothing: position {wrong} is outside 0 to {length - 1}")
  position = np.where(position < 0, position + lengths, position).astype(np.int32)
  padding = np.zeros(batch, bool) if rows.padding is None else rows.padding[np.arange(batch), position]
  if padding.any():
    row = int(np.argmax(padding))
    raise InversionViewError(
      f"the edit of {site} touches nothing in row {row}: position {int(position[row])} is padding"
    )
  return position


def refuse_overlap(what: str, addresses: Sequence[tuple[str, Site, np.ndarray | jax.Array | None]]) -> None:
  """Raises `InversionViewError` if two of `addresses` share an activation: then one of them would silently have no effect.

  Args:
    what: what each of them is, such as "edits"; for the message.
    addresses: (name, site, positions), where positions are int[B], or None for all of them; traced ones are not compared.
  """
  for i, (name, site, at) in enumerate(addresses):
    for other_name, other_site, other_at in addresses[:i]:
      if residual(site) != residual(other_site) or is_traced(at, other_at):
        continue
      if at is None or other_at is None or (np.asarray(at) == np.asarray(other_at)).any():
        names = " and ".join(dict.fromkeys((other_name, name)))
        raise InversionViewError(
          f"two {what} of the same activation, {names}: one of them would have no effect; keep one"
        )


def refuse_overwritten_edits(target: "Target", edits: Sequence[Edit], resolved: Sequence[SiteEdit], rows: Rows) -> None:
  """Raises `InversionViewError` if an edit has no effect because another replaces all that it reaches; traced positions are not looked at."""
  if len(edits) < 2 or rows.padding is None or is_traced(*(edit.position for edit in resolved)):
    return
  addresses = [
    (target.site(edit.site).short, target.site(edit.site), None if made.position is None else np.asarray(made.position))
    for edit, made in zip(edits, resolved, strict=True)
  ]
  refuse_overwritten("edits", addresses, np.ones((1, len(addresses)), bool), ~rows.padding, target.config)
