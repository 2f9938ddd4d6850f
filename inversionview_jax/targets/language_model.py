"""Targets that stay where they are: checkpoints of other people, of which a task needs some tokens and a reader some layers.

A reader of such a target does not carry its weights: `target/reference.json` beside the decoder names the checkpoint and how it is loaded.
"""

import json
import os
import pathlib

from inversionview_jax import pretrained, sites, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole
from inversionview_jax.targets.target import Target, load_target

FILE = "reference.json"
FORMAT_VERSION = 1


def load(
  source: str | os.PathLike,
  task: str,
  settings: dict | None = None,
  *,
  names=None,
  convention: str | None = None,
  dtype: str | None = None,
  mesh=None,
) -> tuple[Target, tasks.Task]:
  """A task over the texts of a language model, and that model over the task's tokens.

  Args:
    source: a Hugging Face folder or a GGUF file; "~" is the home folder.
    task: name of a language task.
    settings: of the task.
    names: sites that are read, in either notation; the layers behind them are neither loaded nor run. (): the task's own. None: all layers,
      with logits.
    convention, dtype, mesh: see `load_target`.

  Raises:
    InversionViewError: no such checkpoint, no tokenizer with it, an unknown site or setting.
  """
  path = pathlib.Path(source).expanduser()
  if not path.exists():
    raise InversionViewError(
      f"no checkpoint {str(source)!r}: give a Hugging Face folder or a .gguf file (--target, or target.path in the config)"
    )
  found = pretrained.open_checkpoint(path)
  base, why = pretrained.tokenizer_of(path, found)
  if base is None:
    raise InversionViewError(why)
  made = tasks.get(task, base, settings)
  if made.length > found.config.n_ctx:
    raise InversionViewError(
      f"the task {task} has texts of {made.length} tokens, longer than the context of {path.name}, {found.config.n_ctx}"
    )
  layers = None if names is None else layers_of(names or made.default_sites(*_size(found.config)), found.config)
  return load_target(path, convention, base, dtype, layers, mesh).of(made), made


def load_for(
  name: str,
  config=None,
  source: str | os.PathLike | None = None,
  *,
  convention: str | None = None,
  names=None,
  mesh=None,
) -> tuple[Target, tasks.Task]:
  """`load` as a config says.

  Args:
    name: of the task.
    config: a `ConfigDict` with, all optional, `inputs` (the task's settings), `target.path`, `.convention` and `.dtype`, and
      `compute.target_dtype`; or None.
    source, convention: in place of the config's.
    names, mesh: see `load`.

  Raises:
    InversionViewError: as `load` does, and where nobody says which checkpoint.
  """
  said = {} if config is None else config.to_dict()
  of = said.get("target") or {}
  source = source or of.get("path")
  if not source:
    raise InversionViewError(
      f"the task {name} is about a language model: give its Hugging Face folder or .gguf file with --target, or set target.path"
    )
  return load(
    source,
    name,
    said.get("inputs"),
    names=names,
    convention=convention or of.get("convention") or None,
    dtype=of.get("dtype") or (said.get("compute") or {}).get("target_dtype") or None,
    mesh=mesh,
  )


def layers_of(names, config) -> int:
  """How many layers must run for these sites; at least 1."""
  depths = [1]
  for name in names:
    site = sites.resolve(name, *_size(config), sites.VECTOR_KINDS)
    depths.append(0 if site.layer is None else site.layer + (site.kind != "pre"))
  return max(depths)


def _size(config) -> tuple[int, int]:
  return config.n_layers, config.n_heads


def write(folder: str | os.PathLike, source: str | os.PathLike, target: Target) -> None:
  """Writes where a target is and how it was loaded, for `read`."""
  said = {
    "format_version": FORMAT_VERSION,
    "path": _shown(pathlib.Path(source).expanduser().resolve()),
    "layers": None if target.whole else target.config.n_layers,
    "convention": target.convention,
    "dtype": target.config.dtype,
    "fingerprint": target.fingerprint,
  }
  write_whole(make_folder(folder) / FILE, json.dumps(said, indent=1) + "\n")


def _shown(path: pathlib.Path) -> str:
  """With "~" for the home folder, so that a reader of a model that lies there can be handed on."""
  home = pathlib.Path.home()
  return str(pathlib.Path("~") / path.relative_to(home)) if path.is_relative_to(home) else str(path)


def said_in(folder: str | os.PathLike) -> dict | None:
  """What `write` wrote, or None if it wrote nothing there; raises `InversionViewError` if it cannot be read."""
  path = pathlib.Path(folder) / FILE
  if not path.exists():
    return None
  try:
    said = json.loads(path.read_text())
    if said["format_version"] == FORMAT_VERSION and {"path", "layers", "convention", "dtype", "fingerprint"} <= set(
      said
    ):
      return said
  except (OSError, ValueError, KeyError, TypeError):
    pass
  raise InversionViewError(f"{path} is damaged, or of another version of this package")


def read(folder: str | os.PathLike, task: tasks.Task, path: str | os.PathLike | None = None, mesh=None) -> Target:
  """The target that `write` described, over the tokens of `task`.

  Args:
    folder: with `reference.json`.
    task: whose tokens.
    path: where the checkpoint is now; by default where it was.
    mesh: see `load_target`.

  Raises:
    InversionViewError: it is not there any more, or is another one.
  """
  said = said_in(folder)
  if said is None:
    raise InversionViewError(f"{folder} does not say which checkpoint was read: {FILE} is missing")
  source = pathlib.Path(path or said["path"]).expanduser()
  if not source.exists():
    raise InversionViewError(
      f"the checkpoint this reader reads is not at {source} any more; say where it is with --target"
    )
  target = load_target(source, said["convention"], task.tokenizer.base, said["dtype"], said["layers"], mesh).of(task)
  if target.fingerprint != said["fingerprint"]:
    raise InversionViewError(
      f"{source} is not the checkpoint that this reader was trained on ({target.fingerprint} instead of {said['fingerprint']})"
    )
  return target
