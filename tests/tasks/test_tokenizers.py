"""Tokenizers that come with checkpoints: in a folder, or inside a GGUF file."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers as library

from inversionview_jax import pretrained, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained import tokenizer_files
from inversionview_jax.targets import Edit, Target, load_target
from inversionview_jax.tasks import tokenizers

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
TEXTS = ["the cat sat on the mat", "The  cat's 1234 mats\n\n\tare naïve, 漢字 😀!", " leading and trailing ", ""]
SIZE = 289  # of the tokenizer that `byte_level` makes
SPECIALS = ["<|endoftext|>", "<|start|>", "<|end|>"]


def byte_level(pattern=None):
  """A small byte-level BPE tokenizer with three special tokens."""
  from tokenizers import decoders, models, pre_tokenizers, trainers

  made = library.Tokenizer(models.BPE())
  steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
  if pattern == "smollm":
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
  elif pattern:
    steps.insert(0, pre_tokenizers.Split(library.Regex(pattern), "isolated"))
  made.pre_tokenizer = pre_tokenizers.Sequence(steps)
  made.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=340,
    special_tokens=SPECIALS,
    initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    show_progress=False,
  )
  made.train_from_iterator(["the cat sat on the mat, the mats are 1234 years old; don't"] * 20, trainer)
  return made


@pytest.fixture(scope="module")
def made():
  return byte_level()


@pytest.fixture
def folder(tmp_path, made):
  """A model's folder with a tokenizer; the model has as many rows as the tokenizer has tokens."""
  shutil.copytree(GOLDEN / "llama", tmp_path / "model")
  (tmp_path / "model" / "tokenizer.json").write_text(made.to_str())
  change(tmp_path / "model" / "config.json", bos_token_id=1, eos_token_id=[2, 0], pad_token_id=None)
  return tmp_path / "model"


def change(path, **changes):
  content = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(content | changes))


def read(folder):
  return tokenizer_files.from_folder(folder, json.loads((folder / "config.json").read_text()))


def refusal(function, *args) -> str:
  with pytest.raises(InversionViewError) as caught:
    function(*args)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_the_librarys_and_go_back_to_the_text(folder, made, text):
  tokenizer = read(folder)
  ids = tokenizer.encode(text)
  assert ids == made.encode(text, add_special_tokens=False).ids
  assert tokenizer.text(ids) == text
  (row,) = tokenizer.encode_batch([text], length=len(ids) + 4, eos=True)
  assert row.tolist() == [1, *ids, 2, 2, 2] and tokenizer.text(row) == text
  assert tokenizer.encode_batch([text], eos=False).tolist() == [[1, *ids]]


def test_tokens_are_shown_as_the_text_they_stand_for(folder):
  tokenizer = read(folder)
  row = tokenizer.encode_batch(["the cat 漢"], length=16, eos=True)[0]
  strings = tokenizer.strings(row)
  assert strings[0] == "<BOS>" and strings[1:3] == ["the", " cat"]
  assert strings.count("<EOS>") == 1 and strings[strings.index("<EOS>") + 1 :] == ["<PAD>"] * (
    len(row) - strings.index("<EOS>") - 1
  )
  assert "�" in strings  # part of a character
  assert tokenizer.strings([tokenizer.vocab_size + 3]) == [f"<unused {tokenizer.vocab_size + 3}>"]


def test_special_tokens_are_those_named_and_where_none_is_named_stand_for_each_other(folder):
  def specials():
    tokenizer = read(folder)
    return tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id

  assert specials() == (1, 2, 2)  # PAD is not named
  change(
    folder / "tokenizer_config.json",
    bos_token="<|endoftext|>",
    eos_token={"__type": "AddedToken", "content": "<|end|>"},
    pad_token=None,
  )
  assert specials() == (0, 2, 2)
  change(folder / "special_tokens_map.json", pad_token="<|start|>")
  assert specials() == (0, 2, 1)
  for file in ("tokenizer_config.json", "special_tokens_map.json"):
    (folder / file).unlink()
  change(folder / "config.json", bos_token_id=None)
  assert specials() == (2, 2, 2)
  change(folder / "config.json", bos_token_id=1, eos_token_id=None, pad_token_id=0)
  assert specials() == (1, 1, 0)
  change(folder / "config.json", bos_token_id=None)
  assert "neither BOS nor EOS" in refusal(read, folder)


