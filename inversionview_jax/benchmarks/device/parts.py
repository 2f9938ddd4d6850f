"""The parts of the device check, the process of one part, and the record that it keeps on disk while it runs. Needs no JAX.

A part is a function (record, settings) -> None in a module of this folder. Whatever it has recorded is on disk at any moment, so a part
that fails or is cut off loses what it had not measured yet and nothing else.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import sys
import time
import traceback
from typing import Any

from inversionview_jax.files import write_whole

GOLDEN = pathlib.Path(__file__).with_name("golden.safetensors")


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of the check.

  Attributes:
    name: as in `--only`.
    about: what it does, in a few words.
    function: ``module:function`` in this folder.
    limit: seconds after which it is ended.
    stage: parts of one stage run at the same time where there are enough cores; they take no times then.
    lines: names of the parity lines that it has to bring, each one red if it does not.
    simulated: whether a CPU is divided into eight devices for it.
    packages: that it needs; without them it is left out.
    cold: whether it compiles everything itself; other parts take from one another what is already compiled.
    prepared: whether, on an accelerator with enough cores, it is also run without timing anything beside the parity parts, so that most of it is
      compiled when its time begins: compiling for a GPU takes half a minute for each training program, on few cores.
    tuned: whether a GPU's compiler may try kernels out; which one is fastest does not matter where nothing is timed.
  """

  name: str
  about: str
  function: str
  limit: int
  stage: int
  lines: tuple[str, ...] = ()
  simulated: bool = False
  packages: tuple[str, ...] = ()
  cold: bool = False
  prepared: bool = False
  tuned: bool = True


_FORWARD = ("logits", "captures", "edits", "distances", "cached step", "cached step, cross-attention")
PARTS = (
  Part("environment", "device, driver and versions", "environment:run", 90, 0),
  Part(
    "parity",
    "float32 at highest precision",
    "parity:highest",
    170,
    1,
    (*_FORWARD, "gradients", "draws"),
    tuned=False,
  ),
  Part(
    "parity_search",
    "preimages, float32 at highest precision",
    "parity:search",
    170,
    1,
    ("preimage, addition", "preimage, counting", "exact preimages", "Monte Carlo preimage"),
    tuned=False,
  ),
  Part(
    "parity_lower",
    "default precision and bfloat16",
    "parity:lower",
    170,
    1,
    tuple(f"{name} (default)" for name in (*_FORWARD, "gradients", "preimage, addition"))
    + tuple(f"{name} (bfloat16)" for name in ("logits", "captures", "edits", "distances")),
    tuned=False,
  ),
  Part(
    "parity_devices", "one device and all of them", "parity:devices", 120, 1, ("one device and all",), simulated=True
  ),
  Part("training", "speed of training", "speed:training", 160, 2, prepared=True),
  Part("sampling", "speed of sampling, Monte Carlo, capture and enumeration", "speed:sampling", 110, 3, prepared=True),
  Part("loops", "time to the first step; waits and transfers", "loops:run", 100, 4, cold=True),
  Part("large", "GPT-2 medium reading GPT-2 XL", "large:run", 170, 5, prepared=True),
  Part("torch", "beside PyTorch", "beside_torch:run", 120, 6, packages=("torch", "transformers")),
)


@dataclasses.dataclass(frozen=True)
class Settings:
  """How the parts run.

  Attributes:
    small: tiny sizes, for a CPU of two cores.
    golden: the file with the numbers to compare with.
    folder: for what a part writes besides its record.
    prepare: whether programs are compiled and nothing is timed.
  """

  small: bool
  golden: pathlib.Path
  folder: pathlib.Path
  prepare: bool = False


class Record:
  """What a part has found so far, on disk after every addition: parity `lines`, timed `rows`, and `values`."""

  def __init__(self, path: pathlib.Path):
    self._path, self._begin = path, time.perf_counter()
    self.data: dict[str, Any] = {"lines": [], "rows": [], "values": {}}
    self._write()

  def line(self, name: str, error: float | None, bound: float | None, green: bool, note: str = "") -> None:
    """A parity line.

    Args:
      name: of the line.
      error: the largest error; None where the line has none.
      bound: on the error.
      green: whether it is right.
      note: shown beside it.
    """
    finite = error is not None and error == error and abs(error) != float("inf")
    self.data["lines"].append(
      {
        "name": name,
        "error": error if finite else None,
        "bound": bound,
        "green": bool(green),
        "note": note,
        "at": self._at,
      }
    )
    self._write()

  def row(self, **values: Any) -> None:
    """A measured row: name, unit, rate, ..."""
    self.data["rows"].append(values | {"at": self._at})
    self._write()

  def values(self, **values: Any) -> None:
    """Named values of the part as a whole."""
    self.data["values"].update(values)
    self._write()

  @property
  def _at(self) -> float:
    """Seconds since the part began."""
    return round(time.perf_counter() - self._begin, 1)

  def _write(self) -> None:
    write_whole(self._path, json.dumps(self.data) + "\n")


def named(name: str) -> Part:
  """The part of this name."""
  return next(part for part in PARTS if part.name == name)


def short(error: BaseException) -> str:
  """An exception in one line."""
  text = " ".join(str(error).split())
  return f"{type(error).__name__}: {text[:300]}"


def main(argv: list[str] | None = None) -> int:
  """The process of one part: runs it, and ends with 1 and a traceback on stderr if it fails."""
  parser = argparse.ArgumentParser()
  parser.add_argument("part")
  parser.add_argument("record", type=pathlib.Path)
  parser.add_argument("--golden", type=pathlib.Path, default=GOLDEN)
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--prepare", action="store_true")
  args = parser.parse_args(argv)
  record = Record(args.record)
  module, function = named(args.part).function.split(":")
  try:
    run = getattr(importlib.import_module(f"inversionview_jax.benchmarks.device.{module}"), function)
    run(record, Settings(args.small, args.golden, args.record.parent, args.prepare))
  except Exception as error:
    record.values(error=short(error))
    traceback.print_exc()
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
