"""What this machine is: devices, driver, versions, and what of it this repository's tests ran on."""

import importlib.metadata
import platform
import shutil
import subprocess

import jax

from inversionview_jax._version import __version__
from inversionview_jax.benchmarks import timing
from inversionview_jax.benchmarks.device.parts import Record, Settings
from inversionview_jax.training import throughput

_PACKAGES = (
  "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "libtpu", "flax", "optax", "orbax-checkpoint", "safetensors", "numpy",
  "ml-collections", "torch", "transformers",
)  # fmt: skip
# (Python, JAX, what ran) in this repository.
TESTED = (
  ("3.11", "0.10", "all tests, on CPUs"),
  ("3.12", "0.11", "this check, on CPUs with --small and on an H100"),
  ("3.13", "0.12", "the short tests and this check with --small, on CPUs"),
)


def run(record: Record, settings: Settings) -> None:
  """Records the machine."""
  del settings
  devices = jax.devices()
  stats = devices[0].memory_stats() or {}
  peak = throughput.peak_flops(devices[0])
  record.values(
    **timing.machine(),
    platform=devices[0].platform,
    kind=devices[0].device_kind,
    count=len(devices),
    memory_gib=round(stats["bytes_limit"] / 2**30, 2) if "bytes_limit" in stats else None,
    peak_tflops=None if peak is None else peak / 1e12,
    platform_version=" ".join(str(devices[0].client.platform_version).split()),
    driver=_nvidia_smi(),
    versions=_versions(),
    tested=tested(platform.python_version(), jax.__version__),
    package=__version__,
  )


def tested(python: str, jax_version: str) -> str:
  """What of the tests ran on these versions, in words."""
  minor = lambda version: ".".join(version.split(".")[:2])
  exact = [what for py, version, what in TESTED if (py, version) == (minor(python), minor(jax_version))]
  if exact:
    return f"Python {minor(python)} with JAX {minor(jax_version)}: {exact[0]}"
  known = "; ".join(f"Python {py} with JAX {version}: {what}" for py, version, what in TESTED)
  return f"Python {minor(python)} with JAX {minor(jax_version)} was not tested; tested: {known}"


def _versions() -> dict[str, str]:
  found = {}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  return found


def _nvidia_smi() -> str:
  """Name, driver and memory of the NVIDIA GPUs, or ""."""
  if not shutil.which("nvidia-smi"):
    return ""
  command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
  try:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
  except (OSError, subprocess.TimeoutExpired):
    return ""
  return "; ".join(done.stdout.strip().splitlines()) if done.returncode == 0 else ""
