"""Preimages that are compared between devices: of shipped readers, exact ones, and by Monte Carlo.

Shapes: N samples or inputs, T tokens, Q queries.
"""

import dataclasses

import numpy as np

from inversionview_jax.benchmarks.device import models
from inversionview_jax.devices import parallel
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Reader, preimage
from inversionview_jax.sampling import Queries, exact
from inversionview_jax.sampling.sampler import distances
from inversionview_jax.targets import load_target

SAMPLES = 64  # of a preimage
_SEED = 3
# Reader -> queries (text, site, position).
QUERIES = {
  "addition": (("615+861=1476", "a0.0", "="), ("253+548=801", "x1.mid", "A1")),
  "counting": (("vvzccvczvvvzvcvc|v:8", "x0.post", "|"),),
}
# Exact preimages: (text, site, position, whether the position has to be the same one).
EXACT = (("615+861=1476", "a0.0", "=", False), ("253+548=801", "x1.mid", "A1", True))
BLOCK = 900  # inputs of one count: those with the same first operand
MARGIN = 1e-5  # distance, in units of the query's norm; inputs so near to epsilon may fall on either side
EVERY = 811  # every so manieth distance is compared


@dataclasses.dataclass(frozen=True)
class Drawn:
  """The samples of one preimage, nearest first.

  Attributes:
    tokens: int32[N, T], as the tokenizer encodes their texts with BOS and EOS.
    distance: float32[N].
    position: int32[N].
  """

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray

  @classmethod
  def of(cls, found: Preimage, reader: Reader) -> "Drawn":
    """The samples of a preimage."""
    t, length = reader.task.tokenizer, reader.task.length
    rows = np.full((len(found.samples), length), t.pad_id, np.int32)
    for row, sample in zip(rows, found.samples, strict=True):
      ids = [t.bos_id, *sample.tokens, *([t.eos_id] if sample.ended else [])]
      row[: len(ids)] = ids
    return cls(
      rows,
      np.array([s.distance for s in found.samples], np.float32),
      np.array([s.position for s in found.samples], np.int32),
    )


def preimages(name: str, samples: int = SAMPLES, reader: Reader | None = None) -> list[Drawn]:
  """The preimage of each of a reader's `QUERIES`; `reader`: the same one on other devices."""
  reader = reader or models.reader(name)
  found = [reader.preimage(*query, num_samples=samples, seed=_SEED, effects=False) for query in QUERIES[name]]
  return [Drawn.of(each, reader) for each in found]


def measured_again(name: str, query: tuple[str, str, str], tokens: np.ndarray) -> np.ndarray:
  """float32[N]: the distance of these texts, int32[N, T], to a query, measured by the target on this device."""
  reader = models.reader(name)
  text, site, position = query
  row = reader.task.tokenizer.encode_batch([text], length=reader.task.length, eos=True)
  at = reader.task.position(row[0], position)
  z = np.asarray(reader.target.run(row, [site])[site][0, at], np.float32)
  activations = reader.target.run(tokens, [site])[site]
  count = len(tokens)
  program = parallel.jit(distances)
  found, _ = program(
    activations,
    np.broadcast_to(z, (count, len(z))),
    np.full(count, -1, np.int32),
    np.zeros(count, np.int32),
    reader.task.counted_mask(tokens),
  )
  return np.asarray(found)


def matching(mine: Drawn, theirs: Drawn) -> tuple[int, float]:
  """How many samples of the two are the same text, and the largest difference of the distances of those that are."""
  left: dict[bytes, list[float]] = {}
  for row, distance in zip(theirs.tokens, theirs.distance, strict=True):
    left.setdefault(row.tobytes(), []).append(float(distance))
  same, worst = 0, 0.0
  for row, distance in zip(mine.tokens, mine.distance, strict=True):
    if other := left.get(row.tobytes()):
      same += 1
      before = other.pop(0)
      if np.isfinite(before) or np.isfinite(distance):
        worst = max(worst, abs(float(distance) - before))
  return same, worst


@dataclasses.dataclass(frozen=True)
class Enumerated:
  """Exact preimages of `EXACT`.

  Attributes:
    counts: int32[Q, 3, N / BLOCK], inputs of each block within epsilon less a margin, epsilon, and epsilon plus a margin.
    distance: float32[Q, N / EVERY], evenly spaced distances.
  """

  counts: np.ndarray
  distance: np.ndarray

  @property
  def members(self) -> np.ndarray:
    """int64[Q]: inputs within epsilon."""
    return self.counts[:, 1].sum(axis=1)


def enumerated() -> Enumerated:
  """The exact preimages of two queries: the target on all 810,000 inputs of addition."""
  reader = models.reader("addition")
  task = reader.task
  rows = task.tokenizer.encode_batch([query[0] for query in EXACT], length=task.length, eos=True)
  at = [task.position(row, query[2]) for row, query in zip(rows, EXACT, strict=True)]
  run = reader.target.run(rows, reader.sites)
  activations = [np.asarray(run[query[1]][i, at[i]], np.float32) for i, query in enumerate(EXACT)]
  site = [reader.site_index(query[1]) for query in EXACT]
  where = [position if query[3] else -1 for position, query in zip(at, EXACT, strict=True)]
  queries = Queries.of(np.stack(activations), site, task.metric, where)
  found = exact.distances(reader.target, task, reader.sites, queries, exact.every_input(task), models.mesh())
  thresholds = np.array([task.epsilon - MARGIN, task.epsilon, task.epsilon + MARGIN], np.float32)
  inside = found.distance[:, None] <= thresholds[:, None]
  counts = inside.reshape(*inside.shape[:2], -1, BLOCK).sum(axis=-1, dtype=np.int32)
  return Enumerated(counts, found.distance[:, ::EVERY])


def monte_carlo() -> Preimage:
  """The preimage of the first of `EXACT` by Monte Carlo on the target, over all devices."""
  text, site, position, _ = EXACT[0]
  return preimage(load_target("addition"), text, site, position, seed=0)
