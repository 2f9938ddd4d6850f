"""Arrays of the host that JAX takes over as they are."""

import mmap

import numpy as np
import numpy.typing as npt

_ALIGNED = 64  # bytes; of another address XLA's CPU backend makes a copy
_OWN_PAGES = 2**20  # bytes from which an array has pages of its own, which go back to the system with it


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike = np.float32) -> np.ndarray:
  """`np.empty`, at an address from which `jnp.asarray` makes no copy on a CPU: a model that is loaded is in memory once.

  Such an array must not be changed once JAX has it.
  """
  size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
  if size < _OWN_PAGES:
    memory = np.empty(size + _ALIGNED, np.uint8)
    memory = memory[-memory.ctypes.data % _ALIGNED :][:size]
  else:
    memory = np.frombuffer(mmap.mmap(-1, size), np.uint8)
  return memory.view(dtype).reshape(shape)


def float32(x: np.ndarray) -> np.ndarray:
  """An array as float32, made by `empty`; an overflow becomes infinite without a warning."""
  out = empty(x.shape)
  with np.errstate(over="ignore"):
    out[...] = x
  return out
