"""The interactive page: its address, what is drawn and when, and its error messages."""

import asyncio
import base64
import contextlib
import dataclasses
import html
import http.client
import json
import math
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import circuit_examples as examples
import numpy as np
import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.commands import explore
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import consistency
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.show.explorer import attention, circuits, panels, pins, server, service
from inversionview_jax.show.explorer.inputs import Input
from inversionview_jax.show.explorer.service import Service
from inversionview_jax.show.explorer.state import PANELS, Pin, View

HOSTILE = [
  "<script>alert(1)</script>",
  '" onmouseover="x',
  "'><img src=x onerror=y>",
  "&site=a0.1",
  "\u202e",
  " ",
  "|",
  "#+%",
]
TEXT = "615+861=1476"
APP = pathlib.Path(service.__file__).parent / "app.py"

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# The address.


def address(view: View) -> dict[str, list[str]]:
  """The address of a view, as a browser would give it back."""
  return urllib.parse.parse_qs(view.to_query(), keep_blank_values=True)


@pytest.mark.parametrize(
  "view",
  [
    View(),
    View(
      "addition", TEXT, "a0.3", "=", epsilon=0.1, metric="cosine", match="position", mixture="paper", shown=7, seed=3
    ),
    View(
      "w",
      "".join(HOSTILE),
      "x0.pre",
      "8",
      1e-3,
      temperatures=(0.5, 1.0),
      noise=(0.1,),
      samples=256,
      colors=False,
      notes=False,
    ),
    View(
      "r",
      "a|b",
      "a1.0",
      ":",
      panel="pinned",
      head="1.0",
      method="monte_carlo",
      particles=512,
      budget=50_000,
      pins=(Pin("r", "a0.0", ":", "vv|v:2"), Pin("r", "m0", "3", "&=?#")),
    ),
  ],
)
def test_a_view_comes_back_from_its_address(view):
  assert View().read(address(view)) == (view, [])


def test_every_part_of_a_view_is_in_the_address():
  changed = View(
    "r",
    "t",
    "s",
    "p",
    0.5,
    "cosine",
    "position",
    "m",
    (1.0,),
    (0.5,),
    256,
    9,
    4,
    False,
    False,
    "sites",
    "0.1",
    (Pin(*"abcd"),),
    "exact",
    256,
    20_000,
    "a0.1@=",
  )
  names = {field.name for field in dataclasses.fields(View)}
  assert set(address(changed)) == names - {"pins"} | {"pin"}
  assert all(getattr(changed, name) != getattr(View(), name) for name in names)


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("epsilon", "0", "above 0"), ("epsilon", "nan", "'nan'"), ("epsilon", "wide", "'wide'"), ("metric", "manhattan", "euclidean, cosine"),
    ("match", "near", "anywhere"), ("samples", "1000", "1024"), ("shown", "0", "from 1"), ("shown", "\u0663", "whole number"), ("seed", "-1", "from 0"),
    ("seed", str(2**32), "from 0"), ("temperatures", "1,x", "'x'"), ("noise", "-1", "'-1'"), ("colors", "blue", "'blue'"),
    ("panel", "siites", "sites"), ("method", "montecarlo", "did you mean monte_carlo"), ("budget", "1000", "20000"), ("particles", "7", "1024"), ("pin", "a|b|c", "reader|site|position|text"), ("sitee", "a0.0", "did you mean site"),
  ],
)  # fmt: skip
def test_errors_in_an_address_are_reported_and_the_rest_is_used(name, value, message):
  view, errors = View().read({name: [value], "text": [TEXT]})
  assert view == View(text=TEXT) and len(errors) == 1 and message in errors[0]


@pytest.mark.parametrize("value", [5000 * "9", 5000 * "x", 3999 * "9", "-" + 3999 * "9", "\u0663", "1e999", "nan"])
def test_no_value_in_an_address_is_too_long_to_be_named(value):
  for name in (*(field.name for field in dataclasses.fields(View)), "pin", value):
    view, errors = View().read({name: [value]})
    assert all(len(error) < 400 for error in errors)
    assert errors or (len(value) <= 4000 and name in ("reader", "text", "site", "position", "mixture", "head", "node"))
    assert errors == [] or view == View()


def test_queries_are_pinned_once_and_unpinned():
  view = View("addition", TEXT, "a0.0", "=").after_click("pin").after_click("pin")
  assert view.pins == (Pin("addition", "a0.0", "=", TEXT),)
  both = dataclasses.replace(view, site="a0.1").after_click("pin")
  assert both.after_click("unpin=0").pins == both.pins[1:] and both.after_click("unpin=7").pins == both.pins
  full = both
  for k in range(4):
    full = dataclasses.replace(full, site=f"a1.{k}").after_click("pin")
  with pytest.raises(InversionViewError, match="6 readings"):
    dataclasses.replace(full, site="x0.pre").after_click("pin")


