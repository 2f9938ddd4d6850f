"""The task of a RASP program: every text over its vocabulary, with the values of all of its expressions as features.

Shapes: B texts, T tokens, N symbols of the longest text, F features.
"""

import functools
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.base import Array, Task
from inversionview_jax.tasks.listed_inputs import MOST_TOKENS
from inversionview_jax.tasks.moves import Move, choice, exchange_moves, symmetric
from inversionview_jax.tasks.programs import Program, Value, program_named, shown
from inversionview_jax.tasks.tokenizer_base import BOS, EOS, PAD
from inversionview_jax.tasks.tokenizers import CharTokenizer

COMPILER_BOS, COMPILER_PAD = "compiler_bos", "compiler_pad"  # Tracr's names of its special tokens
_MOST_SHOWN = 12  # values in a feature's description
_MOST_KEPT = 200_000  # texts whose values are remembered


def symbols_in_order(vocabulary: Sequence[Value]) -> list[Value]:
  """The values of Tracr's token ids: the vocabulary and its BOS and PAD, in Tracr's order."""

  class Direction:  # as `tracr.craft.bases.BasisDirection`, which cannot be imported without JAX
    def __init__(self, value):
      self.value = value

    def __lt__(self, other):
      try:
        return self.value < other.value
      except TypeError:
        return str(self.value) < str(other.value)

  ordered = sorted(map(Direction, [*vocabulary, COMPILER_BOS, COMPILER_PAD]))
  return [direction.value for direction in ordered]


def tokenizer_of(program: Program) -> CharTokenizer:
  """Its symbols under Tracr's ids, with an EOS behind them."""
  names = {COMPILER_BOS: BOS, COMPILER_PAD: PAD}
  symbols = symbols_in_order(program.vocabulary)
  return CharTokenizer((*(names.get(symbol, str(symbol)) for symbol in symbols), EOS), program.longest)