def test_padding_with_eos_is_distinguished_from_the_eos_that_ends_a_text(folder):
  change(folder / "config.json", bos_token_id=2)  # one token for all three, as in GPT-2
  tokenizer = read(folder)
  rows = tokenizer.encode_batch(["the cat", "the", ""], length=6, eos=True)
  ends = [len(tokenizer.encode(text)) + 1 for text in ("the cat", "the")]
  np.testing.assert_array_equal(tokenizer.padding(rows)[:2], [np.arange(6) > end for end in ends])
  assert not tokenizer.padding(rows[:, :1]).any()
  characters = tasks.get("addition").tokenizer
  tokens = characters.encode_batch(["1+2=3", "10+2=12"], eos=True)
  np.testing.assert_array_equal(characters.padding(tokens), tokens == characters.pad_id)
  # The EOS of a text can be edited; what pads it cannot.
  model = Target.from_raw(*_tiny(), tokenizer)
  row = rows[1:2]
  value = np.zeros(model.config.d_model)
  model.run(row, edits=[Edit("x0.mid", 0, value), Edit("x0.mid", ends[1], value)])
  assert "is padding" in refusal(lambda: model.run(row, edits=[Edit("x0.mid", ends[1] + 1, value)]))


def _tiny():
  """(parameters, config) of the golden llama with a row for each token of the tokenizer."""
  checkpoint = pretrained.open_checkpoint(GOLDEN / "llama")
  parts = {name: checkpoint.parts[name] for name in checkpoint.parts}
  parts["embed"] = np.zeros((SIZE, checkpoint.config.d_model), np.float32)
  parts["unembed"] = {"kernel": np.zeros((checkpoint.config.d_model, SIZE), np.float32)}
  return parts, dataclasses.replace(checkpoint.config, vocab_size=SIZE)


def test_description_makes_the_same_tokenizer_again(folder):
  tokenizer = read(folder)
  again = tokenizers.from_description(json.loads(json.dumps(tokenizer.describe())))
  assert again == tokenizer and again.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])
  assert (
    tokenizers.brief(tokenizer.describe()) == tokenizers.brief(again.describe())
    and len(tokenizers.brief(again.describe())) < 40
  )
  change(folder / "config.json", bos_token_id=0)
  assert read(folder).describe() != tokenizer.describe()
  assert "content" in refusal(tokenizers.from_description, {"kind": "huggingface", "bos": 0, "eos": 0, "pad": 0})


def test_saved_target_has_its_tokenizer_with_it(folder, tmp_path):
  tokenizer = read(folder)
  Target.from_raw(*_tiny(), tokenizer).save(tmp_path / "saved")
  assert load_target(tmp_path / "saved").tokenizer == tokenizer


