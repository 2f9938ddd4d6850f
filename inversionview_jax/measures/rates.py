"""Shares and how well they are known. Needs no JAX."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Rate:
  """A share of `count` independent trials, `hits` of which succeeded; `low` and `high` bound it with 95 % (Wilson, 1927).

  Neither need be whole: of trials that weigh differently `count` is the effective number.
  """

  hits: float
  count: float

  @property
  def value(self) -> float:
    return min(self.hits / self.count, 1.0) if self.count else math.nan

  @property
  def low(self) -> float:
    return self._bound(-1.0)

  @property
  def high(self) -> float:
    return self._bound(1.0)

  def _bound(self, sign: float) -> float:
    n, z = self.count, 1.959964
    if not n:
      return math.nan
    p = min(self.hits / n, 1.0)
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return min(max((middle + sign * half) / (1 + z * z / n), 0.0), 1.0)

  def to_dict(self) -> dict:
    return {"value": self.value, "low": self.low, "high": self.high, "hits": self.hits, "count": self.count}
