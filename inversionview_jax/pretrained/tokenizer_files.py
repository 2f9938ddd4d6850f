"""Tokenizers of checkpoints: tokenizer.json, GPT-2's vocab.json and merges.txt, or inside a GGUF file.

Where a checkpoint names no BOS, its EOS is used, and the other way round; where it names no PAD, its EOS. (GPT-2 has one special token
for all three, and Qwen2 has no BOS; a text ends at its first EOS, so padding with it is unambiguous.)
"""

import json
import pathlib
from collections.abc import Mapping

from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained.gguf_file import GgufFile
from inversionview_jax.tasks.tokenizers import HuggingFaceTokenizer

# Name in a GGUF file -> how text is split before merging: the published patterns of each model's tokenizer.json.
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_PATTERNS = {"llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "smaug-bpe": _LLAMA3, "qwen2": _QWEN2}
_SPLITS = ("gpt-2", "smollm", *_PATTERNS)
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # types of tokens in a GGUF file


class Unread(InversionViewError):
  """A tokenizer that is intact, but of a kind that is not read; the model still runs on token ids."""


def from_folder(folder: pathlib.Path, attributes: Mapping) -> HuggingFaceTokenizer | None:
  """The tokenizer in a Hugging Face folder, or None if there is none of a kind that is read.

  Args:
    folder: of the checkpoint.
    attributes: of its config.json, whose ids of special tokens count where tokenizer_config.json names no token.

  Raises:
    InversionViewError: a file is damaged, or names special tokens that the tokenizer does not have.
  """
  path = folder / "tokenizer.json"
  if path.exists():
    content = _text(path)
  elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists() and attributes.get("model_type") == "gpt2":
    path = folder / "vocab.json"
    merges = [
      line.split(" ") for line in _text(folder / "merges.txt").splitlines() if line and not line.startswith("#version")
    ]
    content = _byte_level(_json(path), merges, "gpt-2", {"<|endoftext|>": True}, str(path))
  else:
    return None
  vocabulary = _vocabulary(content, path)
  named: dict = {}
  for file in ("special_tokens_map.json", "tokenizer_config.json"):
    if (folder / file).exists():
      named |= {name: value for name, value in _json(folder / file).items() if value is not None}
  ids = []
  for kind in ("bos", "eos", "pad"):
    token, token_id = named.get(f"{kind}_token"), attributes.get(f"{kind}_token_id")
    token = token.get("content") if isinstance(token, dict) else token
    if token is not None:
      if token not in vocabulary:
        raise InversionViewError(f"{folder}: {kind}_token = {token!r} is not a token of {path.name}")
      token_id = vocabulary[token]
    ids.append(token_id[0] if isinstance(token_id, list) and token_id else token_id)
  if path.name == "vocab.json" and ids[1] is None:
    ids[1] = vocabulary.get("<|endoftext|>")
  return _with_specials(content, ids, path)


def missing_from(folder: pathlib.Path) -> str:
  """One line: why `from_folder` returned None."""
  if (folder / "tokenizer.model").exists():
    return (
      f"{folder} has its tokenizer in tokenizer.model, which is not read; write a tokenizer.json with transformers' "
      "AutoTokenizer.from_pretrained(...).save_pretrained(...), or give a tokenizer"
    )
  return f"{folder} came without a tokenizer: tokenizer.json is missing; copy it there, or give a tokenizer"


def from_gguf(file: GgufFile) -> HuggingFaceTokenizer:
  """The tokenizer inside a GGUF file; raises `Unread` if there is none, or of a kind that is not read (named)."""
  kind, tokens = file.value("tokenizer.ggml.model"), file.value("tokenizer.ggml.tokens")
  if kind is None or tokens is None:
    raise Unread(f"{file.path} has no tokenizer in it; give a tokenizer")
  if kind == "llama":
    content = _sentencepiece(file, tokens)
  elif kind == "gpt2":
    merges = [merge.split(" ") for merge in file.value("tokenizer.ggml.merges", [])]
    kinds = file.value("tokenizer.ggml.token_type", [])
    special = {token: k == _CONTROL for token, k in zip(tokens, kinds, strict=False) if k in (_CONTROL, _USER_DEFINED)}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    content = _byte_level(vocabulary, merges, file.value("tokenizer.ggml.pre"), special, str(file.path))
  else:
    raise Unread(
      f"{file.path}: its tokenizer is of kind {kind!r}, which is not read, only 'gpt2' and 'llama'; give a tokenizer"
    )
  ids = [file.value(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding")]
  return _with_specials(content, ids, file.path)


def _library(where):
  try:
    import tokenizers
  except ImportError:
    raise InversionViewError(
      f"the tokenizer of {where} needs the tokenizers package; install it with: pip install 'inversionview-jax[hf]'"
    ) from None
  return tokenizers


def _sentencepiece(file: GgufFile, tokens: list[str]) -> str:
  """SentencePiece's BPE (Kudo and Richardson, 2018), as of Llama 2 and Mistral, as the content of a tokenizer.json.

  The file has a score for each piece instead of merges: two pieces are merged if the result is a piece, the best score first.
  """
  tokenizers = _library(file.path)
  from tokenizers import decoders, models, normalizers

  scores, kinds = file.value("tokenizer.ggml.scores"), file.value("tokenizer.ggml.token_type")
  if not scores or not kinds or not len(tokens) == len(scores) == len(kinds):
    raise InversionViewError(
      f"{file.path}: its tokenizer is damaged: it needs a score and a type for each of {len(tokens)} tokens"
    )
  user_defined = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
  unhandled = [f"token {token!r} of its own" for token in user_defined if "▁" in token]
  unhandled += [
    name for name in ("precompiled_charsmap", "remove_extra_whitespaces") if file.value(f"tokenizer.ggml.{name}")
  ]
  if unhandled:
    raise Unread(f"{file.path}: its tokenizer has {unhandled[0]}, which is not read; give a tokenizer")
  vocabulary = {token: i for i, token in enumerate(tokens)}
  plain = {
    token for token, kind in zip(tokens, kinds, strict=True) if kind not in (_CONTROL, _UNKNOWN, _USER_DEFINED, _BYTE)
  }
  merges = [
    (-scores[vocabulary[token]], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
    for token in plain
    for cut in range(1, len(token))
    if token[:cut] in plain and token[cut:] in plain
  ]
  unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
  pairs = [merge[3:] for merge in sorted(merges)]
  out = tokenizers.Tokenizer(
    models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in kinds)
  )
  prefix = file.value("tokenizer.ggml.add_space_prefix", True)
  out.normalizer = normalizers.Sequence(
    [*([normalizers.Prepend("▁")] if prefix else []), normalizers.Replace(" ", "▁")]
  )
  out.decoder = decoders.Sequence(
    [
      decoders.Replace("▁", " "),
      decoders.ByteFallback(),
      decoders.Fuse(),
      *([decoders.Strip(" ", 1, 0)] if prefix else []),
    ]
  )
  control = [token for token, kind in zip(tokens, kinds, strict=True) if kind in (_CONTROL, _UNKNOWN)]
  out.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])
  out.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in user_defined])
  return out.to_str()


