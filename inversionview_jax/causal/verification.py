"""From a reading to a verdict: does a place carry a feature, and does it carry anything else?

A reading such as "head a0.3 at '=' says whether the tens carry" makes two predictions. Patched from an input that differs in this feature only,
the place should bring most of the change in the answer with it; patched from an input that differs in everything else, nothing.
"""

import dataclasses

from inversionview_jax.causal import experiments, interventions, patching
from inversionview_jax.causal.addresses import places_of, refuse_unreachable
from inversionview_jax.causal.interventions import Estimate
from inversionview_jax.causal.patching import Reading
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task
from inversionview_jax.tasks.contrast import VARY


@dataclasses.dataclass(frozen=True)
class Side:
  """What patching does in one kind of pairs.

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


@dataclasses.dataclass(frozen=True)
class Verdict:
  """How much of the behaviour a place carries, when a feature alone changes and when all else does.

  Attributes:
    site, position, feature: what was asked.
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
        name: experiments.as_data(value) if value is None or isinstance(value, Estimate) else value
        for name, value in values.items()
      }
    return {name: getattr(self, name) for name in ("site", "position", "feature", "predict")} | sides

  def __str__(self) -> str:
    def said(value):
      return "nothing to share out" if value is None else f"{100 * value.mean:.1f} ± {100 * value.se:.1f} %"

    return (
      f"{self.site} at {self.position!r} carries {said(self.only.share)} of what {self.feature} alone does to {self.predict} "
      f"(n = {self.only.effect.n:,}), and {said(self.rest.share)} of what everything but {self.feature} does (n = {self.rest.effect.n:,})"
    )


def verify(
  target: Target,
  site: str,
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
  mesh=None,
) -> Verdict:
  """Patches a place from inputs that differ in a feature only, and from inputs that differ in everything but it.

  Args:
    target: a model of the task.
    site: either notation.
    position: an index or a label of the task, looked up in both inputs of a pair.
    feature: one of `Task.features`, such as "F1", "C2" or "count".
    task: by default the target's.
    predict: label of the answer token to look at; by default the one predicted at `position`, or the first one where none is.
    pairs: of each kind.
    split, seed, where: which inputs, as in `experiments.collect_pairs`.
    batch_size, mesh: as in `interventions.patch`.

  Raises:
    InversionViewError: a site, position, feature or answer token that is not there, or no pairs.
  """
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
    places = places_of(target, [site], [position], drawn.clean, drawn.corrupted)
    refuse_unreachable(target, places, drawn.clean_at[:, None])
    reading = Reading(drawn.clean_at[:, None], drawn.corrupted_at[:, None], drawn.answer[:, None], drawn.foil[:, None])
    found = patching.measure(
      target,
      drawn.clean,
      [places[0][1]],
      [[True]],
      reading,
      corrupted=drawn.corrupted,
      batch_size=batch_size,
      mesh=mesh,
    )
    lost = interventions.effects_of(found, [site.short], "logit_difference")
    kl = interventions.effects_of(found, [site.short], "kl")
    changed = interventions.effects_of(found, [site.short], "top_changed")
    differs = drawn.answer != drawn.foil
    sides.append(
      Side(
        vary,
        tuple(task.tokenizer.text(tokens[0]) for tokens in (drawn.clean, drawn.corrupted)),
        interventions.estimate(differs),
        interventions.estimate(lost.original),
        interventions.estimate(lost.total),
        lost.estimates[0],
        lost.shares[0] if differs.any() else None,
        kl.estimates[0],
        interventions.estimate(kl.total),
        changed.estimates[0],
      )
    )
  return Verdict(site.short, str(position), feature, predict, *sides)
