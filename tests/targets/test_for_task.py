"""One way from the name of a task to the task and its target, whichever kind of target it is."""

import dataclasses

import pytest
from ml_collections import ConfigDict
from small_models import gpt2_folder

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import for_task, load_target, save_target, task_and_target, write_reference

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", layers=3)


# Targets that were trained on their task.


def test_the_target_of_a_task_is_the_shipped_one_unless_another_is_given(tmp_path):
  task, target = task_and_target("addition")
  assert (task.name, target.name, target.task) == ("addition", "addition", "addition")
  assert target.resolve_task() is task and target.convention == "centered"
  _, raw = task_and_target("addition", convention="raw")
  assert raw.convention == "raw" and raw.fingerprint == load_target("addition", "raw").fingerprint
  raw.save(tmp_path / "target")
  for source in (tmp_path, tmp_path / "target", str(tmp_path)):
    assert task_and_target("addition", source)[1].fingerprint == target.fingerprint


def test_a_target_that_names_no_task_becomes_one_of_the_task_whose_tokens_it_has(tmp_path, small_target):
  save_target(tmp_path, small_target.params, small_target.config, small_target.tokenizer, "mine")
  task, target = task_and_target("addition", tmp_path)
  assert target.task == "addition" and target.resolve_task() is task


def test_a_target_that_is_loaded_already_is_taken_as_it_is(small_target):
  assert task_and_target("addition", small_target)[1] is small_target
  assert task_and_target("addition", "nowhere", moved_to=small_target)[1] is small_target


def test_a_config_gives_the_type_of_a_targets_numbers():
  config = ConfigDict({"task": "addition", "compute": {"target_dtype": "bfloat16"}, "target": {"dtype": "float32"}})
  assert str(task_and_target("addition", config=config)[1].params["embed"].dtype) == "bfloat16"
  assert str(task_and_target("addition", config=config, dtype="float32")[1].params["embed"].dtype) == "float32"


# Checkpoints of language models.


def test_the_target_of_a_language_task_is_a_checkpoint_over_the_tasks_tokens(checkpoint):
  config = ConfigDict({"task": "ioi", "target": {"path": str(checkpoint), "convention": "raw", "dtype": ""}})
  task, target = task_and_target("ioi", config=config)
  assert target.convention == "raw" and target.tokenizer == task.tokenizer and target.resolve_task() is task
  assert target.has_logits and target.config.n_layers == 3
  _, first = task_and_target("ioi", checkpoint, config, sites=["x0.pre", "a1.0"], convention="centered")
  assert first.convention == "centered" and first.config.n_layers == 2 and not first.has_logits


def test_a_reference_stands_for_its_checkpoint(checkpoint, tmp_path):
  task, target = task_and_target("ioi", checkpoint, sites=["a0.0"])
  write_reference(tmp_path / "target", checkpoint, target)
  for source in (tmp_path, tmp_path / "target"):
    _, again = task_and_target("ioi", source, sites=["a0.0"])
    assert again.fingerprint == target.fingerprint
  read = task_and_target("ioi", tmp_path / "target", settings=task.settings, tokenizer=task.tokenizer)[1]
  assert read.fingerprint == target.fingerprint and read.config.n_layers == 1
  other = gpt2_folder(tmp_path / "other", layers=3, seed=1)
  with pytest.raises(InversionViewError, match="is not the checkpoint that this reader was trained on"):
    task_and_target("ioi", tmp_path / "target", tokenizer=task.tokenizer, moved_to=other)


# What is refused.


@pytest.mark.parametrize(
  "task, source, message",
  [
    ("subtraction", None, "unknown task 'subtraction'"),
    ("addition", "nowhere", "no target 'nowhere'"),
    ("addition", "counting", "the target counting has another tokenizer"),
    ("ioi", None, "is about a language model: give its Hugging Face folder"),
    ("ioi", "nowhere", "no checkpoint 'nowhere'"),
  ],
)
def test_what_is_no_target_of_the_task_is_refused(task, source, message):
  with pytest.raises(InversionViewError, match=message):
    task_and_target(task, source)


def test_settings_of_a_config_are_those_of_language_targets_only():
  target = {"path": "P", "convention": "", "dtype": "bfloat16"}
  settings = for_task.TargetSettings.from_config({"task": "ioi", "target": target, "inputs": {"seed": 1}})
  assert settings == for_task.TargetSettings("P", dtype="bfloat16", inputs={"seed": 1})
  assert for_task.TargetSettings.from_config({"task": "addition", "target": target}) == for_task.TargetSettings()
  assert for_task.TargetSettings.from_config(None) == for_task.TargetSettings()


def test_a_language_task_takes_no_target_of_characters():
  with pytest.raises(InversionViewError, match="for language models: give a checkpoint with its tokenizer"):
    task_and_target("ioi", dataclasses.replace(load_target("addition"), tokenizer=tasks.get("addition").tokenizer))
