"""Loading a reader: what belongs together, what is refused in one line, and what is missing."""

import json
import shutil

import jax
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading import load_reader, shipped_readers
from inversionview_jax.tasks.tokenizers import CharTokenizer

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(save_small, tmp_path_factory):
  return save_small(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def reader(folder):
  return load_reader(folder)


def refusal(function, *args, **kwargs) -> str:
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_shipped_readers_are_listed():
  assert {"addition", "counting"} <= set(shipped_readers())


def test_decoder_of_another_target_is_refused_naming_both(folder, make_target):
  other = make_target(seed=1)
  message = refusal(load_reader, folder, target=other)
  assert "random-0" in message and make_target().fingerprint in message
  assert "random-1" in message and other.fingerprint in message


def test_decoder_of_another_convention_is_refused_naming_both(folder, make_target):
  message = refusal(load_reader, folder, target=make_target(convention="centered"))
  assert "'raw'" in message and "'centered'" in message


def test_decoder_of_another_tokenizer_is_refused_naming_both(folder, make_target):
  vocabulary = list(TASK.tokenizer.vocabulary)
  swapped = CharTokenizer((vocabulary[1], vocabulary[0], *vocabulary[2:]))
  message = refusal(load_reader, folder, target=make_target(tokenizer=swapped))
  assert "0123456789+=" in message and "1023456789+=" in message
  assert "0123456789+=" in refusal(load_reader, folder, target=make_target(tokenizer=None))


def test_decoder_and_target_that_were_exchanged_on_disk_are_refused(folder, make_target, tmp_path):
  from inversionview_jax.targets import save_target

  shutil.copytree(folder / "decoder", tmp_path / "decoder")
  other = make_target(seed=1)
  save_target(tmp_path / "target", other.params, other.config, TASK.tokenizer, other.name, other.task)
  assert other.fingerprint in refusal(load_reader, tmp_path)
  shutil.rmtree(tmp_path / "decoder")
  shutil.copytree(tmp_path / "target", tmp_path / "decoder")
  assert "'target', not a decoder" in refusal(load_reader, tmp_path)


@pytest.mark.parametrize("key", ["task", "target", "config", "tokenizer", "name", "fingerprint"])
def test_decoder_with_an_incomplete_description_is_refused(folder, tmp_path, key):
  shutil.copytree(folder, tmp_path / "reader")
  path = tmp_path / "reader" / "decoder" / "model.json"
  description = json.loads(path.read_text())
  del description[key]
  path.write_text(json.dumps(description))
  assert key in refusal(load_reader, tmp_path / "reader")


def test_folder_without_a_reader_is_refused_with_what_to_do(folder, tmp_path):
  assert "no-such-reader" in refusal(load_reader, "no-such-reader")
  assert "inversionview train" in refusal(load_reader, tmp_path)
  shutil.copytree(folder / "decoder", tmp_path / "decoder")
  assert "target" in refusal(load_reader, tmp_path)


def test_target_can_be_given_where_the_folder_has_none(folder, reader, make_target, tmp_path):
  shutil.copytree(folder / "decoder", tmp_path / "decoder")
  other = load_reader(tmp_path, target=make_target())
  jax.tree.map(np.testing.assert_array_equal, other.variables, reader.variables)
  assert other.target.fingerprint == reader.target.fingerprint
