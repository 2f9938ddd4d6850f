"""Checkpoints of other people -> parameters of `Transformer`: Hugging Face folders (safetensors) and GGUF files.

A checkpoint is opened without reading its weights; they are read part by part when the target is made (`Parts`), so that a model is never
in memory twice. No pickle is ever opened. An attribute or tensor that is not handled is refused by name.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import gguf_file, gpt2, llama, tokenizer_files
from inversionview_jax.pretrained.conventions import CONVENTIONS, convert, converted, resolve
from inversionview_jax.pretrained.parts import FirstLayers, Parts, Renamed
from inversionview_jax.pretrained.weights import Safetensors

__all__ = [
  "CONVENTIONS",
  "Checkpoint",
  "FirstLayers",
  "convert",
  "converted",
  "open_checkpoint",
  "resolve",
  "tokenizer_of",
]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """A checkpoint whose configuration was read and whose tensors were found.

  Attributes:
    parts: name of a part -> nested dicts of float32 arrays, under the "raw" convention, read at every look.
    config: the shape.
    said: what config.json says, or what the GGUF says in its words.
    gguf: the open GGUF file, or None for a folder.
  """

  parts: Mapping
  config: TransformerConfig
  said: dict
  gguf: gguf_file.GgufFile | None = None


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
  """Opens a Hugging Face folder (config.json + safetensors, whole or in shards) or a .gguf file.

  Raises:
    InversionViewError: nothing there, an architecture or config attribute that is not handled (named), only pickled weights, a shard or
      tensor that is missing, truncated or of another shape, or a quantisation that is not read.
  """
  path = pathlib.Path(path)
  if path.is_file():
    if path.suffix != ".gguf":
      raise InversionViewError(
        f"{path} is not a model: give a folder with config.json and safetensors, or a .gguf file"
      )
    file = gguf_file.GgufFile(path)
    return _checked(file.said, str(path), lambda: file, one_plus=False, gguf=file)
  where = path / "config.json"
  try:
    said = json.loads(where.read_text())
  except FileNotFoundError:
    raise InversionViewError(_nothing_in(path)) from None
  except (OSError, ValueError) as error:
    raise InversionViewError(f"cannot read {where}: {error}") from None
  if not isinstance(said, dict):
    raise InversionViewError(f"{where} is damaged or not the configuration of a model")
  return _checked(said, str(where), lambda: Safetensors(path), one_plus=str(said.get("model_type")).startswith("gemma"))


def tokenizer_of(path: pathlib.Path, found: Checkpoint):
  """The tokenizer of an opened checkpoint: ``(tokenizer, "")``, or ``(None, why)`` if it has none of a kind that is read.

  Raises:
    InversionViewError: a tokenizer of a kind that is read is damaged.
  """
  if found.gguf is None:
    tokenizer = tokenizer_files.from_folder(path, found.said)
    return tokenizer, "" if tokenizer else tokenizer_files.missing_from(path)
  try:
    return tokenizer_files.from_gguf(found.gguf), ""
  except tokenizer_files.Unread as error:
    return None, str(error)


def _checked(said: dict, where: str, weights, one_plus: bool, gguf=None) -> Checkpoint:
  family = str(said.get("model_type"))
  if family == "gpt2":
    config = gpt2.config(said, where)
    layout, renamed, unused = gpt2.layout(config), gpt2.renamed, gpt2.unused
  elif family in llama.FAMILIES:
    config = llama.config(said, where)
    layout, renamed, unused = llama.layout(config, one_plus), llama.renamed, llama.unused
  else:
    raise InversionViewError(
      f"{where}: model_type {family!r} is not handled; this version reads gpt2, {', '.join(llama.FAMILIES)}"
    )
  folder = where.removesuffix("/config.json")
  # The tensors after the configuration, whose errors say more.
  return Checkpoint(Parts(Renamed(weights(), renamed), layout, unused, folder), config, said, gguf)


def _nothing_in(folder: pathlib.Path) -> str:
  if found := sorted(folder.glob("*.gguf")):
    return f"{folder} is a folder with GGUF files; give one of them, such as {found[0]}"
  return f"no model in {folder}: neither model.json (ours) nor config.json (Hugging Face) is there"
