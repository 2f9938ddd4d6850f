"""The parts of the page as HTML, made from the fragments of `render`; no Streamlit, no JAX.

Elements that can be clicked carry `data-pick`, a query string that `View.after_click` checks as it checks a typed address. Every string that
does not come from this module is escaped.
"""

import dataclasses
import math
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inversionview_jax import sites
from inversionview_jax.distance import METRICS
from inversionview_jax.preimage import Preimage, Sample
from inversionview_jax.preimage.render import formatting, fragments, plots
from inversionview_jax.preimage.render.fragments import DisplayOptions, escape
from inversionview_jax.show import feature_table
from inversionview_jax.show.explorer.inputs import Input
from inversionview_jax.show.explorer.state import View

if TYPE_CHECKING:
  from inversionview_jax.measures.consistency import ActivationReading
  from inversionview_jax.measures.information import Information

_DESCRIPTIONS = {
  "embed": "the token embedding",
  "pos_embed": "the position embedding",
  "pre": "the residual stream before layer {l}",
  "mid": "the residual stream after the attention of layer {l}",
  "mlp": "the output of the MLP of layer {l}",
  "post": "the residual stream after layer {l}",
  "head": "the output of head {h} of layer {l}",
}
_SHORT_NAMES = {"pre": "pre", "mid": "mid", "mlp": "mlp", "post": "post"}
_PANEL_SAMPLES = 5  # in a small panel


def action(**changes: object) -> str:
  """The value of `data-pick` of an element that sets these fields of the view when it is clicked."""
  return escape(urllib.parse.urlencode(changes))


def pick(label: str, tag: str = "button", **changes: object) -> str:
  """The start of an element that sets these fields of the view when it is clicked."""
  return f'<{tag} type="button" data-pick="{action(**changes)}" aria-label="{escape(label)}"'


def describe(name: str) -> str:
  """A site as a phrase."""
  site = sites.parse(name)
  described = _DESCRIPTIONS.get(site.kind)
  return described.format(l=site.layer, h=site.head) if described else f"{site.about} ({site})"


def alert(message: str) -> str:
  """An error message."""
  return f'<div class="inversionview iv-alert" role="alert">{escape(message)}</div>'


def token_strip(view: View, encoded: Input, decoder: bool = True) -> str:
  """The input's tokens as buttons; shaded by the attention of the chosen site's head from the chosen position.

  Args:
    view: the query.
    encoded: its tokens.
    decoder: whether the view's method uses a decoder, which was trained on some of the positions only.
  """
  chosen = position_of(view, encoded)
  weights, top = np.zeros(0), 1.0
  site = sites.parse(view.site)
  if site.kind == "head" and chosen is not None:
    weights = encoded.patterns[site.layer, site.head, chosen, : chosen + 1]
    top = float(weights.max()) or 1.0
  cells = []
  for k, (string, label) in enumerate(zip(encoded.strings, encoded.labels, strict=True)):
    name = encoded.name(k)
    here, trained = k == chosen, name in encoded.query_positions
    shade = f' style="--e:{weights[k] / top:.3f}"' if k < len(weights) else ""
    label_text = f"position {k}" + (f", {label}" if label else "")
    label_text += f" ({about})" if (about := encoded.about_position(k)) else ""
    label_text += f", token {string}"
    label_text += f", attention {weights[k]:.2f}" if k < len(weights) else ""
    special = string in ("<BOS>", "<EOS>", "<PAD>")
    if string == "<EOS>":  # no query is taken there
      cells.append(f'<span class="ex-token ex-end">{escape(string)}<small>{k}</small></span>')
      continue
    cells.append(
      f'{pick(label_text, position=name)} aria-pressed="{str(here).lower()}" title="{escape(label_text)}"{shade} class="ex-token iv-att'
      f'{" ex-end" if special else ""}{"" if trained or not decoder else " ex-unusual"}">{escape(string) or "∅"}'
      f"<small>{escape('' if special else label) or k}</small></button>"
    )
  note = ""
  if view.notes:
    note = "Click the token whose activation is read."
    if len(weights):
      note += f' <span class="iv-att" style="--e:.7">Shaded</span>: where head {escape(view.site)} attends from there, at most {top:.2f}.'
    if decoder and chosen is not None and encoded.name(chosen) not in encoded.query_positions:
      note += " The reader was trained on other positions: what it shows here is an extrapolation."
  return card(
    f'<div class="ex-tokens" data-keys role="group" aria-label="position">{"".join(cells)}</div>', note, "ex-bare"
  )


