"""The picture of a circuit: where nodes and edges lie, what the page holds, and what it refuses."""

import json
import re
import xml.etree.ElementTree as ElementTree

import circuit_examples as examples
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.show.circuit_picture import circuit_page, circuit_svg, contents, layout, style

HOSTILE = "<script>alert(1)</script>\"' onload=x"
SIZES = pytest.mark.parametrize("sizes", [layout.WIDE, layout.NARROW], ids=["wide", "narrow"])
BOTH = pytest.mark.parametrize("example", [examples.addition, examples.large], ids=["addition", "large"])


def arranged(example, sizes=layout.WIDE):
  return layout.arrange(contents.read(example()), sizes)


def visible_text(svg: str) -> list[str]:
  """The texts of a picture without what is shown on hovering only."""
  root = ElementTree.fromstring(svg)
  return ["".join(part for part in [text.text or ""]) for text in root.iter("{http://www.w3.org/2000/svg}text")]


@BOTH
def test_every_node_has_its_name_and_share(example):
  table = example()
  texts = visible_text(circuit_svg(table))
  assert sorted(t for t in texts if re.fullmatch(r"a\d+\.\d+|m\d+", t)) == sorted(n["site"] for n in table["nodes"])
  shares = [f"{round(100 * n['effect']['mean']) + 0} %" for n in table["nodes"]]
  assert sorted(t for t in texts if re.fullmatch(r"-?\d+ %", t)) == sorted(shares)


def test_a_card_holds_the_two_most_certain_properties_and_their_rates():
  texts = visible_text(circuit_svg(examples.addition()))
  assert {"F1 = 6 · 100 %", "S1 = 8 · 99 %", "C2 = 0 · 100 %", "F2 + S2 > 9 · 99 %", "not read"} <= set(texts)


@SIZES
@BOTH
def test_layers_run_upwards_and_positions_as_in_the_text(example, sizes):
  table, drawn = example(), arranged(example, sizes)
  cards = [(n, drawn.cards[n["name"]]) for n in table["nodes"]]
  for n, card in cards:
    for other, box in cards:
      below = n["layer"] < other["layer"] or (n["layer"] == other["layer"] and n["kind"] < other["kind"])
      assert not below or card.y > box.y
      at = [table["positions"].index(m["position"]) for m in (n, other)]
      assert not at[0] < at[1] or card.x + card.width < box.x
  assert all(drawn.logits.y < card.y < box.y for _, card in cards for box in drawn.inputs.values())
  assert {layer for layer, _, _ in drawn.layers} == {n["layer"] for n in table["nodes"]}


@SIZES
@BOTH
def test_no_card_covers_another_or_an_edge_that_passes(example, sizes):
  drawn = arranged(example, sizes)
  boxes = list(drawn.cards.values())
  for k, a in enumerate(boxes):
    for b in boxes[:k]:
      assert a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
  passed = 0
  for route in drawn.routes:
    for x, low, high in re.findall(r"([\d.-]+) ([\d.-]+)V([\d.-]+)", route.path):
      x, low, high = float(x), float(low), float(high)
      passed += 1
      for box in boxes:
        assert not (box.x < x < box.x + box.width and high < box.y + box.height and box.y < low)
  assert passed


@BOTH
def test_edges_start_and_end_at_their_nodes(example):
  drawn = arranged(example)
  boxes = drawn.cards | drawn.inputs | {"logits": drawn.logits}
  for route in drawn.routes:
    numbers = [float(v) for v in re.findall(r"-?[\d.]+", route.path)]
    source, target = boxes[route.edge.source], boxes[route.edge.target]
    assert source.x <= numbers[0] <= source.x + source.width and numbers[1] == pytest.approx(source.y, abs=0.06)
    assert target.x <= numbers[-2] <= target.x + target.width
    assert numbers[-1] == pytest.approx(target.y + target.height, abs=0.06)


@pytest.mark.parametrize(("sizes", "most"), [(layout.WIDE, 960), (layout.NARROW, 362)])
@BOTH
def test_neither_a_desktop_nor_a_phone_scales_it_down(example, sizes, most):
  assert arranged(example, sizes).width <= most


def test_strong_edges_are_thick_and_the_weakest_of_many_are_left_out_with_a_word():
  table = examples.addition()
  root = ElementTree.fromstring(circuit_svg(table))
  width = {}
  for path in root.iter("{http://www.w3.org/2000/svg}path"):
    for title in path:
      width[title.text] = float(path.get("stroke-width"))
  assert width["m1@= → logits: 36 ± 1 %"] == max(width.values())
  assert width["a0.0@= → m0@= through input of an MLP: 20 ± 1 %"] > width["embed@= → a0.0@= through queries: 3 ± 1 %"]
  assert len(width) == len(table["edges"])
  table["edges"] += [examples.edge("m0@=", "m1@=", "in", 1e-4 * k) for k in range(130)]
  page = circuit_page(table)
  assert f"The {len(table['edges']) - layout.MOST_EDGES} weakest edges are not drawn" in page
  assert f"All {len(table['edges'])} edges" in page


