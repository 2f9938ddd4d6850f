"""What can be true of a text: the features of its task, expressions over them, its tokens; and how often random inputs have it.

Shapes: N texts, T tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.grammar import expression

_INPUTS = 20_000  # random inputs behind a base rate: its standard error is at most 0.0036
_INPUTS_AT = 4_000  # of which a place is looked up, one by one
AROUND = {"matched token": 0, "1 before it": -1, "2 before it": -2, "1 behind it": 1}


@dataclasses.dataclass(frozen=True)
class Background:
  """Random inputs of a task: what is true of them anyway.

  Attributes:
    task: whose.
    tokens: int32[N, T].
    properties: as `properties` gives them, without those that all inputs share.
  """

  task: Task
  tokens: np.ndarray
  properties: dict[str, np.ndarray]

  @classmethod
  def of(cls, task: Task) -> "Background":
    """The same inputs whenever it is asked."""
    return _background(task)

  def at(self, place: "int | str", expressions: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """`properties`, with those about the matched token taken at one place: an index, or a label of the task.

    An activation of this place says that it is of this place, whatever the input; that is not counted as something it says.
    """
    asked = _asked(self.task, tuple(expressions)) if expressions else {}
    return self.properties | asked | _around(self.task, place)

  @functools.cached_property
  def varying(self) -> np.ndarray:
    """bool[T]: columns that are not the same token in all inputs."""
    return (self.tokens != self.tokens[0]).any(axis=0)

  @functools.cached_property
  def differ(self) -> float:
    return differing(self.tokens, np.ones(len(self.tokens)), self.varying)


@functools.lru_cache(maxsize=8)
def _background(task: Task) -> Background:
  tokens = task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=_INPUTS))
  found = properties(task, tokens, np.full(len(tokens), -1))
  own = [*task.features(tokens[:1]), *task.expressions]
  # A token that is a feature of the task goes by that name.
  kept = {
    name: values
    for name, values in _varied(found).items()
    if name in own or not any(np.array_equal(values, found[other]) for other in own)
  }
  return Background(task, tokens, kept)


@functools.lru_cache(maxsize=8)
def _asked(task: Task, expressions: tuple[str, ...]) -> dict[str, np.ndarray]:
  tokens = _background(task).tokens
  found = properties(task, tokens, np.full(len(tokens), -1), expressions)
  return _varied({text: found[text] for text in expressions})


@functools.lru_cache(maxsize=64)
def _around(task: Task, place: "int | str") -> dict[str, np.ndarray]:
  tokens, at = [], []
  for row in _background(task).tokens[:_INPUTS_AT]:
    try:
      at.append(task.position(row, place))
    except InversionViewError:  # an input that has no such place
      continue
    tokens.append(row)
  if not tokens:
    return {}
  found = properties(task, np.stack(tokens), np.array(at))
  return _varied({name: found[name] for name in AROUND})


def _varied(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without what is the same in all inputs, which says nothing."""
  return {name: values for name, values in found.items() if (values != values[0]).any()}


def properties(
  task: Task, tokens: np.ndarray, at: np.ndarray, expressions: Sequence[str] = ()
) -> dict[str, np.ndarray]:
  """The task's features and expressions over them, and plain tokens: by their place in the text, and around the matched one.

  Args:
    tokens: int[N, T].
    at: int[N], the matched positions; -1 for none.
    expressions: besides the task's own (`grammar.expression`).

  Returns:
    A name -> int32[N]; -1 where a text has no such thing. Tokens have their ids.
  """
  tokens, at = np.asarray(tokens), np.asarray(at)
  special = np.isin(tokens, [task.tokenizer.bos_id, task.tokenizer.eos_id, task.tokenizer.pad_id])
  plain = np.where(special, -1, tokens).astype(np.int32)
  own = task.features(tokens)
  found = {name: np.asarray(values, np.int32) for name, values in own.items()}
  for text in dict.fromkeys((*task.expressions, *expressions)):
    values, known = expression(text, own, len(tokens))
    # -1 is "none", so that a difference of -1 becomes -2, and so on.
    found[text] = np.where(known, np.where(values < 0, values - 1, values), -1).astype(np.int32)
  found |= {f"token {column}": plain[:, column] for column in range(1, tokens.shape[1])}
  for name, offset in AROUND.items():
    place = at + offset
    inside = (at >= 0) & (place >= 0) & (place < tokens.shape[1])
    here = np.take_along_axis(plain, np.clip(place, 0, tokens.shape[1] - 1)[:, None], axis=1)[:, 0]
    found[name] = np.where(inside, here, -1).astype(np.int32)
  return found


def differing(tokens: np.ndarray, weight: np.ndarray, columns: np.ndarray) -> float:
  """Share of the columns in which two random rows differ."""
  alike = []
  for column in np.flatnonzero(columns):
    _, which = np.unique(tokens[:, column], return_inverse=True)
    alike.append(float((np.bincount(which, weight) ** 2).sum() / weight.sum() ** 2))
  return 1.0 - float(np.mean(alike)) if alike else 0.0
