"""A reader against exact preimages: precision and coverage of its candidates, and completeness of its decoder's probabilities.

Shapes: Q queries, N inputs, M members of a preimage, T tokens.
"""

import dataclasses
import math

import numpy as np

from inversionview_jax import bounds, progress
from inversionview_jax.measures.held_out import HeldOutQueries
from inversionview_jax.measures.rates import auc
from inversionview_jax.reading import Reader
from inversionview_jax.reading.log_prob import mixture_log_prob
from inversionview_jax.sampling import exact
from inversionview_jax.tables import ShowsTable, Table
from inversionview_jax.tasks import Mixture, Task

_FLOOR = 0.1  # share of the uniform probability 1/M from which a member counts as covered
_INPUTS_AT_ONCE = 32_768  # whose tokens are made at a time


@dataclasses.dataclass(frozen=True, repr=False)
class ExactComparison(ShowsTable):
  """One query's candidates against its exact preimage B.

  Attributes:
    site, label, text: of the query.
    size: |B|.
    precision: share of the candidates inside epsilon.
    distinct: how many different members of B are among the candidates.
    coverage: share of the members of B that one candidate of the mixture is with at least a tenth of the uniform probability 1/|B|.
    members: on how many members, drawn from B without replacement, `coverage` was computed.
    features: for each feature of the task, the share of its values occurring in B that occur among the candidates inside epsilon.
  """

  site: str
  label: str
  text: str
  size: int
  precision: float
  distinct: int
  coverage: float
  members: int
  features: dict[str, float]

  def _table(self) -> Table:
    rows = [("precision", f"{self.precision:.3f}"), ("coverage", f"{self.coverage:.3f} of {self.members:,} members")]
    rows.append(("distinct members", f"{self.distinct:,} of {self.size:,}"))
    if self.features:
      rows.append(("feature values", " ".join(f"{name} {share:.2f}" for name, share in self.features.items())))
    return Table(f"{self.site} at {self.label!r} of {self.text!r} against its exact preimage", (), tuple(rows))


def compare_with_exact(
  reader: Reader,
  held_out: HeldOutQueries,
  mixture: Mixture | None = None,
  members: int = 256,
  draws: int = 8,
  seed: int = 0,
) -> list[ExactComparison]:
  """Compares the reader's candidates with exact preimages.

  Args:
    reader: of a task whose inputs can be enumerated.
    held_out: Q queries.
    mixture: how candidates are drawn; None: as the task does.
    members: most members of a preimage whose probability is computed; a larger preimage is sampled.
    draws: of the noise (`mixture_log_prob`).
    seed: of candidates, members and noise.

  Raises:
    InversionViewError: a task that cannot enumerate its inputs, or more queries than fit into memory.
  """
  bounds.check(members=members, noise_draws=draws, seed=seed)
  task, queries = reader.task, held_out.queries
  mixture = mixture or task.mixture
  distances = exact.distances(reader.target, task, reader.sites, queries, exact.every_input(task), reader.sampler.mesh)
  rng, comparisons = np.random.default_rng(seed), []
  for q in range(len(held_out)):
    candidates, _ = reader.draw_mixture(queries.take(q), mixture, seed + q)
    is_inside = np.asarray(candidates.distance) <= np.float32(task.epsilon)
    texts = np.asarray(candidates.tokens)[is_inside]
    preimage = distances.members(q, task.epsilon)
    some = rng.permutation(preimage)[:members]
    site = int(queries.site[q])
    log_p = mixture_log_prob(reader, queries.activation[q], site, task.tokens(some), mixture.settings, draws, seed + q)
    comparisons.append(
      ExactComparison(
        site=reader.config.sites[site],
        label=held_out.labels[q],
        text=task.tokenizer.text(held_out.tokens[q]),
        size=len(preimage),
        precision=float(is_inside.mean()),
        distinct=len(np.intersect1d(task.index(texts), preimage)),
        coverage=float(np.mean(log_p >= math.log(_FLOOR / len(preimage)))),
        members=len(some),
        features=_feature_coverage(task, task.tokens(preimage), texts),
      )
    )
  return comparisons


