"""Factual recall of a language model as a study (paper, section 4.4): which heads write where a fact is recalled, and what they encode.

Facts that the model knows; the heads that write most at END, and those with the largest direct effect on the answer; for each its
epsilon-preimages at END of known facts (only where it attends to BOS less than the task's limit), the features that their members share, and
whether patching agrees.

Shapes: K known facts, L layers, H heads of a layer.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.causal import head_importance
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.studies import effects
from inversionview_jax.studies.effects import Twins
from inversionview_jax.studies.places import Place, PlaceStudy, Progress, Questions, spread, study
from inversionview_jax.studies.stages import Stages
from inversionview_jax.targets import Target
from inversionview_jax.tasks.contrast import Pairs
from inversionview_jax.tasks.factual import FEATURES, Factual

# Features that patching tests: those with which the answer changes.
VERIFIED = ("answer", "relation", "kind", "language", "subject")
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a study is made.

  Attributes:
    heads: how many of those that write most are studied.
    by_effect: how many of those with the largest direct effect, besides.
    by_patching: how many of those of all layers from whose patching most is expected (to first order), for another answer and for another
      relation in turn, besides.
    first_layer: of the heads of the first two kinds; -1: the upper half.
    threshold: on a head's share of the residual update (paper: 0.02).
    known: facts that the model knows, at most.
    tried: prompts that are tried for them, at most.
    only_known: whether other facts are left out; without, the model need not know any.
    queries: of each head.
    pairs: of patching and attribution, at most.
    pool: inputs among which preimages are sought; 0: all.
    shown: preimages of each head that are kept.
    seed: of everything that is drawn.
  """

  heads: int = 12
  by_effect: int = 6
  by_patching: int = 10
  first_layer: int = -1
  threshold: float = 0.02
  known: int = 96
  tried: int = 700
  only_known: bool = True
  queries: int = 24
  pairs: int = 16
  pool: int = 0
  shown: int = 2
  seed: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class FactualStudy:
  """The result.

  Attributes:
    heads: those that write most first.
    known, tried: facts that the model knows, of so many.
    pool: inputs among which preimages were sought.
    whole: whether these are all of the task.
  """

  heads: tuple[PlaceStudy, ...]
  known: int
  tried: int
  pool: int
  whole: bool


def run(
  target: Target,
  task: Factual,
  settings: Settings,
  stages: Stages,
  progress: Progress,
  sites: Sequence[str] = (),
) -> FactualStudy:
  """Studies the heads that write most, or those of `sites`.

  Raises:
    InversionViewError: the target predicts no fact, a site that is no head, or no pairs of facts that it knows.
  """
  target.require_logits()
  index, shares, tried = _known_facts(target, task, settings, stages, progress)
  twins = {name: Twins.of(task, name, index, settings.pairs, settings.seed) for name in VERIFIED}
  found = {name: pairs for name, pairs in twins.items() if pairs is not None}
  if "answer" not in found:
    raise InversionViewError(
      f"of {len(index)} facts that the target knows none has a partner of the same relation and wording with another answer, and one with the "
      "same answer in another wording: raise study.known and study.tried, or add sources of facts"
    )
  compared = {name: (pairs.only.answer, pairs.only.foil) for name, pairs in found.items()}
  chosen = [target.site(name, ("head",)) for name in sites]
  chosen = chosen or _chosen(target, shares, found, settings, stages)
  values = task.features_of(index)
  questions = Questions(
    queries=index[spread(values["relation"], settings.queries)],
    index=_pool(task.num_inputs, settings),
    features=FEATURES,
    apart="subject",
    twins=found,
    compared=compared,
    direct="answer",
    foil=found["answer"].only.foil,
    most_bos=1.0 if task.bos_attention is None else task.bos_attention,
  )
  measures = [_share(shares, site, settings.threshold) for site in chosen]
  places = [Place(site, "END") for site in chosen]
  heads = study(
    target,
    task,
    places,
    questions,
    stages,
    progress,
    measures=measures,
    shown=settings.shown,
    seed=settings.seed,
  )
  return FactualStudy(tuple(heads), len(index), tried, len(questions.index), len(questions.index) == task.num_inputs)


def _share(shares: np.ndarray, site, threshold: float) -> dict[str, float]:
  own = shares[:, site.layer, site.head]
  return {"writes": float((own > threshold).mean()), "mean share": float(own.mean())}


def _pool(count: int, settings: Settings) -> np.ndarray:
  """int64[N]: all inputs, or so many at random."""
  if not 0 < settings.pool < count:
    return np.arange(count)
  return np.sort(np.random.default_rng(settings.seed + 1).permutation(count)[: settings.pool])