def test_a_click_is_checked_as_an_address_is():
  for action in ("site=a0.1&epsilon=0", "reader", "__class__=x", ""):
    with pytest.raises(InversionViewError):
      View().after_click(action)
  assert View().after_click("site=a0.1&panel=sites") == View(site="a0.1", panel="sites")


# What is shown.


def hostile_input() -> Input:
  strings = ("<BOS>", *HOSTILE, "<EOS>")
  n = len(strings)
  patterns = np.tril(np.ones((2, 2, n, n), np.float32)) / np.arange(1, n + 1)[:, None]
  return Input(strings, ("", *HOSTILE, ""), tuple(HOSTILE), patterns)


def hostile_preimage(distances=(0.05, 0.3, math.inf)) -> Preimage:
  strings = ("<BOS>", *HOSTILE, "<EOS>")
  query = Query("".join(HOSTILE), range(len(strings)), strings, 2, HOSTILE[1], "a0.1", "h", [1.0], [0.2, 0.3, 0.5])
  effects = np.linspace(-1, 1, len(HOSTILE))
  samples = [Sample(range(len(HOSTILE)), HOSTILE, "".join(HOSTILE), d, 1, effects, ended=False) for d in distances]
  return Preimage(query, samples, 0.1, "euclidean", "anywhere", 0, "<i>r", "<b>t", "centered", "1")


def test_every_token_is_escaped():
  seen, p = hostile_input(), hostile_preimage()
  view = View(
    "<u>",
    "".join(HOSTILE),
    "a0.1",
    HOSTILE[1],
    pins=(Pin("<u>", "a0.1", HOSTILE[0], "".join(HOSTILE)), Pin("<s>", "<u>", "<b>", "<i>")),
  )
  shown = "".join([
    panels.token_strip(view, seen),
    panels.reading(view, p),
    panels.grid(view, [(s, {"position": s}, p) for s in HOSTILE]),
    attention.attention(view, seen),
    pins.pinned(view, [p, "no reader <script>"]),
    panels.alert("".join(HOSTILE)),
    panels.site_map(view, ["x0.pre", "a0.1", "m0", "x1.post"], lambda site: p),
  ])  # fmt: skip
  assert "<script" not in shown and "<img" not in shown and "&lt;script&gt;" in shown and "\u202e" not in shown
  for tag in re.findall(r"<[^>]*>", shown):
    assert re.fullmatch(r"""</?[a-zA-Z0-9]+(\s+[\w:-]+(="[^"<>]*")?)*\s*/?>""", tag), tag
    assert not re.search(r"\s(on\w+|src|href)\s*=", re.sub(r'="[^"]*"', "=", tag)), tag


def test_a_click_brings_back_the_very_token():
  shown = panels.token_strip(View(site="a0.1", position="1"), hostile_input())
  positions = [View().after_click(html.unescape(pick)).position for pick in re.findall(r'data-pick="([^"]*)"', shown)]
  assert positions == ["0", *HOSTILE]


def test_the_browser_gets_the_distances_that_python_counts():
  p = dataclasses.replace(hostile_preimage(), epsilon=0.1, samples=hostile_preimage((0.1, 0.1, 0.2, math.inf)).samples)
  data = json.loads(json.dumps(panels.slider_data(p, View()), allow_nan=False))
  assert sum(d <= float(np.float32(0.1)) for d in data["distances"]) == len(p.inside) == 2
  table = panels.reading(View(), p)
  assert len(data["rows"]) == table.count('<td class="iv-d"') and data["rows"] == sorted(data["rows"])


def test_sites_are_arranged_by_layer_and_show_known_rates():
  p = hostile_preimage()
  shown = panels.site_map(
    View(site="a0.1"), ["x0.pre", "a0.0", "a0.1", "m0", "a1.1"], lambda site: p if site == "m0" else None
  )
  assert re.findall(r"<span>(in|layer \d)</span>", shown) == ["in", "layer 0", "layer 1"]
  assert shown.count('aria-pressed="true"') == 1 and shown.count("<u ") == 1
  assert re.findall(r'data-pick="site=([^"]*)"', shown) == ["x0.pre", "a0.0", "a0.1", "m0", "a1.1"]


# Readers and the preimages they have drawn.


@pytest.fixture(scope="module")
def folder(save_small, tmp_path_factory):
  return save_small(tmp_path_factory.mktemp("explorer") / "small")


@pytest.fixture(scope="module")
def shared(folder, tmp_path_factory):
  """A service of a small reader, of its target, and of a reader that cannot be loaded; what it has drawn stays for other tests."""
  broken = tmp_path_factory.mktemp("broken")
  (broken / "decoder").mkdir()
  (broken / "decoder" / "model.json").write_text("{}")
  return Service([str(folder), str(broken)], [str(folder)])


