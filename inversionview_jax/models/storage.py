"""Finished models as safetensors + JSON (`training.checkpoints` has the training state). No pickle is ever read or written.

A finished model is a folder with `model.safetensors` (float32 parameters, named by their path in the tree) and `model.json`
(what they are: kind, configuration, tokenizer, where they came from). Both appear whole or not at all.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax
import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_is_file, make_folder, read_json, write_whole

FORMAT_VERSION = 1

# Names of version 0.1 -> today's. Files with the old names are read through these tables; a config with an old key is refused.
RENAMED_CONFIG_KEYS = {
  "bag": "token_count_loss",
  "start.renew": "start.reinit_tokens",
  "start.stir": "start.qk_noise_std",
  "target.start.renew": "target.start.reinit_tokens",
  "target.start.stir": "target.start.qk_noise_std",
}
RENAMED_EXPERIMENT_KEYS = {"places": "addresses"}  # of each of a config's `experiments`
RENAMED_DESCRIPTION_KEYS = {"bag": "count_classes"}  # of model.json
RENAMED_PARAMETERS = {"bag": "count_head"}  # a part of a parameter's path
COMPUTE_KEYS = (
  "dtype",
  "remat",
  "quick",
)  # of a transformer's "config": how version 0.1 computed it (`config.Compute`), no part of it


def renamed_parameter(name: str) -> str:
  """Today's name of a parameter: "params/bag/kernel" -> "params/count_head/kernel"."""
  return "/".join(RENAMED_PARAMETERS.get(part, part) for part in name.split("/"))


def refuse_renamed(keys: Iterable[str]) -> None:
  """Raises `InversionViewError` with the new name if one of these dotted config keys had another name in version 0.1."""
  for key in keys:
    renamed, (parent, _, name) = RENAMED_CONFIG_KEYS.get(key), key.rpartition(".")
    if parent.startswith("experiments.") and name in RENAMED_EXPERIMENT_KEYS:
      renamed = f"{parent}.{RENAMED_EXPERIMENT_KEYS[name]}"
    if renamed:
      raise InversionViewError(f"config key {key} is called {renamed} since version 0.2; use that name")


def flatten(tree) -> dict[str, np.ndarray]:
  """A pytree of nested dicts -> {"blocks_0/attn/q/kernel": float32 array}."""
  flat = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
    flat["/".join(str(key.key) for key in path)] = np.asarray(leaf)
  return flat


def unflatten(flat: dict) -> dict:
  """The inverse of `flatten`."""
  tree: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = leaf
  return tree


class Fingerprint:
  """A short name for a model whose parts come one by one: 16 hex digits of a SHA-256.

  Over its configuration and its parameters' names, shapes and bytes; parts must come in the order of their names.
  """

  def __init__(self, config: dict):
    self._digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())

  def add(self, part: str, tree) -> None:
    """Adds the part of this name, an array or nested dicts of arrays."""
    for name, leaf in sorted(flatten({part: tree}).items()):
      self._digest.update(f"{name}{leaf.shape}{leaf.dtype}".encode())
      self._digest.update(np.ascontiguousarray(leaf))  # type: ignore[arg-type]

  def hex(self) -> str:
    return self._digest.hexdigest()[:16]


def fingerprint(tree, config: dict) -> str:
  """The `Fingerprint` of nested dicts of parameters."""
  digest = Fingerprint(config)
  for part in sorted(tree):
    digest.add(part, tree[part])
  return digest.hex()


def save_model(folder: str | os.PathLike, params, description: dict) -> None:
  """Writes a finished model.

  Args:
    folder: made if it is not there.
    params: nested dicts of arrays.
    description: plain data about the parameters, with the module's "config"; `format_version` and `fingerprint` are added.
  """
  import safetensors.numpy

  folder = make_folder(folder)
  flat = {name: np.ascontiguousarray(leaf) for name, leaf in flatten(params).items()}
  write_whole(folder / "model.safetensors", safetensors.numpy.save(flat))
  # The description last: a folder with a model.json is a whole model.
  described = {
    "format_version": FORMAT_VERSION,
    "fingerprint": fingerprint(params, description["config"]),
    **description,
  }
  write_whole(folder / "model.json", json.dumps(described, indent=1) + "\n")


