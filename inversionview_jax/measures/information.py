"""The information in an activation, in bits: log2 of 1 over the share of inputs that lie inside epsilon.

The share is estimated by importance sampling with several proposals, a fixed number of texts from each: inputs of the task at random, and
the decoder conditioned on the activation, plain and with a few draws of noise, at more than one temperature. A text inside epsilon has the
weight p0 / q, where p0 is its probability as an input and q the mean of its probability under all proposals, weighted by the number of
texts from each (the balance heuristic of Veach and Guibas, 1995; Owen and Zhou, 2000). The proposals are fixed once the noise is drawn, so
the estimate is unbiased whatever the decoder is: the mean of the weights is the share. Random inputs as one proposal (defensive importance
sampling; Hesterberg, 1995) bound every weight by texts / inputs, and members that the decoder never proposes are counted as far as random
inputs include enough of them. Where random inputs alone include enough members, only they are used.

The weighted texts are also a sample of the preimage under the distribution of inputs, not of the decoder. None of this is needed for a preimage
that has its own bits (`Information.of`): Monte Carlo from the prior, and exact ones.

Shapes: N texts, T tokens, C noisy activations, D width of the activation.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inversionview_jax import bounds
from inversionview_jax.measures.consistency import Members
from inversionview_jax.measures.rates import Z95
from inversionview_jax.preimage import Preimage, Query
from inversionview_jax.reading import Reader
from inversionview_jax.reading.log_prob import log_probs
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import ANYWHERE, Queries, Rows
from inversionview_jax.sampling.mixtures import add_noise
from inversionview_jax.tables import ShowsTable, Table

# Noise and temperatures of the decoder's proposals: one pass of the decoder serves all temperatures of one noisy activation.
_NOISE = (0.0, 0.1, 0.2, 0.2, 0.3, 0.3)
_TEMPERATURES = (1.0, 1.5)
_ENOUGH = 1000  # members among random inputs: their share has a standard error of 3 %, 0.05 bit
_WORST_ERROR, _FEWEST = 0.25, 30  # thresholds of `Information.warning` on the error and on effective members
_FEW_INPUTS_INSIDE = 10


@dataclasses.dataclass(frozen=True, repr=False)
class Information(ShowsTable):
  """How much information an activation has about its input.

  Attributes:
    bits: log2(1 / share); None where no text lay inside epsilon, or Monte Carlo did not reach it.
    error: standard error of `bits`.
    share: of the task's inputs that lie inside epsilon.
    effective: number of equally weighted members with the same variance of the share; this and what follows are None where the bits are those
      of a preimage.
    inputs, inputs_inside: random inputs that were tried, and how many of them lie inside epsilon.
    draws, draws_inside: the decoder's texts, and how many of them are inputs of the task inside epsilon; 0 of 0 where random inputs were
      enough.
    heaviest: share of the estimate contributed by the heaviest text.
    problem: of a preimage, why its bits cannot be relied on; "" if they can.
  """

  bits: float | None
  error: float
  share: float
  effective: float | None = None
  inputs: int | None = None
  inputs_inside: int | None = None
  draws: int | None = None
  draws_inside: int | None = None
  heaviest: float | None = None
  problem: str = ""

  @classmethod
  def of(cls, preimage: Preimage) -> "Information | None":
    """The bits of a preimage that was drawn from the prior or enumerated; None for one that has none, as those that start from a decoder.

    Where Monte Carlo from the prior did not reach epsilon, `bits` are None and `problem` has the reason.
    """
    if preimage.bits is not None:
      return cls(preimage.bits, preimage.bits_error or 0.0, 2.0**-preimage.bits, problem=preimage.problem)
    if preimage.method != "monte_carlo" or not preimage.problem:
      return None
    return cls(None, math.inf, 0.0, problem=preimage.problem)

  @property
  def low(self) -> float | None:
    """Lower end of the 95 % interval of `bits`."""
    return None if self.bits is None else max(self.bits - Z95 * self.error, 0.0)

  @property
  def high(self) -> float | None:
    """Upper end of the 95 % interval of `bits`."""
    return None if self.bits is None else self.bits + Z95 * self.error

  @property
  def warning(self) -> str:
    """Why the estimate is unreliable; "" if it is reliable."""
    if self.inputs is None or self.inputs_inside is None or self.effective is None:  # of a preimage
      return self.problem and f"not converged: {self.problem}"
    if self.bits is None:
      # 3 / inputs is the upper 95 % bound of a share of which no random input was met
      return f"no text lies inside epsilon: more than {math.log2(self.inputs / 3):.1f} bits, judged by {self.inputs:,} random inputs"
    if self.error > _WORST_ERROR or self.effective < _FEWEST:
      return f"uncertain: estimated from {self.effective:.0f} effective members; draw more"
    if self.inputs_inside < _FEW_INPUTS_INSIDE:
      return (
        f"at most: {self.inputs_inside} of {self.inputs:,} random inputs lie inside epsilon, too few to estimate how many members the "
        "decoder does not propose"
      )
    return ""

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    table = dataclasses.asdict(self) | {"low": self.low, "high": self.high, "warning": self.warning}
    return table | {"error": self.error if math.isfinite(self.error) else None}

  def _table(self) -> Table:
    title = "no text inside epsilon" if self.bits is None else f"{self.bits:.2f} ± {self.error:.2f} bits"
    rows = [("share of inputs inside epsilon", f"{100 * self.share:.3g} %")]
    if self.inputs is not None:
      rows.append(("random inputs inside", f"{self.inputs_inside:,} of {self.inputs:,}"))
    if self.draws:
      rows.append(("decoder's texts inside", f"{self.draws_inside:,} of {self.draws:,}"))
    if self.effective is not None:
      rows.append(("effective members", f"{self.effective:.0f}"))
    return Table(title, (), tuple(rows), self.warning)


@dataclasses.dataclass(frozen=True)
class InformationResult:
  """An estimate, and the weighted texts near the activation: inputs of the task under their distribution.

  Attributes:
    information: the estimate.
    members: texts up to `reach` epsilons, with their importance weights.
  """

  information: Information
  members: Members


def measure(
  reader: Reader,
  queries: Sequence[Query],
  *,
  epsilon: float | None = None,
  metric: str | None = None,
  match: str = "anywhere",
  inputs: int = 8192,
  draws: int = 768,
  reach: float = 2.0,
  seed: int = 0,
) -> list[InformationResult]:
  """The information in each of several activations.

  Args:
    reader: whose decoder is a proposal.
    queries: of sites of the reader.
    epsilon, metric: None for the task's.
    match: as in `Reader.preimage`.
    inputs: random inputs, the same for all queries.
    draws: the decoder's texts for each query; rounded up to a multiple of its proposals.
    reach: texts up to so many epsilons are weighted, so that a reading at a larger epsilon needs no other run.
    seed: of inputs, noise and draws.

  Raises:
    InversionViewError: a task without a `log_prior`, or numbers out of range.
  """
  task = reader.task
  epsilon, metric = epsilon or task.epsilon, metric or task.metric
  bounds.check(inputs=inputs, draws=draws, seed=seed)
  index = np.random.default_rng(seed).integers(task.num_inputs, size=inputs)
  task.log_prior(task.tokens(index[:1]))  # a task without one is refused before anything runs
  sampled = sampling_queries(reader, queries, metric, match)
  distances = exact.distances(reader.target, task, reader.sites, sampled, index, reader.sampler.mesh)
  results = []
  for q in range(len(queries)):
    inside = distances.distance[q] <= np.float32(epsilon)
    random = _Texts(task.tokens(index), distances.distance[q], distances.position[q].astype(np.int32))
    if inside.sum() >= _ENOUGH:
      results.append(_estimate(np.ones(inputs), random, 0, epsilon, [inputs]))
    else:
      results.append(_with_decoder(reader, sampled.take(q), random, epsilon, draws, reach, seed + q))
  return results


@dataclasses.dataclass(frozen=True)
class _Texts:
  """Texts with their distances to the query and the positions of the minimum: int32[N, T], float32[N], int32[N]."""

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray

  def __add__(self, other: "_Texts") -> "_Texts":
    names = [field.name for field in dataclasses.fields(self)]
    return _Texts(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))


def sampling_queries(reader: Reader, queries: Sequence[Query], metric: str, match: str = "anywhere") -> Queries:
  """The queries of preimages as arrays, with one metric and match for all."""
  return Queries.of(
    [query.activation for query in queries],
    [reader.site_index(query.site) for query in queries],
    metric,
    [query.position if match == "position" else ANYWHERE for query in queries],
  )


def _with_decoder(
  reader: Reader, query: Queries, random: _Texts, epsilon: float, draws: int, reach: float, seed: int
) -> InformationResult:
  """The estimate for one query from random inputs and the decoder's texts together."""
  task, site, z = reader.task, int(query.site[0]), np.asarray(query.activation[0])
  rng = np.random.default_rng([seed, 1])
  noisy = np.stack([add_noise(z, eta, rng.standard_normal(z.shape).astype(np.float32)) for eta in _NOISE])
  c, each = len(noisy), -(-draws // (len(_NOISE) * len(_TEMPERATURES)))
  proposals = c * len(_TEMPERATURES)
  number = np.arange(proposals * each)
  k = number % each
  rows = Rows(
    query=(number // each % c).astype(np.int32),
    number=number.astype(np.int32),
    temperature=np.asarray(_TEMPERATURES, np.float32)[number // each // c],
    noise=np.zeros(len(number), np.float32),
    # Stratified: the draws of one proposal partition its distribution over texts.
    stratum=np.stack([k / each, np.full(len(k), 1.0 / each)], axis=1).astype(np.float32),
  )
  drawn = reader.draw(dataclasses.replace(query.take([0] * c), decoder_activation=noisy), rows, seed)
  texts = random + _Texts(*map(np.asarray, (drawn.tokens, drawn.distance, drawn.position)))
  prior = task.log_prior(texts.tokens)
  weighted = np.flatnonzero((texts.distance <= np.float32(reach * epsilon)) & np.isfinite(prior))
  weight = np.zeros(len(texts.distance))
  if len(weighted):
    distinct, first, which = np.unique(texts.tokens[weighted], axis=0, return_index=True, return_inverse=True)
    log_p = np.concatenate([log_probs(reader, activation, site, distinct, _TEMPERATURES) for activation in noisy])
    ratio = np.exp(log_p - prior[weighted][first]).mean(axis=0)  # of the decoder's probability to the prior
    share = len(random.distance) / len(texts.distance)
    weight[weighted] = (1.0 / (share + (1.0 - share) * ratio))[which.reshape(-1)]
  return _estimate(weight, texts, len(number), epsilon, [len(random.distance)] + [each] * proposals)


def _estimate(weight: np.ndarray, texts: _Texts, draws: int, epsilon: float, sizes: list[int]) -> InformationResult:
  """The estimate from weighted texts.

  Args:
    weight: float64[N], importance weights; 0 for texts that are no inputs.
    texts: N of them, those of each proposal together, random inputs first.
    draws: how many are the decoder's.
    epsilon: the threshold.
    sizes: the number of texts from each proposal, in their order.
  """
  inside = texts.distance <= np.float32(epsilon)
  w = np.where(inside, weight, 0.0)
  total, n = float(w.sum()), len(w)
  kept = weight > 0
  members = Members(texts.tokens[kept], texts.distance[kept], texts.position[kept], weight[kept])
  inputs_inside = int(inside[: sizes[0]].sum())
  draws_inside = int((inside & kept)[sizes[0] :].sum())
  if not total:
    nothing = Information(None, math.inf, 0.0, 0.0, sizes[0], inputs_inside, draws, draws_inside, math.nan)
    return InformationResult(nothing, members)
  # Each proposal has its own variance; stratification makes it smaller still, which is left out.
  ends = np.cumsum(sizes)
  variance = sum(size * w[end - size : end].var() for size, end in zip(sizes, ends, strict=True)) / n**2
  _, which = np.unique(texts.tokens[inside & kept], axis=0, return_inverse=True)
  return InformationResult(
    Information(
      bits=max(-math.log2(total / n), 0.0) + 0.0,
      error=math.sqrt(variance) / (total / n) / math.log(2),
      share=min(total / n, 1.0),
      effective=total**2 / float((w**2).sum()),
      inputs=sizes[0],
      inputs_inside=inputs_inside,
      draws=draws,
      draws_inside=draws_inside,
      heaviest=float(np.bincount(which.reshape(-1), w[inside & kept]).max() / total),
    ),
    members,
  )
