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

# Category -> names of events. Copies are those in the streams of a GPU; a CPU copies nothing. Waits and programs are counted on the host, where
# layers of the runtime have names of their own for the same event: the name with the most of them counts.
_ON_DEVICE = {
  "to_device": re.compile(r"memcpy_?(h2d|htod|hosttodevice)", re.IGNORECASE),
  "to_host": re.compile(r"memcpy_?(d2h|dtoh|devicetohost)", re.IGNORECASE),
}
_ON_HOST = {
  "waits": re.compile(
    r"^(np\.asarray\(jax\.Array\)|.*Buffer::Await|.*block_until_ready|.*BlockHostUntil(Ready|Done).*|.*BlockUntilReady)$"
  ),
  "driver_waits": re.compile(r"^(cu|hip)\w*Synchronize", re.IGNORECASE),
  "programs": re.compile(r"LoadedExecutable::Execute(Sharded|Portable|Helper\w*)?$"),
}


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
  names: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
  seconds: collections.Counter = collections.Counter()
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
        for category, pattern in (_ON_DEVICE if on_device else _ON_HOST).items():
          if pattern.search(event.name):
            names[category][event.name] += 1
            seconds[event.name] += event.duration_ns / 1e9
      if on_device:
        busiest = max(busiest, busy)
  result = Trace(
    names={category: dict(found.most_common(8)) for category, found in names.items()}, device_seconds=busiest
  )
  for category, found in names.items():
    name, count = found.most_common(1)[0]
    result.counts[category], result.seconds[category] = count, seconds[name]
  return result
