"""Warm start of a decoder: from a language model (paper: GPT-2 medium for factual recall), or from a finished decoder.

A language model gives the decoder its transformer, over the task's tokens; the activation encoder in front of it is random. A finished
decoder gives all of its parameters.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import pretrained
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of
from inversionview_jax.models import storage
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import hub
from inversionview_jax.targets import Target, shipped_folder
from inversionview_jax.tasks import Task, tokenizers
from inversionview_jax.training import token_counts


def load(
  source: str | None, task: Task, target: Target, model: ConfigDict | dict
) -> "LanguageModelStart | DecoderStart | None":
  """The warm start of `init_from`.

  Args:
    source: a Hugging Face folder, GGUF file or id with the target's tokenizer; or the folder of a decoder or a reader of this package, or the
      name of a shipped one; "" or None: none.
    task: whose tokens the decoder writes.
    target: whose activations it reads.
    model: `config.model`; a language model has its own shape, so only dropout may be set for it.

  Raises:
    InversionViewError: nothing there, another tokenizer or target, or a shape in `model` that a language model would not have.
  """
  if not source:
    return None
  folder = path_of(source)
  if not folder.exists() and (shipped := shipped_folder(source)):
    folder = shipped
  if not folder.exists() and hub.parse(source):
    folder = hub.snapshot(source).folder
  if not folder.exists():
    raise InversionViewError(f"init_from = {source!r}: no such folder or file")
  for where in (folder, folder / "decoder"):
    if (where / "model.json").exists() and storage.read_description(where).get("kind") == "decoder":
      return DecoderStart(where, task, target, model)
  return LanguageModelStart(folder, task, model)


class LanguageModelStart:
  """Someone else's checkpoint as the decoder's transformer.

  Attributes:
    transformer: its configuration, over the task's tokens.
  """

  def __init__(self, path: pathlib.Path, task: Task, model: ConfigDict | dict):
    source = f"init_from = {str(path)!r}"
    if shape := sorted(name for name in model if not name.startswith("dropout_")):
      raise InversionViewError(
        f"{source} brings its own shape, so model.{shape[0]} = {model[shape[0]]} would not be used; leave it out of the config"
      )
    self._checkpoint, self._task = pretrained.open_checkpoint(path), task
    t, own_config = task.tokenizer, self._checkpoint.config
    if not isinstance(t, tokenizers.PartTokenizer):
      raise InversionViewError(f"{source} is a language model; the task {task.name} has characters for tokens")
    own, reason = pretrained.tokenizer_of(path, self._checkpoint)
    self._tokenizer = t
    if own is None:
      raise InversionViewError(reason)
    if own.describe() != t.base.describe():
      raise InversionViewError(
        f"{source} has another tokenizer ({tokenizers.brief(own.describe())}) than the target "
        f"({tokenizers.brief(t.base.describe())}); a decoder writes in the target's tokens"
      )
    if task.length > own_config.n_ctx:
      raise InversionViewError(f"{source} has a context of {own_config.n_ctx} tokens; texts have {task.length}")
    self.transformer = dataclasses.replace(
      own_config, vocab_size=t.vocab_size, n_ctx=task.length, **dict(model.items())
    )

  def parameters(self, config: DecoderConfig) -> dict:
    """{"transformer": nested dicts of float32 arrays}; EOS starts as that of the language model, PAD as zeros."""
    del config
    t = self._tokenizer
    rows = np.append(t.base_ids, t.base.eos_id)
    parts: dict[str, Any] = {}
    for name in self._checkpoint.parts:
      part = self._checkpoint.parts[name]
      if name == "embed":
        part = np.pad(part[rows], ((0, 1), (0, 0)))
      elif name == "pos_embed":
        part = part[: self._task.length]
      elif name == "unembed":
        part = {key: np.pad(x[..., rows], ((0, 0),) * (x.ndim - 1) + ((0, 1),)) for key, x in part.items()}
      parts[name] = part
    return {"transformer": parts}

  def statistics(self, config: DecoderConfig) -> None:
    """None: the statistics of the activations are computed anew."""
    del config


class DecoderStart:
  """A finished decoder of the same target, whose training continues.

  Attributes:
    transformer: the configuration of its transformer, as the config describes it.
  """

  def __init__(self, folder: pathlib.Path, task: Task, target: Target, model: ConfigDict | dict):
    self._folder = folder
    self._variables, description = storage.load_model(folder)
    own = description["target"]
    if (own["fingerprint"], own["convention"]) != (target.fingerprint, target.convention):
      raise InversionViewError(
        f"init_from = {str(folder)!r} was trained on another target ({own['name']}, {own['fingerprint']}, {own['convention']}) than this one "
        f"({target.name}, {target.fingerprint}, {target.convention})"
      )
    if description["tokenizer"] != task.tokenizer.describe():
      raise InversionViewError(f"init_from = {str(folder)!r} writes in other tokens than the task {task.name}")
    self._config = DecoderConfig.from_dict(description["config"])
    self.transformer = TransformerConfig(vocab_size=task.tokenizer.vocab_size, n_ctx=task.length, **model)

  def parameters(self, config: DecoderConfig) -> dict:
    """All of the decoder's parameters, with the head of its token-count loss if it has one.

    `site_inputs`, where only the config has them, are zeros, which leave the decoder as it was.
    """
    params = self._variables["params"]
    if token_counts.HEAD in self._variables:
      params = {**params, token_counts.HEAD: self._variables[token_counts.HEAD]}
    if config.site_inputs and not self._config.site_inputs:
      zeros = np.zeros((len(config.sites), config.d_activation, config.encoder_width), np.float32)
      params = {**params, "encoder": {**params["encoder"], "site_inputs": zeros}}
    return params

  def statistics(self, config: DecoderConfig) -> dict:
    """The statistics that the decoder was trained with; raises `InversionViewError` if the config describes another decoder."""
    config = dataclasses.replace(config, transformer=config.transformer.for_inference())
    for name, own in dataclasses.asdict(self._config).items():
      wanted = dataclasses.asdict(config)[name]
      if name == "transformer":
        name, own, wanted = next(
          ((f"model.{key}", own[key], wanted[key]) for key in own if own[key] != wanted[key]), (name, None, None)
        )
      if own != wanted and (name, own) != ("site_inputs", False):
        raise InversionViewError(
          f"init_from = {str(self._folder)!r} has {name} = {own}, the config {wanted}; set the same"
        )
    return self._variables.get("stats", {}).get("encoder", {})
