"""References to checkpoints that stay where they are.

A reader of a language target does not carry its weights: `target/reference.json` beside the decoder names the checkpoint and how it is loaded.
"""

import functools
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any, cast

import jax

from inversionview_jax import tasks, values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, path_of, read_json, write_whole
from inversionview_jax.pretrained import hub
from inversionview_jax.targets.loading import load_checkpoint, locate
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks.tokenizers import PartTokenizer

FILE = "reference.json"
FORMAT_VERSION = 1
_FIELDS: dict[str, Callable[[str, Any], Any]] = {
  "path": values.text,
  "layers": values.optional(functools.partial(values.whole, low=1, high=10_000)),
  "convention": values.text,
  "dtype": values.text,
  "fingerprint": values.text,
}


def write_reference(folder: str | os.PathLike, source: str | os.PathLike, target: Target) -> None:
  """Writes where a target's checkpoint is and how it was loaded, for `load_reference`."""
  reference = {
    "format_version": FORMAT_VERSION,
    "path": target.source or _relative_to_home(path_of(source).resolve()),
    "layers": None if "ln_f" in target.params else target.config.n_layers,
    "convention": target.convention,
    "dtype": target.compute.dtype,
    "fingerprint": target.fingerprint,
  }
  if target.family:
    reference["family"] = target.family
  if target.ignored_config_keys:
    reference["ignore_config_keys"] = list(target.ignored_config_keys)
  write_whole(make_folder(folder) / FILE, json.dumps(reference, indent=1) + "\n")


def _relative_to_home(path: pathlib.Path) -> str:
  """With "~" for the home folder, so that a reader of a model there can be handed on."""
  home = pathlib.Path.home()
  return str(pathlib.Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def read_reference(folder: str | os.PathLike) -> dict | None:
  """What `write_reference` wrote, or None if there is none; raises `InversionViewError` if it cannot be read."""
  path = path_of(folder) / FILE
  if not path.exists():
    return None
  try:
    reference = read_json(path)
  except InversionViewError as error:
    raise InversionViewError(f"{path} is damaged: {error}") from None
  if (
    not isinstance(reference, dict)
    or reference.get("format_version") != FORMAT_VERSION
    or not set(reference) >= set(_FIELDS)
  ):
    raise InversionViewError(f"{path} is damaged, or of another version of this package")
  for name, check in _FIELDS.items():
    check(f"{path}: {name}", reference[name])
  values.optional(values.text)(f"{path}: family", reference.get("family"))
  keys = functools.partial(values.sequence, check=values.text, most=1000)
  values.optional(keys)(f"{path}: ignore_config_keys", reference.get("ignore_config_keys"))
  return reference


def load_reference(
  folder: str | os.PathLike,
  task: tasks.Task,
  path: str | os.PathLike | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Target:
  """The target that a reference names, over the tokens of `task`.

  Args:
    folder: with `reference.json`.
    task: whose tokens.
    path: where the checkpoint is now, or its id on the Hugging Face Hub; by default where it was, of a model of the Hub the same revision.
    mesh: see `load_target`.

  Raises:
    InversionViewError: it is not there any more, or is another one.
  """
  reference = read_reference(folder)
  if reference is None:
    raise InversionViewError(f"{folder} does not name the checkpoint that was read: {FILE} is missing")
  source = path or reference["path"]
  if not path_of(source).exists() and hub.parse(os.fspath(source)) is None:
    raise InversionViewError(
      f"the checkpoint this reader reads is not at {path_of(source)} any more; give its path with --target"
    )
  target = load_checkpoint(
    locate(source, shipped=False),
    reference["convention"],
    cast(PartTokenizer, task.tokenizer).base,
    reference["dtype"],
    reference["layers"],
    mesh,
    reference.get("family"),
    own_tokenizer=True,  # of this checkpoint, by the fingerprint below
    ignore_config_keys=tuple(reference.get("ignore_config_keys") or ()),
  ).for_task(task)
  if target.fingerprint != reference["fingerprint"]:
    raise InversionViewError(
      f"{source} is not the checkpoint that this reader was trained on ({target.fingerprint} instead of {reference['fingerprint']})"
    )
  return target
