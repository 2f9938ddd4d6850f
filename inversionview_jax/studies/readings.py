"""What the preimages of several queries at one site agree on: rates of features, base rates, and a control. Needs no JAX.

The rate of a feature is the share of a query's members whose value is the query's, the mean over queries; its base the share of all inputs of the
pool, and its control the share of the members of the other queries, which can have the query's value by chance only.

Shapes: Q queries, N inputs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.measures.rates import Rate

# A reading names a feature from this rate, where so much of what chance leaves is agreed on, (rate - base) / (1 - base), which holds for every
# such rate with a base up to 0.3; and where the control rises no further above the base.
RATE, BEYOND_CHANCE, CONTROL = 0.8, 0.7, 0.1
QUERIES = 5  # with enough members, from which on a reading names anything
FEWEST = 5  # members, besides the query's own input; a query with fewer is left out


@dataclasses.dataclass(frozen=True)
class FeatureRate:
  """One feature at one site.

  Attributes:
    feature: its name.
    rate: mean over queries of the share of members with the query's value.
    base: of the pool's inputs, mean over the same queries.
    control: of the members of other queries; None for a single query.
    elsewhere: as `rate`, among members whose value of `apart` is another than the query's; None where there are none.
    queries: how many have a value and enough members.
  """

  feature: str
  rate: Rate
  base: float
  control: float | None
  elsewhere: float | None
  queries: int

  @property
  def named(self) -> bool:
    """Whether a reading names the feature."""
    control = self.base if self.control is None else self.control
    beyond = (self.rate.value - self.base) / max(1 - self.base, 1e-9)
    return (
      self.queries >= QUERIES and self.rate.value >= RATE and beyond >= BEYOND_CHANCE and control <= self.base + CONTROL
    )

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return dataclasses.asdict(self) | {"rate": self.rate.to_dict(), "named": self.named}


@dataclasses.dataclass(frozen=True)
class SiteReading:
  """What one site encodes over several queries.

  Attributes:
    epsilon: inside which members lie.
    features: those that are named first, of these the one with the lowest base first; then by rate.
    members: median number of members of a query.
    queries: with enough members.
    too_few: queries with fewer.
  """

  epsilon: float
  features: tuple[FeatureRate, ...]
  members: float
  queries: int
  too_few: int

  @property
  def named(self) -> list[str]:
    """The features that the reading names."""
    return [feature.feature for feature in self.features if feature.named]

  def __getitem__(self, feature: str) -> FeatureRate:
    return next(one for one in self.features if one.feature == feature)

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
      "epsilon": self.epsilon,
      "named": self.named,
      "members": self.members,
      "queries": self.queries,
      "too_few": self.too_few,
      "features": [feature.to_data() for feature in self.features],
    }


def read(
  distance: np.ndarray,
  epsilon: float,
  values: Mapping[str, np.ndarray],
  queries: np.ndarray,
  names: Sequence[str],
  apart: str = "",
) -> SiteReading:
  """The rates of features among the members of queries.

  Args:
    distance: float32[Q, N], of each input from each query.
    epsilon: up to which an input is a member.
    values: feature -> int[N], of the pool's inputs; -1: none.
    queries: int64[Q], which of the inputs each query is; it is no member of its own preimage. -1: none of them.
    names: features, keys of `values`.
    apart: the feature in which members must differ from the query to count for `elsewhere`; "": not measured.
  """
  inside = distance <= np.float32(epsilon)
  own = np.flatnonzero(queries >= 0)
  inside[own, queries[own]] = False
  members = inside.sum(axis=1)
  used = np.flatnonzero(members >= FEWEST)
  rates = [_rate(name, inside[used], values, queries[used], apart) for name in names]
  known = sorted((rate for rate in rates if rate is not None), key=_order)
  median = float(np.median(members[used])) if len(used) else 0.0
  return SiteReading(epsilon, tuple(known), median, len(used), len(members) - len(used))


def _order(feature: FeatureRate) -> tuple:
  return (0, feature.base) if feature.named else (1, -feature.rate.value)


def _rate(
  name: str, inside: np.ndarray, values: Mapping[str, np.ndarray], queries: np.ndarray, apart: str
) -> FeatureRate | None:
  """One feature; None where no query has a value of it."""
  own = values[name][queries]
  has = np.flatnonzero(own >= 0)
  if not len(has):
    return None
  same = values[name][None] == own[has, None]  # [Q', N]
  # Row: a query's value; column: the members of a query.
  shares = (same.astype(np.float32) @ inside[has].T.astype(np.float32)) / inside[has].sum(axis=1)
  rate, count = float(np.mean(np.diag(shares))), len(has)
  others = ~np.eye(count, dtype=bool)
  elsewhere = None
  if apart and apart != name:
    beyond = inside[has] & (values[apart][None] != values[apart][queries[has], None])
    some = beyond.any(axis=1)
    if some.any():
      elsewhere = float(np.mean((same & beyond).sum(axis=1)[some] / beyond.sum(axis=1)[some]))
  return FeatureRate(
    name,
    Rate(rate * count, count),
    float(same.mean()),
    float(shares[others].mean()) if count > 1 else None,
    elsewhere,
    count,
  )
