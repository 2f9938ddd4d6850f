"""Means with standard errors over pairs of inputs, and ratios of them.

Shapes: N pairs.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

_ZERO = 1e-6  # an effect below this is none: no share of it


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over pairs.

  Attributes:
    mean: over the pairs.
    se: its standard error; NaN for a single pair.
    n: the number of pairs.
  """

  mean: float
  se: float
  n: int

  def __str__(self) -> str:
    return f"{self.mean:.4g} ± {self.se:.2g} (n = {self.n:,})"

  def to_data(self) -> dict:
    """Plain data for JSON, which has no NaN."""
    return {"mean": self.mean, "se": None if math.isnan(self.se) else self.se, "n": self.n}

  @classmethod
  def from_data(cls, data: Mapping | None) -> "Estimate | None":
    """An estimate from what `to_data` made; None of None."""
    if data is None:
      return None
    return cls(float(data["mean"]), math.nan if data["se"] is None else float(data["se"]), int(data["n"]))


def read_estimate(data: Mapping) -> Estimate:
  """An estimate that is there, from what `to_data` made."""
  found = Estimate.from_data(data)
  assert found is not None
  return found


def estimate(values: np.ndarray) -> Estimate:
  """float[N] -> its mean with standard error."""
  values = np.asarray(values, np.float64)
  n = len(values)
  return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)


def share(part: np.ndarray, total: np.ndarray) -> Estimate | None:
  """mean(part) / mean(total), float[N] each, with its standard error to first order (delta method); None if the total is zero."""
  part, total = np.asarray(part, np.float64), np.asarray(total, np.float64)
  if abs(total.mean()) < _ZERO:
    return None
  ratio = part.mean() / total.mean()
  return dataclasses.replace(estimate((part - ratio * total) / total.mean()), mean=float(ratio))
