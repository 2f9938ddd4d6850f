"""The header of a GGUF file: its metadata, and where its tensors are.

Read here and not by the `gguf` package, which trusts every count, also one that a damaged file states, and takes a minute for a vocabulary
of 262,144 tokens. Source: the format's specification (ggml, docs/gguf.md).
"""

import dataclasses
import functools
import math
import pathlib
import struct
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file
from inversionview_jax.terminal import visible

_MAGIC, _VERSIONS = b"GGUF", (2, 3)
_STRING, _ARRAY = 8, 9
# Type of a number -> NumPy's.
_NUMBERS = {
  kind: np.dtype(name)
  for kind, name in enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", "", "", "<u8", "<i8", "<f8"))
  if name
}
_ALIGNMENT = 32  # of tensors, where none is stated
_MOST_DIMENSIONS = 8
_LONGEST_NAME = 1000  # bytes; the longest that are in use have less than 100
_ELEMENTS_PER_BYTE = 8  # more than any quantisation has


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor's entry.

  Attributes:
    name: of the tensor.
    kind: number of its type (`gguf.GGMLQuantizationType`).
    shape: rows first.
    start: its first byte in the file.
  """

  name: str
  kind: int
  shape: tuple[int, ...]
  start: int


@dataclasses.dataclass(frozen=True)
class Header:
  """The header of a GGUF file.

  Attributes:
    metadata: key -> a function that returns its value; raises `ValueError` for a text that is not UTF-8.
    tensors: in the order of the file.
  """

  metadata: dict[str, Callable[[], Any]]
  tensors: tuple[Tensor, ...]


def read(path: pathlib.Path) -> Header:
  """The header of a file; raises `InversionViewError` for one that is no GGUF file, is damaged or has the other byte order.

  Args:
    path: of the file.
  """
  try:
    with open_file(path) as file:
      size = file.seek(0, 2)
      file.seek(0)
      return _Reader(file, size, path).read()
  except OSError as error:
    raise InversionViewError(f"cannot read {path}: {error.strerror}") from None


def _decoded(texts: bytes | list[bytes]) -> str | list[str]:
  return texts.decode() if isinstance(texts, bytes) else [text.decode() for text in texts]


class _Reader:
  """A header at a place: what is read moves on, and nothing is read behind the end."""

  def __init__(self, file, size: int, path: pathlib.Path):
    self._file, self._size, self._path, self._at = file, size, path, 0

  def read(self) -> Header:
    if self._take(4, "its first bytes") != _MAGIC:
      raise InversionViewError(f"{self._path} is no GGUF file: it does not begin with GGUF")
    version = self._number("I", "the version")
    if version & 0xFFFF == 0:
      raise InversionViewError(f"{self._path} is big-endian, which is not read; convert it with gguf-convert-endian")
    if version not in _VERSIONS:
      raise InversionViewError(f"{self._path} is of version {version} of the format, which is not read")
    tensors, keys = self._number("Q", "the number of tensors"), self._number("Q", "the number of keys")
    self._refuse_more(keys, 12, "keys")
    self._refuse_more(tensors, 24, "tensors")
    metadata: dict[str, Callable[[], Any]] = {}
    for _ in range(keys):
      name = self._name("a key")
      if name in metadata:
        self._refuse(f"the key {name} stands there twice")
      metadata[name] = self._value(self._number("I", f"the type of {name}"), name)
    entries = [self._tensor() for _ in range(tensors)]
    alignment = metadata["general.alignment"]() if "general.alignment" in metadata else _ALIGNMENT
    if not isinstance(alignment, int) or isinstance(alignment, bool) or alignment < 1 or alignment & (alignment - 1):
      self._refuse(f"general.alignment = {values.brief(alignment)} is no power of two")
    behind = -(-self._at // alignment) * alignment
    return Header(metadata, tuple(dataclasses.replace(one, start=behind + one.start) for one in entries))

  def _tensor(self) -> Tensor:
    """The entry of a tensor; its start is counted from behind the header."""
    name = self._name("the name of a tensor")
    count = self._number("I", f"the dimensions of tensor {name}")
    if count > _MOST_DIMENSIONS:
      self._refuse(f"tensor {name} has {count:,} dimensions")
    shape = [self._number("Q", f"the shape of tensor {name}") for _ in range(count)]
    if math.prod(shape) > _ELEMENTS_PER_BYTE * self._size:
      self._refuse(f"tensor {name} of shape {shape[::-1]} is larger than the file")
    kind, start = self._number("I", f"the type of tensor {name}"), self._number("Q", f"the type of tensor {name}")
    return Tensor(name, kind, tuple(shape[::-1]), start)

  def _value(self, kind: int, name: str) -> Callable[[], Any]:
    """A function that returns the value of a key."""
    if kind == _STRING:
      return functools.partial(_decoded, self._take(self._number("Q", name), name))
    if kind in _NUMBERS:
      (number,) = self._numbers(kind, 1, name)
      return lambda: number
    if kind == _ARRAY:
      kind, count = self._number("I", f"the type of {name}"), self._number("Q", f"the length of {name}")
      if kind == _STRING:
        self._refuse_more(count, 8, f"entries of {name}")
        return functools.partial(_decoded, [self._take(self._number("Q", name), name) for _ in range(count)])
      if kind in _NUMBERS:
        numbers = self._numbers(kind, count, name)
        return lambda: numbers
      self._refuse(f"{name} is a list of type {kind}, which is not known")
    self._refuse(f"{name} is of type {kind}, which is not known")

  def _numbers(self, kind: int, count: int, name: str) -> list:
    dtype = _NUMBERS[kind]
    return np.frombuffer(self._take(count * dtype.itemsize, name), dtype).tolist()

  def _take(self, count: int, what: str) -> bytes:
    if self._at + count > self._size:
      self._refuse(f"it ends inside {what}")
    self._at += count
    return self._file.read(count)

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

  def _refuse(self, why: str) -> NoReturn:
    raise InversionViewError(f"cannot read {self._path}: truncated or corrupt ({visible(why)})")
