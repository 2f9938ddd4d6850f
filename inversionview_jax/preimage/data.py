"""`Preimage`: the inputs that put nearly the same activation at a site, with their distances, as plain data.

Definition (Huang et al., "InversionView", NeurIPS 2024, arXiv 2405.17653, "epsilon-preimage"): the inputs x for which
``min over positions t of D(f_t(x), z) <= epsilon``, with z the query activation. Here it is a finite set of candidates, each with the
distance that the target itself measured on it, so that another epsilon needs no model (`Preimage.at`).

Nothing here needs JAX: reports, prompts and pages are made from a saved file on a machine that has none. Values are converted when an object
is made (plain ints, floats of float32 value), so that a preimage equals itself after it was saved and read.
"""

import dataclasses
import math
import operator
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inversionview_jax.distance import MATCHES, METRICS
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import write_whole
from inversionview_jax.preimage import json_format
from inversionview_jax.preimage.methods import METHODS, PART
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from inversionview_jax.preimage.render import TerminalView

# The share of samples inside epsilon that `shown` aims at; those outside show what the activation does distinguish (paper, appendix on sampling).
_SHOWN_INSIDE = (0.6, 0.8)


@dataclasses.dataclass(frozen=True)
class Query:
  """An activation and the input, site and position it was captured at.

  Attributes:
    text: the input, without special tokens.
    tokens: token ids of the input, T of them: BOS first, EOS last where the input has one, no PAD.
    token_strings: the string of each of `tokens`; "<BOS>" and "<EOS>" for the special ones.
    position: index into `tokens` (BOS is 0); -1 when the activation came from no particular input.
    label: the task's name of that position, such as "=" or "S2"; may be "".
    site: short name of the site, such as ``a0.3``.
    hook: TransformerLens' name of the site, such as ``blocks.0.attn.hook_result.3``.
    activation: float32[D] as a tuple, in the convention of the `Preimage`.
    attention: when the site is a head, its attention from `position` to positions 0..position (``position + 1`` shares of 1).

  Raises:
    InversionViewError: lengths that do not agree, a position outside of `tokens`, or an activation that is not finite.
  """

  text: str
  tokens: tuple[int, ...]
  token_strings: tuple[str, ...]
  position: int
  label: str
  site: str
  hook: str
  activation: tuple[float, ...]
  attention: tuple[float, ...] | None = None

  def __post_init__(self):
    attention = None if self.attention is None else _float32s(self.attention)
    _set(
      self,
      tokens=_ints(self.tokens),
      token_strings=_strings(self.token_strings),
      position=operator.index(self.position),
    )
    _set(self, activation=_float32s(self.activation), attention=attention)
    json_format.check_lengths("the query", self.tokens, token_strings=self.token_strings)
    if not -1 <= self.position < len(self.tokens):
      raise InversionViewError(
        f"position {self.position} is outside of the query's {len(self.tokens)} tokens (BOS is 0; -1 when unknown)"
      )
    if not all(map(math.isfinite, (*self.activation, *(attention or ())))):
      raise InversionViewError(
        f"the query's activation or attention at {self.site!r} is not finite: run the target in float32"
      )
    if attention is not None and len(attention) != self.position + 1:
      raise InversionViewError(
        f"attention has {len(attention)} values; at position {self.position} it needs {self.position + 1} (positions 0..position)"
      )