@pytest.fixture
def drawn(shared, monkeypatch):
  """The number of candidates of each call of the reader."""
  calls = []
  reader = shared.source("small").reader
  real = reader.preimage

  def counted(*args, **kwargs):
    calls.append(kwargs["num_samples"])
    return real(*args, **kwargs)

  monkeypatch.setattr(reader, "preimage", counted)
  return calls


def test_epsilon_draws_nothing_and_another_site_does(shared, drawn):
  view = View("small", TEXT, "a0.1", "=", samples=256, seed=11, method="decoder")
  first = shared.preimage(view)
  wider = shared.preimage(dataclasses.replace(view, epsilon=0.9))
  assert drawn == [256] and wider == first.at(0.9) and shared.known(view) == first
  shared.preimage(dataclasses.replace(view, site="x0.mid"))
  assert drawn == [256, 256]
  for change in (
    {"seed": 12},
    {"text": "111+222=333"},
    {"match": "position"},
    {"metric": "cosine"},
    {"temperatures": (1.0,)},
    {"samples": 512},
    {"method": "monte_carlo"},
  ):
    assert shared.known(dataclasses.replace(view, **change)) is None


@pytest.mark.slow
def test_parts_are_the_whole(shared):
  """Drawn in parts of 256, with progress reported, the candidates are those that are drawn at once."""
  reader, reported = shared.source("small").reader, []
  parts = reader.preimage(
    TEXT, "a0.1", "=", num_samples=300, seed=5, progress=lambda done, total: reported.append((done, total))
  )
  whole = reader.preimage(TEXT, "a0.1", "=", num_samples=300, seed=5)
  assert reported == [(0, 300), (256, 300), (300, 300)]
  assert sorted(s.tokens for s in parts.samples) == sorted(s.tokens for s in whole.samples)
  np.testing.assert_allclose(
    [s.distance for s in parts.samples], [s.distance for s in whole.samples], rtol=1e-4, atol=1e-5
  )


def test_a_loaded_source_does_not_wait_for_a_drawing(shared):
  """So that a page answers to Stop while another thread still draws."""
  view = View("small", TEXT, "a0.1", "=", method="decoder")
  shared.input("small", TEXT)
  held, release, answered = threading.Event(), threading.Event(), []

  def draw():
    with shared._work:
      held.set()
      release.wait(60)

  def ask():
    answered.append((shared.methods("small"), shared.known(view), shared.input("small", TEXT)))

  drawing, page = threading.Thread(target=draw), threading.Thread(target=ask)
  try:
    drawing.start()
    held.wait(60)
    page.start()
    page.join(30)
    assert answered
  finally:
    release.set()
    drawing.join()


def test_a_page_opens_only_the_readers_it_was_given(shared):
  with pytest.raises(InversionViewError, match="unknown reader '/etc'"):
    shared.source("/etc")
  with pytest.raises(InversionViewError, match="same name"):
    Service(["a/small", "b/small"])


# The page, in Streamlit's own harness.


@pytest.fixture
def page(shared, monkeypatch):
  """A function (address) -> the page after its first run."""
  testing = pytest.importorskip(
    "streamlit.testing.v1", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'"
  )
  monkeypatch.setattr(service, "_current", shared)
  monkeypatch.setattr(
    Service, "quick", lambda self, name: False
  )  # beside candidates, no particles are drawn unless asked for

  def open_page(**params):
    app = testing.AppTest.from_file(str(APP), default_timeout=300)
    for name, value in (
      {"reader": "small", "text": TEXT, "site": "a0.1", "position": "=", "samples": "256", "method": "decoder"} | params
    ).items():
      if value is not None:
        app.query_params[name] = value
    return checked(app.run())

  return open_page


def checked(app):
  assert not app.exception, app.exception
  return app


def panes(app) -> dict[str, dict]:
  """What each pane shows, by its key."""
  by_key = {}
  for element in app.get("bidi_component"):
    shown = json.loads(element.proto.json)
    by_key[element.proto.id.split("-")[-1]] = shown | {"readings": json.loads(shown["readings"])}
  return by_key


def alerts(app) -> list[str]:
  return [
    html.unescape(text) for pane in panes(app).values() for text in re.findall(r'role="alert">([^<]*)<', pane["html"])
  ]


def test_page_shows_the_reading_of_its_address(page, shared):
  app = page(epsilon="0.7", shown="9")
  p = shared.preimage(View("small", TEXT, "a0.1", "=", 0.7, samples=256, method="decoder"))
  shown = panes(app)
  assert set(shown) == {"tokens", "sites", "reading", "features"} and not alerts(app)
  assert (
    f"<span data-inside>{len(p.inside)}</span> of 256" in shown["reading"]["html"]
    and "ε = 0.7" in shown["reading"]["html"]
  )
  assert shown["reading"]["html"].count('<td class="iv-d"') == len(shown["reading"]["readings"][0]["rows"]) <= 9
  assert shown["reading"]["readings"][0]["distances"] == [s.distance for s in p.samples]
  assert 'aria-pressed="true" title="position 8' in shown["tokens"]["html"]