def _byte_level(vocabulary: dict, merges: list, split: str | None, special: dict[str, bool], where: str) -> str:
  """A byte-level BPE tokenizer (Radford et al., 2019) as the content of a tokenizer.json."""
  if split not in _SPLITS:
    raise Unread(
      f"{where}: its tokenizer splits text the {split!r} way, which is not read; known: {', '.join(_SPLITS)}; give a tokenizer"
    )
  tokenizers = _library(where)
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  try:
    # Llama 3 keeps a word that is a token, even where no merges produce it.
    model = models.BPE(vocabulary, [tuple(pair) for pair in merges], ignore_merges=_PATTERNS.get(split) == _LLAMA3)
  except Exception as error:  # the library raises plain Exception
    raise InversionViewError(f"{where}: its tokenizer is damaged: {next(iter(str(error).splitlines()), '')}") from None
  out = tokenizers.Tokenizer(model)
  if split in _PATTERNS:
    first = pre_tokenizers.Split(tokenizers.Regex(_PATTERNS[split]), "isolated")
    steps = [first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  else:
    steps = [pre_tokenizers.Digits(individual_digits=True)] if split == "smollm" else []
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
  out.pre_tokenizer = pre_tokenizers.Sequence(steps)
  if split == "qwen2":
    out.normalizer = normalizers.NFC()
  out.decoder = decoders.ByteLevel()
  added = [tokenizers.AddedToken(token, special=control, normalized=False) for token, control in special.items()]
  out.add_special_tokens([token for token in added if token.special])
  out.add_tokens([token for token in added if not token.special])
  return out.to_str()


def _with_specials(content: str, ids: list, path: pathlib.Path) -> HuggingFaceTokenizer:
  bos, eos, pad = ids
  bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
  if bos is None:
    raise InversionViewError(
      f"{path}: neither BOS nor EOS is named, and one is needed; name them in tokenizer_config.json"
    )
  try:
    return HuggingFaceTokenizer(content, bos, eos, eos if pad is None else pad)
  except InversionViewError as error:
    raise InversionViewError(f"{path}: {error}") from None


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise InversionViewError(f"cannot read {path}: {error}") from None


def _json(path: pathlib.Path) -> dict:
  try:
    content = json.loads(_text(path))
  except ValueError as error:
    raise InversionViewError(f"cannot read {path}: {error}") from None
  if not isinstance(content, dict):
    raise InversionViewError(f"cannot read {path}: it is damaged or holds something else")
  return content


def _vocabulary(content: str, path: pathlib.Path) -> dict[str, int]:
  """token -> id of a tokenizer.json, with added tokens."""
  try:
    tokenizer = json.loads(content)
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, list):  # Unigram: pairs of token and score
      vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary) | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
  except (ValueError, KeyError, TypeError) as error:
    raise InversionViewError(f"cannot read {path}: it is damaged or no tokenizer ({error!r})") from None