def _known_facts(
  target: Target, task: Factual, settings: Settings, stages: Stages, progress: Progress
) -> tuple[np.ndarray, np.ndarray, int]:
  """The first facts in a random order whose answer's first token the target predicts.

  Returns:
    int64[K], inputs of the task; float32[K, L, H], the shares of all heads at END; how many were tried.
  """

  def make():
    order = np.random.default_rng(settings.seed).permutation(task.num_inputs)
    order = order[task.features_of(order)["relation"] >= 0][: settings.tried]
    index, shares, tried = [], [], 0
    for start in range(0, len(order), _BATCH):
      part = order[start : start + _BATCH]
      rows = task.tokens(part)
      end = task.positions(rows, "END")
      padded = [parallel.pad_rows(x, _BATCH) for x in (rows, end)]
      values, predicted = head_importance.head_shares(target, *padded, batch_size=_BATCH)
      assert predicted is not None
      right = predicted[: len(part)] == rows[np.arange(len(part)), end + 1]
      right |= not settings.only_known
      index.append(part[right])
      shares.append(values[: len(part)][right])
      tried, count = tried + len(part), sum(map(len, index))
      progress("known facts", min(count, settings.known), settings.known)
      if count >= settings.known:
        break
    none = np.zeros((0, target.config.n_layers, target.config.n_heads), np.float32)
    return {
      "index": np.concatenate([np.zeros(0, np.int64), *index])[: settings.known],
      "shares": np.concatenate([none, *shares])[: settings.known],
      "tried": np.array(tried),
    }

  found = stages.arrays("known", make)
  if not len(found["index"]):
    raise InversionViewError(
      f"of {int(found['tried']):,} facts the target predicts none: a study needs some that it knows, or study.only_known=False"
    )
  return found["index"], found["shares"], int(found["tried"])


def _chosen(target: Target, shares: np.ndarray, twins: Mapping[str, Twins], settings: Settings, stages: Stages):
  """The heads that write most at END, then those with the largest direct effect, then those whose patching changes the answer most."""
  layers = target.config.n_layers
  first = layers // 2 if settings.first_layer < 0 else settings.first_layer
  ranked = head_importance.ranked(shares, settings.threshold, first)
  sites = [target.site(head.site) for head in ranked]
  chosen, others = sites[: settings.heads], sites[settings.heads :]
  if settings.by_effect and others:
    pairs = twins["answer"].only
    values = stages.arrays("direct-others", lambda: effects.direct_values(target, pairs, pairs.foil, others))
    order = np.argsort(-values["difference"].mean(axis=1), kind="stable")
    chosen = chosen + [others[i] for i in order[: settings.by_effect]]
  if settings.by_patching:
    ranks = [_by_patching(target, name, twins[name].only, stages) for name in ("answer", "relation") if name in twins]
    taken = (site for turn in zip(*ranks, strict=True) for site in turn)
    chosen = chosen + list(dict.fromkeys(site for site in taken if site not in chosen))[: settings.by_patching]
  return chosen


def _by_patching(target: Target, name: str, pairs: Pairs, stages: Stages) -> list[Site]:
  """All heads, those first of which patching at END takes most of the answer's logit difference, to first order."""

  def make():
    at = pairs.clean_at[:, None], pairs.corrupted_at[:, None]
    return {"lost": effects.attributed_effects(target, pairs, pairs.foil, at)[:, :, 0].mean(axis=-1)}

  lost = stages.arrays(f"attributed-{name}", make)["lost"]
  order = zip(*np.unravel_index(np.argsort(-lost, axis=None, kind="stable"), lost.shape), strict=True)
  return [target.site(f"a{layer}.{head}") for layer, head in order]


def summary(found: FactualStudy) -> dict[str, Any]:
  """What the page and the JSON have besides the heads."""
  pool = f"all {found.pool:,} prompts" if found.whole else f"{found.pool:,} random prompts"
  count = sum(bool(head.verified) for head in found.heads)
  coarse = max((reading.epsilon for head in found.heads for reading in head.readings), default=0.0)
  at_once = sum(coarse in head.verified.values() for head in found.heads)
  lines = [
    f"{found.known} facts that the model knows, of {found.tried} that were tried; preimages among {pool}; {len(found.heads)} heads at END",
    f"{count} heads have a reading that patching confirms, {at_once} of them at epsilon {coarse:g}",
  ]
  for name in VERIFIED:
    heads = sorted((head for head in found.heads if name in head.verified), key=lambda head: -head.verified[name])
    if heads:
      lines.append(f"{name}: " + ", ".join(f"{head.site} ({head.verified[name]:g})" for head in heads))
  return {"known": found.known, "tried": found.tried, "pool": found.pool, "whole": found.whole, "summary": lines}
