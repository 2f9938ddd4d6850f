"""What every display of a `Preimage` says: strings, groups and counts; no colour, no layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.distance import MATCHES, METRICS

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

CUT = "…"  # behind a candidate that never ended


def visible(text: str) -> str:
  """`text` with everything that would move a cursor, break a line or hide replaced by a sign: "\\n" -> "⏎", ESC -> "␛"."""
  return "".join(map(_sign, text))


def _sign(c: str) -> str:
  if c.isprintable():  # False for control, format (bidirectional overrides), surrogate and unassigned characters
    return c
  if c in "\n\t\x7f":
    return {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}[c]
  return chr(0x2400 + ord(c)) if ord(c) < 32 else f"\\u{{{ord(c):x}}}"


def grouped(samples: Iterable[Sample]) -> list[tuple[Sample, int]]:
  """Equal candidates once, at the nearest of them, with how often they were drawn; never across the line at epsilon."""
  groups: dict[tuple, list[Sample]] = {}
  for s in samples:
    groups.setdefault((s.tokens, s.token_strings, s.position, s.inside, s.ended), []).append(s)
  return [(group[0], sum(s.count for s in group)) for group in groups.values()]


def pieces(sample: Sample) -> list[tuple[str, float | None, bool]]:
  """(visible string, effect, whether here is the minimum) of each token."""
  effects = sample.effect or (None,) * len(sample.tokens)
  strings = enumerate(zip(sample.token_strings, effects), start=1)  # BOS is position 0
  found = [(visible(string) or "∅", effect, k == sample.position) for k, (string, effect) in strings]
  return [("<BOS>", None, True), *found] if sample.position == 0 else found


def distance(d: float) -> str:
  if math.isinf(d):
    return "∞"
  # + 0.0: rounding noise of cosine must not read "-0.0000"
  return f"{round(d, 4) + 0.0:.4f}" if abs(d) < 10 else f"{d:.4g}"


def percent(part: int, whole: int) -> str:
  if 0 < part < whole:  # 1023 of 1024 is not "100 %"
    return f"{min(max(round(100 * part / whole), 1), 99)} %"
  return "100 %" if part else "0 %"


def place(query: Query) -> str:
  if query.position < 0:
    return "unknown"
  return f'{query.position}, "{visible(query.label)}"' if query.label else f"{query.position}"


def facts(p: Preimage) -> list[tuple[str, str]]:
  return [
    ("reader", f"{visible(p.reader)} · task {visible(p.task)} · {visible(p.convention)} weights · seed {p.seed}"),
    ("site", f"{visible(p.query.site)} · {visible(p.query.hook)}"),
    ("position", place(p.query)),
    ("distance", f"{METRICS[p.metric]}, {MATCHES[p.match]}"),
  ]


def totals(samples: Iterable[Sample]) -> int:
  """How many candidates these are, each as often as it was drawn."""
  return sum(s.count for s in samples)


def counts(p: Preimage, samples: Sequence[Sample], distinct: int) -> tuple[str, str]:
  n, inside = totals(p.samples), totals(p.inside)
  shown, shown_inside = totals(samples), totals(s for s in samples if s.inside)
  return (
    f"{inside} of {n} candidates inside ε ({percent(inside, n)})",
    f"{shown} shown ({shown_inside} inside, {shown - shown_inside} outside), {distinct} distinct",
  )
