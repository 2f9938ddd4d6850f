"""Distances of one pool of inputs to the activations of many queries at many sites, from one pass of the target over the pool.

Inputs inside epsilon of a query are a sample of its preimage without any bias (rejection sampling from the prior; the whole preimage where the
pool is all inputs of the task), and all sites and queries share the pass. Inputs run in batches of nearly equal length.

Shapes: S sites, Q queries of each site, N inputs, B inputs of a program, T tokens, D width of the activations.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.distance import masked_min
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.site_shapes import padded, widest
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

_BATCH = 64  # inputs of a program: 64 of 24 tokens at 40 sites of width 576 are 140 MB of activations
_STEP = 4  # lengths are rounded up to multiples of this, for each of which a program is compiled


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
  """The nearest position of each input to each query.

  Attributes:
    distance: float32[S, Q, N], cosine distances.
    position: int8[S, Q, N], of the minimum.
  """

  distance: np.ndarray
  position: np.ndarray


def nearest(
  target: Target,
  task: Task,
  sites: Sequence[Site],
  activations: np.ndarray,
  tokens: np.ndarray,
  positions: np.ndarray | None = None,
  progress: Callable[[int, int], object] = lambda done, total: None,
) -> Nearest:
  """The cosine distance of each input's nearest position to each query (paper, section 2.1).

  Args:
    target: that is read.
    task: of the inputs: EOS and PAD never count.
    sites: S of them.
    activations: float32[S, Q, D].
    tokens: int32[N, T], the pool.
    positions: int32[N], one position of each input that counts, such as its END; None: any.
    progress: called with the inputs done, and all of them.

  Raises:
    InversionViewError: a text of more tokens than positions can be kept of, or a task of another metric.
  """
  if task.metric != "cosine":
    raise InversionViewError(f"studies compare by cosine distance, and the task {task.name!r} by the {task.metric} one")
  if tokens.shape[1] > 127:
    raise InversionViewError(f"inputs of a study have at most 127 tokens; these have {tokens.shape[1]}")
  count, t = len(tokens), task.tokenizer
  found = Nearest(
    np.empty((*activations.shape[:2], count), np.float32), np.empty((*activations.shape[:2], count), np.int8)
  )
  lengths = (tokens != t.pad_id).sum(axis=1)
  order, done = np.argsort(lengths, kind="stable"), 0
  rounded = np.minimum(-(-lengths // _STEP) * _STEP, tokens.shape[1])
  program = functools.partial(_program, target.module, tuple(sites), t.pad_id, t.eos_id)
  at = np.full(count, -1, np.int32) if positions is None else np.asarray(positions, np.int32)
  queries = jnp.asarray(activations, jnp.float32)
  progress(0, count)
  for length in np.unique(rounded):
    rows = order[rounded[order] == length]
    for start in range(0, len(rows), _BATCH):
      part = rows[start : start + _BATCH]
      batch = parallel.pad_rows(tokens[part, :length], _BATCH), parallel.pad_rows(at[part], _BATCH)
      distance, position = program(target.params, queries, *batch)
      found.distance[:, :, part] = np.asarray(distance)[:, :, : len(part)]
      found.position[:, :, part] = np.asarray(position)[:, :, : len(part)]
      done += len(part)
      progress(done, count)
  return found


@functools.partial(parallel.jit, static_argnums=(0, 1, 2, 3))
def _program(module, sites, pad_id, eos_id, params, queries, tokens, at):
  """-> float32[S, Q, B] and int8[S, Q, B]."""
  out = module.apply({"params": params}, tokens, capture=sites, logits=False)
  counted = (tokens != pad_id) & (tokens != eos_id)
  width = queries.shape[-1]

  def unit(x):
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

  distances, positions = [], []
  for site, query in zip(sites, queries, strict=True):
    activation = unit(padded(out[site], width).astype(jnp.float32))
    similarity = jnp.einsum("qd,btd->qbt", unit(query), activation, precision=jax.lax.Precision.HIGHEST)
    distance, position = masked_min(1.0 - similarity, counted[None], at[None])
    distances.append(distance)
    positions.append(position.astype(jnp.int8))
  return jnp.stack(distances), jnp.stack(positions)


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
  """What is known of queries at one position of each.

  Attributes:
    activation: float32[S, N, D].
    attention: of heads float32[S, N, T], from that position; zeros for other sites.
  """

  activation: np.ndarray
  attention: np.ndarray


def captured(target: Target, sites: Sequence[Site], tokens: np.ndarray, at: np.ndarray, batch: int = 16) -> Captured:
  """The activations of inputs at one position each, and where heads attend to from there.

  Args:
    target: that is read.
    sites: S of them.
    tokens: int32[N, T].
    at: int32[N].
    batch: inputs of a program; the result does not depend on it.
  """
  patterns = tuple(dict.fromkeys(target.site(f"p{s.layer}", ("pattern",)) for s in sites if s.kind == "head"))
  size = widest(target.config, sites)

  def program(rows):
    part, where = rows
    out = target.captured(part, (*sites, *patterns))
    index = np.arange(len(part))
    of = {p.layer: np.asarray(out[p], np.float32) for p in patterns}
    vectors = np.stack([np.asarray(padded(out[s], size), np.float32)[index, where] for s in sites], axis=1)
    none = np.zeros((len(part), part.shape[1]), np.float32)
    seen = np.stack([of[s.layer][index, s.head, where] if s.kind == "head" else none for s in sites], axis=1)
    return vectors, seen

  vectors, seen = parallel.in_chunks(program, (np.asarray(tokens), np.asarray(at)), min(batch, len(tokens)))
  return Captured(vectors.swapaxes(0, 1), seen.swapaxes(0, 1))
