"""Small tables for a terminal and a notebook: how results show themselves (`ShowsTable`). Needs no JAX."""

import dataclasses
import html
import math
from collections.abc import Sequence

from inversionview_jax.terminal import visible


@dataclasses.dataclass(frozen=True)
class Table:
  """A title, rows under column names, and a line of notes.

  Attributes:
    title: one line.
    columns: names of the columns; () for rows of (name, value).
    rows: cells as text; the first column is aligned to the left, the others to the right.
    notes: one line below, or "".
  """

  title: str
  columns: tuple[str, ...] = ()
  rows: tuple[tuple[str, ...], ...] = ()
  notes: str = ""

  def to_text(self) -> str:
    """Plain text, one line per row; control characters are visible."""
    lines = [tuple(map(visible, cells)) for cells in ([self.columns] if self.columns else []) + list(self.rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    right = bool(self.columns)

    def line(cells: Sequence[str]) -> str:
      aligned = [
        cell.rjust(width) if i and right else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
      ]
      return ("  " + "  ".join(aligned)).rstrip()

    return "\n".join([visible(self.title), *map(line, lines), *([f"  {visible(self.notes)}"] if self.notes else [])])

  def to_html(self) -> str:
    """An HTML table without scripts, styles from elsewhere or external resources; all text is escaped."""

    def row(tag: str, cells: Sequence[str]) -> str:
      side = ["left", *(["right" if self.columns else "left"] * (len(cells) - 1))]
      return (
        "<tr>"
        + "".join(
          f'<{tag} style="text-align:{align}">{html.escape(cell)}</{tag}>'
          for cell, align in zip(cells, side, strict=True)
        )
        + "</tr>"
      )

    head = f"<thead>{row('th', self.columns)}</thead>" if self.columns else ""
    body = "".join(row("td", cells) for cells in self.rows)
    notes = f"<div>{html.escape(self.notes)}</div>" if self.notes else ""
    return f"<div><strong>{html.escape(self.title)}</strong><table>{head}<tbody>{body}</tbody></table>{notes}</div>"


class ShowsTable:
  """Shows itself as the `Table` that `_table` makes: plain text in a terminal, HTML in a notebook."""

  def _table(self) -> Table:
    raise NotImplementedError

  def __repr__(self) -> str:
    return self._table().to_text()

  def _repr_html_(self) -> str:
    return self._table().to_html()


def plus_minus(mean: float, error: float | None, scale: float = 1.0, unit: str = "") -> str:
  """A mean with its standard error, such as "0.925 ± 0.004" or "92.5 ± 0.4 %"; without the error where there is none."""
  mean = scale * mean
  error = None if error is None or math.isnan(error) else scale * error
  form = ".1f" if unit else ".3f"
  if not unit and 0 < max(abs(mean), error or 0) < 1e-3:
    form = ".2g"
  return f"{mean:{form}}" + ("" if error is None else f" ± {error:{form}}") + unit


def shape_of(x) -> str:
  """Such as "float32[2, 9, 32]"."""
  return f"{x.dtype}{list(x.shape)}"
