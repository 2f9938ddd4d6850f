"""Monte Carlo on the target against exact preimages: particles inside epsilon, marginals, bits, and what they cost.

Shapes: Q queries, N inputs, P particles, M members of a preimage, T tokens.
"""

import dataclasses
import functools
import json
import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.files import write_whole
from inversionview_jax.measures.held_out import HeldOutQueries
from inversionview_jax.reading import Reader
from inversionview_jax.sampling import exact
from inversionview_jax.tables import ShowsTable, Table

FORMAT, FORMAT_VERSION = "inversionview-monte-carlo", 1
_EXACT_DRAWS = 5  # samples from the exact preimage, whose mean deviation is what P independent particles would show


@dataclasses.dataclass(frozen=True)
class MonteCarloComparison:
  """One query's particles, against its exact preimage B where the task's inputs can be enumerated.

  Attributes:
    site, label, text: of the query.
    inside: share of the particles within epsilon.
    distinct: how many different particles there are.
    size: |B|; this and the next three are None for a task that cannot enumerate its inputs.
    marginals: total variation between the marginals of one token of the particles and of B, mean over the positions that vary.
    marginals_of_draws: the same of as many independent uniform draws from B, mean of five samples.
    bits_error: estimated bits minus log2(N / |B|); None where they were not estimated.
    seconds: of the query, compilation not counted.
    target_runs: inputs that the target was run on.
    converged, problem: what the sampler reports.
  """

  site: str
  label: str
  text: str
  inside: float
  distinct: int
  size: int | None
  marginals: float | None
  marginals_of_draws: float | None
  bits_error: float | None
  seconds: float
  target_runs: int
  converged: bool
  problem: str


