"""Loading targets: shipped ones, folders written by this package, Hugging Face folders and GGUF files."""

import dataclasses
import importlib.resources
import os
import pathlib
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from inversionview_jax import pretrained, tasks, values
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of
from inversionview_jax.models import storage
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.targets.compiled import load_program
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks import tokenizers
from inversionview_jax.tasks.programs import is_program


def shipped_folder(name: str) -> pathlib.Path | None:
  """The folder of a model that ships with the package, or None."""
  return _shipped() / name if name in shipped_names() else None


def shipped_names() -> list[str]:
  """Names of the models that ship with the package."""
  folder = _shipped()
  return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _shipped() -> pathlib.Path:
  return pathlib.Path(str(importlib.resources.files("inversionview_jax"))) / "shipped"


def load_target(
  name: str | os.PathLike,
  convention: str | None = None,
  tokenizer: Any = None,
  dtype: str | None = None,
  layers: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  family: str | None = None,
) -> Target:
  """Loads a target model.

  Args:
    name: a shipped model ("addition", "counting"), a workdir or folder written by this package, a Hugging Face folder (config.json and
      safetensors, whole or in shards) of GPT-2, Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma or Gemma 2, or a GGUF file of one; or a RASP
      program that is compiled, such as "tracr:hist" (`tasks.programs.program_named`).
    convention: "centered" (what published distances are measured on; models with LayerNorm only) or "raw"; see `pretrained.conventions`.
      None takes "centered" for LayerNorm and "raw" for RMSNorm.
    tokenizer: in place of the checkpoint's own, or where it has none: a tokenizer of `transformers` or `tokenizers`, one of this package, the
      path of a folder or tokenizer.json, or the name of a task, for its tokenizer.
    dtype: of parameters on the device and of what is computed with them: "float32" (what None means for checkpoints) or "bfloat16".
    layers: load and run the first so many only, which is all that reading their activations takes; there are no logits then.
    mesh: as for `Target.from_raw`.
    family: of a Hugging Face folder of another model type: the user's own `pretrained.Family`, as ``package.module:NAME``.

  Raises:
    InversionViewError: no such model, files missing or damaged, an architecture or attribute that is not handled, a tokenizer that is not
      the model's, or a convention that the model does not have.
  """
  parallel.use_compilation_cache()
  if is_program(name):
    return _program(str(name), convention, tokenizer, dtype, layers, mesh, family)
  task = ""
  if isinstance(tokenizer, str) and not _is_path(tokenizer):
    task, tokenizer = tokenizer, tasks.get(tokenizer).tokenizer
  folder = path_of(name)
  if (shipped := shipped_folder(str(name))) and not folder.is_dir():
    folder = shipped
  if folder.is_file():
    return load_checkpoint(folder, convention, tokenizer, dtype, layers, mesh, family, task)
  if not folder.is_dir():
    raise InversionViewError(
      f"no target {str(name)!r}: not a folder or a .gguf file, and shipped are only: {', '.join(shipped_names())}"
    )
  if (folder / "target" / "model.json").exists():
    folder = folder / "target"
  if not (folder / "model.json").exists():
    return load_checkpoint(folder, convention, tokenizer, dtype, layers, mesh, family, task)
  params, description = storage.load_model(folder, _expected_shapes)
  params, config = _first_layers(params, TransformerConfig.from_dict(description["config"]), layers)
  own = bool(description["tokenizer"])
  if own:
    tokenizer = tokenizers.from_description(description["tokenizer"])
  elif tokenizer is not None:
    tokenizer = pretrained.tokenizer_from(tokenizer, {"vocab_size": config.vocab_size})
  named = description["name"], description["task"]
  compute = Compute(dtype=description["config"].get("dtype", "float32"))  # of a model that version 0.1 trained
  return Target.from_raw(params, config, tokenizer, convention, *named, dtype, mesh, compute=compute, own_tokenizer=own)


def _program(name: str, convention, tokenizer, dtype, layers, mesh, family) -> Target:
  """A compiled program; raises `InversionViewError` for arguments that mean nothing there."""
  if layers is not None or family is not None:
    raise InversionViewError(f"{name} is compiled as a whole: leave layers= and family= out")
  target = load_program(name, convention, dtype, mesh)
  if tokenizer is not None and tokenizer not in (name, target.tokenizer):
    raise InversionViewError(f"{name} has a tokenizer of its own, the program's vocabulary: leave tokenizer= out")
  return target


def _is_path(tokenizer: str) -> bool:
  """Whether a string means files of a tokenizer, and not a task."""
  return tokenizer not in tasks.names() and path_of(tokenizer).exists()


def check_tokenizer(target: Target, task: tasks.Task, source: str | os.PathLike) -> None:
  """Raises `InversionViewError` if the target that came from `source` has another tokenizer than the task."""
  tokenizer = target.require_tokenizer()
  if tokenizer.describe() != task.tokenizer.describe():
    raise InversionViewError(
      f"the target {source} has another tokenizer ({tokenizers.brief(tokenizer.describe())}) than the task "
      f"{task.name} ({tokenizers.brief(task.tokenizer.describe())}); give one that was trained on this task"
    )


def load_checkpoint(
  path: pathlib.Path,
  convention: str | None = None,
  tokenizer: Any = None,
  dtype: str | None = None,
  layers: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  family: str | None = None,
  task: str = "",
  own_tokenizer: bool = False,
) -> Target:
  """A target from a Hugging Face folder or a GGUF file.

  Args:
    path, convention, tokenizer, dtype, layers, mesh, family: as for `load_target`.
    task: that it is a target of.
    own_tokenizer: whether `tokenizer` is the checkpoint's own, read before.

  Raises:
    InversionViewError: as `load_target`.
  """
  parallel.use_compilation_cache()
  checkpoint = pretrained.open_checkpoint(path, family)
  own = own_tokenizer or tokenizer is None
  tokenizer, missing = pretrained.tokenizer_of(path, checkpoint, tokenizer)
  parts, config = _first_layers(checkpoint.parts, checkpoint.config, layers)
  target = Target.from_raw(
    parts,
    config,
    tokenizer,
    convention,
    name=path.stem if checkpoint.gguf else path.name,
    task=task,
    dtype=dtype,
    mesh=mesh,
    missing_tokenizer=missing,
    own_tokenizer=own,
  )
  return dataclasses.replace(target, family=family or "")


def _first_layers(parts, config: TransformerConfig, layers: int | None):
  """The parts and the configuration of the first `layers` of a model; None: of all of it."""
  if layers is None:
    return parts, config
  if not 1 <= layers <= config.n_layers:
    raise InversionViewError(f"layers = {layers} must be from 1 to {config.n_layers}, which the model has")
  return pretrained.FirstLayers(parts, layers), dataclasses.replace(config, n_layers=layers)


_DESCRIPTION = {
  "name": values.text,
  "task": values.text,
  "config": values.mapping,
  "tokenizer": values.optional(values.mapping),
}


def _expected_shapes(description: dict, names: Collection[str]):
  """The parameters' shapes for a model.json; raises `InversionViewError` if it describes no target.

  Args:
    description: of the model.
    names: of the parameters that are there.
  """
  if description.get("kind") != "target":
    raise InversionViewError(f"this is a {values.brief(description.get('kind'))}, not a target model")
  config = TransformerConfig.from_dict(values.fields("model.json", description, _DESCRIPTION)["config"])
  storage.refuse_more_layers(config.n_layers, names)
  module = Transformer(config)
  return jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