@dataclasses.dataclass(frozen=True)
class Sample:
  """One candidate input, with the distance that the target measured on it.

  Attributes:
    tokens: T token ids without BOS, EOS and PAD.
    token_strings: the string of each of `tokens`.
    text: the candidate as text.
    distance: D to the query activation, a float32 value; ``inf`` when there was no position to compare.
    position: position of the minimum; counts BOS as 0, so ``token_strings[k]`` is at ``k + 1``; -1 when there was none.
    effect: per token, p(token | prefix, z) - p(token | prefix, z0), in [-1, 1], kept to 6 significant digits; z0 is the activation
      at BOS, which encodes nothing about the input. () when no decoder was involved.
    inside: whether ``distance <= epsilon``; set by the `Preimage` that holds the sample.
    temperature: sampling temperature of the decoder.
    noise: eta; the decoder was given z plus Gaussian noise of ``eta * std(z)``. In a mixture of directions, 1 - cosine of its input to z.
    ended: whether the decoder wrote EOS; False for a candidate cut off at the longest length.
    count: how often it was drawn; 1 unless `Preimage.merged` has merged equal candidates.

  Raises:
    InversionViewError: lengths that do not agree, a position outside of the candidate, or a number that is NaN.
  """

  tokens: tuple[int, ...]
  token_strings: tuple[str, ...]
  text: str
  distance: float
  position: int
  effect: tuple[float, ...] = ()
  inside: bool = False
  temperature: float = 1.0
  noise: float = 0.0
  ended: bool = True
  count: int = 1

  def __post_init__(self):
    _set(
      self,
      tokens=_ints(self.tokens),
      token_strings=_strings(self.token_strings),
      position=operator.index(self.position),
    )
    _set(self, distance=_float32(self.distance), effect=tuple(float(f"{e:.6g}") for e in self.effect))
    _set(self, temperature=json_format.shortest(self.temperature), noise=json_format.shortest(self.noise))
    _set(self, inside=bool(self.inside), ended=bool(self.ended), count=operator.index(self.count))
    if self.count < 1:
      raise InversionViewError(f"sample {self.text!r} was drawn {self.count} times: it must be at least once")
    json_format.check_lengths(f"sample {self.text!r}", self.tokens, token_strings=self.token_strings)
    if self.effect:
      json_format.check_lengths(f"sample {self.text!r}", self.tokens, effect=self.effect)
    if not -1 <= self.position <= len(self.tokens):
      raise InversionViewError(
        f"position {self.position} is outside of sample {self.text!r} of {len(self.tokens)} tokens (BOS is 0; -1 when unknown)"
      )
    # A NaN would sort anywhere and compare as outside; it is an error of the run, not a distance.
    if math.isnan(self.distance) or not all(map(math.isfinite, (self.temperature, self.noise, *self.effect))):
      raise InversionViewError(
        f"sample {self.text!r} has a distance, effect, temperature or noise that is not a number: run the target in float32"
      )