def site_map(view: View, names: Sequence[str], known: Callable[[str], Preimage | None]) -> str:
  """The reader's sites as buttons, a row for each layer, each with its in-epsilon rate or bits where it has been read.

  Args:
    view: the query; its site is marked.
    names: of the sites.
    known: site -> its preimage for the same input and position, if it has been drawn.
  """
  parsed = [sites.parse(name) for name in names]
  rows: dict[str, dict[str, str]] = {}
  for site in parsed:
    early = site.layer is None or (site.kind == "pre" and site.layer == 0)
    row = "in" if early else f"layer {site.layer}"
    column = f"head {site.head}" if site.kind == "head" else site.kind if site.kind in _SHORT_NAMES else site.short
    rows.setdefault(row, {})[column] = site.short
  heads = sorted({site.head for site in parsed if site.kind == "head" and site.head is not None})
  columns = [
    *(f"head {h}" for h in heads),
    *(k for k in ("pre", "mid", "mlp", "post") if any(k in r for n, r in rows.items() if n != "in")),
    *(site.short for site in parsed if site.kind not in (*_DESCRIPTIONS,)),
  ]
  body = ""
  for name, by_column in rows.items():
    cells = by_column.values() if name == "in" else [by_column.get(column) for column in columns]
    body += f'<div class="ex-layer"><span>{name}</span><div style="--n:{max(min(len(columns), 8), 1)}">'
    body += (
      "".join(_site(view, cell, known(cell)) if cell else '<i aria-hidden="true"></i>' for cell in cells)
      + "</div></div>"
    )
  note = ""
  if view.notes:
    note = f"<b>{escape(view.site)}</b> is {describe(view.site)}. Bars, where a site has been read: share of candidates inside ε, or bits of the particles."
  return card(f'<div class="ex-map" data-keys role="group" aria-label="site">{body}</div>', note, title="Site")


def _site(view: View, name: str, known: Preimage | None) -> str:
  here = str(name == view.site).lower()
  label, bar = f"{name}, {describe(name)}", ""
  if known is not None:
    share, text = formatting.brief(known)
    label += f", {text}{' inside epsilon' if known.method == 'decoder' else '' if known.bits is not None else ' different inputs'}"
    bar = f'<u style="--r:{100 * share:.0f}%"></u>'
  return f'{pick(label, site=name)} aria-pressed="{here}" title="{escape(label)}" class="ex-site{" ex-wide" if len(_short(name)) > 4 else ""}">{escape(_short(name))}{bar}</button>'


def _short(name: str) -> str:
  """The name of a site in the row of its layer, without the layer; heads keep their full name."""
  site = sites.parse(name)
  return (
    name
    if site.kind in ("head", "embed", "pos_embed") or (site.kind == "pre" and site.layer == 0)
    else _SHORT_NAMES.get(site.kind, name)
  )


def reading(view: View, p: Preimage, slider: bool = True) -> str:
  """The chosen activation's preimage, with epsilon to move."""
  head = f'<h2>{title_of(p)}</h2><p class="ex-in"><code>{escape(p.query.text)}</code></p>'
  return card(body_of(view, p, head, slider=slider), "", data=f' data-reading="0"{drawn_at(p)}')


def so_far(view: View, p: Preimage) -> str:
  """The particles on their way to epsilon, while they are drawn: nothing in it can be clicked."""
  inside = formatting.totals(p.inside)
  nearest = tuple(sorted(p.particles, key=lambda sample: sample.distance)[: view.shown])
  near = min((s.distance for s in nearest), default=math.inf)
  head = f'<h2>{title_of(p)}</h2><p class="ex-in"><code>{escape(p.query.text)}</code></p>'
  text = f"{inside} of {formatting.totals(p.particles)} particles are inside ε = {p.epsilon:g} so far, the nearest at {near:.3g}"
  table = fragments.samples(dataclasses.replace(p, samples=nearest), DisplayOptions(view.shown, view.colors, False))
  return card(f'{head}<p class="ex-figure">{text}</p>{plots.histogram(p)}{table}', "", "ex-preview")


