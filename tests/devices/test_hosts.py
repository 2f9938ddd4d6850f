"""Multi-host runs: cluster detection, and two processes on this machine that train together, stop together and lose one another."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import compilation
import jax
import numpy as np
import pytest
import tiny_run

from inversionview_jax.devices import hosts, parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.training import checkpoints, loop

HERE = pathlib.Path(__file__).parent.parent
ORTE = {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[001-002]", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}


# Cluster detection.


@pytest.mark.parametrize(
  "environment, given, expected",
  [
    ({}, (), None),
    ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}, (), None),
    (SLURM, (), {"cluster_detection_method": "slurm"}),
    ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "2"} | ORTE, (), {"cluster_detection_method": "ompi"}),
    ({"OMPI_COMM_WORLD_SIZE": "1"}, (), None),
    ({"TPU_WORKER_HOSTNAMES": "a,b,c,d", "TPU_WORKER_ID": "0"}, (), {}),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, (), None),
    ({}, ("h:1", 2, 1), {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1}),
    ({}, ("h:1", 1, 0), None),
    (
      {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "3", "JOB_COMPLETION_INDEX": "2"},
      (),
      {"coordinator_address": "h:1", "num_processes": 3, "process_id": 2},
    ),
    (
      {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"},  # Open MPI 5
      ("h:1", 0, -1),
      {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1},
    ),
    (SLURM, ("h:1", 0, -1), {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1}),
  ],
)
def test_arguments_and_environment_give_the_cluster(environment, given, expected, monkeypatch):
  monkeypatch.setattr(hosts, "_on_tpu_vm", lambda: False)
  assert hosts.initialize_arguments(environment, *given) == expected


@pytest.mark.parametrize(
  "environment, given, named",
  [
    ({}, ("h:1", 0, -1), "missing: --num-processes, --process-id"),
    ({}, ("", 2, 0), "missing: --coordinator HOST:PORT"),
    ({}, ("h", 2, 0), "--coordinator h must be HOST:PORT"),
    ({}, ("h:1", 2, 2), "--process-id 2 is out of range"),
    (
      {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "two", "JAX_PROCESS_ID": "0"},
      (),
      "JAX_NUM_PROCESSES=two",
    ),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, (), "--coordinator"),
  ],
)
def test_incomplete_settings_are_refused_in_one_line(environment, given, named):
  with pytest.raises(InversionViewError, match=named) as caught:
    hosts.initialize_arguments(environment, *given)
  assert "\n" not in str(caught.value)


def test_one_host_agrees_with_itself():
  hosts.require_same("config", {"a": 1})
  assert hosts.exchange("x") == ["x"] and hosts.all_true(True) and not hosts.all_true(False) and hosts.is_writer()


# Two processes.


def pair(folder, changes=({}, {}), devices=1, heartbeat_timeout=120):
  """Starts both processes of a run."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  processes = []
  for process, changed in enumerate(changes):
    environment = os.environ | {
      "XLA_FLAGS": compilation.flags(devices), "PYTHONPATH": str(HERE.parent), "COORDINATOR": f"127.0.0.1:{port}", "PROCESSES": "2", "PROCESS": str(process),
      "HEARTBEAT_TIMEOUT": str(heartbeat_timeout),
    }  # fmt: skip
    argv = [sys.executable, str(HERE / "tiny_run.py"), str(folder), json.dumps(changed)]
    processes.append(
      subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
      )
    )
  return processes


def ended(processes, seconds=900) -> list[tuple[int, str]]:
  """Waits for the processes: (exit code, stderr) of each."""
  try:
    errors = [process.communicate(timeout=seconds)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def newest(folder) -> int:
  return max([0, *checkpoints.Checkpoints(checkpoints.folder_of(folder)).steps()])


def wait_for_step(folder, step, processes, seconds=900):
  until = time.monotonic() + seconds
  while newest(folder) < step:
    assert all(p.poll() is None for p in processes) and time.monotonic() < until, ended(processes, 1)
    time.sleep(0.05)


def test_two_processes_stop_together_resume_and_match_one(tmp_path):
  """SIGTERM to one of them only: both save the same step and exit with 75."""
  long = {"steps": 4000}
  two = pair(tmp_path / "two", (long, long))
  wait_for_step(tmp_path / "two", 16, two)
  two[1].send_signal(signal.SIGTERM)
  results = ended(two)
  assert [code for code, _ in results] == [75, 75], results
  lines = [next(line for line in error.splitlines() if line.startswith("stopped at step")) for _, error in results]
  assert lines[0] == lines[1]
  stopped = newest(tmp_path / "two")
  steps = stopped + 8 - stopped % 8
  codes = ended(pair(tmp_path / "two", ({"steps": steps},) * 2))
  assert [code for code, _ in codes] == [0, 0], codes
  one = tmp_path / "one"
  settings = tiny_run.ConfigDict(tiny_run.CONFIG | {"steps": steps})
  loop.train(tiny_run.Slope(), tiny_run.rows(), settings, one, parallel.make_mesh(devices=jax.devices()[:2]))
  a, b = (storage.load_model(folder)[0] for folder in (one, tmp_path / "two"))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)
  logged = [json.loads(line)["step"] for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
  assert logged == sorted(logged)  # one of them writes


@pytest.mark.slow
def test_two_processes_that_are_killed_resume_and_match_one(tmp_path):
  long = {"steps": 80}
  two = pair(tmp_path / "two", (long, long), devices=2)
  wait_for_step(tmp_path / "two", 16, two)
  for process in two:
    process.kill()
  ended(two)
  codes = ended(pair(tmp_path / "two", (long, long), devices=2))
  assert [code for code, _ in codes] == [0, 0], codes
  settings = tiny_run.ConfigDict(tiny_run.CONFIG | long)
  one = parallel.make_mesh(devices=jax.devices()[:4])
  loop.train(tiny_run.Slope(), tiny_run.rows(), settings, tmp_path / "one", one)
  a, b = (storage.load_model(folder)[0] for folder in (tmp_path / "one", tmp_path / "two"))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4), a, b)


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
def test_when_one_of_two_dies_the_other_exits_within_a_minute_with_the_reason(tmp_path, which):
  long = {"steps": 400_000}
  two = pair(tmp_path, (long, long), heartbeat_timeout=30)
  wait_for_step(tmp_path, 16, two)
  begin = time.monotonic()
  two[which].kill()
  ((code, error),) = ended([two[1 - which]], 60)
  two[which].communicate()
  assert time.monotonic() - begin < 60
  assert code == 75, error
  last = error.strip().splitlines()[-1]
  assert last.startswith("inversionview: ") and "host" in last and "resumes from the newest checkpoint" in last
  assert "Traceback" not in error


@pytest.mark.slow
def test_processes_that_disagree_on_the_config_are_refused_before_anything_is_compiled(tmp_path):
  for code, error in ended(pair(tmp_path, ({}, {"seed": 1}))):
    assert code == 2, error
    refused = [line for line in error.splitlines() if line.startswith("refused: ")]
    assert len(refused) == 1 and "the hosts disagree on the config: seed is 0 on host 0 and 1 on host 1" in refused[0]
  assert not list(tmp_path.iterdir())