def test_vocabulary_and_merges_of_gpt2_are_the_same_tokenizer(folder, made):
  change(folder / "config.json", model_type="gpt2", bos_token_id=None, eos_token_id=None)
  model = json.loads(made.to_str())["model"]
  (folder / "tokenizer.json").unlink()
  (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
  (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
  tokenizer = read(folder)
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 0, 0)
  for text in TEXTS:
    assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids


# What is refused.


def test_damaged_files_are_named(folder):
  for content in ("", "{", "[]", '{"model": {"type": "BPE"}}', "\x00"):
    (folder / "tokenizer.json").write_text(content)
    assert "tokenizer.json" in refusal(read, folder)
  (folder / "tokenizer.json").write_bytes(b"\xff\xfe{}")
  assert "tokenizer.json" in refusal(read, folder)


def test_special_token_that_the_tokenizer_does_not_have_is_named(folder):
  change(folder / "tokenizer_config.json", eos_token="</s>")
  message = refusal(read, folder)
  assert "eos_token" in message and "'</s>'" in message
  (folder / "tokenizer_config.json").unlink()
  change(folder / "config.json", bos_token_id=5000)
  message = refusal(read, folder)
  assert "BOS" in message and "5000" in message


def test_tokenizer_of_another_size_than_the_model_is_refused_with_both_sizes(folder):
  message = refusal(load_target, folder)
  assert f"{SIZE} tokens" in message and "19" in message
  tokenizer = read(folder)
  tokenizers.check_fits(tokenizer, SIZE)
  tokenizers.check_fits(tokenizer, SIZE + 5)  # rows that fill the embedding up to a round number
  for rows in (SIZE - 1, SIZE + 10):
    assert str(rows) in refusal(tokenizers.check_fits, tokenizer, rows)
  characters = tasks.get("addition").tokenizer
  assert "16" in refusal(tokenizers.check_fits, characters, 16)


@pytest.mark.parametrize("file", ["tokenizer.model", None])
def test_model_without_a_readable_tokenizer_takes_ids_and_names_what_is_missing(folder, file):
  (folder / "tokenizer.json").unlink()
  if file:
    (folder / file).write_bytes(b"pieces")
  target = load_target(folder)
  assert target.tokenizer is None
  message = refusal(target.require_tokenizer)
  assert str(folder) in message and (file or "tokenizer.json") in message
  assert "tokenizer=" in refusal(Target.from_raw(*_tiny(), None, name="bare").require_tokenizer)


# Inside a GGUF file.


def gguf_file(path, kind, tokens, types, **entries):
  """A GGUF file of a llama without layers, and with this tokenizer."""
  gguf = pytest.importorskip("gguf")
  writer = gguf.GGUFWriter(path, "llama")
  for name, value in {
      "context_length": 8, "embedding_length": 4, "block_count": 0, "feed_forward_length": 4, "attention.head_count": 2
  }.items():  # fmt: skip
    writer.add_uint32(f"llama.{name}", value)
  writer.add_tokenizer_model(kind)
  writer.add_token_list(tokens)
  writer.add_token_types(types)
  for name, value in entries.items():
    {int: writer.add_uint32, bool: writer.add_bool, str: writer.add_string, list: writer.add_array}[type(value)](
      f"tokenizer.ggml.{name}", value
    )
  writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 4), np.float32))
  writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def gguf_with(path, made, split="gpt-2", kind="gpt2", **ids):
  """A GGUF file with a byte-level tokenizer in it."""
  model = json.loads(made.to_str())["model"]
  tokens = sorted(model["vocab"], key=model["vocab"].get)
  types = [3 if token in SPECIALS else 1 for token in tokens]
  merges = [" ".join(pair) for pair in model["merges"]]
  ids = {f"{name}_token_id": value for name, value in ids.items()}
  return gguf_file(path, kind, tokens, types, pre=split, merges=merges, **ids)


LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
  "split, pattern",
  [
    ("gpt-2", None),
    ("smollm", "smollm"),
    ("llama-bpe", LLAMA3),
    ("qwen2", LLAMA3.replace("{1,3}", "")),
    ("deepseek-r1-qwen", LLAMA3.replace("{1,3}", "")),
  ],
)
def test_tokenizer_inside_a_gguf_file_is_the_one_it_was_made_from(tmp_path, split, pattern):
  made = byte_level(pattern)
  target = load_target(gguf_with(tmp_path / "model.gguf", made, split, bos=1, eos=2, padding=0))
  tokenizer = target.require_tokenizer()
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (
    1,
    2,
    0,
    target.config.vocab_size,
  )
  for text in [*TEXTS, "a<|end|>b", "12 123 12345"]:
    assert tokenizer.encode(text) == made.encode(text, add_special_tokens=False).ids
    assert tokenizer.text(tokenizer.encode(text)) == text.replace("<|end|>", "")


