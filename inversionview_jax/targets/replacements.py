"""What "mean" and "resample" put in place of an activation: its mean over texts, or what it is in another of them.

Shapes: B rows, N texts of a data set, T tokens, P positions of each row, ... the activation at one position.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import texts_that_fit
from inversionview_jax.sites import Site
from inversionview_jax.targets.edit_positions import Cells, in_cells, resolve_cells
from inversionview_jax.targets.inputs import Rows, resolve_inputs
from inversionview_jax.targets.positions import is_traced

if TYPE_CHECKING:
  from inversionview_jax.targets.target import Target

_HEADS_FIRST = ("scores", "pattern")


def of_inputs(target: "Target", placed: Sequence[tuple[Site, Any, Cells]], rows: Rows) -> list[Any]:
  """The values of edits by "mean" and "resample", None of others.

  Args:
    target: that is run.
    placed: the site, edit and cells of each.
    rows: the inputs.

  Returns:
    float32[B, ...] of a single position, float32[B, P, ...] of several, float32[B, T, ...] of all or of a mask.

  Raises:
    InversionViewError: a value that is neither texts nor token ids, texts that lack a position, or a single text that is to be resampled.
  """
  sources: list[tuple[Any, Rows, list[Site]]] = []  # (as given, its rows, sites to capture)
  which: list[int | None] = []
  for site, edit, _ in placed:
    if edit.mode not in ("mean", "resample"):
      which.append(None)
      continue
    number = next((i for i, (given, _, _) in enumerate(sources) if given is edit.value), None)
    if number is None:
      number = len(sources)
      sources.append((edit.value, rows if edit.value is None else _texts(target, site, edit), []))
    sources[number][2].append(site)
    which.append(number)
  activations = [_captured(target, texts, list(dict.fromkeys(wanted))) for _, texts, wanted in sources]
  out: list[Any] = []
  for (site, edit, cells), number in zip(placed, which, strict=True):
    if number is None:
      out.append(None)
      continue
    texts, x = sources[number][1], activations[number][site]
    make = _mean if edit.mode == "mean" else _resampled
    out.append(make(target, site, edit, cells, rows, texts, x))
  return out


def _texts(target: "Target", site: Site, edit: Any) -> Rows:
  try:
    return resolve_inputs(target, edit.value)
  except InversionViewError as error:
    raise InversionViewError(
      f"the edit of {site} by {edit.mode!r} takes texts or token ids as its value, or none for these inputs: {error}"
    ) from None


def _captured(target: "Target", rows: Rows, wanted: list[Site]) -> dict[Site, Any]:
  """float32[N, T, ...] of each site, with positions in front of heads."""
  size = len(rows) if is_traced(rows.tokens) else texts_that_fit(target.config, rows.tokens.shape[1], 2 * len(wanted))
  parts = []
  for start in range(0, len(rows), size):
    part = slice(start, start + size)
    parts.append(target.captured(rows.tokens[part], wanted, None if rows.mask is None else rows.mask[part]))
  joined = {site: jnp.concatenate([part[site] for part in parts]) for site in wanted}
  return {site: x.swapaxes(1, 2) if site.kind in _HEADS_FIRST else x for site, x in joined.items()}


def _source_cells(target: "Target", site: Site, edit: Any, cells: Cells, rows: Rows, texts: Rows) -> Cells:
  """The cells of the edit's position in the texts that are read."""
  if texts is rows:
    return cells
  if cells.per_row:
    raise InversionViewError(
      f"the edit of {site}: positions of each row mean nothing in the texts of a data set; give an index or a label"
    )
  return resolve_cells(target, site, edit.position, texts)


def _refuse_other_keys(site: Site, rows: Rows, texts: Rows) -> None:
  if site.kind.endswith(("scores", "pattern")) and texts.tokens.shape[1] != rows.tokens.shape[1]:
    raise InversionViewError(
      f"the edit of {site} needs texts of the same length: these have {texts.tokens.shape[1]} tokens, the inputs {rows.tokens.shape[1]}"
    )


