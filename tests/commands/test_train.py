"""`train-target` and `train`: what is printed of a config, and settings that mean nothing to a command."""

import argparse
import json
from pathlib import Path

import pytest

from inversionview_jax.commands import phases, train
from inversionview_jax.commands.configs import load_config
from inversionview_jax.training import loop


@pytest.fixture
def untrained(monkeypatch):
  """The commands without their data and their training."""
  monkeypatch.setattr(
    train, "_rows", lambda task, config: (task.tokens(task.split("train")[:64]), task.tokens(task.split("test")[:32]))
  )
  monkeypatch.setattr(loop, "train", lambda *_: {"held_out": 32, "accuracy": 0.5, "rate": 0.25, "rate_lowest": 0.125})


def test_a_smoke_test_says_so_first_and_settings_are_shown_that_differ(inversionview, untrained):
  code, out, _ = inversionview("train-target", "--config", "counting:tiny", "--workdir", "W", "--config.seed=3")
  first, second, *rest = out.splitlines()
  assert code == 0 and first.startswith("counting:tiny is a smoke test")
  assert "W/target/config.json" in second and any(line.split()[:2] == ["seed", "3"] for line in rest)
  assert not any(line.startswith("  optimizer") or line.startswith("  batch_size") for line in rest)  # the reader's
  code, out, _ = inversionview("train-target", "--config", "addition", "--workdir", "V")
  assert code == 0 and "smoke" not in out and "all of it the default" in out.splitlines()[0]


def test_the_reader_s_settings_are_those_of_train(inversionview, untrained):
  code, out, _ = inversionview("train", "--config", "addition:tiny", "--workdir", "W", "--config.steps=7")
  assert code == 0 and any(line.split()[:2] == ["steps", "7"] for line in out.splitlines())
  assert not any(line.startswith("  target.") for line in out.splitlines())


def test_quiet_leaves_the_results(inversionview, untrained):
  code, out, error = inversionview("train-target", "--config", "addition:tiny", "--workdir", "W", "--quiet")
  assert (
    (code, error) == (0, "") and out.splitlines()[0].startswith("accuracy of whole answers") and "default" not in out
  )


@pytest.mark.parametrize(
  ("setting", "named"),
  [
    ("--config.steps=50", "--config.target.steps"),
    ("--config.optimizer.lr=0.1", "--config.target.optimizer.lr"),
    ("--config.sites=('a0.0',)", "leave it out"),
    ("--config.encoder_width=8", "`inversionview train`"),
  ],
)
def test_train_target_refuses_settings_that_change_nothing_of_a_target(refused, setting, named):
  message = refused("train-target", "--config", "addition:tiny", "--workdir", "W", setting)
  assert named in message and setting.split("=")[0] in message


def test_a_command_line_for_both_commands_is_taken(inversionview, untrained):
  both = [
    "--config",
    "addition:tiny",
    "--workdir",
    "W",
    "--config.seed=1",
    "--config.steps=4",
    "--config.target.steps=8",
  ]
  assert inversionview("train-target", *both)[0] == 0 and inversionview("train", *both)[0] == 0


PHASES = """
from ml_collections import ConfigDict
from inversionview_jax import config_blocks as blocks
from inversionview_jax.commands.configs import load_config

def get_config(variant=""):
  config = load_config("addition:tiny", [])
  config.unlock()
  config.target.model = blocks.transformer(16, n_layers=1, n_heads=1)
  config.target.update({"steps": 2, "steps_per_call": 1, "batch_size": 16, "eval_every": 2, "save_every": 2, "eval_examples": 16})
  config.target.phases = ({}, {"seed": 1, "optimizer.lr": 0.25, "start.reinit_tokens": "+"})
  if variant:
    config.target.phases = {"unknown": ({"optimizr.lr": 1.0},), "kind": (3,)}[variant]
  return config
"""


@pytest.fixture
def config_with_phases(tmp_path):
  (tmp_path / "phases.py").write_text(PHASES)
  return str(tmp_path / "phases.py")


def test_phases_follow_one_another_and_finished_ones_are_left_out(inversionview, monkeypatch, config_with_phases):
  rows = lambda task, config: (task.tokens(task.split("train")[:64]), task.tokens(task.split("test")[:32]))
  monkeypatch.setattr(train, "_rows", rows)
  code, out, error = inversionview("train-target", "--config", config_with_phases, "--workdir", "W")
  assert code == 0, error
  configs = [
    json.loads(path.read_text()) for path in (Path(f"W/{name}/config.json") for name in ("phases/target-01", "target"))
  ]
  assert [config["optimizer"]["lr"] for config in configs][1] == 0.25 != configs[0]["optimizer"]["lr"]
  assert [config["start"]["target"] for config in configs] == ["", "W/phases/target-01"]
  assert [config["steps"] for config in configs] == [2, 2] and not any("phases" in config for config in configs)
  assert [line for line in out.splitlines() if line.startswith("phase ")][1].startswith(
    "phase 2 of 2: seed = 1, optimizer.lr = 0.25"
  )
  code, out, _ = inversionview("train-target", "--config", config_with_phases, "--workdir", "W")
  titles = [line for line in out.splitlines() if line.startswith("phase ")]
  assert code == 0 and [title.endswith("(finished before)") for title in titles] == [True, False]


def test_the_shipped_reader_of_counting_is_one_config_of_ten_runs():
  config = load_config("counting:shipped", ["--config.seed=5"])
  runs = phases.of(config, Path("W"), "decoder", "init_from")
  assert len(runs) == 10 and {run.config.seed for run in runs} == {5} and not any(run.finished for run in runs)
  assert (runs[0].config.init_from, runs[-1].config.init_from) == ("", "W/phases/decoder-09")
  assert (runs[2].config.pairs_per_text, runs[2].config.steps, runs[3].config.pairs_per_text) == (0, 12_000, 2)
  assert (runs[-1].folder, runs[-1].config.optimizer.lr, runs[-1].config.steps) == (Path("W/decoder"), 0.003, 11_000)
  for run in runs:
    train._check(argparse.Namespace(config="counting:shipped"), run.config)


@pytest.mark.parametrize(
  ("variant", "given", "named"),
  [
    ("", "--config.target.optimizer.lr=0.1", "target.phases"),
    (":unknown", "", "phase 1 sets optimizr.lr"),
    (":kind", "", "must be a dict of settings"),
  ],
)
def test_phases_that_cannot_be_are_refused(refused, config_with_phases, variant, given, named):
  argv = [given] if given else []
  assert named in refused("train-target", "--config", config_with_phases + variant, "--workdir", "W", *argv)
