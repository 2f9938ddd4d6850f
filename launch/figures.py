"""Runs the measured commands of the READMEs and compares their figures with what is printed there; by hand, as some take many minutes.

    python launch/figures.py                          lists the blocks: a console block with its command, or a table with its figures
    python launch/figures.py README.md:1 methods      runs these and shows what differs; the exit code is 1 where something does
    python launch/figures.py --all --write            writes what the commands give in place of what is there

A console block must be the command's output, line by line; a line "..." stands for those that are left out. A figure of a table may differ by its own stated error: what stands behind a "±", or the
tolerance of its column below. Seconds and other times are those of the machine and are rewritten, but not compared. Of a rewritten block the words around
it are not: read them again.
"""

import argparse
import dataclasses
import difflib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
_NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e[+-]?\d+)?")

TIMES = -1.0  # tolerance of a column that is not compared
Cells = dict[tuple[str, str], str]


class Failed(Exception):
  """A block that could not be checked."""


@dataclasses.dataclass(frozen=True)
class Table:
  """A table whose figures commands give.

  Attributes:
    name: on the command line.
    readme: path from the root.
    header: the table's first line starts so.
    commands: of `inversionview`; {out} is an empty folder.
    cells: the folder -> {(row, column): text} by the first cell of a row (without backquotes) and the name of a column.
    tolerance: column -> largest difference; others must be equal.
  """

  name: str
  readme: str
  header: str
  commands: tuple[str, ...]
  cells: Callable[[pathlib.Path], Cells]
  tolerance: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Console:
  """A block "$ command" with its output; `start` and `end` are its first and last line, without the fences."""

  name: str
  readme: str
  command: str
  start: int
  end: int


def _read(path: pathlib.Path) -> dict:
  return json.loads(path.read_text())


def _methods(out: pathlib.Path) -> Cells:
  """README.md: the three methods on the same queries."""
  cells = {}
  for method, summary in _read(out / "methods.json")["summary"].items():
    row = "decoder (the paper)" if method == "decoder" else method
    cells |= {
      (row, "inside epsilon"): f"{summary['inside']:.3f}",
      (row, "marginals off by (exact draws: 1)"): f"{summary['marginals_ratio']:.2f}",
      (row, "seconds, target runs"): f"{summary['seconds_median']:.2f}, {summary['target_runs']:,.0f}",
    }
    if summary["bits_error"] is not None:
      cells[row, "bits off by"] = f"{summary['bits_error']:.2f}"
    if summary["converged"] is not None:
      cells[row, "converged"] = f"{summary['converged']:.2f}"
  return cells


def _evaluation(out: pathlib.Path) -> Cells:
  """measures/README.md: rates of the addition reader and its candidates against exact preimages."""
  evaluation = _read(out / "evaluation.json")
  cells = {}
  for site in evaluation["sites"]:
    name, rate = site["site"], site["rate"]
    cells |= {
      (name, "rate"): f"{rate['value']:.3f}",
      (name, "95 %"): f"{rate['low']:.3f} - {rate['high']:.3f}",
      (name, "random inputs"): f"{site['base']:.3f}",
    }
  return cells


def _plans(out: pathlib.Path) -> Cells:
  """launch/README.md: the training step of addition:tiny on simulated devices."""
  cells = {}
  for plan in _read(out / "plan.json")["plans"]:
    (program,), row = plan["programs"].values(), str(plan["devices"])
    each = program["examples"] / plan["mesh"]["data"]
    sent = sum(kind["bytes"] for kind in program["collectives"].values())
    cells |= {
      (row, "examples per device"): f"{each:g}",
      (row, "FLOPs per example"): _power(program["flops"] / each),
      (row, "bytes per example"): _power(program["bytes"] / each),
      (row, "all-reduce, bytes"): _power(sent) if sent else "0",
    }
  return cells


def _power(value: float) -> str:
  """1234567.0 -> "1.235e6"."""
  digits, exponent = f"{value:.3e}".split("e")
  return f"{digits}e{int(exponent)}"


TABLES = (
  Table(
    "methods",
    "README.md",
    "| method | inside epsilon |",
    ("evaluate --method all --queries 52 --out {out}",),
    _methods,
    {"inside epsilon": 0.01, "marginals off by (exact draws: 1)": 0.1, "bits off by": 0.02, "seconds, target runs": TIMES, "converged": 0.05},
  ),
  Table(
    "evaluate",
    "inversionview_jax/measures/README.md",
    "| site | rate | 95 % | random inputs | precision |",
    ("evaluate --reader addition --exact 0 --no-plots --out {out}",),
    _evaluation,
    {"rate": 0.02, "95 %": 0.02, "random inputs": 0.01},
  ),
  Table(
    "scaling",
    "launch/README.md",
    "| devices | examples per device |",
    (
      "plan --config addition:tiny --config.encoder_width=64 --config.optimizer.name=adamw --program train --batch-per-device 8 "
      "--topology cpu:1 --topology cpu:2 --topology cpu:4 --topology cpu:8 --json {out}/plan.json",
    ),
    _plans,
    {"bytes per example": 1e5},
  ),
)  # fmt: skip


def consoles() -> list[Console]:
  """Every console block of the READMEs that shows one command of inversionview with its output."""
  found = []
  for path in sorted(ROOT.rglob("README.md")):
    readme = str(path.relative_to(ROOT))
    if any(part.startswith(".") or part in ("build", "shared") for part in path.relative_to(ROOT).parts):
      continue
    lines, start, count = path.read_text().split("\n"), -1, 0
    for number, line in enumerate(lines):
      if start < 0 and line.startswith("```"):
        start = number + 1
      elif start >= 0 and line.startswith("```"):
        if lines[start].startswith("$ inversionview ") and sum(l.startswith("$ ") for l in lines[start:number]) == 1:
          count += 1
          found.append(
            Console(f"{readme}:{count}", readme, lines[start].removeprefix("$ inversionview "), start, number - 1)
          )
        start = -1
  return found


