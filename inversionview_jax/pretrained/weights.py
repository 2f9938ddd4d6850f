"""Safetensors files, whole or in shards, read one tensor at a time.

The format is eight bytes with the length of a JSON header, the header (name -> type, shape, byte range), and the numbers. It is parsed here
instead of by the safetensors library because that maps the file into memory, whose pages count as memory of the process, and a checkpoint
must not be in memory twice.
"""

import functools
import itertools
import math
import pathlib

import ml_dtypes
import numpy as np
import numpy.typing as npt

from inversionview_jax import values
from inversionview_jax.devices import host_arrays
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file, parse_json, read_json

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# MXFP4: numbers of four bits, two in a byte, the lower half first; 32 of them have a scale in common, a power of two.
_FOURS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BLOCKS, _SCALES = "_blocks", "_scales"
_LONGEST_HEADER = 100_000_000  # the format's own limit


class Safetensors:
  """The tensors of a folder: model.safetensors, or the shards that model.safetensors.index.json names.

  A pair of tensors in MXFP4, x_blocks [..., out, in / 32, 16] and x_scales [..., out, in / 32], is one tensor x [..., in, out], as transformers
  has it when it takes such weights apart.

  Attributes:
    names: of all tensors.

  Raises:
    InversionViewError: no weights, only pickled ones (which are never opened), a shard that is missing, truncated or damaged.
  """

  def __init__(self, folder: pathlib.Path):
    self._entries: dict[str, tuple] = {}  # name -> (path, type, shape, first byte)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
      self._add(folder / "model.safetensors")
    elif index.exists():
      for shard, names in _shards(index).items():
        self._add(folder / shard)
        if missing := sorted(set(names) - set(self._entries)):
          raise InversionViewError(
            f"{folder / shard} does not hold tensor {missing[0]}, although {index.name} names it there"
          )
    else:
      raise InversionViewError(_no_weights(folder))
    entries = self._entries
    self._packed = {
      name.removesuffix(_BLOCKS)
      for name in entries
      if name.endswith(_BLOCKS) and {entries[name][1], self._scales(name)} == {"U8"}
    }
    parts = {packed + part for packed in self._packed for part in (_BLOCKS, _SCALES)}
    self.names = frozenset((entries.keys() - parts) | self._packed)

  def _scales(self, blocks: str) -> str | None:
    """The type of the scales of these blocks, if their shapes go together."""
    scales = self._entries.get(blocks.removesuffix(_BLOCKS) + _SCALES)
    return scales[1] if scales and (*scales[2], 16) == self._entries[blocks][2] and len(scales[2]) > 1 else None

  def _add(self, path: pathlib.Path) -> None:
    """Adds the tensors of a file; every entry of its header is checked against the file before anything is read."""
    try:
      with open_file(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
          raise InversionViewError(f"cannot read {path}: truncated or corrupt (its header is not whole)")
        header = values.mapping("the header", parse_json(file.read(length), f"the header of {path}"))
    except FileNotFoundError:
      raise InversionViewError(f"no model in {path.parent}: {path.name} is missing") from None
    except OSError as error:
      raise InversionViewError(f"cannot read {path}: {error.strerror}") from None
    header.pop("__metadata__", None)
    places = []
    try:
      for name, entry in header.items():
        kind, shape, start, end = _entry(name, entry, size - 8 - length)
        places.append((start, end, name))
        self._entries[name] = (path, kind, shape, 8 + length + start)
      places = sorted(place for place in places if place[0] < place[1])
      for (_, end, name), (start, _, other) in itertools.pairwise(places):
        if start < end:
          raise InversionViewError(f"tensors {name} and {other} overlap: data_offsets {other} begin at {start:,}")
    except InversionViewError as error:
      raise InversionViewError(f"cannot read {path}: truncated or corrupt ({error})") from None

  def shape(self, name: str) -> tuple[int, ...]:
    """A tensor's shape."""
    if name not in self._packed:
      return self._entries[name][2]
    *outer, out, groups, _ = self._entries[name + _BLOCKS][2]
    return (*outer, 32 * groups, out)

  def read(self, name: str) -> np.ndarray:
    """A tensor in the dtype it is stored in; raises `InversionViewError` for one that is not floating-point."""
    if name in self._packed:
      return self._unpacked(name)
    path, kind, shape, start = self._entries[name]
    if kind not in _TYPES:
      raise InversionViewError(f"{path}: tensor {name} is of type {kind}; types that are read: {', '.join(_TYPES)}")
    return read_array(path, _TYPES[kind], shape, start)

  def _unpacked(self, name: str) -> np.ndarray:
    """A tensor in MXFP4 as float32, made matrix by matrix."""

    def stored(part):
      path, _, shape, start = self._entries[name + part]
      return read_array(path, np.uint8, shape, start)

    blocks, scales = stored(_BLOCKS), stored(_SCALES)
    out = np.empty(self.shape(name), np.float32)
    for at in np.ndindex(*out.shape[:-2]):
      fours = np.stack([_FOURS[blocks[at] & 15], _FOURS[blocks[at] >> 4]], axis=-1)  # [out, in / 32, 16, 2]
      scaled = np.ldexp(fours, scales[at].astype(np.int32)[..., None, None] - 127)
      out[at] = scaled.reshape(len(scaled), -1).T
    return out


def _entry(name: str, entry: object, size: int) -> tuple[str, tuple[int, ...], int, int]:
  """An entry of a header: (type, shape, first byte, byte behind the last), counted from behind the header.

  Args:
    name: of the tensor.
    entry: as read from JSON.
    size: bytes behind the header.
  """
  fields = values.mapping(f"tensor {name}", entry)
  if missing := sorted({"dtype", "shape", "data_offsets"} - set(fields)):
    raise InversionViewError(f"tensor {name} lacks {missing[0]}")
  kind = values.text(f"dtype of tensor {name}", fields["dtype"])
  whole = functools.partial(values.whole, low=0, high=2**62)
  shape = values.sequence(f"shape of tensor {name}", fields["shape"], whole, 32)
  offsets = values.sequence(f"data_offsets of tensor {name}", fields["data_offsets"], whole, 2)
  if len(offsets) != 2 or offsets[0] > offsets[1]:
    raise InversionViewError(f"data_offsets of tensor {name} = {list(offsets)} must be two numbers, the smaller first")
  start, end = offsets
  if end > size:
    raise InversionViewError(f"tensor {name} ends after the file: data_offsets {start:,} to {end:,} of {size:,} bytes")
  count = math.prod(shape)
  sizes = _TYPES | {"U8": np.uint8}
  if kind in sizes and end - start != np.dtype(sizes[kind]).itemsize * count:
    raise InversionViewError(
      f"tensor {name} has another size than its shape: {end - start:,} bytes for {list(shape)} of {kind}"
    )
  return kind, shape, start, end


def read_array(path: pathlib.Path, dtype: npt.DTypeLike, shape: tuple[int, ...], start: int) -> np.ndarray:
  """An array from byte `start` of a file on; raises `InversionViewError` if the file ends inside it."""
  array = host_arrays.empty(shape, dtype)
  try:
    with path.open("rb") as file:
      file.seek(start)
      read = file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer
  except OSError as error:
    raise InversionViewError(f"cannot read {path}: {error.strerror}") from None
  if read != array.nbytes:
    raise InversionViewError(f"cannot read {path}: truncated or corrupt (it ends in the middle of a tensor)")
  return array


def _shards(index: pathlib.Path) -> dict[str, list[str]]:
  """File name of each shard -> names of its tensors, from a model.safetensors.index.json."""
  shards: dict[str, list[str]] = {}
  name = str(index)
  content = values.mapping(name, read_json(index))
  if "weight_map" not in content:
    raise InversionViewError(f"{name} has no weight_map; it is damaged or not the index of shards")
  for tensor, shard in values.mapping(f"{name}: weight_map", content["weight_map"]).items():
    # A shard is in the folder of its index, nowhere else.
    file = pathlib.PurePath(values.text(f"{name}: weight_map of {tensor}", shard)).name
    shards.setdefault(file, []).append(tensor)
  return shards


def _no_weights(folder: pathlib.Path) -> str:
  if list(folder.glob("*.bin")) or list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
    return (
      f"{folder} holds pickled weights, which are never opened; convert them with "
      "transformers' save_pretrained(..., safe_serialization=True)"
    )
  return f"no model in {folder}: model.safetensors is missing, and so is model.safetensors.index.json"
