"""Text tables that several commands print."""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from inversionview_jax.tables import plus_minus

if TYPE_CHECKING:
  from rich.table import Table


def make_table(*columns: str, left: Collection[str] = (), no_wrap: bool = False) -> "Table":
  """An empty table without a frame: numbers to the right, the columns named in `left` to the left.

  Args:
    columns: their headers.
    left: headers of the columns that hold names.
    no_wrap: whether a cell stays on one line where the terminal is narrower than the table.
  """
  from rich.table import Table

  table = Table(box=None, pad_edge=False, header_style="dim")
  for name in columns:
    table.add_column(name, justify="left" if name in left else "right", no_wrap=no_wrap)
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
