"""Checksums of the arrays of a tree, from their bits: the same on the host, on a device, and sharded over any mesh."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import sharding


def _hash(xp, bits, index):
  """uint32[...], uint32[...] -> uint32[...]: a hash of each element and its index.

  The sum of the hashes does not depend on the order of summation and changes with any one element.
  """
  h = bits * xp.uint32(0x9E3779B1) + index * xp.uint32(0x85EBCA6B)
  h = (h ^ (h >> xp.uint32(15))) * xp.uint32(0x2C1B3C6D)
  return h ^ (h >> xp.uint32(12))


def _on_host(x) -> int:
  x = np.ascontiguousarray(np.asarray(x))
  x = x.astype(np.uint8) if x.dtype == bool else x
  bits = x.reshape(-1).view(f"u{min(x.dtype.itemsize, 4)}").astype(np.uint32)
  with np.errstate(over="ignore"):
    return int(np.sum(_hash(np, bits, np.arange(bits.size, dtype=np.uint32)), dtype=np.uint32))


def _one_on_device(x):
  x = x.astype(jnp.uint8) if x.dtype == bool else x
  bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}")).astype(jnp.uint32)
  index, step = jnp.zeros(x.shape, jnp.uint32), 1
  for d in reversed(range(x.ndim)):
    index = index + jax.lax.broadcasted_iota(jnp.uint32, x.shape, d) * jnp.uint32(step % 2**32)
    step *= x.shape[d]
  return jnp.sum(_hash(jnp, bits, index), dtype=jnp.uint32)


@functools.cache
def on_device() -> Callable[[Sequence[jax.Array]], jax.Array]:
  """A jitted function: arrays -> uint32[number of arrays], their checksums."""
  return jax.jit(lambda leaves: jnp.stack([_one_on_device(x) for x in leaves]))


def sums(tree: Any) -> dict[str, int]:
  """The checksum of every leaf by its path; a function of its bits alone, wherever it lives."""
  paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(tree)[0], strict=True)
  names = [sharding.path_name(path) for path in paths]
  on_host = all(
    not isinstance(x, jax.Array) or (x.is_fully_addressable and next(iter(x.devices())).platform == "cpu")
    for x in leaves
  )
  values = map(_on_host, leaves) if on_host else np.asarray(on_device()(leaves)).tolist()
  return dict(zip(names, values, strict=True))
