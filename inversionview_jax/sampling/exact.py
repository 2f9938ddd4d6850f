"""Exact preimages: the distance of every input of a task to each query, measured by the target; the ground truth of a reader.

Only for tasks whose inputs can be enumerated (addition has 810,000). Queries are those of the sampler; no decoder is involved, so this also
works for models that have none.

Shapes: Q queries, N inputs, B inputs per program call, T tokens, D width of the activation, S sites.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inversionview_jax import distance, progress
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import site_shapes
from inversionview_jax.models.transformer import texts_that_fit
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

# Inputs per device and program call. Of a CPU: a few MB of activations, so that all queries read them from the cache. Others need many to be busy.
_BATCH, _BATCH_ACCELERATOR = 1024, 32_768
_BYTES = 5  # of one result: a float32 distance and an int8 position
_SHOWN = 8  # inputs in the table of a preimage


@dataclasses.dataclass(frozen=True)
class Distances:
  """Distances of inputs to queries.

  Attributes:
    index: int64[N], the inputs (`Task.tokens` makes their tokens).
    distance: float32[Q, N], of each input's nearest position to each query; inf where no position could be compared.
    position: int8[Q, N], of the minimum; -1 where no position could be compared.
  """

  index: np.ndarray
  distance: np.ndarray
  position: np.ndarray

  def members(self, query: int, epsilon: float) -> np.ndarray:
    """int64[M], ascending: indices of the inputs within epsilon of this query, its exact preimage (paper, equation 1)."""
    return self.index[self.distance[query] <= np.float32(epsilon)]


@dataclasses.dataclass(frozen=True, repr=False)
class ExactPreimage(ShowsTable):
  """All inputs of a task within epsilon of one query, nearest first (paper, equation 1).

  Attributes:
    index: int64[M], the inputs.
    tokens: int32[M, T], their tokens.
    distance: float32[M].
    position: int8[M], of the minimum.
    inputs: how many inputs the task has; M / inputs is the in-epsilon rate of random inputs.
    epsilon: the threshold.
    task: of the inputs.
    texts: M texts.
  """

  index: np.ndarray
  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray
  inputs: int
  epsilon: float
  task: Task

  @classmethod
  def of(cls, distances: Distances, query: int, epsilon: float, task: Task) -> "ExactPreimage":
    """The exact preimage of one of the queries.

    Args:
      distances: of every input of the task.
      query: index of the query.
      epsilon: the threshold.
      task: of the inputs.
    """
    distance, position = distances.distance[query], distances.position[query]
    inside = np.flatnonzero(distance <= np.float32(epsilon))
    inside = inside[np.argsort(distance[inside], kind="stable")]
    index = distances.index[inside]
    tokens = task.tokens(index)
    return cls(index, tokens, distance[inside], position[inside], len(distances.index), epsilon, task)

  @property
  def texts(self) -> list[str]:
    return [self.task.tokenizer.text(row) for row in self.tokens]

  def __len__(self) -> int:
    return len(self.index)

  def _table(self) -> Table:
    title = f"Exact preimage: {len(self):,} of {self.inputs:,} inputs within epsilon = {self.epsilon:g}"
    text = self.task.tokenizer.text
    rows = [(text(row), f"{d:.4f}") for row, d in zip(self.tokens[:_SHOWN], self.distance, strict=False)]
    left = len(self) - len(rows)
    return (
      Table(title, ("nearest", "distance"), tuple(rows), f"{left:,} more" if left else "") if rows else Table(title)
    )


def every_input(task: Task) -> np.ndarray:
  """int64[N]: the indices of all inputs; raises `InversionViewError` for a task that cannot enumerate them."""
  if not task.enumerable:
    raise InversionViewError(
      f"the inputs of task {task.name!r} cannot be enumerated (its {task.num_inputs:,} are a sample of many more): "
      "exact preimages, precision and coverage need a task such as addition"
    )
  return np.arange(task.num_inputs)


def distances(
  target: Target,
  task: Task,
  sites: tuple[Site, ...],
  queries: Queries,
  index: np.ndarray,
  mesh: Mesh | None = None,
) -> Distances:
  """The distance of these inputs to every query, in one pass of the target over them.

  Args:
    target: the model that is read; only the layers up to the last queried site are run.
    task: of the inputs.
    sites: what `queries.site` points into.
    queries: Q of them.
    index: int64[N], inputs of the task; `every_input(task)` for the exact preimage.
    mesh: inputs are divided over its data axis; all devices by default.

  Raises:
    InversionViewError: the result would not fit into memory; names how many queries would.
  """
  count = len(queries)
  _check_memory(count, len(index))
  mesh = parallel.make_mesh() if mesh is None else mesh
  used = sorted(set(np.asarray(queries.site).tolist()))
  local = np.searchsorted(used, np.asarray(queries.site)).astype(np.int32)
  queries = dataclasses.replace(queries, site=local, suppressed=None, decoder_activation=None)
  program = _program(target.module, task, tuple(sites[s] for s in used), mesh)
  params, queries = parallel.replicate((target.params, queries), mesh)
  devices = mesh.shape[parallel.DATA]
  batch = _BATCH if parallel.platform(mesh) == "cpu" else _BATCH_ACCELERATOR
  fitting = min(batch, texts_that_fit(target.config, task.length, len(used) + 8))
  size = devices * min(fitting, -(-len(index) // devices))
  results = np.empty((count, len(index)), np.float32), np.empty((count, len(index)), np.int8)
  # Not `parallel.in_chunks`: results of one chunk are stored while the next one runs, and are never held twice (Q * N can be 800 MB).
  pending = None
  for start in progress.counted(range(0, len(index), size)):
    part = index[start : start + size]
    tokens = task.tokens(parallel.pad_rows(part, size))
    out = program(params, queries, tokens)
    if pending is not None:
      _store(results, *pending)
    pending = (slice(start, start + len(part)), out)
  if pending is not None:
    _store(results, *pending)
  return Distances(np.asarray(index), *results)


def _store(results: tuple[np.ndarray, ...], columns: slice, out) -> None:
  """Copies a chunk's results, without padding, into their columns."""
  for to, values in zip(results, out, strict=True):
    to[:, columns] = parallel.fetch(values)[:, : columns.stop - columns.start]


