"""The properties that an activation encodes, as an HTML table for the report and the explorer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from inversionview_jax.preimage.render.fragments import escape

if TYPE_CHECKING:
  from inversionview_jax.measures.consistency import ActivationReading, FeatureConsistency
  from inversionview_jax.measures.information import Information


def encoded_features(
  reading: ActivationReading,
  information: Information | None = None,
  most: int = 8,
  notes: bool = True,
  about: Mapping[str, str] = {},
) -> str:
  """The properties that an activation encodes, as a table, most certain first.

  Args:
    reading: of the activation.
    information: of the same activation, where it was measured.
    most: rows at most; properties that are not encoded are left out.
    notes: whether the columns are explained.
    about: what the task says of its features: name -> words.
  """
  rows = [row for row in reading.rows if row.rate.count]
  encoded = [row for row in rows if row.verdict != "-"][:most]
  if encoded:
    lines = "".join(_feature_row(row, reading.verdict_of(row), about.get(row.feature, "")) for row in encoded)
  elif rows:
    lines = f'<tr><td colspan="4">{"encodes" if reading.from_prior else "share"} none of the task\'s features</td></tr>'
  else:
    lines = '<tr><td colspan="4">no candidate lies inside ε: nothing can be measured</td></tr>'
  head = "".join(f'<th scope="col">{name}</th>' for name in ("the query has", "inside ε", "random", ""))
  caption = "What it encodes" if reading.from_prior else "What the decoder's candidates share"
  notes_line = " · ".join(_reading_notes(reading, information, len(rows) - len(encoded) if encoded else 0, notes))
  return (
    f'<table class="iv-features"><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table>'
    f'<p class="iv-note">{notes_line}</p>\n'
  )


def _feature_row(row: FeatureConsistency, verdict: str, about: str) -> str:
  title = f' title="{escape(about)}"' if about else ""
  bar = 100 * min(max(row.certainty, 0.0), 1.0)
  return (
    f'<tr class="iv-{row.verdict.replace(" ", "-")}">'
    f'<th scope="row"{title}>{escape(row.feature)} = <code>{escape(row.value) or "∅"}</code></th>'
    f'<td class="iv-bar" style="--r:{bar:.0f}%">{100 * row.rate.value:.0f} %</td>'
    f"<td>{100 * row.base:.0f} %</td><td>{verdict}</td></tr>"
  )


def _reading_notes(
  reading: ActivationReading, information: Information | None, left_out: int, notes: bool
) -> Iterator[str]:
  """The remarks below the table of `encoded_features`; `left_out` is how many properties are not shown."""
  if information is not None and information.bits is None:
    yield escape(information.warning)
  elif information is not None:
    bits = f"{information.bits:.2f} ± {information.error:.2f} bits"
    yield f"<b>{bits}</b>: {100 * information.share:.3g} % of inputs lie inside ε"
    if information.warning:
      yield escape(information.warning)
  if reading.diversity.drawn and (information is None or reading.from_prior):
    yield f"{reading.diversity.distinct} distinct texts among {reading.diversity.drawn} inside"
  if reading.problem and not (information and information.problem):
    yield f"<b>not converged: {escape(reading.problem)}</b>"
  if left_out > 0:
    yield f"{left_out} more properties are not shown"
  if not reading.from_prior:
    yield "candidates count as the decoder drew them, not as inputs occur: what they share need not be encoded"
  if notes:
    yield "bars: from the rate of random inputs (empty) to all inside (full)"
