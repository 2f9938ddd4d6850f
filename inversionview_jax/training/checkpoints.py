"""Checkpoints of a training run: saved in the background, checked by checksums when read, set aside when damaged.

A checkpoint is one folder, renamed into place when it is complete. It holds the state (Orbax) and a description (JSON): the step, which is
also the index of the next batch, whether the evaluation due there was made, the resolved config, the training inputs, the target, and a
checksum of every array.
"""

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any, Self

import jax
from ml_collections import ConfigDict

from inversionview_jax.devices import hosts
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.training import async_saving, identity
from inversionview_jax.training.checksum import sums


class Damaged(Exception):
  """A checkpoint that cannot be read, or whose content is not what was written."""


def silence_orbax() -> None:
  """Turns Orbax's own log messages off: a save that fails becomes one line (`Checkpoints.notes`), without a traceback beside it."""
  from absl import logging

  logging.set_verbosity(logging.FATAL)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _print_unraisable


def _print_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
  """Prints an exception that cannot be raised, but not that of an array that is written after a failed save has ended.

  Its writer, outside of Python, reports to the event loop of the save, which is closed by then; on a full disk for every array.
  """
  trace = unraisable.exc_traceback
  outermost = "" if trace is None else trace.tb_frame.f_code.co_name
  if unraisable.exc_type is RuntimeError and outermost == "call_soon_threadsafe":
    return
  sys.__unraisablehook__(unraisable)


def folder_of(workdir: str | os.PathLike) -> str:
  """The folder of the checkpoints of the run in a workdir."""
  return os.path.join(os.fspath(workdir), "checkpoints")