def encoded_features(
  view: View, reading: "ActivationReading", information: "Information | None", about: Mapping[str, str] = {}
) -> str:
  """The properties that the activation encodes, as a table, with the task's words for their names.

  Args:
    view: the page's.
    reading: of particles or exact members.
    information: of the same preimage; None where it has none.
    about: what the task says of its features: name -> words.
  """
  body = feature_table.encoded_features(reading, information, notes=view.notes, about=about)
  names = [row.feature for row in reading.rows if row.verdict != "-" and row.rate.count] if view.notes else []
  return card(body + words(names, about), "")


def not_measured(message: str) -> str:
  """In place of the table of what the activation encodes: why there is none."""
  return card(f'<p class="ex-in">{escape(message)}</p>', "", title="What it encodes")


def words(names: Iterable[str], about: Mapping[str, str]) -> str:
  """What the task says of some names, which touch and keyboard reach as well as the pointer; "" where it says nothing."""
  known = [f"<b>{escape(name)}</b> {escape(about[name])}" for name in dict.fromkeys(names) if about.get(name)]
  return f'<p class="ex-words">{" · ".join(known)}</p>' if known else ""


def carried(reading: "ActivationReading | None", about: Mapping[str, str], most: int = 2) -> str:
  """The most certain properties in a line, for a small panel."""
  if reading is None:
    return ""
  if not reading.encoded:
    return '<p class="ex-carries"><small>encodes none of the features</small></p>'
  parts = [
    f'<span title="{escape(about.get(row.feature, ""))}">{escape(row.feature)} = {escape(row.value) or "∅"} · {100 * row.rate.value:.0f} %</span>'
    for row in reading.encoded[:most]
  ]
  return f'<p class="ex-carries">{", ".join(parts)}</p>'


def body_of(view: View, p: Preimage, head: str, slider: bool) -> str:
  options = DisplayOptions(view.shown, view.colors, view.notes)
  above = scale(p, plots.histogram(p)) if slider else plots.histogram(p)
  return f"{head}{_figure(p)}{above}{fragments.samples(p, options)}{fragments.legend(p, options) if view.notes else ''}"


def _figure(p: Preimage) -> str:
  """How many lie inside epsilon: a share of candidates, which follows the slider; of particles bits or how many differ, and what is wrong."""
  where = f"{METRICS[p.metric]}{', at this position' if p.match == 'position' else ''}"
  value = f"ε = <span data-value>{p.epsilon:g}</span>"
  n, inside = formatting.totals(p.samples), formatting.totals(p.inside)
  if p.method == "decoder":
    return (
      f'<p class="ex-figure" aria-live="polite"><b data-percent>{formatting.percent(inside, n)}</b> '
      f"<span><span data-inside>{inside}</span> of {n} candidates inside {value}, {where}</span></p>\n"
    )
  distinct = len({s.tokens for s in p.particles if s.inside})
  bits = "" if p.bits is None else f"{p.bits:.2f}{'' if p.bits_error is None else f' ± {p.bits_error:.2f}'} bits"
  facts = dict(formatting.facts(p))
  figure = f"<b>{bits or f'{distinct:,}'}</b> <span>{'' if bits else 'different inputs · '}{escape(formatting.counts(p, (), 0)[0])}"
  text = f"{figure} · {value}, {where} · {f'{distinct:,} different · ' if bits else ''}{escape(facts['method'])}</span>"
  warning = formatting.warning(p)
  alarm = f'<p class="ex-warning" role="status">{escape(warning)}</p>\n' if warning else ""
  return f'<p class="ex-figure" aria-live="polite">{text}</p>\n{alarm}'


