"""Saves training states in the background with Orbax: one at a time, counting those that fail, removing what they leave."""

import contextlib
import os
import re
import threading
import time
from typing import Any

from inversionview_jax.devices import hosts
from inversionview_jax.errors import InversionViewError

DESCRIPTION_FILE = "about.json"
_MOST_FAILURES = 3  # saves that fail one after the other before the run ends


def whole_steps(folder: str) -> list[int]:
  """The steps of all complete checkpoints in a folder, oldest first; changes nothing."""
  from etils import epath

  path = epath.Path(folder)
  steps = [p for p in path.iterdir() if re.fullmatch("[0-9]{1,18}", p.name)] if path.exists() else []
  # In a bucket nothing can be renamed: there a file inside marks a complete checkpoint.
  local = "://" not in folder
  return sorted(int(p.name) for p in steps if local or (p / "commit_success.txt").exists())


class _EveryNth:
  """Keeps the first checkpoint at or after every multiple of n steps; a preservation policy of Orbax."""

  def __init__(self, n: int):
    self._n = n

  def should_preserve(self, checkpoints, *, context):
    del context
    passed = [0, *(c.step // self._n for c in checkpoints)]
    return [here > before for before, here in zip(passed, passed[1:], strict=False)]


class AsyncSaver:
  """Writes checkpoints in the background; a failed one becomes a note, several in a row an error.

  Args:
    folder: absolute, or a URL; on storage that all hosts share.
    keep: how many of the newest to keep.
    keep_every: also keep one in every so many steps; 0 for none.
    notes: list to which messages for the user are added.

  Attributes:
    last: the newest step whose checkpoint is complete, None before the first.
  """

  def __init__(self, folder: str, keep: int, keep_every: int, notes: list[str]):
    self._folder, self._keep, self._keep_every, self._notes = folder, keep, keep_every, notes
    self.last: int | None = None
    self._manager: Any = None
    self._saving: int | None = None  # the step whose checkpoint is being written
    self._failures, self._failure = 0, ""

  def _open(self) -> Any:
    import orbax.checkpoint as ocp
    from etils import epath
    from orbax.checkpoint import checkpoint_managers

    if self._manager is not None:
      return self._manager
    policies: list[Any] = [checkpoint_managers.LatestN(self._keep)]
    if self._keep_every:
      policies.append(_EveryNth(self._keep_every))
    options = ocp.CheckpointManagerOptions(
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
      preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
    )
    handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler(filename=DESCRIPTION_FILE)}
    for again in (False, True):
      try:
        self._manager = ocp.CheckpointManager(self._folder, options=options, item_handlers=handlers)
        break
      except (OSError, ValueError) as error:
        if again:
          raise InversionViewError(f"cannot use {self._folder} for checkpoints: {error}") from None
        if hosts.is_writer():  # Orbax's record of when a step was saved may be damaged; it works without one
          for path in epath.Path(self._folder).glob("*/_CHECKPOINT_METADATA"):
            path.unlink()
    return self._manager

  def reload(self) -> None:
    """Makes Orbax look at the folder again, after checkpoints were moved away."""
    self._open().reload()

  def save(self, step: int, state: Any, description: dict) -> None:
    """Starts to write a checkpoint; the state may be donated as soon as this returns. `poll` first.

    Raises:
      InversionViewError: several saves have failed one after the other.
    """
    import orbax.checkpoint as ocp

    manager = self._open()
    try:
      manager.save(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(description)),
        force=True,
      )
      self._saving = step
    except Exception as error:
      self._report(step, error)

  def poll(self, wait: bool = False) -> bool:
    """Whether nothing is being written and the newest save succeeded; `wait`: for the end of a save that is under way."""
    if self._saving is None:
      return self._failures == 0
    if not wait and self._manager.is_saving_in_progress():
      return False
    step, self._saving = self._saving, None
    try:
      self._manager.wait_until_finished()
      if not hosts.is_multihost() and step not in whole_steps(self._folder):
        raise OSError("it is not there after it was written")
      self._failures, self.last = 0, step
    except Exception as error:
      self._report(step, error)
    return self._failures == 0

  def close(self) -> None:
    """Waits for a save that is under way; raises `InversionViewError` if the newest save failed."""
    succeeded = self.poll(wait=True)
    if self._manager is not None:
      self._manager.close()
      self._manager = None
    if not succeeded:
      raise InversionViewError(f"{self._failure}; free space and run the same command again")

  def _report(self, step: int, error: Exception) -> None:
    self._failures += 1
    reason = " ".join(str(error).split())
    for cause in (error.__cause__, error.__context__):
      reason = reason or " ".join(str(cause or "").split())
    self._failure = f"the checkpoint of step {step:,} could not be saved: {_short(reason) or repr(error)}"
    self._notes.append(self._failure)
    self._abandon()
    if self._failures >= _MOST_FAILURES:
      raise InversionViewError(
        f"{self._failures} checkpoints in a row could not be saved in {self._folder}: {_short(reason)}"
      )

  def _abandon(self) -> None:
    """Removes what a failed save has left, and the manager whose save it was."""
    from etils import epath

    _release_waiting_threads()
    with contextlib.suppress(Exception):  # the failure itself is reported already
      self._manager.close()
    self._manager = None
    if not hosts.is_writer():
      return
    for path in epath.Path(self._folder).glob("*.orbax-checkpoint-tmp*"):
      for attempt in range(5):  # Orbax may still be writing there
        try:
          path.rmtree(missing_ok=True)
          break
        except OSError:
          if attempt == 4:
            self._notes.append(f"{path} could not be removed")
          time.sleep(0.2)


def absolute(folder: str | os.PathLike) -> str:
  """A folder as Orbax takes it: absolute, or a URL unchanged."""
  return os.fspath(folder) if "://" in os.fspath(folder) else os.path.abspath(folder)


def _release_waiting_threads() -> None:
  """Ends the threads of Orbax that wait, for five minutes and beyond the end of the program, for a save that has failed.

  Once released they write what they have, so they are joined before anything is removed.
  """
  with contextlib.suppress(Exception):  # not part of Orbax's public interface
    from orbax.checkpoint._src.futures import future, synchronization

    now = synchronization.OperationIdGenerator.get_current_operation_id()
    future.set_signals(list(synchronization.HandlerAwaitableSignal), operation_id=now)
    for thread in threading.enumerate():
      if isinstance(thread, future._SignalingThread):
        threading.Thread.join(thread, timeout=10.0)  # its own join would raise the failure once more


def _short(reason: str) -> str:
  """The part of a library's message that helps a user."""
  for known in (
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "Permission denied",
    "Read-only file system",
  ):
    if known.lower() in reason.lower():
      return known
  return reason[:200]
