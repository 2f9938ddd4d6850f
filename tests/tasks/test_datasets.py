"""Datasets by name and by index: what TFDS finds, what `load_rows` reads, and what `Batches` deals out."""

import concurrent.futures
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.datasets import load_rows

_ROOT = pathlib.Path(__file__).parent.parent.parent
_SIZES = {"train": 20_000, "test": 5_000}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  """A folder with both tiny datasets."""
  folder = tmp_path_factory.mktemp("datasets")
  for name in ("addition", "counting"):
    load_rows(tasks.get(name), "test", config="tiny", data_dir=folder, limit=1, progress=False)
  return folder


@pytest.fixture
def damaged(data_dir, tmp_path):
  """A copy of the tiny addition dataset that may be spoilt: (data_dir, folder of its files)."""
  shutil.copytree(data_dir / "inversionview_addition", tmp_path / "inversionview_addition")
  return tmp_path, tmp_path / "inversionview_addition" / "tiny" / "1.0.0"


class TestDatasets:
  @pytest.mark.parametrize("first", ["package", "tfds"])
  def test_tfds_knows_them_whichever_is_imported_first(self, first, data_dir):
    ours = "from inversionview_jax.tasks import registration; registration.register_when_imported()"
    lines = [ours, "import tensorflow_datasets as tfds"]
    if first == "package":
      lines.insert(1, "assert 'tensorflow_datasets' not in sys.modules")
    else:
      lines.reverse()
    lines += [
      "for name in ('inversionview_addition', 'inversionview_counting'):",
      "  assert set(tfds.builder_cls(name).builder_configs) == {'full', 'tiny'}",
      f"source = tfds.data_source('inversionview_addition/tiny', split='test', data_dir={str(data_dir)!r})",
      "assert len(source) == 5000",
      "assert 'tensorflow' not in sys.modules",
    ]
    code = "\n".join(["import sys", *lines])
    path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
      [sys.executable, "-c", code],
      env={**os.environ, "PYTHONPATH": path},
      capture_output=True,
      text=True,
      check=False,
    )
    assert result.returncode == 0, result.stderr

  @pytest.mark.parametrize("name", ["addition", "counting"])
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_record_i_is_input_i_of_the_split(self, name, split, data_dir):
    import tensorflow_datasets as tfds

    task = tasks.get(name)
    source = tfds.data_source(f"inversionview_{name}/tiny", split=split, data_dir=data_dir)
    assert len(source) == _SIZES[split]
    for i in (0, 1, 9_999, 10_000, len(source) - 1):
      i %= len(source)
      want = task.tokens(task.split(split)[i : i + 1])[0]
      assert source[i]["tokens"].dtype == np.int32
      np.testing.assert_array_equal(source[i]["tokens"], want)
      assert source[i]["text"].decode() == task.tokenizer.text(want)

  def test_full_is_the_default_and_holds_every_input(self, tmp_path):
    import tensorflow_datasets as tfds

    for name in ("addition", "counting"):
      builder = tfds.builder(f"inversionview_{name}", data_dir=tmp_path)
      assert builder.builder_config.name == "full"
      assert builder.info.file_format.value == "array_record"
      both = np.concatenate([builder.indices("train"), builder.indices("test")])
      np.testing.assert_array_equal(np.sort(both), np.arange(builder.TASK.num_inputs))


class TestLoadRows:
  @pytest.mark.parametrize("name", ["addition", "counting"])
  @pytest.mark.parametrize("split", ["train", "test"])
  def test_rows_are_the_inputs_of_the_task(self, name, split, data_dir):
    task = tasks.get(name)
    rows = load_rows(task, split, config="tiny", data_dir=data_dir, progress=False)
    assert rows.dtype == np.int8
    np.testing.assert_array_equal(rows, task.tokens(task.split(split)[: _SIZES[split]]))

  def test_limit_reads_the_first_rows(self, data_dir):
    addition = tasks.get("addition")
    rows = load_rows(addition, "train", config="tiny", data_dir=data_dir, limit=4_100)
    np.testing.assert_array_equal(rows, addition.tokens(addition.split("train")[:4_100]))

  def test_a_second_call_reads_what_the_first_made(self, data_dir, monkeypatch):
    from inversionview_jax.tasks import builders

    monkeypatch.setattr(builders.InversionviewAddition, "_generate_examples", lambda *_: pytest.fail("made again"))
    load_rows(tasks.get("addition"), "train", config="tiny", data_dir=data_dir, limit=1)

  def test_of_several_that_start_at_once_one_makes_the_dataset(self, tmp_path, monkeypatch):
    from inversionview_jax.tasks import builders

    made, generate = [], builders.InversionviewAddition._generate_examples

    def counted(self, split):
      made.append(split)
      return generate(self, split)

    monkeypatch.setattr(builders.InversionviewAddition, "_generate_examples", counted)
    # The lock belongs to an open file, so it keeps threads apart just as it does processes.
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      load = lambda split: load_rows(tasks.get("addition"), split, config="tiny", data_dir=tmp_path, progress=False)
      shapes = [rows.shape for rows in pool.map(load, ("train", "test"))]
    assert shapes == [(20_000, 14), (5_000, 14)]
    assert made == ["train", "test"]

  def test_rejects_names_and_numbers_that_make_no_sense(self, data_dir):
    addition = tasks.get("addition")
    with pytest.raises(InversionViewError, match="unknown split 'trian': did you mean train"):
      load_rows(addition, "trian", config="tiny", data_dir=data_dir)
    with pytest.raises(InversionViewError, match="unknown dataset config 'small'.*full, tiny"):
      load_rows(addition, "train", config="small", data_dir=data_dir)
    with pytest.raises(InversionViewError, match="limit is 0"):
      load_rows(addition, "train", config="tiny", data_dir=data_dir, limit=0)

  def test_names_a_data_dir_that_cannot_be_written(self, tmp_path):
    (tmp_path / "file").touch()  # a folder without permissions would not stop root
    with pytest.raises(InversionViewError, match="cannot make .*file/datasets.*TFDS_DATA_DIR"):
      load_rows(tasks.get("addition"), "train", config="tiny", data_dir=tmp_path / "file" / "datasets")

  @pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten", "removed", "without info", "bad info"])
  def test_names_a_damaged_dataset(self, how, damaged):
    data_dir, folder = damaged
    (records,) = folder.glob("*-train.array_record-*")
    size = records.stat().st_size
    if how == "truncated":
      os.truncate(records, size // 2)
    elif how == "emptied":
      os.truncate(records, 0)
    elif how == "overwritten":
      with open(records, "r+b") as file:
        file.seek(size // 3)
        file.write(b"\xff" * 50)
    elif how == "removed":
      records.unlink()
    elif how == "without info":
      (folder / "dataset_info.json").unlink()
    else:
      (folder / "dataset_info.json").write_text('{"name": ')
    message = "cannot read the dataset .*inversionview_addition/tiny .*delete that folder"
    with pytest.raises(InversionViewError, match=message) as caught:
      load_rows(tasks.get("addition"), "train", config="tiny", data_dir=data_dir)
    assert "\n" not in str(caught.value)

  def test_does_not_take_a_dataset_made_of_other_inputs(self, data_dir, monkeypatch):
    split = tasks.Task.split
    monkeypatch.setattr(tasks.Task, "split", lambda self, name: split(self, name, seed=1))
    with pytest.raises(InversionViewError, match="another version"):
      load_rows(tasks.get("addition"), "train", config="tiny", data_dir=data_dir)
