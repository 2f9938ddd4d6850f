"""Tests of claims about an activation: whether what someone states of it holds for the inputs inside epsilon, and would not hold anyway.

A claim is an expression over the task's features and over tokens (`tasks.grammar`). A condition, such as "C2 == 0", states that it holds for
every input inside epsilon; any other expression, such as "F1 + S1", that all of them have the query's value of it. Checking a preimage that is
there (`check_preimage`) needs no JAX.

Shapes: N members inside epsilon.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inversionview_jax import bounds, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures.claim_check import SHOWN, ClaimCheck, Counterexample, OtherActivation, judge, percent
from inversionview_jax.measures.consistency import Members
from inversionview_jax.measures.properties import evaluate, expression_at_random
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import Preimage, Query
from inversionview_jax.tasks import Task, grammar

if TYPE_CHECKING:
  from inversionview_jax.reading import Reader, Request
  from inversionview_jax.reading.source import Source
  from inversionview_jax.targets import Target

_UNSEEN = 0.01  # share of draws of texts that were drawn once, below which nothing is missing
_ARTEFACT = 1e-3  # probability below which the control is no coincidence
_BUDGET = 800_000  # target runs for the activation that a claim is about: four times the default, used only where the particles need it
_SITES = 40  # a target with more default sites has a program for each: other activations are then of the same site


def check_claim(task: Task, claim: str, tokens: Sequence[int] | None = None) -> None:
  """Raises `InversionViewError` for a claim that is not understood, with the place and what is known.

  Args:
    task: of the inputs.
    claim: the expression.
    tokens: of the query, with BOS; its positions must have the labels that the claim names. None: not checked.
  """
  row = task.tokens(np.zeros(1, np.int64)) if tokens is None else _row(task, tokens)
  evaluate(task, claim, row)
  if tokens is not None:
    for label in grammar.labels_in(claim):
      task.position(tokens, label)


def _row(task: Task, tokens: Sequence[int]) -> np.ndarray:
  row = np.full((1, task.length), task.tokenizer.pad_id, np.int32)
  row[0, : len(tokens)] = tokens[: task.length]
  return row


def _is_input(task: Task, query: Query) -> bool:
  """Whether a query's whole text is an input of the task; True where the task cannot say."""
  row = _row(task, [i for i in query.tokens if i not in (task.tokenizer.eos_id, task.tokenizer.pad_id)])
  end = int((row[0] != task.tokenizer.pad_id).sum())
  row[0, end : end + 1] = task.tokenizer.eos_id
  if task.has_log_prior:
    return bool(np.isfinite(task.log_prior(row))[0])
  return not task.enumerable or bool(task.index(row)[0] >= 0)