@dataclasses.dataclass(frozen=True, repr=False)
class MonteCarloEvaluation(ShowsTable):
  """What `evaluate_monte_carlo` measured.

  Attributes:
    reader, task, target: names; `target` with its fingerprint.
    epsilon, metric, seed, method, particles, budget: of the measurement.
    queries: one by one.
  """

  reader: str
  task: str
  target: str
  epsilon: float
  metric: str
  seed: int
  method: str
  particles: int
  budget: int
  queries: tuple[MonteCarloComparison, ...]

  def summary(self, site: str | None = None) -> dict:
    """Means over the queries of a site (None: of all); None for what no query has."""
    some = [query for query in self.queries if site in (None, query.site)]

    def over(name: str, reduce: Callable[[Sequence[float]], float] = np.mean) -> float | None:
      values = [getattr(query, name) for query in some if getattr(query, name) is not None]
      return float(reduce(values)) if values else None

    def mean_size(values: Sequence[float]) -> float:
      return float(np.mean(np.abs(values)))

    return {
      "queries": len(some),
      "size_median": over("size", np.median),
      "inside": over("inside"),
      "all_inside": float(np.mean([query.inside == 1 for query in some])),
      "marginals": over("marginals"),
      "marginals_of_draws": over("marginals_of_draws"),
      "bits_error": over("bits_error", mean_size),
      "bits_error_largest": over("bits_error", lambda values: np.abs(values).max()),
      "seconds_median": over("seconds", np.median),
      "target_runs": over("target_runs"),
      "converged": over("converged"),
    }

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything; also written to `path`, whole or not at all."""
    fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "queries"}
    table = {"format": FORMAT, "format_version": FORMAT_VERSION, "version": __version__, **fields}
    table |= {"summary": self.summary(), "queries": [dataclasses.asdict(query) for query in self.queries]}
    text = json.dumps(table, allow_nan=False, indent=1)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def table_rows(self) -> tuple[tuple[str, ...], ...]:
    """The cells of each site and of all queries, under `COLUMNS`; "" for what was not measured."""
    sites = dict.fromkeys(query.site for query in self.queries)
    return tuple(_cells(name, self.summary(site)) for name, site in [*((site, site) for site in sites), ("all", None)])

  def _table(self) -> Table:
    return Table(f"{self.method} on {len(self.queries)} held-out queries of {self.task!r}", COLUMNS, self.table_rows())


COLUMNS = ("site", "n", "members", "inside", "TV", "draws TV", "bits", "s", "runs", "converged")


def _cells(name: str, summary: dict) -> tuple[str, ...]:
  def cell(key: str, form: str) -> str:
    return "" if summary[key] is None else format(summary[key], form)

  forms = (",.0f", ".3f", ".3f", ".3f", ".2f", ".2f", ",.0f", ".2f")
  keys = (
    "size_median",
    "inside",
    "marginals",
    "marginals_of_draws",
    "bits_error",
    "seconds_median",
    "target_runs",
    "converged",
  )
  return (name, str(summary["queries"]), *map(cell, keys, forms))


def evaluate_monte_carlo(
  reader: Reader,
  held_out: HeldOutQueries,
  method: str = "monte_carlo",
  *,
  particles: int = 1024,
  budget: int = 200_000,
  mixture: str | None = None,
  num_samples: int | None = None,
  seed: int = 0,
  progress: Callable[[int], object] | None = None,
) -> MonteCarloEvaluation:
  """Preimages by Monte Carlo of held-out queries, against the exact ones where the task can enumerate its inputs.

  Args:
    reader: what is evaluated.
    held_out: Q queries.
    method: "monte_carlo" or "decoder+monte_carlo".
    particles, budget: of each query; see `Reader.preimage`.
    mixture, num_samples: of the decoder's candidates that "decoder+monte_carlo" starts from.
    seed: of particles and exact draws.
    progress: called with 1 after each query.

  Raises:
    InversionViewError: a task without moves or prior, or more queries than fit into memory.
  """
  task = reader.task
  settings = {"method": method, "particles": particles, "mixture": mixture, "num_samples": num_samples}
  find = functools.partial(reader.preimage, **{name: value for name, value in settings.items() if value is not None})

  def request(q: int) -> tuple[str, str, int]:
    site = reader.config.sites[int(held_out.queries.site[q])]
    return task.tokenizer.text(held_out.tokens[q]), site, int(held_out.position[q])

  find(*request(0), budget=1, seed=seed)  # compiles; a task without moves is refused before the enumeration
  distances = None
  if task.enumerable:
    index, mesh = exact.every_input(task), reader.sampler.mesh
    distances = exact.distances(reader.target, task, reader.sites, held_out.queries, index, mesh)
  rng, queries = np.random.default_rng(seed), []
  for q in range(len(held_out)):
    text, site, position = request(q)
    start = time.perf_counter()
    preimage = find(text, site, position, budget=budget, seed=(seed + q) % 2**32)
    seconds = time.perf_counter() - start
    found = [sample.text for sample in preimage.particles]
    size = marginals = of_draws = bits_error = None
    if distances is not None:
      members = distances.members(q, task.epsilon)
      size = len(members)
      tokens = task.tokenizer.encode_batch(found, length=task.length, eos=True)
      marginals, of_draws = _marginals(tokens, task.tokens(members), task.tokenizer.vocab_size, rng)
      if preimage.bits is not None:
        bits_error = preimage.bits - float(np.log2(len(distances.index) / size))
    results = (preimage.target_runs, preimage.converged, preimage.problem)
    measured = (preimage.rate, len(set(found)), size, marginals, of_draws, bits_error, seconds)
    queries.append(MonteCarloComparison(site, held_out.labels[q], text, *measured, *results))
    if progress is not None:
      progress(1)
  return MonteCarloEvaluation(
    reader=reader.name,
    task=task.name,
    target=f"{reader.target.name} {reader.target.fingerprint}",
    epsilon=task.epsilon,
    metric=task.metric,
    seed=seed,
    method=method,
    particles=particles,
    budget=budget,
    queries=tuple(queries),
  )


def _marginals(
  found: np.ndarray, members: np.ndarray, vocabulary: int, rng: np.random.Generator
) -> tuple[float, float]:
  """Total variation of one token's marginals from those of the members, mean over positions: of the particles, and of as many draws.

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