def test_controls_change_the_view_and_the_address(page, drawn):
  app = page()
  before = len(drawn)
  checked(app.toggle(key="control colors").set_value(False).run())
  assert app.query_params["colors"] == "0" and "iv-up" not in panes(app)["reading"]["html"]
  checked(app.radio(key="control metric").set_value("cosine").run())
  assert app.query_params["metric"] == "cosine" and "cosine distance" in panes(app)["reading"]["html"]
  checked(app.number_input(key="control shown").set_value(3).run())
  assert len(panes(app)["reading"]["readings"][0]["rows"]) <= 3
  checked(app.selectbox(key="control mixture").set_value("custom").run())
  checked(app.text_input(key="control temperatures").set_value("0.7").run())
  checked(app.text_input(key="control noise").set_value("0").run())
  assert app.query_params["temperatures"] == "0.7" and not alerts(app)
  checked(app.text_input(key="control temperatures").set_value("hot").run())
  assert any("'hot'" in text for text in alerts(app)) and app.query_params["temperatures"] == "0.7"
  assert len(drawn) > before


def test_random_input_and_pins(page):
  app = page()
  checked(next(b for b in app.button if b.label == "Pin").click().run())
  assert app.query_params["pin"] == f"small|a0.1|=|{TEXT}"
  checked(next(b for b in app.button if b.label == "Random").click().run())
  assert app.query_params["text"] != TEXT and re.fullmatch(r"\d{3}\+\d{3}=\d{3,4}", app.query_params["text"])
  checked(next(b for b in app.button if b.label == "Pin").click().run())
  assert len(app.query_params["pin"]) == 2
  app = page(panel="pinned", pin=[f"small|a0.1|=|{TEXT}", "small|x0.pre|S2|111+222=333", "small|a9.9|=|111+222=333"])
  (pinned,) = [pane for key, pane in panes(app).items() if key == "pinned"]
  assert pinned["html"].count("<section") == 3 and [r is None for r in pinned["readings"]] == [False, False, True]
  assert any("a9.9" in text for text in alerts(app))


@pytest.mark.parametrize("panel", [name for name in PANELS if name != "reading"])
def test_every_panel_is_shown(page, panel):
  app = page(panel=panel)
  assert not alerts(app)
  if panel == "sites":
    assert panes(app)["grid"]["html"].count("<article") == 6
  if panel == "positions":
    assert panes(app)["grid"]["html"].count("<article") == 12
  if panel == "attention":
    assert panes(app)["attention"]["html"].count("<svg") == 5  # four heads, and the chosen one


@pytest.mark.parametrize(
  "params, message",
  [
    ({"text": "615*861=1476"}, "'*'"),
    ({"text": "<script>alert(1)</script>"}, "'<'"),
    ({"text": ""}, "empty"),
    ({"site": "a0.7"}, "a0.7"),
    ({"position": "A9"}, "A1, A2, A3, A4"),
    ({"mixture": "cold"}, "cold"),
    ({"mixture": "json:loads"}, "unknown mixture of task 'addition': 'json:loads'"),  # an address imports no module
    ({"epsilon": "-1"}, "epsilon '-1'"),
    ({"sitee": "a0.0"}, "sitee"),
    ({"reader": "nowhere"}, "unknown reader 'nowhere'"),
    ({"site": "a" + 3000 * "9" + ".0"}, "unknown site"),
    ({"position": 3000 * "9"}, "unknown position"),
    ({"seed": 5000 * "9"}, "seed has 5,000 characters"),
  ],
)
def test_errors_are_shown_in_place_and_the_page_goes_on(page, params, message):
  app = page(**params)
  assert any(message in text for text in alerts(app)), alerts(app)
  assert app.selectbox(key="control reader").options  # another reader can be chosen


def test_a_reader_that_cannot_be_loaded_is_reported_and_another_can_be_chosen(page, shared, monkeypatch):
  monkeypatch.setattr(Service, "method", lambda self, view, samples=None: "decoder")  # takes no time
  broken = next(name for name in shared.sources.names if not name.startswith("small"))
  app = page(reader=broken, text=None, site=None, position=None)
  assert any("model.json" in text for text in alerts(app))
  checked(app.selectbox(key="control reader").select("small").run())
  assert not alerts(app) and "reading" in panes(app)


# Monte Carlo.

FEW = {"method": None, "particles": "256", "budget": "20000"}


@pytest.mark.slow
def test_particles_are_drawn_anew_for_another_epsilon(shared):
  view = View("small (target)", TEXT, "m0", "=", 0.7, particles=256, budget=20_000)
  levels: list = []

  def progress(done, total):
    levels.append((done, total))

  progress.level = lambda number, level: levels.append((number, level.epsilon))
  first = shared.preimage(view, progress=progress)
  assert first.method == "monte_carlo" and first.epsilon == 0.7 and (20_000, 20_000) in levels
  assert (1, first.levels[0]["epsilon"]) in levels
  wider = dataclasses.replace(view, epsilon=0.9)
  assert shared.known(view) == first and shared.known(wider) is None
  assert shared.preimage(wider).epsilon == 0.9 and shared.preimage(wider).sampled_epsilon is None
  assert first.bits is None or shared.information(first).bits == first.bits
  assert shared.reading(view, first).from_prior


