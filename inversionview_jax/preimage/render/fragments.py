"""HTML fragments of a `Preimage`: notebooks, pages, the report and the explorer are put together from these.

Every string that is not ours goes through `escape`. Fragments belong into an element of class "inversionview" (`style.STYLE`).
"""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING

from inversionview_jax.preimage.render import plots, words
from inversionview_jax.preimage.render.style import STYLE

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

_FULL = 3  # a distance bar is full at this many epsilon: further out, how far no longer matters
_FAINT = 0.05  # in a compact fragment an effect below this is left without colour


@dataclasses.dataclass(frozen=True)
class Look:
  """How much is shown.

  Attributes:
    shown: samples at most.
    colors: whether tokens are coloured by their effect.
    notes: whether what things mean is written beside them.
    compact: colours in nine steps and no effect in figures, which takes a quarter of the characters: for pages of many preimages.
  """

  shown: int = 100
  colors: bool = True
  notes: bool = True
  compact: bool = False


def escape(text: str) -> str:
  """`text` made visible and harmless, in HTML text as in a quoted attribute."""
  return html.escape(words.visible(text), quote=True)


def to_html(preimage: Preimage, shown: int = 100) -> str:
  """An HTML fragment of at most `shown` samples: for a notebook or a page of one's own. Its style reaches nothing outside of it."""
  return f"<style>{STYLE}</style>{section(preimage, Look(shown))}"


def section(p: Preimage, look: Look, anchor: str = "", beside: str = "") -> str:
  """One preimage with all that belongs to it.

  Args:
    anchor: id of the section, where a page links to it.
    beside: further HTML, put above the samples.
  """
  name = f' id="{escape(anchor)}"' if anchor else ""
  return f"""<section class="inversionview"{name}>
<h2>{heading(p.query)}</h2>
{facts(p) if look.notes else ""}{query_line(p.query, look.notes)}
{counts(p, look)}{plots.histogram(p)}{beside}
{samples(p, look)}{legend(p, look) if look.notes else ""}</section>
"""


def heading(query: Query) -> str:
  """Whose activation it is: the site, and the position by its name."""
  where = f" at <code>{escape(query.label) or query.position}</code>" if query.position >= 0 else ""
  return f"<code>{escape(query.site)}</code>{where}"


def facts(p: Preimage) -> str:
  """Reader, site, position and distance as a list."""
  rows = "".join(f"<div><dt>{label}</dt><dd>{escape(value)}</dd></div>" for label, value in words.facts(p))
  return f"<dl>{rows}</dl>\n"


def counts(p: Preimage, look: Look) -> str:
  """How many candidates lie inside, and how many are shown."""
  shown = p.shown(look.shown)
  first, second = words.counts(p, shown, len(words.grouped(shown)))
  return f'<p class="iv-count"><b>{first}</b><br>{second}</p>\n'


def query_line(query: Query, notes: bool = True) -> str:
  """The query's tokens, the position framed, shaded by attention where the site is a head."""
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
  note = f"framed: position {escape(words.place(query))}"
  if attention:
    note += f' · <span class="iv-att" style="--e:.7">shaded</span> where {escape(query.site)} attends from there, at most {top:.2f}'
  return f'{line}<p class="iv-note">{note}</p>'


def samples(p: Preimage, look: Look) -> str:
  """The table of samples, with the line at epsilon."""
  groups = words.grouped(p.shown(look.shown))
  sides = ("".join(_row(s, n, look) for s, n in groups if s.inside == side) for side in (True, False))
  line = f'<tr class="iv-line"><td colspan="3"><div>ε = {p.epsilon:g}</div></td></tr>\n'
  head = '<thead><tr><th scope="col">distance</th><th scope="col"></th><th scope="col">input</th></tr></thead>'
  return (
    f'<table class="iv-samples" style="--full:{_FULL * p.epsilon:g}">{head}'
    f"<tbody>{next(sides)}{line}{next(sides)}</tbody></table>\n"
  )


def tokens(sample: Sample, look: Look) -> str:
  """One sample's text, its tokens coloured and the nearest one underlined."""
  told = words.pieces(sample)
  text = "".join(_steps(told, look.colors) if look.compact else (_token(*piece, look.colors) for piece in told))
  return (text + ("" if sample.ended else f"<i>{words.CUT}</i>")) or "<i>∅</i>"


