"""References to checkpoints that stay where they are.

A reader of a language target does not carry its weights: `target/reference.json` beside the decoder names the checkpoint and how it is loaded.
"""

import json
import os
import pathlib
from typing import cast

import jax

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole
from inversionview_jax.targets.loading import load_checkpoint
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks.tokenizers import PartTokenizer

FILE = "reference.json"
FORMAT_VERSION = 1
_FIELDS = {"path", "layers", "convention", "dtype", "fingerprint"}


def write_reference(folder: str | os.PathLike, source: str | os.PathLike, target: Target) -> None:
  """Writes where a target's checkpoint is and how it was loaded, for `load_reference`."""
  reference = {
    "format_version": FORMAT_VERSION,
    "path": _relative_to_home(pathlib.Path(source).expanduser().resolve()),
    "layers": None if target.has_logits else target.config.n_layers,
    "convention": target.convention,
    "dtype": target.compute.dtype,
    "fingerprint": target.fingerprint,
  }
  if target.family:
    reference["family"] = target.family
  write_whole(make_folder(folder) / FILE, json.dumps(reference, indent=1) + "\n")


def _relative_to_home(path: pathlib.Path) -> str:
  """With "~" for the home folder, so that a reader of a model there can be handed on."""
  home = pathlib.Path.home()
  return str(pathlib.Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def read_reference(folder: str | os.PathLike) -> dict | None:
  """What `write_reference` wrote, or None if there is none; raises `InversionViewError` if it cannot be read."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return None
  try:
    reference = json.loads(path.read_text())
    if reference["format_version"] == FORMAT_VERSION and set(reference) >= _FIELDS:
      return reference
  except (OSError, ValueError, KeyError, TypeError):
    pass
  raise InversionViewError(f"{path} is damaged, or of another version of this package")


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
    path: where the checkpoint is now; by default where it was.
    mesh: see `load_target`.

  Raises:
    InversionViewError: it is not there any more, or is another one.
  """
  reference = read_reference(folder)
  if reference is None:
    raise InversionViewError(f"{folder} does not name the checkpoint that was read: {FILE} is missing")
  source = pathlib.Path(path or reference["path"]).expanduser()
  if not source.exists():
    raise InversionViewError(
      f"the checkpoint this reader reads is not at {source} any more; give its path with --target"
    )
  target = load_checkpoint(
    source,
    reference["convention"],
    cast(PartTokenizer, task.tokenizer).base,
    reference["dtype"],
    reference["layers"],
    mesh,
    reference.get("family"),
    own_tokenizer=True,  # of this checkpoint, by the fingerprint below
  ).for_task(task)
  if target.fingerprint != reference["fingerprint"]:
    raise InversionViewError(
      f"{source} is not the checkpoint that this reader was trained on ({target.fingerprint} instead of {reference['fingerprint']})"
    )
  return target
