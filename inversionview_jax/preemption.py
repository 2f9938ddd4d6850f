"""Being told to stop: SIGTERM, as machines that are taken back send it, and the exit code that says "again".

Imports nothing heavy, so that a process listens before it does anything else.
"""

import os
import signal
import sys
import threading

AGAIN = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, the same command goes on from the newest checkpoint


class Stopped(Exception):
  """The run was told to stop, and everything it had done is saved; `step` is None if there was nothing to save."""

  def __init__(self, step: int | None):
    super().__init__(f"stopped at step {step:,}" if step is not None else "stopped before the first step")
    self.step = step


class _Interrupt(BaseException):
  """Raised by the signal handler inside of `Listener.interruptible`."""


class Listener:
  """Listens for SIGTERM.

  While there is nothing to lose (start-up, compiling, restoring), a thread ends the process at once with `AGAIN`: Python's own handlers wait
  until a compilation is over. Later the flag `asked` is for the loop to see, and a part of it that takes long may be `interruptible`.

  Attributes:
    asked: whether SIGTERM has come.
    nothing_to_lose: set by whoever trains.
  """

  def __init__(self):
    self.asked, self.nothing_to_lose, self._interruptible = False, True, False
    self._read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGTERM, self._on_signal)
    # The bytes are written at the level of C, whatever Python is waiting for.
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    threading.Thread(target=self._watch, name="SIGTERM", daemon=True).start()

  def _on_signal(self, *_):
    self.asked = True
    if self._interruptible:
      self._interruptible = False
      raise _Interrupt

  def _watch(self):
    while numbers := os.read(self._read, 64):
      if signal.SIGTERM in numbers:
        self.asked = True
        self.leave_if_free()

  def leave_if_free(self) -> None:
    """Ends the process with `AGAIN` if it was asked to stop and there is nothing to lose."""
    if self.asked and self.nothing_to_lose:
      leave("stopped before the first step of this run; the same command goes on", AGAIN)

  def interruptible(self, function, *args):
    """function(*args), or None as soon as SIGTERM comes; nothing that `function` changes may matter then."""
    if self.asked:
      return None
    self._interruptible = True
    try:
      found = function(*args)
      self._interruptible = False
    except _Interrupt:
      return None
    finally:
      self._interruptible = False
    return found


def leave(said: str, code: int) -> None:
  """Ends this process now, from any thread, with one line on stderr; waits for no other host and for nothing in the background."""
  print(f"inversionview: {said}", file=sys.stderr, flush=True)
  sys.stdout.flush()
  os._exit(code)


_listener: Listener | None = None


def listen() -> Listener:
  """Starts listening, once for the process; must be called by its main thread."""
  global _listener
  if _listener is None:
    _listener = Listener()
  return _listener


def listening() -> Listener | None:
  """The process's `Listener`, or None if nobody has asked for one (training in a notebook leaves signals alone)."""
  return _listener
