"""Tokenizers of Hugging Face folders, through `transformers`, and tokenizers that a user gives.

`transformers` is imported when a folder is opened, and needs no torch for this. Where its versions 4 and 5 differ, version 5 is followed. What
it makes of a folder's files is kept as a tokenizer of the `tokenizers` library, which gives the same ids and can be stored beside a reader.

Where no BOS is named, EOS is used, and the other way round; where no PAD is named, EOS. (GPT-2 has one special token for all three, and
Qwen2 has no BOS. Their roles follow from their position, see `tokenizer_base`.)
"""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_is_file, read_json
from inversionview_jax.pretrained.completion import quiet_transformers
from inversionview_jax.pretrained.gguf_tokenizer import Unread
from inversionview_jax.pretrained.python_tokenizer import PythonTokenizer
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizer_base import Tokenizer
from inversionview_jax.tasks.tokenizers import CharTokenizer, PartTokenizer

_PARSED = ("tokenizer.json", "vocab.json")
_OTHERS = (
  "tokenizer.model",
  "sentencepiece.bpe.model",
  "spiece.model",
  "tiktoken.model",
  "tekken.json",
  "vocab.txt",
)
_SETTINGS = ("special_tokens_map.json", "added_tokens.json", "tokenizer_config.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
# Files that a tokenizer may consist of.
VOCABULARIES = (*_PARSED, "merges.txt", *_OTHERS)
SETTINGS = (*_SETTINGS, *_TEMPLATES)
_KINDS = ("bos", "eos", "pad")


def from_other_folder(folder: pathlib.Path, attributes: Mapping) -> Tokenizer | None:
  """`from_folder` of one whose config.json is not Hugging Face's, which `transformers` would read too: only the files of the tokenizer are read."""
  with tempfile.TemporaryDirectory() as alone:
    for name in (*VOCABULARIES, *SETTINGS):
      if (folder / name).exists():
        check_is_file(folder / name)
        shutil.copyfile(folder / name, pathlib.Path(alone) / name)
    return from_folder(pathlib.Path(alone), attributes)


def from_folder(folder: pathlib.Path, attributes: Mapping) -> Tokenizer | None:
  """The tokenizer in a Hugging Face folder as `transformers` reads it, or None if there is none.

  Args:
    folder: of the checkpoint.
    attributes: of its config.json, whose ids of special tokens count where the tokenizer names none.

  Raises:
    InversionViewError: a file is damaged, or names special tokens that the tokenizer does not have.
    Unread: one that needs a package which is not installed.
  """
  present = [name for name in (*_PARSED, *_OTHERS) if (folder / name).exists()]
  if not present:
    return None
  for name in (*present, *_SETTINGS, *_TEMPLATES):
    check_is_file(folder / name)  # transformers would wait for the other end of a pipe
  for name in _SETTINGS:
    if (folder / name).exists():
      _json(folder / name)
  with quiet_transformers():
    from transformers import AutoTokenizer

    try:
      loaded = AutoTokenizer.from_pretrained(os.fspath(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # any is possible: it does not check the files
      reason = _first_line(error)
      for name in _PARSED:
        if (folder / name).exists():
          _json(folder / name)
          raise InversionViewError(f"cannot read the tokenizer in {folder / name}: {reason}") from None
      raise Unread(
        f"{folder} has its tokenizer in {present[0]}, which cannot be read: {reason}; install what is missing "
        "(pip install 'inversionview-jax[hf]' has sentencepiece), write a tokenizer.json with transformers' "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...), or give a tokenizer"
      ) from None
    named: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
      if (folder / name).exists():
        named |= {key: value for key, value in _json(folder / name).items() if value is not None}
    return from_object(loaded, attributes, folder / present[0], named)


def missing_from(folder: pathlib.Path) -> str:
  """One line: why `from_folder` returned None."""
  return f"{folder} came without a tokenizer: tokenizer.json is missing; copy it there, or give a tokenizer"


def from_path(path: pathlib.Path, attributes: Mapping) -> Tokenizer:
  """The tokenizer in a folder or in a tokenizer.json; raises `InversionViewError` if there is none."""
  if path.is_dir():
    made = from_folder(path, attributes)
    if made is None:
      raise InversionViewError(missing_from(path))
    return made
  import tokenizers

  check_is_file(path)
  try:
    loaded = tokenizers.Tokenizer.from_file(os.fspath(path))
  except Exception as error:  # the library raises plain Exception
    raise InversionViewError(
      f"cannot read a tokenizer from {path}: {_first_line(error)}; give a folder, or a tokenizer.json"
    ) from None
  return from_object(loaded, attributes, path)


def from_object(
  given: Any, attributes: Mapping, where: object = "tokenizer=", named: Mapping | None = None
) -> Tokenizer:
  """A tokenizer as this package has them.

  Args:
    given: one of `transformers` or `tokenizers`; one of this package is returned as it is.
    attributes: of the model's config.json: "vocab_size", and the ids of special tokens where the tokenizer has none.
    where: it comes from, for error messages.
    named: special tokens that the files of a folder name ("eos_token": ...), which must exist.

  Raises:
    InversionViewError: another object, or one without BOS and EOS.
  """
  if isinstance(given, CharTokenizer | HuggingFaceTokenizer | PartTokenizer | PythonTokenizer) or _is_ours(given):
    return given
  library = getattr(given, "backend_tokenizer", None) or (given if hasattr(given, "to_str") else None)
  is_python = library is None and hasattr(given, "convert_ids_to_tokens") and callable(given)
  if library is None and not is_python:
    raise InversionViewError(
      f"{where} {type(given).__name__} is no tokenizer: give one of transformers or tokenizers, a folder or tokenizer.json, or the name of a task"
    )
  ids = _specials(given, library, attributes, where, named or {})
  try:
    if library is None:
      return PythonTokenizer(given, *ids)
    split = bool(getattr(given, "split_special_tokens", False) or getattr(library, "encode_special_tokens", False))
    original = given if library is not given else None
    return HuggingFaceTokenizer(_content(library, where), *ids, split, original)
  except InversionViewError as error:
    raise InversionViewError(f"{where}: {error}") from None


def _is_ours(given: Any) -> bool:
  """Whether this has the methods of `Tokenizer`: the user's own."""
  return all(hasattr(given, name) for name in ("encode_batch", "padding", "strings", "describe", "bos_id"))


def _specials(given: Any, library: Any, attributes: Mapping, where: object, named: Mapping) -> tuple[int, int, int]:
  """Ids of BOS, EOS and PAD: those that the tokenizer names, then those of config.json, of which the model has an embedding."""
  rows = attributes.get("vocab_size")
  rows = rows if isinstance(rows, int) else None
  found: dict[str, int | None] = {}
  for kind in _KINDS:
    own, configured = getattr(given, f"{kind}_token_id", None), attributes.get(f"{kind}_token_id")
    configured = configured[0] if isinstance(configured, list) and configured else configured
    configured = configured if isinstance(configured, int) and configured >= 0 else None
    if own is not None and rows is not None and own >= rows:
      # A default of the tokenizer's class, such as "<|endoftext|>", that neither the vocabulary nor the model has.
      if kind != "pad" and f"{kind}_token" in named:
        token = getattr(given, f"{kind}_token", None)
        raise InversionViewError(
          f"{where}: {kind}_token = {str(token)!r} is not a token of the model, which has {rows}"
        )
      own = None
    found[kind] = configured if own is None else int(own)
  if found["pad"] is None and library is not None and (padding := getattr(library, "padding", None)):
    found["pad"] = padding.get("pad_id")
  bos, eos, pad = (found[kind] for kind in _KINDS)
  bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
  if bos is None or eos is None:
    raise InversionViewError(
      f"{where}: neither BOS nor EOS is named, and one is needed; name them in tokenizer_config.json, or give a tokenizer that has them"
    )
  return bos, eos, eos if pad is None or (rows is not None and pad >= rows) else pad


def _content(library: Any, where: object) -> str:
  """The tokenizer as the content of a tokenizer.json: the file's own where nothing that matters was changed."""
  content = library.to_str()
  path = where if isinstance(where, pathlib.Path) else pathlib.Path()
  if path.name != "tokenizer.json" or not path.is_file():
    return content
  import tokenizers

  try:
    text = path.read_text(encoding="utf-8")
    own = tokenizers.Tokenizer.from_str(text).to_str()
  except Exception:  # not every file that transformers reads is one that the library reads
    return content
  return text if _essence(own) == _essence(content) else content


def _essence(content: str) -> dict:
  """What of a tokenizer.json determines the ids of a text without special tokens around it."""
  return {
    key: value for key, value in json.loads(content).items() if key not in ("post_processor", "padding", "truncation")
  }


def _first_line(error: Exception) -> str:
  return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _json(path: pathlib.Path) -> dict:
  content = read_json(path, finite=False)
  if not isinstance(content, dict):
    raise InversionViewError(f"cannot read {path}: it is damaged or holds something else")
  return content
