"""Variables as partitions of the inputs: which split them alike, and whether a set of named variables is that of the written ones.

Two variables that are functions of each other split the inputs alike; nothing that one could measure tells them apart, so they are one answer.

Shapes: N inputs, V variables.
"""

import itertools
from collections.abc import Collection, Mapping, Sequence

import numpy as np

_MOST_JOINED = 4  # variables of a set that are named together
_MANY = 12  # named variables above which only pairs are looked at, so that a set of 60 has 1,770 subsets


def partition(values: np.ndarray) -> np.ndarray:
  """int32[N]: the part of each input, numbered by their first members, from int[N] or int[N, V] values (inputs are alike in all V)."""
  values = np.asarray(values)
  table = values.reshape(len(values), -1)
  _, first, which = np.unique(table, axis=0, return_index=True, return_inverse=True)
  rank = np.empty(len(first), np.int32)
  rank[np.argsort(first, kind="stable")] = np.arange(len(first), dtype=np.int32)
  return rank[which.reshape(-1)]


def key(values: np.ndarray) -> bytes:
  """The same for two variables that split the inputs alike."""
  return partition(values).tobytes()


def _subsets(names: Sequence[str], parts: Mapping[str, np.ndarray], most: int) -> list[tuple[tuple[str, ...], bytes]]:
  """Sets of at most `most` of the variables of which none follows from the others, each with the key of its joint partition."""
  joint: dict[tuple[str, ...], np.ndarray] = {(): np.zeros(0, np.int32)}
  found = []
  for size in range(1, most + 1):
    for chosen in itertools.combinations(names, size):
      table = np.stack([parts[name] for name in chosen], axis=1)
      whole = partition(table)
      count = int(whole.max(initial=-1)) + 1
      less = [joint.get(tuple(other for other in chosen if other != name)) for name in chosen]
      if any(one is None or (len(one) and int(one.max()) + 1 == count) for one in less):
        continue  # a smaller set is as fine
      joint[chosen] = whole
      found.append((chosen, whole.tobytes()))
  return found


def matched(
  named: Collection[str], true: Collection[str], parts: Mapping[str, np.ndarray]
) -> tuple[set[str], set[str]]:
  """Which of the named variables are right, and which of the true ones they cover.

  A set of named variables is right if it splits the inputs as a set of the true ones does: one and one, or, say, the token for "is it an opening
  bracket" and "is it a closing bracket" together. Sets of which one variable follows from the others do not count.

  Args:
    named, true: names of variables that are not constant; of those that split the inputs alike one is enough.
    parts: name -> int32[N], the partition of each.

  Returns:
    Those of `named` and those of `true` in sets that match.
  """
  most = _MOST_JOINED if len(named) <= _MANY else 2
  by_key: dict[bytes, set[str]] = {}
  for chosen, whole in _subsets(sorted(true), parts, len(true)):
    by_key.setdefault(whole, set()).update(chosen)
  right: set[str] = set()
  covered: set[str] = set()
  for chosen, whole in _subsets(sorted(named), parts, min(most, len(named))):
    if whole in by_key:
      right.update(chosen)
      covered |= by_key[whole]
  return right, covered
