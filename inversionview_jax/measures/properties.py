"""Properties of texts: the features of a task, expressions over them, plain tokens; and how often random inputs have them.

Shapes: N texts, T tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import Task, grammar
from inversionview_jax.tasks.text_functions import TextFunctions

_INPUTS = 20_000  # random inputs behind a base rate: its standard error is at most 0.0036
_INPUTS_AT = 4_000  # of which a position is looked up, one by one
AROUND = {"matched token": 0, "1 before it": -1, "2 before it": -2, "1 behind it": 1}


@dataclasses.dataclass(frozen=True)
class Background:
  """Random inputs of a task and their properties, for base rates.

  Attributes:
    task: of the inputs.
    tokens: int32[N, T].
    properties: name -> int32[N], as the function `properties` returns them, without those that all inputs share.
  """

  task: Task
  tokens: np.ndarray
  properties: dict[str, np.ndarray]

  @classmethod
  def of(cls, task: Task) -> "Background":
    """The background of a task, computed once; the inputs are always the same."""
    return _background(task)

  def at(self, position: int | str, expressions: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """`properties` and those of the tokens around one position: an index, or a label of the task.

    An activation at this position encodes that position, whatever the input; taken at the same position of random inputs, properties that
    follow from it are constant and therefore left out.
    """
    extra = _expressions(self.task, tuple(expressions)) if expressions else {}
    return self.properties | extra | _around(self.task, position)

  @functools.cached_property
  def varying(self) -> np.ndarray:
    """bool[T]: columns that are not the same token in all inputs."""
    return (self.tokens != self.tokens[0]).any(axis=0)

  @functools.cached_property
  def differ(self) -> float:
    """Share of the varying columns in which two random inputs differ."""
    return differing(self.tokens, np.ones(len(self.tokens)), self.varying)


@functools.lru_cache(maxsize=8)
def random_inputs(task: Task) -> TextFunctions:
  """20,000 random inputs of a task, always the same."""
  return TextFunctions(task, task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=_INPUTS)))


@functools.lru_cache(maxsize=64)
def expression_at_random(task: Task, text: str) -> tuple[np.ndarray, np.ndarray]:
  """`evaluate` on random inputs of a task: 20,000 of them, or the first 4,000 where labels of positions are looked up in each."""
  texts = random_inputs(task)
  if grammar.labels_in(text):
    texts = TextFunctions(task, texts.tokens[:_INPUTS_AT])
  return grammar.expression(text, _random_features(task, len(texts.tokens)), len(texts.tokens), texts)


@functools.lru_cache(maxsize=8)
def _random_features(task: Task, count: int) -> dict[str, np.ndarray]:
  return task.features(random_inputs(task).tokens[:count])


def evaluate(task: Task, text: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The value of an expression over features and tokens (`grammar.expression`) for each text.

  Args:
    task: of the texts.
    text: the expression.
    tokens: int[N, T].

  Returns:
    int64[N], the values, and bool[N], whether a text has all that the expression names.

  Raises:
    InversionViewError: an expression that is not understood, with the place and what is known.
  """
  tokens = np.asarray(tokens)
  return grammar.expression(text, task.features(tokens), len(tokens), TextFunctions(task, tokens))


@functools.lru_cache(maxsize=8)
def _background(task: Task) -> Background:
  tokens = random_inputs(task).tokens
  values_of = properties(task, tokens, np.full(len(tokens), -1))
  own = [*task.features(tokens[:1]), *task.expressions]
  # A token that equals a feature of the task is listed under the feature's name.
  kept = {
    name: values
    for name, values in _varied(values_of).items()
    if name in own or not any(np.array_equal(values, values_of[other]) for other in own)
  }
  return Background(task, tokens, kept)


@functools.lru_cache(maxsize=8)
def _expressions(task: Task, expressions: tuple[str, ...]) -> dict[str, np.ndarray]:
  tokens = _background(task).tokens
  values_of = properties(task, tokens, np.full(len(tokens), -1), expressions)
  return _varied({text: values_of[text] for text in expressions})


@functools.lru_cache(maxsize=64)
def _around(task: Task, position: int | str) -> dict[str, np.ndarray]:
  tokens, at = [], []
  for row in _background(task).tokens[:_INPUTS_AT]:
    try:
      at.append(task.position(row, position))
    except InversionViewError:  # an input without such a position
      continue
    tokens.append(row)
  if not tokens:
    return {}
  values_of = properties(task, np.stack(tokens), np.array(at))
  return _varied({name: values_of[name] for name in AROUND})


def _varied(values_of: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without properties that all inputs share, which carry no information."""
  return {name: values for name, values in values_of.items() if (values != values[0]).any()}


def properties(
  task: Task, tokens: np.ndarray, at: np.ndarray, expressions: Sequence[str] = ()
) -> dict[str, np.ndarray]:
  """The task's features and expressions over them, and plain tokens: by their position, and around the matched one.

  Args:
    task: of the texts.
    tokens: int[N, T].
    at: int[N], the matched positions; -1 for none.
    expressions: besides the task's own, over features and tokens (`grammar.expression`).

  Returns:
    name -> int32[N]; -1 where a text does not have the property. Tokens have their ids.

  Raises:
    InversionViewError: an expression that is not understood.
  """
  tokens, at = np.asarray(tokens), np.asarray(at)
  special = np.isin(tokens, [task.tokenizer.bos_id, task.tokenizer.eos_id, task.tokenizer.pad_id])
  plain = np.where(special, -1, tokens).astype(np.int32)
  own = task.features(tokens)
  values_of = {name: np.asarray(values, np.int32) for name, values in own.items()}
  texts = TextFunctions(task, tokens)
  for text in dict.fromkeys((*task.expressions, *expressions)):
    values, known = grammar.expression(text, own, len(tokens), texts)
    # -1 is "none", so that a difference of -1 becomes -2, and so on.
    values_of[text] = np.where(known, np.where(values < 0, values - 1, values), -1).astype(np.int32)
  values_of |= {f"token {column}": plain[:, column] for column in range(1, tokens.shape[1])}
  for name, offset in AROUND.items():
    position = at + offset
    exists = (at >= 0) & (position >= 0) & (position < tokens.shape[1])
    token = np.take_along_axis(plain, np.clip(position, 0, tokens.shape[1] - 1)[:, None], axis=1)[:, 0]
    values_of[name] = np.where(exists, token, -1).astype(np.int32)
  return values_of


def differing(tokens: np.ndarray, weight: np.ndarray, columns: np.ndarray) -> float:
  """Share of the columns in which two rows drawn by weight differ.

  Args:
    tokens: int32[N, T].
    weight: float64[N].
    columns: bool[T], those that count.
  """
  alike = []
  for column in np.flatnonzero(columns):
    _, which = np.unique(tokens[:, column], return_inverse=True)
    alike.append(float((np.bincount(which, weight) ** 2).sum() / weight.sum() ** 2))
  return 1.0 - float(np.mean(alike)) if alike else 0.0
