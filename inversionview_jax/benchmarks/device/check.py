"""Runs the parts of the device check one after the other, each in a process of its own, and keeps `device.json` and `device.md` up to date.

Imports no JAX: a device belongs to one process at a time, and a part that is ended gives its memory back.
"""

import contextlib
import dataclasses
import datetime
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from inversionview_jax._version import __version__
from inversionview_jax.benchmarks.device import report
from inversionview_jax.benchmarks.device.parts import GOLDEN, PARTS, Part
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import make_folder, write_whole
from inversionview_jax.terminal import print_text

BUDGET = 480  # seconds of the whole check
_LEAST = 15  # seconds below which a part is not started
_CORES = 8  # from which the parts of a stage run at the same time
_PARITY = 1  # the stage beside which other parts are prepared
# Module -> package, all that this command needs.
_NEEDED = {
  "jax": "jax",
  "flax": "flax",
  "optax": "optax",
  "orbax.checkpoint": "orbax-checkpoint",
  "safetensors": "safetensors",
  "numpy": "numpy",
  "rich": "rich",
  "absl": "absl-py",
  "ml_collections": "ml-collections",
}
_ROOT = pathlib.Path(__file__).parents[3]


@dataclasses.dataclass
class _Running:
  """A part under way, or its preparation."""

  part: Part
  process: subprocess.Popen
  begin: float
  limit: float
  prepares: bool = False


def check(
  folder: str | os.PathLike,
  *,
  small: bool = False,
  golden: str | os.PathLike | None = None,
  only: Sequence[str] | None = None,
  budget: float = BUDGET,
) -> int:
  """Checks this machine's devices.

  Args:
    folder: made if need be; gets `device.json` and `device.md`, and `parts/` with a record and a log of every part.
    small: tiny sizes, for a CPU of two cores.
    golden: the numbers to compare with; those of this package by default.
    only: names of parts; all of them by default. "environment" always runs.
    budget: seconds for everything; parts for which no time is left are not run. With more than `BUDGET`, parts may take longer too.

  Returns:
    1 if a parity line is red or missing, else 0.

  Raises:
    InversionViewError: a package that is missing, an unknown part, no golden numbers, or a folder that cannot be written.
  """
  chosen = _chosen(only)
  _require_packages()
  golden = pathlib.Path(golden or GOLDEN).resolve()
  if not golden.is_file():
    raise InversionViewError(f"there are no golden numbers in {golden}")
  out = make_folder(folder).resolve()
  with tempfile.TemporaryDirectory() as cache, _ends_on_sigterm():
    run = _Check(out, small, golden, chosen, budget, cache)
    with contextlib.closing(run):
      run.all()
  print_text(f"\n{out / 'device.json'}\n{out / 'device.md'}")
  return run.exit_code


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
  """SIGTERM raises `SystemExit` inside, so that parts are ended too; they are in sessions of their own, which no signal reaches."""
  if threading.current_thread() is not threading.main_thread():
    yield
    return
  before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  try:
    yield
  finally:
    signal.signal(signal.SIGTERM, before)


def _chosen(only: Sequence[str] | None) -> list[Part]:
  names = [part.name for part in PARTS]
  for name in only or ():
    if name not in names:
      raise one_of("part", name, names)
  return [part for part in PARTS if not only or part.name in only or part.name == "environment"]


def _require_packages() -> None:
  missing = [package for module, package in _NEEDED.items() if not _installed(module)]
  if missing:
    raise InversionViewError(
      f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed for {sys.executable}: "
      f"pip install {' '.join(missing)}, or set PYTHON to another interpreter"
    )


def _installed(module: str) -> bool:
  try:
    return importlib.util.find_spec(module) is not None
  except ModuleNotFoundError:
    return False


