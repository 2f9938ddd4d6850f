"""One process at a time in a folder of results."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest
from refusals import refusal

from inversionview_jax import locks
from inversionview_jax.errors import InversionViewError

HOLD = """
import sys, time
from inversionview_jax import locks
with locks.exclusive(sys.argv[1], "wait"):
  print("held", flush=True)
  time.sleep(60)
"""


def take(folder):
  with locks.exclusive(folder, "wait for it"):
    return json.loads((folder / locks.FILE).read_text())


@pytest.fixture
def other(tmp_path):
  """A process that holds the lock of `tmp_path`."""
  process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.wait()
  process.stdout.close()


def test_the_lock_of_a_running_process_is_refused_and_that_of_a_killed_one_is_taken_over(other, tmp_path):
  message = refusal(take, tmp_path)
  assert f"process {other.pid} " in message and str(tmp_path) in message and "wait for it" in message
  assert refusal(locks.check, tmp_path, "wait for it") == message
  other.kill()
  other.wait()
  assert (tmp_path / locks.FILE).exists()
  locks.check(tmp_path, "")
  assert take(tmp_path)["pid"] == os.getpid()
  assert not list(tmp_path.iterdir())


def test_a_process_that_ended_before_it_was_waited_for_holds_nothing(other, tmp_path):
  other.kill()  # a zombie until `wait`
  while locks._born(other.pid):
    time.sleep(0.01)
  assert take(tmp_path)["pid"] == os.getpid()


def test_another_process_with_the_same_number_is_not_the_one_that_took_the_lock(tmp_path):
  with locks.exclusive(tmp_path, ""):
    content = json.loads((tmp_path / locks.FILE).read_text())
  (tmp_path / locks.FILE).write_text(json.dumps(content | {"born": "1"}))
  assert take(tmp_path)["token"] != content["token"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_lock_is_taken_over(tmp_path, content, monkeypatch):
  monkeypatch.setattr(locks, "_SILENCE", 0.2)
  (tmp_path / locks.FILE).write_text(content)
  assert take(tmp_path)["pid"] == os.getpid()


def test_a_lock_of_another_machine_is_taken_over_once_its_heartbeat_has_stopped(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(locks, "_SILENCE", 0.5)
  path = tmp_path / locks.FILE
  foreign = {"token": "t", "pid": 1, "host": "elsewhere", "boot": "b", "space": "s", "born": "2", "command": "train"}
  path.write_text(json.dumps(foreign))
  done = threading.Event()

  def beat():
    while not done.wait(0.05):
      os.utime(path)

  thread = threading.Thread(target=beat)
  thread.start()
  try:
    assert "elsewhere" in refusal(take, tmp_path)
  finally:
    done.set()
    thread.join()
  assert take(tmp_path)["pid"] == os.getpid()
  assert capsys.readouterr().err.count("waiting") == 2


def test_of_many_that_want_it_at_once_one_has_it(tmp_path):
  """Threads stand for processes: each takes a lock of its own. The lock of a process that has ended lies there."""
  (tmp_path / locks.FILE).write_text(json.dumps(locks._description("old") | {"pid": 2**22 + 1}))
  inside, most, won, lock = 0, 0, 0, threading.Lock()
  start = threading.Barrier(8)

  def work():
    nonlocal inside, most, won
    start.wait()
    try:
      with locks.exclusive(tmp_path, ""):
        with lock:
          inside, won = inside + 1, won + 1
          most = max(most, inside)
        time.sleep(1.0)
        with lock:
          inside -= 1
    except InversionViewError:
      pass

  threads = [threading.Thread(target=work) for _ in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert (most, won) == (1, 1)
  assert not list(tmp_path.iterdir())


def test_locks_of_a_process_that_ends_at_once_are_released(tmp_path):
  with locks.exclusive(tmp_path, ""):
    locks.release_all()
    assert not list(tmp_path.iterdir())
    assert take(tmp_path)
  assert not list(tmp_path.iterdir())
