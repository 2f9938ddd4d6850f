"""Opens a checkpoint: a Hugging Face folder or a GGUF file, with the family that its configuration names."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of, read_json
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import (
  gemma3,
  gguf_tokenizer,
  gpt2,
  gpt_neo,
  gpt_neox,
  gpt_oss,
  llama,
  mixture,
  olmo2,
  phi3,
  tokenizer_files,
  transformer_lens,
  transformer_lens_config,
)
from inversionview_jax.pretrained.attributes import UnhandledAttribute
from inversionview_jax.pretrained.completion import Refused, completed
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.gguf_file import GgufFile
from inversionview_jax.pretrained.parts import Parts, Renamed, has_own_unembedding, refuse_dropped_unembedding
from inversionview_jax.pretrained.weights import Safetensors
from inversionview_jax.tasks.extension import load_named
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizer_base import Tokenizer

FAMILIES = (
  gpt2.FAMILY,
  llama.FAMILY,
  llama.GEMMA,
  gemma3.FAMILY,
  gpt_neox.FAMILY,
  gpt_neo.FAMILY,
  olmo2.FAMILY,
  phi3.FAMILY,
  mixture.FAMILY,
  gpt_oss.FAMILY,
)
_OTHER_HEADS = ("score.", "classifier.", "qa_outputs.", "v_head.", "value_head.", "multiple_choice_head.")  # of tensors
GGUF_FAMILIES = (gpt2.FAMILY, llama.FAMILY, llama.GEMMA_GGUF, gemma3.GGUF)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint whose configuration was read and whose tensors are all there.

  Attributes:
    parts: name of a part -> nested dicts of float32 arrays, under the "raw" convention, read from disk at every access. Without "unembed" where
      the checkpoint is of a base model or a classifier.
    config: the architecture.
    attributes: of config.json as it is; of a GGUF file, its metadata under the names of a config.json.
    gguf: the open GGUF file, or None for a folder.
  """

  parts: Mapping
  config: TransformerConfig
  attributes: Mapping
  gguf: GgufFile | None = None


def open_checkpoint(
  path: str | os.PathLike, family: str | Family | None = None, ignore_config_keys: Collection[str] = ()
) -> Checkpoint:
  """Opens a Hugging Face folder (config.json and safetensors, whole or in shards) or a .gguf file.

  Args:
    path: the folder or file.
    family: of a folder whose "model_type" this package does not have: a `Family`, or where one is, as ``package.module:NAME``. None finds
      this package's by the "model_type".
    ignore_config_keys: attributes of config.json that are taken as left out, because they change nothing of the forward pass.

  Raises:
    InversionViewError: nothing there, a family or config attribute that is not handled (named), only pickled weights, a shard or tensor that
      is missing, truncated or of another shape, or a quantisation that is not read.
  """
  path = path_of(path)
  if isinstance(family, str):
    family = load_named(family, Family, "family")
  if path.is_file():
    if path.suffix != ".gguf":
      raise InversionViewError(
        f"{path} is not a model: give a folder with config.json and safetensors, or a .gguf file"
      )
    if family is not None:
      raise InversionViewError(
        f"{path}: a family is for Hugging Face folders; of GGUF files only the known ones are read"
      )
    file = GgufFile(path)
    return _opened(file.attributes, str(path), lambda: file, GGUF_FAMILIES, file)
  where = path / "config.json"
  if not where.exists():
    raise InversionViewError(_nothing_in(path))
  attributes = read_json(where, finite=False)  # a number that is not finite is refused by its name, where it is used
  if not isinstance(attributes, dict):
    raise InversionViewError(f"{where} is damaged or not the configuration of a model")
  if unknown := sorted(set(ignore_config_keys) - set(attributes)):
    raise InversionViewError(f"{where} has no attribute {unknown[0]} that could be ignored")
  attributes = {name: value for name, value in attributes.items() if name not in ignore_config_keys}
  if family is None and transformer_lens_config.describes(attributes):
    return _of_transformer_lens(path, attributes, str(where))
  return _opened(attributes, str(where), lambda: Safetensors(path), FAMILIES if family is None else (family,))


def _of_transformer_lens(path: pathlib.Path, attributes: Mapping, where: str) -> Checkpoint:
  """A folder with the state dict of a `HookedTransformer`."""
  family, weights = transformer_lens.family_of(attributes), functools.cache(lambda: Safetensors(path))
  opened = _opened({**attributes, "model_type": transformer_lens.MODEL_TYPE}, where, weights, (family,))
  transformer_lens.refuse_gated_bias(weights(), opened.config, str(path))
  return opened


def tokenizer_of(path: pathlib.Path, checkpoint: Checkpoint, given: Any = None) -> tuple[Tokenizer | None, str]:
  """The tokenizer of an opened checkpoint: ``(tokenizer, "")``, or ``(None, reason)`` if it has none of a kind that is read.

  Args:
    path: of the checkpoint.
    checkpoint: that was opened there.
    given: in place of its own: a tokenizer of this package, of `transformers` or of `tokenizers`, or the path of a folder or tokenizer.json.

  Raises:
    InversionViewError: a tokenizer of a kind that is read is damaged, or what is given is none.
  """
  attributes = {**checkpoint.attributes, "vocab_size": checkpoint.config.vocab_size}
  if given is not None:
    return tokenizer_from(given, attributes), ""
  try:
    if checkpoint.gguf is not None:
      return gguf_tokenizer.from_gguf(checkpoint.gguf), ""
    own = transformer_lens.is_own(checkpoint.attributes)
    tokenizer = (tokenizer_files.from_other_folder if own else tokenizer_files.from_folder)(path, attributes)
    return tokenizer, "" if tokenizer else tokenizer_files.missing_from(path)
  except gguf_tokenizer.Unread as error:
    return None, str(error)