def _feature_coverage(task: Task, members: np.ndarray, candidates: np.ndarray) -> dict[str, float]:
  """Of each feature the share of its values among the members int32[M, T] that occur among the candidates int32[N, T]."""
  drawn = {name: set(values.tolist()) for name, values in task.features(candidates).items()} if len(candidates) else {}
  covered = {}
  for name, values in task.features(members).items():
    present = set(np.unique(values).tolist()) - {-1}
    if present:
      covered[name] = len(present & drawn.get(name, set())) / len(present)
  return covered


@dataclasses.dataclass(frozen=True, repr=False)
class Completeness(ShowsTable):
  """One query: distances of inputs against their log-probability under the decoder (paper, appendix on completeness).

  Attributes:
    site, label, text: of the query.
    epsilon: of the task.
    distance: float32[N], of each input.
    log_prob: float64[N], temperature 1, mean over draws of the noise.
  """

  site: str
  label: str
  text: str
  epsilon: float
  distance: np.ndarray
  log_prob: np.ndarray

  @property
  def auc(self) -> float | None:
    """P(a random input inside epsilon has a higher probability than one outside), ties counting half; None where one side is empty."""
    inside = self.distance <= np.float32(self.epsilon)
    return auc(self.log_prob[inside], self.log_prob[~inside])

  def to_dict(self, bins: int = 60) -> dict:
    """Histogram of inputs over distance and log-probability, total probability and quantiles inside and outside epsilon, and the AUC."""
    inside = self.distance <= np.float32(self.epsilon)
    finite = np.isfinite(self.distance)
    counts, distance_edges, log_prob_edges = np.histogram2d(self.distance[finite], self.log_prob[finite], bins=bins)
    sides = {}
    for name, side in (("inside", inside), ("outside", ~inside)):
      values = self.log_prob[side]
      quantiles = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist() if len(values) else None
      sides[name] = {"inputs": len(values), "probability": float(np.exp(values).sum()), "log_prob_quantiles": quantiles}
    return {
      "site": self.site,
      "label": self.label,
      "text": self.text,
      "epsilon": self.epsilon,
      **sides,
      "auc": self.auc,
      "distance_edges": distance_edges.tolist(),
      "log_prob_edges": log_prob_edges.tolist(),
      "counts": counts.astype(int).tolist(),
    }

  def _table(self) -> Table:
    inside = self.distance <= np.float32(self.epsilon)
    rows = tuple(
      (name, f"{side.sum():,}", f"{np.exp(self.log_prob[side]).sum():.4g}")
      for name, side in (("inside", inside), ("outside", ~inside))
    )
    title = f"{self.site} at {self.label!r} of {self.text!r}, epsilon {self.epsilon:g}"
    return Table(title, ("", "inputs", "probability"), rows, "" if self.auc is None else f"AUC {self.auc:.4f}")


def completeness(
  reader: Reader,
  held_out: HeldOutQueries,
  inputs: int | None = None,
  noise: float = 0.1,
  draws: int = 1,
  seed: int = 0,
) -> list[Completeness]:
  """Distance against log-probability, for every input of the task (or so many random ones) and each query.

  Args:
    reader: of a task whose inputs can be enumerated.
    held_out: Q queries.
    inputs: how many random inputs; None: all.
    noise, draws: the probability is the mean over so many draws of noise eta (paper: 500 draws of 0.1); one draw is without noise.
    seed: of inputs and noise.
  """
  bounds.check(noise_draws=draws, seed=seed)
  bounds.whole("inputs", 1 if inputs is None else inputs, "all_inputs")  # of the task's, at most all of them
  task, queries = reader.task, held_out.queries
  index = exact.every_input(task)
  if inputs is not None and inputs < len(index):
    index = np.sort(np.random.default_rng(seed).choice(index, size=inputs, replace=False))
  distances = exact.distances(reader.target, task, reader.sites, queries, index, reader.sampler.mesh)
  settings = ((1.0, noise if draws > 1 else 0.0),)
  results = []
  for q in progress.counted(range(len(held_out))):
    site, activation = int(queries.site[q]), queries.activation[q]
    log_prob = [
      mixture_log_prob(reader, activation, site, task.tokens(part), settings, draws, seed=seed)
      for part in np.split(index, range(_INPUTS_AT_ONCE, len(index), _INPUTS_AT_ONCE))
    ]
    results.append(
      Completeness(
        reader.config.sites[site],
        held_out.labels[q],
        task.tokenizer.text(held_out.tokens[q]),
        task.epsilon,
        distances.distance[q],
        np.concatenate(log_prob),
      )
    )
  return results
