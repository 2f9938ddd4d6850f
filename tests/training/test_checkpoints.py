"""Exact resumption of a run: after SIGTERM at any moment, SIGKILL, damaged checkpoints and full disks, and on another mesh."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict

from inversionview_jax import preemption
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.training import checkpoints, checksum, identity, loop, optimizers
from inversionview_jax.training.update import initial_state, state_shardings

HERE = pathlib.Path(__file__).parent.parent
MODEL = "model.safetensors"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# Runs in processes of their own, which are ended.


def start(folder, hold="", **changes):
  environment = os.environ | {
    "XLA_FLAGS": compilation.flags(), "HOLD": hold, "PYTHONPATH": str(HERE.parent),
  }  # fmt: skip
  argv = [sys.executable, str(HERE / "tiny_run.py"), str(folder), json.dumps(changes)]
  return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process, seconds=900) -> tuple[int, str]:
  _, error = process.communicate(timeout=seconds)
  assert "Traceback" not in error, error
  return process.returncode, error


def newest(folder) -> int:
  return max([0, *checkpoints.Checkpoints(checkpoints.folder_of(folder)).steps()])


@pytest.fixture(scope="module")
def straight(run):
  """The model of a run that nothing happened to."""
  return (run / MODEL).read_bytes()


def wait_for(condition, process, seconds=900):
  until = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None and time.monotonic() < until, process.communicate()
    time.sleep(0.02)


def terminated(folder, moment) -> tuple[int, str]:
  """Starts the run, sends SIGTERM at that moment -> exit code and stderr."""
  before = newest(folder)
  process = start(folder, hold=moment if moment != "train" else "")
  if moment == "train":
    wait_for(lambda: newest(folder) > before, process)
  else:
    assert process.stdout.readline().strip() == moment
  process.send_signal(signal.SIGTERM)
  return ended(process)


def test_run_that_is_stopped_at_every_moment_ends_with_the_same_bits(straight, tmp_path):
  """One run, stopped while it compiles and saves, then killed; it exits with 75 each time and loses no step."""
  code, _ = terminated(tmp_path, "compile")
  assert code == preemption.EXIT_AGAIN == 75 and newest(tmp_path) == 0
  code, error = terminated(tmp_path, "save")  # of step 8; noticed when four steps more were made
  assert code == 75 and newest(tmp_path) >= 8 and "stopped at step" in error
  reached = newest(tmp_path)
  process = start(tmp_path)
  wait_for(lambda: newest(tmp_path) > reached, process)
  process.kill()
  process.wait()
  code, error = ended(start(tmp_path))
  assert code == 0, error
  assert (tmp_path / MODEL).read_bytes() == straight
  steps = [
    line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "loss" in line
  ]
  assert steps == list(range(4, 41, 4))
  assert [
    line["step"] for line in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()) if "score" in line
  ] == [8, 16, 24, 32, 40]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["compile", "train", "evaluate", "save"])
def test_sigterm_in_each_phase(straight, tmp_path, moment):
  for _ in range(2):
    assert terminated(tmp_path, moment)[0] in ((75,) if moment != "train" else (75, 0))
  code, error = ended(start(tmp_path))
  assert code == 0, error
  assert (tmp_path / MODEL).read_bytes() == straight


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
  """Of start-up, restoring, compiling, training and saving; the last run ends with the bits of one that was left alone."""
  changes, drawn = {"steps": 2000, "save_every": 40, "eval_every": 40}, random.Random(0)
  seconds = []
  for _ in range(2):  # a whole run, and a start with nothing left to do
    begin = time.monotonic()
    code, error = ended(start(tmp_path / "straight", **changes), 3000)
    assert code == 0, error
    seconds.append(time.monotonic() - begin)
  whole, startup = seconds
  killed, reached = tmp_path / "killed", [0]
  for _ in range(20):
    process = start(killed, **changes)
    with pytest.raises(subprocess.TimeoutExpired):
      process.wait(timeout=drawn.uniform(0.3 * startup, startup + 0.06 * (whole - startup)))
    process.kill()
    process.communicate()
    logged = max([0, *(line["step"] for line in _lines(killed))])
    # An interval, and at most another one during which its checkpoint was being written.
    assert logged - newest(killed) <= 2 * changes["save_every"] and newest(killed) >= reached[-1]
    reached.append(newest(killed))
  assert len(set(reached)) > 2, reached
  code, error = ended(start(killed, **changes), 3000)
  assert code == 0, error
  assert (killed / MODEL).read_bytes() == (tmp_path / "straight" / MODEL).read_bytes()


def _lines(folder):
  path = folder / "metrics.jsonl"
  for line in path.read_text().splitlines() if path.exists() else []:
    try:
      yield json.loads(line)
    except ValueError:
      pass


# Damaged checkpoints.


def config(**changes) -> ConfigDict:
  return ConfigDict(tiny_run.CONFIG | changes)


def train(folder, n=1, **changes):
  mesh = parallel.make_mesh(devices=jax.devices()[:n])
  return loop.train(tiny_run.Slope(), tiny_run.rows(), config(**changes), folder, mesh)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run of 40 steps with checkpoints of steps 32 and 40."""
  folder = tmp_path_factory.mktemp("run") / "run"
  train(folder)
  assert checkpoints.Checkpoints(checkpoints.folder_of(folder)).steps() == [32, 40]
  return folder


