"""`evaluate`: in-epsilon rates, base rates, precision and coverage of a reader in one table: how far to trust it.

Shapes: Q queries, S sites.
"""

import dataclasses
import json
import math
import os

import numpy as np

from inversionview_jax import bounds
from inversionview_jax._version import __version__
from inversionview_jax.files import write_whole
from inversionview_jax.measures import coverage, held_out
from inversionview_jax.measures.coverage import ExactComparison
from inversionview_jax.measures.held_out import HeldOutQueries
from inversionview_jax.measures.rates import Rate
from inversionview_jax.reading import Reader
from inversionview_jax.sampling import exact
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.tasks import Mixture

FORMAT, FORMAT_VERSION = "inversionview-evaluation", 1


@dataclasses.dataclass(frozen=True)
class SiteRate:
  """One site of an evaluation: its in-epsilon rate, that of random inputs, and both by label of the position."""

  name: str
  rate: Rate
  base: float
  by_label: dict[str, tuple[Rate, float]]


@dataclasses.dataclass(frozen=True, repr=False)
class Evaluation(ShowsTable):
  """The measurements of `evaluate`.

  Attributes:
    reader, task, target: names; `target` with its fingerprint.
    epsilon, metric, seed: of the measurement.
    sites: one by one.
    labels: of the queries' positions, in the order in which they stand in an input.
    exact: queries against exact preimages; empty for a task that cannot enumerate its inputs.
    mixture: that the candidates of `exact` were drawn with.
  """

  reader: str
  task: str
  target: str
  epsilon: float
  metric: str
  seed: int
  sites: tuple[SiteRate, ...]
  labels: tuple[str, ...]
  exact: tuple[ExactComparison, ...]
  mixture: Mixture

  @property
  def rate(self) -> float:
    """The in-epsilon rate, mean over sites."""
    return float(np.mean([site.rate.value for site in self.sites]))

  @property
  def base(self) -> float:
    """The in-epsilon rate of random inputs, mean over sites."""
    return float(np.mean([site.base for site in self.sites]))

  def summary(self) -> dict:
    """The means: rate, its standard error, base, and where measured precision, coverage, feature coverage and distinct members."""
    variances = [site.rate.value * (1 - site.rate.value) / site.rate.count for site in self.sites]
    means = {
      "rate": self.rate,
      "rate_standard_error": math.sqrt(sum(variances)) / len(variances),
      "rate_lowest": min(site.rate.value for site in self.sites),
      "base": self.base,
    }
    if self.exact:
      means |= {
        "queries": len(self.exact),
        "precision": float(np.mean([one.precision for one in self.exact])),
        "coverage": float(np.mean([one.coverage for one in self.exact])),
        "feature_coverage": float(
          np.mean([np.mean(list(one.features.values())) for one in self.exact if one.features])
        ),
        "distinct": float(np.mean([one.distinct for one in self.exact])),
      }
    return means

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything; also written to `path`, whole or not at all."""
    sites = [
      {
        "site": site.name,
        "rate": site.rate.to_dict(),
        "base": site.base,
        "labels": {label: {"rate": rate.to_dict(), "base": base} for label, (rate, base) in site.by_label.items()},
      }
      for site in self.sites
    ]
    table = {
      "format": FORMAT,
      "format_version": FORMAT_VERSION,
      "version": __version__,
      **{name: getattr(self, name) for name in ("reader", "task", "target", "epsilon", "metric", "seed")},
      "summary": self.summary(),
      "sites": sites,
      "mixture": dataclasses.asdict(self.mixture),
      "exact": [dataclasses.asdict(one) for one in self.exact],
    }
    text = json.dumps(table, allow_nan=False, indent=1)
    if path is not None:
      write_whole(path, text + "\n")
    return text

  def _table(self) -> Table:
    summary = self.summary()
    rows = [(site.name, str(site.rate), f"{site.base:.3f}") for site in self.sites]
    rows.append(("mean", f"{self.rate:.3f} ± {summary['rate_standard_error']:.3f}", f"{self.base:.3f}"))
    notes = ""
    if self.exact:
      means = ", ".join(f"{name} {summary[name]:.3f}" for name in ("precision", "coverage", "feature_coverage"))
      notes = f"{len(self.exact)} queries against exact preimages: {means.replace('_', ' ')}"
    title = f"Evaluation of the reader {self.reader!r}, epsilon {self.epsilon:g}"
    return Table(title, ("site", "in-epsilon rate (95 %)", "random inputs"), tuple(rows), notes)


def evaluate(
  reader: Reader,
  queries: int = 200,
  exact_queries: int = 50,
  mixture: Mixture | None = None,
  members: int = 256,
  seed: int = 0,
) -> Evaluation:
  """The in-epsilon rate of every site, and candidates against exact preimages, on inputs that training did not see.

  Args:
    reader: what is evaluated.
    queries: per site, for the in-epsilon rate.
    exact_queries: in total, the sites in turn, against exact preimages; 0 for a task that cannot enumerate its inputs.
    mixture: how the candidates for `exact_queries` are drawn; None: as the task does.
    members: see `coverage.compare_with_exact`.
    seed: of queries, candidates and random inputs.
  """
  bounds.check(queries=queries, exact_queries=exact_queries, members=members, seed=seed)
  task = reader.task
  if exact_queries:
    exact.every_input(task)  # a task that cannot is refused before anything runs
  held = held_out.held_out_queries(reader, queries, seed)
  hits, base = held_out.inside(reader, held, seed), held_out.base_rates(reader, held, seed=seed)
  labels, order = np.array(held.labels), _labels_in_order(held)

  def rates(which: np.ndarray) -> tuple[Rate, float]:
    return Rate(int(hits[which].sum()), int(which.sum())), float(base[which].mean())

  sites = []
  for s, name in enumerate(reader.config.sites):
    own = np.asarray(held.queries.site) == s
    by_label = {label: rates(own & (labels == label)) for label in order if (own & (labels == label)).any()}
    sites.append(SiteRate(name, *rates(own), by_label))
  mixture = mixture or task.mixture
  comparisons: list[ExactComparison] = []
  if exact_queries:
    some = held_out.held_out_queries(reader, exact_queries, seed + 1, every_site=False)
    comparisons = coverage.compare_with_exact(reader, some, mixture, members, seed=seed)
  return Evaluation(
    reader=reader.name,
    task=task.name,
    target=f"{reader.target.name} {reader.target.fingerprint}",
    epsilon=task.epsilon,
    metric=task.metric,
    seed=seed,
    sites=tuple(sites),
    labels=tuple(order),
    exact=tuple(comparisons),
    mixture=mixture,
  )


def _labels_in_order(held: HeldOutQueries) -> list[str]:
  """The labels of the queries, in the order in which they stand in an input."""
  positions: dict[str, list[int]] = {}
  for label, position in zip(held.labels, held.position.tolist(), strict=True):
    positions.setdefault(label, []).append(position)
  return sorted(positions, key=lambda label: (np.mean(positions[label]), label))
