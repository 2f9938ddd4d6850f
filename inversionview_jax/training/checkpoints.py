"""Going on exactly where a run was: checkpoints of the training state, what they depend on, and what happens to damaged ones.

A checkpoint is one folder, written in the background and renamed into place when it is whole. It holds the state (Orbax) and a description
(JSON): the step, which is also the data position, whether the evaluation due there was done, the resolved config, what the data and the
target were, and a checksum of every array.
"""

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
import zlib

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax.devices import hosts, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training.checksum import sums

# Keys of a config that a run may go on without: they decide what is logged, kept or measured, or where and in which pieces the same
# numbers are computed. Everything else is part of what the saved state is the result of.
FREE = (
  "steps", "steps_per_call", "log_every", "eval_every", "save_every", "keep", "keep_every", "eval_examples", "eval_queries", "final_queries",
  "mesh", "profile", "skip_nonfinite", "compute.accumulate", "compute.remat", "compute.donate", "data.dir", "target",
)  # fmt: skip
_ABOUT = "about.json"
_FAILURES = 3  # saves that fail one after the other before the run gives up


class Damaged(Exception):
  """A checkpoint that cannot be read, or not as it was written."""


def quiet() -> None:
  """For programs: a save that fails is told in one line (`Checkpoints.notes`), and not by Orbax with a traceback as well."""
  from absl import logging

  logging.set_verbosity(logging.FATAL)


# What a state depends on.


def described(config: ConfigDict, rows: np.ndarray, identity: dict) -> dict:
  """What the state of a run is the result of, as plain data: the config, the training inputs, and what the objective names (the target)."""
  return {
    "config": json.loads(config.to_json_best_effort()),
    "data": {"rows": len(rows), "crc": zlib.crc32(np.ascontiguousarray(rows))},
    "identity": dict(identity),
  }


def flat(config: ConfigDict) -> dict:
  """{"optimizer.lr": 0.001, ...}: every key of a config, as plain data."""
  return _flat(json.loads(config.to_json_best_effort()))


def place(folder: str | os.PathLike) -> str:
  """Where the checkpoints of the run in a folder lie."""
  return os.path.join(os.fspath(folder), "checkpoints")


def _flat(config: dict, prefix: str = "") -> dict:
  found = {}
  for name, value in config.items():
    found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
  return found


def _free(key: str) -> bool:
  return any(key == free or key.startswith(f"{free}.") for free in FREE)


def refuse_other(saved: dict, config: ConfigDict, folder, same_rates=None) -> None:
  """Raises `InversionViewError` naming the first key in which a config differs from that of a checkpoint, if the state depends on it.

  Args:
    saved: the description of the checkpoint.
    config: that of this run.
    folder: shown.
    same_rates: (description of the checkpoint) -> whether the learning rates of the steps done are those of this config; `steps` may be
      part of them.
  """
  there, here = _flat(saved["config"]), flat(config)
  absent = object()
  different = [k for k in sorted({*there, *here}) if there.get(k, absent) != here.get(k, absent)]
  refused = [k for k in different if not _free(k)]
  if not refused and "steps" in different and same_rates is not None and not same_rates(saved):
    refused = ["steps"]
  if refused:
    key = refused[0]
    was, now = (f"{x[key]!r}" if key in x else "absent" for x in (there, here))
    more = f" (and {len(refused) - 1} more: {', '.join(refused[1:6])})" if refused[1:] else ""
    raise InversionViewError(
      f"config key {key} is {now}, but the run in {folder} was trained with {was}{more}: use that value to resume, "
      "or another --workdir to start anew"
    )


def _refuse_others(saved: dict, mine: dict, folder) -> None:
  for name, what in (("data", "training inputs"), ("identity", "target")):
    if saved[name] != mine[name]:
      raise InversionViewError(
        f"the {what} of the run in {folder} were others ({saved[name]} there, {mine[name]} here): use another --workdir to start anew"
      )


# Checkpoints.


