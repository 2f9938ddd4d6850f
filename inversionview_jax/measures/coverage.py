"""A reader against exact preimages: how much of a preimage it finds, could find, and puts before what lies outside.

Shapes: Q queries, N texts, M members of a preimage, T tokens, D width of the activation, K settings of a sampling mixture.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.measures.held_out import HeldOutQueries
from inversionview_jax.models.decoder import Decoder, token_log_probs
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling import exact
from inversionview_jax.tasks import Mixture

_FLOOR = 0.1  # of the uniform share: what a member of the preimage must be given to count as covered
_TEXTS = 512  # in one call of the decoder


def mixture_log_prob(
  reader: Reader, activation, site: int, tokens, settings, draws: int = 8, seed: int = 0
) -> np.ndarray:
  """log of the probability with which one candidate of a sampling mixture is each of these texts.

  The probability at (temperature, eta) is the mean over `draws` of the noise; the mixture's is the mean over its settings.

  Args:
    activation: float32[D].
    site: index into the reader's sites.
    tokens: int32[N, T].
    settings: K pairs of (temperature, eta).
    draws: of the noise, for settings that have some.
    seed: of the noise.

  Returns:
    float64[N].
  """
  terms, weights = [], []
  rng = np.random.default_rng(seed)
  activation = np.asarray(activation, np.float32)
  for eta in sorted({noise for _, noise in settings}):
    temperatures = [t for t, noise in settings if noise == eta]
    for _ in range(draws if eta else 1):
      noisy = activation + eta * activation.std() * rng.standard_normal(activation.shape).astype(np.float32)
      terms.append(log_probs(reader, noisy, site, tokens, temperatures))
      weights.append(np.full(len(temperatures), 1.0 / (len(settings) * (draws if eta else 1))))
  terms, weights = np.concatenate(terms), np.concatenate(weights)
  top = terms.max(axis=0)
  with np.errstate(divide="ignore"):
    return np.where(np.isinf(top), -np.inf, top + np.log(weights @ np.exp(terms - np.where(np.isinf(top), 0.0, top))))


def log_probs(reader: Reader, activation, site: int, tokens, temperatures) -> np.ndarray:
  """log p(text | activation, site) at several temperatures: float32[D], int, int32[N, T], float[K] -> float64[K, N].

  Temperature 0 is greedy decoding: 0 for the most likely text, -inf for all others.
  """
  tokens, temperatures = np.asarray(tokens, np.int32), np.asarray(temperatures, np.float32)
  found = []
  for start in range(0, len(tokens), _TEXTS):
    part = tokens[start : start + _TEXTS]
    # Short parts are filled up to a power of two, so that few shapes are compiled.
    size = min(_TEXTS, 1 << (len(part) - 1).bit_length())
    padded = parallel.pad_rows(part, size)
    out = _log_probs(
      reader.config.quick(reader.sampler.mesh),
      reader.variables,
      padded,
      activation,
      np.int32(site),
      temperatures,
      reader.task.tokenizer.pad_id,
    )
    found.append((out, len(part)))
  return np.concatenate([np.asarray(out, np.float64)[:, :n] for out, n in found], axis=1)


def _tempered(config, variables, tokens, activation, site, temperatures, pad_id):
  n = len(tokens)
  z, which = jnp.broadcast_to(activation, (n, len(activation))), jnp.full(n, site)
  logits = Decoder(config).apply(variables, tokens, z, which)
  counted = (tokens != pad_id)[:, 1:]

  def at(temperature):
    warm = jnp.sum(token_log_probs(logits / jnp.where(temperature > 0, temperature, 1.0), tokens) * counted, axis=-1)
    greedy = jnp.all((jnp.argmax(logits[:, :-1], axis=-1) == tokens[:, 1:]) | ~counted, axis=-1)
    return jnp.where(temperature > 0, warm, jnp.where(greedy, 0.0, -jnp.inf))

  return jax.lax.map(at, temperatures)


_log_probs = parallel.jit(_tempered, static_argnums=(0, 6))


@dataclasses.dataclass(frozen=True)
class ExactComparison:
  """One query's samples against its exact preimage B.

  Attributes:
    site, label, text: of the query.
    size: |B|.
    precision: share of the candidates inside epsilon.
    distinct: how many different members of B are among the candidates.
    coverage: share of the members of B to which one candidate of the mixture falls with at least a tenth of their uniform share 1/|B|.
    members: on how many members, drawn from B without replacement, `coverage` was taken.
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


