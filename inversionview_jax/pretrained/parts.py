"""The parts of a parameter tree, made of a checkpoint's tensors when they are accessed."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import numpy as np

from inversionview_jax.devices import host_arrays
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.storage import refuse_not_finite


class Weights(Protocol):
  """The tensors of a checkpoint by name: `Safetensors`, `GgufFile`, `Renamed`."""

  names: frozenset[str]

  def shape(self, name: str) -> tuple[int, ...]: ...

  def read(self, name: str) -> np.ndarray: ...


def _unchanged(tensor: np.ndarray) -> np.ndarray:
  return tensor


@dataclasses.dataclass(frozen=True)
class Leaf:
  """The tensor that one parameter is made of.

  Attributes:
    tensor: its name in the checkpoint; None for what `make` makes of zeros of `shape`.
    shape: of the tensor in the checkpoint.
    make: the tensor as float32 -> the parameter.
  """

  tensor: str | None
  shape: tuple[int, ...]
  make: Callable[[np.ndarray], np.ndarray] = _unchanged


@dataclasses.dataclass(frozen=True)
class Stack:
  """Several tensors that one parameter is made of, stacked on a first axis: the same matrix of every expert."""

  leaves: tuple[Leaf, ...]


class Parts(Mapping):
  """Name of a part ("embed", "blocks_0", ...) -> nested dicts of float32 arrays, read from disk at every access.

  Args:
    weights: the tensors.
    layout: name of a part -> nested dicts of `Leaf`.
    unused: name -> whether a tensor that `layout` does not name may be left out.
    where: name of the checkpoint, for error messages.

  Raises:
    InversionViewError: a tensor is missing, has another shape, or is not in the layout.
  """

  def __init__(self, weights: Weights, layout: dict, unused: Callable[[str], bool], where: object):
    self._weights, self._layout, self._where = weights, layout, where
    taken = set()
    for leaf in leaves(layout):
      if leaf.tensor is None:
        continue
      taken.add(leaf.tensor)
      if leaf.tensor not in weights.names:
        raise InversionViewError(f"{where}: tensor {leaf.tensor} is missing")
      if weights.shape(leaf.tensor) != leaf.shape:
        raise InversionViewError(
          f"{where}: tensor {leaf.tensor} has shape {weights.shape(leaf.tensor)}, expected {leaf.shape}"
        )
    if surplus := sorted(name for name in weights.names - taken if not unused(name)):
      raise InversionViewError(
        f"{where}: tensor {surplus[0]} has no place in a model of {sum(name.startswith('blocks_') for name in layout)} layers; "
        "is the number of layers right?"
      )

  def __getitem__(self, part: str):
    return self._read(self._layout[part])

  def __contains__(self, part) -> bool:
    return part in self._layout  # Mapping's own would read it

  def __iter__(self):
    return iter(self._layout)

  def __len__(self):
    return len(self._layout)

  def _read(self, node):
    if isinstance(node, dict):
      return {name: self._read(child) for name, child in node.items()}
    if isinstance(node, Stack):
      first = self._read(node.leaves[0])
      out = host_arrays.empty((len(node.leaves), *first.shape))
      for row, leaf in zip(out, node.leaves, strict=True):  # one at a time, so that they are not in memory twice
        row[...] = self._read(leaf)
      return out
    if node.tensor is None:
      return np.asarray(node.make(np.zeros(node.shape, np.float32)), np.float32)
    tensor = self._weights.read(node.tensor)
    if tensor.dtype != np.float32:
      tensor = host_arrays.float32(tensor)  # of float64 perhaps infinite: refused below
    refuse_not_finite(tensor, f"{self._where}: tensor {node.tensor}")
    return np.asarray(node.make(tensor), np.float32)


def has_own_unembedding(weights: Weights, tied: dict, untied: dict) -> bool:
  """Whether a checkpoint whose configuration ties the unembedding to the embedding has an unembedding that differs from it.

  Such a file was saved from a model with two matrices. transformers 5 uses both of them too.

  Args:
    weights: the tensors.
    tied, untied: layouts of the model, as `Parts` takes them, with the unembedding tied and with one of its own.
  """
  head = untied.get("unembed", {}).get("kernel")
  if head is None or head.tensor not in weights.names:
    return False
  embedding = tied["embed"].tensor
  if embedding not in weights.names or weights.shape(embedding) != weights.shape(head.tensor):
    return embedding in weights.names  # another shape: `Parts` names it
  return not np.array_equal(weights.read(embedding), weights.read(head.tensor))


def refuse_dropped_unembedding(weights: Weights, tied: dict, untied: dict, where: object) -> None:
  """Raises `InversionViewError` for an lm_head.weight that differs from the embedding, in a family that knows tied models only."""
  name, embedding = "lm_head.weight", tied["embed"].tensor
  if "unembed" in untied or name not in weights.names or embedding not in weights.names:
    return
  if not np.array_equal(weights.read(embedding), weights.read(name)):
    raise InversionViewError(
      f"{where}: {name} differs from the embedding, but this family has no unembedding of its own; give its layout an 'unembed'"
    )


class FirstLayers(Mapping):
  """The parts of a model's first `layers` layers, without ln_f and unembedding; the others are never read."""

  def __init__(self, parts: Mapping, layers: int):
    unused = ("ln_f", "unembed")
    self._parts = parts
    self._names = [
      name for name in parts if name not in unused and not (name.startswith("blocks_") and int(name[7:]) >= layers)
    ]

  def __getitem__(self, part: str):
    if part not in self._names:
      raise KeyError(part)
    return self._parts[part]

  def __contains__(self, part) -> bool:
    return part in self._names

  def __iter__(self):
    return iter(self._names)

  def __len__(self):
    return len(self._names)


def leaves(node: dict | Leaf | Stack) -> Iterator[Leaf]:
  """Yields every `Leaf` below a node of a layout."""
  if isinstance(node, Leaf):
    yield node
  elif isinstance(node, Stack):
    yield from node.leaves
  else:
    for child in node.values():
      yield from leaves(child)


class Renamed:
  """The tensors of `weights` under other names: `rename` of their own.

  Raises:
    InversionViewError: two of them have the same new name.
  """

  def __init__(self, weights: Weights, rename: Callable[[str], str], where: object):
    self._weights = weights
    self._original: dict[str, str] = {}
    for name in sorted(weights.names):
      if (other := self._original.setdefault(rename(name), name)) != name:
        raise InversionViewError(
          f"{where}: tensors {other} and {name} are the same part of the model; remove one of them"
        )
    self.names = frozenset(self._original)

  def shape(self, name: str) -> tuple[int, ...]:
    return self._weights.shape(self._original[name])

  def read(self, name: str) -> np.ndarray:
    return self._weights.read(self._original[name])
