"""Several hosts: how they find one another, who writes, what they must agree on, and what happens when one is lost.

One process runs on each host (or on each accelerator) and all run the same command. The first of them is the coordinator.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time

import jax
import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.preemption import AGAIN, leave

SILENCE = 45.0  # seconds without a sign of life after which a host counts as lost
_BEAT = 2.0
_ROOM = "inversionview/"
_turn = itertools.count()


def start(coordinator: str = "", processes: int = 0, process: int = -1, silence: float = SILENCE) -> None:
  """Joins the other hosts, if there are any; must come before anything that touches a device.

  Args:
    coordinator: HOST:PORT of the first process, reachable from all; "" for what the environment says (`settings_of`).
    processes: how many there are; 0 for what the environment says.
    process: which of them this is, from 0; -1 for what the environment says.
    silence: seconds without a sign of life after which a host is given up and this process ends, to be started again.

  Raises:
    InversionViewError: settings that are incomplete or impossible, or hosts that do not find one another.
  """
  said = settings_of(os.environ, coordinator, processes, process)
  if said is None or _client() is not None:
    return
  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
  try:
    # JAX's own way to end a process whose peer is lost is an abort without a word; ours (`_Watch`) comes first.
    jax.distributed.initialize(
      **said, heartbeat_timeout_seconds=max(2 * int(silence), 100), shutdown_timeout_seconds=30
    )
  except (RuntimeError, ValueError, TypeError) as error:
    why = " ".join(str(error).split())[:300]
    asked = ", ".join(f"{name}={value}" for name, value in said.items()) or "found in the environment"
    raise InversionViewError(f"the hosts do not find one another ({asked}): {why}") from None
  if jax.process_count() > 1:
    _catch_aborts()
    _Watch(silence).start()


def settings_of(environment, coordinator: str = "", processes: int = 0, process: int = -1) -> dict | None:
  """Arguments of `jax.distributed.initialize`, or None for a process on its own.

  In this order: what is given; JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (or Kubernetes'
  JOB_COMPLETION_INDEX); Open MPI; SLURM; a TPU slice (Cloud or GKE). {} leaves the finding to JAX.
  """

  def number(name: str) -> int | None:
    if name not in environment:
      return None
    try:
      return int(environment[name])
    except ValueError:
      raise InversionViewError(f"{name}={environment[name]} must be a whole number") from None

  def first(*numbers):
    return next((n for n in numbers if n is not None), None)

  coordinator = coordinator or environment.get("JAX_COORDINATOR_ADDRESS", "")
  count = first(processes or None, number("JAX_NUM_PROCESSES"))
  index = first(process if process >= 0 else None, number("JAX_PROCESS_ID"))
  if coordinator or count is not None or index is not None:
    count = first(count, number("OMPI_COMM_WORLD_SIZE"), number("SLURM_NTASKS"))
    index = first(index, number("JOB_COMPLETION_INDEX"), number("OMPI_COMM_WORLD_RANK"), number("SLURM_PROCID"))
    missing = [
      name
      for name, value in (
        ("--coordinator HOST:PORT", coordinator or None),
        ("--num_processes", count),
        ("--process_id", index),
      )
      if value is None
    ]
    if missing:
      raise InversionViewError(f"several hosts need all three settings; missing: {', '.join(missing)}")
    if ":" not in coordinator or not coordinator.rsplit(":", 1)[1].isdigit():
      raise InversionViewError(f"--coordinator {coordinator} must be HOST:PORT, such as 10.0.0.1:1234")
    if not 0 <= index < count:
      raise InversionViewError(f"--process_id {index} is out of range: --num_processes is {count}, counted from 0")
    return None if count == 1 else {"coordinator_address": coordinator, "num_processes": count, "process_id": index}
  if (number("OMPI_COMM_WORLD_SIZE") or 1) > 1:
    if "OMPI_MCA_orte_hnp_uri" not in environment:  # Open MPI 5 no longer says where its launcher is
      raise InversionViewError("Open MPI does not say where its first process is; give --coordinator HOST:PORT")
    return {"cluster_detection_method": "ompi"}
  if (number("SLURM_NTASKS") or 1) > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_NODELIST" in environment:
    return {"cluster_detection_method": "slurm"}
  if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or _on_tpu_vm():
    return {}
  return None


def _on_tpu_vm() -> bool:
  """Whether this machine has TPU chips and what drives them; JAX then asks the machine's metadata for the other hosts."""
  chips = itertools.chain(pathlib.Path("/dev").glob("accel*"), pathlib.Path("/dev/vfio").glob("[0-9]*"))
  return importlib.util.find_spec("libtpu") is not None and next(chips, None) is not None


def writer() -> bool:
  """Whether this process is the one that writes logs and finished models."""
  return _client() is None or jax.process_index() == 0


def speak_as_one() -> None:
  """From now on one host prints on stdout; errors come from all."""
  if not writer():
    sys.stdout = open(os.devnull, "w", encoding="utf-8")


def several() -> bool:
  return _client() is not None and jax.process_count() > 1


def _client():
  from jax._src import distributed  # the key-value store of the coordinator has no public name

  return distributed.global_state.client


def told(said: str, seconds: float = 600.0) -> list[str]:
  """What every host says, in their order; all must call this together. Compiles nothing."""
  if not several():
    return [said]
  client, room = _client(), f"{_ROOM}told/{next(_turn)}/"
  client.key_value_set(f"{room}{jax.process_index()}", said)
  return [client.blocking_key_value_get(f"{room}{p}", int(seconds * 1000)) for p in range(jax.process_count())]


