"""Rates with 95 % intervals. Needs no JAX."""

import dataclasses
import math

import numpy as np

Z95 = 1.959964  # two-sided 95 % of the standard normal distribution


@dataclasses.dataclass(frozen=True)
class Rate:
  """The share of `count` independent trials of which `hits` succeeded, with its 95 % interval (Wilson, 1927).

  Neither need be whole: of trials with unequal weights `count` is the effective number. `scipy.stats.binomtest` has the same interval for
  whole counts only (equal to 1e-8 there), and takes 3.2 ms for it where this takes 8 us; a page of readings has hundreds.
  """

  hits: float
  count: float

  @property
  def value(self) -> float:
    return min(self.hits / self.count, 1.0) if self.count else math.nan

  @property
  def low(self) -> float:
    """Lower end of the interval."""
    return self._bound(-1.0)

  @property
  def high(self) -> float:
    """Upper end of the interval."""
    return self._bound(1.0)

  def _bound(self, sign: float) -> float:
    n, z = self.count, Z95
    if not n:
      return math.nan
    p = min(self.hits / n, 1.0)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(max((middle + sign * half) / (1 + z * z / n), 0.0), 1.0)

  def __str__(self) -> str:
    return f"{self.value:.3f} ({self.low:.2f}-{self.high:.2f})"

  def to_dict(self) -> dict[str, float]:
    """Plain data for JSON."""
    return {"value": self.value, "low": self.low, "high": self.high, "hits": self.hits, "count": self.count}


def auc(inside: np.ndarray, outside: np.ndarray) -> float | None:
  """Mann-Whitney AUC: P(a random value of `inside` is larger than one of `outside`), ties counting half (Mann and Whitney, 1947).

  Equal to `scipy.stats.mannwhitneyu`'s statistic over the number of pairs; that ranks all values, where sorting one side is enough: 0.65 s
  against 0.019 s for 2,000 inside and 808,000 outside.

  Args:
    inside, outside: float[N], float[M].

  Returns:
    The AUC; None where one of them is empty.
  """
  if not len(inside) or not len(outside):
    return None
  ranked = np.sort(outside)
  twice_below = np.searchsorted(ranked, inside, side="left") + np.searchsorted(ranked, inside, side="right")
  return float(twice_below.mean() / (2 * len(outside)))