class ProgramTask(Task):
  """BOS, up to `longest` symbols, EOS; positions i0, i1, ... as RASP counts the symbols.

  Attributes:
    program: whose inputs they are.
  """

  name = "tracr"

  def __init__(self, program: Program):
    """Counts the inputs; raises `InversionViewError` for more of them than can be numbered."""
    self.program, self.name = program, program.name
    self.tokenizer = tokenizer_of(program)
    self.length, self._longest = program.longest + 2, program.longest
    ids = {text: number for number, text in enumerate(self.tokenizer.vocabulary)}
    self._symbols = np.array([ids[str(symbol)] for symbol in program.vocabulary], np.int32)
    size = len(self._symbols)
    count = math.perm if program.distinct else pow
    self._counts = [count(size, n) for n in range(1, self._longest + 1)]
    self.num_inputs = sum(self._counts)
    if self.num_inputs >= 2**62:
      raise InversionViewError(
        f"{self.name} has {self.num_inputs:,} inputs of up to {self._longest} of {size} symbols, which are too many: give a smaller max_seq_len"
      )
    self.enumerable = self.num_inputs * self.length <= MOST_TOKENS
    if program.distinct and not self.enumerable:
      raise InversionViewError(f"{self.name} has too many inputs of different symbols: give fewer symbols (vocab)")
    self._known: dict[bytes, np.ndarray] = {}

  @property
  def about(self) -> str:  # type: ignore[override]
    spaced = " separated by spaces" if getattr(self.tokenizer, "spaced", False) else ""
    return (
      f"An input is a sequence of 1 to {self._longest} symbols{spaced} out of {', '.join(map(str, self.program.vocabulary))}, "
      f"for which a RASP program ({self.name}) computes a value at each symbol."
    )

  def tokens(self, index: np.ndarray) -> np.ndarray:
    index = np.asarray(index, np.int64)
    ends = np.cumsum([0, *self._counts])
    length = np.searchsorted(ends, index, side="right")
    if self.program.distinct:
      return self._arranged[index]
    rest, size = index - ends[length - 1], len(self._symbols)
    digits = np.empty((len(index), self._longest), np.int64)
    for column in reversed(range(self._longest)):
      there = column < length
      digits[:, column] = np.where(there, rest % size, 0)
      rest = np.where(there, rest // size, rest)
    return self._written(self._symbols[digits], length[:, None]).astype(np.int32)

  @functools.cached_property
  def _arranged(self) -> np.ndarray:
    rows = np.zeros((self.num_inputs, self._longest), np.int32)
    lengths = np.repeat(np.arange(1, self._longest + 1), self._counts)
    for row, symbols in zip(
      rows,
      itertools.chain.from_iterable(itertools.permutations(self._symbols, n) for n in range(1, self._longest + 1)),
      strict=True,
    ):
      row[: len(symbols)] = symbols
    return self._written(rows, lengths[:, None]).astype(np.int32)

  def _written(self, symbols: Array, length: Array) -> Array:
    """Rows of tokens: int[B, N] symbols, of which the first int[B, 1] count -> int[B, T]."""
    xp, t = symbols.__array_namespace__(), self.tokenizer
    columns = xp.arange(self.length)
    shifted = xp.pad(symbols, ((0, 0), (1, 1)))
    out = xp.where(columns <= length, shifted, xp.where(columns == length + 1, t.eos_id, t.pad_id))
    return xp.where(columns == 0, t.bos_id, out)

  def _read(self, tokens: Array) -> tuple[Array, Array]:
    """Symbols int[B, N], 0 behind the text, and how many there are, int[B, 1]."""
    xp = tokens.__array_namespace__()
    body = tokens[:, 1 : self._longest + 1]
    body = xp.pad(body, ((0, 0), (0, self._longest - body.shape[1])), constant_values=self.tokenizer.pad_id)
    symbol = (body[:, :, None] == xp.asarray(self._symbols)).any(axis=-1)
    length = xp.cumprod(symbol.astype(xp.int32), axis=1).sum(axis=1, keepdims=True)
    return xp.where(xp.arange(self._longest) < length, body, 0), length

  def log_prior(self, tokens: Array) -> Array:
    """Uniform over the texts; -inf for what is no text over the vocabulary."""
    xp = tokens.__array_namespace__()
    symbols, length = self._read(tokens)
    written = self._written(symbols, length)[:, : tokens.shape[1]]
    right = (written == tokens).all(axis=1) & (length[:, 0] > 0) & (length[:, 0] + 2 <= tokens.shape[1])
    if self.program.distinct:
      there = xp.arange(self._longest) < length
      equal = (symbols[:, :, None] == symbols[:, None, :]) & there[:, :, None] & there[:, None, :]
      right = right & (equal.sum(axis=(1, 2)) == length[:, 0])
    return xp.where(right, -math.log(self.num_inputs), -math.inf)

  def moves(self) -> tuple[Move, ...]:
    """Any other text or one near it, another symbol, a symbol more or less, and two symbols exchanged."""
    first = self.listed.moves() if self.enumerable else exchange_moves(self.log_prior)
    return (
      *first,
      Move("another symbol", 2, self._another, 3.0),
      Move("a symbol more or less", 3, self._more_or_less, 2.0),
      Move("two exchanged", 2, self._exchanged, 1.0),
    )

  def _another(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    xp = tokens.__array_namespace__()
    symbols, length = self._read(tokens)
    here = xp.arange(self._longest) == choice(uniforms[:, :1], xp.maximum(length, 1))
    new = xp.asarray(self._symbols)[choice(uniforms[:, 1:], len(self._symbols))]
    return self._as(tokens, xp.where(here, new, symbols), length), symmetric(tokens)

  def _more_or_less(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """Inserts a symbol anywhere or removes one, with equal probability: as many ways lead back as lead there."""
    xp = tokens.__array_namespace__()
    symbols, length = self._read(tokens)
    more, columns = uniforms[:, :1] < 0.5, xp.arange(self._longest)
    at = choice(uniforms[:, 1:2], xp.where(more, length + 1, xp.maximum(length, 1)))
    new = xp.asarray(self._symbols)[choice(uniforms[:, 2:], len(self._symbols))]
    right, left = xp.roll(symbols, 1, axis=1), xp.roll(symbols, -1, axis=1)
    longer = xp.where(columns < at, symbols, xp.where(columns == at, new, right))
    changed = xp.where(more, longer, xp.where(columns < at, symbols, left))
    possible = xp.where(more, length < self._longest, length > 1)
    after = xp.where(possible, xp.where(more, length + 1, length - 1), length)
    ratio = xp.where(possible, xp.where(more, 1.0, -1.0), 0.0) * math.log(len(self._symbols))
    return self._as(tokens, xp.where(possible, changed, symbols), after), ratio[:, 0].astype(xp.float32)

  def _exchanged(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    xp = tokens.__array_namespace__()
    symbols, length = self._read(tokens)
    columns = xp.broadcast_to(xp.arange(self._longest), symbols.shape)
    one, other = (choice(uniforms[:, i : i + 1], xp.maximum(length, 1)) for i in (0, 1))
    source = xp.where(columns == one, other, xp.where(columns == other, one, columns))
    return self._as(tokens, xp.take_along_axis(symbols, source, axis=1), length), symmetric(tokens)

  def _as(self, tokens: Array, symbols: Array, length: Array) -> Array:
    return self._written(symbols, length)[:, : tokens.shape[1]].astype(tokens.dtype)

  def loss_mask(self, tokens: Array) -> Array:
    """No tokens: nothing is trained."""
    return tokens.__array_namespace__().zeros(tokens.shape, bool)

  def labels(self, tokens: Sequence[int]) -> list[str]:
    symbols = set(self._symbols.tolist())
    return [f"i{column - 1}" if column and int(token) in symbols else "" for column, token in enumerate(tokens)]

  def symbols(self, tokens: Sequence[int]) -> list[Value]:
    """The symbols of one text, int[T], as the program has them."""
    by_id = dict(zip(self._symbols.tolist(), self.program.vocabulary, strict=True))
    return [by_id[int(token)] for token in tokens if int(token) in by_id]

  @functools.cached_property
  def _features(self) -> list[tuple[str, str, dict[Value, int], bool]]:
    """Of each expression: a word for names of features, its label in Tracr, the number of each value, and whether these are the values."""
    out: list[tuple[str, str, dict[Value, int], bool]] = []
    for node, space in zip(self.program.expressions, self.program.spaces, strict=True):
      word = re.sub(r"\W+", "_", node.label).strip("_")
      while any(word == other[0] for other in out):
        word += "_"
      known = [value for value in space if value is not None]
      if any(type(value) is float for value in known):  # 0 and False are one value
        known = [float(value) if isinstance(value, int | float) else value for value in known]
      plain = all(isinstance(value, int | float) and value >= 0 and float(value).is_integer() for value in known)
      codes = {value: int(value) if plain else number for number, value in enumerate(known)}
      if None in space:
        codes[None] = 1 + max(codes.values(), default=-1)
      out.append((word, node.label, codes, plain))
    return out

  @functools.cached_property
  def feature_names(self) -> dict[str, str]:  # type: ignore[override]
    names = {}
    for word, label, codes, plain in self._features:
      shown_codes = list(codes.items())[:_MOST_SHOWN]
      legend = ", ".join(
        f"{number}: {shown(value)}" for value, number in shown_codes if not (plain and value is not None)
      )
      legend += ", ..." if len(codes) > _MOST_SHOWN else ""
      for i in range(self._longest):
        names[f"{word}_at_{i}"] = f"value of {label} at symbol {i} (counted from 0)" + (f"; {legend}" if legend else "")
    return names

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The value of each expression at each symbol; -1 behind the end of the text, and where the program is not defined for it."""
    tokens = np.asarray(tokens)
    symbols, length = self._read(tokens)
    well = (tokens[:, :1] == self.tokenizer.bos_id) & (length > 0)
    behind = np.take_along_axis(np.pad(tokens, ((0, 0), (0, 1)), constant_values=self.tokenizer.pad_id), length + 1, 1)
    well &= np.isin(behind, (self.tokenizer.eos_id, self.tokenizer.pad_id))
    rows = [
      self._values(row[:count]) if good else self._nothing
      for row, count, good in zip(symbols.astype(np.int32), length[:, 0], well[:, 0], strict=True)
    ]
    table = np.stack(rows) if rows else np.zeros((0, len(self._nothing)), np.int32)
    return {name: table[:, column] for column, name in enumerate(self.feature_names)}

  @functools.cached_property
  def _nothing(self) -> np.ndarray:
    return np.full(len(self._features) * self._longest, -1, np.int32)

  def _values(self, row: np.ndarray) -> np.ndarray:
    """int32[F] of one text's symbols."""
    key = row.tobytes()
    if key not in self._known:
      out = self._nothing.reshape(len(self._features), self._longest).copy()
      evaluated = self.program.evaluate(self.symbols(row.tolist()))
      for numbers, found, (_, _, codes, _) in zip(out, evaluated, self._features, strict=True):
        if found is not None:
          numbers[: len(found)] = [codes.get(value, -1) for value in found]
      if len(self._known) >= _MOST_KEPT:
        self._known.clear()
      self._known[key] = out.reshape(-1)
    return self._known[key]


@functools.lru_cache(32)
def program_task(name: str) -> ProgramTask:
  """The task of a program by its name; see `programs.program_named`."""
  return ProgramTask(program_named(name))
