"""Texts from files: what is read, what is refused and by which line, and how texts become inputs."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import tokenizer_json

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import sources, tokenizers
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer

LINES = [
  f"{who} saw {count} {what} by the river"
  for who in ("Ann", "Ben", "Cleo")
  for count in "2 3 4 5".split()
  for what in ("cats", "dogs")
]


@pytest.fixture(scope="module")
def base():
  return HuggingFaceTokenizer(tokenizer_json(LINES, 400), 0, 0, 0)


@pytest.fixture
def lines(tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("\n".join(LINES) + "\n")
  return str(path)


def refused(action) -> str:
  with pytest.raises(InversionViewError) as caught:
    action()
  assert "\n" not in str(caught.value)
  return str(caught.value)


def read(path, **how):
  return [text for _, text in sources.texts(str(path), **how)]


def test_every_kind_of_file_gives_the_same_texts(tmp_path):
  (tmp_path / "a.txt").write_bytes("\ufeff".encode() + "\r\n".join(LINES).encode())
  (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": line, "n": 1}) + "\n" for line in LINES))
  (tmp_path / "c.json").write_text(json.dumps([{"line": line} for line in LINES]))
  assert read(tmp_path / "a.txt") == read(tmp_path / "b.jsonl") == read(tmp_path / "c.json", field="line") == LINES
  assert read(tmp_path / "[ab].*") == LINES * 2
  assert [where for where, _ in sources.texts(str(tmp_path / "b.jsonl"))][2] == f"{tmp_path}/b.jsonl:3"


def arrow_file(path, texts):
  pa = pytest.importorskip("pyarrow")
  with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, pa.schema([("text", pa.string())])) as writer:
    writer.write_table(pa.table({"text": texts}))


def test_dataset_saved_by_hugging_face_is_read_split_by_split(tmp_path):
  for split, texts in (("train", LINES[:5]), ("test", LINES[5:8])):
    folder = tmp_path / split
    folder.mkdir()
    arrow_file(folder / "data-00000-of-00002.arrow", texts[:2])
    arrow_file(folder / "data-00001-of-00002.arrow", texts[2:])
    names = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in (0, 1)]
    (folder / "state.json").write_text(json.dumps({"_data_files": names}))
  (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
  assert read(tmp_path) == LINES[:5] and read(tmp_path, split="test") == LINES[5:8]
  assert "'validation'" in refused(lambda: read(tmp_path, split="validation"))
  part = tmp_path / "train" / "data-00001-of-00002.arrow"
  part.write_bytes(part.read_bytes()[:150])
  assert "data-00001-of-00002.arrow: truncated" in refused(lambda: read(tmp_path))
  part.unlink()
  assert "data-00001-of-00002.arrow is missing" in refused(lambda: read(tmp_path))


def test_parquet_is_read_and_a_truncated_one_refused(tmp_path):
  pa = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  path = tmp_path / "train-00000-of-00001.parquet"
  parquet.write_table(pa.table({"text": LINES}), path)
  assert read(path) == read(tmp_path) == LINES
  path.write_bytes(path.read_bytes()[:-30])
  assert "truncated" in refused(lambda: read(path))


def test_missing_pyarrow_is_named_with_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
  (tmp_path / "a.parquet").write_bytes(b"")
  assert "inversionview-jax[datasets]" in refused(lambda: read(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
  "name, content, named",
  [
    ("a.txt", b"one\n\ntwo\n", "a.txt:2 is empty"),
    ("a.txt", b"one\n   \n", "a.txt:2 is empty"),
    ("a.txt", b"one\ntwo\n\xff\xfeno\n", "a.txt:3 is not UTF-8"),
    ("a.txt", b"", "a.txt is empty"),
    ("a.jsonl", b'{"text": "a"}\n{"txt": 1}\n', "a.jsonl:2: there is no text in the field 'text' (there: txt)"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', "a.jsonl:2 is not JSON"),
    ("a.jsonl", b'{"text": "  "}\n', "a.jsonl:1: the text is empty"),
    ("a.json", b'{"text": "a"}', "a.json holds no list"),
    ("a.csv", b"a,b", "files of this kind are not read"),
  ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_line(tmp_path, name, content, named):
  (tmp_path / name).write_bytes(content)
  assert named in refused(lambda: read(tmp_path / name))


def test_missing_files_folders_and_datasets_are_named(tmp_path):
  assert "no file" in refused(lambda: read(tmp_path / "no.txt"))
  assert "no file matches" in refused(lambda: read(tmp_path / "*.txt"))
  assert "holds no dataset" in refused(lambda: read(tmp_path))
  assert "no TensorFlow dataset 'inversionview_nothing'" in refused(lambda: read("tfds:inversionview_nothing"))
  assert "is not in" in refused(lambda: read("tfds:inversionview_addition/tiny", data_dir=str(tmp_path)))
  assert "set inputs.files" in refused(lambda: read(""))


def test_texts_become_inputs_over_the_tokens_that_occur(base, lines):
  task = tasks.get("text", base, {"files": lines, "length": 16, "vocabulary": "data"})
  t, rows = task.tokenizer, task.tokens(np.arange(len(LINES)))
  assert [t.text(row) for row in rows] == LINES and rows.shape == (24, 16) and t.vocab_size < 60
  assert (rows[:, 0] == t.bos_id).all() and ((rows == t.eos_id).sum(axis=1) == 1).all()
  assert task.position(rows[0], "END") == int(np.argmax(rows[0] == t.eos_id)) - 1
  every = tasks.get("text", base, {"files": lines, "length": 16})
  assert every.tokenizer.vocab_size == base.vocab_size + 2
  ends = tasks.get("text", base, {"files": lines, "length": 16, "positions": ("END",)})
  for mask in (ends.query_mask(ends.tokens([0, 5])), np.asarray(ends.query_mask(jnp.asarray(ends.tokens([0, 5]))))):
    assert mask.sum(axis=1).tolist() == [1, 1] and ends.labels(ends.tokens([5])[0])[int(np.argmax(mask[1]))] == "END"


def test_long_texts_are_cut_or_left_out_and_counted(base, tmp_path, capsys):
  (tmp_path / "a.txt").write_text("\n".join([LINES[0], "Ann saw", LINES[1]]) + "\n")
  settings = {"files": str(tmp_path / "a.txt"), "length": 6}
  cut = tasks.get("text", base, settings)
  words = "".join(cut.tokenizer.text(row) for row in cut.tokens(np.arange(cut.num_inputs)))
  assert words == LINES[0] + "Ann saw" + LINES[1]
  assert f"2 of 3 texts are longer than 4 tokens and were cut: {cut.num_inputs} inputs" in capsys.readouterr().err
  left = tasks.get("text", base, {**settings, "long": "left"})
  assert [left.tokenizer.text(row) for row in left.tokens(np.arange(left.num_inputs))] == ["Ann saw"]
  assert "2 of 3 texts are longer than 4 tokens and were left out: 1 inputs" in capsys.readouterr().err
  none = tasks.get("text", base, {**settings, "length": 3, "long": "left"})
  assert "no text is left" in refused(lambda: none.num_inputs)


def test_windows_of_a_text_stay_on_one_side_of_the_split(base, lines):
  task = tasks.get("text", base, {"files": lines, "length": 6})
  train, test = task.split("train"), task.split("test")
  np.testing.assert_array_equal(np.sort([*train, *test]), np.arange(task.num_inputs))
  document = task._read[1]
  assert not set(document[train]) & set(document[test]) and len(set(document[test])) == 6
  assert (task.split("train") == train).all() and (task.split("train", 1)[:5] != train[:5]).any()


def test_reader_needs_no_files_until_an_input_is_read(base, lines):
  settings = {"files": lines, "length": 16, "vocabulary": "data"}
  made = tasks.get("text", base, settings)
  written = tokenizers.from_description(json.loads(json.dumps(made.tokenizer.describe())))
  pathlib.Path(lines).unlink()
  again = tasks.get("text", written, json.loads(json.dumps(made.settings)))
  assert again.tokenizer.vocab_size == made.tokenizer.vocab_size and again.labels(made.tokens([0])[0])
  assert "no file" in refused(lambda: again.tokens([0]))


@pytest.mark.parametrize(
  "settings, named",
  [
    ({"file": "a"}, "setting of the task text: 'file': did you mean files"), ({"long": "crop"}, "inputs.long"),
    ({"vocabulary": "some"}, "inputs.vocabulary"), ({"length": 2}, "inputs.length = 2"), ({"positions": ("S1",)}, "'S1'"),
  ],
)  # fmt: skip
def test_unknown_settings_are_named(base, settings, named):
  assert named in refused(lambda: tasks.get("text", base, settings))


def test_text_that_spells_out_a_special_token_is_refused(base, tmp_path):
  (tmp_path / "a.txt").write_text("fine\nnot <|endoftext|> fine\n")
  task = tasks.get("text", base, {"files": str(tmp_path / "a.txt")})
  assert "a.txt:2 spells out a special token" in refused(lambda: task.num_inputs)
