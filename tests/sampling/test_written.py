"""Texts that the target writes: functions of their index, from the model's own distribution, and a reader trained on them."""

import json

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax import reading
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.written import SHORTEST, written_by
from inversionview_jax.targets import task_and_target
from inversionview_jax.tasks import Text
from inversionview_jax.tasks.datasets import load_rows

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  texts = [f"{who} saw {count} cats by the river" for who in ("Ann", "Ben", "Cleo") for count in "2345"]
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=texts, heads=2)


@pytest.fixture(scope="module")
def task_target(folder):
  task, target = task_and_target("text", folder, settings={"length": 10})
  return written_by(task, target), target


def test_a_text_is_a_function_of_its_index(task_target):
  task, _ = task_target
  index = np.array([5, 900_000, 17, 5])
  rows = task.tokens(index)
  np.testing.assert_array_equal(rows[0], rows[3])
  np.testing.assert_array_equal(rows[1:2], task.tokens(index[1:2]))
  many = task.tokens(np.arange(100))  # more than are written together
  np.testing.assert_array_equal(many[[5, 17]], rows[[0, 2]])
  assert task.tokens(index[:0]).shape == (0, 10)


def test_texts_have_all_lengths_and_no_special_tokens(task_target):
  task, _ = task_target
  t, rows = task.tokenizer, task.tokens(np.arange(128))
  lengths = (rows == t.eos_id).argmax(axis=1) - 1
  assert (rows[:, 0] == t.bos_id).all() and set(lengths) == set(range(SHORTEST, 9))
  for row, length in zip(rows, lengths, strict=True):
    assert not np.isin(row[1 : length + 1], [*t.special_ids, t.eos_id, t.pad_id]).any()
    assert (row[length + 2 :] == t.pad_id).all()


def test_tokens_follow_the_model(task_target):
  """The mean log probability of what was drawn is the mean negative entropy of the distributions it was drawn from."""
  task, target = task_target
  t, rows = task.tokenizer, task.tokens(np.arange(512))
  logits = np.array(target.run(rows[:, :5]).logits[:, :4], np.float64)
  logits[..., [*t.special_ids, t.eos_id, t.pad_id]] = -np.inf
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  log_p = np.log(np.maximum(p, 1e-300))
  drawn = np.take_along_axis(log_p, rows[:, 1:5, None].astype(int), axis=-1)
  expected, spread = (p * log_p).sum(axis=-1), np.sqrt((p * log_p**2).sum(-1) - (p * log_p).sum(-1) ** 2)
  error = np.sqrt((spread**2).sum()) / drawn.size
  assert abs(drawn.mean() - expected.mean()) < 4 * error < 0.2


@pytest.mark.slow
def test_a_reader_trains_without_texts_and_loads(folder, tmp_path, capsys):
  argv = ("train", "--config", "configs/text.py:tiny", "--target", str(folder), "--workdir", str(tmp_path / "W"))
  settings = (
    "--config.inputs.vocabulary=all",
    "--config.inputs.length=8",
    "--config.inputs.count=64",
    "--config.sites=('x0.pre',)",
  )
  assert main([*argv, *settings, "--config.optimizer.name=adamw"]) == 0
  capsys.readouterr()
  reader = reading.load_reader(tmp_path / "W")
  assert isinstance(reader.task, Text) and reader.task.num_inputs == 64
  assert len(reader.preimage("Ann saw", "x0.pre", "END", num_samples=16).samples) == 16


def test_there_are_as_many_texts_as_the_setting_has(folder):
  """A training reads all of its inputs before the first step: a million texts would take a CPU a day, without a word."""
  task, target = task_and_target("text", folder, settings={"length": 10, "count": 12})
  task = written_by(task, target)
  assert task.num_inputs == 12
  assert load_rows(task, "train").shape == (9, 10) and load_rows(task, "test").shape == (3, 10)


def test_a_number_of_texts_is_refused_beside_files(folder, tmp_path):
  (tmp_path / "lines.txt").write_text("Ann saw 2 cats\n")
  with pytest.raises(InversionViewError, match=r"inputs\.count is 12, but there are inputs\.files"):
    task_and_target("text", folder, settings={"files": (str(tmp_path / "lines.txt"),), "count": 12})


def test_the_command_writes_the_texts_that_a_training_has(folder, tmp_path, capsys):
  path = tmp_path / "texts.jsonl"
  assert main(["texts", "--target", str(folder), "--count", "70", "--tokens", "8", "--out", str(path)]) == 0
  assert "70 texts in" in capsys.readouterr().out
  task, target = task_and_target("text", folder, settings={"length": 10})
  rows = written_by(task, target).tokens(np.arange(70))
  texts = [json.loads(line)["text"] for line in path.read_text().splitlines()]
  assert texts == [task.tokenizer.text(row.tolist()) for row in rows]
  assert main(["texts", "--target", str(folder), "--count", "2", "--tokens", "8"]) == 0
  assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == texts[:2]
  assert main(["texts", "--target", str(folder), "--out", str(tmp_path / "texts.txt")]) == 2
  assert "give a file that is called .jsonl" in capsys.readouterr().err


def test_files_stay_the_inputs_where_there_are_some(folder, tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("Ann saw 2 cats\nBen saw 3 cats\n")
  task, target = task_and_target("text", folder, settings={"files": (str(path),), "length": 10})
  assert written_by(task, target).num_inputs == 2 and task.enumerable
  with pytest.raises(InversionViewError, match=r"set inputs.files .*inputs.vocabulary=all"):
    task_and_target("text", folder, settings={"vocabulary": "data"})
