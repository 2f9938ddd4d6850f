"""Patching experiments as configs describe them: pairs of a task, addresses, orders, and a result that is plain data.

Shapes: N pairs, M addresses, S steps.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal import interventions, patching
from inversionview_jax.causal.addresses import (
  Address,
  refuse_overwritten_patches,
  refuse_unreachable,
  resolve_addresses,
)
from inversionview_jax.causal.estimates import Estimate, estimate
from inversionview_jax.causal.patching import Readout
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import storage
from inversionview_jax.targets import Target
from inversionview_jax.targets.inputs import Rows, resolve_inputs
from inversionview_jax.targets.positions import resolve_positions
from inversionview_jax.tasks import pairs_file
from inversionview_jax.tasks.base import Task, index_or_label
from inversionview_jax.tasks.contrast import Pairs, joined
from inversionview_jax.tasks.grammar import holds

FORMAT_VERSION = 1
_CHUNK = 8192
_NEEDS = {
  "patch": ("about", "contrast", "addresses", "position", "orders"),
  "ablate": ("about", "addresses", "position", "orders", "to", "read"),
}
_GIVE_UP = 2048  # inputs without a contrast, after which the search ends
_METRICS = {
  "patch": ("logit_difference", "kl", "top_logit", "top_changed"),
  "ablate": ("kl", "top_logit", "top_logit_share", "top_changed"),
}


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
  bounds.check(pairs=count, seed=seed)
  order, parts, drawn, passed, start = np.random.default_rng(seed).permutation(task.split(split)), [], 0, 0, 0
  while start < len(order):
    chunk = order[start : start + min(max(256, 2 * (count - drawn)), _CHUNK)]
    start += len(chunk)
    if where.strip():
      chunk = chunk[holds(where, task.features(task.tokens(chunk)), len(chunk))]
    passed += len(chunk)
    if len(chunk):
      parts.append(draw(chunk))
      drawn += len(parts[-1])
    if drawn >= count or (not drawn and passed >= _GIVE_UP):
      break
  if drawn:
    return joined(parts)[slice(0, count)]
  if passed:
    raise InversionViewError(f"no pairs: of {passed:,} inputs none has such a contrast; change fewer or other features")
  raise InversionViewError(f"no pairs: no input of the split {split!r} fulfils {where!r}; relax the condition")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """An experiment whose settings have been checked, ready to run.

  Attributes:
    name: of the experiment.
    settings: as in the config.
    clean: int32[N, T].
    pairs: of a patch; None for an ablation.
    addresses: M of them.
    names: S names of steps.
    orders: (order, number of its steps), which sum to S.
    steps: bool[S, M], which addresses are replaced in each step.
    readout: where predictions are compared.
  """

  name: str
  settings: Mapping
  clean: np.ndarray
  pairs: Pairs | pairs_file.TextPairs | None
  addresses: list[Address]
  names: list[str]
  orders: list[tuple[str, int]]
  steps: np.ndarray
  readout: Readout


def prepare(target: Target, task: Task, name: str, settings: Mapping, config: Mapping) -> Prepared:
  """Draws the inputs of an experiment and resolves its addresses.

  Args:
    target: the model.
    task: whose inputs.
    name: of the experiment.
    settings: "kind" ("patch" or "ablate"), "addresses" (a string per step, "a0.0@= a0.1@="; none: every head at "position"), "orders"; of a
      patch "contrast" (what `task.contrast` takes, or {"file": a .jsonl of `pairs_file`}, whose END is the last token); of an ablation "to" and "read" (labels).
    config: "pairs", "seed", "split", which all experiments share.

  Raises:
    InversionViewError: a setting that is missing, unknown or renamed, or an error of the inputs or addresses.
  """
  bounds.check(pairs=config["pairs"], seed=config["seed"])
  _check_settings(name, settings)
  pairs = corrupted = None
  if settings["kind"] == "patch":
    pairs = _draw_pairs(target, task, settings["contrast"], config)
    clean, corrupted, readout = pairs.clean, pairs.corrupted, Readout.of_pairs(pairs)
  else:
    clean, readout = _ablation_inputs(target, task, settings, config)
  groups = [text.split() for text in settings["addresses"]] or [
    [f"a{layer}.{head}@{settings['position']}"]
    for layer in range(target.config.n_layers)
    for head in range(target.config.n_heads)
  ]
  pieces = [split_address(text) for group in groups for text in group]
  sites, positions = [site for site, _ in pieces], [position for _, position in pieces]
  if isinstance(pairs, pairs_file.TextPairs):
    positions = _text_positions(pairs, positions)
  rows, others = _rows(target, pairs, clean, "clean"), None
  if pairs is not None:
    others = _rows(target, pairs, corrupted, "corrupted")
  addresses = resolve_addresses(target, sites, positions, rows, others)
  refuse_unreachable(target, addresses, readout.clean_at)
  names: list[str] = []
  steps: list[np.ndarray] = []
  orders: list[tuple[str, int]] = []
  for order in settings["orders"]:
    named, on = interventions.ordered(groups, order)
    names, steps, orders = names + named, [*steps, on], [*orders, (order, len(named))]
  on = np.concatenate(steps)
  refuse_overwritten_patches(target, addresses, on, readout.clean_at, clean.shape[1])
  return Prepared(name, settings, clean, pairs, addresses, names, orders, on, readout)


def _rows(target: Target, pairs: Pairs | pairs_file.TextPairs | None, tokens: Any, which: str) -> Rows:
  """The inputs with their lengths, which are known of texts from a file."""
  rows = resolve_inputs(target, tokens)
  if isinstance(pairs, pairs_file.TextPairs):
    rows = dataclasses.replace(rows, lengths=getattr(pairs, f"{which}_at") + 1)
  return rows


def _check_settings(name: str, settings: Mapping) -> None:
  kind = settings.get("kind")
  if kind not in _NEEDS:
    raise one_of(f"kind of the experiment {name}:", kind, _NEEDS)
  storage.refuse_renamed(f"experiments.{name}.{key}" for key in settings)
  if missing := [key for key in _NEEDS[kind] if key not in settings]:
    raise InversionViewError(f"the experiment {name} lacks {missing[0]!r}; it needs {', '.join(_NEEDS[kind])}")


def _draw_pairs(target: Target, task: Task, contrast: Mapping, config: Mapping) -> Pairs | pairs_file.TextPairs:
  if "file" in contrast:
    if other := sorted(set(contrast) - {"file"}):
      raise InversionViewError(f"pairs from a file are taken as they are; contrast.{other[0]} would have no effect")
    return pairs_file.read(contrast["file"], target, config["pairs"])
  arguments = dict(contrast)
  known = list(inspect.signature(task.contrast).parameters)[2:]  # after the index and the seed
  if unknown := [key for key in arguments if key not in known]:
    raise one_of(f"setting of a contrast of {task.name}:", unknown[0], known)
  where = arguments.pop("where", "")

  def draw(index):
    return task.contrast(index, config["seed"], **arguments)

  return collect_pairs(task, draw, config["pairs"], split=config["split"], seed=config["seed"], where=where)


def _ablation_inputs(target: Target, task: Task, settings: Mapping, config: Mapping) -> tuple[np.ndarray, Readout]:
  interventions.check_ablation(settings["to"])
  order = np.random.default_rng(config["seed"]).permutation(task.split(config["split"]))
  clean = task.tokens(order[: config["pairs"]])
  rows = resolve_inputs(target, clean)
  at = np.stack([resolve_positions(target, rows, position) for position in settings["read"]], axis=1)
  return clean, Readout(at, None, np.full_like(at, -1), np.full_like(at, -1))


def _text_positions(pairs: pairs_file.TextPairs, positions: Sequence) -> list:
  """Positions in texts of a file, where END is the last token; an index, or all positions, needs pairs of the same length."""
  positions = [-1 if position == "END" else position for position in positions]
  for position in positions:
    if position is None or (isinstance(position, int) and position >= 0):
      pairs.refuse_unequal("every position" if position is None else f"position {position}")
  return positions


def split_address(text: str) -> tuple[str, "int | str | None"]:
  """ "a0.3@=" -> ("a0.3", "="); without "@", all positions."""
  site, sign, position = text.partition("@")
  if sign and not position:
    raise InversionViewError(f"address {text!r} has no position behind '@'; write a0.3@= or a0.3@8")
  return site, index_or_label(position) if sign else None


def run(target: Target, prepared: Prepared, *, batch_size: int, mesh: jax.sharding.Mesh | None = None) -> dict:
  """Runs an experiment.

  Returns:
    Plain data: "experiment", "about", "settings", "pairs", and "results", a list with one table per order (of a patch) or one (of an ablation);
    each table has "order", "rows" of {"name", metric: {"mean", "se", "n"}} and, of a patch, the "original" logit difference and the
    "total" that running the corrupted input takes from it.
  """
  settings = prepared.settings
  how: dict[str, Any] = {"batch_size": batch_size, "mesh": mesh}
  addresses, readout = prepared.addresses, prepared.readout
  if prepared.pairs is not None:
    inputs: dict[str, Any] = {"corrupted": prepared.pairs.corrupted}
  elif settings["to"] == "resample":
    rows = resolve_inputs(target, prepared.clean)
    addresses, readout, inputs = interventions.resampled(addresses, addresses, rows, rows, readout, None, 0)
  else:
    padding = resolve_inputs(target, prepared.clean).padding
    values = interventions.replacement_values(target, prepared.clean, addresses, settings["to"], padding=padding, **how)
    inputs = {"values": values}
  measured = patching.measure(target, prepared.clean, addresses, prepared.steps, readout, **inputs, **how)
  if prepared.pairs is None:
    measured = dataclasses.replace(measured, corrupted=None)
  results, start = [], 0
  for order, size in prepared.orders:
    results.append(_result_table(prepared, measured, order, slice(start, start + size)))
    start += size
  return result_of(target, prepared.name, settings) | {"pairs": len(prepared.clean), "results": results}


def _result_table(prepared: Prepared, measured: patching.Measured, order: str, steps: slice) -> dict:
  table: dict = {"order": order, "rows": []}
  is_patch = prepared.pairs is not None
  for read in range(prepared.readout.clean_at.shape[1]):
    effects = {
      metric: interventions.effects_of(measured, prepared.names, metric, read)
      for metric in _METRICS["patch" if is_patch else "ablate"]
    }
    for step in range(*steps.indices(len(prepared.names))):
      row = {"name": prepared.names[step]} | ({} if is_patch else {"read": prepared.settings["read"][read]})
      row |= {metric: estimate(one.values[step]).to_data() for metric, one in effects.items()}
      if is_patch:
        row["share"] = as_data(effects["logit_difference"].shares[step])
      table["rows"].append(row)
  if is_patch:
    lost = effects["logit_difference"]
    table |= {"original": estimate(lost.original).to_data(), "total": as_data(lost.total_estimate)}
  return table


def result_of(target: Target, name: str, settings: Mapping) -> dict:
  """What every experiment's result begins with, as plain data."""
  return {
    "format_version": FORMAT_VERSION,
    "experiment": name,
    "kind": settings["kind"],
    "about": settings["about"],
    "target": target.describe(),
    "settings": {key: plain(value) for key, value in settings.items()},
  }


def as_data(value: Estimate | None) -> dict | None:
  """An estimate as plain data; None for none."""
  return None if value is None else value.to_data()


def plain(value):
  """Settings as JSON has them."""
  if isinstance(value, Mapping):
    return {key: plain(one) for key, one in value.items()}
  return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
