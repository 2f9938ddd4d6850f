"""Plots as HTML and inline SVG of one or two kilobytes; they follow the page's color scheme and need no script."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from inversionview_jax.preimage.render import formatting
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage

# Distances are drawn on a logarithmic axis: thresholds lie between a hundredth and one.
_LOW, _HIGH = 1e-3, 2.0
_TICKS = (0.001, 0.01, 0.1, 1.0)
_BINS = 50


def axis(d: float) -> float:
  """Where a distance lies on the axis: 0 at 0.001 and below, 1 at 2 and beyond."""
  if not d > _LOW:
    return 0.0
  return min(math.log(d / _LOW) / math.log(_HIGH / _LOW), 1.0)


def histogram(p: Preimage, ticks: bool = True) -> str:
  """Histogram of the candidates' distances, those inside epsilon in another color; the first and last bin hold what lies beyond the axis."""
  heights = np.zeros(_BINS)
  for s in p.samples:
    heights[min(int(axis(s.distance) * _BINS), _BINS - 1)] += s.count
  top = heights.max(initial=0.0) or 1.0
  bars = ""
  for k, height in enumerate(heights):
    if height:
      tall = max(round(60 * height / top, 1), 1.5)  # a single candidate stays visible
      bars += f"M{12 * k + 1} 60v-{tall:g}h10v{tall:g}z"
  drawn = f'<svg viewBox="0 0 600 60" preserveAspectRatio="none" aria-hidden="true"><path d="{bars}"/></svg>'
  inside, n = formatting.totals(p.inside), formatting.totals(p.samples)
  label = f"histogram of distances: {inside} of {n} {formatting.kinds(p)} at or below epsilon {p.epsilon:g}"
  scale = "".join(f'<span style="left:{100 * axis(t):.1f}%">{t:g}</span>' for t in _TICKS)
  # The same twice, each clipped at epsilon, so that epsilon can move without a new drawing.
  return (
    f'<div class="iv-hist" role="img" aria-label="{label}" style="--x:{100 * axis(p.epsilon):.2f}%">'
    f"<div>{drawn}</div><div>{drawn}</div>{f'<p>{scale}</p>' if ticks else ''}</div>\n"
  )


def rates(rows: Sequence[tuple[str, float, str]], caption: str) -> str:
  """A table of horizontal bars.

  Args:
    rows: (name, share from 0 to 1, text on the bar).
    caption: of the table.
  """
  lines = "".join(
    f'<tr><th scope="row">{_escape(name)}</th><td class="iv-bar" style="--r:{100 * share:.1f}%">{_escape(text)}</td></tr>'
    for name, share, text in rows
  )
  return f'<table class="iv-rates"><caption>{_escape(caption)}</caption><tbody>{lines}</tbody></table>\n'


def pattern(strings: Sequence[str], weights: np.ndarray, position: int = -1, labels: bool = True) -> str:
  """An attention pattern: a row for each query position, a column for each key position.

  Args:
    strings: T tokens.
    weights: float[T, T]; rows sum to 1.
    position: the row to frame, or -1.
    labels: whether the tokens are written beside rows and columns.
  """
  n, left = len(strings), 24 if labels else 0
  cells = "".join(
    f'<rect x="{left + 10 * k}" y="{left + 10 * q}" width="10" height="10" fill-opacity="{w:.2f}">'
    f"<title>{_escape(strings[q])} ({q}) to {_escape(strings[k])} ({k}): {w:.3f}</title></rect>"
    for q in range(n)
    for k in range(q + 1)
    if (w := float(weights[q, k])) >= 0.005
  )
  frame = ""
  if 0 <= position < n:
    frame = (
      f'<path class="iv-row" d="M{left} {left + 10 * position}h{10 * (position + 1)}v10h-{10 * (position + 1)}z"/>'
    )
  names = ""
  if labels:
    for k, string in enumerate(strings):
      short = {"<BOS>": "▸", "<EOS>": "◂"}.get(string, visible(string).strip() or "∅")[:5]
      at = left + 10 * k + 7.5
      names += f'<text x="{left - 3}" y="{at:g}" text-anchor="end">{_escape(short)}</text>'
      names += f'<text transform="translate({at:g} {left - 3})rotate(-90)">{_escape(short)}</text>'
  size = left + 10 * n
  edge = (
    f'<path class="iv-edge" d="M{left} {left}h10' + "".join("v10h10" for _ in range(n - 1)) + f"v10h-{10 * n}z" + '"/>'
  )
  return (
    f'<svg class="iv-pattern" viewBox="0 0 {size} {size}" role="img" aria-label="attention pattern of {n} positions">'
    f"{edge}{cells}{frame}{names}</svg>\n"
  )


def _escape(text: str) -> str:
  return html.escape(visible(text), quote=True)
