"""Preimages by Monte Carlo on the target: of any target whose task has moves and a prior, with no reader, no decoder and no training.

Shapes: N particles, T tokens, D width of the activation.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage, Sample
from inversionview_jax.reading import answers
from inversionview_jax.reading.requests import Request, ResolvedRequest, resolve, whole_number
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows
from inversionview_jax.sampling.monte_carlo import Level, MonteCarlo, Population, Settings
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.targets.loading import check_tokenizer
from inversionview_jax.tasks import Task

_SAMPLERS = 8  # compiled samplers that are kept
_SHARED_SITES = (
  40  # a program serves all default sites of a target that has no more of them; of a larger one, the site of the query
)

Progress = Callable[[int, int], object]


def preimage(
  target: Target,
  text: str,
  site: str,
  position: int | str,
  *,
  task: Task | str | None = None,
  epsilon: float | None = None,
  metric: str | None = None,
  match: str = "anywhere",
  particles: int = 1024,
  budget: int = 200_000,
  seed: int = 0,
  progress: Progress | None = None,
) -> Preimage:
  """The epsilon-preimage of one activation by Monte Carlo on the target, from the task's prior; no decoder is involved.

  The particles follow the task's prior inside epsilon, as far as `Preimage.converged` is true: a part of the preimage that no move and no
  draw from the prior came near is missing, and nothing tells of it.

  Args:
    target: the model that is read.
    text: an input of the task, or the beginning of one.
    site: a site of the target, in either notation.
    position: an index (BOS is 0; negative ones count from the end), or a label of the task such as "=".
    task: the inputs, or their name; None: the target's own task.
    epsilon, metric: None for the task's.
    match: "anywhere" takes each input's minimum over positions, "position" compares at the query's position only.
    particles: a multiple of twice the number of devices.
    budget: target runs after which sampling ends, converged or not; at least two for each particle are made.
    seed: the particles are a function of it.
    progress: called with (target runs so far, budget), from (0, budget) to (budget, budget). An exception that it raises ends the sampling.

  Returns:
    All particles, and the nearest proposals that lie outside epsilon. A second query of the same target, task and number of particles
    compiles nothing.

  Raises:
    InversionViewError: a text, site, position or number that cannot be used, or a task without moves or prior.
  """
  resolved_task, resolved_site = _task_of(target, task), target.site(site)
  sites = _sites(target, resolved_task, resolved_site)
  request = resolve(Request(text, site, position, epsilon, metric, match), sites.index(resolved_site), resolved_task)
  return sample(target, resolved_task, sites, request, particles=particles, budget=budget, seed=seed, progress=progress)


def sample(
  target: Target,
  task: Task,
  sites: tuple[Site, ...],
  request: ResolvedRequest,
  *,
  particles: int,
  budget: int,
  seed: int,
  progress: Progress | None = None,
  start: Callable[[Queries], np.ndarray] | None = None,
  reader: str = "",
  mesh: Mesh | None = None,
) -> Preimage:
  """The preimage of a valid request.

  Args:
    target, task: what is read.
    sites: those that one program serves; `request.site` points into them.
    request: with its text and position.
    particles, budget, seed, progress: as for `preimage`.
    start: from the query, texts to begin with, int32[M, T], such as a decoder's candidates; None: draws from the prior.
    reader: shown with the preimage; "": the name of the target.
    mesh: particles are divided over its data axis; all devices by default.
  """
  particles, budget = whole_number("particles", particles, 2), whole_number("budget", budget, 1)
  seed = whole_number("seed", seed, 0, 2**32 - 1)
  sampler = _sampler(target, task, sites, parallel.make_mesh() if mesh is None else mesh, particles)
  site = sites[request.site]
  # All sites and patterns are captured, so that one program serves every query.
  patterns = [f"p{layer}" for layer in range(target.config.n_layers)]
  run = target.run(request.tokens[None], [*dict.fromkeys(sites), *patterns])
  activation, attention = np.asarray(run[site][0, request.position], np.float32), None
  if site.kind == "head":
    attention = np.asarray(run[f"p{site.layer}"][0, site.head, request.position, : request.position + 1])
  query = answers.query_of(request, task, site, activation, attention)  # refuses an activation that is not finite
  queries = Queries.of(activation[None], request.site, request.metric, request.compared_position)
  population = sampler.run(
    queries,
    request.epsilon,
    seed,
    start=None if start is None else start(queries),
    budget=budget,
    progress=None if progress is None else _LevelProgress(progress, particles, budget),
  )
  if progress is not None:
    progress(budget, budget)
  return answers.preimage_of(
    query,
    _samples(population, request.epsilon, task),
    request,
    seed=seed,
    reader=reader or target.name,
    task=task.name,
    convention=target.convention,
    method="monte_carlo" if start is None else "decoder+monte_carlo",
    target_runs=population.target_runs,
    bits=population.bits,
    bits_error=population.bits_error,
    converged=population.converged,
    problem=population.problem,
    levels=tuple(map(dataclasses.asdict, population.levels)),
  )


def _task_of(target: Target, task: Task | str | None) -> Task:
  if task is None:
    own = target.resolve_task()
    if own is None:
      raise InversionViewError(f"the target {target.name!r} belongs to no task: give task=, a task or its name")
    return own
  resolved = tasks.get(task, target.tokenizer) if isinstance(task, str) else task
  check_tokenizer(target, resolved, target.name)
  return resolved


def _sites(target: Target, task: Task, site: Site) -> tuple[Site, ...]:
  """The task's default sites, so that one program serves them all, where there are few and this is one of them; else this one."""
  default = tuple(target.site(name) for name in task.default_sites(target.config.n_layers, target.config.n_heads))
  return default if site in default and len(default) <= _SHARED_SITES else (site,)


@functools.lru_cache(_SAMPLERS)
def _sampler(target: Target, task: Task, sites: tuple[Site, ...], mesh: Mesh, particles: int) -> MonteCarlo:
  return MonteCarlo(target, task, sites, mesh, Settings(particles=particles))


def _samples(population: Population, epsilon: float, task: Task) -> list[Sample]:
  """The particles and the rejected proposals beyond their threshold: where epsilon was not reached, some proposals lie below it."""
  beyond = population.rejected_distance > np.float32(population.levels[-1].epsilon)
  parts = (
    (population.tokens, population.rejected_tokens[beyond]),
    (population.distance, population.rejected_distance[beyond]),
    (population.position, population.rejected_position[beyond]),
  )
  candidates = Candidates(*map(np.concatenate, parts), effect=None)
  count = len(candidates.tokens)
  drawn = np.arange(count, dtype=np.int32)
  rows = Rows(np.zeros_like(drawn), drawn, temperature=np.ones(count, np.float32), noise=np.zeros(count, np.float32))
  return answers.samples_of(candidates, rows, epsilon, task)


class _LevelProgress:
  """Adds up target runs level by level and reports (so far, budget), at first (0, budget)."""

  def __init__(self, report: Progress, particles: int, budget: int):
    self._report, self._particles, self._budget, self._runs = report, particles, budget, particles
    report(0, budget)

  def __call__(self, level: Level) -> None:
    self._runs += level.sweeps * self._particles
    self._report(min(self._runs, self._budget), self._budget)
