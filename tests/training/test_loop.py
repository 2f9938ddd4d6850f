"""The training loop: the files it writes, exact resumption, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_runs import ADAMW, ROWS, Slope, finished, lines, refusal, settings

from inversionview_jax.models import storage
from inversionview_jax.training import loop

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# What a run writes.


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of 20 steps without a stop: (folder, its metrics)."""
  folder = tmp_path_factory.mktemp("straight") / "run"
  return folder, loop.train(Slope(), ROWS, settings(), folder)


def test_log_has_a_line_per_interval_and_one_per_evaluation(straight):
  folder, metrics = straight
  logged = lines(folder)
  assert [line["step"] for line in logged if "loss" in line] == [5, 10, 15, 20]
  assert [line["step"] for line in logged if "score" in line] == [10, 20]
  for line in logged:
    assert line["seconds"] >= 0
    if "loss" in line:
      assert line["grad_norm"] > 0 and line["steps_per_second"] > 0
      assert line["examples_per_second"] == pytest.approx(16 * line["steps_per_second"])
  assert logged[-1]["score"] == metrics["score"]
  assert json.loads((folder / "config.json").read_text()) == settings().to_dict()
  assert any((folder / "tensorboard").iterdir())


def test_steps_per_call_changes_nothing_but_speed(straight, tmp_path):
  loop.train(Slope(), ROWS, settings(steps_per_call=1), tmp_path)
  for one, other in zip(*(jax.tree.leaves(storage.load_model(folder)[0]) for folder in (straight[0], tmp_path))):
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_evaluation_returns_as_extra_is_what_the_next_steps_use(tmp_path):
  objective = Slope(evaluate=lambda extra: {"gain": jnp.float32(0)})
  loop.train(objective, ROWS, settings(), tmp_path)
  assert [line["grad_norm"] > 0 for line in lines(tmp_path) if "loss" in line] == [True, True, False, False]


# Resuming.


def test_longer_run_goes_on_where_the_shorter_one_ended_bit_by_bit(straight, tmp_path):
  first = Slope()
  loop.train(first, ROWS, settings(steps=10), tmp_path)
  assert finished(tmp_path) != finished(straight[0])
  second = Slope()
  loop.train(second, ROWS, settings(), tmp_path)
  assert finished(tmp_path) == finished(straight[0])
  assert first.evaluated == [True] and second.evaluated == [True]
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize("torn", ["", '{"step": 10, "seco'])
def test_run_that_was_stopped_goes_on_from_its_newest_checkpoint_bit_by_bit(straight, tmp_path, torn):
  class Stopped(Exception):
    pass

  class Stopping(Slope):
    def evaluate(self, params, extra, final):
      if final:
        raise Stopped
      return super().evaluate(params, extra, final)

  with pytest.raises(Stopped):
    loop.train(Stopping(), ROWS, settings(), tmp_path)
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]
  assert not (tmp_path / "model.json").exists()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(torn)
  objective = Slope()
  loop.train(objective, ROWS, settings(), tmp_path)
  assert objective.evaluated == [True]  # that of step 10 was done before
  assert finished(tmp_path) == finished(straight[0])
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize("steps", [20, 10])
def test_running_a_finished_run_again_trains_nothing_and_changes_nothing(straight, tmp_path, monkeypatch, steps):
  folder, metrics = straight
  shutil.copytree(folder, tmp_path / "run")
  monkeypatch.setattr(loop, "make_update", lambda *args: lambda *args: pytest.fail("trained"))
  objective = Slope()
  again = loop.train(objective, ROWS, settings(steps=steps), tmp_path / "run")
  assert again == metrics and objective.evaluated == []
  assert finished(tmp_path / "run") == finished(folder)
  assert (tmp_path / "run" / "model.json").read_text() == (folder / "model.json").read_text()
  assert lines(tmp_path / "run") == lines(folder)


@pytest.mark.parametrize(
  "width, changes, named",
  [
    (6, {}, "params/layer/kernel is of shape (4, 4) there and of shape (6, 4) here"),
    (4, {"average": 0.0}, "config key average is 0.0, but the run"),
    (4, {"optimizer": ADAMW | {"name": "muon"}}, "config key optimizer.name is 'muon'"),
    (4, {"optimizer": ADAMW | {"lr": 0.1, "clip": 0.5}}, "config key optimizer.clip is 0.5"),
    (4, {"optimizer": ADAMW | {"schedule": "cosine"}}, "config key optimizer.schedule"),
  ],
)
def test_checkpoint_of_another_config_is_refused_and_left_alone(straight, tmp_path, width, changes, named):
  shutil.copytree(straight[0], tmp_path / "run")
  before = contents(tmp_path / "run")
  message = refusal(loop.train, Slope(width), ROWS, settings(steps=30, **changes), tmp_path / "run")
  assert named in message and "resume" in message and "--workdir" in message
  assert contents(tmp_path / "run") == before


def contents(folder) -> dict:
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_settings_that_cannot_be_used_are_named(tmp_path):
  for wrong in ({"steps": 0}, {"batch_size": 0}, {"steps_per_call": -1}, {"batch_size": 12}):
    (name,) = wrong
    assert f"{name} = {wrong[name]}" in refusal(loop.train, Slope(), ROWS, settings(**wrong), tmp_path)
  (tmp_path / "file").write_text("")
  assert "folder" in refusal(loop.train, Slope(), ROWS, settings(), tmp_path / "file" / "run")
