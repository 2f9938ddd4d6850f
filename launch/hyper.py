"""Hyperparameter sweeps: lists of {flag: value}, one per work unit.

A config file's `get_hyper(hyper)` gets this module as its argument and returns such a list:

    def get_hyper(hyper):
      return hyper.product([hyper.sweep("config.optimizer.lr", (1e-3, 3e-3)), hyper.sweep("config.seed", range(3))])
"""

import itertools
from collections.abc import Iterable, Sequence

Hyper = list[dict[str, object]]


def sweep(name: str, values: Iterable[object]) -> Hyper:
  """One work unit for each value of one flag.

  Args:
    name: of the flag, such as "config.seed".
    values: of the flag.

  Raises:
    ValueError: a name that is no key of the config, or a string instead of a list of values.
  """
  if not isinstance(name, str) or name.partition(".")[0] != "config" or not name.partition(".")[2]:
    raise ValueError(f"sweep over {name!r}: name a key of the config, such as 'config.seed'")
  if isinstance(values, str):
    raise ValueError(f"sweep over {name}: {values!r} is one string; give a list of values")
  return [{name: value} for value in values]


def product(sweeps: Sequence[Hyper]) -> Hyper:
  """The Cartesian product, the last sweep varying fastest; of no sweeps: one unit that sets nothing."""
  return [_merged(units) for units in itertools.product(*sweeps)]


def zipit(sweeps: Sequence[Hyper]) -> Hyper:
  """The first units of all sweeps merged, then the second, and so on; `ValueError` unless all have one length."""
  lengths = [len(units) for units in sweeps]
  if len(set(lengths)) > 1:
    raise ValueError(f"zipit needs sweeps of one length, and these have {', '.join(map(str, lengths))}")
  return [_merged(units) for units in zip(*sweeps, strict=True)]


def chainit(sweeps: Sequence[Hyper]) -> Hyper:
  """The units of one sweep after those of another."""
  return [dict(unit) for units in sweeps for unit in units]


def _merged(units: Sequence[dict[str, object]]) -> dict[str, object]:
  merged = {}
  for unit in units:
    if twice := merged.keys() & unit.keys():
      raise ValueError(f"two sweeps set {min(twice)}; leave it in one of them")
    merged |= unit
  return merged
