"""The header of a GGUF file, walked through before the `gguf` package reads it.

That package trusts every count: one that a damaged file states is looped over, however large, even where the file has ended.
Source: the format's specification (ggml, docs/gguf.md).
"""

import math
import pathlib
import struct

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file
from inversionview_jax.terminal import visible

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # type of a number -> its size
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 1000  # bytes; the longest that are in use have less than 100
_ELEMENTS_PER_BYTE = 8  # more than any quantisation has


def check(path: pathlib.Path) -> None:
  """Raises `InversionViewError` if a count or length in the header reaches behind the file; a big-endian file is not looked into.

  Args:
    path: of the file.
  """
  try:
    with open_file(path) as file:
      size = file.seek(0, 2)
      file.seek(0)
      _Header(file, size, path).check()
  except OSError as error:
    raise InversionViewError(f"cannot read {path}: {error.strerror}") from None


class _Header:
  """A header at a place: what is read moves on, and nothing is read behind the end."""

  def __init__(self, file, size: int, path: pathlib.Path):
    self._file, self._size, self._path, self._at = file, size, path, 0

  def check(self) -> None:
    if self._take(4, "its first bytes") != _MAGIC:
      raise InversionViewError(f"{self._path} is no GGUF file: it does not begin with GGUF")
    version = self._number("I", "the version")
    if version & 0xFFFF == 0:  # the other byte order, which is refused by its name
      return
    tensors, keys = self._number("Q", "the number of tensors"), self._number("Q", "the number of keys")
    self._refuse_more(keys, 12, "keys")
    self._refuse_more(tensors, 24, "tensors")
    for _ in range(keys):
      name = self._name("a key")
      self._value(self._number("I", f"the type of {name}"), name)
    for _ in range(tensors):
      name = self._name("the name of a tensor")
      count = self._number("I", f"the dimensions of tensor {name}")
      if count > _MOST_DIMENSIONS:
        self._refuse(f"tensor {name} has {count:,} dimensions")
      shape = [self._number("Q", f"the shape of tensor {name}") for _ in range(count)]
      if math.prod(shape) > _ELEMENTS_PER_BYTE * self._size:
        self._refuse(f"tensor {name} of shape {shape[::-1]} is larger than the file")
      self._take(12, f"the type of tensor {name}")

  def _value(self, kind: int, name: str) -> None:
    """Passes over a value of a key."""
    if kind == _STRING:
      self._skip(self._number("Q", name), name)
    elif kind in _BYTES:
      self._skip(_BYTES[kind], name)
    elif kind == _ARRAY:
      kind, count = self._number("I", f"the type of {name}"), self._number("Q", f"the length of {name}")
      if kind == _STRING:
        self._refuse_more(count, 8, f"entries of {name}")
        for _ in range(count):
          self._skip(self._number("Q", name), name)
      elif kind in _BYTES:
        self._skip(count * _BYTES[kind], name)
      else:
        self._refuse(f"{name} is a list of type {kind}, which is not known")
    else:
      self._refuse(f"{name} is of type {kind}, which is not known")

  def _take(self, count: int, what: str) -> bytes:
    if self._at + count > self._size:
      self._refuse(f"it ends inside {what}")
    self._at += count
    return self._file.read(count)

  def _skip(self, count: int, what: str) -> None:
    if self._at + count > self._size:
      self._refuse(f"it ends inside {what}")
    self._at += count
    self._file.seek(self._at)

  def _number(self, kind: str, what: str) -> int:
    return struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}"), what))[0]

  def _name(self, what: str) -> str:
    length = self._number("Q", what)
    if length > _LONGEST_NAME:
      self._refuse(f"{what} is {length:,} bytes long")
    return self._take(length, what).decode("utf-8", "replace")

  def _refuse_more(self, count: int, size: int, what: str) -> None:
    """Refuses a count of things, of at least `size` bytes each, that do not fit into the rest of the file."""
    if count * size > self._size - self._at:
      self._refuse(f"it is too short for {count:,} {what}")

  def _refuse(self, why: str) -> None:
    raise InversionViewError(f"cannot read {self._path}: truncated or corrupt ({visible(why)})")