def test_particles_are_seen_on_their_way(shared):
  view = View("small (target)", TEXT, "a0.1", "=", 0.3, particles=256, budget=20_000, seed=5)
  made: list = []

  def progress(done, total):
    pass

  progress.preview = made.append
  final = shared.preimage(view, progress=progress)
  seen = [make() for make in made]
  assert len(seen) == len(final.levels) and [len(p.levels) for p in seen] == list(range(len(seen)))
  assert seen[0].target_runs == 256 == len(seen[0].particles)  # drawn from the prior, and nothing else yet
  assert not any(p.converged for p in seen) and {p.query for p in seen} == {final.query}
  halves = [sorted(s.distance for s in p.particles)[128] for p in seen]
  assert halves == sorted(halves, reverse=True) and halves[0] > halves[-1]
  shown = panels.so_far(view, seen[0])
  assert "256 particles are inside" in shown and "data-pick" not in shown
  assert shown.count('<td class="iv-d"') <= view.shown and "ex-preview" in shown


def test_a_page_follows_what_another_one_draws(shared):
  view = View("small (target)", TEXT, "a0.1", "=", 0.3, particles=256, budget=20_000, seed=6)
  drawing, followed = threading.Event(), threading.Event()
  seen: list = []

  def slow(done, total):
    if done and not followed.is_set():
      drawing.set()
      assert followed.wait(60)

  def follower(done, total):
    seen.append((done, total))
    followed.set()

  follower.level = lambda number, level: seen.append(level)
  follower.preview = seen.append
  first = threading.Thread(target=shared.preimage, args=(view,), kwargs={"progress": slow})
  first.start()
  assert drawing.wait(60)
  other = dataclasses.replace(view, seed=7)

  def left(done, total):
    assert (done, total) == (0, 1)  # of something else
    raise InversionViewError("left")

  with pytest.raises(InversionViewError, match="left"):
    shared.preimage(other, progress=left)
  found = shared.preimage(view, progress=follower)
  first.join(60)
  level, make, (done, total) = seen[:3]
  assert level.epsilon > 0.299 and make().query == found.query and 256 <= done < total == 20_000
  assert shared.known(view) == found


def test_monte_carlo_from_the_prior_is_the_default_and_a_sketch_has_the_same_particles(shared):
  view = View("small", TEXT, "a0.1", "=", particles=512)
  assert shared.source("small").method == "monte_carlo" == shared.methods("small")[0]
  whole = shared.source_of(view)
  assert whole.settings == {"particles": 512, "budget": 200_000}
  assert (
    shared.source_of(view, shared.sketch(view)).settings == whole.settings
  )  # so that nothing is compiled or drawn twice
  both = dataclasses.replace(view, method="decoder+monte_carlo", mixture="paper")
  assert shared.source_of(both, 256).method == "monte_carlo"
  assert (
    shared.source_of(both).settings["mixture"] == "paper" and shared.source_of(both).settings["num_samples"] == 1024
  )


def test_what_is_encoded_never_comes_from_candidates(shared):
  view = View("small", TEXT, "a0.1", "=", method="decoder")
  members = shared.members_view(view)
  assert members == dataclasses.replace(view, method="monte_carlo")
  assert shared.members_view(members) is members
  both = dataclasses.replace(view, method="decoder+monte_carlo")
  assert shared.members_view(both) is both  # particles, from wherever they started


def test_page_of_particles_shows_bits_or_what_is_wrong(page, shared):
  app = page(**FEW, reader="small (target)", site="m0", epsilon="0.7")
  p = shared.preimage(View("small (target)", TEXT, "m0", "=", 0.7, particles=256, budget=20_000))
  shown = panes(app)["reading"]["html"]
  assert not alerts(app) and 'data-drawn="0.7"' in shown and "Monte Carlo on the target, from the prior" in shown
  assert (f"{p.bits:.2f}" in shown) if p.bits is not None else ("different inputs" in shown)
  assert ("not converged" in shown) == (p.converged is False)
  assert app.selectbox(key="control method").value == "monte_carlo"
  assert [w.key for w in app.selectbox] == ["control reader", "control method"]  # nothing of a decoder
  assert not [b for b in app.button if b.label == "Measure bits"]
  checked(app.text_input(key="control site").set_value("m9").run())
  assert any("m9" in text for text in alerts(app))


def test_candidates_are_not_said_to_show_what_is_encoded(page):
  app = page()
  features = panes(app)["features"]["html"]
  assert "no sample of the task" in features and "<table" not in features
  assert [b.label for b in app.button if b.label == "Draw particles"]


