"""Preimages of many activations from one set of random inputs: those within epsilon of each (rejection sampling from the prior).

One pass of the target serves every site and query, and the members follow the task's inputs inside epsilon exactly; but an activation that
encodes b bits has one member in 2^b inputs, so that precise ones need Monte Carlo.

Shapes: Q requests, N inputs.
"""

import math
from collections.abc import Sequence

import jax
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import answers
from inversionview_jax.reading.requests import Request, ResolvedRequest, resolve
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

FEWEST = 50  # members below which a preimage from random inputs says little
_MEMBERS = 512  # that a preimage holds
_OUTSIDE = 64  # inputs nearest to epsilon outside of it


def preimages_of_random_inputs(
  target: Target,
  task: Task,
  requests: Sequence[Request],
  *,
  inputs: int = 65_536,
  seed: int = 0,
  mesh: jax.sharding.Mesh | None = None,
) -> list[Preimage]:
  """The preimage of each request among the same random inputs of the task; all of its inputs where it has no more.

  Args:
    target, task: what is read, and its inputs.
    requests: Q of them, of any sites and positions.
    inputs: N, how many are drawn, with replacement.
    seed: of the inputs.
    mesh: all devices by default.

  Returns:
    Q preimages with method "rejection", in the order of the requests; `converged` is False where fewer than 50 inputs lie inside.

  Raises:
    InversionViewError: a request that cannot be resolved, or more distances than fit into memory.
  """
  bounds.whole("inputs", inputs, "all_inputs")
  bounds.check(seed=seed)
  if task.enumerable and task.num_inputs <= inputs:
    index = exact.every_input(task)
  else:
    index = np.random.default_rng(seed).integers(task.num_inputs, size=inputs)
  sites = tuple(dict.fromkeys(target.site(request.site) for request in requests))
  resolved = [resolve(request, sites.index(target.site(request.site)), task) for request in requests]
  queries, activations, patterns = _queries(target, resolved, sites)
  found = exact.distances(target, task, sites, queries, index, mesh)
  every = task.enumerable and task.num_inputs <= inputs
  return [
    _preimage(target, task, request, sites[request.site], activations[q], patterns[q], found, q, seed, every)
    for q, request in enumerate(resolved)
  ]


def _queries(
  target: Target, resolved: Sequence[ResolvedRequest], sites: Sequence[Site]
) -> tuple[Queries, list[np.ndarray], list[np.ndarray | None]]:
  """The queries, each activation float32[D], and the attention of those at heads."""
  activations: list[np.ndarray] = []
  patterns: list[np.ndarray | None] = []
  of_text: dict[bytes, object] = {}
  layers = sorted({site.layer for site in sites if site.kind == "head" and site.layer is not None})
  for request in resolved:
    key = request.tokens.tobytes()
    if key not in of_text:
      of_text[key] = target.run(request.tokens[None], [*sites, *(f"p{layer}" for layer in layers)])
    run, site = of_text[key], sites[request.site]
    activations.append(np.asarray(run[site][0, request.position], np.float32))  # type: ignore[index]
    pattern = None
    if site.kind == "head":
      row = run[f"p{site.layer}"][0, site.head, request.position]  # type: ignore[index]
      pattern = np.asarray(row[: request.position + 1], np.float32)
    patterns.append(pattern)
  width = max(len(activation) for activation in activations)
  padded = np.stack([np.pad(activation, (0, width - len(activation))) for activation in activations])
  index, position = (np.array([getattr(r, name) for r in resolved]) for name in ("site", "compared_position"))
  return Queries.of(padded, index, [request.metric for request in resolved], position), activations, patterns


def _preimage(
  target: Target,
  task: Task,
  request: ResolvedRequest,
  site: Site,
  activation: np.ndarray,
  attention: np.ndarray | None,
  found: exact.Distances,
  q: int,
  seed: int,
  every: bool,
) -> Preimage:
  distance, total = found.distance[q], len(found.index)
  inside = np.flatnonzero(distance <= np.float32(request.epsilon))
  size = len(inside)
  if size > _MEMBERS:
    inside = np.random.default_rng(seed + q).choice(inside, _MEMBERS, replace=False)
  outside = np.flatnonzero(distance > np.float32(request.epsilon))
  near: np.ndarray = np.zeros(0, np.int64)
  if len(outside):
    near = outside[np.argpartition(distance[outside], min(_OUTSIDE, len(outside) - 1))[:_OUTSIDE]]
  chosen = np.concatenate([inside, near]).astype(np.int64)
  candidates = Candidates(task.tokens(found.index[chosen]), distance[chosen], found.position[q][chosen], None)
  zeros = np.zeros(len(chosen), np.float32)
  rows = Rows(zeros.astype(np.int32), np.arange(len(chosen)), np.ones(len(chosen), np.float32), zeros)
  few = size < FEWEST and not every
  return answers.preimage_of(
    answers.query_of(request, task, site, activation, attention),
    answers.samples_of(candidates, rows, request.epsilon, task),
    request,
    seed=seed,
    reader=target.name,
    task=task.name,
    convention=target.convention,
    method="rejection",
    target_runs=total,
    bits=math.log2(total / size) if size else None,
    bits_error=math.sqrt(1 / size - 1 / total) / math.log(2) if size else None,
    converged=not few,
    problem=f"{size} of {total:,} random inputs lie inside epsilon, fewer than {FEWEST}" if few else "",
  )
