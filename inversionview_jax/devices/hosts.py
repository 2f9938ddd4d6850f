"""Multi-host runs: cluster detection, the host that writes, agreement on settings, and detection of lost hosts.

One process runs on each host (or on each accelerator) and all run the same command. The process with index 0 is the coordinator. Everything
here goes over the coordinator's key-value store, so nothing is compiled; only `Votes` is a collective on the devices.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inversionview_jax import locks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preemption import EXIT_AGAIN, exit_now

HEARTBEAT_TIMEOUT = 45.0  # seconds without a heartbeat after which a host counts as lost
_HEARTBEAT_INTERVAL = 2.0  # seconds
_KEY_PREFIX = "inversionview/"
_exchange_number = itertools.count()


def start(
  coordinator: str = "", processes: int = 0, process: int = -1, heartbeat_timeout: float = HEARTBEAT_TIMEOUT
) -> None:
  """Joins the other hosts, if there are any; must be called before anything that touches a device.

  Args:
    coordinator: HOST:PORT of process 0, reachable from all; "" takes it from the environment (`initialize_arguments`).
    processes: number of processes; 0 takes it from the environment.
    process: index of this one, from 0; -1 takes it from the environment.
    heartbeat_timeout: seconds without a heartbeat after which a host counts as lost and this process exits with `EXIT_AGAIN`.

  Raises:
    InversionViewError: settings that are incomplete or impossible, or hosts that do not find one another.
  """
  arguments = initialize_arguments(os.environ, coordinator, processes, process)
  if arguments is None or _client() is not None:
    return
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
  try:
    # JAX aborts a process whose peer is lost, without a message; `_HeartbeatMonitor` ends it first, with one.
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=max(2 * int(heartbeat_timeout), 100), shutdown_timeout_seconds=30
    )
  except (RuntimeError, ValueError, TypeError) as error:
    reason = " ".join(str(error).split())[:300]
    settings = ", ".join(f"{name}={value}" for name, value in arguments.items()) or "found in the environment"
    raise InversionViewError(f"the hosts do not find one another ({settings}): {reason}") from None
  if jax.process_count() > 1:
    _catch_aborts()
    _HeartbeatMonitor(heartbeat_timeout).start()


def initialize_arguments(
  environment: Mapping[str, str], coordinator: str = "", processes: int = 0, process: int = -1
) -> dict[str, Any] | None:
  """Arguments of `jax.distributed.initialize`, or None for a single process.

  Sources in this order: the arguments; JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (or Kubernetes'
  JOB_COMPLETION_INDEX); Open MPI; SLURM; a TPU slice (Cloud or GKE). {} leaves the detection to JAX.

  Args:
    environment: environment variables.
    coordinator: HOST:PORT of process 0, or "".
    processes: number of processes, or 0.
    process: index of this process, or -1.

  Raises:
    InversionViewError: settings that are incomplete or impossible.
  """

  def number(name: str) -> int | None:
    if name not in environment:
      return None
    try:
      return int(environment[name])
    except ValueError:
      raise InversionViewError(f"{name}={environment[name]} must be a whole number") from None

  def first(*numbers: int | None) -> int | None:
    return next((n for n in numbers if n is not None), None)

  coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
  count = first(processes or None, number("JAX_NUM_PROCESSES"))
  index = first(process if process >= 0 else None, number("JAX_PROCESS_ID"))
  if coordinator or count is not None or index is not None:
    count = first(count, number("OMPI_COMM_WORLD_SIZE"), number("SLURM_NTASKS"))
    index = first(index, number("JOB_COMPLETION_INDEX"), number("OMPI_COMM_WORLD_RANK"), number("SLURM_PROCID"))
    return _explicit_arguments(coordinator, count, index)
  if (number("OMPI_COMM_WORLD_SIZE") or 1) > 1:
    if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 no longer sets it
      raise InversionViewError("Open MPI gives no address of its first process; give --coordinator HOST:PORT")
    return {"cluster_detection_method": "ompi"}
  if (number("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
    return {"cluster_detection_method": "slurm"}
  if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _on_tpu_vm():
    return {}
  return None


def _explicit_arguments(coordinator: str, count: int | None, index: int | None) -> dict[str, Any] | None:
  """The arguments for a given coordinator, number of processes and index; None for a single process."""
  settings = {"--coordinator HOST:PORT": coordinator or None, "--num-processes": count, "--process-id": index}
  if missing := [name for name, value in settings.items() if value is None]:
    raise InversionViewError(f"several hosts need all three settings; missing: {', '.join(missing)}")
  assert count is not None and index is not None
  if ":" not in coordinator or not re.fullmatch("[0-9]{1,5}", coordinator.rsplit(":", 1)[1]):
    raise InversionViewError(f"--coordinator {coordinator} must be HOST:PORT, such as 10.0.0.1:1234")
  if not 0 <= index < count:
    raise InversionViewError(f"--process-id {index} is out of range: --num-processes is {count}, counted from 0")
  return None if count == 1 else {"coordinator_address": coordinator, "num_processes": count, "process_id": index}


def _on_tpu_vm() -> bool:
  """Whether this machine has TPU chips and libtpu; JAX then reads the other hosts from the machine's metadata server."""
  chips = itertools.chain(pathlib.Path("/dev").glob("accel*"), pathlib.Path("/dev/vfio").glob("[0-9]*"))
  return importlib.util.find_spec("libtpu") is not None and next(chips, None) is not None