@functools.cache
def _program(module, task: Task, sites: tuple[Site, ...], mesh):
  def program(params, queries: Queries, tokens):
    out = module.apply({"params": params}, tokens, capture=sites, logits=False)
    size = queries.activation.shape[-1]
    activations = jnp.stack([site_shapes.padded(out[site], size) for site in sites])  # [S, B, T, D]
    counted = task.counted_mask(tokens)

    def one(query: Queries):
      each = jax.lax.switch(
        query.metric,
        [functools.partial(distance.distance, name) for name in distance.METRICS],
        activations[query.site],
        query.activation,
      )
      nearest, position = distance.masked_min(each, counted, query.position)
      return nearest, position.astype(jnp.int8)

    return jax.lax.map(one, queries)

  return parallel.pmap(program, mesh, in_axes=(None, None, 0), out_axes=(1, 1))


def _check_memory(queries: int, inputs: int) -> None:
  free = _free_memory()
  if free is not None and queries * inputs * _BYTES > free:
    raise InversionViewError(
      f"{queries:,} queries x {inputs:,} inputs need {queries * inputs * _BYTES / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
      f"use at most {max(int(free // (inputs * _BYTES)), 0):,} queries at a time, or fewer inputs"
    )


def _free_memory() -> int | None:
  """Bytes this process can still take, or None where the system does not report them."""
  try:
    with open("/proc/meminfo", encoding="ascii") as lines:
      fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024
  except (OSError, KeyError, ValueError):
    pass
  try:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (OSError, ValueError, AttributeError):
    return None
