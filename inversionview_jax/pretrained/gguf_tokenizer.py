"""The tokenizer inside a GGUF file: byte-level BPE and SentencePiece's BPE. (`transformers` reads it with torch only.)

Where a file names no BOS, its EOS is used, and the other way round; where it names no PAD, its EOS.
"""

import functools
import pathlib
from collections.abc import Callable

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_TOKENS
from inversionview_jax.pretrained.gguf_file import GgufFile
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer

# Name in a GGUF file -> how text is split before merging: the published patterns of each model's tokenizer.json.
_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace("{1,3}", "")
_PATTERNS = {
  "llama-bpe": _LLAMA3,
  "llama3": _LLAMA3,
  "llama-v3": _LLAMA3,
  "smaug-bpe": _LLAMA3,
  "qwen2": _QWEN2,
  "deepseek-r1-qwen": _QWEN2,
}
_SPLITS = ("gpt-2", "smollm", *_PATTERNS)
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # types of tokens in a GGUF file

_TEXTS = functools.partial(values.sequence, check=values.text, most=MOST_TOKENS)
_WHOLES = functools.partial(values.sequence, check=functools.partial(values.whole, low=0, high=2**31), most=MOST_TOKENS)
_NUMBERS = functools.partial(
  values.sequence, check=functools.partial(values.number, low=-1e30, high=1e30), most=MOST_TOKENS
)


def _token(count: int) -> Callable[[str, object], int]:
  """The check of an id of one of so many tokens."""
  return functools.partial(values.whole, low=0, high=count - 1)


class Unread(InversionViewError):
  """A tokenizer that is intact, but of a kind that is not read; the model still runs on token ids."""


def from_gguf(file: GgufFile) -> HuggingFaceTokenizer:
  """The tokenizer inside a GGUF file; raises `Unread` if there is none, or of a kind that is not read (named)."""
  kind, tokens = file.read_value("tokenizer.ggml.model", values.text), file.read_value("tokenizer.ggml.tokens", _TEXTS)
  if kind is None or tokens is None:
    raise Unread(f"{file.path} has no tokenizer in it; give a tokenizer")
  if kind == "llama":
    content = (_gemma if file.architecture.startswith("gemma") else _sentencepiece)(file, tokens)
  elif kind == "gpt2":
    merges = [merge.split(" ") for merge in file.read_value("tokenizer.ggml.merges", _TEXTS, ())]
    kinds = file.read_value("tokenizer.ggml.token_type", _WHOLES, ())
    special = {token: k == _CONTROL for token, k in zip(tokens, kinds, strict=False) if k in (_CONTROL, _USER_DEFINED)}
    vocabulary = {token: i for i, token in enumerate(tokens)}
    content = _byte_level(vocabulary, merges, _split_of(file, tokens), special, str(file.path))
  else:
    raise Unread(
      f"{file.path}: its tokenizer is of kind {kind!r}, which is not read, only 'gpt2' and 'llama'; give a tokenizer"
    )
  ids = [file.read_value(f"tokenizer.ggml.{name}_token_id", _token(len(tokens))) for name in ("bos", "eos", "padding")]
  return _with_specials(content, ids, file.path)


def adds_bos(file: GgufFile) -> bool:
  """Whether the model's texts begin with BOS: as the file says, and otherwise with SentencePiece's tokenizers only, as in llama.cpp."""
  default = file.value("tokenizer.ggml.model") == "llama"
  return file.read_value("tokenizer.ggml.add_bos_token", values.switch, default)


def _sentencepiece(file: GgufFile, tokens: tuple[str, ...]) -> str:
  """SentencePiece's BPE (Kudo and Richardson, 2018), as of Llama 2 and Mistral, as the content of a tokenizer.json.

  The file has a score for each piece instead of merges: two pieces are merged if the result is a piece, the best score first.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers

  scores = file.read_value("tokenizer.ggml.scores", _NUMBERS)
  kinds = file.read_value("tokenizer.ggml.token_type", _WHOLES)
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
  prefix = file.read_value("tokenizer.ggml.add_space_prefix", values.switch, True)
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


def _gemma(file: GgufFile, tokens: tuple[str, ...]) -> str:
  """SentencePiece's BPE as Gemma has it, as the content of a tokenizer.json.

  Pieces are merged in the order of their ids: Gemma's scores do not say it. Source: transformers' gguf_tokenizer_mapping.py, which gives the
  same ids.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  kinds = file.read_value("tokenizer.ggml.token_type", _WHOLES, ())
  if len(kinds) != len(tokens):
    raise InversionViewError(f"{file.path}: its tokenizer is damaged: it needs a type for each of {len(tokens)} tokens")
  # Tokens of several spaces are stored as such, but looked up as the normalizer writes them.
  spelled = ["▁" * len(token) if token and not token.strip(" ") else token for token in tokens]
  vocabulary = {token: i for i, token in enumerate(spelled)}
  merges = [
    (i, -cut, token[:cut], token[cut:])
    for token, i in vocabulary.items()
    for cut in range(1, len(token))
    if token[:cut] in vocabulary and token[cut:] in vocabulary
  ]
  pairs = [merge[2:] for merge in sorted(merges)]
  named = next((token for token, kind in zip(spelled, kinds, strict=True) if kind == _UNKNOWN), "<unk>")
  unknown = named if named in vocabulary else None
  out = tokenizers.Tokenizer(models.BPE(vocabulary, pairs, unk_token=unknown, fuse_unk=True, byte_fallback=True))
  out.normalizer = normalizers.Replace(" ", "▁")
  out.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  out.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  typed = list(zip(tokens, kinds, strict=True))
  control = [token for token, kind in typed if kind in (_CONTROL, _UNKNOWN)]
  user_defined = [token for token, kind in typed if kind == _USER_DEFINED and token in vocabulary]
  out.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in control])
  out.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in user_defined])
  return out.to_str()


def _split_of(file: GgufFile, tokens: tuple[str, ...]) -> str:
  """How text is split before merging, a key of `_SPLITS` where it is read.

  Files from before 2024 do not name it ("tokenizer.ggml.pre"), or name "default". It is then that of the architecture; of Llama-like models the
  numbers among the tokens tell Llama 3 (at most three digits) from GPT-2 (any number of them).
  """
  named = file.read_value("tokenizer.ggml.pre", values.text)
  if named not in (None, "default"):
    return named
  if file.architecture == "gpt2":
    return "gpt-2"
  if file.architecture.startswith("qwen"):
    return "qwen2"
  digits = max((len(token) for token in tokens if token.isdecimal() and token.isascii()), default=0)
  if digits > 1:
    return "llama-bpe" if digits <= 3 else "gpt-2"
  raise Unread(
    f"{file.path}: it does not name how its tokenizer splits text (tokenizer.ggml.pre), and its tokens do not show it; give a tokenizer"
  )


def _byte_level(vocabulary: dict, merges: list, split: str | None, special: dict[str, bool], where: str) -> str:
  """A byte-level BPE tokenizer (Radford et al., 2019) as the content of a tokenizer.json."""
  if split not in _SPLITS:
    raise Unread(
      f"{where}: its tokenizer splits text the {split!r} way, which is not read; known: {', '.join(_SPLITS)}; give a tokenizer"
    )
  import tokenizers
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
  if _PATTERNS.get(split) == _QWEN2:
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
    raise InversionViewError(f"{path}: neither BOS nor EOS is named, and one is needed; give a tokenizer")
  try:
    return HuggingFaceTokenizer(content, bos, eos, eos if pad is None else pad)
  except InversionViewError as error:
    raise InversionViewError(f"{path}: {error}") from None