class _Check:
  """One check under way."""

  def __init__(
    self, out: pathlib.Path, small: bool, golden: pathlib.Path, chosen: list[Part], budget: float, cache: str
  ):
    self._out, self._small, self._golden, self._chosen, self._cache = out, small, golden, chosen, cache
    self._begin, self._budget = time.monotonic(), budget
    self._running: list[_Running] = []
    self.data: dict[str, Any] = {
      "format": "inversionview-device",
      "format_version": 1,
      "package": __version__,
      "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
      "small": small,
      "complete": False,
      "seconds": 0.0,
      "red": 0,
      "parts": {part.name: {"about": part.about, "status": "not run"} for part in chosen},
    }
    make_folder(out / "parts")
    for part in chosen:
      self._record_path(part).unlink(missing_ok=True)  # of an earlier check
    self._write()

  @property
  def exit_code(self) -> int:
    return 1 if self.data["red"] else 0

  def all(self) -> None:
    """Runs every part, stage by stage."""
    together = (os.cpu_count() or 1) >= _CORES
    for stage in dict.fromkeys(part.stage for part in self._chosen):
      parts = [part for part in self._chosen if part.stage == stage]
      for group in [parts] if together else [[part] for part in parts]:
        for part in group:
          self._start(part)
        if together and stage == _PARITY and self._platform() not in ("cpu", ""):
          for part in self._chosen:
            if part.prepared:
              self._start(part, prepares=True)
        while self._running:
          self._poll()
          time.sleep(0.05)
    self.data["complete"] = True
    self._write()
    print_text(f"\n{report.verdict(self.data)}")

  def close(self) -> None:
    """Ends what still runs."""
    for running in self._running:
      _kill(running.process)

  def _start(self, part: Part, prepares: bool = False) -> None:
    if missing := [name for name in part.packages if not _installed(name)]:
      return self._finish(part, "left out", error=f"{' and '.join(missing)} not installed")
    platform = self._platform()
    left = self._budget - (time.monotonic() - self._begin)
    if left < _LEAST:
      return self._finish(part, "not run", error=f"the {self._budget:.0f} s of the check are used up")
    command = [
      sys.executable,
      "-m",
      "inversionview_jax.benchmarks.device.parts",
      part.name,
      str(self._record_path(part, prepares)),
    ]
    command += ["--golden", str(self._golden), *(["--small"] if self._small else [])]
    command += ["--prepare"] if prepares else []
    with open(self._log_path(part, prepares), "wb") as log:
      process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=_environment(part, platform, self._cache),
        start_new_session=True,
      )
    limit = min(part.limit * max(1.0, self._budget / BUDGET), left)
    self._running.append(_Running(part, process, time.monotonic(), limit, prepares))

  def _poll(self) -> None:
    """Looks after the running parts: those that have ended, and those whose time is over; preparations end with what they go beside."""
    if all(running.prepares for running in self._running):
      self.close()
      self._running.clear()
    for running in list(self._running):
      code, took = running.process.poll(), time.monotonic() - running.begin
      if code is None and took < running.limit:
        continue
      if code is None:
        _kill(running.process)
      self._running.remove(running)
      if running.prepares:
        continue
      if code is None:
        status, error = "cut off", f"after {running.limit:.0f} s"
      elif code:
        status, error = "failed", self._why(running.part, code)
      else:
        status, error = "done", ""
      self._finish(running.part, status, error, took)

  def _finish(self, part: Part, status: str, error: str = "", seconds: float = 0.0) -> None:
    """Takes over a part's record, adds red lines for what it owes, writes and prints."""
    found = self._record(part)
    if skipped := found["values"].get("skipped"):
      status, error = "left out", skipped
    brought = {line["name"] for line in found["lines"]}
    if status != "left out":
      for name in part.lines:
        if name not in brought:
          why = f"not measured: {status} {error}".strip()
          found["lines"].append({"name": name, "error": None, "bound": None, "green": False, "note": why})
    entry = {"about": part.about, "status": status, "seconds": round(seconds, 1), **({"error": error} if error else {})}
    self.data["parts"][part.name] = entry | found
    self._write()
    print_text(report.part_text(part.name, self.data["parts"][part.name]), flush=True)

  def _record(self, part: Part) -> dict[str, Any]:
    try:
      return json.loads(self._record_path(part).read_text())
    except (OSError, ValueError):
      return {"lines": [], "rows": [], "values": {}}

  def _why(self, part: Part, code: int) -> str:
    """The error that a part has recorded, or the last line of its log."""
    if error := self._record(part)["values"].get("error"):
      return error
    lines = self._log_path(part).read_text(errors="replace").strip().splitlines()
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"{how}: {lines[-1][:300] if lines else 'no message'}"

  def _record_path(self, part: Part, prepares: bool = False) -> pathlib.Path:
    return self._out / "parts" / f"{part.name}{'.prepare' if prepares else ''}.json"

  def _log_path(self, part: Part, prepares: bool = False) -> pathlib.Path:
    return self._out / "parts" / f"{part.name}{'.prepare' if prepares else ''}.log"

  def _platform(self) -> str:
    return self.data["parts"].get("environment", {}).get("values", {}).get("platform", "")

  def _write(self) -> None:
    parts = self.data["parts"].values()
    self.data["red"] = sum(not line["green"] for part in parts for line in part.get("lines", ()))
    self.data["seconds"] = round(time.monotonic() - self._begin, 1)
    write_whole(self._out / "device.json", json.dumps(self.data, indent=1) + "\n")
    write_whole(self._out / "device.md", report.markdown(self.data))


def _environment(part: Part, platform: str, cache: str) -> dict[str, str]:
  """The environment of a part's process.

  Programs that took a second to compile are kept in `cache` for the parts behind it, but for a part that measures a cold start.
  """
  env = dict(os.environ)
  env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_ROOT), env.get("PYTHONPATH", ""))))
  env["PYTHONUNBUFFERED"] = "1"
  env.setdefault("JAX_COMPILATION_CACHE_DIR", "" if part.cold else cache)
  env.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several parts, and PyTorch, share a GPU
  env.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
  env.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not part.tuned and platform == "gpu":
    env["XLA_FLAGS"] = f"--xla_gpu_autotune_level=0 {env.get('XLA_FLAGS', '')}".strip()
  if part.simulated and platform == "cpu":
    flags = re.sub(r"--xla_force_host_platform_device_count=\d+", "", env.get("XLA_FLAGS", ""))
    env["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count=8".strip()
  return env


def _kill(process: subprocess.Popen) -> None:
  """Ends a part with everything that it has started."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()
