"""Causal checks: replace activations by those of another input, by their mean or by zero, and see what the model then says.

Patching follows the paper (section 3 and its appendix on activation patching): the clean input runs with the activations that the corrupted
one has at some places, and the effect is how much of the logit difference between the two answers is lost.

Shapes: N pairs of inputs, T tokens, S steps, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from inversionview_jax.causal import patching
from inversionview_jax.causal.addresses import as_tokens, places_of, positions_of, refuse_unreachable, token_ids
from inversionview_jax.causal.patching import Measured, Reading
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target

METRICS = patching.METRICS
ORDERS = ("together", "each", "forward", "backward")


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over pairs.

  Attributes:
    mean: over the pairs.
    se: its standard error; NaN for a single pair.
    n: the number of pairs.
  """

  mean: float
  se: float
  n: int

  def __str__(self) -> str:
    return f"{self.mean:.4g} ± {self.se:.2g} (n = {self.n:,})"


def estimate(values: np.ndarray) -> Estimate:
  """float[N] -> its mean with standard error."""
  values = np.asarray(values, np.float64)
  n = len(values)
  return Estimate(float(values.mean()), float(values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan, n)


def share(part: np.ndarray, whole: np.ndarray) -> Estimate | None:
  """mean(part) / mean(whole), float[N] each, with its standard error to first order (delta method); None if the whole is zero."""
  part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
  if abs(whole.mean()) < 1e-6:
    return None
  ratio = part.mean() / whole.mean()
  return dataclasses.replace(estimate((part - ratio * whole) / whole.mean()), mean=float(ratio))


@dataclasses.dataclass(frozen=True)
class Effects:
  """What patching did, one row per step.

  Attributes:
    steps: S names, such as "a0.3@=", "+ a1.0@=" (added to the step before) or "a0.0@= a0.1@=" (both at once).
    metric: one of `METRICS`.
    values: float64[S, N]. For "logit_difference" what the patch took from it: clean less patched. For the others the metric itself.
    original: float64[N], the logit difference of the clean run, or zeros for the other metrics.
    total: float64[N], the effect of running the corrupted input instead; None where there is none (ablation).
  """

  steps: tuple[str, ...]
  metric: str
  values: np.ndarray
  original: np.ndarray
  total: np.ndarray | None

  @property
  def estimates(self) -> tuple[Estimate, ...]:
    """The mean effect of every step with its standard error and number of pairs."""
    return tuple(map(estimate, self.values))

  @property
  def shares(self) -> tuple[Estimate | None, ...]:
    """Each step's effect as a share of the effect of the whole corrupted input; None where that is zero or there is none."""
    return tuple(None if self.total is None else share(row, self.total) for row in self.values)

  def __str__(self) -> str:
    width = max(map(len, (*self.steps, "everything")))
    lines = [f"{name:{width}}  {value}" for name, value in zip(self.steps, self.estimates, strict=True)]
    return "\n".join(lines + ([f"{'everything':{width}}  {estimate(self.total)}"] if self.total is not None else []))


def patch(
  target: Target,
  clean,
  corrupted,
  sites: "str | Site | Sequence[str | Site]",
  positions=None,
  metric: str = "logit_difference",
  *,
  order: str = "together",
  at: "int | str | np.ndarray" = -1,
  answers: tuple | None = None,
  batch_size: int = 256,
  mesh=None,
) -> Effects:
  """Runs the clean inputs with activations of the corrupted ones, and says how much of the behaviour that takes away.

  >>> import inversionview_jax as iv
  >>> target = iv.load_target("addition")
  >>> clean, corrupted = ["615+261=", "302+140="], ["615+291=", "372+140="]      # only there do the tens carry
  >>> effects = iv.patch(target, clean, corrupted, ["a0.0", "a0.1"], "=", order="each")
  >>> effects.steps, effects.values.shape                                       # a step for each head, a value for each pair
  (('a0.0@=', 'a0.1@='), (2, 2))
  >>> [share.mean > 0.9 for share in effects.shares]                            # a0.0 alone does what the corrupted inputs do
  [True, False]

  Args:
    target: any `Target`.
    clean, corrupted: N texts each, or int[N, T] token ids. Pair i is row i of both. A text may be the beginning of an input.
    sites: one or several, in either notation: a head, a residual site, an MLP's write, "embed" or "pos_embed".
    positions: one for all sites, or a list with one for each: an index, a negative index (from the last token of the text), a label of the
      target's task, int[N] with one index per pair, or None for all positions. A label and a negative index are looked up in both inputs,
      which may differ in length; for None they must not.
    metric: "logit_difference" (what is lost of it), "kl" (of the patched run from the clean one, nats), "top_logit" (by how much the clean
      run's top logit falls), "top_logit_share" (the same as a share of it) or "top_changed" (whether another token is now on top).
    order: "together", one step with all sites; "each", a step per site; "forward", sites added one by one; "backward", from the last.
    at: the position whose prediction is read, like `positions`; by default the last token of the text.
    answers: (answers, foils), N tokens each (strings or ids), or one for all; the logit difference is answer less foil. By default what
      the target itself has on top on the clean and on the corrupted input.
    batch_size: pairs per program; the result does not depend on it, nor on the number of devices.
    mesh: `parallel.make_mesh()` over all devices by default.

  Returns:
    `Effects`.

  Raises:
    InversionViewError: a site, position, metric, order or token that is not there; two patches of one place; one from which nothing leads to
      the prediction; texts of different length where positions must match; answers that are the same in every pair, so that there is no
      logit difference to lose.
  """
  _check(metric, batch_size)
  clean, corrupted = as_tokens(target, clean), as_tokens(target, corrupted)
  if len(clean) != len(corrupted):
    raise InversionViewError(f"{len(clean)} clean inputs and {len(corrupted)} corrupted ones do not make pairs")
  places = places_of(target, *_listed(sites, positions), clean, corrupted)
  read = [positions_of(target, tokens, at)[:, None] for tokens in (clean, corrupted)]
  refuse_unreachable(target, places, read[0])
  names, steps = ordered([[name] for name, _ in places], order)
  reading = Reading(*read, *(tokens[:, None] for tokens in _tokens(target, answers, len(clean))))
  places = [place for _, place in places]
  found = patching.measure(target, clean, places, steps, reading, corrupted=corrupted, batch_size=batch_size, mesh=mesh)
  if metric == "logit_difference" and (found.answer == found.foil).all():
    token = int(found.answer.flat[0])
    name = token if target.tokenizer is None else repr(target.tokenizer.strings([token])[0])
    raise InversionViewError(
      f"answer and foil are the same in every pair (the first: {name}), so there is no logit difference; "
      "give answers=(answers, foils), or another metric such as kl"
    )
  return effects_of(found, names, metric)


def ablate(
  target: Target,
  inputs,
  sites: "str | Site | Sequence[str | Site]",
  positions,
  to: str = "mean",
  metric: str = "kl",
  *,
  order: str = "together",
  at: "int | str | np.ndarray" = -1,
  answers: tuple | None = None,
  batch_size: int = 256,
  mesh=None,
) -> Effects:
  """Runs inputs with the activations at some places replaced by their mean over these inputs, or by zero.

  Args:
    target, sites, order, at, batch_size, mesh: as in `patch`.
    inputs: N texts or int[N, T].
    positions: as in `patch`; None only for zero.
    to: "mean" (over these inputs) or "zero".
    metric: as in `patch`; a logit difference needs `answers`.
    answers: (answers, foils), N tokens each or one for all.

  Raises:
    InversionViewError: as `patch`.
  """
  _check(metric, batch_size)
  if metric == "logit_difference" and answers is None:
    raise InversionViewError("the logit difference of an ablation needs answers=(answers, foils); or take metric='kl'")
  clean = as_tokens(target, inputs)
  places = places_of(target, *_listed(sites, positions), clean)
  read = positions_of(target, clean, at)[:, None]
  refuse_unreachable(target, places, read)
  names, steps = ordered([[name] for name, _ in places], order)
  places = [place for _, place in places]
  reading = Reading(read, None, *(tokens[:, None] for tokens in _tokens(target, answers, len(clean))))
  values = replacement_values(target, clean, places, to, batch_size=batch_size, mesh=mesh)
  found = patching.measure(target, clean, places, steps, reading, values=values, batch_size=batch_size, mesh=mesh)
  return effects_of(found, names, metric)


def effects_of(found: Measured, names: Sequence[str], metric: str, read: int = 0) -> Effects:
  """What was measured, as effects by one metric at one of the positions that were read."""
  steps = found.steps[metric][:, :, read]
  total = None if found.corrupted is None else found.corrupted[metric][:, read]
  if metric != "logit_difference":
    return Effects(tuple(names), metric, steps[1:], np.zeros(steps.shape[1]), total)
  return Effects(tuple(names), metric, steps[0] - steps[1:], steps[0], None if total is None else steps[0] - total)


def check_ablation(to: str) -> None:
  """Raises `InversionViewError` for anything but "mean" and "zero"."""
  if to not in ("mean", "zero"):
    raise one_of("ablation", to, ("mean", "zero"))


def replacement_values(target, tokens, places, to: str, *, batch_size, mesh=None) -> np.ndarray:
  """float[M, D]: what an ablation puts at each place."""
  check_ablation(to)
  if to == "zero":
    return np.zeros((len(places), target.config.d_model), np.float32)
  if any(place.clean_at is None for place in places):
    raise InversionViewError("the mean of a site needs a position; give one, or ablate to zero")
  return patching.mean_activations(target, tokens, places, batch_size=batch_size, mesh=mesh)


def ordered(groups: Sequence[Sequence[str]], order: str) -> tuple[list[str], np.ndarray]:
  """Names of the steps and bool[S, M] which places are replaced in each; a group of places is replaced at once.

  Args:
    groups: names of places, in the order of the list; M in all.
    order: one of `ORDERS`.
  """
  if order not in ORDERS:
    raise one_of("order", order, ORDERS)
  named = [" ".join(group) for group in groups]
  of_group = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
  each = np.arange(len(groups))[:, None] == of_group
  if order == "together":
    return [" ".join(named)], np.ones((1, len(of_group)), bool)
  if order == "each":
    return named, each
  if order == "backward":
    named, each = named[::-1], each[::-1]
  return [named[0], *(f"+ {name}" for name in named[1:])], np.cumsum(each, axis=0) > 0


def _check(metric: str, batch_size: int) -> None:
  if metric not in METRICS:
    raise one_of("metric", metric, METRICS)
  if batch_size < 1:
    raise InversionViewError(f"batch_size = {batch_size} must be at least 1")


def _listed(names, positions) -> tuple[list, list]:
  names = [names] if isinstance(names, str | Site) else list(names)
  if not names:
    raise InversionViewError("no site to patch; name one, such as a0.0")
  positions = positions if isinstance(positions, list | tuple) else [positions] * len(names)
  if len(positions) != len(names):
    raise InversionViewError(f"{len(names)} sites and {len(positions)} positions: give one position, or one per site")
  return names, list(positions)


def _tokens(target: Target, answers, count: int) -> tuple[np.ndarray, np.ndarray]:
  """int32[N] twice: answer and foil, -1 for whatever the target says."""
  if answers is None:
    return np.full(count, -1, np.int32), np.full(count, -1, np.int32)
  if not isinstance(answers, tuple) or len(answers) != 2:
    raise InversionViewError("answers must be a tuple (answers, foils), each one token or a list with one per input")

  def column(given):
    given = np.asarray(given)
    return token_ids(target, given[None] if given.ndim == 0 else given[:, None], count)[:, 0]

  return column(answers[0]), column(answers[1])
