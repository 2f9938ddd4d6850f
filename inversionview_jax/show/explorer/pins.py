"""The panel of pinned readings: what each encodes, side by side, and their samples in columns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.show.explorer.panels import body_of, card, drawn_at, pick, scale, title_of, words
from inversionview_jax.show.explorer.state import Pin, View

if TYPE_CHECKING:
  from inversionview_jax.measures.consistency import ActivationReading


def pinned(
  view: View,
  results: Sequence[Preimage | str],
  readings: "Sequence[ActivationReading | None]" = (),
  about: Mapping[str, str] = {},
) -> str:
  """The pinned readings in columns, with one epsilon for all; above them, what each encodes, side by side.

  Args:
    view: with the pins.
    results: the preimage of each pin, or the error message in place of one.
    readings: of each pin, what it encodes; None where that is not known.
    about: what the tasks say of their features: name -> words.
  """
  cells = ""
  options = dataclasses.replace(view, notes=False)
  for k, (pin, p) in enumerate(zip(view.pins, results, strict=True)):
    buttons = f'{pick("open this reading", **dataclasses.asdict(pin), panel="reading")} class="ex-chip">open</button> '
    buttons += f'{pick("unpin this reading", unpin=k)} class="ex-chip">unpin</button>'
    if isinstance(p, str):
      cells += f'<section class="ex-pin"><p><code>{escape(pin.text)}</code></p><p role="alert">{escape(p)}</p>{buttons}</section>'
      continue
    head = (
      f'<h2>{title_of(p)}</h2><p class="ex-in">{escape(pin.reader)} · <code>{escape(p.query.text)}</code></p>{buttons}'
    )
    cells += (
      f'<section class="ex-pin" data-reading="{k}"{drawn_at(p)}>{body_of(options, p, head, slider=False)}</section>'
    )
  shown = [p for p in results if not isinstance(p, str)]
  table = _comparison(view.pins, readings, about) if any(readings) else ""
  return card(f'{table}{scale(shown[0]) if shown else ""}<div class="ex-pins">{cells}</div>', "")


def _comparison(pins: Sequence[Pin], readings: "Sequence[ActivationReading | None]", about: Mapping[str, str]) -> str:
  """A row for each property that a pinned activation encodes, a column for each pin: its value and the share inside epsilon that has it."""
  tables = [{row.feature: row for row in reading.rows} if reading else {} for reading in readings]
  names = dict.fromkeys(row.feature for reading in readings if reading for row in reading.rows if row.verdict != "-")
  head = "".join(
    f'<th scope="col">{escape(pin.site)} at {escape(pin.position)}<small>{escape(pin.text)}</small></th>'
    for pin in pins
  )
  body = ""
  for name in names:
    cells = ""
    for table in tables:
      row = table.get(name)
      if row is None or not row.rate.count:
        cells += "<td>–</td>"
        continue
      partly = "" if row.verdict == "encodes" else ' class="ex-dim"'
      cells += (
        f'<td{partly} title="{escape(row.verdict)}; {100 * row.base:.0f} % of random inputs">= <code>{escape(row.value) or "∅"}</code> · '
        f"{100 * row.rate.value:.0f} %</td>"
      )
    body += f'<tr><th scope="row" title="{escape(about.get(name, ""))}">{escape(name)}</th>{cells}</tr>'
  if not body:
    body = f'<tr><td colspan="{len(pins) + 1}">none of them encodes any of the features</td></tr>'
  return (
    f'<div class="ex-wider"><table class="iv-features ex-compare"><caption>What they encode</caption><thead><tr><th scope="col"></th>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>{words(names, about)}"
  )