@dataclasses.dataclass(frozen=True, repr=False)
class Preimage:
  """A query and all candidates that were found for it, nearest first.

  Attributes:
    query: the activation.
    samples: every candidate, ascending by distance; they are sorted, and `Sample.inside` is set, when the object is made. Of Monte Carlo: the
      particles, and the nearest proposals that were rejected because they lie outside epsilon.
    epsilon: the threshold, > 0, in the unit of the metric.
    metric: "euclidean" (normalized: ``||z - z'|| / ||z||``) or "cosine" (``1 - cos``).
    match: "anywhere" (minimum over positions) or "position" (the position of the query only).
    seed: the seed the candidates were drawn with; it also decides what `shown` picks.
    reader: name of the reader (target and decoder) that was used; of the target where no decoder was.
    task: name of the task.
    convention: "centered" or "raw": how the target's weights were processed; distances depend on it.
    version: version of the package that made this.
    others: further activations of the same text that must match too; a sample's distance is the largest of all, its position that of `query`.
    directions: what activations were projected on before they were compared, in words; "": nothing.
    method: "decoder", "monte_carlo" (from the prior), "decoder+monte_carlo" (from the decoder's candidates) or "exact".
    target_runs: inputs that the target was run on; None where they were not counted.
    bits: -log2 of the prior's probability of the preimage; None where it was not estimated.
    bits_error: standard error of `bits`.
    converged: whether the particles of Monte Carlo can be relied on; None for other methods.
    problem: why they cannot; "" if they can.
    levels: of Monte Carlo, a dict for each level: "epsilon" (its threshold; inf for none), "survivors" (share of the particles that it kept),
      "acceptance" (kind of move -> accepted share), "distinct" (particles), "moved" (share that changed) and "sweeps".
    sampled_epsilon: the epsilon of the run of Monte Carlo or of the exact preimage, where `at` has changed `epsilon`; else None.

  Raises:
    InversionViewError: an unknown metric, match or method, an epsilon that is not a positive number, or results of Monte Carlo that cannot be.
  """

  query: Query
  samples: tuple[Sample, ...]
  epsilon: float
  metric: str
  match: str
  seed: int
  reader: str
  task: str
  convention: str
  version: str
  method: str = "decoder"
  others: tuple[Query, ...] = ()
  directions: str = ""
  target_runs: int | None = None
  bits: float | None = None
  bits_error: float | None = None
  converged: bool | None = None
  problem: str = ""
  levels: tuple[dict, ...] = dataclasses.field(default=(), hash=False)
  sampled_epsilon: float | None = None

  def __post_init__(self):
    if self.method not in METHODS:
      raise one_of("method", self.method, tuple(METHODS))
    _set(self, **json_format.checked_results({name: getattr(self, name) for name in json_format.RESULT_KEYS}))
    if not isinstance(self.directions, str):
      raise InversionViewError(f"directions = {self.directions!r} must be text")
    _set(self, others=tuple(self.others))
    if self.metric not in METRICS:
      raise one_of("metric", self.metric, METRICS)
    if self.match not in MATCHES:
      raise one_of("match", self.match, MATCHES)
    epsilon = _positive(self.epsilon)
    # Distances are float32 values, so epsilon is compared as one: the float32 of 0.1 lies inside 0.1.
    limit = _float32(epsilon)
    samples = tuple(
      s if s.inside == (s.distance <= limit) else dataclasses.replace(s, inside=s.distance <= limit)
      for s in sorted(self.samples, key=lambda s: s.distance)
    )
    _set(self, samples=samples, epsilon=epsilon, seed=operator.index(self.seed))

  @property
  def inside(self) -> list[Sample]:
    """The candidates with ``distance <= epsilon``, nearest first."""
    return [s for s in self.samples if s.inside]

  @property
  def outside(self) -> list[Sample]:
    """The candidates beyond epsilon, nearest first."""
    return [s for s in self.samples if not s.inside]

  @property
  def rate(self) -> float:
    """The in-epsilon rate: share of all candidates that lie inside, each counted as often as it was drawn; 0 when there are none.

    Of Monte Carlo, which rejects what lies outside, the share of the particles: 1 once epsilon was reached.
    """
    particles = self.particles
    return sum(s.count for s in particles if s.inside) / max(sum(s.count for s in particles), 1)

  @property
  def particles(self) -> list[Sample]:
    """The samples without Monte Carlo's rejected proposals, nearest first: those within its last threshold; all of other methods."""
    if not self.levels:
      return list(self.samples)
    return [s for s in self.samples if s.distance <= self.levels[-1]["epsilon"]]

  def shown(self, n: int = 100) -> list[Sample]:
    """At most `n` candidates for display, by distance: 60-80 % of them inside epsilon where there are enough (paper, "auto" sampling).

    Drawn without replacement and decided by `seed`; the same call gives the same samples.
    """
    if n < 0:
      raise InversionViewError(f"cannot show {n} samples: give a number of 0 or more")
    rng = np.random.default_rng(abs(self.seed))
    sides = [np.flatnonzero([s.inside == side for s in self.samples]) for side in (True, False)]
    inside, outside = (rng.permutation(side) for side in sides)
    low, high = _SHOWN_INSIDE
    n_inside = min(round(n * min(max(self.rate, low), high)), len(inside))
    n_outside = min(n - n_inside, len(outside))
    n_inside = min(n - n_outside, len(inside))  # too few outside: the inside fills the rest
    return [self.samples[i] for i in sorted([*inside[:n_inside], *outside[:n_outside]])]

  def merged(self) -> "Preimage":
    """The same with equal candidates merged into the nearest of them; `Sample.count` is how often they were drawn."""
    groups: dict[tuple, list[Sample]] = {}
    for s in self.samples:
      groups.setdefault((s.tokens, s.token_strings, s.ended), []).append(s)
    samples = tuple(dataclasses.replace(group[0], count=sum(s.count for s in group)) for group in groups.values())
    return dataclasses.replace(self, samples=samples)

  def at(self, epsilon: float) -> "Preimage":
    """The same candidates at another epsilon (> 0); nothing is run again.

    Of a decoder's candidates it is what a run at that epsilon would give. Bits, and whether particles can be relied on, hold for the epsilon of
    the run and are dropped at another. The particles and exact members inside a smaller epsilon are still a sample of what lies inside it; of a
    larger one they are a part only, and `converged` is False then.
    """
    epsilon = _positive(epsilon)
    if epsilon == self.epsilon:
      return self
    if self.method == "decoder":
      return dataclasses.replace(self, epsilon=epsilon)
    run = self.epsilon if self.sampled_epsilon is None else self.sampled_epsilon
    converged, problem = self.converged, self.problem
    if converged or problem.startswith(PART):
      converged, problem = None, ""
    reached = max(run, self.levels[-1]["epsilon"] if self.levels else 0.0)
    if _float32(epsilon) > _float32(reached):
      converged, problem = False, problem or f"{PART} of {epsilon:g}, what lies inside {reached:g}: draw again for it"
    changed: dict[str, Any] = {
      "converged": converged,
      "problem": problem,
      "bits": None,
      "bits_error": None,
      "sampled_epsilon": run,
    }
    return dataclasses.replace(self, epsilon=epsilon, **changed)

  def to_json(self, path: "str | os.PathLike | None" = None) -> str:
    """Strict JSON of everything; also written to `path`, whole or not at all."""

    def of_query(query: Query) -> dict[str, Any]:
      return {name: getattr(query, name) for name in json_format.QUERY_KEYS}

    keys = (*json_format.PREIMAGE_KEYS, *json_format.COMPARISON_KEYS, *json_format.RESULT_KEYS)
    text = json_format.dumps(
      {name: getattr(self, name) for name in keys} | {"others": [of_query(query) for query in self.others]},
      of_query(self.query),
      {name: [getattr(s, name) for s in self.samples] for name in json_format.SAMPLE_KEYS},
    )
    if path is not None:
      write_whole(path, text + "\n")
    return text

  @classmethod
  def from_json(cls, path_or_text: "str | os.PathLike") -> "Preimage":
    """Reads what `to_json` wrote, from a file or from the text itself (which starts with "{").

    Raises:
      InversionViewError: no such file, not JSON, another format, a newer version of it, or a part that is missing or malformed.
    """
    table = json_format.loads(path_or_text)
    try:
      fields, query, samples = json_format.parse(table)
      fields["others"] = tuple(Query(**other) for other in fields["others"])
      return cls(query=Query(**query), samples=tuple(Sample(**sample) for sample in samples), **fields)
    except (TypeError, ValueError, OverflowError) as error:
      name = json_format.source_name(path_or_text)
      raise InversionViewError(f"{name} is not a readable preimage: {' '.join(str(error).split())}") from None

  def __repr__(self) -> str:
    location = " and ".join(f"{q.site} at {q.label or q.position!s}" for q in (self.query, *self.others))
    particles = self.particles
    inside = f"{sum(s.inside for s in particles)} of {len(particles)} {'particles ' if self.levels else ''}inside epsilon = {self.epsilon:g}"
    return visible(
      f"<Preimage of {self.query.text!r}, {location}: {inside}{', not converged' if self.converged is False else ''}>"
    )

  def __str__(self) -> str:
    from inversionview_jax.preimage import render  # imports rich, which data alone does not need

    return render.to_text(self)

  def __rich__(self) -> "TerminalView":
    from inversionview_jax.preimage import render

    return render.to_rich(self)

  def _repr_html_(self) -> str:
    from inversionview_jax.preimage import render

    return render.to_html(self)


def _set(self: object, **values: object) -> None:
  """Sets attributes of a frozen object that is being made."""
  for name, value in values.items():
    object.__setattr__(self, name, value)


def _ints(values: Iterable[Any]) -> tuple[int, ...]:
  return tuple(map(operator.index, values))


def _strings(values: Iterable[Any]) -> tuple[str, ...]:
  values = tuple(values)
  if wrong := [v for v in values if not isinstance(v, str)]:
    raise InversionViewError(f"token string {wrong[0]!r} is not a string")
  return values


def _float32(value: float) -> float:
  return float(np.float32(value))


def _float32s(values: Sequence[float]) -> tuple[float, ...]:
  return tuple(np.asarray(values, np.float32).tolist())


def _positive(epsilon: Any) -> float:
  """`epsilon` as a float; raises `InversionViewError` if it is not a positive number."""
  try:
    number = float(epsilon)
  except (TypeError, ValueError):
    number = math.nan
  if not 0 < number < math.inf:
    raise InversionViewError(
      f"epsilon must be a positive number, not {epsilon!r}; the paper uses 0.1, and 0.25 for factual recall"
    )
  return number
