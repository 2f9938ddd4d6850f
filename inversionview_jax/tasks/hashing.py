"""Random numbers that are functions of (seed, index), so that a draw for one input does not depend on the others.

Shapes: B batch.
"""

from typing import Any

import numpy as np


def split_mix(x: np.ndarray) -> np.ndarray:
  """SplitMix64 (Steele, Lea and Flood, 2014): int64[...] -> uint64[...], a hash with the statistics of random numbers."""
  x = x.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def uniform(bound: int | np.ndarray, seed: int, index: np.ndarray, *salt: int) -> np.ndarray:
  """Uniform integers, int64[B], one for each index.

  Args:
    bound: int or int[B], exclusive; far below 2^64, because it is the divisor of a remainder.
    seed: of the draws.
    index: int64[B].
    salt: distinguishes the draws for one index.
  """
  mixed = split_mix(np.asarray([seed]))
  for part in (*salt, index):
    mixed = split_mix(mixed ^ np.atleast_1d(np.asarray(part)).astype(np.uint64))
  return (mixed % np.asarray(bound).astype(np.uint64)).astype(np.int64)


def rows(tokens: Any) -> list:
  """Two independent hashes of each row, int[B, T] -> uint32[B] twice; NumPy or JAX arrays (FNV-1a with an extra shift)."""
  xp = tokens.__array_namespace__()
  out = []
  for factor, start in ((0x01000193, 0x811C9DC5), (0x9E3779B1, 0x7F4A7C15)):
    value = xp.full(tokens.shape[:1], start, dtype=xp.uint32)
    for column in range(tokens.shape[1]):
      value = (value ^ tokens[:, column].astype(xp.uint32)) * xp.uint32(factor)
      value = value ^ (value >> xp.uint32(15))
    out.append(value)
  return out
