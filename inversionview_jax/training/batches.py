"""Batches addressed by index: batch i is a function of (rows, seed, i).

Shapes: N rows, B batch, T tokens.
"""

import functools
import operator

import numpy as np

from inversionview_jax.errors import InversionViewError


class Batches:
  """An endless sequence of batches: ``batches[i]`` is a function of (rows, seed, i) alone.

  Every epoch is a new random order of all rows. Epochs follow one another without a gap: every row comes once in N rows, and a batch may
  hold the end of one epoch and the start of the next.

  Args:
    rows: int[N, T].
    batch_size: B; may exceed N.
    seed: a non-negative integer; another seed gives other orders.

  Raises:
    InversionViewError: no rows, a batch size below 1, or a negative seed.
  """

  def __init__(self, rows: np.ndarray, batch_size: int, seed: int):
    if not len(rows):
      raise InversionViewError("there are no rows to make batches of")
    if batch_size < 1:
      raise InversionViewError(f"batch size is {batch_size}: it must be at least 1")
    if seed < 0:
      raise InversionViewError(f"seed is {seed}: it must not be negative")
    self.rows, self.batch_size, self.seed = rows, batch_size, seed
    # NumPy permutations: 11 ms an epoch for 600,000 rows, then 0.04 ms for a batch of 512. The same with grain's
    # MapDataset.source(rows).shuffle(seed).repeat().batch(512)[i] takes 12 ms, as it looks up each row in Python.
    # Two are kept, since a batch may touch two epochs.
    self._order = functools.lru_cache(maxsize=2)(self._new_order)

  def __getitem__(self, i: int) -> np.ndarray:
    """int32[B, T]: batch i, counted from 0 over all epochs."""
    return self.local(i, 0, 1)

  def local(self, i: int, shard: int, num_shards: int) -> np.ndarray:
    """int32[B / num_shards, T]: the rows that `shard`, of 0 ... num_shards - 1, contributes to batch i.

    Shards are contiguous: concatenated in order they are ``batches[i]``. Only the shard's own rows are looked up.

    Raises:
      InversionViewError: B is not a multiple of `num_shards`, or there is no such shard.
      IndexError: i is negative; there is no last batch to count from.
    """
    i = operator.index(i)
    if i < 0:
      raise IndexError(f"batch {i}: batches are counted from 0 and have no end")
    if num_shards < 1 or self.batch_size % num_shards:
      raise InversionViewError(f"a batch of {self.batch_size} rows cannot be divided evenly into {num_shards} shards")
    if not 0 <= shard < num_shards:
      raise InversionViewError(f"shard {shard} is out of range: there are {num_shards}, counted from 0")
    size = self.batch_size // num_shards
    start = i * self.batch_size + shard * size
    epochs, offsets = np.divmod(np.arange(start, start + size), len(self.rows))
    parts = [self._order(epoch)[offsets[epochs == epoch]] for epoch in range(epochs[0], epochs[-1] + 1)]
    return self.rows[np.concatenate(parts)].astype(np.int32)

  def _new_order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
