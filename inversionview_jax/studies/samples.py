"""Members of a pool as a `Preimage`, for pages and files.

Shapes: N inputs, T tokens, D width of the activation.
"""

import math

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import answers
from inversionview_jax.reading.requests import ResolvedRequest
from inversionview_jax.sampling.candidates import Candidates, Rows
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

_INSIDE, _OUTSIDE = 200, 20  # samples that are kept


def preimage_of(
  target: Target,
  task: Task,
  site: Site,
  row: np.ndarray,
  at: int,
  activation: np.ndarray,
  attention: np.ndarray,
  tokens: np.ndarray,
  distance: np.ndarray,
  position: np.ndarray,
  epsilon: float,
  whole: bool,
  seed: int,
) -> Preimage:
  """The preimage of one query among the inputs of a pool.

  Args:
    target, task, site: what is read.
    row: int32[T], the query.
    at: its position.
    activation, attention: float32[D] and float32[T] at the query.
    tokens, distance, position: of the pool, int32[N, T], float32[N] and int8[N].
    epsilon: the threshold.
    whole: whether the pool is every input of the task.
    seed: of the choice among many members.
  """
  inside, outside = np.flatnonzero(distance <= epsilon), np.flatnonzero(distance > epsilon)
  members = len(inside)
  if members > _INSIDE:
    inside = np.random.default_rng(seed).permutation(inside)[:_INSIDE]
  near = outside[np.argsort(distance[outside], kind="stable")[:_OUTSIDE]]
  kept = np.concatenate([inside, near])
  request = ResolvedRequest(
    text=task.tokenizer.text(row.tolist()),
    tokens=row,
    site=0,
    position=at,
    epsilon=epsilon,
    metric=task.metric,
    match="anywhere",
  )
  drawn = np.arange(len(kept), dtype=np.int32)
  rows = Rows(np.zeros_like(drawn), drawn, np.ones(len(kept), np.float32), np.zeros(len(kept), np.float32))
  candidates = Candidates(tokens[kept], distance[kept], position[kept].astype(np.int32), effect=None)
  return Preimage(
    answers.query_of(request, task, site, activation, attention[: at + 1] if site.kind == "head" else None),
    tuple(answers.samples_of(candidates, rows, epsilon, task)),
    epsilon=epsilon,
    metric=task.metric,
    match="anywhere",
    seed=seed,
    reader=target.name,
    task=task.name,
    convention=target.convention,
    version=__version__,
    method="exact" if whole else "rejection",
    target_runs=len(tokens),
    bits=-math.log2(members / len(tokens)) if members else None,
  )
