"""`evaluate`: every number that says how far to trust a reader, in one table.

Shapes: Q queries, S sites.
"""

import dataclasses
import json
import math
import os

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.files import write_whole
from inversionview_jax.measures import coverage, held_out
from inversionview_jax.measures.coverage import ExactComparison
from inversionview_jax.measures.held_out import HeldOutQueries, Rate
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling import exact
from inversionview_jax.tasks import Mixture

FORMAT, FORMAT_VERSION = "inversionview-evaluation", 1


@dataclasses.dataclass(frozen=True)
class Site:
  """One site of an evaluation: its in-epsilon rate, what random inputs reach, and both by label of the position."""

  name: str
  rate: Rate
  base: float
  by_label: dict[str, tuple[Rate, float]]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What `evaluate` measured; `to_json` writes it.

  Attributes:
    reader, task, target: names; `target` with its fingerprint.
    epsilon, metric, seed: of the measurement.
    sites: one by one.
    labels: of the positions that were asked, in the order in which they stand in an input.
    exact: queries against exact preimages; empty for a task that cannot enumerate its inputs.
    mixture: that the candidates of `exact` were drawn with.
  """

  reader: str
  task: str
  target: str
  epsilon: float
  metric: str
  seed: int
  sites: tuple[Site, ...]
  labels: tuple[str, ...]
  exact: tuple[ExactComparison, ...]
  mixture: Mixture

  @property
  def rate(self) -> float:
    """The in-epsilon rate, mean over sites."""
    return float(np.mean([site.rate.value for site in self.sites]))

  @property
  def base(self) -> float:
    """What random inputs reach, mean over sites."""
    return float(np.mean([site.base for site in self.sites]))

  def summary(self) -> dict:
    """The means: rate, its standard error, base, and where measured precision, coverage, feature coverage and distinct members."""
    spread = [site.rate.value * (1 - site.rate.value) / site.rate.count for site in self.sites]
    told = {
      "rate": self.rate,
      "rate_standard_error": math.sqrt(sum(spread)) / len(spread),
      "rate_lowest": min(site.rate.value for site in self.sites),
      "base": self.base,
    }
    if self.exact:
      told |= {
        "queries": len(self.exact),
        "precision": float(np.mean([one.precision for one in self.exact])),
        "coverage": float(np.mean([one.coverage for one in self.exact])),
        "feature_coverage": float(
          np.mean([np.mean(list(one.features.values())) for one in self.exact if one.features])
        ),
        "distinct": float(np.mean([one.distinct for one in self.exact])),
      }
    return told

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


def evaluate(
  reader: Reader,
  queries: int = 200,
  exact_queries: int = 50,
  mixture: Mixture | None = None,
  members: int = 256,
  seed: int = 0,
) -> Evaluation:
  """Everything above, for one reader, on inputs that training did not see.

  Args:
    reader: what is evaluated.
    queries: per site, for the in-epsilon rate.
    exact_queries: in total, the sites in turn, against exact preimages; 0 for a task that cannot enumerate its inputs.
    mixture: how the candidates for `exact_queries` are drawn; None: as the task does.
    members: see `compare_with_exact`.
    seed: of all of it.
  """
  task = reader.task
  if exact_queries:
    exact.every_input(task)  # known now, not after the rest
  asked = held_out.held_out(reader, queries, seed)
  hits, base = held_out.inside(reader, asked, seed), held_out.base_rates(reader, asked, seed=seed)
  labels, order = np.array(asked.labels), _in_order(asked)

  def told(which):
    return Rate(int(hits[which].sum()), int(which.sum())), float(base[which].mean())

  sites = []
  for s, name in enumerate(reader.config.sites):
    own = asked.queries.site == s
    by_label = {label: told(own & (labels == label)) for label in order if (own & (labels == label)).any()}
    sites.append(Site(name, *told(own), by_label))
  mixture = mixture or task.mixture
  against = ()
  if exact_queries:
    some = held_out.held_out(reader, exact_queries, seed + 1, every_site=False)
    against = coverage.compare_with_exact(reader, some, mixture, members, seed=seed)
  return Evaluation(
    reader=reader.name,
    task=task.name,
    target=f"{reader.target.name} {reader.target.fingerprint}",
    epsilon=task.epsilon,
    metric=task.metric,
    seed=seed,
    sites=tuple(sites),
    labels=tuple(order),
    exact=tuple(against),
    mixture=mixture,
  )


def _in_order(asked: HeldOutQueries) -> list[str]:
  """The labels of the queries, in the order in which they stand in an input."""
  at = {}
  for label, position in zip(asked.labels, asked.at.tolist(), strict=True):
    at.setdefault(label, []).append(position)
  return sorted(at, key=lambda label: (np.mean(at[label]), label))
