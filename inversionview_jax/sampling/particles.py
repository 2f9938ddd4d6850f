"""Particles of Monte Carlo on the target: how long to sample, what a level did, what a run ends with, and whether two populations agree.

Shapes: N particles, T tokens.
"""

import dataclasses

import numpy as np

ISLANDS = 2  # populations that never mix


@dataclasses.dataclass(frozen=True)
class Settings:
  """How long to sample.

  Attributes:
    particles: N; a multiple of twice the number of devices.
    keep: share of the particles that a level keeps.
    moves: accepted moves of a particle, on average, after which a level is done.
    final_moves: the same at the final level.
    sweeps: of one call of the program, at most.
    disagreement: of the islands, in units of what two independent samples of their size show, up to which they count as agreeing.
    cooling: share of the budget after which the threshold falls to epsilon at once, if a particle lies inside.
  """

  particles: int = 1024
  keep: float = 0.5
  moves: float = 1.0
  final_moves: float = 4.0
  sweeps: int = 24
  disagreement: float = 1.6
  cooling: float = 1.0


@dataclasses.dataclass(frozen=True)
class Level:
  """One level of a run.

  Attributes:
    epsilon: its threshold.
    survivors: share of the particles that the threshold kept.
    acceptance: kind of move -> accepted share of its proposals (of those that begin with it).
    distinct: different particles at the end of the level.
    moved: share of the particles that changed at least once.
    sweeps: how many there were.
  """

  epsilon: float
  survivors: float
  acceptance: dict[str, float]
  distinct: int
  moved: float
  sweeps: int


@dataclasses.dataclass(frozen=True)
class Population:
  """What a run ends with.

  Attributes:
    tokens, distance, position: int32[N, T], float32[N], int32[N], the particles, which follow the prior inside the last threshold.
    rejected_tokens, rejected_distance, rejected_position: the nearest different proposals outside epsilon, nearest first.
    bits: -log2 of the prior's probability of the preimage, and its standard error; None where epsilon was not reached or the start was not
      the prior.
    bits_error: the standard error: that of the surviving shares, or half of what the two islands differ by, whichever is larger.
    converged: whether epsilon was reached, the particles have moved enough, and the two islands agree. Where the start was not the prior, both
      islands had it in common, and what it lacks and no move reaches is lacking in both.
    problem: why it has not converged; "" if it has.
    target_runs: inputs that the target was run on.
    levels: see `Level`.
  """

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray
  rejected_tokens: np.ndarray
  rejected_distance: np.ndarray
  rejected_position: np.ndarray
  bits: float | None
  bits_error: float | None
  converged: bool
  problem: str
  target_runs: int
  levels: tuple[Level, ...]


def disagreement(tokens: np.ndarray, island: np.ndarray, vocabulary: int) -> float:
  """Total variation between the token marginals of two islands, over what two independent samples of their size show on average.

  Args:
    tokens, island, vocabulary: as for `variation`.

  Returns:
    The ratio of the two, each summed over positions; 0 where all particles are equal.
  """
  found, expected = variation(tokens, island, vocabulary)
  return found / expected if expected else 0.0


def variation(tokens: np.ndarray, island: np.ndarray, vocabulary: int) -> tuple[float, float]:
  """Total variation between the token marginals of two islands.

  Args:
    tokens: int32[N, T].
    island: int[N], 0 or 1.
    vocabulary: V.

  Returns:
    The mean over positions, and what it is on average for two independent samples of their size.
  """
  counts = [
    np.stack([np.bincount(column, minlength=vocabulary) for column in tokens[island == i].T]) for i in range(ISLANDS)
  ]
  sizes = [count[0].sum() for count in counts]
  found = 0.5 * np.abs(counts[0] / sizes[0] - counts[1] / sizes[1]).sum(axis=1).mean()
  p = (counts[0] + counts[1]) / sum(sizes)
  # |difference| of two means of a share p: sqrt(2 / pi) times its standard deviation sqrt(p (1 - p) (1 / n + 1 / m)).
  expected = 0.5 * np.sqrt(2 / np.pi * p * (1 - p) * sum(1 / size for size in sizes)).sum(axis=1).mean()
  return float(found), float(expected)
