"""Files that appear whole or not at all, and the lines of text files."""

import os
import pathlib
import secrets
from collections.abc import Iterator

from inversionview_jax.errors import InversionViewError


def write_whole(path: "str | os.PathLike", content: "str | bytes") -> None:
  """Writes `content` (text as UTF-8) to `path` so that a reader sees the old file or the new one, never half of one.

  Raises:
    InversionViewError: the folder is missing or not writable, or `path` is something other than a file.
  """
  target = pathlib.Path(path).expanduser().resolve()  # through a link to its file: the link itself stays
  if not target.parent.is_dir():
    raise InversionViewError(
      f"cannot write {os.fspath(path)!r}: there is no folder {str(target.parent)!r}; create it first"
    )
  if target.exists() and not target.is_file():  # replacing a device such as /dev/null would be worse than an error
    raise InversionViewError(f"cannot write {os.fspath(path)!r}: it exists and is not a file; give the name of a file")
  draft = target.parent / f".{secrets.token_hex(8)}.tmp"
  try:
    with open(draft, "xb") as file:
      file.write(content.encode() if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(draft, target)
  except OSError as error:
    raise InversionViewError(f"cannot write {os.fspath(path)!r}: {error.strerror}; choose another place") from None
  finally:
    draft.unlink(missing_ok=True)


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
    with open(pathlib.Path(path).expanduser(), "rb") as file:
      for number, raw in enumerate(file, start=1):
        try:
          yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
          byte = error.object[error.start]
          raise InversionViewError(
            f"{os.fspath(path)}:{number} is not UTF-8 (byte {byte:#04x} at {error.start}); convert the file, as with iconv"
          ) from None
  except OSError as error:
    raise InversionViewError(f"cannot read {os.fspath(path)}: {error.strerror}{hint and '; '}{hint}") from None


def check_can_hold(path: "str | os.PathLike") -> None:
  """Raises `InversionViewError` if the folder that a file is to go into is not there; for before the work, not after it."""
  folder = pathlib.Path(path).resolve().parent
  if not folder.is_dir():
    raise InversionViewError(f"cannot write {path}: the folder {folder} does not exist")


def make_folder(path: "str | os.PathLike") -> pathlib.Path:
  """Makes a folder, with those above it, and returns it; raises `InversionViewError` where that cannot be done or written into."""
  if "://" in os.fspath(path):  # pathlib would make a folder "gs:" here
    raise InversionViewError(f"cannot use {os.fspath(path)!r} as a folder: mount the bucket and give its path")
  folder = pathlib.Path(path).expanduser()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    os.listdir(folder)
  except OSError as error:
    raise InversionViewError(
      f"cannot use {os.fspath(path)!r} as a folder: {error.strerror}; give one that can be written"
    ) from None
  if not os.access(folder, os.W_OK):
    raise InversionViewError(f"cannot use {os.fspath(path)!r} as a folder: it cannot be written; give one that can")
  return folder
