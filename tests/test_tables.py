"""Tables that results show: aligned as text, escaped as HTML."""

import math

import numpy as np

from inversionview_jax.tables import Table, plus_minus, shape_of


def test_columns_are_aligned():
  table = Table("title", ("name", "value"), (("a", "1.0"), ("longer", "12.0")), "a note")
  assert table.to_text().splitlines() == [
    "title",
    "  name    value",
    "  a         1.0",
    "  longer   12.0",
    "  a note",
  ]
  assert Table("title", rows=(("a", "x"), ("longer", "y"))).to_text() == "title\n  a       x\n  longer  y"
  assert Table("title").to_text() == "title"


def test_html_escapes_every_cell_and_loads_nothing():
  page = Table("<b>", ("<i>", "&"), (("<script>", "'\""),), "<img src=x>").to_html()
  for raw in ("<b>", "<i>", "<script>", "<img"):
    assert raw not in page
  assert "&lt;script&gt;" in page and "src=" not in page.replace("&lt;img src=x&gt;", "")


def test_a_mean_is_written_with_its_standard_error():
  assert plus_minus(0.92512, 0.0041) == "0.925 ± 0.004"
  assert plus_minus(0.9251, 0.0041, 100, " %") == "92.5 ± 0.4 %"
  assert plus_minus(1.0, math.nan) == plus_minus(1.0, None) == "1.000"
  assert plus_minus(2.5e-5, 1e-6) == "2.5e-05 ± 1e-06"
  assert shape_of(np.zeros((2, 3), np.float32)) == "float32[2, 3]"