def scale(p: Preimage, above: str = "") -> str:
  """A slider for epsilon, on the axis of the histogram above it, and a field for its exact value."""
  return (
    f'<div class="ex-scale"><div>{above}<input type="range" min="0" max="1000" step="1" value="{1000 * plots.axis(p.epsilon):.0f}" '
    f'data-epsilon aria-label="epsilon, the threshold on the distance" aria-valuetext="{p.epsilon:g}"></div>'
    f'<label><span>ε</span><input type="number" min="0" step="any" value="{p.epsilon:g}" data-exact></label></div>\n'
  )


def slider_data(p: Preimage, view: View) -> dict[str, list[float]]:
  """The data with which the browser moves epsilon: all distances, and those of the table's rows in their order."""
  rows = [s.distance for s, _ in formatting.grouped(p.shown(view.shown))]
  distances = [s.distance for s in p.samples for _ in range(s.count)]
  finite = [[min(d, 1e30) for d in values] for values in (distances, rows)]  # JSON knows no infinity
  return {"distances": finite[0], "rows": finite[1]}


def grid(
  view: View,
  parts: Sequence[tuple[str, dict, Preimage | None]],
  readings: "Sequence[ActivationReading | None]" = (),
  about: Mapping[str, str] = {},
) -> str:
  """Small panels in a grid, one for each site or position; a click opens it.

  Args:
    view: the view that is shown.
    parts: (name, the fields of the view that a click sets, the preimage or None while it is not drawn).
    readings: of each part, what it encodes; None where that is not known.
    about: what the task says of its features: name -> words.
  """
  small = DisplayOptions(2 * _PANEL_SAMPLES, view.colors, False, compact=True)
  cells = ""
  for k, (name, changes, p) in enumerate(parts):
    here = all(getattr(view, key) == value for key, value in changes.items())
    title = f"<b>{escape(name)}</b><span>{'…' if p is None else formatting.brief(p)[1]}</span>"
    opens = pick(f"open {name}", **changes, panel="reading")
    body = ""
    if p is not None:
      near = formatting.grouped(p.inside)[:_PANEL_SAMPLES] or formatting.grouped(p.outside)[:_PANEL_SAMPLES]
      lines = "".join(
        f'<li class="iv-text{"" if s.inside else " ex-out"}">{fragments.tokens(s, small)}</li>'
        for s, _ in _by_distance(near)
      )
      body = f"{plots.histogram(p, ticks=False)}{carried(readings[k], about) if readings else ''}<ol>{lines}</ol>"
    cells += (
      f'<article class="ex-small{" ex-here" if here else ""}">{opens} class="ex-open">{title}</button>{body}</article>'
    )
  note = (
    "The nearest samples of each, what it encodes, and the bits of its particles or the share of its candidates inside ε. Click a heading to open it."
    if view.notes
    else ""
  )
  return card(f'<div class="ex-grid" data-keys>{cells}</div>', note)


def _by_distance(near: Sequence[tuple[Sample, int]]) -> list[tuple[Sample, int]]:
  """Groups of equal samples, nearest first."""
  return sorted(near, key=lambda group: group[0].distance)


def drawn_at(p: Preimage) -> str:
  """The epsilon that the samples belong to, of a method that draws them anew for another: the browser shades them until it has."""
  return "" if p.method == "decoder" else f' data-drawn="{p.epsilon:g}"'


def title_of(p: Preimage) -> str:
  """Site and position as a heading."""
  return f"<b>{escape(p.query.site)}</b> at {escape(p.query.label) or p.query.position}<small> · position {p.query.position}</small>"


def position_of(view: View, encoded: Input) -> int | None:
  """The index of the chosen position; None where this input has no such position."""
  labels = [k for k, label in enumerate(encoded.labels) if label == view.position]
  if labels:
    return labels[0]
  last = len(encoded.strings) - (encoded.strings[-1] == "<EOS>")
  try:
    return int(view.position) % last if -last <= int(view.position) < last else None
  except ValueError:
    return None


def card(body: str, note: str, extra: str = "", title: str = "", data: str = "") -> str:
  """A framed part of the page, its note below."""
  head = f"<h3>{title}</h3>" if title else ""
  foot = f'<p class="iv-note">{note}</p>' if note else ""
  return f'<div class="inversionview {extra}"{data}>{head}{body}{foot}</div>'
