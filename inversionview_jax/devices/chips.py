"""TPU chips by name: memory, peak rates, slice shapes, and their names in JAX and GKE.

Peaks and bandwidths are those of Google's pages on each chip (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e); the memory is the limit that the
compiler of libtpu 0.0.52 reports ("exceeds available HBM (15.75G)"), a little less than what is advertised.
"""

import dataclasses
import math
import re

from inversionview_jax.errors import InversionViewError, one_of


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    name: as in topologies, "v5e".
    kind: the start of JAX's `device_kind`.
    memory: bytes that a program may use.
    flops: peak bfloat16 operations per second.
    bandwidth: bytes per second between memory and chip.
    links: bytes per second that a chip can send to its neighbours, over all of its ports.
    dimensions: of the torus.
    per_host: chips per host in slices of several hosts.
    gke: GKE's node label (`cloud.google.com/gke-tpu-accelerator`).
  """

  name: str
  kind: str
  memory: float
  flops: float
  bandwidth: float
  links: float
  dimensions: int
  per_host: int
  gke: str


CHIPS = {
  chip.name: chip
  for chip in (
    Chip("v5e", "TPU v5 lite", 15.75 * 2**30, 197e12, 819e9, 200e9, 2, 4, "tpu-v5-lite-podslice"),
    Chip("v5p", "TPU v5", 95.73 * 2**30, 459e12, 2765e9, 600e9, 3, 4, "tpu-v5p-slice"),
    Chip("v6e", "TPU v6 lite", 31.24 * 2**30, 918e12, 1638e9, 400e9, 2, 4, "tpu-v6e-slice"),
  )
}
MOST_SIMULATED, MOST_CHIPS = 1024, 16_384  # devices of a topology; the largest slice that there is has 8,960


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to compile for.

  Attributes:
    name: as parsed, "v5e:16x16" or "cpu:8".
    chip: None for CPUs.
    shape: of the slice, chips along each dimension.
  """

  name: str
  chip: Chip | None
  shape: tuple[int, ...]

  @property
  def devices(self) -> int:
    """Number of chips, or of simulated CPU devices."""
    return math.prod(self.shape)

  @property
  def hosts(self) -> int:
    """Number of hosts of the slice."""
    return 1 if self.chip is None else max(1, self.devices // self.chip.per_host)

  @property
  def grid(self) -> str:
    """The shape as GKE writes it, "16x16"."""
    return "x".join(map(str, self.shape))


def topology(name: str) -> Topology:
  """Parses a topology.

  Args:
    name: CHIP:SHAPE, such as "v5e:16x16", or cpu:N for N simulated devices.

  Raises:
    InversionViewError: an unknown chip, or a shape that it does not come in.
  """
  kind, _, grid = name.partition(":")
  if kind not in (*CHIPS, "cpu"):
    raise one_of("chip of the topology", kind, [*CHIPS, "cpu"])
  if not re.fullmatch(r"[1-9][0-9]{0,5}(x[1-9][0-9]{0,5})*", grid):
    raise InversionViewError(f"topology {name!r}: write a shape after the colon, such as v5e:16x16 or cpu:8")
  shape = tuple(map(int, grid.split("x")))
  if kind == "cpu":
    if len(shape) > 1:
      raise InversionViewError(f"topology {name!r}: CPUs have no grid; write the number of simulated devices, cpu:8")
    if shape[0] > MOST_SIMULATED:
      raise InversionViewError(f"topology {name!r}: at most {MOST_SIMULATED:,} devices are simulated")
    return Topology(name, None, shape)
  chip = CHIPS[kind]
  if len(shape) != chip.dimensions:
    example = "16x16" if chip.dimensions == 2 else "4x4x8"
    raise InversionViewError(
      f"topology {name!r}: {kind} slices have {chip.dimensions} dimensions, such as {kind}:{example}"
    )
  if math.prod(shape) > 1 and any(size % 2 for size in shape[:2]):
    raise InversionViewError(f"topology {name!r}: a host holds 2x2 chips, so the first two sizes are even")
  if math.prod(shape) > MOST_CHIPS:
    raise InversionViewError(f"topology {name!r}: no slice has more than {MOST_CHIPS:,} chips")
  return Topology(name, chip, shape)
