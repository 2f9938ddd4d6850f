"""Paths that a person gave, files that appear whole or not at all, and the lines and JSON of files."""

import contextlib
import errno
import importlib.resources
import json
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from inversionview_jax.errors import InversionViewError


def path_of(path: "str | os.PathLike") -> pathlib.Path:
  """The path that a person means, with the home folder for "~".

  Raises:
    InversionViewError: a home folder that is not known, or a path that no file can have: empty, with a zero byte, too long, or links in a loop.
  """
  shown = _shown(path)
  if not os.fspath(path):
    raise InversionViewError("the path is empty: give the name of a file or folder")
  try:
    found = pathlib.Path(path).expanduser()
    os.lstat(found)
    os.stat(found)
  except RuntimeError:
    raise InversionViewError(f"there is no home folder for {shown}: write the path out") from None
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    pass  # whoever opens it knows what it was for
  except OSError as error:
    raise InversionViewError(f"cannot use the path {shown}: {error.strerror}") from None
  except ValueError as error:  # a zero byte, or characters that file names cannot have
    raise InversionViewError(f"cannot use the path {shown}: {error}") from None
  return found


def open_file(path: "str | os.PathLike") -> BinaryIO:
  """A regular file, open for reading bytes: not a folder, and not a pipe or device, which could block for ever.

  Raises:
    OSError: it is not there, is no regular file or cannot be read; its `strerror` says why.
    InversionViewError: a path that no file can have.
  """
  found = path_of(path)
  # Without O_NONBLOCK opening a pipe waits for its other end; of a regular file it changes nothing.
  handle = os.open(found, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
  mode = os.fstat(handle).st_mode
  if not stat.S_ISREG(mode):
    os.close(handle)
    if stat.S_ISDIR(mode):
      raise IsADirectoryError(errno.EISDIR, "it is a folder")
    raise OSError(errno.EINVAL, "it is a pipe, socket or device, and no file")
  return os.fdopen(handle, "rb")


def check_is_file(path: "str | os.PathLike") -> None:
  """Raises `InversionViewError` for something that is there and no regular file, for libraries that open a file by its name."""
  try:
    open_file(path).close()
  except FileNotFoundError:
    pass
  except OSError as error:
    raise InversionViewError(f"cannot read {_shown(path)}: {error.strerror}") from None


def read_json(path: "str | os.PathLike", hint: str = "", finite: bool = True) -> Any:
  """The JSON of a file, as `parse_json` reads it.

  Args:
    path: of the file, UTF-8 with or without a byte order mark.
    hint: for the message where it cannot be read.
    finite: as for `parse_json`.

  Raises:
    InversionViewError: no file that can be read, or not JSON.
  """
  name = os.fspath(path)
  try:
    with open_file(path) as file:
      content = file.read()
  except OSError as error:
    raise InversionViewError(f"cannot read {_shown(path)}: {error.strerror}{hint and '; '}{hint}") from None
  return parse_json(content, name, hint, finite)


def parse_json(content: "str | bytes", name: str, hint: str = "", finite: bool = True) -> Any:
  """JSON as plain data; the one reader of JSON for whatever comes from outside.

  Numbers are finite, and no key stands twice in an object: of two values of one key a program would take one without a word.

  Args:
    content: text, or bytes of UTF-8 with or without a byte order mark.
    name: where it is from, for the message.
    hint: for the message: what would be right.
    finite: refuse NaN and infinities here; not where whoever uses a value checks it and names its key.

  Raises:
    InversionViewError: not JSON, a number that is not finite, a key that stands twice, or lists and objects nested too deep.
  """
  try:
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    numbers: Any = {"parse_constant": _no_constant, "parse_float": _finite} if finite else {}
    return json.loads(text, object_pairs_hook=_without_duplicates, **numbers)
  except RecursionError:
    reason = "its lists and objects are nested too deep"
  except UnicodeDecodeError as error:
    reason = f"it is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})"
  except ValueError as error:
    reason = str(error)
  raise InversionViewError(f"{name} is not JSON ({reason}){hint and '; '}{hint}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  table = dict(pairs)
  if len(table) < len(pairs):
    seen: set[str] = set()
    twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    raise ValueError(f"the key {twice[:80]!r} stands twice in an object")
  return table


def _no_constant(text: str) -> float:
  raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
  value = float(text)
  if value in (float("inf"), float("-inf")):
    raise ValueError(f"the number {text[:40]} is too large")
  return value


def _shown(path: "str | os.PathLike") -> str:
  """A path for a message; of a long one its beginning."""
  text = os.fspath(path)
  return repr(text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)")


def write_whole(path: "str | os.PathLike", content: "str | bytes") -> None:
  """Writes `content` (text as UTF-8) to `path` so that a reader sees the old file or the new one, never half of one.

  Raises:
    InversionViewError: the folder is missing or not writable, or `path` is something other than a file.
  """
  target = _file_to_write(path)
  draft = target.parent / f".{secrets.token_hex(8)}.tmp"
  try:
    with open(draft, "xb") as file:
      # A lone surrogate, which UTF-8 does not have, becomes its escape in JSON.
      file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, target)
  except OSError as error:
    raise InversionViewError(f"cannot write {_shown(path)}: {error.strerror}; choose another place") from None
  finally:
    with contextlib.suppress(OSError):
      draft.unlink(missing_ok=True)


def _file_to_write(path: "str | os.PathLike") -> pathlib.Path:
  """Where a file that is written to `path` will be: behind a link its file, and the link itself stays.

  Raises:
    InversionViewError: the folder is missing, or something other than a file is there.
  """
  target, shown = path_of(path).resolve(), _shown(path)
  if not target.parent.is_dir():
    raise InversionViewError(f"cannot write {shown}: the folder {str(target.parent)!r} does not exist; create it first")
  if target.is_dir():
    raise InversionViewError(f"cannot write {shown}: it is a folder; give the name of a file")
  if target.exists() and not target.is_file():  # replacing a device such as /dev/null would be worse than an error
    raise InversionViewError(f"cannot write {shown}: it exists and is not a file; give the name of a file")
  return target


def read_lines(path: "str | os.PathLike", hint: str = "") -> Iterator[tuple[int, str]]:
  """Yields the lines of a text file with their numbers, from 1 on.

  A line ends at a line feed, and a carriage return before it is dropped. No other character ends one: U+2028, U+0085, form feeds and the
  like belong to the text. A byte order mark at the beginning of the file is dropped.

  Args:
    path: of the file, UTF-8; "~" is the home folder.
    hint: for the message where it cannot be read.

  Raises:
    InversionViewError: a file that cannot be read, or a line that is not UTF-8 (by its number).
  """
  try:
    with open_file(path) as file:
      for number, raw in enumerate(file, start=1):
        try:
          yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
          byte = error.object[error.start]
          raise InversionViewError(
            f"{os.fspath(path)}:{number} is not UTF-8 (byte {byte:#04x} at {error.start}); convert the file, as with iconv"
          ) from None
  except OSError as error:
    raise InversionViewError(f"cannot read {_shown(path)}: {error.strerror}{hint and '; '}{hint}") from None


def check_can_hold(path: "str | os.PathLike") -> None:
  """Raises `InversionViewError` if a file cannot be written there; for before the work, not after it."""
  target = _file_to_write(path)
  if not os.access(target.parent, os.W_OK):
    raise InversionViewError(f"cannot write {_shown(path)}: its folder cannot be written; choose another place")


def check_can_make(path: "str | os.PathLike") -> None:
  """Raises `InversionViewError` where `make_folder` could not make a folder; makes nothing."""
  folder = _folder_path(path)
  above = folder
  while not above.exists() and above != above.parent:
    above = above.parent
  if not above.is_dir():
    raise InversionViewError(f"cannot use {_shown(path)} as a folder: {above} is a file; give another")
  if not os.access(above, os.W_OK | os.X_OK):
    raise InversionViewError(f"cannot use {_shown(path)} as a folder: {above} cannot be written; give one that can")


def make_folder(path: "str | os.PathLike") -> pathlib.Path:
  """Makes a folder, with those above it, and returns it; raises `InversionViewError` where that cannot be done or written into."""
  folder = _folder_path(path)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    os.listdir(folder)
  except OSError as error:
    raise InversionViewError(
      f"cannot use {_shown(path)} as a folder: {error.strerror}; give one that can be written"
    ) from None
  if not os.access(folder, os.W_OK):
    raise InversionViewError(f"cannot use {_shown(path)} as a folder: it cannot be written; give one that can")
  return folder


def _folder_path(path: "str | os.PathLike") -> pathlib.Path:
  if "://" in os.fspath(path):  # pathlib would make a folder "gs:" here
    raise InversionViewError(f"cannot use {_shown(path)} as a folder: mount the bucket and give its path")
  return path_of(path)


@contextlib.contextmanager
def output_folder(path: "str | os.PathLike") -> Iterator[pathlib.Path]:
  """A folder for results, made if need be; where the work fails before anything is in it, what was made is removed again.

  Raises:
    InversionViewError: as `make_folder`.
  """
  folder = _folder_path(path)
  made = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
  make_folder(path)
  try:
    yield folder
  except BaseException:
    inside = (
      sorted(folder.rglob("*"), reverse=True) if made else []
    )  # a file that could not be written leaves its folder
    for each in (*inside, *made):  # the deepest first; one that holds something stays
      with contextlib.suppress(OSError):
        if each.is_dir() and not each.is_symlink():
          each.rmdir()
    raise


@contextlib.contextmanager
def files_together(path: "str | os.PathLike") -> Iterator[pathlib.Path]:
  """A draft folder whose files appear in the folder `path` together when the work is done, and not at all where it fails.

  Files of the same name are replaced, each whole; the others in the folder stay.

  Raises:
    InversionViewError: as `make_folder`; or a file that cannot be moved into place.
  """
  with output_folder(path) as folder:
    draft = folder / f".{secrets.token_hex(8)}.tmp"
    draft.mkdir()
    try:
      yield draft
      for source in sorted(draft.rglob("*")):
        target = folder / source.relative_to(draft)
        try:
          target.mkdir(exist_ok=True) if source.is_dir() else os.replace(source, target)
        except OSError as error:
          raise InversionViewError(f"cannot write {_shown(target)}: {error.strerror}; choose another place") from None
    finally:
      shutil.rmtree(draft, ignore_errors=True)


def shipped_folder(name: str) -> pathlib.Path | None:
  """The folder of a model that ships with the package, or None."""
  return _shipped() / name if name in shipped_names() else None


def shipped_names() -> list[str]:
  """Names of the models that ship with the package."""
  folder = _shipped()
  return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _shipped() -> pathlib.Path:
  return pathlib.Path(str(importlib.resources.files("inversionview_jax"))) / "shipped"
