"""HTML fragments of a `Preimage`, of which notebooks, pages, the report and the explorer are made.

Every string that does not come from this module goes through `escape`. Fragments belong into an element of class "inversionview" (`style.STYLE`).
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inversionview_jax.preimage.render import formatting, plots
from inversionview_jax.preimage.render.style import STYLE
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

_FULL = 3  # a distance bar is full at this many epsilon
_FAINT = 0.05  # effects below this are not colored in a compact fragment


@dataclasses.dataclass(frozen=True)
class DisplayOptions:
  """What a display shows.

  Attributes:
    shown: samples at most.
    colors: whether tokens are colored by their effect.
    notes: whether marks and columns are explained.
    compact: colors in nine steps and no effects as numbers: a quarter of the size, for pages of many preimages.
    first: where more samples than this are shown, a selection of so many stands in front and all of them are folded; 0: nothing is.
  """

  shown: int = 100
  colors: bool = True
  notes: bool = True
  compact: bool = False
  first: int = 0


def escape(text: str) -> str:
  """`text` with control characters made visible, escaped for HTML text and quoted attributes."""
  return html.escape(visible(text), quote=True)


def to_html(preimage: Preimage, shown: int = 100, first: int = 20) -> str:
  """An HTML fragment of at most `shown` samples: for a notebook or a page; its style applies to the fragment only.

  Args:
    preimage: what is shown.
    shown, first: see `DisplayOptions`.
  """
  return f"<style>{STYLE}</style>{section(preimage, DisplayOptions(shown, first=first))}"


def section(p: Preimage, options: DisplayOptions, anchor: str = "", beside: str = "") -> str:
  """One preimage: heading, query, counts, histogram, samples.

  Args:
    p: the preimage.
    options: what is shown.
    anchor: id of the section, where a page links to it.
    beside: further HTML, above the samples or, in a wide page of many preimages, beside them.
  """
  name = f' id="{escape(anchor)}"' if anchor else ""
  return f"""<section class="inversionview"{name}>
<h2>{heading(p.query)}</h2>
{facts(p) if options.notes else ""}{query_line(p.query, options.notes)}
<div class="iv-sides"><div>{counts(p, options)}{plots.histogram(p)}{beside}
</div><div>{samples(p, options)}{legend(p, options) if options.notes else ""}</div></div></section>
"""


def heading(query: Query) -> str:
  """The site, and the position by its label."""
  position = f" at <code>{escape(query.label) or query.position}</code>" if query.position >= 0 else ""
  return f"<code>{escape(query.site)}</code>{position}"


def facts(p: Preimage) -> str:
  """Reader, site, position and distance as a list."""
  rows = "".join(f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in formatting.facts(p))
  return f"<dl>{rows}</dl>\n"


def counts(p: Preimage, options: DisplayOptions) -> str:
  """How many candidates lie inside, how many are shown, and whether Monte Carlo did not converge."""
  shown = p.shown(options.shown)
  first, second = formatting.counts(p, shown, len(formatting.grouped(shown)))
  warning = formatting.warning(p)
  third = f"<br><strong>{escape(warning)}</strong>" if warning else ""
  return f'<p class="iv-count"><b>{first}</b><br>{second}{third}</p>\n'


def query_line(query: Query, notes: bool = True) -> str:
  """The query's tokens, the position framed; shaded by attention where the site is a head."""
  attention = query.attention or ()
  top = max(attention, default=0.0) or 1.0
  tokens = []
  for k, string in enumerate(query.token_strings):
    shade = f' class="iv-att" style="--e:{attention[k] / top:.3f}"' if k < len(attention) else ""
    title = f"position {k}" + (f", attention {attention[k]:.4f}" if k < len(attention) else "")
    tag = "mark" if k == query.position else "span"
    tokens.append(f'<{tag}{shade} title="{title}">{escape(string) or "∅"}</{tag}>')
  line = f'<p class="iv-query">{"".join(tokens)}</p>'
  if not notes:
    return line
  note = f"framed: position {escape(formatting.position_text(query))}"
  if attention:
    note += f' · <span class="iv-att" style="--e:.7">shaded</span> where {escape(query.site)} attends from there, at most {top:.2f}'
  return f'{line}<p class="iv-note">{note}</p>'


