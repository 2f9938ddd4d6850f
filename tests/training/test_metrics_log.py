"""The log of a run: lines of lost steps are removed, torn lines are skipped, and a full disk costs lines, not the run."""

import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest
from training_runs import ROWS, Slope, lines, settings

from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import loop, metrics_log, throughput


def opened(folder, done=0):
  return metrics_log.MetricsLog(folder, settings(), done, 10, throughput.Clock(), 0.0, jax.devices()[:1])


def test_lines_behind_the_step_that_is_resumed_from_are_removed(tmp_path):
  log = opened(tmp_path)
  for step in (5, 10, 15):
    log.losses(step, np.ones(5), np.ones(5), log=True)
  log.metrics(10, {"score": 1.0})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 16, "lo')  # as a run that was killed leaves it
  opened(tmp_path, done=10)
  assert [line["step"] for line in lines(tmp_path)] == [5, 10, 10]


def test_last_metrics_are_those_of_the_evaluation_after_that_step(tmp_path):
  log = opened(tmp_path)
  log.metrics(10, {"score": 1.0})
  log.losses(10, np.ones(5), np.ones(5), log=True)
  log.note(10, "a message")
  assert log.last_metrics(10) == {"score": 1.0} and log.last_metrics(5) is None
  assert [line["note"] for line in lines(tmp_path) if "note" in line] == ["a message"]


def test_losses_are_means_and_rates_count_training_time_only(tmp_path):
  log = opened(tmp_path)
  log.losses(5, np.array([1.0, 3.0]), np.array([2.0, 4.0]), log=False)
  assert not lines(tmp_path)
  log.losses(10, np.array([1.0, 3.0]), np.array([2.0, 4.0]), log=True)
  (line,) = lines(tmp_path)
  assert (line["step"], line["loss"], line["grad_norm"]) == (10, 2.0, 3.0)
  assert line["examples_per_second"] == pytest.approx(16 * line["steps_per_second"]) and line["lost_share"] > 0
  assert json.loads((tmp_path / "config.json").read_text()) == settings().to_dict()


def test_log_that_cannot_be_written_is_noted_once(tmp_path, monkeypatch, capsys):
  log = opened(tmp_path)

  def full(self, *args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(pathlib.Path, "open", full)
  for step in (5, 10):
    log.metrics(step, {"score": 1.0})
  assert " ".join(capsys.readouterr().err.split()).count("No space left on device") == 1


WANDB = """
import json, pathlib
calls = []
class Run:
  def log(self, values, step): calls.append(("log", step, sorted(values)))
  def finish(self): calls.append(("finish",))
def init(**settings):
  calls.append(("init", settings))
  return Run()
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
  """A stand-in for the package of that name, which is not installed for the tests; `calls` are those it got."""
  (tmp_path / "packages").mkdir()
  (tmp_path / "packages" / "wandb.py").write_text(WANDB)
  monkeypatch.syspath_prepend(tmp_path / "packages")
  monkeypatch.delitem(sys.modules, "wandb", raising=False)
  yield importlib.import_module("wandb")
  sys.modules.pop("wandb", None)


def test_a_run_logs_to_weights_and_biases_and_resumes_there(tmp_path, wandb):
  for steps in (10, 20):
    loop.train(Slope(), ROWS, settings(log="wandb", steps=steps), tmp_path / "W" / "decoder")
  (_, first), (_, second) = (call for call in wandb.calls if call[0] == "init")
  assert first["id"] == second["id"] and second["resume"] == "allow" and first["name"] == "W/decoder"
  assert second["config"] == settings(log="wandb").to_dict() and first["project"] == "inversionview"
  logged = {step: names for name, step, names in (call for call in wandb.calls if call[0] == "log") if "loss" in names}
  assert sorted(logged) == [5, 10, 15, 20] and {"loss", "grad_norm", "steps_per_second"} <= set(logged[20])
  assert wandb.calls.count(("finish",)) == 2
  assert [line["step"] for line in lines(tmp_path / "W" / "decoder") if "loss" in line] == sorted(logged)


def test_weights_and_biases_without_its_package_is_refused_before_anything_is_made(tmp_path):
  with pytest.raises(InversionViewError, match=r"inversionview_jax\[wandb\]"):
    loop.train(Slope(), ROWS, settings(log="wandb"), tmp_path / "W")
  assert not list((tmp_path / "W").iterdir()) if (tmp_path / "W").exists() else True
  with pytest.raises(InversionViewError, match="tensorboard, wandb"):
    loop.train(Slope(), ROWS, settings(log="mlflow"), tmp_path / "W")
