"""Bar charts of experiments: their text, that they are reproducible, and the error without matplotlib."""

import xml.etree.ElementTree

import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.show import charts


def result(kind="patch"):
  values = {"mean": 2.0, "se": None, "n": 1}
  row = {"name": "a0.0@$ <b>", "read": "=", "logit_difference": values, "kl": values, "top_logit": values}
  tables = [{"order": order, "rows": [row, row | {"name": "+ m0@= a1.0@="}]} for order in ("forward", "backward")]
  return {"kind": kind, "about": "<what> & $why$", "pairs": 1, "results": tables if kind == "patch" else tables[:1]}


@pytest.mark.parametrize("kind", ["patch", "ablate"])
def test_charts_name_every_step_and_are_the_same_each_time(tmp_path, kind):
  pytest.importorskip("matplotlib")
  png, svg = charts.write_chart(result(kind), tmp_path / "chart")
  assert png.read_bytes().startswith(b"\x89PNG")
  text = "".join(xml.etree.ElementTree.fromstring(svg.read_bytes()).itertext())
  assert "<what> & $why$" in text and "a0.0@$" in text.replace("\n", "")
  before = svg.read_bytes()
  charts.write_chart(result(kind), tmp_path / "chart")
  assert svg.read_bytes() == before


def test_a_chart_without_matplotlib_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(charts, "available", lambda: False)
  with pytest.raises(InversionViewError, match="matplotlib is not installed"):
    charts.write_chart(result(), tmp_path / "chart")
  assert not list(tmp_path.iterdir())
