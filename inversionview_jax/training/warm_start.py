"""Where a decoder's training starts: from a language model (paper: GPT-2 medium for factual recall), or from a finished decoder.

A language model gives the decoder its transformer, over the task's tokens; the activation encoder in front of it is new. A finished decoder
gives all of it.
"""

import dataclasses
import pathlib

import numpy as np

from inversionview_jax import pretrained
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.targets.target import Target, shipped_folder
from inversionview_jax.tasks import Task, tokenizers


def find(source: str | None, task: Task, target: Target, model):
  """What `init_from` names.

  Args:
    source: a Hugging Face folder or GGUF file with the same tokenizer as the target; or the folder of a decoder or a reader of ours, or the
      name of a shipped one; "" or None: nothing.
    task: whose tokens the decoder writes.
    target: whose activations it reads.
    model: `config.model`; a language model brings its own shape, so only dropout may be set for it.

  Returns:
    None, a `_LanguageModel` or a `_Finished`: both have `transformer`, the configuration, `parameters(config)`, which take the place of fresh ones of
    the same name, and `statistics(config)`.

  Raises:
    InversionViewError: nothing there, another tokenizer or target, or a shape in `model` that a language model would not have.
  """
  if not source:
    return None
  folder = pathlib.Path(source).expanduser()
  if not folder.exists() and shipped_folder(source):
    folder = shipped_folder(source)
  if not folder.exists():
    raise InversionViewError(f"init_from = {source!r}: no such folder or file")
  for where in (folder, folder / "decoder"):
    if (where / "model.json").exists() and storage.read_description(where).get("kind") == "decoder":
      return _Finished(where, task, target, model)
  return _LanguageModel(folder, task, model)


class _LanguageModel:
  """A checkpoint of other people as the decoder's transformer."""

  def __init__(self, path: pathlib.Path, task: Task, model):
    if shape := sorted(name for name in model if not name.startswith("dropout_")):
      raise InversionViewError(
        f"init_from = {str(path)!r} brings its own shape, so model.{shape[0]} = {model[shape[0]]} would not be used; leave it out of the config"
      )
    self._found, self._task = pretrained.open_checkpoint(path), task
    t = task.tokenizer
    if not isinstance(t, tokenizers.PartTokenizer):
      raise InversionViewError(
        f"init_from = {str(path)!r} is a language model; the task {task.name} has characters for tokens"
      )
    own, why = pretrained.tokenizer_of(path, self._found)
    if own is None:
      raise InversionViewError(why)
    if own.describe() != t.base.describe():
      raise InversionViewError(
        f"init_from = {str(path)!r} has another tokenizer ({tokenizers.brief(own.describe())}) than the target "
        f"({tokenizers.brief(t.base.describe())}); a decoder writes in the target's tokens"
      )
    if task.length > self._found.config.n_ctx:
      raise InversionViewError(
        f"init_from = {str(path)!r} has a context of {self._found.config.n_ctx} tokens; texts have {task.length}"
      )
    self.transformer = dataclasses.replace(
      self._found.config, vocab_size=t.vocab_size, n_ctx=task.length, **{name: value for name, value in model.items()}
    )

  def parameters(self, config: DecoderConfig) -> dict:
    """{"transformer": nested dicts of float32 arrays}; EOS starts as that of the model, PAD as zeros."""
    del config
    t = self._task.tokenizer
    rows = np.append(t.base_ids, t.base.eos_id)
    made = {}
    for name in self._found.parts:
      part = self._found.parts[name]
      if name == "embed":
        part = np.pad(part[rows], ((0, 1), (0, 0)))
      elif name == "pos_embed":
        part = part[: self._task.length]
      elif name == "unembed":
        part = {key: np.pad(x[..., rows], ((0, 0),) * (x.ndim - 1) + ((0, 1),)) for key, x in part.items()}
      made[name] = part
    return {"transformer": made}

  def statistics(self, config: DecoderConfig):
    """None: those of the activations are taken anew."""
    del config


class _Finished:
  """A decoder of the same target, to go on with."""

  def __init__(self, folder: pathlib.Path, task: Task, target: Target, model):
    self._folder = folder
    self._variables, said = storage.load_model(folder)
    of = said["target"]
    if (of["fingerprint"], of["convention"]) != (target.fingerprint, target.convention):
      raise InversionViewError(
        f"init_from = {str(folder)!r} was trained on another target ({of['name']}, {of['fingerprint']}, {of['convention']}) than this one "
        f"({target.name}, {target.fingerprint}, {target.convention})"
      )
    if said["tokenizer"] != task.tokenizer.describe():
      raise InversionViewError(f"init_from = {str(folder)!r} writes in other tokens than the task {task.name}")
    self._config = DecoderConfig.from_dict(said["config"])
    self.transformer = TransformerConfig(vocab_size=task.tokenizer.vocab_size, n_ctx=task.length, **model)

  def parameters(self, config: DecoderConfig) -> dict:
    """All of the decoder's parameters, the head of its bag loss if it had one, and `site_inputs` of zeros, which change nothing, where only
    the config has them."""
    params = self._variables["params"]
    if "bag" in self._variables:
      params = {**params, "bag": self._variables["bag"]}
    if config.site_inputs and not self._config.site_inputs:
      own = np.zeros((len(config.sites), config.d_activation, config.encoder_width), np.float32)
      params = {**params, "encoder": {**params["encoder"], "site_inputs": own}}
    return params

  def statistics(self, config: DecoderConfig) -> dict:
    """Those that the decoder was trained with; raises `InversionViewError` if the config describes another decoder."""
    config = dataclasses.replace(config, transformer=config.transformer.for_use())
    for name, own in dataclasses.asdict(self._config).items():
      asked = dataclasses.asdict(config)[name]
      if name == "transformer":
        name, own, asked = next(
          ((f"model.{key}", own[key], asked[key]) for key in own if own[key] != asked[key]), (name, None, None)
        )
      if own != asked and (name, own) != ("site_inputs", False):
        raise InversionViewError(
          f"init_from = {str(self._folder)!r} has {name} = {own}, the config {asked}; set the same"
        )
    return self._variables.get("stats", {}).get("encoder", {})
