"""Preimages by Monte Carlo on the target: of any target whose task has moves and a prior, with no reader, no decoder and no training.

Shapes: N particles, T tokens, D width of the activation.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from inversionview_jax import bounds, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import site_shapes
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.reading import answers, text_prior
from inversionview_jax.reading.directions import Directions
from inversionview_jax.reading.requests import Request, ResolvedRequest, resolve
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows
from inversionview_jax.sampling.monte_carlo import MonteCarlo
from inversionview_jax.sampling.particles import Level, Population, Settings
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.targets.loading import check_tokenizer
from inversionview_jax.tasks import LanguageTask, Task
from inversionview_jax.tasks.tokenizers import PartTokenizer

if TYPE_CHECKING:
  from inversionview_jax.reading.reader import Reader

_SAMPLERS = 8  # compiled samplers that are kept
_SHARED_SITES = 40  # a program serves all default sites of a target with no more of them; of a larger one, the query's

Progress = Callable[[int, int], object]


def preimage(
  target: Target,
  text: str,
  site: str | Sequence[str],
  position: int | str | Sequence[int | str],
  *,
  task: Task | str | None = None,
  epsilon: float | None = None,
  metric: str | None = None,
  match: str = "anywhere",
  directions: "str | os.PathLike | np.ndarray | None" = None,
  prior: str | None = None,
  growth: int = 0,
  start: "str | Reader" = "query",
  particles: int | None = None,
  budget: int | None = None,
  seed: int = 0,
  progress: Progress | None = None,
) -> Preimage:
  """The epsilon-preimage of one activation, or of several together, by Monte Carlo on the target from the task's prior; no decoder is involved.

  The particles follow the task's prior inside epsilon, as far as `Preimage.converged` is true: a part of the preimage that no move and no
  draw from the prior came near is missing, and no diagnostic shows that.

  Args:
    target: the model that is read.
    text: an input of the task, or the beginning of one.
    site: a site of the target, in either notation; or several, of which all must match: the largest of their distances counts.
    position: an index (BOS is 0; negative ones count from the end), or a label of the task such as "="; or one for each site, or several for
      one site.
    task: the inputs, or their name; None: the target's own task.
    epsilon, metric: None for the task's.
    match: "anywhere" takes each input's minimum over positions, "position" compares at the query's position only.
    directions: float[K, D], or a .npy or .safetensors file with them: activations are compared by their projections on the span of these.
    prior: "model" takes the target's own probability of a text as the prior, in place of a task: any language model, any text. The texts have
      as many tokens as the query, up to `growth`, all lengths equally probable; of these the model's law is p(x_1 ... x_n | BOS), without
      special tokens, and whether a text ends there plays no part.
    growth: with `prior`, by how many tokens a text may be longer or shorter than the query.
    start: with `prior`, "query": copies of the text, changed at any distance and brought back inside epsilon; what lies far from it may be missed.
      "prior": texts that the model writes, which gives bits, and which seldom come near the query where it is special. A reader of the same model
      on texts, such as those that the model itself writes: the query, and what the decoder writes for the activation.
    particles: a multiple of twice the number of devices; None: 1,024, and 128 with `prior`.
    budget: target runs after which sampling ends, converged or not; at least two for each particle are made. None: 200,000, and 8,000 with
      `prior`.
    seed: the particles are a function of it.
    progress: called with (target runs so far, budget), from (0, budget) to (budget, budget). An exception that it raises ends the sampling.
      Its attribute `level`, if it has one, is called with each `Level` and its number, from 1; its attribute `preview` at the start and after each
      level with a function that makes the preimage so far, of particles that do not lie inside epsilon yet.

  Returns:
    All particles, and the nearest proposals that lie outside epsilon. A second query of the same target, task and number of particles
    compiles nothing.

  Raises:
    InversionViewError: a text, site, position, direction or number that cannot be used, or a task without moves or prior.
  """
  pairs = _pairs(site, position)
  resolved = [target.site(name) for name, _ in pairs]
  along = None if directions is None else Directions.of(directions, site_shapes.widest(target.config, resolved))
  common: dict[str, Any] = {"directions": along, "seed": seed, "progress": progress}
  if prior is not None:
    if task is not None:
      raise InversionViewError("the inputs are those of a task, or texts of a prior: give task or prior, not both")
    texts = text_prior.text_prior(target, text, prior, growth, start)
    requests = [
      resolve(Request(text, name, at, epsilon, metric, match), i, texts.task) for i, (name, at) in enumerate(pairs)
    ]
    if not isinstance(start, str) and (len(pairs) > 1 or along is not None):
      raise InversionViewError(
        "a decoder writes for one whole activation: give one site and position and no directions, or no reader to start from"
      )
    return _sample_texts(target, texts, tuple(resolved), requests, particles, budget, start, **common)
  if growth or start != "query":
    raise InversionViewError("growth and start belong to prior='model': give prior, or leave them out")
  target, resolved_task = _of_task(target, task)
  sites = tuple(resolved) if len(pairs) > 1 else _sites(target, resolved_task, resolved[0])
  requests = [
    resolve(Request(text, name, at, epsilon, metric, match), i if len(pairs) > 1 else sites.index(where), resolved_task)
    for i, ((name, at), where) in enumerate(zip(pairs, resolved, strict=True))
  ]
  return sample(
    target,
    resolved_task,
    sites,
    requests,
    particles=1024 if particles is None else particles,
    budget=200_000 if budget is None else budget,
    **common,
  )


def _sample_texts(
  target: Target,
  texts: text_prior.TextPrior,
  sites: tuple[Site, ...],
  requests: Sequence[ResolvedRequest],
  particles: int | None,
  budget: int | None,
  start: "str | Reader",
  **common: Any,
) -> Preimage:
  """The preimage of activations of one text, with the target itself as the prior."""
  particles = text_prior.PARTICLES if particles is None else bounds.whole("particles", particles)
  sampler, row = text_prior.sampler(target, texts, sites, parallel.make_mesh(), particles), requests[0].tokens
  used = row[: int(np.argmax(row == texts.task.tokenizer.eos_id))]  # EOS is no token of the model
  begin, method, runs = _start(texts, sites[0], requests[0], row, particles, start, common["seed"])
  return sample(
    target,
    texts.task,
    sites,
    [dataclasses.replace(request, tokens=used) for request in requests],
    particles=particles,
    budget=text_prior.BUDGET if budget is None else budget,
    start=begin,
    start_runs=runs,
    method=method,
    sampler=sampler,
    **common,
  )


def _start(
  texts: text_prior.TextPrior,
  site: Site,
  request: ResolvedRequest,
  row: np.ndarray,
  particles: int,
  start: "str | Reader",
  seed: int,
) -> tuple[Callable[[Queries], np.ndarray] | None, str, int]:
  """The argument `start` of `sample`, the name of the method, and the runs of the target that the start takes."""
  if start == "prior":
    return None, "monte_carlo", 0
  if isinstance(start, str):
    return lambda _: row[None], "query+monte_carlo", 1
  count, reader = text_prior.CANDIDATES * particles, start

  def written(query: Queries) -> np.ndarray:
    return text_prior.written_for(reader, np.asarray(query.activation)[0], texts, site, request, count, seed)

  return written, "decoder+monte_carlo", count


def sample(
  target: Target,
  task: Task,
  sites: tuple[Site, ...],
  requests: Sequence[ResolvedRequest],
  *,
  particles: int,
  budget: int,
  seed: int,
  directions: Directions | None = None,
  progress: Progress | None = None,
  start: Callable[[Queries], np.ndarray] | None = None,
  start_runs: int | None = None,
  reader: str = "",
  mesh: Mesh | None = None,
  method: str = "",
  sampler: MonteCarlo | None = None,
) -> Preimage:
  """The preimage of a valid request, or of several of one text together.

  Args:
    target, task: what is read.
    sites: those that one program serves, into which `request.site` points; the site of each request where there are several.
    requests: with their text and positions.
    particles, budget, seed, progress: as for `preimage`.
    directions: what activations are projected on.
    start: from the query, texts to begin with, int32[M, T], such as a decoder's candidates, which the target has run on; None: draws from the
      prior.
    start_runs: runs of the target that `start` took; None: one for each of its texts.
    reader: shown with the preimage; "": the name of the target.
    mesh: particles are divided over its data axis; all devices by default.
    method: as `Preimage` names it; "": by whether there is a `start`.
    sampler: of other texts than the task's; None: that of the task, on `mesh`.
  """
  particles, budget = bounds.whole("particles", particles), bounds.whole("budget", budget)
  seed = bounds.whole("seed", seed, "own_seed")
  joint, first = len(requests) > 1, requests[0]
  if sampler is None:
    sampler = _sampler(target, task, sites, parallel.make_mesh() if mesh is None else mesh, particles, joint)
  activations, queries = _captured(target, task, sites, requests)
  compared = activations if directions is None else directions.project(activations)
  query = Queries.of(
    compared, [r.site for r in requests], [r.metric for r in requests], [r.compared_position for r in requests]
  )
  begin = None if start is None else np.asarray(start(query))
  runs_before = start_runs if start_runs is not None else 0 if begin is None else len(begin)

  def answer(population: Population) -> Preimage:
    return answers.preimage_of(
      queries[0],
      _samples(population, first.epsilon, task),
      first,
      seed=seed,
      reader=reader or target.name,
      task=task.name,
      convention=target.convention,
      method=method or ("monte_carlo" if begin is None else "decoder+monte_carlo"),
      others=tuple(queries[1:]),
      directions="" if directions is None else directions.name,
      target_runs=population.target_runs + runs_before,
      bits=population.bits,
      bits_error=population.bits_error,
      converged=population.converged,
      problem=population.problem,
      levels=tuple(map(dataclasses.asdict, population.levels)),
    )

  preview = getattr(progress, "preview", None)
  population = sampler.run(
    query,
    first.epsilon,
    seed,
    start=begin,
    budget=budget,
    progress=None if progress is None else _LevelProgress(progress, particles, budget),
    basis=None if directions is None else directions.basis,
    watch=None if preview is None else lambda so_far: preview(lambda: answer(so_far)),
  )
  if progress is not None:
    progress(budget, budget)
  return answer(population)


def _captured(
  target: Target, task: Task, sites: tuple[Site, ...], requests: Sequence[ResolvedRequest]
) -> tuple[np.ndarray, list[Query]]:
  """The activations of the requests, float32[R, D], and each as the query of a preimage."""
  # All sites and patterns are captured, so that one program serves every query.
  patterns = [f"p{layer}" for layer in range(target.config.n_layers)]
  run: Any = target.run(requests[0].tokens[None], [*dict.fromkeys(sites), *patterns])
  activations, queries = [], []
  for request in requests:
    site = sites[request.site]
    activation, attention = np.asarray(run[site][0, request.position], np.float32), None
    if site.kind == "head":
      attention = np.asarray(run[f"p{site.layer}"][0, site.head, request.position, : request.position + 1])
    activations.append(activation)
    queries.append(answers.query_of(request, task, site, activation, attention))  # refuses one that is not finite
  size = site_shapes.widest(target.config, sites)  # shorter activations end in zeros, which no distance feels
  return np.stack([site_shapes.padded(x, size) for x in activations]), queries


def _pairs(site: str | Sequence[str], position: int | str | Sequence[int | str]) -> list[tuple[str, int | str]]:
  """(site, position) of each activation: one of either goes with all of the other."""
  sites = [site] if isinstance(site, str) else list(site)
  positions = [position] if isinstance(position, str) or not isinstance(position, Sequence) else list(position)
  count = max(len(sites), len(positions))
  if not sites or not positions or {len(sites), len(positions)} - {1, count}:
    raise InversionViewError(
      f"{len(sites)} sites and {len(positions)} positions: give one position for each site, or one of either for all of the other"
    )
  pairs = list(zip(sites * (count // len(sites)), positions * (count // len(positions)), strict=True))
  if twice := [pair for i, pair in enumerate(pairs) if pair in pairs[:i]]:
    raise InversionViewError(f"site {twice[0][0]} at position {twice[0][1]} is given twice")
  return pairs


def _of_task(target: Target, task: Task | str | None) -> tuple[Target, Task]:
  """The task, and the target over its tokens: those of a language task may be a part of the model's."""
  if task is None:
    own = target.resolve_task()
    if own is None:
      raise InversionViewError(f"the target {target.name!r} belongs to no task: give task=, a task or its name")
    return target, own
  target, resolved = _over_its_tokens(target, task)
  check_tokenizer(target, resolved, target.name)
  return target, resolved


