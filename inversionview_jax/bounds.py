"""Counts that a person gives, as arguments or flags: one table of their ranges, checked before anything of their size is made."""

import os
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError

# What can be a million: candidates, queries and inputs are held in memory together, a kilobyte and more each.
MANY = 1_000_000
MOST_SEED = 2**32 - 1  # JAX's keys take 32 bits, and drop the others without a word
# Argument -> its smallest and largest value; a flag of that name has the same, or is narrower.
COUNTS = {
  "num_samples": (1, MANY),
  "particles": (2, MANY),
  "budget": (1, 10**12),
  "growth": (0, 1000),
  "rounds": (1, 1000),
  "chunk": (0, MANY),
  "shown": (1, MANY),
  "queries": (1, MANY),
  "exact_queries": (0, MANY),
  "members": (1, MANY),
  "controls": (1, 10_000),
  "inputs": (1, MANY),
  "all_inputs": (1, 2**63),  # of a task that enumerates, at most as many as it has
  "draws": (1, MANY),
  "noise_draws": (1, 100_000),
  "pairs": (1, 100_000_000),
  "top": (1, MANY),
  "count": (1, MANY),
  "rows": (1, MANY),
  "batch_size": (1, 2**20),
  "batch_per_device": (1, MANY),
  "max_tokens": (1, MANY),
  "retries": (0, 100),
  "at_once": (1, 256),
  "seed": (0, 2**31 - 1),  # where others are derived from it, such as seed + 1
  "own_seed": (0, MOST_SEED),
}
# The same for finite numbers.
NUMBERS = {"temperature": (0.0, 100.0), "noise": (0.0, 1000.0), "epsilon": (0.0, 1e6), "timeout": (0.0, 86_400.0)}


def check(**counts: Any) -> None:
  """Raises `InversionViewError`, by its name, for the first count that is no whole number of its range; None is a default."""
  for name, value in counts.items():
    if value is not None:
      values.whole(name, value, *COUNTS[name])


def whole(name: str, value: Any, like: str = "") -> int:
  """A count as an int; raises `InversionViewError` for one that is no whole number of the range of this name, or of `like`."""
  return values.whole(name, value, *COUNTS[like or name])


def check_memory(needed: float, what: str, remedy: str) -> None:
  """Raises `InversionViewError` for what takes more bytes than this machine's whole memory; nothing where that is not known."""
  try:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  except (AttributeError, ValueError, OSError):
    return
  if needed > memory:
    raise InversionViewError(f"{what} take {needed / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}: {remedy}")
