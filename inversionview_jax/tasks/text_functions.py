"""Functions of texts and their tokens for expressions (`grammar`): `token`, `contains`, `count`, `regex`, `length`.

Shapes: B texts, T tokens, V vocabulary.
"""

import functools
import re

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.base import Task

_MOST_VALUES = 10_000  # of a feature whose values have names
_LONGEST_PATTERN, _MOST_REPEATS = 100, 4  # of a regular expression; its time is at most that power of a text's length
_MOST_LABELS = 16  # that `labels` lists


class TextFunctions:
  """What expressions can ask of texts beside their features.

  Attributes:
    task: of the texts.
    tokens: int[B, T].
  """

  def __init__(self, task: Task, tokens: np.ndarray):
    self.task, self.tokens = task, np.asarray(tokens)
    self._at: dict[int | str, np.ndarray] = {}

  @functools.cached_property
  def texts(self) -> list[str]:
    """B texts without special tokens."""
    return [self.task.tokenizer.text(row) for row in self.tokens.tolist()]

  @functools.cached_property
  def _used(self) -> np.ndarray:
    """int64[B], tokens with BOS, without EOS and PAD."""
    t = self.task.tokenizer
    return (~np.isin(self.tokens, [t.eos_id, t.pad_id])).sum(axis=1) + (t.bos_id in (t.eos_id, t.pad_id))

  @property
  def length(self) -> np.ndarray:
    """int64[B], tokens of each text without special ones."""
    return self._used - 1

  @property
  def labels(self) -> list[str]:
    """Labels of the first text's positions, without those that have none."""
    row = [] if not len(self.tokens) else [int(i) for i in self.tokens[0]]
    return [
      label for label in dict.fromkeys(self.task.labels(row)) if label and label.isprintable() and "<" not in label
    ][:_MOST_LABELS]

  def token(self, position: int | str) -> tuple[np.ndarray, np.ndarray]:
    """The ids at an index (BOS is 0; negative ones count from the end) or a label, int64[B], and whether a text has it, bool[B]."""
    if position not in self._at:
      self._at[position] = self._positions(position)
    at = self._at[position]
    ids = np.take_along_axis(self.tokens, np.maximum(at, 0)[:, None], axis=1)[:, 0].astype(np.int64)
    return ids, at >= 0

  def _positions(self, position: int | str) -> np.ndarray:
    """int64[B], -1 where a text has none."""
    if isinstance(position, int):
      at = np.where(position < 0, self._used + position, position)
      return np.where((at >= 0) & (at < self._used), at, -1)
    at = np.full(len(self.tokens), -1, np.int64)
    for number, row in enumerate(self.tokens.tolist()):
      labels = self.task.labels(row)
      at[number] = labels.index(position) if position in labels else -1
    return at

  def contains(self, word: str) -> np.ndarray:
    """bool[B], whether each text contains `word`."""
    return np.array([word in text for text in self.texts], bool)

  def count(self, word: str) -> np.ndarray:
    """int64[B], how often each text contains `word`, without overlaps."""
    return np.array([text.count(word) for text in self.texts], np.int64)

  def regex(self, pattern: str) -> np.ndarray:
    """bool[B], whether a regular expression occurs in each text; raises `InversionViewError` for one that could take forever."""
    found = _compiled(pattern)
    return np.array([found.search(text) is not None for text in self.texts], bool)

  def ids_of(self, word: str) -> np.ndarray:
    """int64[N], the tokens that are `word`, with or without spaces around; raises `InversionViewError` where there are none."""
    by_text = _ids_by_text(self.task)
    if not (ids := by_text.get(word) or by_text.get(word.strip())):
      raise one_of("token", word, sorted(by_text, key=lambda text: (len(text), text))[:200])
    return np.array(ids, np.int64)

  def value_of(self, feature: str, word: str) -> int:
    """The value of a feature that is called `word`; raises `InversionViewError` where there is none."""
    name = getattr(self.task, "value_name", None)
    if name is None:
      raise InversionViewError(f"values of the feature {feature!r} are numbers; compare it with one, not with {word!r}")
    names: list[str] = []
    try:
      while len(names) < _MOST_VALUES:
        names.append(str(name(feature, len(names))))
    except IndexError:
      pass
    if word not in names:
      raise one_of(f"value of {feature}", word, names)
    return names.index(word)


@functools.lru_cache(maxsize=8)
def _ids_by_text(task: Task) -> dict[str, list[int]]:
  """Text of each token, as it is and without spaces around -> ids."""
  t, found = task.tokenizer, {}  # type: ignore[var-annotated]
  for number, text in enumerate(t.strings(range(t.vocab_size))):
    if number not in (t.bos_id, t.eos_id, t.pad_id):
      for key in {text, text.strip()} - {""}:
        found.setdefault(key, []).append(number)
  return found


@functools.lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern:
  """A regular expression whose time is a small power of the text's length: no repeated group, no reference back, few repeats."""
  if len(pattern) > _LONGEST_PATTERN:
    raise InversionViewError(f"the regular expression {pattern[:40]!r}... is longer than {_LONGEST_PATTERN} characters")
  bare = re.sub(r"\\\D", "_", pattern)  # escaped characters
  bare = re.sub(r"\[\^?\]?[^\]]*\]", "_", bare)  # character classes
  if re.search(r"\\\d|\(\?(?!:)", bare):
    raise InversionViewError(f"the regular expression {pattern!r} refers back or looks around, which is not supported")
  if re.search(r"\)[*+{]", bare):
    raise InversionViewError(
      f"the regular expression {pattern!r} repeats a group, which can take forever: repeat characters only"
    )
  if len(re.findall(r"[*+{]", bare)) > _MOST_REPEATS:
    raise InversionViewError(
      f"the regular expression {pattern!r} has more than {_MOST_REPEATS} repeats, which can take too long"
    )
  if re.search(r"\d{5}", bare):
    raise InversionViewError(f"the regular expression {pattern!r} has a number that is too large")
  try:
    return re.compile(pattern)
  except (re.error, OverflowError, RecursionError) as error:
    raise InversionViewError(f"the regular expression {pattern!r} cannot be read: {error}") from None