def all_true(mine: bool) -> bool:
  """Whether `mine` is true on every host; all must call this together."""
  return set(told("1" if mine else "0")) == {"1"}


def agree(what: str, values: dict) -> None:
  """Raises `InversionViewError` on every host unless all have the same `values` (plain data), naming a key that differs."""
  mine = json.dumps(values, sort_keys=True, default=str)
  digests = told(hashlib.sha256(mine.encode()).hexdigest())
  if len(set(digests)) == 1:
    return
  first, *_ = theirs = [json.loads(said) for said in told(mine)]
  other = next(p for p, digest in enumerate(digests) if digest != digests[0])
  name = next(k for k in sorted({*first, *theirs[other]}) if first.get(k) != theirs[other].get(k))
  _leaving.set()  # from here on a host that has gone is none that was lost
  with contextlib.suppress(Exception):
    told("seen", seconds=10.0)  # nobody leaves before all know why,
    time.sleep(
      2.0 if jax.process_index() == 0 else 0.0
    )  # and the coordinator last: JAX aborts those whom it leaves alone
  raise InversionViewError(
    f"the hosts disagree on the {what}: {name} is {first.get(name)!r} on host 0 and {theirs[other].get(name)!r} on host {other}; "
    "start all of them with the same command"
  )


class Votes:
  """Lets all hosts see, at the same step, that one of them wants to stop; asked in one call, known in the next, without waiting."""

  def __init__(self, mesh):
    from jax.sharding import NamedSharding, PartitionSpec

    self._here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    self._where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._count, self._pending = mesh.size, None
    self._any = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, PartitionSpec()))

  def any(self, mine: bool) -> bool:
    """Whether any host's `mine` was true: at once on a single host, with several as of the call before this one."""
    if not several():
      return mine
    before = self._pending
    votes = jax.make_array_from_callback((self._count,), self._where, lambda _: np.array([mine], np.int32))
    self._pending = self._any(votes)
    return before is not None and bool(np.asarray(before))


class _Watch(threading.Thread):
  """Gives signs of life, looks for those of the others, and ends the process when one of them is lost."""

  def __init__(self, silence: float):
    super().__init__(name="hosts", daemon=True)
    self._silence = silence

  def run(self):
    client, me = _client(), jax.process_index()
    others = {str(p) for p in range(jax.process_count())} - {str(me)}
    heard, reached = dict.fromkeys(others, ("", time.monotonic())), time.monotonic()
    for beat in itertools.count():
      try:
        client.key_value_set(f"{_ROOM}alive/{me}", str(beat), allow_overwrite=True)
        said = {key.rsplit("/", 1)[1]: value for key, value in client.key_value_dir_get(f"{_ROOM}alive/")}
        reached = time.monotonic()
      except Exception as error:  # of several kinds, none of them JAX's own
        if not _leaving.is_set() and time.monotonic() - reached > self._silence / 2:  # once may be chance
          lost(f"the first host cannot be reached ({' '.join(str(error).split())[:120]})")
        if _leaving.wait(_BEAT):
          return
        continue
      now = time.monotonic()
      for p in others:
        if said.get(p, "") != heard[p][0]:
          heard[p] = said[p], now
        elif said.get(p) != "done" and now - heard[p][1] > self._silence and not _leaving.is_set():
          lost(f"host {p} has given no sign of life for {self._silence:.0f} seconds")
      if _leaving.wait(_BEAT):
        return


def _catch_aborts() -> None:
  """Says what has happened where JAX aborts because the coordinator is gone, and exits with the code for it.

  JAX has a callback for that, which cannot be called from Python (jaxlib 0.10.2: std::bad_cast); so this is a handler of SIGABRT, in C, since
  Python's own run too late. Any other abort goes on.
  """
  from jax._src import distributed

  host, port = distributed.global_state.coordinator_address.rsplit(":", 1)

  def handler(_):
    try:
      socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
      lost(f"the first host cannot be reached ({error})")

  kept = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
  _kept.append(kept)  # as long as the process lives
  ctypes.CDLL(None).signal(int(signal.SIGABRT), kept)


_kept: list = []
_leaving = threading.Event()


def lost(why: str) -> None:
  """Ends this process because another is gone: what they compute together cannot go on."""
  leave(f"{why}; the same command, on all hosts, goes on from the newest checkpoint", AGAIN)


@contextlib.contextmanager
def naming_lost_hosts():
  """Turns the errors of a collective whose other end is gone into one line and the exit code that says "again"."""
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    said = " ".join(str(error).split())
    signs = ("gloo", "connection", "unavailable", "socket", "deadline", "heartbeat", "coordination", "peer", "nccl")
    if several() and any(sign in said.lower() for sign in signs):
      lost(f"another host was lost ({said[:200]})")
    raise


def finish(code: int) -> None:
  """The end of a process among several: waits for the others if all is well, and for nobody if it is not."""
  if not several():
    return
  _leaving.set()
  if code:
    os._exit(code)
  with contextlib.suppress(Exception):
    _client().key_value_set(f"{_ROOM}alive/{jax.process_index()}", "done", allow_overwrite=True)
  with contextlib.suppress(Exception):
    jax.distributed.shutdown()