def output_of(command: str, folder: pathlib.Path, width: int = 80) -> str:
  """What a command of inversionview prints in the root of the repository, on lines of this width; {out} is the folder."""
  words = [word.replace("{out}", str(folder)) for word in shlex.split(command)]
  done = subprocess.run(
    [sys.executable, "-m", "inversionview_jax.cli", *words],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=False,
    env={**os.environ, "COLUMNS": str(width)},
  )
  if done.returncode:
    raise Failed(f"could not be run: exit code {done.returncode}: inversionview {shlex.join(words)}")
  return done.stdout


def check_console(block: Console, write: bool) -> list[str]:
  """The lines of the difference between a console block and what its command prints."""
  path = ROOT / block.readme
  lines = path.read_text().split("\n")
  before = lines[block.start + 1 : block.end + 1]
  width = 80 if max(map(len, before), default=0) <= 80 else 160
  with tempfile.TemporaryDirectory() as folder:
    printed = output_of(block.command, pathlib.Path(folder), width).strip("\n").split("\n")
  after = _elided([line.rstrip() for line in printed], before)
  different = list(difflib.unified_diff(before, after, block.name, "now", lineterm="", n=0))
  if write and different:
    lines[block.start + 1 : block.end + 1] = after
    path.write_text("\n".join(lines))
  return different


def _elided(after: list[str], before: list[str]) -> list[str]:
  """The printed lines without those that a block leaves out, where it has a line "..."."""
  if "..." not in before:
    return after
  head = before.index("...")
  tail = len(before) - head - 1
  return [*after[:head], "...", *after[len(after) - tail :]] if head + tail < len(after) else after


def check_table(table: Table, write: bool) -> list[str]:
  """A line for each figure of a table that differs by more than its tolerance."""
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder)
    for command in table.commands:
      output_of(command, out)
    cells = table.cells(out)
  text, different = compared(table, (ROOT / table.readme).read_text(), cells)
  if write:
    (ROOT / table.readme).write_text(text)
  return different


def compared(table: Table, text: str, cells: Cells) -> tuple[str, list[str]]:
  """The text of a README with a table's figures replaced, and a line for each that differs by more than its tolerance.

  Args:
    table: the table, which must be there once.
    text: of the README.
    cells: the figures; rows that the README does not show are left out.
  """
  lines = text.split("\n")
  first, last = _place(table, lines)
  columns = _split(lines[first])
  different, found = [], 0
  for number in range(first + 2, last):
    row = _split(lines[number])
    name = row[0].replace("`", "").strip()
    for column, old in zip(columns[1:], row[1:], strict=True):
      new = cells.get((name, column))
      if new is None:
        continue
      found += 1
      if not _near(old, new, table.tolerance.get(column, 0.0)):
        different.append(f"{table.name}, {name}, {column}: {old} in the README, {new} now")
      row[columns.index(column)] = new
    lines[number] = f"| {' | '.join(row)} |".replace("|  |", "| |")
  if not found:
    raise Failed(f"no figure of this table is in {table.readme}")
  return "\n".join(lines), different


def _place(table: Table, lines: list[str]) -> tuple[int, int]:
  """The line of the header, and the one behind the last row."""
  heads = [number for number, line in enumerate(lines) if line.startswith(table.header)]
  if len(heads) != 1:
    raise Failed(f"{len(heads)} tables in {table.readme} begin with {table.header!r}")
  return heads[0], next(n for n in range(heads[0], len(lines) + 1) if n == len(lines) or not lines[n].startswith("|"))


def _split(line: str) -> list[str]:
  return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _near(old: str, new: str, tolerance: float) -> bool:
  """Whether all numbers of two cells are as near as the tolerance, or as the error behind "±" in the older one, allows."""
  if tolerance == TIMES:
    return True
  if "±" in old:
    tolerance = max(tolerance, next(_numbers(old.split("±")[1]), 0.0))
    old, new = old.split("±")[0], new.split("±")[0]
  pairs = list(_numbers(old)), list(_numbers(new))
  return len(pairs[0]) == len(pairs[1]) and all(abs(a - b) <= tolerance + 1e-12 for a, b in zip(*pairs, strict=True))


def _numbers(text: str) -> Iterator[float]:
  return (float(number.replace(",", "")) for number in _NUMBER.findall(text))


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("name", nargs="*", help="blocks to check, as they are listed without any")
  parser.add_argument("--all", action="store_true", help="check every block")
  parser.add_argument("--write", action="store_true", help="write the figures into the READMEs")
  args = parser.parse_args(argv)
  blocks: dict[str, Console | Table] = {block.name: block for block in (*consoles(), *TABLES)}
  if not args.name and not args.all:
    for name, block in blocks.items():
      commands = (block.command,) if isinstance(block, Console) else block.commands
      print(f"{name:45} " + "; ".join(f"inversionview {command}" for command in commands))
    return 0
  if unknown := [name for name in args.name if name not in blocks]:
    sys.exit(f"figures.py: no block {unknown[0]!r}; python launch/figures.py lists them")
  failed = 0
  for name in args.name or list(blocks):
    block = next(
      b for b in (*consoles(), *TABLES) if b.name == name
    )  # anew: line numbers change as blocks are rewritten
    try:
      different = check_console(block, args.write) if isinstance(block, Console) else check_table(block, args.write)
    except Failed as error:
      different = [str(error)]
    failed += bool(different)
    print(f"{name}: {'differs' if different else 'as it is there'}", *different, sep="\n  ", flush=True)
  return 1 if failed and not args.write else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
