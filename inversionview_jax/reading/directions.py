"""Directions that activations are compared along: unembedding columns, an autoencoder's decoder rows, probes.

Shapes: K directions, P the dimension of their span, D width of the activation.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError

_DEPENDENT = 1e-5  # of the largest singular value; directions below add nothing to the span


@dataclasses.dataclass(frozen=True, eq=False)
class Directions:
  """The span of some directions.

  Attributes:
    name: shown with the preimage, such as "probes.npy, 3 directions".
    basis: float32[P, D], orthonormal rows.
  """

  name: str
  basis: np.ndarray

  @classmethod
  def of(cls, directions: "str | os.PathLike | np.ndarray", width: int) -> "Directions":
    """The span of directions from a file or an array.

    Args:
      directions: float[K, D] or float[D]; or a .npy file or a .safetensors file with one tensor of that shape (or FILE.safetensors:NAME).
      width: D.

    Raises:
      InversionViewError: a file that cannot be read, another shape or width, numbers that are not finite, or directions that are all zero.
    """
    if isinstance(directions, str | os.PathLike):
      source, values = Path(os.fspath(directions)).name, _read(os.fspath(directions))
    else:
      source, values = "given", np.asarray(directions)
    values = np.atleast_2d(values)
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiu":
      raise InversionViewError(
        f"directions {source}: an array of shape {values.shape} ({values.dtype}); give numbers [K, {width}]"
      )
    if values.shape[1] != width:
      transposed = " (transposed?)" if values.shape[0] == width else ""
      raise InversionViewError(
        f"directions {source} have width {values.shape[1]}{transposed}; activations of this target have {width}"
      )
    if not np.isfinite(values).all():
      raise InversionViewError(
        f"directions {source}: {int((~np.isfinite(values)).sum())} of their numbers are not finite"
      )
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    if not norms.any():
      raise InversionViewError(f"directions {source} are all zero: there is nothing to compare along")
    _, singular, basis = np.linalg.svd(values / np.where(norms, norms, 1), full_matrices=False)
    count = len(values)
    return cls(
      f"{source}, {count} {'direction' if count == 1 else 'directions'}",
      basis[singular > _DEPENDENT * singular[0]].astype(np.float32),
    )

  def project(self, activation: np.ndarray) -> np.ndarray:
    """Coordinates in the span: float32[..., D] -> float32[..., P]; zero of an activation that is zero itself (see `distance`).

    Raises:
      InversionViewError: another activation without any part along them, from which no distance can be normalized.
    """
    projected, size = activation @ self.basis.T, np.linalg.norm(activation, axis=-1)
    if ((np.linalg.norm(projected, axis=-1) <= 1e-6 * size) & (size > 0)).any():
      raise InversionViewError(
        f"the activation has no part along the directions ({self.name}), so that no distance can be measured"
      )
    return projected


def _read(path: str) -> Any:
  """The array of a .npy or a .safetensors file."""
  file, _, name = path.partition(".safetensors:")
  path = f"{file}.safetensors" if name else path
  try:
    if not path.endswith(".safetensors"):
      return np.load(path, allow_pickle=False)
    from safetensors import safe_open

    with safe_open(path, "numpy") as tensors:
      names = list(tensors.keys())
      if (name and name not in names) or (not name and len(names) != 1):
        raise InversionViewError(
          f"{path} has the tensors {', '.join(sorted(names)[:8]) or 'none'}: name one of them as {path}:NAME"
        )
      return tensors.get_tensor(name or names[0])
  except InversionViewError:
    raise
  except (
    Exception
  ) as error:  # NumPy and safetensors raise several kinds for a file that is missing, damaged or of another type
    if isinstance(error, ValueError) and not path.endswith(".safetensors"):
      raise InversionViewError(f"cannot read the directions {path}: it is no .npy file of numbers") from None
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
    raise InversionViewError(f"cannot read the directions {path}: {reason}") from None