@functools.lru_cache(4)  # so that the next preimage finds the programs of this one
def _over_its_tokens(target: Target, task: Task | str) -> tuple[Target, Task]:
  resolved = tasks.get(task, target.tokenizer) if isinstance(task, str) else task
  own, part = target.tokenizer, resolved.tokenizer
  if isinstance(part, PartTokenizer) and own is not None and part.base.describe() == own.describe():
    return target.for_task(resolved), resolved
  return target, resolved


def _sites(target: Target, task: Task, site: Site) -> tuple[Site, ...]:
  """The task's default sites, so that one program serves them all, where there are few and this is one of them; else this one.

  Of a language model this one: its deeper layers are not run then.
  """
  if isinstance(task, LanguageTask):
    return (site,)
  default = tuple(target.site(name) for name in task.default_sites(target.config.n_layers, target.config.n_heads))
  return default if site in default and len(default) <= _SHARED_SITES else (site,)


@functools.lru_cache(_SAMPLERS)
def _sampler(
  target: Target, task: Task, sites: tuple[Site, ...], mesh: Mesh, particles: int, joint: bool
) -> MonteCarlo:
  return MonteCarlo(target, task, sites, mesh, Settings(particles=particles), joint)


def _samples(population: Population, epsilon: float, task: Task) -> list[Sample]:
  """The particles and the rejected proposals beyond their threshold: where epsilon was not reached, some proposals lie below it."""
  threshold = population.levels[-1].epsilon if population.levels else np.inf
  beyond = population.rejected_distance > np.float32(threshold)
  parts = (
    (population.tokens, population.rejected_tokens[beyond]),
    (population.distance, population.rejected_distance[beyond]),
    (population.position, population.rejected_position[beyond]),
  )
  tokens, distance, position = map(np.concatenate, parts)
  candidates = Candidates(tokens, distance, position, effect=None)
  count = len(candidates.tokens)
  drawn = np.arange(count, dtype=np.int32)
  rows = Rows(np.zeros_like(drawn), drawn, temperature=np.ones(count, np.float32), noise=np.zeros(count, np.float32))
  return answers.samples_of(candidates, rows, epsilon, task)


class _LevelProgress:
  """Adds up target runs level by level and reports (so far, budget), at first (0, budget)."""

  def __init__(self, report: Progress, particles: int, budget: int):
    self._report, self._particles, self._budget, self._runs = report, particles, budget, particles
    self._levels = 0
    report(0, budget)

  def __call__(self, level: Level) -> None:
    self._runs += level.sweeps * self._particles
    self._levels += 1
    if (note := getattr(self._report, "level", None)) is not None:
      note(self._levels, level)
    self._report(min(self._runs, self._budget), self._budget)
