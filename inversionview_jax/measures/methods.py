"""Methods of finding a preimage against exact preimages, on the same queries: what lies inside epsilon, marginals, bits, and what they cost.

Shapes: Q queries, N inputs, P samples, M members of a preimage, T tokens.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inversionview_jax import bounds
from inversionview_jax._version import __version__
from inversionview_jax.errors import one_of
from inversionview_jax.files import write_whole
from inversionview_jax.measures.held_out import HeldOutQueries
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.methods import SETTINGS
from inversionview_jax.reading import Reader
from inversionview_jax.reading.source import Source
from inversionview_jax.sampling import exact
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.tokenizer_base import pad_rows

FORMAT, FORMAT_VERSION = "inversionview-methods", 1
METHODS = ("decoder", "decoder+monte_carlo", "monte_carlo")
COLUMNS = ("site", "n", "members", "inside", "distinct", "TV", "bits", "s", "runs", "conv.")
_EXACT_DRAWS = 5  # samples from the exact preimage, whose mean deviation is what as many independent draws would show


@dataclasses.dataclass(frozen=True)
class MethodResult:
  """One query's samples by one method, against its exact preimage B where the task's inputs can be enumerated.

  Attributes:
    method: one of `METHODS`.
    site, label, text: of the query.
    inside: share of the candidates or particles within epsilon.
    distinct: how many different inputs lie within epsilon.
    size: |B|; this and the next three are None for a task that cannot enumerate its inputs.
    distinct_of_draws: how many different members as many independent uniform draws from B as lie inside have on average.
    marginals: total variation between the marginals of one token of the samples inside and of B, mean over the positions that vary; None where
      none lies inside.
    marginals_of_draws: the same of as many independent uniform draws from B, mean of five samples.
    bits_error: estimated bits minus log2(N / |B|); None where they were not estimated.
    seconds: of the query, compilation not counted.
    target_runs: inputs that the target was run on.
    converged, problem: what Monte Carlo reports; None and "" of the decoder.
  """

  method: str
  site: str
  label: str
  text: str
  inside: float
  distinct: int
  size: int | None
  distinct_of_draws: float | None
  marginals: float | None
  marginals_of_draws: float | None
  bits_error: float | None
  seconds: float
  target_runs: int
  converged: bool | None
  problem: str


@dataclasses.dataclass(frozen=True, repr=False)
class MethodComparison(ShowsTable):
  """What `compare_methods` measured.

  Attributes:
    reader, task, target: names; `target` with its fingerprint; `reader` is "" where there was none.
    epsilon, metric, seed, particles, budget: of the measurement.
    methods: those that were compared.
    queries: the results, those of each query together.
  """

  reader: str
  task: str
  target: str
  epsilon: float
  metric: str
  seed: int
  particles: int
  budget: int
  methods: tuple[str, ...]
  queries: tuple[MethodResult, ...]

  def summary(self, method: str, site: str | None = None) -> dict:
    """Means over the queries of a site (None: of all); None for what no query has. Ratios are those of means to the means of exact draws."""
    some = [query for query in self.queries if query.method == method and site in (None, query.site)]

    def over(name: str, reduce: Callable[[Sequence[float]], float] = np.mean) -> float | None:
      values = [getattr(query, name) for query in some if getattr(query, name) is not None]
      return float(reduce(values)) if values else None

    def ratio(name: str, of_draws: str) -> float | None:
      pairs = [(getattr(q, name), getattr(q, of_draws)) for q in some if getattr(q, name) is not None]
      pairs = [(value, ideal) for value, ideal in pairs if ideal]
      return float(np.mean([value for value, _ in pairs]) / np.mean([ideal for _, ideal in pairs])) if pairs else None

    return {
      "queries": len(some),
      "size_median": over("size", np.median),
      "inside": over("inside"),
      "all_inside": float(np.mean([query.inside == 1 for query in some])),
      **{name: over(name) for name in ("distinct", "distinct_of_draws", "marginals", "marginals_of_draws")},
      "distinct_share": ratio("distinct", "distinct_of_draws"),
      "marginals_ratio": ratio("marginals", "marginals_of_draws"),
      "bits_error": over("bits_error", lambda values: float(np.mean(np.abs(values)))),
      "bits_error_largest": over("bits_error", lambda values: np.abs(values).max()),
      "seconds_median": over("seconds", np.median),
      "target_runs": over("target_runs"),
      "converged": over("converged"),
    }

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything; also written to `path`, whole or not at all."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "queries"}
    table = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__, **fields}
    table |= {"summary": {method: self.summary(method) for method in self.methods}}
    table |= {"queries": [dataclasses.asdict(query) for query in self.queries]}
    text = json.dumps(table, allow_nan=False, indent=1)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def table_rows(self, method: str) -> tuple[tuple[str, ...], ...]:
    """The cells of one method under `COLUMNS`, by site and over all; "" for what was not measured."""
    sites = [*dict.fromkeys(query.site for query in self.queries), None]
    return tuple((site or "all", *_cells(self.summary(method, site))) for site in sites)

  def _table(self) -> Table:
    count = len(self.queries) // len(self.methods)
    rows = tuple((method, *row) for method in self.methods for row in self.table_rows(method))
    return Table(f"{', '.join(self.methods)} on {count} held-out queries of {self.task!r}", ("method", *COLUMNS), rows)


# Key of a summary -> how its cell is written; in the order of `COLUMNS` after "site".
_FORMS = {
  "queries": "d",
  "size_median": ",.0f",
  "inside": ".3f",
  "distinct_share": ".2f",
  "marginals_ratio": ".2f",
  "bits_error": ".2f",
  "seconds_median": ".2f",
  "target_runs": ",.0f",
  "converged": ".2f",
}


def _cells(summary: dict) -> list[str]:
  return ["" if summary[key] is None else format(summary[key], form) for key, form in _FORMS.items()]


def compare_methods(
  source: Reader | tuple[Target, Task, tuple[Site, ...]],
  held_out: HeldOutQueries,
  methods: Sequence[str] = ("monte_carlo",),
  *,
  particles: int = 1024,
  budget: int = 200_000,
  mixture: str | None = None,
  num_samples: int | None = None,
  seed: int = 0,
  progress: Callable[[int], object] | None = None,
) -> MethodComparison:
  """Preimages of held-out queries by several methods, against the exact ones where the task can enumerate its inputs.

  Args:
    source: a reader; or a target, its task and the sites of the queries, for "monte_carlo" alone.
    held_out: Q queries.
    methods: of `METHODS`.
    particles, budget: of Monte Carlo; see `Reader.preimage`.
    mixture, num_samples: of the decoder's candidates, also as the start of "decoder+monte_carlo".
    seed: of candidates, particles and exact draws.
    progress: called with 1 after each preimage.

  Raises:
    InversionViewError: an unknown method, one that needs a decoder where there is none, a task without moves or prior, or more queries than
      fit into memory.
  """
  reader = source if isinstance(source, Reader) else None
  target, task, sites = (source.target, source.task, source.sites) if isinstance(source, Reader) else source
  bounds.check(seed=seed)
  settings = {"mixture": mixture, "num_samples": num_samples, "particles": particles, "budget": budget}
  sources = {}
  for method in methods:
    if method not in METHODS:
      raise one_of("method", method, METHODS)
    used = {name: settings[name] for name in SETTINGS[method] if name in settings}
    sources[method] = Source.of(target if reader is None else reader, method, task=task, **used)

  def request(q: int) -> tuple[str, str, int]:
    site = sites[int(held_out.queries.site[q])].short
    return task.tokenizer.text(held_out.tokens[q]), site, int(held_out.position[q])

  for method, found_by in sources.items():  # compiles
    short = found_by if method == "decoder" else found_by.by(method, **{**found_by.settings, "budget": 1})
    short.preimage(request(0), effects=False, seed=seed)
  distances = None
  if task.enumerable:
    mesh = None if reader is None else reader.sampler.mesh
    distances = exact.distances(target, task, sites, held_out.queries, exact.every_input(task), mesh)
  rng, results = np.random.default_rng(seed), []
  for q in range(len(held_out)):
    members = None if distances is None else distances.members(q, task.epsilon)
    for method, found_by in sources.items():
      start = time.perf_counter()
      preimage = found_by.preimage(request(q), effects=False, seed=(seed + q) % 2**32)
      seconds = time.perf_counter() - start
      text, site, _ = request(q)
      measured = _against(preimage, members, task, rng)
      runs = len(preimage.samples) if preimage.target_runs is None else preimage.target_runs
      cost: dict[str, Any] = {
        "seconds": seconds,
        "target_runs": runs,
        "converged": preimage.converged,
        "problem": preimage.problem,
      }
      results.append(MethodResult(method, site, held_out.labels[q], text, **measured, **cost))
      if progress is not None:
        progress(1)
  return MethodComparison(
    reader="" if reader is None else reader.name,
    task=task.name,
    target=f"{target.name} {target.fingerprint}",
    epsilon=task.epsilon,
    metric=task.metric,
    seed=seed,
    particles=particles,
    budget=budget,
    methods=tuple(sources),
    queries=tuple(results),
  )


def _against(preimage: Preimage, members: np.ndarray | None, task: Task, rng: np.random.Generator) -> dict:
  """The fields of a `MethodResult` that compare samples with the exact members, int64[M]."""
  inside = [(sample.tokens, sample.ended) for sample in preimage.particles if sample.inside]
  fields: dict = {"inside": preimage.rate, "distinct": len(set(inside))}
  compared = ("size", "distinct_of_draws", "marginals", "marginals_of_draws", "bits_error")
  if members is None:
    return fields | dict.fromkeys(compared)
  size, marginals, of_draws, bits_error = len(members), None, None, None
  if inside:
    t = task.tokenizer
    rows = [(t.bos_id, *text, *([t.eos_id] if ended else [])) for text, ended in inside]
    tokens, _ = pad_rows(rows, t.pad_id, task.length)
    marginals, of_draws = _marginals(tokens, task.tokens(members), task.tokenizer.vocab_size, rng)
  if preimage.bits is not None:
    bits_error = preimage.bits - float(np.log2(task.num_inputs / size))
  draws = size * -np.expm1(len(inside) * np.log1p(-1 / size)) if size > 1 else min(size, len(inside))
  return fields | dict(zip(compared, (size, float(draws), marginals, of_draws, bits_error), strict=True))


def _marginals(
  found: np.ndarray, members: np.ndarray, vocabulary: int, rng: np.random.Generator
) -> tuple[float, float]:
  """Total variation of one token's marginals from those of the members, mean over positions: of the samples, and of as many draws.

  Args:
    found: int32[P, T].
    members: int32[M, T].
    vocabulary: V.
    rng: of the draws.
  """
  both = np.concatenate([found, members])
  varies = (both != both[0]).any(axis=0)
  if not varies.any():
    return 0.0, 0.0

  def frequencies(tokens: np.ndarray) -> np.ndarray:
    counts = [np.bincount(column, minlength=vocabulary) for column in tokens[:, varies].T]
    return np.stack(counts) / len(tokens)

  exact_frequencies = frequencies(members)

  def deviation(tokens: np.ndarray) -> float:
    return float(0.5 * np.abs(frequencies(tokens) - exact_frequencies).sum(axis=1).mean())

  draws = [deviation(members[rng.integers(len(members), size=len(found))]) for _ in range(_EXACT_DRAWS)]
  return deviation(found), float(np.mean(draws))