class _EveryNth:
  """Preserves the first checkpoint at or behind every multiple of n steps; a policy of Orbax's."""

  def __init__(self, n: int):
    self._n = n

  def should_preserve(self, checkpoints, *, context):
    del context
    passed = [0, *(c.step // self._n for c in checkpoints)]
    return [here > before for before, here in zip(passed, passed[1:], strict=False)]


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they go; on storage that all hosts share.
    keep: how many of the newest to keep.
    keep_every: also keep one in every so many steps; 0 for none.

  Attributes:
    notes: what a person should know (a save that failed, a checkpoint that is damaged); whoever reads them empties the list.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2, keep_every: int = 0):
    if keep < 1 or keep_every < 0:
      raise InversionViewError(f"keep = {keep} must be at least 1, and keep_every = {keep_every} at least 0")
    self.folder = os.fspath(folder) if "://" in os.fspath(folder) else os.path.abspath(folder)
    self._keep, self._keep_every = keep, keep_every
    self.notes: list[str] = []
    self._last = None  # the newest step that is saved
    self._manager, self._failed, self._saving, self._why = None, 0, None, ""

  def _open(self):
    import orbax.checkpoint as ocp
    from etils import epath
    from orbax.checkpoint import checkpoint_managers

    if self._manager is not None:
      return ocp, self._manager
    policies = [checkpoint_managers.LatestN(self._keep)]
    if self._keep_every:
      policies.append(_EveryNth(self._keep_every))
    options = ocp.CheckpointManagerOptions(
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler(filename=_ABOUT)}
    for again in (False, True):
      try:
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)
        break
      except (OSError, ValueError) as error:
        if again:
          raise InversionViewError(f"cannot use {self.folder} for checkpoints: {error}") from None
        if hosts.is_writer():  # Orbax's note of when a step was saved may be damaged; it goes on without one
          for path in epath.Path(self.folder).glob("*/_CHECKPOINT_METADATA"):
            path.unlink()
    return ocp, self._manager

  def steps(self) -> list[int]:
    """The steps of all whole checkpoints, oldest first; touches nothing."""
    from etils import epath

    folder = epath.Path(self.folder)
    found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
    # In a bucket nothing can be renamed: there a file inside says that the checkpoint is whole.
    local = "://" not in self.folder
    return sorted(int(p.name) for p in found if local or (p / "commit_success.txt").exists())

  def about(self, step: int) -> dict:
    """The description of a checkpoint; raises `Damaged`."""
    from etils import epath

    path = epath.Path(self.folder) / str(step) / "about" / _ABOUT
    try:
      said = json.loads(path.read_text())
      if said["digest"] == _digest(said["about"]):
        return said["about"]
    except Exception as error:
      raise Damaged(f"its description cannot be read ({type(error).__name__})") from None
    raise Damaged("its description is not what was written")

  def check(self, config: ConfigDict, same_rates=None) -> None:
    """Refuses a config that the newest readable checkpoint's state does not belong to; compiles nothing."""
    for step in reversed(self.steps()):
      try:
        return refuse_other(self.about(step), config, self.folder, same_rates)
      except Damaged:
        pass

  def restore(self, like, mine: dict, config: ConfigDict, same_rates=None):
    """The newest state that can be read whole.

    Args:
      like: the state as shapes with shardings, of any mesh.
      mine: `described` of this run.
      config, same_rates: as for `refuse_other`.

    Returns:
      ``(state, about)``, or None if there is no checkpoint. Those that turned out to be damaged are moved to `damaged/` beside the folder,
      and `notes` says so.

    Raises:
      InversionViewError: a checkpoint of another config, data or target; or none that can be read.
    """
    steps, damaged = json.loads(hosts.exchange(json.dumps(self.steps()))[0]), []
    for step in reversed(steps):
      why, found = "", None
      try:
        about = self.about(step)
        refuse_other(about, config, self.folder, same_rates)
        _refuse_others(about, mine, self.folder)
        found = self._read(step, about, like)
      except Damaged as error:
        why = str(error)
      if hosts.all_true(not why):
        self._set_aside(damaged, step)
        self._last = step
        return found, about
      damaged.append((step, why or "another host cannot read it"))
    if damaged:
      raise InversionViewError(
        f"no checkpoint in {self.folder} can be read (step {damaged[0][0]}: {damaged[0][1]}): "
        "put back a copy of one, or use another --workdir to start anew"
      )
    return None

  def _read(self, step: int, about: dict, like):
    import orbax.checkpoint as ocp
    from etils import epath

    wrong = _difference(about["shapes"], _shapes(like))
    if wrong:
      raise InversionViewError(
        f"cannot resume from {self.folder}/{step}: {wrong}; the config was changed: use another --workdir to start anew"
      )
    # Not through the manager, which looks at every checkpoint before it reads one.
    reader = ocp.StandardCheckpointer()
    try:
      state = jax.block_until_ready(reader.restore(epath.Path(self.folder) / str(step) / "state", like))
    except Exception as error:  # Orbax raises many kinds, from KeyError to its own
      raise Damaged(next(iter(str(error).splitlines()), "")[:200] or repr(error)) from None
    finally:
      reader.close()
    found = sums(state)
    wrong = [name for name, value in found.items() if about["sums"].get(name) != value]
    if wrong:
      raise Damaged(f"{wrong[0]} is not what was written")
    return state

  def _set_aside(self, damaged, good: int) -> None:
    from etils import epath

    for step, why in damaged:
      self.notes.append(f"checkpoint {step} is damaged ({why}); going on from step {good:,}")
      if hosts.is_writer():
        to = epath.Path(self.folder).parent / "damaged"
        to.mkdir(parents=True, exist_ok=True)
        (epath.Path(self.folder) / str(step)).rename(to / f"{step}-{secrets.token_hex(3)}")
    if damaged:
      hosts.all_true(True)  # all wait until they are out of the way
      self._open()[1].reload()

  def save(self, step: int, state, about: dict) -> None:
    """Starts to write a checkpoint; the state may be donated as soon as this returns. What fails is in `notes`, now or later.

    Raises:
      InversionViewError: several saves have failed one after the other.
    """
    self.poll(wait=True)
    if step == self._last:
      return
    ocp, manager = self._open()
    about = {**about, "step": step, "shapes": _shapes(state), "sums": sums(state)}
    try:
      manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), about=ocp.args.JsonSave({"about": about, "digest": _digest(about)})
        ),
        force=True,
      )
      self._saving = step
    except Exception as error:
      self._report(step, error)

  def poll(self, wait: bool = False) -> bool:
    """Whether nothing is being written and the newest save succeeded; looks, or waits, for the end of a save."""
    if self._saving is None:
      return self._failed == 0
    if not wait and self._manager.is_saving_in_progress():
      return False
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
      if not hosts.is_multihost() and step not in self.steps():
        raise OSError("it is not there after it was written")
      self._failed, self._last = 0, step
    except Exception as error:
      self._report(step, error)
    return self._failed == 0

  def _report(self, step: int, error: Exception) -> None:
    self._failed += 1
    why = " ".join(str(error).split())
    for cause in (error.__cause__, error.__context__):
      why = why or " ".join(str(cause or "").split())
    self._why = f"the checkpoint of step {step:,} could not be saved: {_short(why) or repr(error)}"
    self.notes.append(self._why)
    self._abandon()
    if self._failed >= _FAILURES:
      raise InversionViewError(
        f"{self._failed} checkpoints in a row could not be saved in {self.folder}: {_short(why)}"
      )

  def _abandon(self) -> None:
    """Removes what a failed save has left, and the manager that has seen it fail."""
    from etils import epath

    _release_waiting()
    try:
      self._manager.close()
    except Exception:  # what failed is said already
      pass
    self._manager = None
    if hosts.is_writer():
      for path in epath.Path(self.folder).glob("*.orbax-checkpoint-tmp*"):
        for again in range(5):  # Orbax may still be writing there
          try:
            path.rmtree(missing_ok=True)
            break
          except OSError:
            if again == 4:
              self.notes.append(f"{path} could not be removed")
            time.sleep(0.2)

  def close(self) -> None:
    """Waits for a save that is under way, and raises `InversionViewError` if the newest save failed."""
    good = self.poll(wait=True)
    if self._manager is not None:
      self._manager.close()
      self._manager = None
    if not good:
      raise InversionViewError(f"{self._why}; free space and run the same command again")

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if kind is None:
      self.close()
      return
    try:  # what is being raised says more than what is being saved
      self.close()
    except InversionViewError as failed:
      self.notes.append(str(failed))


