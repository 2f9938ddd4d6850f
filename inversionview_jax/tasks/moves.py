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
    drawn: whether `propose` has a third argument, int32[B, T]: for each row an input drawn from the prior for this proposal alone. Such a
      move is made by itself, never after another one in the same proposal.
  """

  name: str
  uniforms: int
  propose: Callable[..., tuple[Array, Array]]
  weight: float = 1.0
  drawn: bool = False


def choice(uniform: Array, count: Any) -> Array:
  """float32[...] in [0, 1) -> int32[...], uniform among 0 ... count - 1."""
  xp = uniform.__array_namespace__()
  return xp.minimum((uniform * count).astype(xp.int32), count - 1)


def ranks(values: Array) -> Array:
  """The rank of each value in its row, equal ones from left to right: float[B, N] -> int[B, N]; of uniforms, a random permutation.

  By comparing all pairs: for the few values of a move much quicker inside jit than to sort twice.
  """
  xp = values.__array_namespace__()
  mine, other, at = values[:, :, None], values[:, None, :], xp.arange(values.shape[1])
  return ((other < mine) | ((other == mine) & (at[None, :] < at[:, None])[None])).sum(axis=2)


def symmetric(tokens: Array) -> Array:
  """float32[B] of zeros: the ratio of a move that is as probable backwards."""
  xp = tokens.__array_namespace__()
  return xp.zeros(len(tokens), xp.float32)


def exchange_moves(log_prior: Callable[[Array], Array]) -> tuple[Move, ...]:
  """Moves of any task with a prior: an input exchanges some of its columns with another input, drawn from the prior.

  With y drawn anew, the pair (x, y) follows p(x) p(y). The exchange is its own inverse (the columns are chosen among those that differ, which
  are the same before and after), so Metropolis-Hastings on the pair accepts it with probability p(x') p(y') / p(x) p(y), and x' alone follows
  p again; the ratio of these moves is p(y') / p(y). It is exact if y follows `log_prior`, as the inputs of a task do.

  Args:
    log_prior: int32[B, T] -> float[B], -inf for a text that is no input.
  """

  def exchanged(tokens, drawn, columns):
    xp = tokens.__array_namespace__()
    new, other = xp.where(columns, drawn, tokens), xp.where(columns, tokens, drawn)
    before, after = log_prior(drawn), log_prior(other)
    known = xp.isfinite(before) & xp.isfinite(after)
    return new, xp.where(known, xp.where(known, after, 0) - xp.where(known, before, 0), -xp.inf).astype(xp.float32)

  def rank(tokens, drawn):
    """int32[B, T]: how many columns up to this one differ; and int32[B, 1], how many there are."""
    xp = tokens.__array_namespace__()
    rank = xp.cumsum((tokens != drawn).astype(xp.int32), axis=1)
    return rank, rank[:, -1:]

  def redraw(uniforms, tokens, drawn):
    del uniforms
    return exchanged(tokens, drawn, tokens.__array_namespace__().ones(tokens.shape, bool))

  def splice(uniforms, tokens, drawn):
    differing, count = rank(tokens, drawn)
    return exchanged(tokens, drawn, differing > choice(uniforms, count))

  def insert(uniforms, tokens, drawn):
    xp = tokens.__array_namespace__()
    differing, count = rank(tokens, drawn)
    ends = choice(uniforms, count)
    first, last = 1 + xp.min(ends, axis=1, keepdims=True), 1 + xp.max(ends, axis=1, keepdims=True)
    return exchanged(tokens, drawn, (differing >= first) & (differing <= last))

  return (
    Move("redraw", 0, redraw, 1.0, drawn=True),
    Move("another ending", 1, splice, 1.0, drawn=True),
    Move("another part", 2, insert, 2.0, drawn=True),
  )
