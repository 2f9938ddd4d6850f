"""Contrast pairs: a clean and a corrupted input that differ in a chosen respect, with the tokens predicted from them.

Shapes: B batch, T tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

# Draws for an input before it is left out as one without such a contrast. The rarest contrast of these tasks accepts one draw in 25, and
# .96^300 is 5e-6.
ROUNDS = 300
VARY = ("only", "rest")  # what differs in pairs that test a feature: it alone, or everything but it


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Pairs of inputs for activation patching.

  Attributes:
    index: int64[B], indices of the clean inputs.
    clean, corrupted: int32[B, T].
    clean_at, corrupted_at: int32[B], the position from which the answer is predicted.
  """

  index: np.ndarray
  clean: np.ndarray
  corrupted: np.ndarray
  clean_at: np.ndarray
  corrupted_at: np.ndarray

  def __len__(self) -> int:
    return len(self.index)

  @property
  def answer(self) -> np.ndarray:
    """int32[B]: the token that follows `clean_at`."""
    return self.clean[np.arange(len(self)), self.clean_at + 1]

  @property
  def foil(self) -> np.ndarray:
    """int32[B]: the token that follows `corrupted_at`; the same as `answer` in pairs that agree in it."""
    return self.corrupted[np.arange(len(self)), self.corrupted_at + 1]

  def __getitem__(self, rows) -> "Pairs":
    return Pairs(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


def joined(parts: Sequence[Pairs]) -> Pairs:
  """The pairs of all parts, concatenated."""
  return Pairs(**{f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in dataclasses.fields(Pairs)})


def redraw(
  count: int,
  propose: Callable[[np.ndarray, int], np.ndarray],
  accept: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
  """Rejection sampling: one accepted draw for every row, all rows at once.

  Args:
    count: B, the number of rows.
    propose: (rows int64[R], attempt) -> array[R, ...], a draw for each of these rows.
    accept: (rows, proposals) -> bool[R].

  Returns:
    array[B, ...] of the accepted draws, and bool[B]: False where none of `ROUNDS` draws was accepted.
  """
  left = np.arange(count)
  drawn = np.zeros((count, *propose(left[:0], 0).shape[1:]), np.int64)
  for attempt in range(ROUNDS):
    if not len(left):
      break
    proposed = propose(left, attempt)
    accepted = accept(left, proposed)
    drawn[left[accepted]] = proposed[accepted]
    left = left[~accepted]
  made = np.ones(count, bool)
  made[left] = False
  return drawn, made