@dataclasses.dataclass(frozen=True)
class _Claim:
  """A claim about one query: the value that inputs must have, or 1 of a condition; None where the query has none."""

  task: Task
  text: str
  wanted: int | None
  own: int | None
  condition: bool

  @classmethod
  def of(cls, task: Task, text: str, query: Query) -> "_Claim":
    check_claim(task, text, query.tokens)
    (value,), (known,) = evaluate(task, text, _row(task, query.tokens))
    condition = grammar.is_condition(text)
    own = int(value) if known else None
    return cls(task, text, 1 if condition and known else own, own, condition)

  def holds(self, tokens: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """bool[N], and the value of each text in words."""
    values, known = evaluate(self.task, self.text, tokens)
    return (values == self.wanted) & known, [
      self.shown(int(v) if k else None) for v, k in zip(values, known, strict=True)
    ]

  def shown(self, value: int | None) -> str:
    if value is None:
      return "none"
    if self.condition:
      return "true" if value else "false"
    if self.text.lstrip().startswith("token("):
      return self.task.tokenizer.strings([value])[0]
    name = getattr(self.task, "value_name", None)
    if name is None or not self.text.strip().isidentifier():
      return str(value)
    return str(name(self.text.strip(), value))


def check_preimage(preimage: Preimage, claim: str, task: Task | None = None) -> ClaimCheck:
  """Tests a claim on a preimage that is there; `check` adds the control and the other activations.

  Args:
    preimage: of the activation.
    claim: an expression, such as "C2 == 0", "F1 + S1" or 'contains("John")'.
    task: of the preimage; None: found by its name, which a task over the texts of a language model is not.

  Raises:
    InversionViewError: a claim that is not understood, with the place and what is known; or a preimage of another task.
  """
  task = tasks.get(preimage.task) if task is None else task
  if preimage.task != task.name:
    raise InversionViewError(f"this preimage is of the task {preimage.task!r}, not of {task.name!r}")
  stated = _Claim.of(task, claim, preimage.query)
  inside = Members.of(preimage, task).within(preimage.epsilon)
  times = np.unique(inside.tokens, axis=0, return_counts=True)[1] if len(inside) else np.zeros(0, np.int64)
  distinct = len(times)
  values, known = expression_at_random(task, claim)
  random = float(np.mean((values == stated.wanted) & known)) if stated.wanted is not None else math.nan
  least = random == 0
  bits = (
    math.nan if math.isnan(random) else abs(math.log2(random or 3 / len(values)))
  )  # 3 / n: upper 95 % bound of none of n
  rate = low = high = math.nan
  against: tuple[Counterexample, ...] = ()
  if len(inside) and stated.wanted is not None:
    holds, words = stated.holds(inside.tokens)
    rate = float(np.average(holds, weights=inside.weight))
    # Equal particles are mostly copies of one draw, so that the interval rests on different ones; but where the particles have moved and hardly
    # any of them is the only one of its text, all texts inside have been seen (Good, 1953). Of exact members none is missing.
    seen_all = preimage.converged is True and float(np.mean(times == 1)) * distinct < _UNSEEN * len(inside)
    count = inside.effective if seen_all else min(inside.effective, distinct)
    interval = Rate(rate * count, count)
    low, high = (rate, rate) if _complete(preimage) else (interval.low, interval.high)
    against = _counterexamples(task, inside, holds, words)
  if stated.condition and stated.own == 0:
    own = Counterexample(preimage.query.text, 0.0, preimage.query.position, "false")
    against = (own, *against)[:SHOWN]
  verdict, why = _verdict(
    stated, (rate, low, high), random, distinct, preimage, np.ptp(values[known]) if known.any() else 0
  )
  return ClaimCheck(
    claim,
    preimage.query,
    "" if stated.own is None else stated.shown(stated.own),
    verdict,
    why,
    *(rate, low, high, round(inside.weight.sum()), distinct, random, bits, least, preimage.bits, preimage.bits_error),
    against,
    **{name: getattr(preimage, name) for name in ("reader", "task", "method", "epsilon", "metric", "match", "problem")},
  )


def _complete(preimage: Preimage) -> bool:
  """Whether a preimage has every input inside epsilon."""
  if preimage.method != "exact" or preimage.bits is None or preimage.target_runs is None:
    return False
  return len(preimage.inside) >= round(preimage.target_runs * 2.0**-preimage.bits)


def _verdict(
  stated: _Claim, rate: tuple[float, float, float], random: float, distinct: int, preimage: Preimage, spread: float
) -> tuple[str, str]:
  """One of `VERDICTS`, and the reason for it: that which needs no numbers, else that of `judge`."""
  if stated.own is None:
    return "not testable", "the query has no value of it"
  if stated.condition and not stated.own:
    return "refuted", "it is false for the query itself"
  if not distinct:
    other = "" if _is_input(stated.task, preimage.query) else "; the text itself is no input of the task"
    return (
      "not testable",
      f"no input inside epsilon was found{f' ({preimage.problem})' if preimage.problem else ''}{other}",
    )
  if not spread and random == 1:
    return "not testable", "it is about something in which the task's inputs do not differ"
  if distinct == 1 and rate[0] == 1:
    return "not testable", "only one input inside epsilon was found: whatever is true of it holds"
  return judge(*rate, random, "" if preimage.converged is not False else preimage.problem)


def _counterexamples(task: Task, inside: Members, holds: np.ndarray, words: list[str]) -> tuple[Counterexample, ...]:
  """The nearest different members for which a claim does not hold."""
  found: dict[str, Counterexample] = {}
  for i in np.argsort(inside.distance, kind="stable"):
    if not holds[i] and len(found) < SHOWN:
      text = task.tokenizer.text(inside.tokens[i])
      found.setdefault(text, Counterexample(text, float(inside.distance[i]), int(inside.position[i]), words[i]))
  return tuple(found.values())


def check(
  read: "Reader | Target | Source | Preimage",
  claim: str,
  text: str | None = None,
  site: str | None = None,
  position: int | str | None = None,
  *,
  task: Task | None = None,
  **settings: Any,
) -> ClaimCheck:
  """Tests a claim about an activation on its preimage.

  Args:
    read: a reader, a target alone, or a source of preimages; or a preimage that is there, with which only `claim` and `task` are given.
    claim: an expression over the task's features and tokens: a condition states that it holds for every input inside epsilon ("C2 == 0",
      'contains("John")', "token(S2) == token(S1)"), a value that it is that of the query ("F1 + S1").
    text, site, position: the activation, as for `Reader.preimage`.
    task: of a target alone, or of the preimage; None: its own.
    **settings: the other arguments of `check_each`.

  Raises:
    InversionViewError: a claim that is not understood, or arguments that cannot be used.
  """
  if isinstance(read, Preimage):
    if text is not None or site is not None or position is not None or any(v is not None for v in settings.values()):
      raise InversionViewError("a preimage has its text, site, position and method: give the claim and the task alone")
    return check_preimage(read, claim, task)
  if text is None or site is None or position is None:
    raise InversionViewError("give text, site and position of the activation that the claim is about")
  (checked,) = check_each(read, (claim,), text, site, position, task=task, **settings)
  return checked


def check_each(
  read: "Reader | Target | Source",
  claims: Sequence[str],
  text: str,
  site: str,
  position: int | str,
  *,
  task: Task | None = None,
  method: str | None = None,
  epsilon: float | None = None,
  metric: str | None = None,
  match: str = "anywhere",
  controls: int = 4,
  others: int = 3,
  seed: int = 0,
  progress: Callable[[int, int], object] | None = None,
  **settings: Any,
) -> list[ClaimCheck]:
  """Tests claims about one activation, all of them on the same preimages.

  Args:
    read: a reader, a target alone, or a source of preimages.
    claims: expressions, as for `check`.
    text, site, position: the activation, as for `Reader.preimage`.
    task: of a target alone; None: its own.
    method: as for `Reader.preimage`; None: "monte_carlo", from the prior, or "decoder" of a reader of a language model.
    epsilon, metric, match: as for `Reader.preimage`.
    controls: so many activations of other texts are the control; 0: none.
    others: so many other activations of the same text are the text-only baseline; 0: none.
    seed: of all that is drawn.
    progress: called with how much is done, and of how much.
    **settings: of the method, as for `Source.of`. Where no `budget` is given, Monte Carlo on a small target has 800,000 target runs for the
      activation itself, and the default for the others.

  Raises:
    InversionViewError: a claim that is not understood, or arguments that cannot be used.
  """
  bounds.check(seed=seed)
  for name, value in (("controls", controls), ("others", others)):
    if value:
      bounds.whole(name, value, "controls")
  from inversionview_jax.measures.held_out import held_out_requests
  from inversionview_jax.reading import Request

  source = _source(read, method, task, settings)
  request = Request(text, site, position, epsilon, metric, match)
  source.check_site(site)
  (resolved,) = source.check([request])
  for claim in claims:
    check_claim(source.task, claim, [int(i) for i in resolved.tokens if i != source.task.tokenizer.pad_id])
  same = _same_text(source, request, resolved.tokens, resolved.position, others, seed)
  donors: list[Request] = []
  if controls:
    drawn = held_out_requests(source, site, position, controls + 1, seed)
    donors = [dataclasses.replace(d, epsilon=epsilon, metric=metric, match=match) for d in drawn if d.text != text]
  requests = [*same, *donors[:controls]]
  own, *rest = _preimages(source, request, requests, seed, progress)
  checked = []
  for claim in claims:
    stated = _Claim.of(source.task, claim, own.query)
    result = check_preimage(own, claim, source.task)
    checked.append(_with_control(result, stated, rest[: len(same)], rest[len(same) :]))
  return checked


def _preimages(
  source: "Source",
  own: "Request",
  others: "Sequence[Request]",
  seed: int,
  progress: Callable[[int, int], object] | None,
) -> list[Preimage]:
  """The preimages of the activation that is asked about, for which there is more patience, and of the others."""
  patient = _patient(source)
  if patient is source:
    return source.preimages([own, *others], effects=False, seed=seed, progress=progress)
  count = 1 + len(others)
  (first,) = patient.preimages([own], effects=False, seed=seed, progress=_part(progress, 0, count))
  return [first, *source.preimages(others, effects=False, seed=seed, progress=_part(progress, 1, count))]


def _patient(source: "Source") -> "Source":
  """The source with target runs for the activations that take long, unless their number is given or a run takes long itself."""
  from inversionview_jax.reading.source import monte_carlo_by_default

  if "monte_carlo" not in source.method or "budget" in source.settings or not monte_carlo_by_default(source.task):
    return source
  return dataclasses.replace(source, settings={**source.settings, "budget": _BUDGET})


def _part(
  progress: Callable[[int, int], object] | None, before: int, requests: int
) -> Callable[[int, int], object] | None:
  """The progress of some of the requests, in thousandths, as that of all of them."""
  if progress is None:
    return None
  return lambda done, _: progress(1000 * before + done, 1000 * requests)


def _source(
  read: "Reader | Target | Source", method: str | None, task: Task | None, settings: dict[str, Any]
) -> "Source":
  """The source of preimages of `check`."""
  from inversionview_jax.reading import Reader
  from inversionview_jax.reading.source import Source, monte_carlo_by_default

  if isinstance(read, Source):
    return read.by(method, **settings) if method or settings else read
  if method is None:
    method = "decoder" if isinstance(read, Reader) and not monte_carlo_by_default(read.task) else "monte_carlo"
  return Source.of(read, method, task=task, **settings)


def _same_text(
  source: "Source", request: "Request", tokens: np.ndarray, position: int, count: int, seed: int
) -> "list[Request]":
  """Other activations of the same text, at random among sites and positions; fewer where there are no more."""
  sites = source.sites if source.reader is not None or len(source.sites) <= _SITES else (request.site,)
  at = np.flatnonzero(np.asarray(source.task.query_mask(tokens[None]))[0])
  own = source.target.site(request.site).short
  pairs = [(site, int(p)) for site in sites for p in at if (source.target.site(site).short, int(p)) != (own, position)]
  order = np.random.default_rng(seed).permutation(len(pairs))[:count]
  return [dataclasses.replace(request, site=pairs[i][0], position=pairs[i][1]) for i in order]


def _with_control(
  checked: ClaimCheck, stated: _Claim, same: Sequence[Preimage], donors: Sequence[Preimage]
) -> ClaimCheck:
  """The result with the other activations and the control, which can show that a claim passes of any activation."""
  others = tuple(
    OtherActivation(one.query.site, one.query.position, result.rate, result.verdict)
    for one in same
    for result in (check_preimage(one, checked.claim, stated.task),)
  )
  shares = []
  for donor in donors if stated.wanted is not None else ():
    inside = Members.of(donor, stated.task).within(donor.epsilon)
    if len(inside):
      shares.append(float(np.average(stated.holds(inside.tokens)[0], weights=inside.weight)))
  control = Rate(sum(shares), len(shares)) if shares else None
  checked = dataclasses.replace(checked, others=others, control=control)
  if (
    checked.verdict == "confirmed"
    and control
    and _tail(round(control.hits), round(control.count), checked.random) < _ARTEFACT
  ):
    why = f"the control passes, too: it holds for {percent(control.value)} inside epsilon of other texts' activations"
    return dataclasses.replace(
      checked, verdict="not testable", why=f"{why}, and {percent(checked.random)} of random inputs"
    )
  return checked


def _tail(hits: int, count: int, share: float) -> float:
  """The probability of at least so many hits in `count` independent trials."""
  return sum(math.comb(count, k) * share**k * (1 - share) ** (count - k) for k in range(hits, count + 1))
