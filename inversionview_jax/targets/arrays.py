"""What callers have in place of NumPy and JAX arrays: tensors of torch, lists of different lengths."""

from collections.abc import Sequence
from typing import Any


def to_array(value: Any) -> Any:
  """A tensor of torch as a NumPy array, also inside lists; from any device, without its gradient, bfloat16 as float32. The rest unchanged."""
  if isinstance(value, list | tuple):
    return type(value)(map(to_array, value)) if any(map(_may_be_tensor, value)) else value
  if not _is_tensor(value):
    return value
  tensor = value.detach().cpu()
  if tensor.is_floating_point() and str(tensor.dtype) not in ("torch.float16", "torch.float32", "torch.float64"):
    tensor = tensor.float()  # NumPy has no bfloat16
  return tensor.numpy()


def one_line(value: object) -> str:
  """The repr of a value in one line, and short, for an error message."""
  text = " ".join(repr(value).split())
  return text if len(text) <= 80 else f"{text[:77]}..."


def is_ragged(value: object) -> bool:
  """Whether this is a list of lists or arrays of one dimension that are not all of one length."""
  if not isinstance(value, list | tuple) or not value:
    return False
  rows = [to_array(row) for row in value]
  if any(isinstance(row, str) for row in rows):
    return False
  one_dimensional = all(
    getattr(row, "ndim", None) == 1 or isinstance(row, Sequence) and not any(map(_has_length, row)) for row in rows
  )
  return one_dimensional and len({len(row) for row in rows}) > 1


def _has_length(value: object) -> bool:
  return hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0


def _is_tensor(value: object) -> bool:
  return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _may_be_tensor(value: object) -> bool:
  return isinstance(value, list | tuple) or _is_tensor(value)
