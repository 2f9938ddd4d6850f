"""Patching experiments as configs describe them: pairs of a task, places, orders, and a result that is plain data.

Shapes: N pairs.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inversionview_jax.causal import interventions, patching
from inversionview_jax.causal.addresses import places_of, positions_of, refuse_unreachable
from inversionview_jax.causal.interventions import Estimate
from inversionview_jax.causal.patching import Reading
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import pairs_file
from inversionview_jax.tasks.base import Task, index_or_label
from inversionview_jax.tasks.contrast import Pairs, joined
from inversionview_jax.tasks.grammar import holds

FORMAT_VERSION = 1
_CHUNK = 8192
_NEEDS = {
  "patch": ("about", "contrast", "places", "position", "orders"),
  "ablate": ("about", "places", "position", "orders", "to", "read"),
}
_BARREN = 2048  # so many inputs without a contrast, and the search is given up


def collect_pairs(
  task: Task, draw: Callable[[np.ndarray], Pairs], count: int, *, split: str = "test", seed: int = 0, where: str = ""
) -> Pairs:
  """The first `count` pairs of a split in a random order, each input at most once; fewer if there are no more.

  Args:
    task: whose inputs.
    draw: int64[B] -> `Pairs`, such as `task.contrast`.
    count: how many are wanted.
    split: "train" or "test".
    seed: of the order.
    where: a condition on the features of the clean input.

  Raises:
    InversionViewError: there is no such input, or none of many has such a contrast.
  """
  _check(count, seed)
  order, parts, found, passed, start = np.random.default_rng(seed).permutation(task.split(split)), [], 0, 0, 0
  while start < len(order):
    chunk = order[start : start + min(max(256, 2 * (count - found)), _CHUNK)]
    start += len(chunk)
    if where.strip():
      chunk = chunk[holds(where, task.features(task.tokens(chunk)), len(chunk))]
    passed += len(chunk)
    if len(chunk):
      parts.append(draw(chunk))
      found += len(parts[-1])
    if found >= count or (not found and passed >= _BARREN):
      break
  if found:
    return joined(parts)[slice(0, count)]
  if passed:
    raise InversionViewError(f"no pairs: of {passed:,} inputs none has such a contrast; change fewer or other features")
  raise InversionViewError(f"no pairs: no input of the split {split!r} fulfils {where!r}; relax the condition")


def _check(pairs: int, seed: int) -> None:
  if pairs < 1:
    raise InversionViewError(f"pairs = {pairs} must be at least 1")
  if seed < 0:
    raise InversionViewError(f"seed = {seed} must be at least 0")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """An experiment whose input has been checked and which can be run."""

  name: str
  settings: Mapping
  clean: np.ndarray
  pairs: Pairs | pairs_file.TextPairs | None  # None for an ablation
  places: list
  names: list[str]  # of the steps
  orders: list[tuple[str, int]]  # and how many of the steps are each order's
  steps: np.ndarray
  reading: Reading


def prepare(target, task: Task, name: str, settings: Mapping, config: Mapping) -> Prepared:
  """Draws the pairs of an experiment and looks its places up.

  Args:
    target: the model.
    task: whose inputs.
    name: of the experiment.
    settings: "kind" ("patch" or "ablate"), "places" (a string per step, "a0.0@= a0.1@="; none: every head at "position"), "orders"; of a
      patch "contrast" (what `task.contrast` takes, or {"file": a .jsonl of `pairs_file`}, whose END is the last token); of an ablation "to" and "read" (labels).
    config: "pairs", "seed", "split", which all experiments share.

  Raises:
    InversionViewError: what is wrong with them.
  """
  _check(config["pairs"], config["seed"])
  kind = settings.get("kind")
  if kind not in _NEEDS:
    raise one_of(f"kind of the experiment {name}:", kind, _NEEDS)
  if missing := [key for key in _NEEDS[kind] if key not in settings]:
    raise InversionViewError(f"the experiment {name} does not say {missing[0]!r}; it needs {', '.join(_NEEDS[kind])}")
  drawing = {"split": config["split"], "seed": config["seed"]}
  corrupted = pairs = None
  if kind == "patch" and "file" in settings["contrast"]:
    if other := sorted(set(settings["contrast"]) - {"file"}):
      raise InversionViewError(f"pairs from a file are taken as they are; contrast.{other[0]} would have no effect")
    pairs = pairs_file.read(settings["contrast"]["file"], target, config["pairs"])
  elif kind == "patch":
    contrast = dict(settings["contrast"])
    known = list(inspect.signature(task.contrast).parameters)[2:]  # behind the index and the seed
    if wrong := [key for key in contrast if key not in known]:
      raise one_of(f"setting of a contrast of {task.name}:", wrong[0], known)
    where = contrast.pop("where", "")

    def draw(index):
      return task.contrast(index, config["seed"], **contrast)

    pairs = collect_pairs(task, draw, config["pairs"], where=where, **drawing)
  else:
    interventions.check_ablation(settings["to"])
    order = np.random.default_rng(config["seed"]).permutation(task.split(config["split"]))
    clean = task.tokens(order[: config["pairs"]])
    at = np.stack([positions_of(target, clean, where) for where in settings["read"]], axis=1)
    reading = Reading(at, None, np.full_like(at, -1), np.full_like(at, -1))
  if pairs is not None:
    clean, corrupted = pairs.clean, pairs.corrupted
    reading = Reading(pairs.clean_at[:, None], pairs.corrupted_at[:, None], pairs.answer[:, None], pairs.foil[:, None])
  groups = [text.split() for text in settings["places"]] or [
    [f"a{layer}.{head}@{settings['position']}"]
    for layer in range(target.config.n_layers)
    for head in range(target.config.n_heads)
  ]
  sites, positions = zip(*(split_place(text) for group in groups for text in group), strict=True)
  if isinstance(pairs, pairs_file.TextPairs):
    positions = [-1 if where == "END" else where for where in positions]
    for where in positions:
      if where is None or (isinstance(where, int) and where >= 0):
        pairs.refuse_unequal("every position" if where is None else f"position {where}")
  places = places_of(target, sites, positions, clean, corrupted)
  refuse_unreachable(target, places, reading.clean_at)
  names, steps, orders = [], [], []
  for which in settings["orders"]:
    named, on = interventions.ordered(groups, which)
    names, steps, orders = names + named, [*steps, on], [*orders, (which, len(named))]
  places = [place for _, place in places]
  return Prepared(name, settings, clean, pairs, places, names, orders, np.concatenate(steps), reading)


def split_place(text: str) -> tuple[str, "int | str | None"]:
  """ "a0.3@=" -> ("a0.3", "="); without "@", all positions."""
  site, sign, position = text.partition("@")
  if sign and not position:
    raise InversionViewError(f"place {text!r} has no position behind '@'; write a0.3@= or a0.3@8")
  return site, index_or_label(position) if sign else None


def run(target, prepared: Prepared, *, batch_size: int, mesh=None) -> dict:
  """Runs an experiment.

  Returns:
    Plain data: "experiment", "about", "settings", "pairs", and "results", a list with one table per order (of a patch) or one (of an ablation);
    each table has "order", "rows" of {"name", metric: {"mean", "se", "n"}} and, of a patch, the "original" logit difference and the
    "total" that running the corrupted input takes from it.
  """
  settings, places = prepared.settings, prepared.places
  how = {"batch_size": batch_size, "mesh": mesh}
  if prepared.pairs is not None:
    found = patching.measure(
      target, prepared.clean, places, prepared.steps, prepared.reading, corrupted=prepared.pairs.corrupted, **how
    )
    metrics = ("logit_difference", "kl", "top_logit", "top_changed")
  else:
    values = interventions.replacement_values(target, prepared.clean, places, settings["to"], **how)
    found = patching.measure(target, prepared.clean, places, prepared.steps, prepared.reading, values=values, **how)
    metrics = ("kl", "top_logit", "top_logit_share", "top_changed")
  results, start = [], 0
  for order, size in prepared.orders:
    which = slice(start, start + size)
    table = {"order": order, "rows": []}
    for read in range(prepared.reading.clean_at.shape[1]):
      effects = {metric: interventions.effects_of(found, prepared.names, metric, read) for metric in metrics}
      for step in range(*which.indices(len(prepared.names))):
        row = {"name": prepared.names[step]}
        if prepared.pairs is None:
          row["read"] = settings["read"][read]
        row |= {metric: as_data(interventions.estimate(one.values[step])) for metric, one in effects.items()}
        if prepared.pairs is not None:
          row["share"] = as_data(effects["logit_difference"].shares[step])
        table["rows"].append(row)
    if prepared.pairs is not None:
      main = effects["logit_difference"]
      table |= {
        "original": as_data(interventions.estimate(main.original)),
        "total": as_data(interventions.estimate(main.total)),
      }
    results.append(table)
    start += size
  return {
    "format_version": FORMAT_VERSION,
    "experiment": prepared.name,
    "kind": settings["kind"],
    "about": settings["about"],
    "target": describe(target),
    "settings": {key: plain(value) for key, value in settings.items()},
    "pairs": len(prepared.clean),
    "results": results,
  }


def describe(target) -> dict:
  """What names a target in a result."""
  return {"name": target.name, "fingerprint": target.fingerprint, "convention": target.convention}


def as_data(value: Estimate | None) -> dict | None:
  """For JSON, which has no NaN."""
  if value is None:
    return None
  return {"mean": value.mean, "se": None if math.isnan(value.se) else value.se, "n": value.n}


def plain(value):
  """Settings as JSON has them."""
  if isinstance(value, Mapping):
    return {key: plain(one) for key, one in value.items()}
  return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
