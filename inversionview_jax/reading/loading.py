"""Loading readers: shipped ones, a training's workdir, or a folder with `target/` and `decoder/`."""

import functools
import os
import pathlib
from collections.abc import Callable, Collection
from typing import Any

import jax
from jax.sharding import Mesh

from inversionview_jax import targets, tasks, values
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of
from inversionview_jax.models import decoder, storage
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling.written import written_by
from inversionview_jax.targets import Target
from inversionview_jax.targets.for_task import task_and_target
from inversionview_jax.tasks import Task, tokenizers


def load_reader(
  name: str | os.PathLike, target: Target | str | os.PathLike | None = None, mesh: Mesh | None = None
) -> Reader:
  """Loads a reader.

  Args:
    name: a shipped reader ("addition"), a workdir of `inversionview train`, or a folder with `target/` and `decoder/`.
    target: the target to use instead of the one stored with the reader, or where it is; must be the one the decoder was trained on. A
      reader of a language model names the checkpoint instead of carrying it: give its path here if it was moved.
    mesh: from `parallel.make_mesh`; all devices by default.

  Raises:
    InversionViewError: no such reader, files missing or damaged, or a decoder trained on another target, convention or tokenizer.
  """
  parallel.use_compilation_cache()
  folder = path_of(name)
  if (shipped := targets.shipped_folder(str(name))) and not folder.is_dir():
    folder = shipped
  if not folder.is_dir():
    raise InversionViewError(
      f"no reader {str(name)!r}: not a folder, and shipped are only: {', '.join(shipped_readers())}"
    )
  if not (folder / "decoder" / "model.json").exists():
    workdir = "W" if folder == shipped else folder
    raise InversionViewError(
      f"no reader in {name}: it has no decoder/model.json (shipped readers: {', '.join(shipped_readers())}); "
      f"train one with `inversionview train --workdir {workdir} ...`"
    )
  variables, description = storage.load_model(folder / "decoder", _expected_shapes)
  variables.pop("count_head", None)  # kept for a training that continues from this decoder
  language = tasks.is_language(description["task"])
  task, loaded = task_and_target(
    description["task"],
    folder / "target",
    settings=description.get("task_settings"),
    tokenizer=tokenizers.from_description(description["tokenizer"]) if language else None,
    convention=description["target"]["convention"],
    mesh=mesh if mesh is not None and mesh.shape[parallel.MODEL] > 1 else None,
    moved_to=target,
  )
  if loaded.has_logits:
    task = written_by(task, loaded)
  _check_belongs(description, loaded, task, folder)
  config, fingerprint = DecoderConfig.from_dict(description["config"]), description["fingerprint"]
  return Reader(loaded, task, config, variables, description["name"], mesh, fingerprint)


def shipped_readers() -> list[str]:
  """Names of the readers that come with the package."""
  folders = {name: targets.shipped_folder(name) for name in targets.shipped_names()}
  return [name for name, folder in folders.items() if folder and (folder / "decoder" / "model.json").exists()]


def _check_belongs(description: dict, target: Target, task: Task, folder: pathlib.Path) -> None:
  """Raises `InversionViewError` unless the decoder was trained on this target: distances beside its samples would be meaningless."""
  trained_on = description["target"]
  if trained_on["fingerprint"] != target.fingerprint:
    raise InversionViewError(
      f"the decoder in {folder} was trained on another target ({trained_on['name']}, {trained_on['fingerprint']}) than this one "
      f"({target.name}, {target.fingerprint}); use that target, or train a decoder on this one"
    )
  if trained_on["convention"] != target.convention:
    raise InversionViewError(
      f"the decoder in {folder} was trained under convention {trained_on['convention']!r}, the target is loaded as "
      f"{target.convention!r}; load it with convention={trained_on['convention']!r}"
    )
  for whose, tokenizer in (("the target's", target.tokenizer), ("the task's", task.tokenizer)):
    if tokenizer is None or tokenizer.describe() != description["tokenizer"]:
      raise InversionViewError(
        f"the decoder in {folder} was trained with another tokenizer ({tokenizers.brief(description['tokenizer'])}) than {whose} "
        f"({tokenizers.brief(None if tokenizer is None else tokenizer.describe())}); train a decoder for this one"
      )


_TARGET = {"name": values.text, "fingerprint": values.text, "convention": values.text}
_DESCRIPTION: dict[str, Callable[[str, object], Any]] = {
  "name": values.text,
  "task": values.text,
  "config": values.mapping,
  "tokenizer": values.mapping,
  "target": functools.partial(values.fields, checks=_TARGET),
}
_OPTIONAL = {
  "task_settings": values.optional(values.mapping),
  "count_classes": values.optional(functools.partial(values.whole, low=0, high=1024)),
}


def _expected_shapes(description: dict, names: Collection[str]) -> dict:
  """The parameters that a decoder with this model.json has, as shapes; raises `InversionViewError` for another kind or missing keys.

  Args:
    description: of the model.
    names: of the parameters that are there.
  """
  if description.get("kind") != "decoder":
    raise InversionViewError(f"this is a {values.brief(description.get('kind'))}, not a decoder")
  values.fields("model.json", description, _DESCRIPTION)
  for name, check in _OPTIONAL.items():
    check(f"{name} of model.json", description.get(name))
  config = DecoderConfig.from_dict(description["config"])
  storage.refuse_more_layers(max(config.transformer.n_layers, config.encoder_blocks), names)
  shapes = jax.eval_shape(lambda: decoder.initial(config, jax.random.key(0)))
  if classes := description.get("count_classes"):
    encoding = shapes["params"]["encoder"]["ln_f"]["scale"]
    head = decoder.token_count_head(config, classes)
    shapes["count_head"] = jax.eval_shape(head.init, jax.random.key(0), encoding)["params"]
  return shapes