@pytest.mark.parametrize("changes, named", [({"kind": "bert"}, "'bert'"), ({"split": "tekken"}, "'tekken'")])
def test_tokenizer_of_a_kind_that_is_not_read_is_named_when_it_is_needed(tmp_path, made, changes, named):
  target = load_target(gguf_with(tmp_path / "model.gguf", made, **changes, bos=1))
  assert target.tokenizer is None
  message = refusal(target.require_tokenizer)
  assert named in message and "model.gguf" in message


@pytest.mark.parametrize("unnamed", [{}, {"pre": "default"}])
@pytest.mark.parametrize("numbers, split", [(("12", "123"), "llama-bpe"), (("12", "123", "1234"), "gpt-2")])
def test_a_split_that_is_not_named_is_the_one_that_the_tokens_show(tmp_path, unnamed, numbers, split):
  tokens = ["<s>", *sorted(library.pre_tokenizers.ByteLevel.alphabet()), "th", *numbers]
  merges = ["t h", "1 2", "12 3", "123 4"][: 1 + len(numbers)]
  rest = {"kind": "gpt2", "tokens": tokens, "types": [3] + [1] * (len(tokens) - 1), "merges": merges, "bos_token_id": 0}
  named = load_target(gguf_file(tmp_path / "named.gguf", pre=split, **rest)).require_tokenizer()
  guessed = load_target(gguf_file(tmp_path / "unnamed.gguf", **unnamed, **rest)).require_tokenizer()
  for text in ("1234 12345", "don't 12  the"):
    assert guessed.encode(text) == named.encode(text)
  rest |= {"tokens": tokens[: -len(numbers)], "types": rest["types"][: -len(numbers)], "merges": ["t h"]}
  unknown = load_target(gguf_file(tmp_path / "unknown.gguf", **unnamed, **rest))
  assert "tokenizer.ggml.pre" in refusal(unknown.require_tokenizer)


@pytest.fixture
def pieces():
  """A SentencePiece tokenizer, as a GGUF file tells it, and the ids that SentencePiece gives (tests/parity/make_golden.py)."""
  return json.loads((GOLDEN / "sentencepiece.json").read_text())


def test_sentencepiece_tokenizer_inside_a_gguf_file_gives_the_ids_of_sentencepiece(tmp_path, pieces):
  path = gguf_file(
    tmp_path / "model.gguf",
    "llama",
    pieces["tokens"],
    pieces["types"],
    scores=pieces["scores"],
    bos_token_id=1,
    eos_token_id=2,
  )
  tokenizer = load_target(path).require_tokenizer()
  assert len(pieces["texts"]) > 4
  for text, ids in zip(pieces["texts"], pieces["ids"], strict=True):
    assert tokenizer.encode(text) == ids and tokenizer.text(ids) == text
  assert tokenizer.strings(tokenizer.encode_batch(["the cat"], eos=True)[0]) == ["<BOS>", " the", " cat", "<EOS>"]
  assert "漢" not in pieces["tokens"] and "�" in tokenizer.strings(tokenizer.encode("漢"))


def test_sentencepiece_tokenizer_without_scores_or_with_more_than_pieces_is_refused(tmp_path, pieces):
  metadata = {"kind": "llama", "tokens": pieces["tokens"], "types": pieces["types"], "bos_token_id": 1}
  assert "score" in refusal(load_target, gguf_file(tmp_path / "none.gguf", **metadata))
  metadata["scores"] = pieces["scores"]
  assert "score" in refusal(
    load_target, gguf_file(tmp_path / "few.gguf", **metadata | {"scores": pieces["scores"][:-1]})
  )
  own = pieces["types"][:-1] + [4]
  tokens = pieces["tokens"][:-1] + ["▁▁▁"]
  target = load_target(gguf_file(tmp_path / "own.gguf", **metadata | {"types": own, "tokens": tokens}))
  assert "'▁▁▁'" in refusal(target.require_tokenizer)
