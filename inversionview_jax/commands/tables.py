"""Text tables that several commands print."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from inversionview_jax.tables import plus_minus
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from rich.table import Table


def make_table(*columns: str, left: Collection[str] = (), no_wrap: bool = False) -> "Table":
  """An empty table without a frame: numbers to the right, the columns named in `left` to the left; cells are plain text, without markup.

  Args:
    columns: their headers.
    left: headers of the columns that hold names.
    no_wrap: whether a cell stays on one line where the terminal is narrower than the table.
  """
  from rich.table import Table
  from rich.text import Text

  def plain(cell: Any) -> Any:  # brackets in an input, a label or a name would be read as markup
    return Text(visible(cell, keep="\n")) if isinstance(cell, str) else cell

  class PlainTable(Table):
    def add_row(self, *cells: Any, **options: Any) -> None:
      super().add_row(*map(plain, cells), **options)

  table = PlainTable(box=None, pad_edge=False, header_style="dim")
  for name in columns:
    table.add_column(plain(name), justify="left" if name in left else "right", no_wrap=no_wrap)
  return table


def estimate_text(value: dict[str, Any] | None, scale: float = 1.0, unit: str = "") -> str:
  """A mean with its standard error, such as "12.3 ± 0.4 %"; "-" for None.

  Args:
    value: with the keys "mean" and "se" (None: no error is shown).
    scale: factor of both.
    unit: written after them; one decimal then, else three, or two digits where the value is below 0.001.
  """
  if value is None:
    return "-"
  return plus_minus(value["mean"], value["se"], scale, unit)
