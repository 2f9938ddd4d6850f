"""A verdict on a hypothesis: does an activation carry a feature, and does it carry anything else?

A hypothesis such as "head a0.3 at '=' encodes whether the tens carry" makes two predictions. Patched from an input that differs in this
feature only, the activation should bring most of the change in the answer with it; patched from an input that differs in everything else,
nothing.
"""

import dataclasses

import jax
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal import experiments, interventions, patching
from inversionview_jax.causal.addresses import refuse_unreachable, resolve_addresses
from inversionview_jax.causal.estimates import Estimate, estimate
from inversionview_jax.causal.patching import Readout
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table, plus_minus
from inversionview_jax.targets import Target
from inversionview_jax.targets.inputs import resolve_inputs
from inversionview_jax.tasks.base import Task
from inversionview_jax.tasks.contrast import VARY, Pairs


@dataclasses.dataclass(frozen=True)
class Side:
  """The effects of patching in one kind of pairs.

  Attributes:
    vary: "only" (the pairs differ in the feature only) or "rest" (in everything but it).
    example: the clean and the corrupted text of the first pair.
    answer_differs: share of the pairs whose answers differ; where they do not, the logit difference is zero before and after.
    original: logit difference of the clean run.
    total: what the corrupted run takes from it.
    effect: what the patch takes from it.
    share: effect / total; None where the pairs do not change the answer.
    kl, total_kl: KL of the patched and of the corrupted run from the clean one, in nats.
    top_changed: share of the pairs in which the patch puts another token on top.
  """

  vary: str
  example: tuple[str, str]
  answer_differs: Estimate
  original: Estimate
  total: Estimate
  effect: Estimate
  share: Estimate | None
  kl: Estimate
  total_kl: Estimate
  top_changed: Estimate


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict(ShowsTable):
  """How much of the behaviour an activation carries, when a feature alone changes and when all else does.

  Attributes:
    site, position, feature: the hypothesis: this activation carries this feature.
    predict: the answer token by which it is judged.
    only, rest: the two kinds of pairs.
  """

  site: str
  position: str
  feature: str
  predict: str
  only: Side
  rest: Side

  def to_data(self) -> dict:
    """Plain data for JSON."""
    sides = {}
    for side in (self.only, self.rest):
      values = {field.name: getattr(side, field.name) for field in dataclasses.fields(side)}
      sides[side.vary] = {
        name: value.to_data() if isinstance(value, Estimate) else value for name, value in values.items()
      }
    return {name: getattr(self, name) for name in ("site", "position", "feature", "predict")} | sides

  def __str__(self) -> str:
    def percent(side: Side) -> str:
      if side.share is not None:
        return f"{100 * side.share.mean:.1f} ± {100 * side.share.se:.1f} %"
      changed = side.top_changed  # an effect that a logit difference of equal answers does not have
      return f"(nothing to share out: the answers are the same; the patch changes the top token in {100 * changed.mean:.1f} ± {100 * changed.se:.1f} %)"

    return (
      f"{self.site} at {self.position!r} carries {percent(self.only)} of what {self.feature} alone does to {self.predict} "
      f"(n = {self.only.effect.n:,}), and {percent(self.rest)} of what everything but {self.feature} does (n = {self.rest.effect.n:,})"
    )

  def rows(self) -> list[tuple[str, ...]]:
    """(what, in pairs that differ in the feature only, in pairs that differ in everything but it), as text."""
    sides = (self.only, self.rest)

    def row(label: str, name: str, *scale) -> tuple[str, ...]:
      values = [getattr(side, name) for side in sides]
      return (label, *("-" if value is None else plus_minus(value.mean, value.se, *scale) for value in values))

    return [
      ("for example", *(" / ".join(side.example) for side in sides)),
      ("n", *(f"{side.effect.n:,}" for side in sides)),
      row(f"{self.predict} differs", "answer_differs", 100, " %"),
      row("logit difference, clean", "original"),
      row("  the corrupted run takes", "total"),
      row("  the patch takes", "effect"),
      row("  as a share", "share", 100, " %"),
      row("KL of the corrupted run", "total_kl"),
      row("KL of the patched run", "kl"),
      row("top token changed", "top_changed", 100, " %"),
    ]

  def _table(self) -> Table:
    return Table(
      f"{self.site} at {self.position!r}, feature {self.feature}, judged by {self.predict}",
      ("pairs that differ in", f"{self.feature} only", f"everything but {self.feature}"),
      tuple(self.rows()),
      str(self),
    )


def verify(
  target: Target,
  site: str | Site,
  position: "int | str",
  feature: str,
  *,
  task: Task | None = None,
  predict: str | None = None,
  pairs: int = 8192,
  split: str = "test",
  seed: int = 0,
  where: str = "",
  batch_size: int = 1024,
  mesh: jax.sharding.Mesh | None = None,
) -> Verdict:
  """Patches an activation from inputs that differ in a feature only, and from inputs that differ in everything but it.

  Args:
    target: a model of the task.
    site: either notation.
    position: an index or a label of the task, looked up in both inputs of a pair.
    feature: one of `Task.features`, such as "F1", "C2" or "count".
    task: by default the target's.
    predict: label of the answer token that is compared; by default the one predicted at `position`, or the first one where none is.
    pairs: of each kind.
    split, seed, where: which inputs, as in `experiments.collect_pairs`.
    batch_size, mesh: as in `interventions.patch`.

  Raises:
    InversionViewError: a site, position, feature or answer token that is not there, or no pairs.
  """
  bounds.check(pairs=pairs, seed=seed, batch_size=batch_size)
  if task is None:
    task = target.resolve_task()
    if task is None:
      raise InversionViewError("this target belongs to no task whose features are known; give task=tasks.get(...)")
  features = task.features(task.tokens(task.split(split)[:1]))
  if feature not in features:
    raise one_of(f"feature of the task {task.name}:", feature, features)
  site = target.site(site)
  predict = task.behaviour(position) if predict is None else predict
  sides = []
  for vary in VARY:

    def draw(index, vary=vary):
      return task.contrast_in(feature, vary, index, seed, predict=predict)

    drawn = experiments.collect_pairs(task, draw, pairs, split=split, seed=seed, where=where)
    sides.append(_side(target, task, vary, site, position, drawn, batch_size, mesh))
  return Verdict(site.short, str(position), feature, predict, *sides)


def _side(target: Target, task: Task, vary: str, site: Site, position, pairs: Pairs, batch_size: int, mesh) -> Side:
  clean, corrupted = (resolve_inputs(target, tokens) for tokens in (pairs.clean, pairs.corrupted))
  addresses = resolve_addresses(target, [site], [position], clean, corrupted)
  readout = Readout.of_pairs(pairs)
  refuse_unreachable(target, addresses, readout.clean_at)
  measured = patching.measure(
    target,
    pairs.clean,
    addresses,
    np.ones((1, 1), bool),
    readout,
    corrupted=pairs.corrupted,
    batch_size=batch_size,
    mesh=mesh,
  )
  lost, kl, changed = (
    interventions.effects_of(measured, [site.short], metric) for metric in ("logit_difference", "kl", "top_changed")
  )
  differs = pairs.answer != pairs.foil
  return Side(
    vary,
    (task.tokenizer.text(pairs.clean[0]), task.tokenizer.text(pairs.corrupted[0])),
    estimate(differs),
    estimate(lost.original),
    estimate(np.asarray(lost.total)),
    lost.estimates[0],
    lost.shares[0] if differs.any() else None,
    kl.estimates[0],
    estimate(np.asarray(kl.total)),
    changed.estimates[0],
  )
