"""How far to trust a reader: how often its samples lie inside epsilon, next to what random inputs reach, and all of it in one evaluation.

Shapes: Q queries, T tokens, D width of the activation, S sites.
"""

import dataclasses

import jax
import numpy as np

from inversionview_jax import distance
from inversionview_jax.devices import parallel
from inversionview_jax.measures.rates import Rate
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling import collect, exact, sampler

__all__ = ["HeldOutQueries", "Rate", "base_rates", "held_out", "inside"]


@dataclasses.dataclass(frozen=True)
class HeldOutQueries:
  """Held-out queries.

  Attributes:
    tokens: int32[Q, T], the inputs.
    at: int32[Q], positions.
    labels: the task's names of these positions; "" where it has none.
    queries: their activations, sites and the task's metric; minimum over positions.
  """

  tokens: np.ndarray
  at: np.ndarray
  labels: tuple[str, ...]
  queries: sampler.Queries

  def __len__(self) -> int:
    return len(self.at)

  def take(self, which) -> "HeldOutQueries":
    """Some of them, by index."""
    which = np.arange(len(self))[which]
    queries = jax.tree.map(lambda x: x[which], self.queries)
    return HeldOutQueries(self.tokens[which], self.at[which], tuple(self.labels[i] for i in which), queries)


def held_out(reader: Reader, count: int, seed: int = 0, every_site: bool = True) -> HeldOutQueries:
  """Queries on inputs of the task's test split, positions uniform over those where the task takes queries.

  Args:
    reader: whose sites are asked.
    count: queries; of each site if `every_site`, else in total, the sites in turn.
    seed: inputs and positions are a function of it.
    every_site: see `count`.
  """
  task, n_sites = reader.task, len(reader.sites)
  rng = np.random.default_rng(seed)
  index = task.split("test")
  texts = task.tokens(index[rng.permutation(len(index))[:count]])
  per_text = n_sites if every_site else 1
  mask = np.asarray(task.query_mask(texts))
  # The position of the largest of random numbers over those allowed is uniform over them.
  draws = np.where(mask[:, None, :], rng.random((len(texts), per_text, mask.shape[1])), -1.0)
  at = np.argmax(draws, axis=2).astype(np.int32)  # [count, per_text]
  site = np.arange(len(texts) * per_text, dtype=np.int32).reshape(len(texts), per_text) % n_sites
  activation = _activations(reader.target.module, reader.target.params, texts, at, site, reader.sites)
  tokens, at, site = np.repeat(texts, per_text, axis=0), at.reshape(-1), site.reshape(-1)
  metric = np.full(len(at), distance.metric_index(task.metric), np.int32)
  queries = sampler.Queries(np.asarray(activation).reshape(len(at), -1), site, np.full(len(at), -1, np.int32), metric)
  named = [task.labels(row)[p] for row, p in zip(tokens, at, strict=True)]
  return HeldOutQueries(tokens, at, tuple(named), queries)


_activations = parallel.jit(collect.activations_at, static_argnums=(0, 5))


def inside(reader: Reader, asked: HeldOutQueries, seed: int = 0) -> np.ndarray:
  """bool[Q]: whether one sample for each query, temperature 1 and no noise, lies within the task's epsilon (paper, section 3)."""
  out = reader.draw(asked.queries, sampler.one_each(len(asked)), seed)
  return np.asarray(out.distance) <= np.float32(reader.task.epsilon)


def base_rates(reader: Reader, asked: HeldOutQueries, inputs: int = 1024, seed: int = 0) -> np.ndarray:
  """float64[Q]: the share of `inputs` random inputs of the task that lie within epsilon of each query; what guessing would reach."""
  task = reader.task
  index = np.random.default_rng(seed).integers(task.num_inputs, size=inputs)
  found = exact.distances(reader.target, task, reader.sites, asked.queries, index, reader.sampler.mesh)
  return np.mean(found.distance <= np.float32(task.epsilon), axis=1)
