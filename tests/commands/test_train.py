"""`train-target` and `train`: what is printed of a config, and settings that mean nothing to a command."""

import pytest

from inversionview_jax.commands import train
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