@pytest.mark.slow
def test_the_method_is_chosen_on_the_page(page):
  app = page(**FEW | {"method": "decoder"}, epsilon="0.7")
  checked(next(b for b in app.button if b.label == "Draw particles").click().run())
  shown = panes(app)
  assert "of 256 candidates" in re.sub("<[^>]*>", "", shown["reading"]["html"])
  assert "What it encodes" in shown["features"]["html"] and "decoder" not in shown["features"]["html"]
  checked(app.selectbox(key="control method").set_value("monte_carlo").run())
  assert "method" not in app.query_params  # the default
  assert panes(app)["features"] == shown["features"]  # of the same particles
  checked(app.selectbox(key="control method").set_value("decoder+monte_carlo").run())
  assert "from the decoder&#x27;s candidates" in panes(app)["reading"]["html"]
  assert "What it encodes" in panes(app)["features"]["html"] and not alerts(app)


def test_a_drawing_that_was_stopped_waits_until_it_is_asked_for(page, drawn):
  app = page()
  before = len(drawn)
  view = dataclasses.replace(app.session_state.view, seed=77)
  app.session_state.stopped = str(hash(view))
  checked(app.number_input(key="control seed").set_value(77).run())
  assert "reading" not in panes(app) and "sites" in panes(app) and len(drawn) == before
  checked(next(b for b in app.button if b.label == "Draw").click().run())
  assert "reading" in panes(app) and len(drawn) == before + 1


# Targets that are chosen on the page.


def test_a_target_is_opened_by_its_folder_once_and_read(folder, shared):
  opening = Service([str(folder)], may_open=True)
  label = opening.sources.open_target(str(folder), "addition")
  assert label == "small (addition)" and opening.sources.open_target(str(folder), "addition") == label
  assert opening.source(label).reader is None and opening.source(label).task.name == "addition"
  other = opening.sources.open_target(str(folder))
  assert other not in ("small", label) and set(opening.sources.names) == {"small", label, other}
  with pytest.raises(InversionViewError, match="opens no other targets"):
    shared.sources.open_target(str(folder))


@pytest.mark.parametrize(
  ("given", "message"),
  [
    (("",), "no target was named"),
    (("nowhere/at-all",), "nowhere"),
    (("addition", "os:system"), "unknown task 'os:system'"),
    (("addition", "counting"), "."),
    (("addition", "addition", "a text"), "leave one of them out"),
    (("addition", "", "615+861=1476"), "."),  # a target of characters, and a task of a language model
  ],
)
def test_a_target_that_cannot_be_opened_leaves_nothing_behind(given, message, monkeypatch, tmp_path):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_HOME", str(tmp_path))
  opening = Service(["addition"], may_open=True)
  with pytest.raises(InversionViewError, match=message):
    opening.sources.open_target(*given)
  assert list(opening.sources.names) == ["addition"]


# The circuit.


@pytest.fixture
def circuit_folder(tmp_path):
  table = examples.addition()
  table["nodes"][0]["queries"][0]["file"] = "preimages/one.json"
  table["nodes"][1]["queries"][0]["file"] = "../secret.json"
  (tmp_path / "c" / "preimages").mkdir(parents=True)
  (tmp_path / "c" / "circuit.json").write_text(json.dumps(table))
  for path in ("c/preimages/one.json", "secret.json"):
    (tmp_path / path).write_text(json.dumps(examples.preimage()))
  return tmp_path / "c"


def test_a_click_on_a_node_shows_its_preimage_and_draws_it_anew(circuit_folder):
  opened = circuits.OpenedCircuit.of_path(circuit_folder)
  picks = re.findall(r'data-pick="([^"]*)"', circuits.overview(opened))
  nodes = [View().after_click(html.unescape(pick)).node for pick in picks]
  assert sorted(nodes) == sorted(2 * [node.name for node in opened.circuit.nodes])  # wide and narrow
  node = opened.node("a0.0@=")
  shown = circuits.node_panel(opened, node, opened.preimages(node), "addition")
  assert 0 < shown.count('<td class="iv-d"') <= 20 and "F1 = 6" in shown
  view = next(
    view
    for pick in re.findall(r'data-pick="([^"]*)"', shown)
    if (view := View().after_click(html.unescape(pick))).reader
  )
  assert view == View("addition", TEXT, "a0.0", "=", panel="reading")
  assert View(node="x").after_click("node=").node == ""


def test_files_outside_a_circuits_folder_are_not_opened(circuit_folder):
  opened = circuits.OpenedCircuit.of_path(circuit_folder / "circuit.json")
  assert len(opened.preimages(opened.node("a0.0@="))) == 1
  assert opened.preimages(opened.node("a0.1@=")) == []
  picked = circuits.OpenedCircuit.of_text((circuit_folder / "circuit.json").read_text(), "circuit.json")
  assert picked.circuit == opened.circuit and picked.preimages(picked.node("a0.0@=")) == []