def state_of(n=1):
  """The state as shapes on n devices, and what it depends on."""
  mesh = parallel.make_mesh(devices=jax.devices()[:n])
  settings = config()
  optimizer = optimizers.make_optimizer(settings.optimizer, settings.steps)
  shapes = jax.eval_shape(lambda: initial_state(tiny_run.Slope(), optimizer, settings))
  like = sharding.with_shardings(shapes, state_shardings(shapes, settings, mesh))
  return like, identity.describe(settings, tiny_run.rows(), {}), settings


def restored(folder, n=1):
  with checkpoints.Checkpoints(checkpoints.folder_of(folder)) as saved:
    return saved.restore(*state_of(n)), saved.notes


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
  content = bytearray(path.read_bytes())
  for at in np.random.default_rng(0).integers(0, len(content), size=1 + len(content) // 200):
    content[at] ^= 0x10
  path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink], ids=["truncated", "flipped", "missing"])
def test_newest_checkpoint_that_is_damaged_is_passed_over_with_a_note(run, tmp_path, damage):
  """Whichever file it is: the state that comes back is one that was saved, whole."""
  expected = jax.tree.map(np.asarray, restored(run)[0][0])
  fallen = 0
  files = [p.relative_to(run) for p in (run / "checkpoints" / "40").rglob("*") if p.is_file() and p.stat().st_size]
  assert len(files) >= 5
  for number, name in enumerate(files):
    shutil.copytree(run, tmp_path / str(number))
    damage(tmp_path / str(number) / name)
    (state, about), notes = restored(tmp_path / str(number))
    if about["step"] == 40:  # a file that nothing depends on
      jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), expected)
      continue
    fallen += 1
    assert about["step"] == 32 and int(state.step) == 32
    assert "checkpoint 40 is damaged" in notes[0] and "going on from step 32" in notes[0]
    assert not (tmp_path / str(number) / "checkpoints" / "40").exists()
    assert len(list((tmp_path / str(number) / "damaged").iterdir())) == 1
  assert fallen >= 2


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  for path in (tmp_path / "run" / "checkpoints" / "40" / "about").iterdir():
    path.write_text("{")
  (tmp_path / "run" / MODEL).unlink()
  train(tmp_path / "run")
  assert (tmp_path / "run" / MODEL).read_bytes() == (run / MODEL).read_bytes()
  notes = [line["note"] for line in _lines(tmp_path / "run") if "note" in line]
  assert len(notes) == 1 and "checkpoint 40 is damaged" in notes[0]


