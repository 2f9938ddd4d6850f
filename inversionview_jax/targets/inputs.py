"""The inputs of a run as arrays: token ids, where each text ends, what is padding, and an attention mask where one is needed.

What is padding is known where texts are encoded, lists of ids differ in length, or an attention mask is given. In an array of token ids without
a mask it is recognised by position: PAD at the end of a row. PAD in front of a text, which would move its positions, is refused.

Shapes: B rows, T tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets.arrays import is_ragged, to_array
from inversionview_jax.targets.positions import is_traced, text_lengths
from inversionview_jax.tasks.tokenizer_base import Tokenizer, encode_with_bos, pad_rows

if TYPE_CHECKING:
  from inversionview_jax.targets.target import Target

Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
  """Token ids, and what is known of them.

  Attributes:
    tokens: int32[B, T].
    lengths: int[B], the index behind the last token of each text, where end-of-sequence and padding begin.
    padding: bool[B, T], tokens that are padding; None where tokens are traced.
    from_end: int[B], from where a negative index of an edit counts: the end of each text, or of the row where an array of ids has no mask.
    mask: bool[B, T], the tokens that are attended to, where some padding is in front of a text or inside it, or attention is in both directions;
      None elsewhere.
  """

  tokens: Any  # an array of NumPy; of JAX where it is traced
  lengths: Array
  padding: np.ndarray | None
  from_end: Array
  mask: Array | None = None

  def __len__(self) -> int:
    return len(self.tokens)


def resolve_inputs(target: "Target", inputs: Any, mask: Any = None) -> Rows:
  """Texts or token ids as `Rows`.

  Args:
    target: whose tokens.
    inputs: B texts (or one); int[B, T]; or a list of B lists of ids, which may differ in length. `Rows` are returned as they are.
    mask: bool or 0 and 1, [B, T], of token ids: 1 for the tokens that are attended to.

  Raises:
    InversionViewError: what is neither, or does not fit the target; a mask with texts, of another shape, or without a token in some row;
      padding in front of a text and no mask.
  """
  if isinstance(inputs, Rows):
    return inputs
  if is_text(inputs):
    if mask is not None:
      raise InversionViewError("mask= belongs to token ids; texts are encoded without padding in front of them")
    return _of_texts(target, [inputs] if isinstance(inputs, str) else list(inputs))
  if is_ragged(inputs):
    if mask is not None:
      raise InversionViewError("mask= belongs to token ids of one length, [B, T]; leave it out, or pad the rows")
    return _of_lists(target, inputs)
  tokens = target.check_tokens(inputs)
  if mask is not None:
    return _of_mask(tokens, mask, target.config.causal)
  from_end = np.full(len(tokens), tokens.shape[1])
  if is_traced(tokens):
    return Rows(tokens, text_lengths(target.tokenizer, tokens), None, from_end)
  refuse_left_padding(target.tokenizer, tokens)
  padding = np.zeros(tokens.shape, bool) if target.tokenizer is None else target.tokenizer.padding(tokens)
  return Rows(tokens, text_lengths(target.tokenizer, tokens), padding, from_end)


def _of_texts(target: "Target", texts: list[str]) -> Rows:
  if target.tokenizer is None:
    raise InversionViewError("this target came without a tokenizer: give token ids, int[N, T]")
  ids = [encode_with_bos(target.tokenizer, text) for text in texts]
  tokens, lengths = pad_rows(ids, target.tokenizer.pad_id)
  return _padded_behind(target, target.check_tokens(tokens), lengths)


def _padded_behind(target: "Target", tokens: np.ndarray, lengths: np.ndarray) -> Rows:
  """Rows with padding behind the texts, which needs a mask only where attention is not causal."""
  padding = np.arange(tokens.shape[1]) >= lengths[:, None]
  mask = None if target.config.causal or not padding.any() else ~padding
  return Rows(tokens, lengths, padding, lengths, mask)


def _of_lists(target: "Target", rows: Any) -> Rows:
  """Of lists of ids of different lengths, all of which are tokens of a text; padded behind with PAD, or 0 without a tokenizer."""
  arrays = [np.asarray(to_array(row)) for row in rows]
  for number, row in enumerate(arrays):
    if not row.size or not np.issubdtype(row.dtype, np.integer):
      raise InversionViewError(
        f"row {number} of the token ids is empty or holds something else than whole numbers: {row.dtype}{list(row.shape)}"
      )
  pad_id = 0 if target.tokenizer is None else target.tokenizer.pad_id
  tokens, lengths = pad_rows([row.tolist() for row in arrays], pad_id, dtype=np.int64)
  return _padded_behind(target, target.check_tokens(tokens), lengths)


def _of_mask(tokens: Array, given: Any, causal: bool) -> Rows:
  given = to_array(given)
  mask: Any = given if is_traced(given) else np.asarray(given)
  if mask.shape != tokens.shape:
    raise InversionViewError(f"mask has the shape {list(mask.shape)}; the tokens have {list(tokens.shape)}")
  if is_traced(mask):
    mask = mask != 0
  else:
    if not (mask.dtype == bool or np.issubdtype(mask.dtype, np.number) and np.isin(mask, (0, 1)).all()):
      raise InversionViewError(
        "mask must hold 1 (or True) for tokens that are attended to and 0 for padding, nothing else"
      )
    mask = mask.astype(bool)
    if not mask.any(axis=1).all():
      raise InversionViewError(f"row {int(np.argmin(mask.any(axis=1)))} of the mask has no token that is attended to")
  xp = jnp if is_traced(mask) else np
  lengths = mask.shape[1] - xp.argmax(mask[:, ::-1], axis=1)
  if is_traced(mask):
    return Rows(tokens, lengths, None, lengths, mask)
  # Padding behind the texts alone needs no mask where attention is causal.
  needed = bool((np.diff(mask.astype(np.int8), axis=1) > 0).any() if causal else not mask.all())
  return Rows(tokens, lengths, ~mask, lengths, mask if needed else None)


def refuse_left_padding(tokenizer: Tokenizer | None, tokens: np.ndarray) -> None:
  """Raises `InversionViewError` for token ids int[B, T] with PAD in front of a text, whose positions would be wrong.

  Where PAD is BOS too, one of them in front is BOS; two are padding, and so is one if other rows begin without it.
  """
  if tokenizer is None:
    return
  pad = tokens == tokenizer.pad_id
  in_front = np.cumprod(pad, axis=1).sum(axis=1)
  in_front[in_front == tokens.shape[1]] = 0  # a row of nothing else has no text
  allowed = int(tokenizer.pad_id == tokenizer.bos_id)
  wrong = in_front > allowed
  if allowed and not pad[:, 0].all():
    wrong |= in_front == 1
  if wrong.any():
    raise InversionViewError(
      f"row {int(np.argmax(wrong))} begins with padding (PAD, id {tokenizer.pad_id}), which would move the positions of its text: "
      "give mask=, 1 for tokens and 0 for padding, to Target.run, or pad behind the texts"
    )


def is_text(inputs: object) -> bool:
  """Whether these are texts: a string, or a list or array of strings."""
  if isinstance(inputs, str):
    return True
  if isinstance(inputs, np.ndarray):
    return inputs.dtype.kind in "UT" or (inputs.dtype == object and all(isinstance(x, str) for x in inputs.flat))
  return isinstance(inputs, Sequence) and len(inputs) > 0 and all(isinstance(text, str) for text in inputs)


def encode(target: "Target", texts: str | Sequence[str]) -> np.ndarray:
  """One text or B of them -> int32[B, T] with BOS and without EOS, padded behind."""
  return cast(np.ndarray, _of_texts(target, [texts] if isinstance(texts, str) else list(texts)).tokens)