def _release_waiting() -> None:
  """Ends the threads of Orbax that wait, for five minutes and beyond the end of the program, for a save that has failed.

  Released they write what they have, so they are waited for before anything is removed.
  """
  with contextlib.suppress(Exception):  # not part of its public interface
    from orbax.checkpoint._src.futures import future, synchronization

    now = synchronization.OperationIdGenerator.get_current_operation_id()
    future.set_signals(list(synchronization.HandlerAwaitableSignal), operation_id=now)
    for thread in threading.enumerate():
      if isinstance(thread, future._SignalingThread):
        threading.Thread.join(thread, timeout=10.0)  # its own would raise once more what failed


def _short(why: str) -> str:
  """The part of a library's message that a person can use."""
  for sign in (
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "Permission denied",
    "Read-only file system",
  ):
    if sign.lower() in why.lower():
      return sign
  return why[:200]


def _digest(about: dict) -> str:
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _shapes(tree) -> dict[str, list[int]]:
  return {sharding.path_name(path): list(x.shape) for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _difference(there: dict, here: dict) -> str:
  """How the arrays of a checkpoint differ in name or shape from those of a run, by the first of them; "" if they do not."""
  different = [name for name in there | here if there.get(name) != here.get(name)]
  if not different:
    return ""
  # Parameters say more than their moments.
  name = min(different, key=lambda name: (not name.startswith("params/"), name))
  said = ("absent" if name not in tree else f"of shape {tuple(tree[name])}" for tree in (there, here))
  return "{} is {} there and {} here".format(name, *said)
