"""Hugging Face folders with small tokenizers, written by hand, whose settings have been read wrongly elsewhere.

`tests/parity/make_tokenizers.py` writes the ids that `transformers` gives into tests/golden/tokenizers.json.
"""

import json
import pathlib

from tokenizers import pre_tokenizers

TEXTS = (
  "the cat sat",
  " the cat",
  "the the<|tool|>cat",
  "<|endoftext|>the cat<|im_end|>",
  "<|im_start|>user\nthe cat<|im_end|>\n",
  "the<pad>",
  "naïve 12 café 😀",
  "",
)
_MERGES = ("t h", "th e", "c a", "ca t", "s a", "sa t", "Ġ the", "Ġ cat", "Ġ sat")
_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level(specials=_SPECIALS):
  """vocabulary and merges of a byte-level BPE tokenizer, special tokens first."""
  words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(merge.replace(" ", "") for merge in _MERGES)]
  return {word: i for i, word in enumerate(words)}, list(_MERGES)


def _added(vocabulary, specials):
  return [
    {"id": vocabulary[s], "content": s, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for s in specials
  ]  # fmt: skip


def byte_level_json(specials=_SPECIALS):
  """The same as the content of a tokenizer.json."""
  vocabulary, merges = byte_level(specials)
  level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
  return {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(vocabulary, specials), "normalizer": None,
    "pre_tokenizer": level, "post_processor": None, "decoder": level,
    "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "vocab": vocabulary, "merges": merges},
  }  # fmt: skip


def pieces_json():
  """A tokenizer.json as Llama 2 has one: pieces that begin with "▁" for a space, and a token for each byte."""
  merges = ("t h", "th e", "c a", "ca t", "▁ the", "▁ cat", "▁ s")
  words = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *"▁abcdehinorstuv"]
  words += [merge.replace(" ", "") for merge in merges]
  vocabulary = {word: i for i, word in enumerate(words)}
  return {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": _added(vocabulary, ("<unk>", "<s>", "</s>")),
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": None, "post_processor": None,
    "decoder": {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
              "fuse_unk": True, "byte_fallback": True, "ignore_merges": False, "vocab": vocabulary, "merges": list(merges)},
  }  # fmt: skip


def _gpt2(**settings):
  """vocab.json and merges.txt of a GPT-2."""
  vocabulary, merges = byte_level()
  return {
    "config.json": {"model_type": "gpt2", "vocab_size": 300},
    "vocab.json": vocabulary,
    "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer", **settings},
  }


def _json(content, model_type, **settings):
  return {
    "config.json": {"model_type": model_type, "vocab_size": 300},
    "tokenizer.json": content,
    "tokenizer_config.json": settings,
  }


_ID = len(byte_level()[0])
_TOOL, _PAD = ({"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": special}
               for text, special in (("<|tool|>", False), ("<pad>", True)))  # fmt: skip
CASES = {
  "gpt2": _gpt2(),
  "gpt2_prefix_space": _gpt2(add_prefix_space=True),
  "gpt2_prefix_space_json": _json(byte_level_json(), "gpt2", tokenizer_class="GPT2TokenizerFast", add_prefix_space=True),
  "llama_prefix_space": _json(pieces_json(), "llama", tokenizer_class="LlamaTokenizerFast", add_prefix_space=True),
  "llama_no_prefix_space": _json(pieces_json(), "llama", tokenizer_class="LlamaTokenizerFast", add_prefix_space=False),
  "added_tokens_json": _gpt2(pad_token="<pad>") | {"added_tokens.json": {"<|tool|>": _ID, "<pad>": _ID + 1}},
  "added_tokens_decoder": _json(
    byte_level_json(),
    "gpt2",
    tokenizer_class="GPT2Tokenizer",
    pad_token="<pad>",
    added_tokens_decoder={str(_ID): _TOOL, str(_ID + 1): _PAD},
  ),
  "fast_added_tokens_json": _json(byte_level_json(), "llama", tokenizer_class="PreTrainedTokenizerFast", bos_token="<|endoftext|>")
  | {"added_tokens.json": {"<|tool|>": _ID}},
  "qwen_pad_is_bos": _json(
    byte_level_json(), "qwen2", tokenizer_class="Qwen2Tokenizer", bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
  )
  | {"config.json": {"model_type": "qwen2", "vocab_size": 300, "bos_token_id": 0, "eos_token_id": 2}},
  "split_special_tokens": _gpt2(split_special_tokens=True),
}  # fmt: skip


def write(folder: pathlib.Path, name: str) -> pathlib.Path:
  """Writes the folder of a case, without weights."""
  folder.mkdir(parents=True)
  for file, content in CASES[name].items():
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
  return folder
