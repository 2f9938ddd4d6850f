"""One process at a time in a folder of results: a lock file that names its process, on any storage.

The lock is the file `.lock` in the folder, made by linking a finished file to that name, which is atomic on local and network storage alike.
`flock` is not needed: network storage often lacks it, or keeps it for a machine that is gone. A lock whose process has ended is taken over:

- by a process of the same machine (and of the same container), which can look for the process by its number and start time;
- by any other, once the heartbeat of the lock, which its process renews, has not changed for `_SILENCE` seconds.
"""

import contextlib
import json
import os
import pathlib
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator

from inversionview_jax.errors import InversionViewError
from inversionview_jax.terminal import print_message

FILE = ".lock"
_HEARTBEAT, _SILENCE = 5.0, 30.0  # seconds
_held: dict[str, str] = {}  # path of each lock of this process -> its token


@contextlib.contextmanager
def exclusive(folder: "str | os.PathLike", remedy: str) -> Iterator[None]:
  """Holds the lock of a folder that exists; it is released at the end, and by `release_all`.

  Args:
    folder: of the results; with access from several machines, on storage that they share.
    remedy: for the message: what to do where another process holds it.

  Raises:
    InversionViewError: another process holds it; names the folder, the process and its command.
  """
  path, token = os.path.join(os.path.abspath(folder), FILE), secrets.token_hex(16)
  _take(pathlib.Path(path), token, remedy)
  _held[path] = token
  done = threading.Event()
  beat = threading.Thread(target=_renew, args=(pathlib.Path(path), token, done), name="lock", daemon=True)
  beat.start()
  try:
    yield
  finally:
    done.set()
    _release(path)


def check(folder: "str | os.PathLike", remedy: str) -> None:
  """Raises `InversionViewError` where `exclusive` would at once: a process of this machine holds the lock. Changes nothing."""
  path = pathlib.Path(os.path.abspath(folder)) / FILE
  owner = _read(path)
  if owner and _process_is_here(owner) and _is_running(owner):
    raise _refusal(path, owner, remedy)


def release_all() -> None:
  """Releases the locks of this process, which is about to end without unwinding."""
  for path in list(_held):
    _release(path)


def _take(path: pathlib.Path, token: str, remedy: str) -> None:
  draft = path.with_name(f".{secrets.token_hex(8)}.tmp")
  try:
    draft.write_text(json.dumps(_description(token)) + "\n", encoding="utf-8")
    while not _linked(draft, path):
      content = _content(path)
      if not content:  # where there are no hard links, it may be about to be written
        time.sleep(0.5)
        content = _content(path)
      owner = _read(path)
      if _is_alive(path, owner, content):
        raise _refusal(path, owner, remedy)
      _replace(draft, path, content)
      if _read(path).get("token") == token:
        return
  except OSError as error:
    raise InversionViewError(
      f"cannot write into {str(path.parent)!r}: {error.strerror}; give a folder that can be written"
    ) from None
  finally:
    draft.unlink(missing_ok=True)


def _linked(draft: pathlib.Path, path: pathlib.Path) -> bool:
  """Whether the draft was put in the place of the lock, where nothing was."""
  try:
    os.link(draft, path)
    return True
  except FileExistsError:
    return False
  except OSError:  # storage without hard links, such as a mounted bucket
    try:
      with open(path, "x", encoding="utf-8") as file:
        file.write(draft.read_text(encoding="utf-8"))
      return True
    except FileExistsError:
      return False


def _replace(draft: pathlib.Path, path: pathlib.Path, content: str) -> None:
  """Puts the draft in the place of a lock whose process has ended, unless another process was first.

  Of several that found the same lock the last to replace it has it, and the others see that after a moment.
  """
  with _one_of_this_machine(path.parent):
    if _content(path) != content:
      return
    copy = path.with_name(f".{secrets.token_hex(8)}.tmp")
    copy.write_text(draft.read_text(encoding="utf-8"), encoding="utf-8")
    os.replace(copy, path)
  time.sleep(0.2)


@contextlib.contextmanager
def _one_of_this_machine(folder: pathlib.Path) -> Iterator[None]:
  """Processes of this machine come one after the other, where the storage has `flock`."""
  handle = None
  with contextlib.suppress(ImportError, OSError):
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
  try:
    yield
  finally:
    if handle is not None:
      os.close(handle)


def _is_alive(path: pathlib.Path, owner: dict, content: str) -> bool:
  """Whether the process of a lock is running, as far as can be seen from here."""
  if not content:
    return False
  if _process_is_here(owner):
    return _is_running(owner)
  print_message(f"{path.parent} is in use by {_named(owner)}; waiting {_SILENCE:.0f} seconds for a sign of life")
  first, end = _beat(path), time.monotonic() + _SILENCE
  while time.monotonic() < end:
    time.sleep(min(1.0, _SILENCE / 10))
    if _read(path) != owner:
      return False  # released or taken over: the next look decides
    if _beat(path) != first:
      return True
  return False


def _refusal(path: pathlib.Path, owner: dict, remedy: str) -> InversionViewError:
  return InversionViewError(f"{str(path.parent)!r} is in use by {_named(owner)}: {remedy}")


def _named(owner: dict) -> str:
  started = owner.get("started", "?")
  return f"process {owner.get('pid', '?')} on {owner.get('host', '?')} since {started} ({owner.get('command', '?')})"


def _description(token: str) -> dict:
  command = shlex.join([os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]])
  return {
    "token": token,
    "pid": os.getpid(),
    "born": _born(os.getpid()),
    **_here(),
    "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    "command": command[:200],
  }


def _here() -> dict[str, str]:
  """Where a process number means something: the machine since its start, and the container."""
  import socket

  def of(read) -> str:
    try:
      return read()
    except OSError:
      return ""

  return {
    "host": socket.gethostname(),
    "boot": of(lambda: pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()),
    "space": of(lambda: os.readlink("/proc/self/ns/pid")),
  }


def _process_is_here(owner: dict) -> bool:
  return all(owner.get(name) == value for name, value in _here().items())


def _is_running(owner: dict) -> bool:
  """Whether the process with this number is the one that took the lock: another may have the number of one that ended."""
  pid = owner.get("pid")
  if not isinstance(pid, int) or pid < 1:
    return False
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # it is another user's
    pass
  return owner.get("born") == _born(pid)


def _born(pid: int) -> str:
  """The start of a process in ticks since that of the machine; "" where /proc has no record of it, or it is a zombie."""
  try:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return "" if fields[0] in "ZX" else fields[19]
  except (OSError, IndexError, ValueError):
    return ""


def _content(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8", errors="replace")
  except FileNotFoundError:
    return ""


def _read(path: pathlib.Path) -> dict:
  """What a lock says of its process; {} where there is none that can be read."""
  try:
    owner = json.loads(_content(path))
  except (OSError, ValueError, RecursionError):
    return {}
  return owner if isinstance(owner, dict) else {}


def _beat(path: pathlib.Path) -> int:
  try:
    return path.stat().st_mtime_ns
  except OSError:
    return 0


def _renew(path: pathlib.Path, token: str, done: threading.Event) -> None:
  """Renews the heartbeat of a lock until it is released, or is another's."""
  while not done.wait(_HEARTBEAT):
    if _read(path).get("token") == token:
      with contextlib.suppress(OSError):
        os.utime(path)


def _release(path: str) -> None:
  token = _held.pop(path, None)
  if token is not None and _read(pathlib.Path(path)).get("token") == token:
    with contextlib.suppress(OSError):
      os.unlink(path)
