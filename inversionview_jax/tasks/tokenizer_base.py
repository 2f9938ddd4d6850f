"""The interface of tokenizers, and what all of them do in the same way: rows of token ids with BOS, EOS and padding.

Shapes: B texts, T tokens.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from inversionview_jax.errors import InversionViewError

BOS, EOS, PAD = "<BOS>", "<EOS>", "<PAD>"


class Tokenizer(Protocol):
  """The interface of the tokenizers; the ids of BOS, EOS and PAD may be the same."""

  @property
  def vocab_size(self) -> int: ...

  @property
  def bos_id(self) -> int: ...

  @property
  def eos_id(self) -> int: ...

  @property
  def pad_id(self) -> int: ...

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS and EOS; raises `InversionViewError` for a character or token outside the vocabulary."""
    ...

  def encode_batch(self, texts: Sequence[str], length: int | None = None, eos: bool = False) -> np.ndarray:
    """Token ids of texts, int32[B, T]; see `Batches.encode_batch`."""
    ...

  def padding(self, tokens: npt.ArrayLike) -> np.ndarray:
    """int[B, T] -> bool[B, T]: which tokens are padding; see `Batches.padding`."""
    ...

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, specials as "<BOS>", "<EOS>", "<PAD>"."""
    ...

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    ...

  def describe(self) -> dict:
    """Plain data from which `from_description` makes the same tokenizer; two tokenizers are the same iff these are equal."""
    ...


def encode_with_bos(tokenizer: Tokenizer, text: str) -> list[int]:
  """Token ids of a text behind one BOS: its own, if the text begins with BOS spelled out, as chat prompts do.

  Without any where the tokenizer's attribute `prepends_bos` is False: of a model that was trained without.
  """
  ids = tokenizer.encode(text)
  if not getattr(tokenizer, "prepends_bos", True):
    return ids
  return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def pad_rows(
  rows: Sequence[Sequence[int]], pad_id: int, length: int | None = None, dtype: npt.DTypeLike = np.int32
) -> tuple[np.ndarray, np.ndarray]:
  """Rows of token ids, padded behind -> int[B, T] and their lengths, int[B]; T by default the longest."""
  lengths = np.array([len(row) for row in rows], np.int64)
  out = np.full((len(rows), max(lengths, default=0) if length is None else length), pad_id, dtype)
  for padded, row in zip(out, rows, strict=True):
    padded[: len(row)] = row
  return out, lengths


def strings_of(tokenizer: Tokenizer, ids: Sequence[int], piece: Callable[[int], str]) -> list[str]:
  """The text of each token by itself: of special ones "<BOS>", "<EOS>", "<PAD>", of others what `piece` gives.

  An id of more than one special token is BOS in front, EOS after that, and PAD after EOS at the end.
  """
  ids = [int(i) for i in ids]
  padding = tokenizer.padding([ids])[0] if ids else []
  names = {tokenizer.pad_id: PAD, tokenizer.bos_id: BOS, tokenizer.eos_id: EOS}
  out = []
  for column, token in enumerate(ids):
    if token not in names:
      out.append(piece(token))
    elif column == 0 and token == tokenizer.bos_id:
      out.append(BOS)
    else:
      out.append(PAD if padding[column] else names[token])
  return out


class Batches:
  """The methods that are the same for all tokenizers."""

  def encode_batch(self: Tokenizer, texts: Sequence[str], length: int | None = None, eos: bool = False) -> np.ndarray:
    """Token ids int32[B, T] of texts, with one BOS in front (`encode_with_bos`) and PAD up to `length`.

    Args:
      texts: B of them.
      length: T; by default the longest text's.
      eos: whether EOS follows each text, as in a task's inputs; without it the logits at the last token predict what follows.

    Raises:
      InversionViewError: a character outside the vocabulary, or a text that does not fit into `length`.
    """
    if isinstance(texts, str):
      raise InversionViewError(f"encode_batch takes a list of texts, not one text: write [{texts!r}]")
    rows = [[*encode_with_bos(self, text), *([self.eos_id] if eos else [])] for text in texts]
    longest = max(map(len, rows), default=0)
    length = longest if length is None else length
    if longest > length:
      text, extra = texts[max(range(len(rows)), key=lambda i: len(rows[i]))], 1 + eos
      raise InversionViewError(
        f"text {text!r} has {longest - extra} tokens; the model takes at most {length - extra} "
        f"(besides BOS{' and EOS' if eos else ''})"
      )
    return pad_rows(rows, self.pad_id, length)[0]

  def padding(self: Tokenizer, tokens: npt.ArrayLike) -> np.ndarray:
    """int[B, T] -> bool[B, T]: which tokens are padding, by their position, since PAD may have the id of BOS or EOS.

    Every PAD at the end of a row: but the first of them where it is EOS, and never the first token of a row where it is BOS. Elsewhere a PAD
    is a token of the text, in which it was spelled out. Where PAD is not BOS, every PAD in front of a text too.
    """
    tokens = np.asarray(tokens)
    pad = tokens == self.pad_id
    out = np.cumprod(pad[:, ::-1], axis=1)[:, ::-1].astype(bool)
    if self.pad_id == self.eos_id:
      out &= np.pad(out, ((0, 0), (1, 0)))[:, :-1]
    if self.pad_id == self.bos_id:
      out[:, :1] = False
    else:
      out |= np.cumprod(pad, axis=1).astype(bool) & ~pad.all(axis=1, keepdims=True)
    return out
