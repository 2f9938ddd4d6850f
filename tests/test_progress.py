"""Bars: on a terminal only, never with --quiet, with the time that is left; loops report to the bar that follows them."""

import functools
import io
import pathlib

import pytest

from inversionview_jax import cli, progress, terminal

PACKAGE = pathlib.Path(progress.__file__).parent


@pytest.fixture
def screen(monkeypatch):
  """A terminal in memory: what bars write to it."""
  file = io.StringIO()
  on_a_terminal = functools.partial(terminal.console, file=file, force_terminal=True, width=100)
  monkeypatch.setattr(progress.terminal, "console", lambda **_: on_a_terminal())
  yield file
  progress.hide(False)


def test_a_bar_shows_the_share_and_the_time_left(screen):
  with progress.bar("samples", 4) as advance:
    advance(1)
  assert "samples" in screen.getvalue() and "25%" in screen.getvalue() and "left" in screen.getvalue()


def test_quiet_and_pipes_are_clean(screen, capsys, monkeypatch):
  progress.hide(True)
  with progress.bar("samples", 4) as advance, progress.following("more"):
    advance(1)
    list(progress.counted(range(3)))
  assert screen.getvalue() == ""
  progress.hide(False)
  monkeypatch.undo()
  with progress.bar("samples", 4) as advance, progress.following("more"):
    advance(1)
    list(progress.counted(range(3)))
  assert capsys.readouterr() == ("", "")  # no terminal here


def test_the_bars_of_steps_are_hidden_too(screen):
  shown = []
  for hidden in (False, True):
    progress.hide(hidden)
    before = len(screen.getvalue())
    with progress.StepBars() as bars:
      bars("nodes", 7, 0)
      bars("edges", 1, 4)
    shown.append(screen.getvalue()[before:])
  assert "nodes, 7 runs of the target" in shown[0] and "25%" in shown[0] and shown[1] == ""


def test_the_flag_hides_bars_of_its_own_command_only(monkeypatch):
  seen = []
  from inversionview_jax.commands import plan

  monkeypatch.setattr(plan, "run", lambda *_: seen.append(progress.is_hidden()) or 0)
  for argv in (["--quiet"], []):
    assert cli.main(["plan", "--config", "addition", "--topology", "cpu:1", *argv]) == 0
  assert seen == [True, False]


def reports(loop) -> list:
  seen: list = []
  token = progress._follower.set(lambda done, total: seen.append((done, total)))
  try:
    loop()
  finally:
    progress._follower.reset(token)
  return seen


def test_loops_report_to_the_bar_that_follows():
  assert list(progress.counted("abc")) == ["a", "b", "c"]  # without a bar
  assert reports(lambda: list(progress.counted("abc"))) == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_of_nested_loops_the_outermost_of_several_items_reports():
  def loop(outer):
    for _ in progress.counted(range(outer)):
      list(progress.counted(range(2)))

  assert reports(lambda: loop(3)) == [(0, 3), (1, 3), (2, 3), (3, 3)]
  assert reports(lambda: loop(1)) == [(0, 2), (1, 2), (2, 2)]


def test_a_loop_that_is_left_early_leaves_the_bar_to_the_next():
  def loop():
    for _ in progress.counted(range(5)):
      break
    list(progress.counted(range(2)))

  assert reports(loop)[-3:] == [(0, 2), (1, 2), (2, 2)]


def test_batches_on_devices_report():
  import numpy as np

  from inversionview_jax.devices import parallel

  rows = np.arange(10)
  assert reports(lambda: parallel.in_chunks(lambda chunk: chunk, rows, 4)) == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_every_bar_is_made_in_one_place():
  """Where --quiet and pipes without bars are seen to; a training's bar, which has losses beside it, asks there."""
  made = [
    path.name for path in PACKAGE.rglob("*.py") if "rich.progress" in path.read_text() and path.name != "progress.py"
  ]
  assert made == ["metrics_log.py"] and "progress.is_hidden()" in (PACKAGE / "training" / "metrics_log.py").read_text()


def test_a_following_bar_starts_anew_for_each_loop(screen):
  with progress.following("patching"):
    list(progress.counted(range(3)))
    list(progress.counted(range(2)))
  assert "patching" in screen.getvalue() and "100%" in screen.getvalue()
