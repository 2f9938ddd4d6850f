"""Character counting (paper, section 4.1): how often does a letter occur, such as ``vvzccvczvvvzvcvc|v:8``.

Three different letters of 26 (2,600 triples) x 200 triples of counts (each 1 to 9) x 3 query letters = 1.56 million inputs.
"""

import collections
import functools
import itertools
import math
import string
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import hashing
from inversionview_jax.tasks.base import Array, Task, shift_left
from inversionview_jax.tasks.contrast import VARY, Pairs, redraw
from inversionview_jax.tasks.counting_moves import CountingMoves
from inversionview_jax.tasks.grammar import holds
from inversionview_jax.tasks.moves import Move
from inversionview_jax.tasks.tokenizers import BOS, EOS, PAD, CharTokenizer

_TRIPLES, _COUNTS, _QUERIES = 2600, 200, 3
_LONGEST = 27  # letters of the longest string
FEATURES = ("count", "query", "length")


class Counting(Task):
  """Inputs "BOS letters|x:n EOS PAD"; positions: "|", "query" (the query letter), ":" and "count"."""

  name = "counting"
  tokenizer = CharTokenizer((*string.ascii_lowercase, *"123456789", "|", ":", BOS, EOS, PAD))
  length = 33
  num_inputs = _TRIPLES * _COUNTS * _QUERIES
  epsilon = 0.1
  metric = "euclidean"
  dataset = True

  about = (
    'An input is a string of letters, "|", the query letter, ":" and how often that letter occurs before "|", such as '
    '"vvzccvczvvvzvcvc|v:8". Each character is a token.'
  )
  feature_names = {
    "count": 'how often the query letter occurs before "|"',
    "query": "the query letter, as a number: a is 0, b is 1, ...",
    "length": 'number of letters before "|"',
  }
  position_names = {
    "|": "end of the letters that are counted",
    "query": "the letter whose number is asked for",
    ":": "where the count is predicted",
    "count": "the answer: how often the query letter occurs",
  }

  def tokens(self, index: np.ndarray) -> np.ndarray:
    t = self.tokenizer
    index = np.asarray(index, np.int64)
    triple, count, query = index // (_COUNTS * _QUERIES), index // _QUERIES % _COUNTS, index % _QUERIES
    letters = _letter_triples()[triple]  # [B, 3]
    counts = _count_triples()[triple, count]  # [B, 3]
    ends = np.cumsum(counts, axis=1)
    column = np.arange(_LONGEST)
    which = np.sum(column[None, :, None] >= ends[:, None, :], axis=2)  # [B, 27]: 0 1 2 for a letter, 3 after the last
    # A random order per input: sort by a hash of (index, column); columns after the last letter stay last.
    keys = np.where(which < 3, hashing.split_mix(index[:, None] * 32 + column), np.uint64(2**64 - 1))
    which = np.take_along_axis(which, np.argsort(keys, axis=1, kind="stable"), axis=1)
    out = np.full((len(index), self.length), t.pad_id, np.int32)
    out[:, 0] = t.bos_id
    out[:, 1 : 1 + _LONGEST] = np.take_along_axis(
      np.concatenate([letters, np.full((len(index), 1), t.pad_id)], axis=1), which, axis=1
    )
    rows, total = np.arange(len(index)), ends[:, 2]
    bar, colon = t.encode("|:")
    tail = (bar, letters[rows, query], colon, t.encode("1")[0] + counts[rows, query] - 1, t.eos_id)
    for offset, token in enumerate(tail):
      out[rows, 1 + total + offset] = token
    return out

  @functools.cached_property
  def _moves(self) -> CountingMoves:
    t = self.tokenizer
    bar, colon, one = (int(token) for token in t.encode("|:1"))
    return CountingMoves((t.bos_id, bar, colon, one, t.eos_id, t.pad_id), _LONGEST)

  @property
  def has_log_prior(self) -> bool:
    return super().has_log_prior and (self.inputs_of(Counting) or type(self).log_prior is not Counting.log_prior)

  def moves(self) -> tuple[Move, ...]:
    return self._moves.all() if self.inputs_of(Counting) else super().moves()

  def log_prior(self, tokens: Array) -> Array:
    """Three letters of 26, each 1 to 9 times, in any order, one of them the query letter, its count behind: each choice uniform."""
    if not self.inputs_of(Counting):
      return super().log_prior(tokens)
    return self._moves.log_prior(tokens, math.log(_TRIPLES * 9**3 * _QUERIES))

  def may_be_input(self, tokens: Sequence[int]) -> bool:
    if not self.inputs_of(Counting):
      return super().may_be_input(tokens)
    letters, bar, behind = self.tokenizer.text(tokens).partition("|")
    counts = collections.Counter(letters)
    if len(counts) > 3 or max(counts.values(), default=0) > 9 or not set(letters) <= set(string.ascii_lowercase):
      return False
    return not bar or len(counts) == 3 and any(f"{letter}:{n}".startswith(behind) for letter, n in counts.items())

  def loss_mask(self, tokens: Array) -> Array:
    return self.answer_mask(tokens)

  def predicted_at(self, tokens: Array) -> Array:
    xp = tokens.__array_namespace__()
    return xp.argmax(tokens == self.tokenizer.encode(":")[0], axis=1, keepdims=True)

  def answer_mask(self, tokens: Array) -> Array:
    colon = self.tokenizer.encode(":")[0]
    xp = tokens.__array_namespace__()
    return xp.concatenate([xp.zeros_like(tokens[:, :1], dtype=bool), tokens[:, :-1] == colon], axis=1)

  def query_mask(self, tokens: Array) -> Array:
    """Only the query letter and ":" (paper, appendix on training the decoders)."""
    colon = self.tokenizer.encode(":")[0]
    return (tokens == colon) | (shift_left(tokens, self.tokenizer.pad_id) == colon)

  def labels(self, tokens: Sequence[int]) -> list[str]:
    names = {self.tokenizer.encode("|")[0]: "|", self.tokenizer.encode(":")[0]: ":"}
    labels: list[str] = []
    for token in map(int, tokens):
      previous = labels[-1] if labels else ""
      labels.append(names.get(token) or {"|": "query", ":": "count"}.get(previous, ""))
    return labels

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The features of counting: "count" is how often the query letter occurs before "|" (whatever number is written after ":"), "query" the
    query letter (a is 0), "length" the number of letters before "|".
    """
    t = self.tokenizer
    tokens = np.asarray(tokens)
    columns = np.arange(tokens.shape[1] + 4)
    rows = np.full((len(tokens), len(columns)), t.pad_id)
    rows[:, : tokens.shape[1]] = tokens
    bar, colon, one, nine = t.encode("|:19")
    letter, digit = (rows >= 0) & (rows < 26), (rows >= one) & (rows <= nine)
    over = (rows == t.eos_id) | (rows == t.pad_id)
    at = np.where((rows == bar).any(axis=1), (rows == bar).argmax(axis=1), len(columns))[:, None]
    end = over.argmax(axis=1)[:, None]
    form = np.select(
      [columns == 0, columns < at, columns == at, columns == at + 1, columns == at + 2, columns == at + 3],
      [rows == t.bos_id, letter, rows == bar, letter, rows == colon, digit],
      False,
    )
    well = (form | (columns >= end)).all(axis=1) & ((rows == t.pad_id) | (columns <= end)).all(axis=1)
    letter_at_query = np.take_along_axis(rows, np.minimum(at + 1, len(columns) - 1), axis=1)
    well &= (at > 1)[:, 0]  # at least one letter before "|"
    barred, query = well & (at < end)[:, 0], well & (at + 1 < end)[:, 0]
    count = ((rows == letter_at_query) & (columns < at)).sum(axis=1)
    features = {"count": (query, count), "query": (query, letter_at_query[:, 0]), "length": (barred, at[:, 0] - 1)}
    return {name: np.where(known, value, -1).astype(np.int32) for name, (known, value) in features.items()}

  def contrast(  # type: ignore[override]
    self,
    index: np.ndarray,
    seed: int = 0,
    *,
    kind: str = "another",
    same_length: bool = False,
    where: str = "",
    contrast_where: str = "",
  ) -> Pairs:
    """Pairs with different counts (paper, section 4.1 and its appendix on activation patching).

    Args:
      index: int64[B], inputs of the task.
      seed: of the draws, which are functions of it and of the index.
      kind: "another": any other input of the task; "flip": one of the letters is replaced by one of the other two of the input, so that the
        count of the query letter changes by one.
      same_length: whether "another" has as many letters, so that the position of ":" is no clue to the count.
      where, contrast_where: conditions on the features of the clean and of the corrupted input (`grammar.holds`).

    Returns:
      `Pairs`, without the inputs that do not fulfil `where` or have no such contrast.
    """
    if kind not in ("another", "flip"):
      raise one_of("kind of contrast", kind, ("another", "flip"))
    index = np.asarray(index, np.int64)
    index = index[holds(where, self.features(self.tokens(index)), len(index))]
    clean = self.tokens(index)
    count, _, length = _features_of(index)

    def fulfils(rows, tokens):
      return holds(contrast_where, self.features(tokens), len(rows)) if contrast_where else True

    if kind == "flip":
      letters = _letter_triples()[index // (_COUNTS * _QUERIES)]

      def propose(rows, attempt):
        tokens, each = clean[rows].copy(), np.arange(len(rows))
        at = 1 + hashing.uniform(length[rows], seed, index[rows], attempt, 0)
        others = letters[rows][letters[rows] != tokens[each, at][:, None]].reshape(-1, 2)
        tokens[each, at] = others[each, hashing.uniform(2, seed, index[rows], attempt, 1)]
        occurs = self.features(tokens)["count"]
        tokens[each, length[rows] + 4] = self.tokenizer.encode("1")[0] + occurs - 1
        return tokens

      def accept(rows, tokens):
        written = np.where(np.arange(self.length) <= length[rows][:, None], tokens, self.tokenizer.pad_id)
        occurs = (written[:, None] == letters[rows][:, :, None]).sum(axis=2)
        changed = tokens[np.arange(len(rows)), length[rows] + 4] != clean[rows, length[rows] + 4]
        return changed & ((occurs >= 1) & (occurs <= 9)).all(axis=1) & fulfils(rows, tokens)

      corrupted, made = redraw(len(index), propose, accept)
    else:

      def propose_index(rows, attempt):
        return _drawn(("length",) if same_length else (), seed, index[rows], attempt)

      def accept_index(rows, other):
        return (_features_of(other)[0] != count[rows]) & fulfils(rows, self.tokens(other))

      other, made = redraw(len(index), propose_index, accept_index)
      corrupted = self.tokens(other)
    return self._pairs(index, clean, corrupted, made)

  def contrast_aligned(self, index: np.ndarray, seed: int = 0, *, predict: str = "") -> Pairs:
    """Pairs of any two inputs of one length with different counts; see `Task.contrast_aligned`."""
    if predict not in ("", "count"):
      raise InversionViewError(f"cannot predict {predict!r} of counting; the answer is: count")
    return self.contrast(index, seed, kind="another", same_length=True)

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str = "count", where: str = ""
  ) -> Pairs:
    """Pairs that differ in one feature, or in all but it; see `Task.contrast_in`. All of them are inputs of the task, or one flip away.

    "only" count: a letter is flipped. "only" query: another query letter, which occurs another number of times. "only" length: the same
    query letter and count among more or fewer other letters, so that the answer stays. "rest": another input in which the feature is
    the same and the two others differ; with the same count, the answer stays.
    """
    if vary not in VARY:
      raise one_of("kind of pairs", vary, VARY)
    if feature not in FEATURES:
      raise one_of("feature", feature, FEATURES)
    if predict != "count":
      raise InversionViewError(f"cannot predict {predict!r} of counting; the answer is: count")
    if feature == "count" and vary == "only":
      return self.contrast(index, seed, kind="flip", where=where)
    index = np.asarray(index, np.int64)
    index = index[holds(where, self.features(self.tokens(index)), len(index))]
    clean = self.tokens(index)
    own = np.stack(_features_of(index), axis=1)
    differ = np.array([(name == feature) == (vary == "only") for name in FEATURES])
    if feature == "query" and vary == "only":
      differ[0] = True  # the count must be another too

      def propose(rows, attempt):  # of the three inputs with the same letters
        return index[rows] // _QUERIES * _QUERIES + hashing.uniform(_QUERIES, seed, index[rows], attempt)

    else:
      held = tuple(name for name, differs in zip(FEATURES, differ, strict=True) if not differs)

      def propose(rows, attempt):
        return _drawn(held, seed, index[rows], attempt)

    other, made = redraw(
      len(index), propose, lambda rows, o: ((np.stack(_features_of(o), axis=1) != own[rows]) == differ).all(axis=1)
    )
    corrupted = self.tokens(other)
    if feature == "query" and vary == "only":
      # Those three differ in the order of their letters; here only query letter and count may.
      corrupted, (count, query, length), rows = clean.copy(), _features_of(other), np.arange(len(index))
      corrupted[rows, length + 2], corrupted[rows, length + 4] = query, self.tokenizer.encode("1")[0] + count - 1
    return self._pairs(index, clean, corrupted, made)

  def behaviour(self, position: int | str) -> str:
    del position  # there is one answer
    return "count"

  def _pairs(self, index, clean, corrupted, made) -> Pairs:
    clean, corrupted = clean[made].astype(np.int32), corrupted[made].astype(np.int32)
    at = [self.predicted_at(tokens)[:, 0] for tokens in (clean, corrupted)]
    return Pairs(index[made], clean, corrupted, *at)


def _features_of(index) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Count, query and length of the inputs with these indices, int64[B] each, without making their tokens."""
  triple, counts, query = index // (_COUNTS * _QUERIES), index // _QUERIES % _COUNTS, index % _QUERIES
  numbers = _count_triples()[triple, counts]
  rows = np.arange(len(index))
  return numbers[rows, query], _letter_triples()[triple][rows, query], numbers.sum(axis=1)