def is_writer() -> bool:
  """Whether this process is the one that writes logs and finished models: process 0."""
  return _client() is None or jax.process_index() == 0


def print_on_first_host_only() -> None:
  """Discards this process's stdout from now on, unless it is the writer; stderr stays."""
  if not is_writer():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def is_multihost() -> bool:
  """Whether this run has several processes."""
  return _client() is not None and jax.process_count() > 1


def _client() -> Any:
  from jax._src import distributed  # the key-value store of the coordinator has no public name

  return distributed.global_state.client


def exchange(message: str, timeout: float = 600.0) -> list[str]:
  """The `message` of every process, in the order of their indices. Must be called by all of them; compiles nothing.

  Args:
    message: of this process.
    timeout: seconds to wait for each of the others.
  """
  if not is_multihost():
    return [message]
  client, prefix = _client(), f"{_KEY_PREFIX}exchange/{next(_exchange_number)}/"
  client.key_value_set(f"{prefix}{jax.process_index()}", message)
  return [client.blocking_key_value_get(f"{prefix}{p}", int(timeout * 1000)) for p in range(jax.process_count())]


def all_true(value: bool) -> bool:
  """Whether `value` is true on every host; must be called by all of them. Also serves as a barrier."""
  return set(exchange("1" if value else "0")) == {"1"}


def require_same(what: str, values: Mapping[str, Any]) -> None:
  """Checks that all hosts have the same `values`; must be called by all of them.

  Args:
    what: what the values are, for the message.
    values: plain data, compared as JSON.

  Raises:
    InversionViewError: on every host, naming a key that differs.
  """
  own = json.dumps(values, sort_keys=True, default=str)
  digests = exchange(hashlib.sha256(own.encode()).hexdigest())
  if len(set(digests)) == 1:
    return
  first, *_ = every = [json.loads(text) for text in exchange(own)]
  other = next(p for p, digest in enumerate(digests) if digest != digests[0])
  name = next(k for k in sorted({*first, *every[other]}) if first.get(k) != every[other].get(k))
  _shutting_down.set()  # from here on a host that has exited was not lost
  with contextlib.suppress(Exception):
    # No host exits before all have read the reason, and the coordinator exits last: JAX aborts the processes that it leaves behind.
    exchange("read", timeout=10.0)
    time.sleep(2.0 if jax.process_index() == 0 else 0.0)
  raise InversionViewError(
    f"the hosts disagree on the {what}: {name} is {first.get(name)!r} on host 0 and {every[other].get(name)!r} on host {other}; "
    "start all of them with the same command"
  )


@contextlib.contextmanager
def exclusive(folder: str | os.PathLike, remedy: str) -> Iterator[None]:
  """Holds the lock of a folder of results for all processes of this run; the writer takes it. Must be called by all of them.

  Args:
    folder: is there.
    remedy: what to do where another run holds it.

  Raises:
    InversionViewError: on every host: another run holds it.
  """
  with contextlib.ExitStack() as held:
    refusal = ""
    if is_writer():
      try:
        held.enter_context(locks.exclusive(folder, remedy))
      except InversionViewError as error:
        refusal = str(error)
    if refusal := exchange(refusal)[0]:
      raise InversionViewError(refusal)
    yield


def refuse_in_use(folder: str | os.PathLike, remedy: str) -> None:
  """Raises what `exclusive` would, as far as that can be seen at once; for before the work. Must be called by all processes."""
  refusal = ""
  if is_writer():
    try:
      locks.check(folder, remedy)
    except InversionViewError as error:
      refusal = str(error)
  if refusal := exchange(refusal)[0]:
    raise InversionViewError(refusal)


