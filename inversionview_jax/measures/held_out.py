"""Queries on inputs that training did not see, their in-epsilon rate, and the rate that random inputs reach.

Shapes: Q queries, T tokens, D width of the activation, S sites.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from inversionview_jax import bounds
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading import Reader, Request
from inversionview_jax.reading.source import Source
from inversionview_jax.sampling import collect, exact, in_epsilon
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class HeldOutQueries:
  """Queries on held-out inputs.

  Attributes:
    tokens: int32[Q, T], the inputs.
    position: int32[Q].
    labels: the task's names of these positions; "" where it has none.
    queries: their activations, sites and the task's metric; minimum over positions.
  """

  tokens: np.ndarray
  position: np.ndarray
  labels: tuple[str, ...]
  queries: Queries

  def __len__(self) -> int:
    return len(self.position)

  def __repr__(self) -> str:
    return f"<{len(self)} held-out queries of {len(np.unique(self.queries.site))} sites>"

  def take(self, index: slice | Sequence[int] | np.ndarray) -> "HeldOutQueries":
    """Some of them, by index."""
    index = np.arange(len(self))[index]
    return HeldOutQueries(
      self.tokens[index], self.position[index], tuple(self.labels[i] for i in index), self.queries.take(index)
    )


def held_out_queries(reader: Reader, count: int, seed: int = 0, every_site: bool = True) -> HeldOutQueries:
  """Queries on inputs of the task's test split, positions uniform over those where the task takes queries.

  Args:
    reader: of the sites.
    count: queries; of each site if `every_site`, else in total, the sites in turn.
    seed: inputs and positions are a function of it.
    every_site: see `count`.
  """
  return queries_of(reader.target, reader.task, reader.sites, count, seed, every_site)


def queries_of(
  target: Target, task: Task, sites: Sequence[Site], count: int, seed: int = 0, every_site: bool = True
) -> HeldOutQueries:
  """`held_out_queries` of a target without a reader, at these sites."""
  bounds.check(count=count, seed=seed)
  n_sites = len(sites)
  rng = np.random.default_rng(seed)
  texts = task.tokens(rng.permutation(task.split("test"))[:count])
  per_text = n_sites if every_site else 1
  mask = np.asarray(task.query_mask(texts))
  # The argmax of random numbers over the allowed positions is uniform over them.
  draws = np.where(mask[:, None, :], rng.random((len(texts), per_text, mask.shape[1])), -1.0)
  position = np.argmax(draws, axis=2).astype(np.int32)  # [count, per_text]
  site = np.arange(len(texts) * per_text, dtype=np.int32).reshape(len(texts), per_text) % n_sites
  activation = _activations(target.module, target.params, texts, position, site, tuple(sites))
  tokens, positions = np.repeat(texts, per_text, axis=0), position.reshape(-1)
  queries = Queries.of(np.asarray(activation).reshape(len(positions), -1), site.reshape(-1), task.metric)
  labels = [task.labels(row)[at] for row, at in zip(tokens, positions, strict=True)]
  return HeldOutQueries(tokens, positions, tuple(labels), queries)


_activations = parallel.jit(collect.activations_at, static_argnums=(0, 5))


def held_out_requests(
  source: Reader | Source | Task, site: str, position: int | str, count: int, seed: int = 0
) -> list[Request]:
  """Queries at one site and position on random inputs of the task's test split; inputs without such a position are skipped.

  Args:
    source: a task, or a reader or source of it.
    site, position: as for `Reader.preimage`.
    count: how many; fewer where only few of 20 times as many inputs have the position.
    seed: of the inputs.

  Raises:
    InversionViewError: no input has the position.
  """
  bounds.check(count=count, seed=seed)
  task = source if isinstance(source, Task) else source.task
  order = np.random.default_rng(seed).permutation(task.split("test"))
  requests: list[Request] = []
  skipped: InversionViewError | None = None
  for row in task.tokens(order[: 20 * count]):
    if len(requests) == count:
      break
    try:
      task.position(row, position)
    except InversionViewError as error:
      skipped = error
      continue
    requests.append(Request(task.tokenizer.text(row), site, position))
  if not requests:
    raise skipped or InversionViewError(f"{count} queries: at least 1 is needed")
  return requests


def inside(reader: Reader, held_out: HeldOutQueries, seed: int = 0) -> np.ndarray:
  """bool[Q]: whether one sample for each query, temperature 1 and no noise, lies within the task's epsilon (paper, section 3)."""
  return in_epsilon.hits(functools.partial(reader.draw, seed=seed), held_out.queries, reader.task.epsilon)


def base_rates(reader: Reader, held_out: HeldOutQueries, inputs: int = 1024, seed: int = 0) -> np.ndarray:
  """float64[Q]: the share of `inputs` random inputs of the task that lie within epsilon of each query, as a guess would."""
  bounds.check(inputs=inputs, seed=seed)
  task = reader.task
  index = np.random.default_rng(seed).integers(task.num_inputs, size=inputs)
  distances = exact.distances(reader.target, task, reader.sites, held_out.queries, index, reader.sampler.mesh)
  return np.mean(distances.distance <= np.float32(task.epsilon), axis=1)
