"""Inputs that are given as a list: which of them a text is, their prior, and moves from one to another, by tables that also work inside jit.

Shapes: N inputs, M different ones, B rows, T tokens.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import hashing
from inversionview_jax.tasks.moves import Array, Move, choice, symmetric

MOST_TOKENS = 2**25  # of all inputs together: tables inside a jitted program, 128 MB
_FARTHEST = 512  # places to a neighbour in an order


def check_size(inputs: int, length: int, task: str) -> None:
  """Raises `InversionViewError` for more inputs than tables inside a program are made for."""
  if inputs * length > MOST_TOKENS:
    raise InversionViewError(
      f"the task {task!r} has {inputs:,} inputs of {length} tokens, and at most {MOST_TOKENS // length:,} are listed for Monte Carlo: "
      "give fewer of them (inputs.limit of factual), or a task with a log_prior of its own; bits need the list too (--no-bits)"
    )


class ListedInputs:
  """A list of inputs, each equally probable; one that is listed twice is twice as probable.

  Attributes:
    rows: int32[M, T], the different inputs in the order of their tokens.
    place: int64[N], the row of each input of the list.
    first: int64[M], where in the list each row is, for the first time.
  """

  def __init__(self, tokens: np.ndarray, pad_id: int):
    """Sorts the list.

    Args:
      tokens: int32[N, T].
      pad_id: PAD, with which rows end; it counts for no neighbourhood.
    """
    tokens = np.asarray(tokens, np.int32)
    order = np.lexsort(tokens.T[::-1])
    new = np.r_[True, (tokens[order][1:] != tokens[order][:-1]).any(axis=1)]
    self.rows, self.first, self._pad = tokens[order[new]], order[new], pad_id  # the sort is stable
    self.place = np.empty(len(tokens), np.int64)
    self.place[order] = np.cumsum(new) - 1
    self._log_prior = np.log(np.bincount(self.place) / len(tokens))
    hashed = hashing.rows(self.rows)[0]
    self._by_hash = np.argsort(hashed, kind="stable").astype(np.int32)
    self._hashes = hashed[self._by_hash]
    self._equal = int(np.unique(self._hashes, return_counts=True)[1].max())  # rows that share a hash, at most

  def find(self, tokens: Array) -> Array:
    """The row of each text, int[B, T] -> int32[B]; -1 for a text that is not listed."""
    xp = tokens.__array_namespace__()
    rows, by_hash = xp.asarray(self.rows), xp.asarray(self._by_hash)
    at = xp.searchsorted(xp.asarray(self._hashes), hashing.rows(tokens)[0])
    found = xp.full(tokens.shape[:1], -1, dtype=xp.int32)
    for step in range(self._equal):
      row = by_hash[xp.minimum(at + step, len(self.rows) - 1)]
      found = xp.where((rows[row] == tokens).all(axis=1), row, found)
    return found

  def index(self, tokens: Array) -> Array:
    """Where in the list each text is, for the first time, int[B, T] -> int[B]; -1 for a text that is not listed."""
    xp, row = tokens.__array_namespace__(), self.find(tokens)
    return xp.where(row >= 0, xp.asarray(self.first)[xp.maximum(row, 0)], -1)

  def log_prior(self, tokens: Array) -> Array:
    """float[B]: log of the share of the list that each text is; -inf for a text that is not listed."""
    xp, row = tokens.__array_namespace__(), self.find(tokens)
    return xp.where(row >= 0, xp.asarray(self._log_prior)[xp.maximum(row, 0)], -math.inf)

  def moves(self, groups: Mapping[str, np.ndarray] | None = None) -> tuple[Move, ...]:
    """Any other input, inputs that share the beginning or the ending, and other members of the same group; all symmetric.

    Args:
      groups: name of a move -> int[N], the group of each input of the list; -1: none.
    """
    order = self._by_ending()
    out = [Move("redraw", 1, self._redraw)]
    if len(self.rows) > 1:
      out += [
        Move("near in order", 3, self._neighbour(np.arange(len(order))), 2.0),
        Move("near in order of endings", 3, self._neighbour(order), 2.0),
      ]
    for name, group in (groups or {}).items():
      of = np.full(len(self.rows), -1)
      of[self.place[::-1]] = group[::-1]  # the first of the equal ones
      if np.bincount(of[of >= 0], minlength=1).max() > 1:
        out.append(Move(name, 1, self._same_group(of), 2.0))
    return tuple(out)

  def _by_ending(self) -> np.ndarray:
    """int64[M]: the rows in the order of their tokens from the last to the first, without PAD."""
    padding = np.cumprod((self.rows == self._pad)[:, ::-1], axis=1).sum(axis=1)
    columns = self.rows.shape[1] - 1 - padding[:, None] - np.arange(self.rows.shape[1])
    reverse = np.where(columns >= 0, np.take_along_axis(self.rows, np.maximum(columns, 0), axis=1), -1)
    return np.lexsort(reverse.T[::-1])

  def _moved(self, tokens, row):
    return tokens.__array_namespace__().asarray(self.rows)[row].astype(tokens.dtype), symmetric(tokens)

  def _redraw(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    return self._moved(tokens, choice(uniforms[:, 0], len(self.rows)))

  def _neighbour(self, order: np.ndarray) -> Callable[..., tuple[Array, Array]]:
    """Some places on or back in an order of the rows, near ones more often; none beyond its ends."""
    order = order.astype(np.int32)
    rank = np.argsort(order).astype(np.int32)
    scales = (min(_FARTHEST, len(order) - 1)).bit_length()

    def propose(uniforms, tokens):
      xp = tokens.__array_namespace__()
      old = xp.maximum(self.find(tokens), 0)
      farthest = xp.left_shift(xp.asarray(1, dtype=xp.int32), choice(uniforms[:, 0], scales))
      step = (1 + choice(uniforms[:, 1], farthest)) * xp.where(uniforms[:, 2] < 0.5, 1, -1)
      to = xp.asarray(rank)[old] + step
      there = (to >= 0) & (to < len(order))
      return self._moved(tokens, xp.where(there, xp.asarray(order)[xp.clip(to, 0, len(order) - 1)], old))

    return propose

  def _same_group(self, of: np.ndarray) -> Callable[..., tuple[Array, Array]]:
    """Another row of the same group; none for a row without others."""
    of = np.where(of >= 0, of, of.max() + 1 + np.arange(len(of)))  # a group of its own for each row without any
    members = np.argsort(of, kind="stable").astype(np.int32)
    starts = np.searchsorted(of[members], of).astype(np.int32)
    sizes = (np.searchsorted(of[members], of, side="right") - starts).astype(np.int32)
    rank = np.empty(len(of), np.int32)
    rank[members] = np.arange(len(of))

    def propose(uniforms, tokens):
      xp = tokens.__array_namespace__()
      old = xp.maximum(self.find(tokens), 0)
      start, size = xp.asarray(starts)[old], xp.asarray(sizes)[old]
      on = 1 + choice(uniforms[:, 0], xp.maximum(size - 1, 1))
      return self._moved(tokens, xp.asarray(members)[start + (xp.asarray(rank)[old] - start + on) % size])

    return propose
