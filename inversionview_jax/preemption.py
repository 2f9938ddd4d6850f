"""Preemption: SIGTERM saves and exits with 75, the exit code of a run that can be resumed.

Imports nothing heavy, so that a process handles the signal before it does anything else.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from inversionview_jax import locks
from inversionview_jax.terminal import print_message

T = TypeVar("T")

EXIT_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command resumes from the newest checkpoint


class Stopped(Exception):
  """The run was interrupted by SIGTERM and its state is saved; `step` is None if there was nothing to save."""

  def __init__(self, step: int | None):
    super().__init__(f"stopped at step {step:,}" if step is not None else "stopped before the first step")
    self.step = step


class _Interrupt(BaseException):
  """Raised by the signal handler inside of `Listener.interruptible`."""


class Listener:
  """Handles SIGTERM.

  As long as no progress would be lost (start-up, compiling, restoring), a thread ends the process at once with `EXIT_AGAIN`: Python's own signal
  handlers do not run until a compilation is over. Later the training loop reads the flag `stop_requested`, and a long part of it, such as an
  evaluation, can be made `interruptible`.

  Attributes:
    stop_requested: whether SIGTERM has been received.
    may_exit_at_once: whether no progress would be lost; set by the training loop.
  """

  def __init__(self) -> None:
    self.stop_requested, self.may_exit_at_once, self._interruptible = False, True, False
    self._read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, self._on_signal)
    # The C-level handler writes the signal's number here, even while Python waits for a long C call.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=self._watch, name="SIGTERM", daemon=True).start()

  def _on_signal(self, *_: object) -> None:
    self.stop_requested = True
    if self._interruptible:
      self._interruptible = False
      raise _Interrupt

  def _watch(self) -> None:
    while numbers := os.read(self._read, 64):
      if signal.SIGTERM in numbers:
        self.stop_requested = True
        self.exit_if_requested()

  def exit_if_requested(self) -> None:
    """Ends the process with `EXIT_AGAIN` if SIGTERM was received and no progress would be lost."""
    if self.stop_requested and self.may_exit_at_once:
      exit_now("stopped before the first step of this run; the same command starts it again", EXIT_AGAIN)

  def interruptible(self, function: Callable[..., T], *args: object) -> T | None:
    """function(*args), or None as soon as SIGTERM is received; `function` must not leave behind state that matters."""
    if self.stop_requested:
      return None
    self._interruptible = True
    try:
      result = function(*args)
      self._interruptible = False
    except _Interrupt:
      return None
    finally:
      self._interruptible = False
    return result


def exit_now(message: str, code: int) -> None:
  """Ends this process at once, from any thread, with one line on stderr; does not wait for other hosts or background threads."""
  print_message(message)
  sys.stdout.flush()
  locks.release_all()
  os._exit(code)


_listener: Listener | None = None


def listen() -> Listener:
  """Installs the process's SIGTERM handler, once; must be called by the main thread."""
  global _listener
  if _listener is None:
    _listener = Listener()
  return _listener


def listener() -> Listener | None:
  """The process's `Listener`, or None if `listen` was not called (training in a notebook leaves signals alone)."""
  return _listener