def test_nothing_but_damaged_checkpoints_is_refused_and_left_alone(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  for step in (32, 40):
    shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step) / "state")
  before = sorted(p for p in tmp_path.rglob("*"))
  with pytest.raises(InversionViewError, match="no checkpoint in .* can be read .*--workdir"):
    train(tmp_path / "run")
  assert sorted(p for p in tmp_path.rglob("*")) == before


def test_checkpoint_that_was_not_written_to_its_end_is_not_seen(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  place = tmp_path / "run" / "checkpoints"
  (place / "40").rename(place / "40.orbax-checkpoint-tmp-7")
  (state, about), notes = restored(tmp_path / "run")
  assert about["step"] == 32 and notes == []


@pytest.mark.parametrize("n", [2, 8])
def test_state_is_restored_on_another_number_of_devices(run, n):
  (one, _), _ = restored(run)
  (other, _), notes = restored(run, n)
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), one, other)
  assert notes == [] and len(other.params["layer"]["kernel"].sharding.device_set) == n


def test_run_goes_on_on_another_number_of_devices(run, tmp_path):
  train(tmp_path, n=1, steps=20)
  train(tmp_path, n=4)
  one, other = (storage.load_model(folder)[0] for folder in (run, tmp_path))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), one, other)


def test_sums_are_the_same_wherever_a_leaf_lives_and_change_with_every_bit():
  rng = np.random.default_rng(0)
  tree = {
    "a": rng.normal(size=(16, 8)).astype(np.float32), "b": np.int32(3), "c": rng.normal(size=24).astype(jnp.bfloat16),
    "d": rng.integers(0, 2, size=(3, 5)).astype(bool),
  }  # fmt: skip
  expected = checksum.sums(tree)
  mesh = parallel.make_mesh(model=2)
  placed = {k: parallel.replicate(v, mesh) for k, v in tree.items()} | {"a": parallel.shard(tree["a"], mesh)}
  on_device = np.asarray(checksum.on_device()([placed[k] for k in "abcd"])).tolist()
  assert on_device == [expected[k] for k in "abcd"]
  for at in range(0, 16 * 8 * 32, 7):
    other = tree["a"].copy()
    other.view(np.uint32).reshape(-1)[at // 32] ^= np.uint32(1 << at % 32)
    assert checksum.sums({"a": other})["a"] != expected["a"]
  assert checksum.sums({"a": tree["a"][::-1]})["a"] != expected["a"]


# What is kept.


def test_newest_are_kept_and_one_in_every_so_many_steps(tmp_path):
  train(tmp_path, steps=36, save_every=4, keep=2, keep_every=14)
  assert checkpoints.Checkpoints(checkpoints.folder_of(tmp_path)).steps() == [16, 28, 32, 36]


def test_keep_that_keeps_nothing_is_refused(tmp_path):
  with pytest.raises(InversionViewError, match="keep = 0"):
    train(tmp_path, keep=0)


# What a state depends on.


@pytest.mark.parametrize(
  "changes, named",
  [
    ({"batch_size": 32}, "config key batch_size is 32, but the run .* was trained with 16"),
    ({"seed": 1}, "config key seed is 1"),
    (
      {"optimizer": tiny_run.ADAMW | {"lr": 0.5}},
      "config key optimizer.lr is 0.5, but the run .* was trained with 0.01",
    ),
    ({"compute": {"dtype": "bfloat16"}}, "config key compute.dtype is 'bfloat16', .* absent"),
  ],
)
def test_workdir_of_another_config_is_refused_before_anything_is_compiled(run, changes, named):
  with pytest.raises(InversionViewError, match=named) as caught:
    loop.refuse_workdir(config(**changes), run, parallel.make_mesh(devices=jax.devices()[:1]))
  assert "--workdir" in str(caught.value) and "\n" not in str(caught.value)


def test_what_does_not_change_the_state_may_change(run):
  changes = {
    "steps": 80,
    "log_every": 1,
    "keep": 5,
    "mesh": {"model": 1},
    "compute": {"accumulate": 2},
    "save_every": 2,
  }
  loop.refuse_workdir(config(**changes), run, parallel.make_mesh(devices=jax.devices()[:1]))


def test_length_of_a_schedule_is_part_of_the_state_once_it_falls(tmp_path):
  falling = tiny_run.ADAMW | {"schedule": "trapezoid"}
  train(tmp_path, steps=20, optimizer=falling)
  mesh = parallel.make_mesh(devices=jax.devices()[:1])
  with pytest.raises(InversionViewError, match="config key steps is 40"):
    loop.refuse_workdir(config(optimizer=falling), tmp_path, mesh)
  loop.refuse_workdir(config(steps=20, optimizer=falling), tmp_path, mesh)
  shutil.rmtree(tmp_path / "checkpoints" / "20")  # what is left was saved when the rate began to fall
  assert newest(tmp_path) == 16
  loop.refuse_workdir(config(optimizer=falling), tmp_path, mesh)


def test_other_inputs_and_another_target_are_refused(run):
  like, mine, settings = state_of()
  saved = checkpoints.Checkpoints(checkpoints.folder_of(run))
  for name, other in (("data", {"rows": 320, "crc": 0}), ("identity", {"target": "abc"})):
    with pytest.raises(InversionViewError, match="were others"):
      saved.restore(like, mine | {name: other}, settings)


# Saves that fail.


class _Full(Exception):
  pass


def test_save_that_fails_is_reported_and_tried_again(tmp_path, monkeypatch):
  """The first of five fails, as a full disk makes it: in the background."""
  from orbax.checkpoint import JsonCheckpointHandler

  kept, failed = JsonCheckpointHandler.async_save, []

  async def fails(self, directory, *args, **kwargs):
    if not failed:
      failed.append(directory)
      raise OSError(28, "No space left on device")
    return await kept(self, directory, *args, **kwargs)

  monkeypatch.setattr(JsonCheckpointHandler, "async_save", fails)
  train(tmp_path)
  notes = [line for line in _lines(tmp_path) if "note" in line]
  assert failed and len(notes) == 1
  assert "the checkpoint of step 8 could not be saved: No space left on device" in notes[0]["note"]
  assert checkpoints.Checkpoints(checkpoints.folder_of(tmp_path)).steps() == [32, 40]


def test_run_whose_saves_all_fail_ends_with_an_error(tmp_path, monkeypatch):
  from orbax.checkpoint import JsonCheckpointHandler

  async def fails(self, *args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(JsonCheckpointHandler, "async_save", fails)
  with pytest.raises(InversionViewError, match="3 checkpoints in a row could not be saved .* No space left"):
    train(tmp_path)
  with pytest.raises(InversionViewError, match="No space left on device"):  # the only one, at the end
    train(tmp_path / "other", save_every=0)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 300 kB, or none where this process may not make one."""
  folder = tmp_path / "disk"
  folder.mkdir()
  made = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
  )
  if made.returncode:
    pytest.skip("this process may not mount a small file system")
  yield folder
  subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_ends_the_run_in_one_line(small_disk):
  (small_disk / "ballast").write_bytes(b"x" * 200_000)
  with pytest.raises(InversionViewError) as caught:
    train(small_disk / "run")
  assert "No space left on device" in str(caught.value) and "\n" not in str(caught.value)
  left = newest(small_disk / "run")
  (small_disk / "ballast").unlink()
  like, mine, settings = state_of()
  with checkpoints.Checkpoints(checkpoints.folder_of(small_disk / "run")) as saved:
    restored_state = saved.restore(like, mine, settings)
  assert (restored_state is None) == (left == 0)