def test_page_shows_the_circuit_and_its_node(page, shared, circuit_folder, monkeypatch):
  monkeypatch.setattr(shared, "circuit", circuits.OpenedCircuit.of_path(circuit_folder))
  app = page(panel="circuit")
  assert "Circuit of A1 in addition" in panes(app)["circuit"]["html"] and not alerts(app)
  app = page(panel="circuit", node="a0.3@=")
  assert "C2 = 0" in panes(app)["circuit"]["html"] and "whole circuit" in panes(app)["circuit"]["html"]


def test_pins_are_compared_property_by_property():
  view = View(pins=(Pin("r", "a0.0", "=", "one"), Pin("r", "a0.3", "=", "two")))
  task, p = tasks.get("addition"), Preimage.from_json(json.dumps(examples.preimage()))
  shown = pins.pinned(view, [p, p], [consistency.activation_reading(p, task), None], task.feature_names)
  table = shown.split("</table>")[0]
  assert "What they encode" in table and "hundreds of the first number" in table
  assert re.search(r"F1</th><td[^>]*>= <code>6</code> · 100 %</td><td>–</td>", table)


# The command.


def test_it_listens_here_only_and_sends_nothing():
  settings = server.settings("127.0.0.1", 8600)
  assert settings["server.address"] == "127.0.0.1" and settings["browser.gatherUsageStats"] is False
  assert settings["logger.hideWelcomeMessage"] is True  # the message looks up this machine's address on another one
  args = cli._parser().parse_args(["explore"])
  assert args.address == "127.0.0.1" and args.host == []


def test_settings_of_the_current_folder_have_no_effect(tmp_path, monkeypatch):
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  from streamlit import config, net_util
  from streamlit.web import bootstrap

  for module, name in ((config, "get_config_files"), (net_util, "get_external_ip"), (config, "_config_options")):
    monkeypatch.setattr(module, name, getattr(module, name))  # so that all of them are put back
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.chdir(tmp_path)
  (tmp_path / ".streamlit").mkdir()
  (tmp_path / ".streamlit" / "config.toml").write_text(
    '[server]\nenableCORS = false\nenableXsrfProtection = false\nenableAgentApi = true\ncorsAllowedOrigins = ["http://evil.invalid"]\n'
  )
  server.ignore_folder_settings()
  server.disable_ip_lookup()
  bootstrap.load_config_options(server.settings("127.0.0.1", 8600))
  assert config.get_option("server.enableCORS") is True and config.get_option("server.enableXsrfProtection") is True
  assert config.get_option("server.corsAllowedOrigins") == [] and not config.get_option("server.enableAgentApi")
  assert net_util.get_external_ip() is None  # Streamlit would ask another machine for it


OWN = [("Host", "localhost:8501")]


@pytest.mark.parametrize(
  "headers, passes",
  [
    (OWN, True),
    ([("Host", "127.0.0.1:8501")], True),
    ([("Host", "[::1]:8501")], True),
    ([("Host", "LOCALHOST.")], True),
    ([*OWN, ("Origin", "http://localhost:8501")], True),
    ([("Host", "evil.invalid:8501")], False),
    ([("Host", "evil.invalid:8501"), ("Origin", "http://evil.invalid:8501")], False),  # DNS rebinding
    ([("Host", "192.168.1.7:8501")], False),
    ([("Host", "localhost:8501@evil.invalid")], False),
    ([("Host", "localhost:x")], False),
    ([("Host", "")], False),
    ([], False),
    ([*OWN, *OWN], False),
    ([*OWN, ("Origin", "http://evil.invalid")], False),
    ([*OWN, ("Origin", "http://localhost:3000")], False),
    ([*OWN, ("Origin", "http://127.0.0.1:8501")], False),
    ([*OWN, ("Origin", "null")], False),
    ([*OWN, ("Origin", "http://localhost:8501"), ("Origin", "http://evil.invalid")], False),
  ],
  ids=str,
)
def test_only_the_page_itself_is_answered(headers, passes):
  async def answer(scope, receive, send):
    await send({"type": "answered"})

  sent = []

  async def send(message):
    sent.append(message["type"])

  guard = server.SameOrigin(answer, server.host_names("127.0.0.1"))
  encoded = [(name.encode(), value.encode()) for name, value in headers]
  for kind, refused in (("http", "http.response.start"), ("websocket", "websocket.close")):
    sent.clear()
    asyncio.run(guard({"type": kind, "headers": encoded}, None, send))
    assert sent[0] == ("answered" if passes else refused)


