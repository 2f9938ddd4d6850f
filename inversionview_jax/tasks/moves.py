"""Moves of Monte Carlo sampling over a task's inputs: how a particle may be changed, with the ratio that keeps the prior.

A move is a pure function on the array namespace, so that it runs inside jit: its random numbers are an argument, uniform in [0, 1). It may
propose a text that is no input: `Task.log_prior` is -inf there, and the move is not made. So its ratio needs to hold between inputs only.

Shapes: B rows, T tokens, U uniforms of one row.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

Array = Any  # of NumPy or JAX


@dataclasses.dataclass(frozen=True)
class Move:
  """A kind of proposal.

  Attributes:
    name: shown in diagnostics.
    uniforms: U, how many random numbers a row takes.
    propose: (float32[B, U], int32[B, T]) -> int32[B, T] and float32[B], the proposals and log q(old | new) - log q(new | old).
    weight: how often this kind is chosen, relative to the others.
  """

  name: str
  uniforms: int
  propose: Callable[[Array, Array], tuple[Array, Array]]
  weight: float = 1.0


def choice(uniform: Array, count: Any) -> Array:
  """float32[...] in [0, 1) -> int32[...], uniform among 0 ... count - 1."""
  xp = uniform.__array_namespace__()
  return xp.minimum((uniform * count).astype(xp.int32), count - 1)


def symmetric(tokens: Array) -> Array:
  """float32[B] of zeros: the ratio of a move that is as probable backwards."""
  xp = tokens.__array_namespace__()
  return xp.zeros(len(tokens), xp.float32)
