"""Strings, groups and counts that every display of a `Preimage` has in common; no color, no layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.distance import MATCHES, METRICS

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

TRUNCATED = "…"  # after a candidate without EOS


def visible(text: str) -> str:
  """`text` with control and invisible characters replaced by visible ones: "\\n" -> "⏎", ESC -> "␛"."""
  return "".join(map(_visible_character, text))


def _visible_character(c: str) -> str:
  if c.isprintable():  # False for control, format (bidirectional overrides), surrogate and unassigned characters
    return c
  if c in "\n\t\x7f":
    return {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}[c]
  return chr(0x2400 + ord(c)) if ord(c) < 32 else f"\\u{{{ord(c):x}}}"


def grouped(samples: Iterable[Sample]) -> list[tuple[Sample, int]]:
  """Equal candidates merged, each with how often it was drawn; those inside epsilon are never merged with those outside."""
  groups: dict[tuple, list[Sample]] = {}
  for s in samples:
    groups.setdefault((s.tokens, s.token_strings, s.position, s.inside, s.ended), []).append(s)
  return [(group[0], sum(s.count for s in group)) for group in groups.values()]


def token_pieces(sample: Sample) -> list[tuple[str, float | None, bool]]:
  """(visible string, effect, whether the distance is smallest here) of each token."""
  effects = sample.effect or (None,) * len(sample.tokens)
  strings = enumerate(zip(sample.token_strings, effects), start=1)  # BOS is position 0
  pieces = [(visible(string) or "∅", effect, k == sample.position) for k, (string, effect) in strings]
  return [("<BOS>", None, True), *pieces] if sample.position == 0 else pieces


def distance(d: float) -> str:
  """Four decimals, or four digits from 10 on."""
  if math.isinf(d):
    return "∞"
  # + 0.0: rounding noise of cosine must not print as "-0.0000"
  return f"{round(d, 4) + 0.0:.4f}" if abs(d) < 10 else f"{d:.4g}"


def percent(part: int, whole: int) -> str:
  """A share such as "72 %"; 0 % and 100 % only where they are exact."""
  if 0 < part < whole:  # 1023 of 1024 is not "100 %"
    return f"{min(max(round(100 * part / whole), 1), 99)} %"
  return "100 %" if part else "0 %"


def position_text(query: Query) -> str:
  """A position as its index and its label."""
  if query.position < 0:
    return "unknown"
  return f'{query.position}, "{visible(query.label)}"' if query.label else f"{query.position}"


def facts(p: Preimage) -> list[tuple[str, str]]:
  """Reader, site, position and distance, as (label, value)."""
  return [
    ("reader", f"{visible(p.reader)} · task {visible(p.task)} · {visible(p.convention)} weights · seed {p.seed}"),
    ("site", f"{visible(p.query.site)} · {visible(p.query.hook)}"),
    ("position", position_text(p.query)),
    ("distance", f"{METRICS[p.metric]}, {MATCHES[p.match]}"),
  ]


def totals(samples: Iterable[Sample]) -> int:
  """How many candidates these are, each as often as it was drawn."""
  return sum(s.count for s in samples)


def counts(p: Preimage, samples: Sequence[Sample], distinct: int) -> tuple[str, str]:
  """How many candidates lie inside epsilon, and how many samples are shown."""
  n, inside = totals(p.samples), totals(p.inside)
  shown, shown_inside = totals(samples), totals(s for s in samples if s.inside)
  return (
    f"{inside} of {n} candidates inside ε ({percent(inside, n)})",
    f"{shown} shown ({shown_inside} inside, {shown - shown_inside} outside), {distinct} distinct",
  )
