"""Throughput of a run: wall time by phase, FLOPs and the share of the chip's peak, memory in use, XLA traces of chosen steps."""

import contextlib
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from inversionview_jax.devices import chips, parallel, program_cost
from inversionview_jax.errors import InversionViewError

# Peak of dense bfloat16 matrix products, TFLOP/s of one JAX device, by the beginning of its `device_kind`; the makers' figures. A device
# of TPU v2 and v3 is one of the chip's two cores.
PEAK_TFLOPS = {
  "TPU v2": 22.5, "TPU v3": 61.5, "TPU v4": 275.0, "NVIDIA H200": 989.0, "NVIDIA H100 PCIe": 756.0, "NVIDIA H100": 989.0,
  "NVIDIA A100": 312.0, "NVIDIA L4": 121.0, "Tesla V100": 125.0, "Tesla T4": 65.0,
  **{name: chip.flops / 1e12 for chip in chips.CHIPS.values() for name in (chip.kind, f"TPU {chip.name}")},
}  # fmt: skip


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of a device, or None for an unknown kind (a CPU)."""
  kind = device.device_kind
  names = [name for name in PEAK_TFLOPS if kind.startswith(name)]
  return 1e12 * PEAK_TFLOPS[max(names, key=len)] if names else None


def matmul_flops(function: Callable, *args: Any) -> float:
  """FLOPs of all matrix products in a function of these shapes, before XLA's optimizations; a loop's body counts as often as it runs."""
  return program_cost.matmul_flops(jax.make_jaxpr(function)(*args), share=1)


def training_flops(objective: Any, params: Any, extra: Any, frozen: Any, batch: int, length: int) -> float:
  """FLOPs of the matrix products in one step's loss and gradient, without those that rematerialization adds.

  Args:
    objective, params, extra, frozen: of the run; arrays or shapes.
    batch: texts of a batch.
    length: tokens of a text.
  """
  plain = objective.without_remat() if hasattr(objective, "without_remat") else objective
  some = 2  # texts; every product is proportional to their number

  def step(params, extra, frozen, tokens):
    keys = parallel.fold_in_each(jax.random.key(0), jnp.arange(some))
    return jax.value_and_grad(lambda p: plain.loss(p, extra, frozen, tokens, keys)[0])(params)

  shaped = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
  one = matmul_flops(
    step, shaped(params), shaped(extra), shaped(frozen), jax.ShapeDtypeStruct((some, length), jnp.int32)
  )
  return one * batch / some


def memory_in_use() -> int | None:
  """Largest number of bytes in use so far on any of this host's devices; of the process where devices have no statistics (a CPU)."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peaks = [x.get("peak_bytes_in_use", x.get("bytes_in_use")) for x in stats]
  if any(peaks):
    return max(x for x in peaks if x)
  try:
    with open("/proc/self/status", encoding="ascii") as lines:
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
  except (OSError, StopIteration, ValueError):
    return None


def _age() -> float:
  """Seconds since this process was started; 0 where /proc has no record of it."""
  try:
    with open("/proc/self/stat", encoding="ascii") as file:
      ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0


class Clock:
  """The wall time of a process by phase: training, and others by name. Time outside of the named phases is training.

  Attributes:
    seconds: of each named phase so far; "start" includes the time before this clock was made.
  """

  def __init__(self):
    age = _age()
    self._begin, self.seconds = time.perf_counter() - age, {"start": age}

  @contextlib.contextmanager
  def __call__(self, phase: str) -> Iterator[None]:
    """Counts the time inside of the context as this phase."""
    begin = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

  def until_now(self, phase: str) -> None:
    """Counts all time so far that is in no phase as this one, instead of training."""
    self.seconds[phase] = self.seconds.get(phase, 0.0) + self.training

  @property
  def wall(self) -> float:
    """Seconds since the process was started."""
    return time.perf_counter() - self._begin

  @property
  def training(self) -> float:
    """Seconds of training."""
    return max(self.wall - sum(self.seconds.values()), 0.0)

  def shares(self) -> dict[str, float]:
    """{"lost_share": of everything but training, "lost_start": ..., ...}, as shares of the wall time."""
    wall = max(self.wall, 1e-9)
    lost = {f"lost_{name}": seconds / wall for name, seconds in self.seconds.items()}
    return {"lost_share": sum(lost.values())} | lost


class Profile:
  """Writes an XLA trace of chosen steps, which TensorBoard and Perfetto open.

  Args:
    steps: "first:last", counted from 1, or "" for none; whole calls are traced.
    folder: gets `profile/`.

  Raises:
    InversionViewError: `steps` is neither.
  """

  def __init__(self, steps: str, folder: pathlib.Path):
    self._folder, self._running = folder / "profile", False
    self._first = self._last = 0
    if not steps:
      return
    try:
      self._first, self._last = map(int, str(steps).split(":"))
    except ValueError:
      self._last = -1
    if not 1 <= self._first <= self._last:
      raise InversionViewError(f"profile = {steps!r} must be two steps, such as 100:110 (the first is step 1)")

  def before(self, first: int, last: int) -> None:
    """Starts the trace if the call of the steps first ... last, which comes next, is to be traced."""
    if not self._running and self._last and first <= self._last and last >= self._first:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, last: int, results: Any) -> None:
    """Ends the trace if the call that ended with step `last` is the last to be traced; waits for its `results`."""
    if self._running and last >= self._last:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Ends the trace if one is running."""
    if self._running:
      self._running = False
      self._last = 0
      jax.profiler.stop_trace()
