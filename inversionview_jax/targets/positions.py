"""Positions in rows of tokens: an index, a negative index, or a label of the target's task -> an index per row.

Shapes: B rows, T tokens.
"""

import operator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets.arrays import one_line, to_array
from inversionview_jax.tasks.tokenizers import Tokenizer

if TYPE_CHECKING:
  from inversionview_jax.targets.inputs import Rows
  from inversionview_jax.targets.target import Target

Position = int | str | np.ndarray | jax.Array


def is_traced(*arrays) -> bool:
  """Whether some of these have values that only a running program knows (under `jax.jit`, `grad`, `vmap`, ...)."""
  return any(isinstance(x, jax.core.Tracer) for x in arrays)


def text_lengths(tokenizer: Tokenizer | None, tokens: Any) -> Any:
  """int[B]: the index behind the last token of each text: of token ids, without PADs at the end and one EOS before them.

  T without a tokenizer, which would know them. BOS counts, also where its id is that of EOS or PAD: a text has at least one token.
  """
  length = tokens.shape[1]
  xp = jnp if is_traced(tokens) else np
  if tokenizer is None:
    return xp.full(len(tokens), length)
  used = tokens != tokenizer.pad_id
  ends = xp.where(used.any(axis=1), length - xp.argmax(used[:, ::-1], axis=1), 0)
  if tokenizer.pad_id != tokenizer.eos_id:
    last = xp.take_along_axis(tokens, xp.maximum(ends - 1, 0)[:, None], axis=1)[:, 0]
    ends = ends - (last == tokenizer.eos_id)
  return xp.maximum(ends, 1)


def resolve_positions(target: "Target", rows: "Rows", position: Any) -> np.ndarray:
  """int32[B]: a position in every row.

  Args:
    target: whose task knows the labels.
    rows: of tokens.
    position: an index, a negative index (from the last token of each text), a label of the target's task, or int[B], one per row.

  Raises:
    InversionViewError: out of range, on padding, or a label that a row does not have.
  """
  if isinstance(position, str):
    return label_positions(target, rows.tokens, position)
  lengths, count = np.asarray(rows.lengths), len(rows)
  position = to_array(position)
  is_index = not isinstance(position, bool) and hasattr(position, "__index__") and np.ndim(position) == 0
  if not is_index and not isinstance(position, np.ndarray | jax.Array | list | tuple):
    raise InversionViewError(
      f"position {one_line(position)} is neither an index, a label, nor an array of an index per input"
    )
  try:
    at = np.asarray(operator.index(position) if is_index else position)
  except (TypeError, ValueError):
    raise InversionViewError(
      f"positions must be one index or one per input ({count}), got {one_line(position)}"
    ) from None
  if at.shape not in ((), (count,)) or not np.issubdtype(at.dtype, np.integer):
    raise InversionViewError(f"positions must be one index or one per input ({count}), got {at.dtype}{list(at.shape)}")
  at = np.broadcast_to(at, count)
  wrong = (at < -lengths) | (at >= lengths)
  if wrong.any():
    row = int(np.argmax(wrong))
    raise InversionViewError(
      f"position {at[row]} is out of range: input {row} has the positions 0 to {lengths[row] - 1}"
    )
  return (at % lengths).astype(np.int32)


def label_positions(target: "Target", tokens, label: str) -> np.ndarray:
  """int32[B]: where a label of the target's task is in every row; raises `InversionViewError` if it is not in one of them."""
  task = target.resolve_task()
  if task is None:
    raise InversionViewError(
      f"position {label!r}: this target belongs to no task whose labels are known; give an index"
    )
  if is_traced(tokens):
    raise InversionViewError(f"position {label!r}: labels are looked up in token ids that are known; give an index")
  return task.positions(tokens, label)
