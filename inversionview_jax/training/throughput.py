"""Watching a run: where its time goes, how much of the chip it uses, its memory, and a trace of chosen steps."""

import contextlib
import functools
import os
import pathlib
import time

import jax
import jax.numpy as jnp

from inversionview_jax.devices import chips, parallel, program_cost
from inversionview_jax.errors import InversionViewError

# Peak of dense bfloat16 matrix products, TFLOP/s of one JAX device, by what its `device_kind` begins with; the makers' figures. For
# TPU v2 and v3 a device is one of the chip's two cores.
PEAK_TFLOPS = {
  "TPU v2": 22.5, "TPU v3": 61.5, "TPU v4": 275.0, "NVIDIA H200": 989.0, "NVIDIA H100 PCIe": 756.0, "NVIDIA H100": 989.0,
  "NVIDIA A100": 312.0, "NVIDIA L4": 121.0, "Tesla V100": 125.0, "Tesla T4": 65.0,
  **{name: chip.flops / 1e12 for chip in chips.CHIPS.values() for name in (chip.kind, f"TPU {chip.name}")},
}  # fmt: skip


def peak_flops(device: jax.Device) -> float | None:
  """FLOP/s of a device, or None where its kind is not known (a CPU's cores are not)."""
  kind = device.device_kind
  found = [name for name in PEAK_TFLOPS if kind.startswith(name)]
  return 1e12 * PEAK_TFLOPS[max(found, key=len)] if found else None


def matmul_flops(function, *args) -> float:
  """FLOPs of all matrix products in a function of these shapes, loops counted as often as they run; what XLA adds or saves is not in it."""
  return program_cost.matmul_flops(jax.make_jaxpr(function)(*args), share=1)


def training_flops(objective, params, extra, frozen, tokens: int, length: int) -> float:
  """FLOPs of matrix products in one step's loss and gradient over a batch of `tokens` texts: the model's, not what is run again to save memory."""
  plain = objective.without_remat() if hasattr(objective, "without_remat") else objective
  some = 2  # texts; every product grows with their number

  def step(params, extra, frozen, tokens):
    keys = parallel.fold_in_each(jax.random.key(0), jnp.arange(some))
    return jax.value_and_grad(lambda p: plain.loss(p, extra, frozen, tokens, keys)[0])(params)

  shaped = functools.partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
  one = matmul_flops(
    step, shaped(params), shaped(extra), shaped(frozen), jax.ShapeDtypeStruct((some, length), jnp.int32)
  )
  return one * tokens / some


def memory_in_use() -> int | None:
  """Most bytes in use so far on any of this host's devices; of the process where devices do not say (a CPU)."""
  found = [(d.memory_stats() or {}) for d in jax.local_devices()]
  found = [stats.get("peak_bytes_in_use", stats.get("bytes_in_use")) for stats in found]
  if any(found):
    return max(x for x in found if x)
  try:
    with open("/proc/self/status", encoding="ascii") as lines:
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
  except (OSError, StopIteration, ValueError):
    return None


def _age() -> float:
  """Seconds since this process was started; 0 where the system does not say."""
  try:
    with open("/proc/self/stat", encoding="ascii") as file:
      ticks = int(file.read().rsplit(")", 1)[1].split()[19])
    return max(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 0.0)
  except (OSError, ValueError, IndexError, AttributeError):
    return 0.0


class Clock:
  """Where the wall time of a process goes: training, and everything else by name. What is not in another phase is training.

  Attributes:
    seconds: of each phase that is over, but for training; "start" is what was before this clock.
  """

  def __init__(self):
    age = _age()
    self._begin, self.seconds = time.perf_counter() - age, {"start": age}

  @contextlib.contextmanager
  def __call__(self, phase: str):
    begin = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

  def until_now(self, phase: str) -> None:
    """Everything so far that was in no phase was in this one, not training."""
    self.seconds[phase] = self.seconds.get(phase, 0.0) + self.training

  @property
  def wall(self) -> float:
    """Seconds since the process was started."""
    return time.perf_counter() - self._begin

  @property
  def training(self) -> float:
    return max(self.wall - sum(self.seconds.values()), 0.0)

  def shares(self) -> dict[str, float]:
    """{"lost_share": of everything but training, "lost_start": ..., ...}, as shares of the wall time."""
    wall = max(self.wall, 1e-9)
    lost = {f"lost_{name}": seconds / wall for name, seconds in self.seconds.items()}
    return {"lost_share": sum(lost.values())} | lost


class Profile:
  """Writes an XLA trace of chosen steps, which TensorBoard and Perfetto open.

  Args:
    asked: "first:last", steps counted from 1, or "" for none; whole calls are traced.
    folder: gets `profile/`.

  Raises:
    InversionViewError: `asked` is neither.
  """

  def __init__(self, asked: str, folder: pathlib.Path):
    self._folder, self._running = folder / "profile", False
    self._first = self._last = 0
    if not asked:
      return
    try:
      self._first, self._last = map(int, str(asked).split(":"))
    except ValueError:
      self._last = -1
    if not 1 <= self._first <= self._last:
      raise InversionViewError(f"profile = {asked!r} must be two steps, such as 100:110 (the first is step 1)")

  def before(self, first: int, last: int) -> None:
    """A call of the steps first ... last is about to be made."""
    if not self._running and self._last and first <= self._last and last >= self._first:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, last: int, results) -> None:
    """The call that ends with step `last` has been made; `results` are waited for if it is the last that is traced."""
    if self._running and last >= self._last:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    if self._running:
      self._running = False
      self._last = 0
      jax.profiler.stop_trace()
