"""A device check as text: lines for a terminal, and tables to paste into launch/README.md. Needs no JAX."""

from collections.abc import Iterable, Sequence
from typing import Any

Data = dict[str, Any]


def verdict(data: Data) -> str:
  """One line: how many parity lines are green, and how long it took."""
  lines = [line for part in data["parts"].values() for line in part.get("lines", ())]
  red = [line["name"] for line in lines if not line["green"]]
  judged = f"{len(lines) - len(red)} of {len(lines)} parity lines are green"
  return f"{judged}{'; red: ' + ', '.join(red) if red else ''} ({data['seconds']:.0f} s)"


def part_text(name: str, part: Data) -> str:
  """A part that has ended, for the terminal."""
  head = f"{name}: {part['status']}{', ' + part['error'] if part.get('error') else ''} ({part['seconds']:.0f} s)"
  out = [head]
  values = part.get("values", {})
  if name == "environment" and values:
    out += [
      f"  {values['count']} x {values['kind']}  {values['driver']}".rstrip(),
      f"  {_versions(values)}",
      f"  {values['tested']}",
    ]
  for line in part.get("lines", ()):
    out.append(
      f"  {'green' if line['green'] else 'RED  '}  {line['name']:40} {_error(line):22} {line['note']}".rstrip()
    )
  out += [f"  {'  '.join(cells)}" for cells in map(_row_cells, part.get("rows", ()))]
  return "\n".join(out)


def markdown(data: Data) -> str:
  """All tables, in Markdown."""
  parts = data["parts"]
  values = parts.get("environment", {}).get("values", {})
  device = f"{values['count']} x {values['kind']}" if values else "unknown device"
  out = [f"#### {device}, {data['date']}{', --small' if data['small'] else ''}", ""]
  if values:
    memory = f", {values['memory_gib']} GiB" if values.get("memory_gib") else ""
    about = [values["driver"] or values["processor"], f"{values['cores']} cores"]
    out += [f"{', '.join(about)}{memory}. {_versions(values)}. {values['tested']}.", ""]
  out += [f"{verdict(data)}{'' if data['complete'] else ', not finished'}.", ""]
  lines = [line for part in parts.values() for line in part.get("lines", ())]
  if lines:
    rows = [(line["name"], "green" if line["green"] else "**red**", *_numbers(line), line["note"]) for line in lines]
    out += [*_table(("parity", "", "largest error", "bound", ""), rows), ""]
  out += _speed(parts)
  out += _loops(parts)
  out += _beside(parts)
  timings = [
    (
      name,
      part["about"],
      part["status"] + (f": {part['error']}" if part.get("error") else ""),
      f"{part.get('seconds', 0):.0f}",
    )
    for name, part in parts.items()
  ]
  out += [*_table(("part", "", "status", "seconds"), timings), ""]
  return "\n".join(out)


def _speed(parts: Data) -> list[str]:
  rows: list[tuple] = []
  peaks: dict[str, Any] = {}
  for name in ("training", "sampling", "large"):
    part = parts.get(name, {})
    peaks |= {key: value for key, value in part.get("values", {}).items() if key.startswith("matmul_")}
    for row in part.get("rows", ()):
      if "error" in row:
        rows.append((row["name"], row["error"], *[""] * 5))
        continue
      rows.append(
        (
          row["name"],
          f"{_short(row['rate'])} {row['unit']}/s ({_short(row['low'])} to {_short(row['high'])})",
          _short(row.get("tflops")),
          _percent(row.get("share_of_peak")),
          _percent(row.get("share_of_measured")),
          _short(row.get("peak_gib")),
          _short(row.get("first_seconds")),
        )
      )
  if not rows:
    return []
  columns = (
    "speed",
    "median of five (lowest to highest)",
    "TFLOP/s",
    "of the chip's peak",
    "of the product below",
    "GiB in use",
    "first run, s",
  )
  measured = ", ".join(f"{name.removeprefix('matmul_')} {_short(value)} TFLOP/s" for name, value in peaks.items())
  return [*_table(columns, rows), "", *([f"Best matrix product measured here: {measured}.", ""] if peaks else [])]


def _loops(parts: Data) -> list[str]:
  part = parts.get("loops", {})
  values, rows = part.get("values", {}), part.get("rows", ())
  named = {
    "first_query_seconds": "first query of a reader, with loading and compiling",
    "first_step_seconds": "first steps of a training, with compiling",
    "imported_seconds": "start of Python and imports",
  }
  out = [f"{text}: {values[key]:.1f} s" for key, text in named.items() if key in values]
  out = [". ".join(text[0].upper() + text[1:] for text in out) + ".", ""] if out else []
  kinds = sorted({kind for row in rows for kind in row.get("each", {})})
  if kinds:
    cells = [
      (row["name"], row["per"], _short(row["seconds"]), *(_short(row["each"].get(kind, 0)) for kind in kinds))
      for row in rows
      if "each" in row
    ]
    out += [*_table(("loop", "per", "seconds", *(kind.replace("_", " ") for kind in kinds)), cells), ""]
  return out


def _beside(parts: Data) -> list[str]:
  cells = []
  for row in parts.get("torch", {}).get("rows", ()):
    if "error" in row:
      cells.append((row["name"], row["error"], "", ""))
      continue
    for other in row["others"]:
      ours, theirs = (f"{_short(side)} {row['unit']}/s" for side in (row["rate"], other["median"]))
      cells.append((row["name"], ours, f"{other['name']}: {theirs}", f"{other['ours_is_faster_by']:.2f}x"))
  return [*_table(("beside PyTorch", "this package", "other", "ratio"), cells), ""] if cells else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
  def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

  return [line(columns), "|" + "---|" * len(columns), *map(line, rows)]


def _row_cells(row: Data) -> list[str]:
  if "error" in row:
    return [f"{row['name']:50}", row["error"]]
  if "each" in row:
    counted = ", ".join(f"{kind.replace('_', ' ')} {_short(count)}" for kind, count in row["each"].items())
    return [f"{row['name']:50}", f"{_short(row['seconds'])} s per {row['per']}: {counted}"]
  cells = [f"{row['name']:50}", f"{_short(row['rate'])} {row['unit']}/s"]
  if row.get("tflops"):
    cells.append(f"{_short(row['tflops'])} TFLOP/s")
  shares = (("of the peak", row.get("share_of_peak")), ("of the measured peak", row.get("share_of_measured")))
  cells += [f"{_percent(share)} {what}" for what, share in shares if share is not None]
  cells += [
    f"{other['name']} {_short(other['median'])}/s, {other['ours_is_faster_by']:.2f}x" for other in row.get("others", ())
  ]
  return cells


def _versions(values: Data) -> str:
  versions = {"Python": values["python"]} | values["versions"]
  return ", ".join(f"{name} {version}" for name, version in versions.items())


def _numbers(line: Data) -> tuple[str, str]:
  return tuple("" if line[key] is None else f"{line[key]:.2g}" for key in ("error", "bound"))  # type: ignore[return-value]


def _error(line: Data) -> str:
  error, bound = _numbers(line)
  return f"{error or '-'} of {bound}" if bound else ""


def _short(value: float | None) -> str:
  """Three significant digits, whole numbers with separators."""
  if value is None:
    return ""
  return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _percent(value: float | None) -> str:
  return "" if value is None else f"{100 * value:.1f} %"