def read_description(folder: str | os.PathLike) -> dict:
  """The `model.json` of a finished model; raises `InversionViewError` if there is none or it cannot be read."""
  path = pathlib.Path(folder) / "model.json"
  if not path.exists():
    raise InversionViewError(f"no model in {folder}: {path.name} is missing")
  description = read_json(path, "the file is damaged or not a model description")
  if not isinstance(description, dict) or description.get("format_version") != FORMAT_VERSION:
    version = description.get("format_version") if isinstance(description, dict) else None
    raise InversionViewError(
      f"{path} is of format version {values.brief(version)}; this version of the package reads {FORMAT_VERSION}"
    )
  return {RENAMED_DESCRIPTION_KEYS.get(key, key): value for key, value in description.items()}


def load_model(folder: str | os.PathLike, expected=None) -> tuple[dict, dict]:
  """Reads a finished model.

  Args:
    folder: as given to `save_model`.
    expected: a function from the description and the names of the parameters to a pytree of shapes that these must have, or None.

  Returns:
    ``(params, description)``, the parameters as NumPy arrays.

  Raises:
    InversionViewError: missing, truncated or corrupt files, parameters of other names, shapes or content than described, or numbers that are
      not finite.
  """
  description = read_description(folder)
  path = pathlib.Path(folder) / "model.safetensors"
  stored = read_safetensors(path)
  flat = {renamed_parameter(name): leaf for name, leaf in stored.items()}
  if expected is not None:
    check_shapes(flat, _expected(expected, description, frozenset(flat), path.with_name("model.json")), path)
  if fingerprint(unflatten(stored), description.get("config", {})) != description.get("fingerprint"):
    raise InversionViewError(
      f"{folder} is damaged: model.safetensors and model.json do not belong together (the fingerprint differs)"
    )
  for name, leaf in flat.items():
    refuse_not_finite(leaf, f"{path}: parameter {name}")
  return unflatten(flat), description


def _expected(expected: Callable, description: dict, names: frozenset[str], path: pathlib.Path) -> Any:
  """The shapes that `expected` returns; an error names the file, also one of whatever is made from damaged sizes."""
  try:
    return expected(description, names)
  except InversionViewError as error:
    raise InversionViewError(f"{path}: {error}") from None
  except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
    reason = next(iter(str(error).splitlines()), "") or repr(error)
    raise InversionViewError(f"{path} describes no model that this version knows: {reason}") from None


def refuse_more_layers(layers: int, names: Collection[str]) -> None:
  """Raises `InversionViewError` if a model has more layers than there are parameters, before something is made for each layer."""
  if layers > len(names):
    raise InversionViewError(f"n_layers = {layers:,} is more than there are parameters, {len(names):,}")


def refuse_not_finite(array: np.ndarray, name: str) -> None:
  """Raises `InversionViewError` naming an array of weights that holds NaN or an infinity, from which every number would be NaN."""
  with np.errstate(all="ignore"):
    finite = np.isfinite(array.sum(dtype=np.float64))  # finite float32 numbers have a finite sum; one pass, no copy
  if not finite:
    count = int(np.sum(~np.isfinite(array)))
    raise InversionViewError(
      f"{name} holds {count:,} of {array.size:,} numbers that are not finite (NaN or infinite): the weights are damaged, or training diverged"
    )


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """All tensors of a safetensors file; raises `InversionViewError` for a missing, truncated or corrupt one."""
  import safetensors
  import safetensors.numpy

  check_is_file(path)
  try:
    return safetensors.numpy.load_file(path)
  except FileNotFoundError:
    raise InversionViewError(f"no model in {path.parent}: {path.name} is missing") from None
  except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
    raise InversionViewError(f"cannot read {path}: truncated or corrupt ({error})") from None


def check_shapes(flat: dict[str, np.ndarray], expected, path) -> None:
  """Raises `InversionViewError` naming the first parameter whose name or shape is not the expected one."""
  shapes = {
    "/".join(str(key.key) for key in key_path): tuple(leaf.shape)
    for key_path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]
  }
  for name in sorted(set(shapes) | set(flat)):
    if name not in flat or name not in shapes:
      raise InversionViewError(
        f"{path}: parameter {name} is {'missing' if name not in flat else 'not part of this model'}"
      )
    if tuple(flat[name].shape) != shapes[name]:
      raise InversionViewError(f"{path}: parameter {name} has shape {tuple(flat[name].shape)}, expected {shapes[name]}")
