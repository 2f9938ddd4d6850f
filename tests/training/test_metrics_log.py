"""The log of a run: lines of lost steps are removed, torn lines are skipped, and a full disk costs lines, not the run."""

import json
import pathlib

import jax
import numpy as np
import pytest
from training_runs import lines, settings

from inversionview_jax.training import metrics_log, throughput


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
