"""Tokenizers of Hugging Face folders and of the user: the ids that transformers gives, whatever file names the tokens and settings."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tokenizer_cases
from small_models import gpt2_folder

from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained import tokenizer_files, tokenizer_from
from inversionview_jax.targets import load_target
from inversionview_jax.tasks import tokenizers
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer

GOLDEN = json.loads(
  (tokenizer_cases.pathlib.Path(tokenizer_cases.__file__).parent / "golden" / "tokenizers.json").read_text()
)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def read(folder):
  return tokenizer_files.from_folder(folder, json.loads((folder / "config.json").read_text()))


@pytest.mark.parametrize("name", tokenizer_cases.CASES)
def test_ids_and_special_tokens_are_those_of_transformers(tmp_path, name):
  """The ids were committed (tests/parity/make_tokenizers.py), so that another version of transformers is noticed."""
  folder = tokenizer_cases.write(tmp_path / name, name)
  tokenizer, golden = read(folder), GOLDEN[name]
  assert [tokenizer.encode(text) for text in tokenizer_cases.TEXTS] == golden["ids"]
  bos, eos, pad = golden["specials"]
  config = json.loads((folder / "config.json").read_text())
  bos = config.get("bos_token_id", eos) if bos is None else bos
  eos = bos if eos is None else eos
  assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (bos, eos, eos if pad is None else pad)
  again = tokenizers.from_description(json.loads(json.dumps(tokenizer.describe())))
  assert again == tokenizer and [again.encode(text) for text in tokenizer_cases.TEXTS] == golden["ids"]


def test_the_kinds_that_were_read_wrongly_are_among_the_cases():
  ids = {name: case["ids"] for name, case in GOLDEN.items() if name != "transformers"}
  assert ids["gpt2"] != ids["gpt2_prefix_space"] and ids["llama_prefix_space"] != ids["llama_no_prefix_space"]
  assert all(len(ids[name][2]) == 4 for name in ("added_tokens_json", "added_tokens_decoder", "fast_added_tokens_json"))
  assert ids["split_special_tokens"][3] != ids["gpt2"][3]


def test_pad_that_is_bos_is_told_apart_by_position(tmp_path):
  tokenizer = read(tokenizer_cases.write(tmp_path / "qwen", "qwen_pad_is_bos"))
  assert tokenizer.pad_id == tokenizer.bos_id != tokenizer.eos_id
  rows = tokenizer.encode_batch(["the cat sat", "the", ""], eos=True)
  np.testing.assert_array_equal(tokenizer.padding(rows), np.arange(5) >= np.array([[5], [3], [2]]))
  assert tokenizer.strings(rows[1]) == ["<BOS>", "the", "<EOS>", "<PAD>", "<PAD>"]
  without_eos = tokenizer.encode_batch(["the cat sat", "the", ""])
  np.testing.assert_array_equal(tokenizer.padding(without_eos), np.arange(4) >= np.array([[4], [2], [1]]))


# What a user gives.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=["the cat sat on the mat", "Mary and John"] * 20)


@pytest.fixture(scope="module")
def own(folder):
  return load_target(folder)


def given(folder, kind):
  import tokenizers as library
  import transformers

  if kind == "transformers":
    return transformers.AutoTokenizer.from_pretrained(folder)
  if kind == "fast":
    return transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|endoftext|>"
    )
  if kind == "tokenizers":
    return library.Tokenizer.from_file(str(folder / "tokenizer.json"))
  if kind == "implementation":
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    made = library.ByteLevelBPETokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]])
    made.add_special_tokens(["<|endoftext|>"])
    return made
  return {"folder": folder, "path": folder / "tokenizer.json", "string": str(folder)}[kind]


@pytest.mark.parametrize("kind", ["transformers", "fast", "tokenizers", "implementation", "folder", "path", "string"])
def test_a_tokenizer_of_any_kind_may_be_given(folder, own, tmp_path, kind):
  (tmp_path / "bare").mkdir()
  for file in ("config.json", "model.safetensors"):
    (tmp_path / "bare" / file).symlink_to(folder / file)
  target = load_target(tmp_path / "bare", tokenizer=given(folder, kind))
  for text in ("the cat sat on<|endoftext|>", "Mary and 12 ümlauts"):
    np.testing.assert_array_equal(target.encode([text]), own.encode([text]))
  assert (target.tokenizer.bos_id, target.tokenizer.eos_id, target.tokenizer.pad_id) == (0, 0, 0)


def test_a_tokenizer_written_in_python_runs_texts(own):
  from transformers import ByT5Tokenizer

  tokenizer = tokenizer_from(ByT5Tokenizer(), {"vocab_size": 400, "bos_token_id": 1})
  assert tokenizer.encode("añ") == ByT5Tokenizer()("añ", add_special_tokens=False)["input_ids"]
  assert tokenizer.strings(tokenizer.encode_batch(["ab"], length=5, eos=True)[0]) == [
    "<BOS>",
    "a",
    "b",
    "<EOS>",
    "<PAD>",
  ]
  assert tokenizer.text(tokenizer.encode("añ")) == "añ" and hash(tokenizer) is not None
  assert tokenizer == tokenizer_from(ByT5Tokenizer(), {"vocab_size": 400, "bos_token_id": 1})
  with pytest.raises(InversionViewError, match="ByT5Tokenizer cannot be stored; load the checkpoint with tokenizer="):
    tokenizers.from_description(tokenizer.describe())


def test_what_is_no_tokenizer_is_refused_in_one_line(folder, tmp_path):
  (tmp_path / "t.json").write_text("{}")
  for wrong, message in (
    (3, "tokenizer= int is no tokenizer"),
    (tmp_path, "came without a tokenizer"),
    (tmp_path / "t.json", "cannot read a tokenizer from"),
    (tmp_path / "none.json", "cannot read a tokenizer from"),
    ("no-such-task", "unknown task 'no-such-task'"),
  ):
    with pytest.raises(InversionViewError, match=message) as caught:
      load_target(folder, tokenizer=wrong)
    assert "\n" not in str(caught.value)


def test_the_tokenizer_keeps_the_chat_template_of_its_folder(tmp_path):
  pytest.importorskip("jinja2", reason="transformers needs jinja2 for chat templates")
  template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  folder = tokenizer_cases.write(tmp_path / "chat", "qwen_pad_is_bos")
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  changed = settings | {"chat_template": template, "bos_token": "<|im_start|>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(changed))
  tokenizer = read(folder)
  chat = tokenizer.original.apply_chat_template([{"role": "user", "content": "the cat"}], tokenize=False)
  assert chat == "<|im_start|>user\nthe cat<|im_end|>\n"
  # One BOS, although the template writes it.
  (row,) = tokenizer.encode_batch([chat])
  assert row.tolist() == GOLDEN["qwen_pad_is_bos"]["ids"][tokenizer_cases.TEXTS.index(chat)]


@pytest.mark.parametrize("tokens, rows, own, fits", [
    (330, 384, True, True), (330, 384, False, True), (330, 500, True, True), (330, 500, False, False), (50, 128, True, True),
    (330, 1000, True, False), (330, 329, True, False), (330, 334, False, True), (330, 64 * 40, False, False),
])  # fmt: skip
def test_a_padded_vocabulary_fits(tokens, rows, own, fits):
  class Sized:
    bos_id = eos_id = pad_id = 0
    vocab_size = model_size = tokens

  if fits:
    tokenizers.check_fits(Sized(), rows, own)
  else:
    with pytest.raises(InversionViewError, match=f"{tokens} tokens but the model {rows}"):
      tokenizers.check_fits(Sized(), rows, own)


def test_transformers_is_imported_for_hugging_face_folders_only():
  code = (
    "import sys, inversionview_jax as iv\n"
    "iv.load_target('addition'), iv.load_reader('counting')\n"
    "assert not {'transformers', 'tokenizers', 'torch'} & set(sys.modules), 'imported'\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_a_text_that_the_tokenizer_cannot_encode_is_refused_in_one_line():
  library = pytest.importorskip("tokenizers")
  made = library.Tokenizer(library.models.WordLevel({"a": 0, "b": 1}, unk_token="<unk>"))
  tokenizer = HuggingFaceTokenizer(made.to_str(), 0, 1, 1)
  for encode in (
    tokenizer.encode,
    lambda text: tokenizer.encode_many([text]),
    lambda text: tokenizer.token_at(text, 0),
  ):
    with pytest.raises(InversionViewError, match="cannot encode the text"):
      encode("c")