def test_the_page_has_a_heading_before_its_script_has_loaded():
  streamlit = pytest.importorskip("streamlit")
  page = (pathlib.Path(streamlit.__file__).parent / "static" / "index.html").read_bytes()
  parts = [page[:100], page[100:]]
  sent: list = []

  async def streamlit_app(scope, receive, send):
    assert not {name for name, _ in scope["headers"]} & {b"accept-encoding", b"if-none-match"}
    headers = [(b"content-type", b"text/html"), (b"content-length", str(len(page)).encode()), (b"etag", b"1")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for part in parts:
      await send({"type": "http.response.body", "body": part, "more_body": part is parts[0]})

  async def send(message):
    sent.append(message)

  headers = [(b"host", b"localhost"), (b"accept-encoding", b"gzip"), (b"if-none-match", b"1")]
  app = server.FirstSight(streamlit_app, "loading <addition> …")
  asyncio.run(app({"type": "http", "path": "/", "headers": headers}, None, send))
  start, body = sent
  shown = body["body"].decode()
  assert dict(start["headers"]) == {b"content-type": b"text/html", b"content-length": str(len(body["body"])).encode()}
  assert re.search(
    r'<div id="root">.*<h1>What does this activation encode\?</h1>.*loading &lt;addition&gt; …', shown, re.DOTALL
  )
  assert shown.endswith(page.decode().split('<div id="root"></div>')[1]) and not body.get("more_body")
  sent.clear()

  async def other(scope, receive, send):
    await send({"type": "http.response.start", "status": 404, "headers": scope["headers"]})

  asyncio.run(server.FirstSight(other, "")({"type": "http", "path": "/static/x.js", "headers": headers}, None, send))
  assert sent == [{"type": "http.response.start", "status": 404, "headers": headers}]  # as it was


def test_the_names_of_a_page_are_those_that_it_was_started_for():
  assert server.host_names("10.0.0.7") == {"10.0.0.7"}
  assert "localhost" in server.host_names("127.0.0.1", ["Lab.Example."]) >= {"lab.example"}
  everywhere = server.SameOrigin(None, server.host_names("0.0.0.0"), any_address=True)
  assert not everywhere.refusal([(b"host", b"192.168.1.7:8501")])  # no one can point an address elsewhere
  assert everywhere.refusal([(b"host", b"evil.invalid:8501")])


@pytest.mark.slow  # a server process: 10 s
def test_a_server_refuses_other_names_and_other_origins(tmp_path):
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  (tmp_path / ".streamlit").mkdir()
  (tmp_path / ".streamlit" / "config.toml").write_text('[server]\nenableCORS = false\nbaseUrlPath = "elsewhere"\n')
  port = explore._port("127.0.0.1", None)
  argv = [sys.executable, "-m", "inversionview_jax.cli", "explore", "--reader", "addition", "--no-browser", "--port"]
  environment = os.environ | {"PYTHONPATH": str(APP.parents[3]), "XLA_FLAGS": ""}
  process = subprocess.Popen([*argv, str(port)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)

  def status(path, host, origin=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host, **({"Origin": origin} if origin else {}), **headers})
    return connection.getresponse().status

  try:
    for _ in range(240):
      with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        break
      assert process.poll() is None
      time.sleep(0.5)
    own, page = f"localhost:{port}", f"http://localhost:{port}"
    socketed = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    socketed["Sec-WebSocket-Key"] = base64.b64encode(16 * b"a").decode()
    assert status("/_stcore/health", own) == status("/", own, page) == 200
    assert status("/_stcore/stream", own, page, **socketed) == 101
    for host, origin in ((f"evil.invalid:{port}", f"http://evil.invalid:{port}"), (own, "http://localhost:3000")):
      assert status("/", host, origin) == status("/_stcore/stream", host, origin, **socketed) == 403
  finally:
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0


@pytest.mark.parametrize(
  "argv, message",
  [
    (["--port", "0"], "--port 0"),
    (["--port", "65536"], "--port 65536"),
    (["--address", "nowhere.invalid"], "nowhere.invalid"),
    (["--address", 300 * "a"], "no address of this machine"),
    (["--reader", "missing"], "no reader in missing"),
    (["--reader", "a/addition", "--reader", "b/addition"], "same name"),
    (["--target", "nowhere"], "no target 'nowhere'"),
    (["--task", "addition"], "--task has no effect without --target"),
    (["--method", "montecarlo"], "did you mean monte_carlo"),
    (["--circuit", "nowhere"], "nowhere"),
  ],
)
def test_what_cannot_be_started_is_refused_in_one_line(capsys, argv, message):
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  assert cli.main(["explore", *argv]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1


def test_a_port_in_use_is_refused(capsys):
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  with socket.socket() as other:
    other.bind(("127.0.0.1", 0))
    other.listen()
    port = other.getsockname()[1]
    assert cli.main(["explore", "--port", str(port)]) == 2
    assert f"--port {port} is taken" in capsys.readouterr().err
    assert explore._port("127.0.0.1", None) != port


def test_without_streamlit_the_extra_is_named(capsys, monkeypatch):
  monkeypatch.setattr(explore.importlib.util, "find_spec", lambda name: None)
  assert cli.main(["explore"]) == 2
  assert "inversionview_jax[explore]" in capsys.readouterr().err
