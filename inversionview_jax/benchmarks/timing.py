"""Timing of implementations in turn, the machine they run on, and its matrix-product peak.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

import dataclasses
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import cpu, parallel
from inversionview_jax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Side:
  """One implementation of a job.

  Attributes:
    name: of the implementation.
    run: does the job once and returns when it is done.
    units: how many units one run processes.
  """

  name: str
  run: Callable[[], object]
  units: float


@dataclasses.dataclass(frozen=True)
class Case:
  """A job with the implementations that are timed.

  Attributes:
    key: short name, such as "train".
    about: what is measured, in words.
    unit: of `Side.units`, such as "pairs".
    flops: of matrix products per unit, by formula; 0 where a share of the peak is not informative.
    ours: this package.
    theirs: what it is compared with; empty where there is nothing, or it is not installed.
  """

  key: str
  about: str
  unit: str
  flops: float
  ours: Side
  theirs: tuple[Side, ...] = ()


def measured(case: Case, repeats: int, seconds: float = 1.0) -> dict:
  """Units per second of each side of a case, run in turn; plain data.

  Args:
    case: what is timed.
    repeats: timed runs of each side.
    seconds: least duration of a timed run; short jobs are repeated within it.
  """
  sides = (case.ours, *case.theirs)
  counts: list[int] = []
  rates: dict[str, list[float]] = {side.name: [] for side in sides}
  for side in sides:
    side.run()  # compiles
    counts.append(max(1, round(seconds / max(seconds_of(side.run), 1e-9))))
  for _ in range(repeats):
    for side, count in zip(sides, counts, strict=True):
      start = time.perf_counter()
      for _ in range(count):
        side.run()
      rates[side.name].append(side.units * count / (time.perf_counter() - start))
  ours = float(np.median(rates[case.ours.name]))
  results: list[dict] = [
    {
      "name": name,
      "median": float(np.median(x)),
      "low": float(min(x)),
      "high": float(max(x)),
      "gflops": float(np.median(x)) * case.flops / 1e9,
    }
    for name, x in rates.items()
  ]
  for result in results[1:]:
    result["ours_is_faster_by"] = ours / result["median"]
  return {"case": case.key, "about": case.about, "unit": case.unit, "repeats": repeats, "sides": results}


def timed(name: str, run: Callable[[], object], repeats: int) -> dict:
  """Median, shortest and longest duration in seconds of several runs after a first one; plain data."""
  run()
  seconds = [seconds_of(run) for _ in range(repeats)]
  return {"what": name, "seconds": float(np.median(seconds)), "low": min(seconds), "high": max(seconds)}


def seconds_of(run: Callable[[], object]) -> float:
  """The duration of one run, in seconds."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def matmul_peak(size: int = 2048, bf16: bool = False) -> float:
  """GFLOP/s of a square matrix product in float32, the best of several.

  Args:
    size: rows and columns.
    bf16: with bfloat16 inputs and float32 sums (`numerics.bf16_matmul`); 0 where this CPU is not faster at it.
  """
  a = jnp.ones((size, size), jnp.float32)
  if bf16 and not cpu.has_amx():
    return 0.0
  product = parallel.jit((lambda x: cpu.bf16_dot(x, x)) if bf16 else (lambda x: x @ x))
  return best_gflops(lambda: product(a).block_until_ready(), size)


def best_gflops(product: Callable[[], object], size: int, repeats: int = 5) -> float:
  """GFLOP/s of a product of two square matrices of this size, the best of several after a first one."""
  product()
  return 2 * size**3 / min(seconds_of(product) for _ in range(repeats)) / 1e9


def machine() -> dict:
  """The processor, the devices and the versions in use, and the load per core over the last minute; plain data."""
  model = platform.processor() or platform.machine()
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
      model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
  except OSError:
    pass
  devices = jax.devices()
  return {
    "processor": model,
    "cores": os.cpu_count(),
    "load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None,
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def transformer_flops(config: TransformerConfig, tokens: int, keys: int) -> float:
  """FLOPs of the matrix products of one forward pass over `tokens` positions with `keys` keys each (multiply and add are two)."""
  c = config
  dense = c.n_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_mlp) + c.vocab_size * c.d_model
  return tokens * (2 * dense + c.n_layers * 4 * keys * c.d_model)