def samples(p: Preimage, options: DisplayOptions) -> str:
  """The table of samples, with the line at epsilon; a long one is folded (`DisplayOptions.first`)."""
  every = len(formatting.grouped(p.shown(options.shown)))
  if not 0 < options.first < every:
    return _sample_table(p, options)
  some = _sample_table(p, dataclasses.replace(options, shown=options.first))
  return f"{some}<details><summary>all {every} of them</summary>{_sample_table(p, options)}</details>\n"


def _sample_table(p: Preimage, options: DisplayOptions) -> str:
  groups = formatting.grouped(p.shown(options.shown))
  sides = ("".join(_row(s, n, options) for s, n in groups if s.inside == side) for side in (True, False))
  line = f'<tr class="iv-line"><td colspan="3"><div>ε = {p.epsilon:g}</div></td></tr>\n'
  head = '<thead><tr><th scope="col">distance</th><th scope="col"></th><th scope="col">input</th></tr></thead>'
  return (
    f'<table class="iv-samples" style="--full:{_FULL * p.epsilon:g}">{head}'
    f"<tbody>{next(sides)}{line}{next(sides)}</tbody></table>\n"
  )


def tokens(sample: Sample, options: DisplayOptions) -> str:
  """One sample's text, its tokens colored and the nearest one underlined."""
  pieces = formatting.token_pieces(sample)
  if options.compact:
    text = "".join(_merged_tokens(pieces, options.colors))
  else:
    text = "".join(_token(*piece, options.colors) for piece in pieces)
  return (text + ("" if sample.ended else f"<i>{formatting.TRUNCATED}</i>")) or "<i>∅</i>"


def _token(string: str, effect: float | None, nearest: bool, colors: bool) -> str:
  classes, shade = ["iv-here"] if nearest else [], ""
  if colors and effect:
    classes.append("iv-up" if effect > 0 else "iv-down")
    shade = f' style="--e:{abs(effect):.3f}"'
  names = f' class="{" ".join(classes)}"' if classes else ""
  title = "" if effect is None else f' title="{effect:+.6g}"'
  return f"<span{names}{shade}{title}>{html.escape(string)}</span>"


def _merged_tokens(pieces: list[tuple[str, float | None, bool]], colors: bool) -> Iterator[str]:
  """Tokens with neighbors of one color merged: classes "u1" to "u9" for more likely, "d1" to "d9" for less."""
  runs: list[list] = []
  for string, effect, nearest in pieces:
    step = ""
    if colors and effect and abs(effect) >= _FAINT:
      step = f"{'u' if effect > 0 else 'd'}{min(max(round(9 * abs(effect)), 1), 9)}"
    name = " ".join(filter(None, ("iv-here" if nearest else "", step)))
    if runs and runs[-1][0] == name:
      runs[-1][1] += string
    else:
      runs.append([name, string])
  for name, string in runs:
    yield f'<s class="{name}">{html.escape(string)}</s>' if name else html.escape(string)


def _row(sample: Sample, times: int, options: DisplayOptions) -> str:
  """One sample of the table, drawn so many times."""
  far = f"{max(sample.distance, 0.0):.4g}" if sample.distance < 1e6 else "1e6"  # CSS knows no infinity
  return (
    f'<tr><td class="iv-d" style="--d:{far}">{formatting.distance(sample.distance)}</td>'
    f'<td class="iv-n">{f"×{times}" if times > 1 else ""}</td><td class="iv-text">{tokens(sample, options)}</td></tr>\n'
  )


def legend(p: Preimage, options: DisplayOptions) -> str:
  """The meaning of the marks in the samples."""
  shown = p.shown(options.shown)
  text = '<span class="iv-here">underlined</span> nearest to the query'
  if options.colors and any(s.effect for s in shown):
    text += ' · <span class="iv-up" style="--e:.7">blue</span> the activation made the token more likely, '
    text += '<span class="iv-down" style="--e:.7">red</span> less likely'
  text += f" · ×2 drawn twice · bars are full at {_FULL} ε"
  if any(not s.ended for s in shown):
    text += f" · {formatting.TRUNCATED} cut off"
  return f'<p class="iv-note">{text}</p>\n'
