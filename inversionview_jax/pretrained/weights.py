"""Safetensors files, whole or in shards, read one tensor at a time.

The format is eight bytes with the length of a JSON header, the header (name -> type, shape, byte range), and the numbers. It is parsed here
instead of by the safetensors library because that maps the file into memory, whose pages count as memory of the process, and a checkpoint
must not be in memory twice.
"""

import json
import pathlib

import ml_dtypes
import numpy as np
import numpy.typing as npt

from inversionview_jax.errors import InversionViewError

_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_LONGEST_HEADER = 100_000_000  # the format's own limit


class Safetensors:
  """The tensors of a folder: model.safetensors, or the shards that model.safetensors.index.json names.

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
    self.names = frozenset(self._entries)

  def _add(self, path: pathlib.Path) -> None:
    try:
      with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
          raise ValueError("its header is not whole")
        header = json.loads(file.read(length))
      header.pop("__metadata__", None)
      for name, entry in header.items():
        (start, end), shape = entry["data_offsets"], tuple(entry["shape"])
        if 8 + length + end > size:
          raise ValueError(f"tensor {name} ends after the file")
        if entry["dtype"] in _TYPES and end - start != np.dtype(_TYPES[entry["dtype"]]).itemsize * np.prod(
          shape, dtype=int
        ):
          raise ValueError(f"tensor {name} has another size than its shape")
        self._entries[name] = (path, entry["dtype"], shape, 8 + length + start)
    except FileNotFoundError:
      raise InversionViewError(f"no model in {path.parent}: {path.name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
      raise InversionViewError(f"cannot read {path}: truncated or corrupt ({error})") from None

  def shape(self, name: str) -> tuple[int, ...]:
    """A tensor's shape."""
    return self._entries[name][2]

  def read(self, name: str) -> np.ndarray:
    """A tensor in the dtype it is stored in; raises `InversionViewError` for one that is not floating-point."""
    path, kind, shape, start = self._entries[name]
    if kind not in _TYPES:
      raise InversionViewError(f"{path}: tensor {name} is of type {kind}; types that are read: {', '.join(_TYPES)}")
    return read_array(path, _TYPES[kind], shape, start)


def read_array(path: pathlib.Path, dtype: npt.DTypeLike, shape: tuple[int, ...], start: int) -> np.ndarray:
  """An array from byte `start` of a file on; raises `InversionViewError` if the file ends inside it."""
  count = int(np.prod(shape, dtype=int))
  try:
    array = np.fromfile(path, dtype, count, offset=start)
  except OSError as error:
    raise InversionViewError(f"cannot read {path}: {error}") from None
  if len(array) != count:
    raise InversionViewError(f"cannot read {path}: truncated or corrupt (it ends in the middle of a tensor)")
  return array.reshape(shape)


def _shards(index: pathlib.Path) -> dict[str, list[str]]:
  """File name of each shard -> names of its tensors, from a model.safetensors.index.json."""
  try:
    shards: dict[str, list[str]] = {}
    for name, shard in json.loads(index.read_text())["weight_map"].items():
      shards.setdefault(pathlib.PurePath(shard).name, []).append(
        name
      )  # a shard is in the folder of its index, nowhere else
    return shards
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise InversionViewError(f"cannot read {index}: {error!r}; it is damaged or not the index of shards") from None


def _no_weights(folder: pathlib.Path) -> str:
  if list(folder.glob("*.bin")) or list(folder.glob("*.pt")) or list(folder.glob("*.pth")):
    return (
      f"{folder} holds pickled weights, which are never opened; convert them with "
      "transformers' save_pretrained(..., safe_serialization=True)"
    )
  return f"no model in {folder}: model.safetensors is missing, and so is model.safetensors.index.json"
