"""The numbers that a check compares with: made on a CPU in float32 at highest precision, kept in `golden.safetensors`.

    JAX_PLATFORMS=cpu python -m inversionview_jax.benchmarks.device.golden [FILE]

makes them again. They have to be made again where a shipped model or the numbers themselves are changed on purpose, and for nothing else.
"""

import pathlib
import sys

import jax
import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.benchmarks.device import observations, searches
from inversionview_jax.benchmarks.device.parts import GOLDEN
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole

Arrays = dict[str, np.ndarray]


def make() -> Arrays:
  """All of them, as NAME/... -> array."""
  out: Arrays = {}

  def add(group: str, arrays: Arrays) -> None:
    out.update({f"{group}/{name}": array for name, array in arrays.items()})

  with jax.default_matmul_precision("highest"):
    logits, captures = observations.forward()
    add("logits", logits)
    add("captures", captures)
    add("edits", observations.edits())
    add("distances", observations.distances())
    add("cached step", {name: whole for name, (whole, _) in observations.cached_step().items()})
    gradients, draws = observations.gradients()
    add("gradients", gradients)
    add("draws", draws)
    for name in searches.QUERIES:
      for number, drawn in enumerate(searches.preimages(name)):
        add(f"preimage/{name}/{number}", vars(drawn))
    add("exact", vars(searches.enumerated()))
  return out


def load(path: pathlib.Path) -> Arrays:
  """The arrays of a file that `write` wrote; raises `InversionViewError` if it cannot be read."""
  import safetensors
  import safetensors.numpy

  try:
    return safetensors.numpy.load_file(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise InversionViewError(f"cannot read the golden numbers in {path}: {error}") from None


def group(arrays: Arrays, name: str) -> Arrays:
  """The arrays of NAME/..., without that beginning."""
  return {key.removeprefix(f"{name}/"): value for key, value in arrays.items() if key.startswith(f"{name}/")}


def write(path: pathlib.Path, arrays: Arrays) -> None:
  """Writes the arrays, with what made them."""
  import safetensors.numpy

  device = jax.devices()[0]
  about = {"package": __version__, "jax": jax.__version__, "device": device.device_kind, "platform": device.platform}
  write_whole(path, safetensors.numpy.save({k: np.ascontiguousarray(v) for k, v in sorted(arrays.items())}, about))


if __name__ == "__main__":
  write(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN, make())
