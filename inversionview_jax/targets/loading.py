"""Loading targets: shipped ones, folders written by this package, Hugging Face folders and ids, and GGUF files."""

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from inversionview_jax import pretrained, tasks, values
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of, shipped_folder, shipped_names
from inversionview_jax.models import storage
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.pretrained import hub
from inversionview_jax.targets.compiled import load_program
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks import tokenizers
from inversionview_jax.tasks.programs import is_program


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a target is.

  Attributes:
    path: of its folder or file.
    name: for messages and results.
    source: OWNER/NAME@COMMIT of a model of the Hugging Face Hub, otherwise "".
  """

  path: pathlib.Path
  name: str
  source: str = ""


def locate(name: str | os.PathLike, shipped: bool = True) -> Place:
  """Where the target of this name is: the first that there is of a folder or file, a shipped model, and a model of the Hugging Face Hub.

  Args:
    name: a path, the name of a shipped model, or an id: OWNER/NAME, OWNER/NAME@REVISION, or one of `hub.CANONICAL`. Only ids of the Hub are
      looked for on the network.
    shipped: whether those that ship count, which are no language models.

  Raises:
    InversionViewError: nothing of this name, or a model of the Hub that is not in the local cache and cannot be downloaded.
  """
  text = os.fspath(name)
  path = path_of(name)
  if path.exists():
    return Place(path, path.stem if path.is_file() else path.name)
  if shipped and (folder := shipped_folder(text)):
    return Place(folder, text)
  if isinstance(name, str) and hub.parse(text):
    found = hub.snapshot(text)
    return Place(found.folder, found.repository.partition("/")[2] or found.repository, found.id)
  if not shipped:
    raise InversionViewError(
      f"no checkpoint {text!r}: give a Hugging Face folder, a .gguf file, or the id of a model of the Hugging Face Hub, OWNER/NAME (--target, or "
      "target.path in the config)"
    )
  near = difflib.get_close_matches(text, [*shipped_names(), *hub.CANONICAL], n=2)
  hint = f"; did you mean {' or '.join(near)}?" if near else ""
  raise InversionViewError(
    f"no target {text!r}: not a folder or a .gguf file, shipped are only {', '.join(shipped_names())}, and the id of a model of the "
    f"Hugging Face Hub is OWNER/NAME{hint}"
  )


def load_target(
  name: str | os.PathLike,
  convention: str | None = None,
  tokenizer: Any = None,
  dtype: str | None = None,
  layers: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  family: str | None = None,
  ignore_config_keys: Sequence[str] = (),
  bos: bool | str = True,
) -> Target:
  """Loads a target model.

  Args:
    name: a folder or file, a shipped model or the id of one on the Hugging Face Hub, in this order (`locate`): a workdir or folder written
      by this package; a Hugging Face folder (config.json and safetensors, whole or in shards) of one of the families of
      `pretrained/README.md`, or a GGUF file; "addition" or "counting"; "gpt2", "EleutherAI/pythia-70m", "EleutherAI/pythia-70m@step1000".
    convention: "centered" (what published distances are measured on; models with LayerNorm only) or "raw"; see `pretrained.conventions`.
      None takes "centered" for LayerNorm and "raw" for RMSNorm.
    tokenizer: in place of the checkpoint's own, or where it has none: a tokenizer of `transformers` or `tokenizers`, one of this package, the
      path of a folder or tokenizer.json, or the name of a task, for its tokenizer.
    dtype: of parameters on the device and of what is computed with them: "float32" (what None means for checkpoints) or "bfloat16".
    layers: load and run the first so many only, which is all that reading their activations takes; there are no logits then.
    mesh: as for `Target.from_raw`.
    family: of a Hugging Face folder of another model type: the user's own `pretrained.Family`, as ``package.module:NAME``.
    ignore_config_keys: attributes of config.json that are taken as left out; only for those that do not change the forward pass.
    bos: whether texts are run behind a BOS; "own": as the checkpoint's own tokenizer does it (`add_bos_token`). It is not kept with a reader.

  Raises:
    InversionViewError: no such model, no way to download it, files missing or damaged, an architecture or attribute that is not handled, a
      tokenizer that is not the model's, or a convention that the model does not have.
  """
  parallel.use_compilation_cache()
  if is_program(name):
    return _program(str(name), convention, tokenizer, dtype, layers, mesh, family)
  task = ""
  if isinstance(tokenizer, str) and not _is_path(tokenizer):
    task, tokenizer = tokenizer, tasks.get(tokenizer).tokenizer
  place = locate(name)
  folder = place.path
  of_checkpoint = (convention, tokenizer, dtype, layers, mesh, family, task, False, ignore_config_keys, bos)
  if folder.is_file():
    return load_checkpoint(place, *of_checkpoint)
  if (folder / "target" / "model.json").exists():
    folder = folder / "target"
  if not (folder / "model.json").exists():
    return load_checkpoint(dataclasses.replace(place, path=folder), *of_checkpoint)
  if bos is not True:
    raise InversionViewError(f"{folder} is a model of this package, whose texts have a BOS: leave bos= out")
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
  place: Place,
  convention: str | None = None,
  tokenizer: Any = None,
  dtype: str | None = None,
  layers: int | None = None,
  mesh: jax.sharding.Mesh | None = None,
  family: str | None = None,
  task: str = "",
  own_tokenizer: bool = False,
  ignore_config_keys: Sequence[str] = (),
  bos: bool | str = True,
) -> Target:
  """A target from a Hugging Face or TransformerLens folder, or a GGUF file.

  Args:
    place: of it (`locate`).
    convention, tokenizer, dtype, layers, mesh, family, ignore_config_keys, bos: as for `load_target`.
    task: that it is a target of.
    own_tokenizer: whether `tokenizer` is the checkpoint's own, read before.

  Raises:
    InversionViewError: as `load_target`.
  """
  parallel.use_compilation_cache()
  checkpoint = pretrained.open_checkpoint(place.path, family, ignore_config_keys)
  own = own_tokenizer or tokenizer is None
  tokenizer, missing = pretrained.tokenizer_of(place.path, checkpoint, tokenizer)
  tokenizer = pretrained.with_bos(tokenizer, bos, checkpoint)
  parts, config = checkpoint.parts, checkpoint.config
  if pretrained.transformer_lens.is_own(checkpoint.attributes):
    pretrained.transformer_lens.refuse_centered(convention)
    convention = "raw"
    parts, config, tokenizer = pretrained.transformer_lens.fitted(parts, config, checkpoint.attributes, tokenizer)
  parts, config = _first_layers(parts, config, layers)
  target = Target.from_raw(
    parts,
    config,
    tokenizer,
    convention,
    name=place.name,
    task=task,
    dtype=dtype,
    mesh=mesh,
    missing_tokenizer=missing,
    own_tokenizer=own,
  )
  return dataclasses.replace(
    target, family=family or "", source=place.source, ignored_config_keys=tuple(ignore_config_keys)
  )


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
