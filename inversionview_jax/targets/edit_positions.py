"""Positions of an edit: an index, a label, a slice, a list or an array -> cells of the rows.

Shapes: B rows, T tokens, P positions of each row.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.targets.arrays import one_line, to_array
from inversionview_jax.targets.inputs import Rows
from inversionview_jax.targets.positions import is_traced, label_positions

if TYPE_CHECKING:
  from inversionview_jax.targets.target import Target


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
  """Where an edit is.

  Attributes:
    index: int32[B], one position of each row; int32[B, P], several; None for all positions, or for as many as a slice has in each row.
    mask: bool[B, T], the positions of a slice that has another number of them in some rows; None elsewhere.
    per_row: whether positions were given for these rows, and mean nothing in others.
  """

  index: Any = None
  mask: Any = None
  per_row: bool = False

  @property
  def single(self) -> bool:
    return self.index is not None and self.index.ndim == 1

  @property
  def several(self) -> bool:
    return self.index is not None and self.index.ndim == 2

  def address(self, length: int) -> Any:
    """int[B], bool[B, T], or None for all positions: as `refuse_overlap` compares them."""
    if self.index is None or self.single:
      return self.index if self.mask is None else self.mask
    return in_cells(self.index, length)


def in_cells(index: Any, length: int) -> Any:
  """int[B, P] -> bool[B, T]."""
  xp = jnp if is_traced(index) else np
  return (xp.arange(length) == index[..., None]).any(axis=1)


def resolve_cells(target: "Target", site: Site, given: Any, rows: Rows) -> Cells:
  """The cells of a position as `Edit` takes it; raises `InversionViewError` if it is none, out of range, on padding or ambiguous."""
  batch = len(rows.tokens)
  given = to_array(given)
  if given is None:
    return Cells()
  if isinstance(given, slice):
    return _of_slice(site, given, rows)
  if isinstance(given, range):
    given = list(given)
  if isinstance(given, list | tuple):
    if any(isinstance(one, list | tuple | np.ndarray) for one in given):
      given = _array(site, given, batch)
    else:
      return _of_list(target, site, list(given), rows)
  if isinstance(given, str):
    return Cells(label_positions(target, rows.tokens, given))
  index = given if is_traced(given) else _array(site, given, batch)
  if index.ndim == 2 and len(index) == 1:
    return _several(site, [_checked(site, index[0, p], rows) for p in range(index.shape[1])], False)
  if index.ndim == 2 and len(index) == batch and index.shape[1]:
    return _several(site, [_checked(site, index[:, p], rows) for p in range(index.shape[1])], True)
  if index.shape not in ((), (batch,)):
    raise _no_position(site, given, batch)
  return Cells(_checked(site, index, rows), per_row=index.ndim == 1)


def _no_position(site, given, batch):
  return InversionViewError(
    f"the edit of {site} needs one position, one per row ({batch}), a list or slice of positions, or [B, P] of them; got {one_line(given)}"
  )


def _array(site: Site, given: Any, batch: int) -> Any:
  try:
    index = np.asarray(given)
  except ValueError:  # lists of different lengths
    raise _no_position(site, given, batch) from None
  if not np.issubdtype(index.dtype, np.integer):
    raise _no_position(site, given, batch)
  return index


def _of_list(target: "Target", site: Site, given: list, rows: Rows) -> Cells:
  batch = len(rows.tokens)
  if not given:
    raise InversionViewError(f"the edit of {site} touches nothing: no positions are given")
  if len(given) == batch > 1 and not any(isinstance(one, str) for one in given):
    raise InversionViewError(
      f"position {one_line(given)} has as many numbers as there are rows ({batch}): write {one_line([given])} for these positions in every row, "
      f"or numpy.array({one_line(given)}) for one in each row"
    )
  columns = [
    label_positions(target, rows.tokens, one)
    if isinstance(one, str)
    else _checked(site, one if is_traced(one) else _array(site, one, batch), rows)
    for one in given
  ]
  return _several(site, columns, False)


def _several(site: Site, columns: list, per_row: bool) -> Cells:
  if is_traced(*columns):
    return Cells(jnp.stack(columns, axis=1), per_row=per_row)
  index = np.stack(columns, axis=1).astype(np.int32)
  ordered = np.sort(index, axis=1)
  if (twice := (ordered[:, 1:] == ordered[:, :-1])).any():
    row = int(np.argmax(twice.any(axis=1)))
    raise InversionViewError(
      f"the edit of {site} has position {int(ordered[row, 1:][twice[row]][0])} twice in row {row}; give it once"
    )
  return Cells(index, per_row=per_row)


def _of_slice(site: Site, given: slice, rows: Rows) -> Cells:
  """The positions of a slice of each text; where its rows differ in length, they may be different ones."""
  batch, length = rows.tokens.shape
  if is_traced(rows.tokens, rows.from_end):
    if any(end is not None and end < 0 for end in (given.start, given.stop)):
      raise InversionViewError(f"the edit of {site}: a slice from the end needs token ids that are known; give indices")
    ends = np.full(batch, length)
  else:
    ends = np.asarray(rows.lengths)
  mask = np.zeros((batch, length), bool)
  for row, end in enumerate(ends):
    mask[row, range(*given.indices(int(end)))] = True
  if not mask.any(axis=1).all():
    row = int(np.argmin(mask.any(axis=1)))
    raise InversionViewError(f"the edit of {site} touches nothing in row {row}: no position of it is in {given}")
  if (mask == mask[:1]).all():
    return Cells(np.broadcast_to(np.flatnonzero(mask[0]).astype(np.int32), (batch, int(mask[0].sum()))))
  return Cells(mask=mask)


def _checked(site: Site, position: Any, rows: Rows) -> Any:
  """int32[B], not negative, of one index or one per row."""
  tokens, lengths = rows.tokens, rows.from_end
  batch, length = tokens.shape
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