def with_bos(tokenizer: Tokenizer | None, bos: bool | str, checkpoint: Checkpoint) -> Tokenizer | None:
  """The tokenizer with or without a BOS in front of every text.

  Args:
    tokenizer: of the checkpoint.
    bos: whether there is one; "own": as `transformers` has it with this tokenizer, or as a GGUF file says.
    checkpoint: of which it is.

  Raises:
    InversionViewError: a tokenizer that always has one, or of which it is not known.
  """
  if bos == "own":
    original = getattr(tokenizer, "original", None)
    if checkpoint.gguf is not None:
      bos = gguf_tokenizer.adds_bos(checkpoint.gguf)
    elif original is not None and tokenizer is not None:
      bos = original("a")["input_ids"][:1] == [tokenizer.bos_id]
    else:
      raise InversionViewError(
        "bos = 'own' needs the tokenizer of a Hugging Face folder or GGUF file: give True or False"
      )
  if not isinstance(bos, bool):
    raise InversionViewError(f"bos = {values.brief(bos)} must be True, False or 'own'")
  if bos or tokenizer is None:
    return tokenizer
  if not isinstance(tokenizer, HuggingFaceTokenizer):
    raise InversionViewError("bos=False needs a tokenizer of a language model")
  return dataclasses.replace(tokenizer, prepends_bos=False)


def tokenizer_from(given: Any, attributes: Mapping) -> Tokenizer:
  """A tokenizer as this package has them.

  Args:
    given: a tokenizer of this package, of `transformers` or of `tokenizers`, or the path of a folder or tokenizer.json.
    attributes: of the model's config.json: "vocab_size", and ids of special tokens where the tokenizer names none.

  Raises:
    InversionViewError: anything else, or a tokenizer that is damaged or has neither BOS nor EOS.
  """
  if isinstance(given, str | os.PathLike):
    return tokenizer_files.from_path(path_of(given), attributes)
  return tokenizer_files.from_object(given, attributes)


def _opened(
  attributes: Mapping,
  where: str,
  weights: Callable[[], Safetensors | GgufFile],
  families: tuple[Family, ...],
  gguf: GgufFile | None = None,
) -> Checkpoint:
  """The checkpoint with these attributes; its weights are opened last, because errors of the configuration are the clearer ones."""
  model_type = str(attributes.get("model_type"))
  family = next((family for family in families if model_type in family.model_types), None)
  if family is None:
    known = ", ".join(name for family in families for name in family.model_types)
    whose = "this version reads" if len(families) > 1 else "the family reads"
    raise InversionViewError(f"{where}: model_type {model_type!r} is not handled; {whose} {known}")
  config = _config_of(family, attributes, where, completes=family in FAMILIES or family in GGUF_FAMILIES)
  place = where.removesuffix("/config.json")
  tensors = Renamed(weights(), family.rename, place)
  if config.n_layers > len(tensors.names):  # before anything is made for each layer
    raise InversionViewError(
      f"{where}: {config.n_layers:,} layers are more than {place} has tensors, {len(tensors.names):,}; is the number of layers right?"
    )
  if config.tied:
    untied = dataclasses.replace(config, tied=False)
    refuse_dropped_unembedding(tensors, family.layout(config), family.layout(untied), place)
    if has_own_unembedding(tensors, family.layout(config), family.layout(untied)):
      config = untied
  layout = family.layout(config)
  if not config.tied and _has_no_unembedding(tensors, layout, attributes):
    layout = {name: part for name, part in layout.items() if name != "unembed"}
  parts = Parts(tensors, layout, lambda name: family.unused(name) or name.startswith(_OTHER_HEADS), place)
  return Checkpoint(parts, config, attributes, gguf)


def _has_no_unembedding(tensors: Renamed, layout: Mapping, attributes: Mapping) -> bool:
  """Whether a checkpoint is that of a base model (`LlamaModel`) or classifier: its architectures name no language model, and it has no lm_head.

  Where none are named, a language model is meant, and a missing lm_head is a damage.
  """
  kernel = layout.get("unembed", {}).get("kernel")
  if kernel is None or kernel.tensor is None or kernel.tensor in tensors.names:
    return False
  architectures = attributes.get("architectures")
  named = [str(name) for name in architectures] if isinstance(architectures, list) else []
  return bool(named) and not any(
    name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in named
  )


def _config_of(family: Family, attributes: Mapping, where: str, completes: bool) -> TransformerConfig:
  """The architecture that the attributes describe; errors name the file, those of a family that a user wrote too.

  Args:
    family: that reads them.
    attributes: of config.json.
    where: name of the file, for error messages.
    completes: whether the family takes them as `completed` makes them, and not as they are in the file.
  """
  try:
    if not completes:
      return family.config(attributes, where)
    try:
      complete = completed(attributes, where)
    except Refused as refused:
      family.config(refused.attributes, where)
      raise
    return family.config(complete, where)
  except UnhandledAttribute as error:
    raise InversionViewError(f"{error} (if it does not: --ignore-config-key {error.name})") from None
  except InversionViewError as error:
    message = str(error)
    raise InversionViewError(message if message.startswith(where) else f"{where}: {message}") from None
  except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
    raise InversionViewError(f"{where} is damaged or not the configuration of a model: {error!r}") from error


def _nothing_in(folder: pathlib.Path) -> str:
  if files := sorted(folder.glob("*.gguf")):
    return f"{folder} is a folder with GGUF files; give one of them, such as {files[0]}"
  return f"no model in {folder}: neither model.json (ours) nor config.json (Hugging Face, TransformerLens) is there"