def compare_with_exact(
  reader: Reader,
  asked: HeldOutQueries,
  mixture: Mixture | None = None,
  members: int = 256,
  draws: int = 8,
  seed: int = 0,
) -> list[ExactComparison]:
  """Compares the reader's candidates with exact preimages.

  Args:
    reader: of a task whose inputs can be enumerated.
    asked: Q queries.
    mixture: how candidates are drawn; None: as the task does.
    members: most members of a preimage whose probability is computed; a larger preimage is sampled.
    draws: of the noise (`mixture_log_prob`).
    seed: of candidates, members and noise.

  Raises:
    InversionViewError: a task that cannot enumerate its inputs, or more queries than fit into memory.
  """
  task = reader.task
  mixture = mixture or task.mixture
  found = exact.distances(
    reader.target, task, reader.sites, asked.queries, exact.every_input(task), reader.sampler.mesh
  )
  rng, made = np.random.default_rng(seed), []
  for q in range(len(asked)):
    one = jax.tree.map(lambda x, q=q: x[q : q + 1], asked.queries)
    out, _ = reader.draw_mixture(one, mixture, seed + q)
    near = out.distance <= np.float32(task.epsilon)
    candidates = out.tokens[near]
    preimage = found.members(q, task.epsilon)
    some = rng.permutation(preimage)[:members]
    site = int(asked.queries.site[q])
    log_p = mixture_log_prob(
      reader, asked.queries.activation[q], site, task.tokens(some), mixture.settings, draws, seed + q
    )
    made.append(
      ExactComparison(
        site=reader.config.sites[site],
        label=asked.labels[q],
        text=task.tokenizer.text(asked.tokens[q]),
        size=len(preimage),
        precision=float(near.mean()),
        distinct=len(np.intersect1d(task.index(candidates), preimage)),
        coverage=float(np.mean(log_p >= math.log(_FLOOR / len(preimage)))),
        members=len(some),
        features=_feature_coverage(task, task.tokens(preimage), candidates),
      )
    )
  return made


def _feature_coverage(task, members, candidates) -> dict[str, float]:
  ours = {name: set(values.tolist()) for name, values in task.features(candidates).items()} if len(candidates) else {}
  covered = {}
  for name, values in task.features(members).items():
    there = set(np.unique(values).tolist()) - {-1}
    if there:
      covered[name] = len(there & ours.get(name, set())) / len(there)
  return covered


@dataclasses.dataclass(frozen=True)
class Completeness:
  """One query: distance of inputs against their log-probability under the decoder (paper, appendix on completeness).

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

  def to_dict(self, bins: int = 60) -> dict:
    """Counts of inputs over distance and log-probability, for inside and outside epsilon what they are given, and how well they part.

    "order" is the probability that a random input inside is given more than a random one outside; null where there is none of either.
    """
    inside = self.distance <= np.float32(self.epsilon)
    finite = np.isfinite(self.distance)
    counts, far, said = np.histogram2d(self.distance[finite], self.log_prob[finite], bins=bins)
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
      "order": _order(self.log_prob[inside], self.log_prob[~inside]),
      "distance_edges": far.tolist(),
      "log_prob_edges": said.tolist(),
      "counts": counts.astype(int).tolist(),
    }


def _order(inside, outside) -> float | None:
  """P(a random value of the first is larger than one of the second), ties counting half (Mann and Whitney, 1947)."""
  if not len(inside) or not len(outside):
    return None
  ranked = np.sort(outside)
  below = np.searchsorted(ranked, inside, side="left") + np.searchsorted(ranked, inside, side="right")
  return float(below.mean() / (2 * len(outside)))


def completeness(
  reader: Reader,
  asked: HeldOutQueries,
  inputs: int | None = None,
  noise: float = 0.1,
  draws: int = 1,
  seed: int = 0,
) -> list[Completeness]:
  """Distance against log-probability, for every input of the task (or so many random ones) and each query.

  Args:
    reader: of a task whose inputs can be enumerated.
    asked: Q queries.
    inputs: how many random inputs; None: all.
    noise, draws: the probability is the mean over so many draws of noise eta (paper: 500 draws of 0.1); one draw is without noise.
    seed: of inputs and noise.
  """
  task = reader.task
  index = exact.every_input(task)
  if inputs is not None and inputs < len(index):
    index = np.sort(np.random.default_rng(seed).choice(index, size=inputs, replace=False))
  found = exact.distances(reader.target, task, reader.sites, asked.queries, index, reader.sampler.mesh)
  settings, made = ((1.0, noise if draws > 1 else 0.0),), []
  for q in range(len(asked)):
    site, said = int(asked.queries.site[q]), []
    for start in range(0, len(index), 64 * _TEXTS):
      tokens = task.tokens(index[start : start + 64 * _TEXTS])
      said.append(mixture_log_prob(reader, asked.queries.activation[q], site, tokens, settings, draws, seed=seed))
    made.append(
      Completeness(
        reader.config.sites[site],
        asked.labels[q],
        task.tokenizer.text(asked.tokens[q]),
        task.epsilon,
        found.distance[q],
        np.concatenate(said),
      )
    )
  return made
