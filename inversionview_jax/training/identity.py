"""The description of a training run: config, training inputs and target, as plain data; what may differ between a checkpoint and its resumption."""

import dataclasses
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax.devices import sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage

# Config keys that may change when a run is resumed: they decide what is logged, kept or measured, or where and in which pieces the same
# numbers are computed. The saved state depends on all others.
FREE = (
  "steps", "steps_per_call", "log_every", "eval_every", "save_every", "keep", "keep_every", "eval_examples", "eval_queries", "final_queries",
  "mesh", "profile", "log", "about", "skip_nonfinite", "compute.accumulate", "compute.remat", "compute.donate", "data.dir", "target",
)  # fmt: skip


def describe(config: ConfigDict, rows: np.ndarray, identity: Mapping) -> dict:
  """Everything that the state of a run is a function of, as plain data.

  Args:
    config: of the run.
    rows: int[N, T], the training inputs; a checksum stands for them.
    identity: what else the objective depends on (the target's fingerprint).
  """
  return {
    "config": json.loads(config.to_json_best_effort()),
    "data": {"rows": len(rows), "crc": zlib.crc32(np.ascontiguousarray(rows).data)},
    "identity": dict(identity),
  }


def flat(config: ConfigDict) -> dict:
  """{"optimizer.lr": 0.001, ...}: every key of a config, as plain data."""
  return _flat(json.loads(config.to_json_best_effort()))


def _flat(config: Mapping, prefix: str = "") -> dict:
  items: dict = {}
  for name, value in config.items():
    items |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
  return items


def refuse_renamed(config: ConfigDict) -> None:
  """Raises `InversionViewError` with the new name if a key of the config had another name in version 0.1."""
  storage.refuse_renamed(flat(config))


def modernized(about: dict) -> dict:
  """The description of a checkpoint with today's names of config keys and arrays; one of version 0.1 has some old ones."""
  config: dict = {}
  for key, value in _flat(about["config"]).items():
    *parents, last = storage.RENAMED_CONFIG_KEYS.get(key, key).split(".")
    node = config
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  arrays = {
    name: {storage.renamed_parameter(path): value for path, value in about[name].items()}
    for name in ("shapes", "sums")
    if name in about
  }
  return {**about, "config": config, **arrays}


def renamed_tree(tree: Any, names: Mapping[str, str]) -> Any:
  """The same state with other keys in its dicts, at any depth of dicts, tuples, lists and dataclasses."""
  if isinstance(tree, dict):
    return {names.get(key, key): renamed_tree(value, names) for key, value in tree.items()}
  if isinstance(tree, tuple) and hasattr(tree, "_fields"):
    return type(tree)(*(renamed_tree(value, names) for value in tree))
  if isinstance(tree, tuple | list):
    return type(tree)(renamed_tree(value, names) for value in tree)
  if dataclasses.is_dataclass(tree) and not isinstance(tree, type | jax.ShapeDtypeStruct):
    fields = {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}
    return dataclasses.replace(tree, **{name: renamed_tree(value, names) for name, value in fields.items()})
  return tree


def refuse_other(
  saved: dict, config: ConfigDict, folder: object, same_rates: Callable[[dict], bool] | None = None
) -> None:
  """Raises `InversionViewError` with the first config key that the saved state depends on and that has another value in this run.

  Args:
    saved: description of the checkpoint.
    config: of this run.
    folder: named in the error.
    same_rates: (description of the checkpoint) -> whether its steps had the learning rates of this config, to which `steps` may belong.
  """
  there, here = _flat(saved["config"]), flat(config)
  absent = object()
  different = [key for key in sorted({*there, *here}) if there.get(key, absent) != here.get(key, absent)]
  refused = [key for key in different if not _is_free(key)]
  if not refused and "steps" in different and same_rates is not None and not same_rates(saved):
    refused = ["steps"]
  if refused:
    key = refused[0]
    was, now = (f"{x[key]!r}" if key in x else "absent" for x in (there, here))
    more = f" (and {len(refused) - 1} more: {', '.join(refused[1:6])})" if refused[1:] else ""
    raise InversionViewError(
      f"config key {key} is {now}, but the run in {folder} was trained with {was}{more}: use that value to resume, "
      "or another --workdir to start anew"
    )


def _is_free(key: str) -> bool:
  return any(key == free or key.startswith(f"{free}.") for free in FREE)


def refuse_other_inputs(saved: dict, mine: dict, folder: object) -> None:
  """Raises `InversionViewError` if the checkpoint's training inputs or target are not those of this run, by their descriptions."""
  for name, what in (("data", "training inputs"), ("identity", "target")):
    if saved[name] != mine[name]:
      raise InversionViewError(
        f"the {what} of the run in {folder} were others ({saved[name]} there, {mine[name]} here): use another --workdir to start anew"
      )


def shapes(tree: Any) -> dict[str, list[int]]:
  """{"params/layer/kernel": [4, 4], ...}: the shape of every array by its path."""
  return {sharding.path_name(path): list(x.shape) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def difference(there: dict, here: dict) -> str:
  """The first array whose name or shape in a checkpoint is not that of a run, by their `shapes`; "" if there is none."""
  different = [name for name in there | here if there.get(name) != here.get(name)]
  if not different:
    return ""
  # A parameter rather than one of its moments: its name is clearer.
  name = min(different, key=lambda name: (not name.startswith("params/"), name))
  forms = ("absent" if name not in tree else f"of shape {tuple(tree[name])}" for tree in (there, here))
  return "{} is {} there and {} here".format(name, *forms)