def _token(string: str, effect: float | None, here: bool, colors: bool) -> str:
  colors = colors and bool(effect)
  classes = (["iv-here"] if here else []) + (["iv-up" if effect > 0 else "iv-down"] if colors else [])
  names = f' class="{" ".join(classes)}"' if classes else ""
  shade = f' style="--e:{abs(effect):.3f}"' if colors else ""
  title = "" if effect is None else f' title="{effect:+.6g}"'
  return f"<span{names}{shade}{title}>{html.escape(string)}</span>"


def _steps(told, colors: bool):
  """Neighbours of one colour together: "u1" to "u9" for more likely, "d1" to "d9" for less."""
  runs: list[list] = []
  for string, effect, here in told:
    step = ""
    if colors and effect and abs(effect) >= _FAINT:
      step = f"{'u' if effect > 0 else 'd'}{min(max(round(9 * abs(effect)), 1), 9)}"
    name = " ".join(filter(None, ("iv-here" if here else "", step)))
    if runs and runs[-1][0] == name:
      runs[-1][1] += string
    else:
      runs.append([name, string])
  for name, string in runs:
    yield f'<s class="{name}">{html.escape(string)}</s>' if name else html.escape(string)


def _row(sample: Sample, times: int, look: Look) -> str:
  far = f"{max(sample.distance, 0.0):.4g}" if sample.distance < 1e6 else "1e6"  # CSS knows no infinity
  return (
    f'<tr><td class="iv-d" style="--d:{far}">{words.distance(sample.distance)}</td>'
    f'<td class="iv-n">{f"×{times}" if times > 1 else ""}</td><td class="iv-text">{tokens(sample, look)}</td></tr>\n'
  )


def legend(p: Preimage, look: Look) -> str:
  """What the marks in the samples mean."""
  shown = p.shown(look.shown)
  text = '<span class="iv-here">underlined</span> nearest to the query'
  if look.colors and any(s.effect for s in shown):
    text += ' · <span class="iv-up" style="--e:.7">blue</span> the activation made the token more likely, '
    text += '<span class="iv-down" style="--e:.7">red</span> less likely'
  text += f" · ×2 drawn twice · bars are full at {_FULL} ε"
  if any(not s.ended for s in shown):
    text += f" · {words.CUT} cut off"
  return f'<p class="iv-note">{text}</p>\n'


def says(saying, information=None, most: int = 8, notes: bool = True) -> str:
  """What an activation says, as a table: most certain first.

  Args:
    saying: a `consistency.ActivationReading`.
    information: an `information.Information` of the same activation, where it was measured; `saying` is then of the weighted texts behind it.
    most: rows at most; those that say nothing come last and are left out first.
    notes: whether the columns are explained.
  """
  rows = [row for row in saying.rows if row.rate.count]
  told = [row for row in rows if row.verdict != "-"]
  lines = ""
  for row in told[:most]:
    lines += (
      f'<tr class="iv-{row.verdict.replace(" ", "-")}"><th scope="row">{escape(row.feature)} = <code>{escape(row.value) or "∅"}</code></th>'
      f'<td class="iv-bar" style="--r:{100 * min(max(row.certainty, 0.0), 1.0):.0f}%">{100 * row.rate.value:.0f} %</td>'
      f"<td>{100 * row.base:.0f} %</td><td>{row.verdict}</td></tr>"
    )
  if not rows:
    lines = '<tr><td colspan="4">no candidate lies inside ε: nothing can be said</td></tr>'
  elif not told:
    lines = '<tr><td colspan="4">nothing that random inputs do not say</td></tr>'
  left = len(rows) - len(told[:most])
  foot = []
  if information is not None and information.bits is None:
    foot.append(escape(information.warning))
  elif information is not None:
    foot.append(
      f"<b>{information.bits:.2f} ± {information.error:.2f} bits</b>: {100 * information.share:.3g} % of inputs lie inside ε"
    )
    foot += [escape(information.warning)] if information.warning else []
  if saying.diversity.drawn and information is None:
    foot.append(f"{saying.diversity.distinct} distinct texts among {saying.diversity.drawn} inside")
  if left > 0 and told:
    foot.append(f"{left} more properties are not shown")
  foot.append("each candidate counts as it was drawn" if information is None else "each input counts as it occurs")
  if notes:
    foot.append("bars: how far from random (none) to all inside (full)")
  head = "".join(f'<th scope="col">{name}</th>' for name in ("the query has", "inside ε", "random", ""))
  return (
    f'<table class="iv-says"><caption>What it says</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    f'<p class="iv-note">{" · ".join(foot)}</p>\n'
  )