def _drawn(held, seed, index, attempt) -> np.ndarray:
  """int64[B]: for each index a random input with the same values of the features `held`."""
  if not held:
    return hashing.uniform(_TRIPLES * _COUNTS * _QUERIES, seed, index, attempt)
  order, ends = _by_features(held)
  key = _key(held, index)
  start = np.where(key > 0, ends[key - 1], 0)
  return order[start + hashing.uniform(ends[key] - start, seed, index, attempt)]


@functools.cache
def _by_features(held) -> tuple[np.ndarray, np.ndarray]:
  """All inputs sorted by their values of the features `held`, and the end of each group with the same values."""
  key = _key(held, np.arange(_TRIPLES * _COUNTS * _QUERIES))
  return np.argsort(key, kind="stable"), np.cumsum(np.bincount(key))


def _key(held, index) -> np.ndarray:
  """int64[B]: one number for the values of the features `held`."""
  key = np.zeros(len(index), np.int64)
  for values, name, size in zip(_features_of(index), FEATURES, (10, 26, 28), strict=True):
    key = key * size + values if name in held else key
  return key


@functools.cache
def _letter_triples() -> np.ndarray:
  """int[2600, 3]: all triples of different letters."""
  return np.array(list(itertools.combinations(range(26), 3)))


@functools.cache
def _count_triples() -> np.ndarray:
  """int[2600, 200, 3]: for each triple of letters, 200 different triples of counts."""
  every = np.array(list(itertools.product(range(1, 10), repeat=3)))
  order = np.random.default_rng(0).permuted(np.tile(np.arange(len(every)), (_TRIPLES, 1)), axis=1)
  return every[order[:, :_COUNTS]]
