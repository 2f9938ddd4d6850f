"""Three-digit addition (paper, section 4.2): all a+b=c with a, b in 100..999, such as ``615+861=1476``."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import hashing
from inversionview_jax.tasks.addition_moves import SumMoves
from inversionview_jax.tasks.base import MIXTURES, Array, Mixture, Task, index_or_label
from inversionview_jax.tasks.contrast import VARY, Pairs, redraw
from inversionview_jax.tasks.grammar import holds
from inversionview_jax.tasks.moves import Move
from inversionview_jax.tasks.tokenizers import BOS, EOS, PAD, CharTokenizer

_SIDE = 900  # numbers from 100 to 999
# Label -> column.
_OPERANDS = {"F1": 1, "F2": 2, "F3": 3, "S1": 5, "S2": 6, "S3": 7}
_ANSWERS = {"A1": 9, "A2": 10, "A3": 11, "A4": 12}


class Addition(Task):
  """810,000 inputs "BOS a+b=c EOS PAD"; positions F1 F2 F3 + S1 S2 S3 = A1 A2 A3 A4."""

  name = "addition"
  tokenizer = CharTokenizer((*"0123456789", BOS, "+", "=", EOS, PAD))
  length = 14
  num_inputs = _SIDE * _SIDE
  enumerable = True
  epsilon = 0.1
  metric = "euclidean"
  dataset = True
  mixtures = {
    "broad": Mixture(((1.0, 0.0), (1.5, 0.05), (2.0, 0.1), (2.0, 0.3)), stratified=True),
    **MIXTURES,
  }
  about = (
    'An input is a sum of two three-digit numbers with its answer, such as "615+861=1476". Each character is a token. The digits of the first '
    "number are called F1 F2 F3, those of the second S1 S2 S3, those of the answer A1 A2 A3 A4, from left to right."
  )
  feature_names = {
    "F1": "hundreds of the first number",
    "F2": "tens of the first number",
    "F3": "ones of the first number",
    "S1": "hundreds of the second number",
    "S2": "tens of the second number",
    "S3": "ones of the second number",
    "A1": "first digit of the answer",
    "A2": "second digit of the answer",
    "A3": "third digit of the answer",
    "A4": "fourth digit of the answer, where it has one",
    "C1": "carry out of the hundreds, 0 or 1",
    "C2": "carry out of the tens, 0 or 1, with the carry of the ones",
    "C3": "carry out of the ones, 0 or 1",
    "length": "number of digits of the answer, 3 or 4",
  }
  position_names = {
    "+": "the plus sign",
    "=": "the equals sign, where A1 is predicted",
    "A1": "first digit of the answer; A2 is predicted here",
    "A2": "second digit of the answer; A3 is predicted here",
    "A3": "third digit of the answer; A4, or the end, is predicted here",
  }
  expressions = ("F1 + S1", "F2 + S2", "F3 + S3")

  @functools.cached_property
  def _sums(self) -> SumMoves:
    t = self.tokenizer
    plus, equals = t.encode("+=")
    return SumMoves((t.bos_id, int(plus), int(equals), t.eos_id, t.pad_id))

  @property
  def has_log_prior(self) -> bool:
    return super().has_log_prior and (self.inputs_of(Addition) or type(self).log_prior is not Addition.log_prior)

  def moves(self) -> tuple[Move, ...]:
    return self._sums.all() if self.inputs_of(Addition) else super().moves()

  def log_prior(self, tokens: Array) -> Array:
    return self._sums.log_prior(tokens, self.num_inputs) if self.inputs_of(Addition) else super().log_prior(tokens)

  def tokens(self, index: np.ndarray) -> np.ndarray:
    index = np.asarray(index)
    first, second = 100 + index // _SIDE, 100 + index % _SIDE
    return self.tokens_of(first, second)

  def index(self, tokens: np.ndarray) -> np.ndarray:
    if not self.inputs_of(Addition):
      return super().index(tokens)
    tokens = np.asarray(tokens)
    scales = np.array([100, 10, 1])
    first, second = tokens[:, 1:4] @ scales - 100, tokens[:, 5:8] @ scales - 100
    near = np.clip(first, 0, _SIDE - 1) * _SIDE + np.clip(second, 0, _SIDE - 1)
    return np.where((self.tokens(near) == tokens).all(axis=1), near, -1)

  def tokens_of(self, first: npt.ArrayLike, second: npt.ArrayLike, answer: npt.ArrayLike | None = None) -> np.ndarray:
    """The inputs with these operands, int[B] and int[B] -> int32[B, 14]; `answer`, int[B], replaces the sum where given."""
    t = self.tokenizer
    first, second = np.asarray(first), np.asarray(second)
    answer = first + second if answer is None else np.asarray(answer)
    out = np.full((len(first), self.length), t.pad_id, np.int32)
    out[:, 0], out[:, 4], out[:, 8] = t.bos_id, t.encode("+")[0], t.encode("=")[0]
    for column, scale in enumerate((100, 10, 1)):
      out[:, 1 + column] = first // scale % 10
      out[:, 5 + column] = second // scale % 10
    long = answer >= 1000
    for rows, scales in ((long, (1000, 100, 10, 1)), (~long, (100, 10, 1))):
      for column, scale in enumerate(scales):
        out[rows, 9 + column] = answer[rows] // scale % 10
      out[rows, 9 + len(scales)] = t.eos_id
    return out

  def loss_mask(self, tokens: Array) -> Array:
    t = self.tokenizer
    return (tokens != t.pad_id) & (tokens != t.bos_id)

  def answer_mask(self, tokens: Array) -> Array:
    xp = tokens.__array_namespace__()
    in_answer = xp.arange(tokens.shape[1]) > 8
    return in_answer[None, :] & (tokens != self.tokenizer.pad_id)

  def groups(self, tokens: Array) -> dict[str, Array]:
    # The hardest inputs: the carry into the tens decides the hundreds too.
    return {"tens_sum_9": tokens[:, 2] + tokens[:, 6] == 9}

  def labels(self, tokens: Sequence[int]) -> list[str]:
    plus, equals = self.tokenizer.encode("+=")
    labels, part, digit = [], "F", 0
    for token in map(int, tokens):
      digit += 1
      if token in (plus, equals):
        labels.append("+" if token == plus else "=")
        part, digit = ("S" if token == plus else "A"), 0
      elif token < 10:
        labels.append(f"{part}{digit}")
      else:
        labels.append(self.tokenizer.vocabulary[token])
        digit = 0
    return labels

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The features of addition, in the paper's names (section 4.2).

    F1 F2 F3, S1 S2 S3 and A1 A2 A3 A4 are digits as they are written, whether the answer is right or not. C1, C2 and C3 are the operands'
    carries out of the hundreds, tens and ones: 0 or 1. "length" is the number of digits of the written answer, 3 or 4.
    """
    t = self.tokenizer
    tokens = np.asarray(tokens)
    columns = np.arange(max(tokens.shape[1], self.length))
    rows = np.full((len(tokens), len(columns)), t.pad_id)
    rows[:, : tokens.shape[1]] = tokens
    form = np.where((rows >= 0) & (rows < 10), ord("d"), 0)
    for token, sign in ((t.bos_id, "B"), (t.encode("+")[0], "+"), (t.encode("=")[0], "=")):
      form[rows == token] = ord(sign)
    over = (rows == t.eos_id) | (rows == t.pad_id)
    end = np.where(over.any(axis=1), over.argmax(axis=1), len(columns))[:, None]
    expected = np.zeros(len(columns), int)
    expected[:13] = [ord(sign) for sign in "Bddd+ddd=dddd"]
    well = ((form == expected) | (columns >= end)).all(axis=1) & ((rows == t.pad_id) | (columns <= end)).all(axis=1)
    digit = np.where(well[:, None] & (form == ord("d")), rows, -1).astype(np.int32)
    features = {name: digit[:, column] for name, column in (_OPERANDS | _ANSWERS).items()}
    both = digit[:, 7] >= 0
    carry = np.zeros(len(rows), np.int32)
    for place in (3, 2, 1):
      carry = (digit[:, place] + digit[:, 4 + place] + carry >= 10).astype(np.int32)
      features[f"C{place}"] = np.where(both, carry, -1).astype(np.int32)
    length = (digit[:, 9:13] >= 0).sum(axis=1)
    features["length"] = np.where(length >= 3, length, -1).astype(np.int32)
    return features

  def contrast(  # type: ignore[override]
    self,
    index: np.ndarray,
    seed: int = 0,
    *,
    change: Sequence[str] = ("F1", "S1"),
    predict: str = "A1",
    where: str = "",
    contrast_where: str = "",
  ) -> Pairs:
    """Pairs that differ in given operand digits and in the predicted token (paper, section 4.2 and its appendix on patching).

    Args:
      index: int64[B], inputs of the task.
      seed: of the draws, which are functions of it and of the index.
      change: the operand digits to redraw, uniformly from 0 to 9 (the corrupted input may have a leading zero), until the predicted token
        differs; the answer is recomputed.
      predict: the token that must differ: A1, A2, A3, or A4, which is the end of the text after an answer of three digits.
      where, contrast_where: conditions on the features of the clean and of the corrupted input (`grammar.holds`).

    Returns:
      `Pairs`, without the inputs that do not fulfil `where` or have no such contrast.
    """
    columns, at = [_column(_OPERANDS, name) for name in change], _column(_ANSWERS, predict)
    if not columns:
      raise InversionViewError(f"no operand digit to change; name some of {', '.join(_OPERANDS)}")
    index, clean = self._where(index, where)

    def propose(rows, attempt):
      tokens = clean[rows].copy()
      for column in columns:
        tokens[:, column] = hashing.uniform(10, seed, index[rows], attempt, column)
      return self._summed(tokens)

    def accept(rows, tokens):
      fulfilled = holds(contrast_where, self.features(tokens), len(rows)) if contrast_where else True
      return (tokens[:, at] != clean[rows, at]) & fulfilled

    return _pairs(index, clean, *redraw(len(index), propose, accept), at)

  def contrast_aligned(self, index: np.ndarray, seed: int = 0, *, predict: str = "") -> Pairs:
    """Pairs in which all operand digits are drawn again; see `Task.contrast_aligned`."""
    return self.contrast(index, seed, change=tuple(_OPERANDS), predict=predict or "A1")

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str = "A1", where: str = ""
  ) -> Pairs:
    """Pairs that differ in one feature, or in all but it; see `Task.contrast_in`. All of them are inputs of the task.

    "only" changes an operand digit alone; or, for a carry (or the length), the two digits whose carry it is, such that the digit of the sum
    in their own place stays; or, for an answer digit, the two digits of its place, such that every carry stays. The predicted token
    changes, and the answer before it does not. "rest" changes all operand digits (except the feature itself) and keeps the feature; the
    predicted token may change.
    """
    if vary not in VARY:
      raise one_of("kind of pairs", vary, VARY)
    known = self.features(self.tokens_of([100], [100]))
    if feature not in known:
      raise one_of("feature", feature, known)
    at = _column(_ANSWERS, predict)
    index, clean = self._where(index, where)
    own = self.features(clean)
    free = np.zeros((len(index), self.length), bool)  # the operand digits to redraw
    carry = None  # columns of the two digits that are redrawn for a carry
    if vary == "rest":
      free[:, [column for name, column in _OPERANDS.items() if name != feature]] = True
    elif feature in _OPERANDS:
      free[:, _OPERANDS[feature]] = True
    else:
      which = 1 if feature == "length" else int(feature[1])
      place = np.full(len(index), which)
      if feature in _ANSWERS:
        place -= own["length"] - 3
      else:
        carry = which, 4 + which
      rows = np.flatnonzero((place > 0) & (own[feature] >= 0))  # the thousands of an answer have no digits of their own
      free[rows, place[rows]] = free[rows, 4 + place[rows]] = True

    def propose(rows, attempt):
      tokens = clean[rows].copy()
      for column in _OPERANDS.values():
        drawn = hashing.uniform(10, seed, index[rows], attempt, column)
        tokens[:, column] = np.where(free[rows, column], drawn, tokens[:, column])
      if carry:  # the digit of the sum in their place stays
        first, second = carry
        tokens[:, second] = (clean[rows, first] + clean[rows, second] - tokens[:, first]) % 10
      return self._summed(tokens)

    def accept(rows, tokens):
      now, before = self.features(tokens), {name: values[rows] for name, values in own.items()}
      changed = now[feature] != before[feature]
      valid = free[rows].any(axis=1) & (tokens[:, 1] > 0) & (tokens[:, 5] > 0) & (now[feature] >= 0)
      if vary == "rest":
        return valid & ~changed & ((tokens != clean[rows]) | ~free[rows]).all(axis=1)
      if feature in _ANSWERS:
        valid &= np.logical_and.reduce([now[carry] == before[carry] for carry in ("C1", "C2", "C3")])
      same_before = (tokens[:, 9:at] == clean[rows, 9:at]).all(axis=1)
      return valid & changed & same_before & (tokens[:, at] != clean[rows, at])

    return _pairs(index, clean, *redraw(len(index), propose, accept), at)

  def behaviour(self, position: int | str) -> str:
    predicted = {8: "A1", "=": "A1", 9: "A2", "A1": "A2", 10: "A3", "A2": "A3", 11: "A4", "A3": "A4"}
    return predicted.get(index_or_label(str(position)), "A1")

  def _where(self, index, where):
    """The indices that fulfil a condition, and their tokens."""
    index = np.asarray(index, np.int64)
    clean = self.tokens(index)
    kept = holds(where, self.features(clean), len(index)) if where.strip() else slice(None)
    return index[kept], clean[kept]

  def _summed(self, tokens) -> np.ndarray:
    """Inputs with any operand digits, int32[B, 14] -> the same with the sum of their operands as the answer."""
    first, second = (tokens[:, at : at + 3].astype(np.int64) @ [100, 10, 1] for at in (1, 5))
    return self.tokens_of(first, second)

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    sites = ["x0.pre"]
    for layer in range(n_layers):
      sites += [f"a{layer}.{head}" for head in range(n_heads)] + [f"x{layer}.mid", f"x{layer}.post"]
    return tuple(sites)


def _column(columns, name) -> int:
  if name not in columns:
    raise one_of("digit", name, columns)
  return columns[name]


def _pairs(index, clean, corrupted, made, at) -> Pairs:
  """The pairs that could be made; the token at column `at` is predicted from the one before it."""
  before = np.full(int(made.sum()), at - 1, np.int32)
  return Pairs(index[made], clean[made], corrupted[made].astype(np.int32), before, before)