class Votes:
  """A non-blocking logical "or" over hosts: all see at the same step that one of them wants to stop.

  Each call starts a reduction and returns the result of the call before, so that no step waits for it.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._count, self._pending = mesh.size, None
    self._any = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))

  def any(self, value: bool) -> bool:
    """Whether any host's `value` was true: at once on a single host, with several as of the previous call."""
    if not is_multihost():
      return value
    previous = self._pending
    votes = jax.make_array_from_callback((self._count,), self._sharding, lambda _: np.array([value], np.int32))
    self._pending = self._any(votes)
    return previous is not None and bool(np.asarray(previous))


class _HeartbeatMonitor(threading.Thread):
  """Sends this host's heartbeat, checks those of the others, and ends the process when one of them is lost."""

  def __init__(self, timeout: float):
    super().__init__(name="hosts", daemon=True)
    self._timeout = timeout

  def run(self) -> None:
    client, own = _client(), jax.process_index()
    others = {str(p) for p in range(jax.process_count())} - {str(own)}
    last_seen, reached = dict.fromkeys(others, ("", time.monotonic())), time.monotonic()
    for beat in itertools.count():
      try:
        client.key_value_set(f"{_KEY_PREFIX}alive/{own}", str(beat), allow_overwrite=True)
        beats = {key.rsplit("/", 1)[1]: value for key, value in client.key_value_dir_get(f"{_KEY_PREFIX}alive/")}
        reached = time.monotonic()
      except Exception as error:  # of several types, none of them public
        # One failure may be chance, so the coordinator counts as lost after half the timeout.
        if not _shutting_down.is_set() and time.monotonic() - reached > self._timeout / 2:
          exit_host_lost(f"the first host cannot be reached ({' '.join(str(error).split())[:120]})")
        if _shutting_down.wait(_HEARTBEAT_INTERVAL):
          return
        continue
      now = time.monotonic()
      for p in others:
        if beats.get(p, "") != last_seen[p][0]:
          last_seen[p] = beats[p], now
        elif beats.get(p) != "done" and now - last_seen[p][1] > self._timeout and not _shutting_down.is_set():
          exit_host_lost(f"no heartbeat from host {p} for {self._timeout:.0f} seconds")
      if _shutting_down.wait(_HEARTBEAT_INTERVAL):
        return


def _catch_aborts() -> None:
  """Installs a handler for the abort with which JAX ends a process whose coordinator is gone: prints why, exits with `EXIT_AGAIN`.

  JAX's own callback for this cannot be set from Python (jaxlib 0.10.2: std::bad_cast), and Python's signal handlers run too late, so this is a
  SIGABRT handler at the level of C. Aborts for other reasons go on.
  """
  from jax._src import distributed

  address = distributed.global_state.coordinator_address
  assert address is not None  # `start` has initialized it
  host, port = address.rsplit(":", 1)

  def handler(_: int) -> None:
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
      exit_host_lost(f"the first host cannot be reached ({error})")

  c_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
  _handlers.append(c_handler)  # must live as long as the process
  ctypes.CDLL(None).signal(int(signal.SIGABRT), c_handler)


_handlers: list[Any] = []
_shutting_down = threading.Event()


def exit_host_lost(reason: str) -> None:
  """Ends this process with `EXIT_AGAIN` because another host is lost and their joint computation cannot go on."""
  exit_now(f"{reason}; the same command, on all hosts, resumes from the newest checkpoint", EXIT_AGAIN)


@contextlib.contextmanager
def exit_on_lost_host() -> Iterator[None]:
  """Turns the error of a collective whose peer is gone into one line on stderr and `EXIT_AGAIN`; other errors pass."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    message = " ".join(str(error).split())
    signs = ("gloo", "connection", "unavailable", "socket", "deadline", "heartbeat", "coordination", "peer", "nccl")
    if is_multihost() and any(sign in message.lower() for sign in signs):
      exit_host_lost(f"another host was lost ({message[:200]})")
    raise


def shutdown(code: int) -> None:
  """Ends the work of this process among several: waits for the others if `code` is 0, exits at once otherwise."""
  if not is_multihost():
    return
  _shutting_down.set()
  if code:
    locks.release_all()
    os._exit(code)
  with contextlib.suppress(Exception):
    _client().key_value_set(f"{_KEY_PREFIX}alive/{jax.process_index()}", "done", allow_overwrite=True)
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()
