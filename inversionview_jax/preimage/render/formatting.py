"""Strings, groups and counts that every display of a `Preimage` has in common; no color, no layout."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.distance import MATCHES, METRICS
from inversionview_jax.preimage.methods import METHODS, PART
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

TRUNCATED = "…"  # after a candidate without EOS


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


FULL_BITS = 16.0  # a bar is full from so many bits on


def brief(p: Preimage) -> tuple[float, str]:
  """How full a bar that stands for a preimage is, from 0 to 1, and a short text: the share inside of candidates; of others, where all lie inside,
  the bits or, where they are not known, how many different inputs there are. "?" has not converged."""
  if p.method == "decoder":
    return p.rate, percent(totals(p.inside), totals(p.samples))
  mark = "?" if p.converged is False else ""
  if p.bits is None:
    return 0.0, f"{len({s.tokens for s in p.particles if s.inside})}{mark}"
  return min(p.bits / FULL_BITS, 1.0), f"{p.bits:.1f} bits{mark}"


def position_text(query: Query) -> str:
  """A position as its index and its label."""
  if query.position < 0:
    return "unknown"
  return f'{query.position}, "{visible(query.label)}"' if query.label else f"{query.position}"


def facts(p: Preimage) -> list[tuple[str, str]]:
  """Reader, site, position, distance, and how and with which results it was sampled, as (label, value)."""
  return [
    (
      "reader" if "decoder" in p.method else "target",
      f"{visible(p.reader)} · task {visible(p.task)} · {visible(p.convention)} weights · seed {p.seed}",
    ),
    ("site", f"{visible(p.query.site)} · {visible(p.query.hook)}"),
    ("position", position_text(p.query)),
    *(("and", f"{visible(other.site)} at {position_text(other)}") for other in p.others),
    *([("along", visible(p.directions))] if p.directions else []),
    ("distance", f"{METRICS[p.metric]}, {MATCHES[p.match]}{', the largest of them' if p.others else ''}"),
    *_results(p),
  ]


def _results(p: Preimage) -> list[tuple[str, str]]:
  rows = []
  if p.method != "decoder":
    runs = [] if p.target_runs is None else [f"{p.target_runs:,} target runs"]
    levels = [f"{len(p.levels)} level{'s' if len(p.levels) != 1 else ''}"] if p.levels else []
    rows.append(("method", " · ".join((METHODS[p.method], *runs, *levels))))
  if p.bits is not None:
    error = "" if p.bits_error is None else f" ± {p.bits_error:.2f}"
    rows.append(("bits", f"{p.bits:.2f}{error} (-log2 of the preimage's probability under the prior)"))
  return rows


def warning(p: Preimage) -> str:
  """Why the particles cannot be relied on, or ""."""
  if p.problem.startswith(PART):  # shown at another epsilon than that of the run
    return visible(p.problem)
  return "" if p.converged in (None, True) else f"not converged: {visible(p.problem) or 'the reason was not recorded'}"


def totals(samples: Iterable[Sample]) -> int:
  """How many candidates these are, each as often as it was drawn."""
  return sum(s.count for s in samples)


def counts(p: Preimage, samples: Sequence[Sample], distinct: int) -> tuple[str, str]:
  """How many candidates lie inside epsilon, and how many samples are shown."""
  shown, shown_inside = totals(samples), totals(s for s in samples if s.inside)
  return (
    _inside(p),
    f"{shown} shown ({shown_inside} inside, {shown - shown_inside} outside), {distinct} distinct",
  )


def kinds(p: Preimage) -> str:
  """What the samples are called: "candidates" of a decoder, "particles and proposals" of Monte Carlo, or "inputs"."""
  return {"decoder": "candidates", "exact": "inputs", "rejection": "inputs"}.get(p.method, "particles and proposals")


def _inside(p: Preimage) -> str:
  """How many lie inside epsilon; a share only of what was drawn without regard to epsilon."""
  inside, n = totals(p.inside), totals(p.samples)
  if p.method == "decoder":
    return f"{inside} of {n} candidates inside ε ({percent(inside, n)})"
  if p.method in ("exact", "rejection"):
    return _inside_of_exact(p, inside, n)
  particles = p.particles
  drawn, within = totals(particles), totals(s for s in particles if s.inside)
  rejected, near = n - drawn, inside - within
  first = f"{drawn} particles inside ε, all of them" if within == drawn else f"{within} of {drawn} particles inside ε"
  second = f"{rejected - near} nearest proposals outside" + (f", {near} inside" if near else "")
  return f"{first}; {second}" if rejected else first


def _inside_of_exact(p: Preimage, inside: int, n: int) -> str:
  """The members, all of them or those that are kept of many (`bits` has their number), and the nearest inputs outside."""
  if p.bits is None or p.target_runs is None:
    return f"{inside} inputs inside ε, all that there are" if inside == n else f"{inside} of {n} inputs inside ε"
  members = round(p.target_runs * 2**-p.bits)
  first = (
    f"{inside} inputs inside ε, all that there are"
    if inside == members
    else f"{inside} of the {members} inputs inside ε"
  )
  return f"{first}; {n - inside} nearest outside" if inside < n else first