class Checkpoints:
  """The checkpoints of one run.

  Args:
    folder: where they go; on storage that all hosts share.
    keep: how many of the newest to keep.
    keep_every: also keep one in every so many steps; 0 for none.

  Attributes:
    notes: messages for the user (a save that failed, a checkpoint that is damaged); whoever shows them empties the list.

  Raises:
    InversionViewError: settings that keep nothing.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2, keep_every: int = 0):
    if keep < 1 or keep_every < 0:
      raise InversionViewError(f"keep = {keep} must be at least 1, and keep_every = {keep_every} at least 0")
    self.folder = async_saving.absolute(folder)
    self.notes: list[str] = []
    self._saver = async_saving.AsyncSaver(self.folder, keep, keep_every, self.notes)

  def steps(self) -> list[int]:
    """The steps of all complete checkpoints, oldest first; changes nothing."""
    return async_saving.whole_steps(self.folder)

  def about(self, step: int) -> dict:
    """The description of a checkpoint, with today's names; raises `Damaged`."""
    return identity.modernized(self._stored_about(step))

  def _stored_about(self, step: int) -> dict:
    from etils import epath

    path = epath.Path(self.folder) / str(step) / "about" / async_saving.DESCRIPTION_FILE
    try:
      stored = json.loads(path.read_text())
      if stored["digest"] == _digest(stored["about"]):
        return stored["about"]
    except Exception as error:
      raise Damaged(f"its description cannot be read ({type(error).__name__})") from None
    raise Damaged("its description is not what was written")

  def check(self, config: ConfigDict, same_rates: Callable[[dict], bool] | None = None) -> None:
    """Refuses a config to which the state of the newest readable checkpoint does not belong; compiles nothing."""
    for step in reversed(self.steps()):
      try:
        return identity.refuse_other(self.about(step), config, self.folder, same_rates)
      except Damaged:
        pass

  def restore(
    self, like: Any, mine: dict, config: ConfigDict, same_rates: Callable[[dict], bool] | None = None
  ) -> tuple[Any, dict] | None:
    """The newest state that can be read whole.

    Args:
      like: the state as shapes with shardings, of any mesh.
      mine: `identity.describe` of this run.
      config, same_rates: as for `identity.refuse_other`.

    Returns:
      ``(state, description)``, or None if there is no checkpoint. Damaged ones are moved to `damaged/` beside the folder, with a note.

    Raises:
      InversionViewError: a checkpoint of another config, data or target; or none that can be read.
    """
    steps = json.loads(hosts.exchange(json.dumps(self.steps()))[0])
    damaged: list[tuple[int, str]] = []
    for step in reversed(steps):
      reason, state, about = "", None, {}
      try:
        stored = self._stored_about(step)
        about = identity.modernized(stored)
        identity.refuse_other(about, config, self.folder, same_rates)
        identity.refuse_other_inputs(about, mine, self.folder)
        state = self._read(step, about, like, renamed=stored["shapes"] != about["shapes"])
      except Damaged as error:
        reason = str(error)
      if hosts.all_true(not reason):
        self._set_aside(damaged, step)
        self._saver.last = step
        return state, about
      damaged.append((step, reason or "another host cannot read it"))
    if damaged:
      raise InversionViewError(
        f"no checkpoint in {self.folder} can be read (step {damaged[0][0]}: {damaged[0][1]}): "
        "put back a copy of one, or use another --workdir to start anew"
      )
    return None

  def _read(self, step: int, about: dict, like: Any, renamed: bool) -> Any:
    """The state of a checkpoint; `renamed`: its arrays have names of version 0.1. Raises `Damaged`."""
    import orbax.checkpoint as ocp
    from etils import epath

    if different := identity.difference(about["shapes"], identity.shapes(like)):
      raise InversionViewError(
        f"cannot resume from {self.folder}/{step}: {different}; the config was changed: use another --workdir to start anew"
      )
    if renamed:
      like = identity.renamed_tree(like, {new: old for old, new in storage.RENAMED_PARAMETERS.items()})
    # Not through the manager, which looks at every checkpoint before it reads one.
    reader = ocp.StandardCheckpointer()
    try:
      state = jax.block_until_ready(reader.restore(epath.Path(self.folder) / str(step) / "state", like))
    except Exception as error:  # Orbax raises many kinds, from KeyError to its own
      raise Damaged(next(iter(str(error).splitlines()), "")[:200] or repr(error)) from None
    finally:
      reader.close()
    if renamed:
      state = identity.renamed_tree(state, storage.RENAMED_PARAMETERS)
    wrong = [name for name, value in sums(state).items() if about["sums"].get(name) != value]
    if wrong:
      raise Damaged(f"{wrong[0]} is not what was written")
    return state

  def _set_aside(self, damaged: list[tuple[int, str]], restored: int) -> None:
    from etils import epath

    for step, reason in damaged:
      self.notes.append(f"checkpoint {step} is damaged ({reason}); going on from step {restored:,}")
      if hosts.is_writer():
        to = epath.Path(self.folder).parent / "damaged"
        to.mkdir(parents=True, exist_ok=True)
        (epath.Path(self.folder) / str(step)).rename(to / f"{step}-{secrets.token_hex(3)}")
    if damaged:
      hosts.all_true(True)  # no host goes on before they are moved
      self._saver.reload()

  def save(self, step: int, state: Any, about: dict) -> None:
    """Starts to write a checkpoint; the state may be donated as soon as this returns. A failure is in `notes`, now or later.

    Args:
      step: steps done.
      state: the training state.
      about: `identity.describe` of the run, with "evaluated".

    Raises:
      InversionViewError: several saves have failed one after the other.
    """
    self._saver.poll(wait=True)
    if step == self._saver.last:
      return
    about = {**about, "step": step, "shapes": identity.shapes(state), "sums": sums(state)}
    self._saver.save(step, state, {"about": about, "digest": _digest(about)})

  def poll(self) -> bool:
    """Whether nothing is being written and the newest save succeeded; does not wait."""
    return self._saver.poll()

  def close(self) -> None:
    """Waits for a save that is under way, and raises `InversionViewError` if the newest save failed."""
    self._saver.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, kind: object, error: object, trace: object) -> None:
    if kind is None:
      self.close()
      return
    try:  # the exception that is being raised comes first; a failed save is a note beside it
      self.close()
    except InversionViewError as failed:
      self.notes.append(str(failed))


def _digest(about: dict) -> str:
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