def _at(x: Any, index: Any) -> Any:
  """float[N, T, ...] at int[N] or int[N, P] -> float[N, ...] or float[N, P, ...]."""
  row = jnp.arange(len(x))
  return x[row if index.ndim == 1 else row[:, None], index]


def _mean(target, site: Site, edit: Any, cells: Cells, rows: Rows, texts: Rows, x: Any) -> Any:
  _refuse_other_keys(site, rows, texts)
  batch, length = rows.tokens.shape
  if cells.index is not None:
    mean = _at(x, _source_cells(target, site, edit, cells, rows, texts).index).mean(axis=0)
    return jnp.broadcast_to(mean, (batch, *mean.shape))
  known = np.ones(texts.tokens.shape, bool) if texts.padding is None else ~texts.padding
  counted = known.sum(axis=0)  # [T'], texts that have the position
  needed = _needed(cells, rows)[:, : counted.size] & (counted == 0), _needed(cells, rows)[:, counted.size :]
  if needed[0].any() or needed[1].any():
    raise InversionViewError(
      f"the edit of {site}: no text that the mean is taken of has all positions of the inputs; give longer texts, or a position"
    )
  weights = (known / np.maximum(counted, 1)).astype(np.float32).reshape(*known.shape, *(1,) * (x.ndim - 2))
  mean = (jnp.where(weights > 0, x, 0) * weights).sum(axis=0)[:length]
  mean = jnp.pad(mean, ((0, length - len(mean)), *((0, 0),) * (mean.ndim - 1)))
  return jnp.broadcast_to(mean, (batch, *mean.shape))


def _needed(cells: Cells, rows: Rows) -> np.ndarray:
  """bool[B, T]: the positions that are edited, without padding."""
  mask = np.ones(rows.tokens.shape, bool) if cells.mask is None else cells.mask
  return mask if rows.padding is None else mask & ~rows.padding


def _resampled(target, site: Site, edit: Any, cells: Cells, rows: Rows, texts: Rows, x: Any) -> Any:
  _refuse_other_keys(site, rows, texts)
  batch, length = rows.tokens.shape
  row = drawn_rows(batch, None if texts is rows else len(texts), edit.seed, f"the edit of {site}")
  if cells.index is not None:
    source = _source_cells(target, site, edit, cells, rows, texts).index
    if cells.per_row and texts.padding is not None and not is_traced(source):  # this row's positions, in the other text
      wrong = texts.padding[row] & (in_cells(source.reshape(batch, -1), length))
      if wrong.any():
        raise InversionViewError(
          f"the edit of {site}: the text drawn for row {int(np.argmax(wrong.any(axis=1)))} is too short for its position"
        )
    return _at(x[row], source if cells.per_row else source[row])
  if texts.padding is not None:
    have = np.zeros((batch, length), bool)
    width = min(length, texts.tokens.shape[1])
    have[:, :width] = ~texts.padding[row][:, :width]
    if (short := (_needed(cells, rows) & ~have).any(axis=1)).any():
      raise InversionViewError(
        f"the edit of {site}: the text drawn for row {int(np.argmax(short))} is shorter than it; resample at a position, or from texts of the same length"
      )
  out = x[row][:, :length]
  return jnp.pad(out, ((0, 0), (0, length - out.shape[1]), *((0, 0),) * (out.ndim - 2)))


def drawn_rows(batch: int, others: int | None, seed: int, what: str) -> np.ndarray:
  """int[B]: another row for each of B rows, never itself; or one of so many `others`, each as often as the rest."""
  rng = np.random.default_rng(seed)
  if others is not None:
    return np.resize(rng.permutation(others), batch)
  if batch < 2:
    raise InversionViewError(
      f"{what} resamples from other inputs, and there is one only; give other texts as its value"
    )
  order, row = rng.permutation(batch), np.empty(batch, int)
  row[order] = np.roll(order, 1)  # one cycle, so that none is drawn for itself
  return row
