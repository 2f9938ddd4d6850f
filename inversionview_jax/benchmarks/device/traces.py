"""Transfers and waits in a profiler's trace: what crosses between host and device, and how often the host waits.

The trace is read with `jax.profiler.ProfileData`; no TensorFlow. Names are those of XLA's runtime and of CUPTI, by platform.
"""

import collections
import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator

import jax

# Categories of events; the first pattern that matches the name of an event counts. On a device with a plane of its own in the trace, copies
# are counted there, as they happened; on a CPU there are none, and the calls that would copy are counted on the host.
_ON_DEVICE = (
  ("to_device", re.compile(r"memcpy_?(h2d|htod|hosttodevice)", re.IGNORECASE)),
  ("to_host", re.compile(r"memcpy_?(d2h|dtoh|devicetohost)", re.IGNORECASE)),
)
_ON_HOST = (
  ("waits", re.compile(r"^(np\.asarray\(jax\.Array\)|.*block_until_ready|BlockUntilReady|.*BlockHostUntil(Ready|Done).*)$")),
  ("driver_waits", re.compile(r"^(cu|hip)\w*Synchronize", re.IGNORECASE)),
  ("to_device_calls", re.compile(r"(BufferFromHostBuffer|batched_device_put|TransferToDevice|TransferLiteralToDevice)$")),
  ("to_host_calls", re.compile(r"^(np\.asarray\(jax\.Array\)|.*copy_to_host_async|.*::ToLiteral)$")),
  ("programs", re.compile(r"^(PjRtCApiLoadedExecutable|CommonPjRtLoadedExecutable|PjRtLoadedExecutable|TfrtCpuExecutable|.*LoadedExecutable)::Execute(Sharded|Portable)?$")),
)  # fmt: skip


@dataclasses.dataclass
class Trace:
  """What a trace counted.

  Attributes:
    counts: category -> events, such as "waits" or "to_host".
    seconds: category -> their summed duration.
    names: category -> name of an event -> events, so that a reader of the record can judge what was counted.
    device_seconds: time during which the busiest line of a device was busy; 0 where the trace has no device.
  """

  counts: dict[str, int] = dataclasses.field(default_factory=dict)
  seconds: dict[str, float] = dataclasses.field(default_factory=dict)
  names: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  device_seconds: float = 0.0


@contextlib.contextmanager
def traced(folder: pathlib.Path) -> Iterator[Trace]:
  """Traces what runs inside; the yielded `Trace` is filled when it ends."""
  result = Trace()
  jax.profiler.start_trace(str(folder))
  try:
    yield result
  finally:
    jax.profiler.stop_trace()
  vars(result).update(vars(read(folder)))


def read(folder: pathlib.Path) -> Trace:
  """The newest trace below a folder."""
  files = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
  if not files:
    raise FileNotFoundError(f"no trace in {folder}")
  counts: collections.Counter = collections.Counter()
  seconds: collections.Counter = collections.Counter()
  names: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  busiest = 0.0
  for plane in jax.profiler.ProfileData.from_file(str(files[-1])).planes:
    on_device = plane.name.startswith("/device:")
    if not on_device and not plane.name.startswith("/host:"):
      continue
    lines = list(plane.lines)
    # Of a GPU, its streams; the other lines show the same events by program and by operation.
    streams = [line for line in lines if line.name.startswith("Stream")]
    for line in streams or lines:
      busy = 0.0
      for event in line.events:
        if event.name.startswith("$"):  # a Python function
          continue
        busy += event.duration_ns / 1e9
        for category, pattern in _ON_DEVICE if on_device else _ON_HOST:
          if pattern.search(event.name):
            counts[category] += 1
            seconds[category] += event.duration_ns / 1e9
            names[category][event.name] += 1
      if on_device:
        busiest = max(busiest, busy)
  return Trace(dict(counts), dict(seconds), {key: dict(value.most_common(8)) for key, value in names.items()}, busiest)
