"""The variable that an activation encodes, named from its preimages: the one whose level set they are.

A preimage holds the inputs with nearly the same activation. An activation that is a one-to-one function of a variable has for its preimage exactly
the inputs with the query's value: not fewer, or it encodes more, and not more, or it encodes less. So candidates are the variables that the
members agree on (`measures.consistency`), and those are named whose inputs with the query's values overlap most with the preimage. What is a
function of a variable is as consistent, but holds for more inputs; what the preimage does not fix holds for others.

Shapes: Q queries, M members of a preimage, N random inputs, V variables.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.measures.consistency import ENCODES, certainty_of
from inversionview_jax.measures.rates import Rate

_CONSTANT = 0.99  # share of the inputs inside epsilon from which an activation counts as constant
_LEAST = 0.5  # overlap below which the best set is named nothing
_FIXED = 0.95  # certainty of a variable from which all members count as agreeing on it
_GAIN = 0.02  # of overlap, for which one more variable is named
_SHORTLIST = 12  # variables of the largest overlap that are tried together


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
  """The preimages of several queries of one component, at the component's position.

  Attributes:
    names: V variables, of which no two split the inputs alike and none is constant.
    bits: float[Q], of the preimages, among the inputs that have the position.
    inside: Q of bool[M, V], whether each member has the query's value.
    random: bool[Q, N, V], the same for random inputs with the position.
  """

  names: tuple[str, ...]
  bits: np.ndarray
  inside: Sequence[np.ndarray]
  random: np.ndarray


@dataclasses.dataclass(frozen=True)
class Named:
  """What a reader names.

  Attributes:
    variables: names; () where the activation is constant, or encodes none of the variables.
    constant: whether nearly all inputs lie inside epsilon.
    overlap: of the inputs with the query's values and the preimage, intersection over union, mean over the queries.
    bits: mean information in the activation.
    consistency: name -> mean share of the members with the query's value, of the named ones.
  """

  variables: tuple[str, ...]
  constant: bool
  overlap: float
  bits: float
  consistency: Mapping[str, float]


def _rates(evidence: Evidence) -> tuple[Any, Any]:
  """float[V] twice: the mean share of members with the query's value, and that of random inputs."""
  rate = np.array([same.mean(axis=0) for same in evidence.inside]).mean(axis=0)
  return rate, np.minimum(evidence.random.mean(axis=(0, 1)), 1 - 1e-9)


def certain(evidence: Evidence) -> Named:
  """Every variable that is encoded by itself, as a reading has it: more than half of what random inputs leave open is settled, by the lower end
  of the interval over queries.
  """
  count = len(evidence.bits)
  bits, share = (float(x.mean()) if count else 0.0 for x in (evidence.bits, 2.0**-evidence.bits))
  if not count or share >= _CONSTANT or not evidence.names:
    return Named((), share >= _CONSTANT, share, bits, {})
  rate, base = _rates(evidence)
  low: Any = np.array([Rate(one * count, count).low for one in rate])
  chosen = np.flatnonzero(certainty_of(low, base) > ENCODES).tolist()
  consistency = {evidence.names[v]: float(rate[v]) for v in chosen}
  return Named(tuple(consistency), False, overlap(evidence, chosen) if chosen else 0.0, bits, consistency)


def name(evidence: Evidence) -> Named:
  """The set of variables whose level sets are the preimages.

  Forward selection by overlap, from every variable and every pair of the best ones; a variable stays if the overlap falls without it.
  """
  bits = float(evidence.bits.mean())
  share = 2.0**-evidence.bits
  if share.mean() >= _CONSTANT or not evidence.names:
    return Named((), True, float(share.mean()), bits, {})
  rate, base = _rates(evidence)
  certainty: Any = certainty_of(rate, base)
  candidates = np.flatnonzero(certainty > ENCODES)
  if not len(candidates):
    return Named((), False, 0.0, bits, {})
  # What all members agree on, first: of a set that is not quite consistent, growing may not lead there.
  fixed = candidates[certainty[candidates] > _FIXED]
  best, score = max((_search(evidence, some.tolist()) for some in (fixed, candidates)), key=lambda found: found[1])
  if score < _LEAST:
    return Named((), False, score, bits, {})
  chosen = _prune(evidence, best, score)
  return Named(
    tuple(evidence.names[v] for v in chosen), False, score, bits, {evidence.names[v]: float(rate[v]) for v in chosen}
  )


def overlap(evidence: Evidence, chosen: Sequence[int]) -> float:
  """Intersection over union of the preimage and the inputs with the query's values of all chosen variables, mean over the queries."""
  columns = list(chosen)
  consistent = np.array([same[:, columns].all(axis=1).mean() for same in evidence.inside])
  level = evidence.random[:, :, columns].all(axis=2).mean(axis=1)
  share = 2.0**-evidence.bits
  both = consistent * share
  return float(np.minimum(both / np.maximum(share + level - both, 1e-12), 1.0).mean())


def _search(evidence: Evidence, candidates: Sequence[int]) -> tuple[list[int], float]:
  """Forward selection by overlap, from the best variable or pair; ([], 0) without candidates."""
  if not candidates:
    return [], 0.0
  singles = {v: overlap(evidence, [v]) for v in candidates}
  order = sorted(candidates, key=lambda v: -singles[v])[:_SHORTLIST]
  best, score = [order[0]], singles[order[0]]
  for i, v in enumerate(order):
    for w in order[:i]:
      value = overlap(evidence, [v, w])
      if value > score + _GAIN:
        best, score = [v, w], value
  return _grow(evidence, best, score, candidates)


def _grow(evidence: Evidence, chosen: list[int], score: float, candidates: Sequence[int]) -> tuple[list[int], float]:
  while score < 1 - _GAIN:
    others = [v for v in candidates if v not in chosen]
    values = [overlap(evidence, [*chosen, v]) for v in others]
    if not values or max(values) <= score + _GAIN:
      break
    chosen, score = [*chosen, others[int(np.argmax(values))]], max(values)
  return chosen, score


def _prune(evidence: Evidence, chosen: list[int], score: float) -> list[int]:
  for v in list(chosen):
    less = [w for w in chosen if w != v]
    if less and overlap(evidence, less) > score - _GAIN:
      chosen = less
  return chosen