@BOTH
def test_the_page_runs_and_loads_nothing_and_every_link_has_its_section(example):
  page = circuit_page(example())
  assert not re.search(r"<script|<link|<img|url\(|@import|\bon\w+=|https?://(?!www\.w3\.org/2000/svg)", page)
  assert "default-src 'none'" in page
  targets = set(re.findall(r'href="#([^"]+)"', page))
  assert targets <= set(re.findall(r' id="([^"]+)"', page))
  assert {f"node-{k}" for k in range(len(example()["nodes"]))} <= targets


def test_a_section_has_rates_controls_causal_shares_and_samples():
  table = examples.addition()
  page = circuit_page(table, {"a0.0@=": [examples.preimage()]})
  section = page.split('id="node-0"')[1].split("</section>")[0]
  row = re.search(r"F1 = 6</th>(.*?)</tr>", section).group(1)
  assert re.findall(r"<td>([^<]*)</td>", row) == ["100 %", "11 %", "11 %", "97 %", "3 %"]
  assert 'href="#node-4"' in section  # m0, where it goes
  assert 0 < section.count('<td class="iv-d"') <= 20
  assert page.count('<td class="iv-d"') == section.count('<td class="iv-d"')


def test_files_of_preimages_are_linked_by_their_names():
  table = examples.addition()
  table["nodes"][0]["queries"][0]["file"] = "preimages/a0.0@=.0.json"
  assert 'href="preimages/a0.0%40%3D.0.json"' in circuit_page(table)


def test_what_is_unknown_is_left_out():
  table = examples.addition()
  table |= {"cpr": None, "cmd": None, "random_cpr": None, "edges": [], "inputs": [], "example": {}, "settings": {}}
  for n in table["nodes"]:
    n |= {"attribution": None, "bits": None, "queries": [], "encodes": []}
    n["effect"]["se"] = None
  for point in table["curve"]:
    point["random"] = None
  text = circuit_page(table) + circuit_svg(table)
  assert "None" not in text and "nan" not in text
  table |= {"nodes": [], "curve": []}
  assert "None" not in circuit_page(table) + circuit_svg(table)


def test_what_files_hold_stays_text():
  table = examples.addition()
  old = table["nodes"][0]["name"]
  text = json.dumps(table).replace(json.dumps(old), json.dumps(HOSTILE)).replace('"="', json.dumps(HOSTILE))
  table = json.loads(text) | {"target": HOSTILE, "task": HOSTILE, "answer": HOSTILE, "settings": {HOSTILE: HOSTILE}}
  table["nodes"][0] |= {"site": HOSTILE, "problem": HOSTILE, "encodes": [examples.encoded(HOSTILE, 1, 0, HOSTILE)]}
  table["nodes"][0]["queries"][0] |= {"text": HOSTILE, "file": HOSTILE}
  page, svg = circuit_page(table), circuit_svg(table)
  ElementTree.fromstring(svg)
  for made in (page, svg):
    assert "<script" not in made and not re.search(r"<[^>]*\sonload=x[^>]*>", re.sub(r'"[^"]*"', '""', made))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("nodes"), "has no 'nodes'"),
    (lambda t: t.update(format="something"), "'something'"),
    (lambda t: t.update(format_version=2), "newer"),
    (lambda t: t["nodes"][2]["effect"].update(mean="0.1"), r"mean of effect of nodes.*\[2\].* = '0.1'"),
    (lambda t: t["nodes"][2]["effect"].update(mean=float("nan")), "nan"),
    (lambda t: t["nodes"][1].update(name=t["nodes"][0]["name"]), "two nodes are named 'a0.0@='"),
    (lambda t: t["nodes"][1].update(kind="neuron"), "neuron"),
    (lambda t: t["edges"][3].update(source="a9.9@="), r"edges\[3\], 'a9.9@='"),
    (lambda t: t["edges"][3].update(through="z"), "'z'"),
    (lambda t: t.update(curve=[{"size": -1}]), "size"),
    (lambda t: t.update(inputs=["embed"]), "'embed'"),
  ],
)  # fmt: skip
def test_damaged_content_is_refused_by_name(change, message):
  table = examples.addition()
  change(table)
  for make in (circuit_svg, circuit_page):
    with pytest.raises(InversionViewError, match=message):
      make(table)


def test_preimages_of_other_nodes_and_other_data_are_refused():
  table = examples.addition()
  with pytest.raises(InversionViewError, match="'a7.7@='"):
    circuit_page(table, {"a7.7@=": []})
  with pytest.raises(InversionViewError, match="format"):
    circuit_page(table, {"a0.0@=": [{"format": "x"}]})


def contrast(a: str, b: str) -> float:
  """Contrast ratio of two colors "#rrggbb" as WCAG 2 defines it."""

  def luminance(color: str) -> float:
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
  return (bright + 0.05) / (dark + 0.05)


def test_texts_have_contrast_light_and_dark():
  def colors(selector: str) -> tuple[str, ...]:
    return re.search(
      re.escape(selector) + r"\{[^}]*?fill:light-dark\((#\w{6}),(#\w{6})\)", style.PICTURE_STYLE
    ).groups()

  for text in (".cp text", ".cp .cp-dim"):
    for ground in (".cp .cp-ground", ".cp .cp-band", ".cp .cp-card"):
      assert all(contrast(a, b) >= 4.5 for a, b in zip(colors(text), colors(ground), strict=True))
