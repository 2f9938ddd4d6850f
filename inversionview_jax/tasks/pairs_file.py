"""Contrast pairs of the user's own for patching: a .jsonl with "clean", "corrupted", "answer" and "foil" on each line.

    {"clean": "The capital of France is", "corrupted": "The capital of Italy is", "answer": "Paris", "foil": "Rome"}

Shapes: N pairs, T tokens.
"""

import dataclasses
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import sources
from inversionview_jax.tasks.tokenizer_base import encode_with_bos, pad_rows

FIELDS = ("clean", "corrupted", "answer", "foil")


@dataclasses.dataclass(frozen=True)
class TextPairs:
  """Pairs of texts, compared by the prediction from their last token.

  Attributes:
    clean, corrupted: int32[N, T].
    clean_at, corrupted_at: int32[N], the last token of each text.
    answer, foil: int32[N], the first token of each answer after a space.
    where: file and line of each pair, for error messages.
  """

  clean: np.ndarray
  corrupted: np.ndarray
  clean_at: np.ndarray
  corrupted_at: np.ndarray
  answer: np.ndarray
  foil: np.ndarray
  where: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.clean)

  def refuse_unequal(self, what: str) -> None:
    """Raises `InversionViewError` if the texts of a pair differ in length, so that `what` is not the same position in both."""
    unequal = self.clean_at != self.corrupted_at
    if unequal.any():
      i = int(np.argmax(unequal))
      raise InversionViewError(
        f"{self.where[i]}: clean has {self.clean_at[i]} tokens and corrupted {self.corrupted_at[i]}, so {what} is not the same position in "
        "both; make them equally long, or count positions from the end (-1 is the last token)"
      )


def read(path: str, target: Any, most: int) -> TextPairs:
  """The first `most` pairs of a file.

  Raises:
    InversionViewError: no such file; a line without one of the four texts, or whose answer and foil begin with the same token; texts longer
      than the context.
  """
  t = target.require_tokenizer()
  pairs: list[tuple] = []
  for where, record in sources.records(path):
    if len(pairs) == most:
      break
    values = [_text(record, name, where) for name in FIELDS]
    ids = [encode_with_bos(t, value) for value in values[:2]] + [t.encode(f" {value.strip()}") for value in values[2:]]
    for name, one in zip(FIELDS[:2], ids, strict=False):
      if len(one) > target.config.n_ctx:
        raise InversionViewError(
          f"{where}: {name} has {len(one) - 1} tokens; the context of {target.name} takes {target.config.n_ctx - 1}"
        )
    if ids[2][0] == ids[3][0]:
      raise InversionViewError(
        f"{where}: answer {values[2]!r} and foil {values[3]!r} begin with the same token {t.strings(ids[2][:1])[0]!r}: there is no difference"
      )
    pairs.append((where, *ids))
  if not pairs:
    raise InversionViewError(f"{path} has no pairs")
  lines, clean_ids, corrupted_ids, answer_ids, foil_ids = zip(*pairs, strict=True)
  length = max(len(ids) for ids in (*clean_ids, *corrupted_ids))

  def rows(texts):
    out, lengths = pad_rows(texts, t.pad_id, length)
    return out, (lengths - 1).astype(np.int32)

  (clean, clean_at), (corrupted, corrupted_at) = rows(clean_ids), rows(corrupted_ids)
  answer, foil = (np.array([ids[0] for ids in texts], np.int32) for texts in (answer_ids, foil_ids))
  return TextPairs(clean, corrupted, clean_at, corrupted_at, answer, foil, lines)


def _text(record: object, name: str, where: str) -> str:
  """A field of a record, which must be text."""
  value = record.get(name) if isinstance(record, dict) else None
  if not isinstance(value, str) or not value.strip():
    raise InversionViewError(f"{where}: {name!r} is no text; a pair needs {', '.join(FIELDS)}")
  return value
