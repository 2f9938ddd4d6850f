"""The information in an activation, in bits: log2 of 1 over the share of inputs that fall inside epsilon.

The share is estimated by importance sampling. Texts come from several sources in fixed numbers: inputs of the task at random, and the
decoder given the activation, plain and with a few draws of noise, at more than one temperature. A text inside epsilon weighs
p0 / q, where p0 is its probability as an input and q the mean over all sources of the probability with which they give it, each counted
as often as it is drawn from (the balance heuristic of Veach and Guibas, 1995; Owen and Zhou, 2000). Since the sources are known once
the noise is drawn, nothing is approximated: the mean of the weights is the share, whatever the decoder is. Random inputs among
the sources (Hesterberg, 1995) see to it that no weight exceeds draws / inputs, and that members which the decoder never proposes are counted
as far as there are enough of them to be met at random. Where random inputs alone meet enough members, only they are used.

What comes out of it besides is a weighted sample of the preimage, in which members count as they occur among inputs, not as the decoder
likes them.

Shapes: N texts, T tokens, C sources, D width of the activation.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inversionview_jax import distance
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import coverage
from inversionview_jax.measures.consistency import Members
from inversionview_jax.preimage import Query
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling import exact, sampler

# Noise and temperatures of the decoder's sources: one pass of the decoder serves all temperatures of one noisy activation.
_NOISE = (0.0, 0.1, 0.2, 0.2, 0.3, 0.3)
_TEMPERATURES = (1.0, 1.5)
_ENOUGH = 1000  # members met at random: their share is known to 3 %, 0.05 bit
_WORST_ERROR, _FEWEST = 0.25, 30  # beyond these an estimate is not to be trusted
_FEW_MET = 10
_Z = 1.959964


@dataclasses.dataclass(frozen=True)
class Information:
  """How much an activation says.

  Attributes:
    bits: log2(1 / share); None where no text was found inside epsilon.
    error: standard error of `bits`.
    share: of the task's inputs that fall inside epsilon.
    effective: how many equally weighted members would know the share as well.
    inputs, met: random inputs that were tried, and how many of them fell inside.
    draws, found: the decoder's texts, and how many of them are inputs of the task inside epsilon; 0 of 0 where random inputs were enough.
    heaviest: share of the estimate that rests on one single text.
  """

  bits: float | None
  error: float
  share: float
  effective: float
  inputs: int
  met: int
  draws: int
  found: int
  heaviest: float

  @property
  def low(self) -> float | None:
    """Lower end of the 95 % interval of `bits`."""
    return None if self.bits is None else max(self.bits - _Z * self.error, 0.0)

  @property
  def high(self) -> float | None:
    """Upper end of the 95 % interval of `bits`."""
    return None if self.bits is None else self.bits + _Z * self.error

  @property
  def warning(self) -> str:
    """Why the number is not to be relied on; "" if it is."""
    if self.bits is None:
      return f"no text was found inside: more than {math.log2(self.inputs / 3):.1f} bits as far as {self.inputs:,} random inputs tell"
    if self.error > _WORST_ERROR or self.effective < _FEWEST:
      return f"uncertain: it rests on {self.effective:.0f} effective members; draw more"
    if self.met < _FEW_MET:
      return f"at most: {self.met} of {self.inputs:,} random inputs fell inside, too few to tell of members that the decoder does not propose"
    return ""

  def to_dict(self) -> dict:
    """Plain data for JSON."""
    told = dataclasses.asdict(self) | {"low": self.low, "high": self.high, "warning": self.warning}
    return told | {"error": self.error if math.isfinite(self.error) else None}


@dataclasses.dataclass(frozen=True)
class Found:
  """What was measured, and the texts near the activation: inputs of the task, weighted so that they stand for all of the preimage."""

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
) -> list[Found]:
  """The information in each of several activations.

  Args:
    reader: whose decoder proposes.
    queries: of sites of the reader.
    epsilon, metric: None for the task's.
    match: as in `Reader.preimage`.
    inputs: random inputs, the same for all queries.
    draws: the decoder's texts for each query; rounded up to the number of its sources.
    reach: members are weighted up to so many epsilons, so that the reading at a larger epsilon can be looked at.
    seed: of all that is random.

  Raises:
    InversionViewError: a task that does not say how probable its inputs are, or numbers out of range.
  """
  task = reader.task
  epsilon, metric = epsilon or task.epsilon, metric or task.metric
  for name, value in (("inputs", inputs), ("draws", draws)):
    if value < 1:
      raise InversionViewError(f"{name} = {value} must be at least 1")
  index = np.random.default_rng(seed).integers(task.num_inputs, size=inputs)
  task.log_prior(task.tokens(index[:1]))  # known now, not after the rest
  asked = _queries(reader, queries, metric, match)
  near = exact.distances(reader.target, task, reader.sites, asked, index, reader.sampler.mesh)
  found = []
  for q in range(len(queries)):
    met = near.distance[q] <= np.float32(epsilon)
    random = _Drawn(task.tokens(index), near.distance[q], near.position[q].astype(np.int32))
    if met.sum() >= _ENOUGH:
      found.append(_found(np.ones(inputs), random, 0, epsilon, [inputs]))
    else:
      found.append(_with_decoder(reader, asked, q, random, epsilon, draws, reach, seed + q))
  return found


@dataclasses.dataclass(frozen=True)
class _Drawn:
  """Texts and how far they are: int32[N, T], float32[N], int32[N]."""

  tokens: np.ndarray
  distance: np.ndarray
  position: np.ndarray


def _queries(reader: Reader, queries: Sequence[Query], metric: str, match: str) -> sampler.Queries:
  return sampler.Queries(
    np.array([query.activation for query in queries], np.float32),
    np.array([reader.site_index(query.site) for query in queries], np.int32),
    np.array([query.position if match == "position" else -1 for query in queries], np.int32),
    np.full(len(queries), distance.metric_index(metric), np.int32),
  )


def _with_decoder(
  reader: Reader, asked, q: int, random: _Drawn, epsilon: float, draws: int, reach: float, seed: int
) -> Found:
  """The estimate from random inputs and the decoder's texts together."""
  task, site = reader.task, int(asked.site[q])
  z = np.asarray(asked.activation[q])
  rng = np.random.default_rng([seed, 1])
  told = np.stack([z + eta * z.std() * rng.standard_normal(z.shape).astype(np.float32) for eta in _NOISE])
  c, each = len(told), -(-draws // (len(_NOISE) * len(_TEMPERATURES)))
  sources = c * len(_TEMPERATURES)
  number = np.arange(sources * each)
  k = number % each
  rows = sampler.Rows(
    query=(number // each % c).astype(np.int32),
    number=number.astype(np.int32),
    temperature=np.asarray(_TEMPERATURES, np.float32)[number // each // c],
    noise=np.zeros(len(number), np.float32),
    # The draws of one source share its texts out between them.
    stratum=np.stack([k / each, np.full(len(k), 1.0 / each)], axis=1).astype(np.float32),
  )
  one = [
    np.repeat(np.asarray(getattr(asked, name)[q : q + 1]), c, axis=0)
    for name in ("activation", "site", "position", "metric")
  ]
  out = reader.draw(sampler.Queries(*one, told=told), rows, seed)
  drawn = _Drawn(*(np.asarray(x) for x in (out.tokens, out.distance, out.position)))
  drawn = _Drawn(*(np.concatenate([getattr(random, f), getattr(drawn, f)]) for f in ("tokens", "distance", "position")))
  prior = task.log_prior(drawn.tokens)
  wanted = np.flatnonzero((drawn.distance <= np.float32(reach * epsilon)) & np.isfinite(prior))
  weight = np.zeros(len(drawn.distance))
  if len(wanted):
    texts, first, which = np.unique(drawn.tokens[wanted], axis=0, return_index=True, return_inverse=True)
    said = np.concatenate([coverage.log_probs(reader, noisy, site, texts, _TEMPERATURES) for noisy in told])
    ratio = np.exp(said - prior[wanted][first]).mean(axis=0)  # of the decoder's probability to the prior
    share = len(random.distance) / len(drawn.distance)
    weight[wanted] = (1.0 / (share + (1.0 - share) * ratio))[which.reshape(-1)]
  return _found(weight, drawn, len(number), epsilon, [len(random.distance)] + [each] * sources)


def _found(weight: np.ndarray, drawn: _Drawn, draws: int, epsilon: float, sizes: list[int]) -> Found:
  """What weighted texts say; `sizes` are the numbers of texts from each source, in their order."""
  inside = drawn.distance <= np.float32(epsilon)
  w = np.where(inside, weight, 0.0)
  total, n = float(w.sum()), len(w)
  kept = weight > 0
  members = Members(drawn.tokens[kept], drawn.distance[kept], drawn.position[kept], weight[kept])
  met = int(inside[: sizes[0]].sum())
  found = int((inside & kept)[sizes[0] :].sum())
  if not total:
    return Found(Information(None, math.inf, 0.0, 0.0, sizes[0], met, draws, found, math.nan), members)
  # Each source has its own variance; that its draws are spread evenly makes it smaller still, which is left out.
  ends = np.cumsum(sizes)
  variance = sum(size * w[end - size : end].var() for size, end in zip(sizes, ends, strict=True)) / n**2
  _, which = np.unique(drawn.tokens[inside & kept], axis=0, return_inverse=True)
  return Found(
    Information(
      bits=max(-math.log2(total / n), 0.0) + 0.0,
      error=math.sqrt(variance) / (total / n) / math.log(2),
      share=min(total / n, 1.0),
      effective=total**2 / float((w**2).sum()),
      inputs=sizes[0],
      met=met,
      draws=draws,
      found=found,
      heaviest=float(np.bincount(which.reshape(-1), w[inside & kept]).max() / total),
    ),
    members,
  )
