"""The page in a browser: what it loads, its keys and clicks, and its layout on a phone.

Needs Chromium and the playwright package (it downloads no browser of its own here); skipped where one of them is missing.
"""

import json
import pathlib
import re
import sys
import urllib.parse

import circuit_examples as examples
import pytest

from inversionview_jax.preimage import Preimage

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "launch"))  # as for a script in that folder

import pages

TEXT = "615+861=1476"

pytestmark = pytest.mark.slow  # a server and a browser: half a minute on two idle cores

# Logs every address the server connects to or looks up; one outside this machine fails the test.
_AUDITED = """
import sys
def log(event, args):
  if event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
    print("CONNECT", args[1][0], file=sys.stderr, flush=True)
  if event == "socket.getaddrinfo":
    print("CONNECT", args[0], file=sys.stderr, flush=True)
sys.addaudithook(log)
from inversionview_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def browser():
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
  if pages.CHROMIUM is None:
    pytest.skip("no Chromium on this machine")
  with pages.chromium() as browser:
    yield browser


@pytest.fixture(scope="module")
def server(browser, save_small, tmp_path_factory):
  """(address, log file of the server) of a page of a small reader, with a circuit of it."""
  folder = tmp_path_factory.mktemp("browser")
  save_small(folder / "small")
  table = examples.addition() | {"target": "small"}
  table["nodes"][0]["queries"][0]["file"] = "one.json"
  (folder / "c").mkdir()
  (folder / "c" / "circuit.json").write_text(json.dumps(table))
  (folder / "c" / "one.json").write_text(json.dumps(examples.preimage()))
  log = folder / "log"
  environment = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  argv = ("--reader", "small", "--circuit", "c")
  with pages.served(argv, log, ("-c", _AUDITED), folder, environment) as (base, _):
    yield base.rstrip("/"), log


@pytest.fixture
def open_page(server, browser):
  """A function (address, width, scheme) -> a page that shows its panes, with `requests`, every address it requested."""
  contexts = []

  def opened(query="", width=1280, scheme="light", wait=".iv-samples"):
    page = pages.new_page(browser, width, 900 if width > 600 else 844, scheme == "dark")
    contexts.append(page.context)
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    start = {"reader": "small", "text": TEXT, "site": "a0.1", "position": "=", "samples": 256, "method": "decoder"}
    page.goto(f"{server[0]}/?{urllib.parse.urlencode(start)}{query}")
    page.wait_for_selector(wait)
    return page

  yield opened
  for context in contexts:
    context.close()


def settled(page, what: str):
  """Waits until the address contains this."""
  page.wait_for_url(re.compile(re.escape(what)))


def test_nothing_leaves_the_machine(server, open_page):
  page = open_page()
  page.wait_for_timeout(3000)
  hosts = {urllib.parse.urlparse(url).hostname for url in page.requests if not url.startswith(("data:", "blob:"))}
  assert hosts == {"127.0.0.1"}
  connected = set(re.findall(r"^CONNECT (\S+)", server[1].read_text(), re.MULTILINE))
  assert connected <= {"127.0.0.1", "localhost", "::1", "None", "b'127.0.0.1'"}


def test_clicks_change_site_and_position_and_the_address(open_page):
  page = open_page()
  page.get_by_role("button", name="x0.mid, the residual stream").click()
  settled(page, "site=x0.mid")
  page.locator("h2", has_text="x0.mid at =").wait_for()
  page.get_by_role("button", name="position 6, S2").click()
  settled(page, "position=S2")
  page.locator("h2", has_text="x0.mid at S2").wait_for()
  page.go_back()
  settled(page, "position=%3D")
  page.locator("h2", has_text="x0.mid at =").wait_for()


def test_epsilon_follows_the_keys_without_a_new_drawing(open_page):
  page = open_page()
  slider, inside = page.locator("[data-epsilon]"), page.locator("[data-inside]")
  drawn = page.evaluate("performance.now()")
  slider.focus()
  counts = []
  for key in ("End", "Home"):
    # Read right after the key: the browser moves the line before the server could answer.
    page.keyboard.press(key)
    counts.append(int(inside.inner_text()))
  assert counts[0] > counts[1] and page.evaluate("performance.now()") > drawn
  settled(page, "epsilon=0.001")
  page.wait_for_timeout(1000)
  assert page.evaluate("[...document.querySelectorAll('*')].length") and not page.get_by_role("progressbar").count()
  assert page.locator(".iv-line").inner_text().strip() == "ε = 0.001"
  page.locator("[data-exact]").fill("0.5")
  page.keyboard.press("Enter")
  settled(page, "epsilon=0.5")
  page.wait_for_timeout(1000)
  rows = page.locator(".iv-samples tbody tr").all_inner_texts()
  line = next(k for k, row in enumerate(rows) if "ε" in row)
  far = [float(row.split()[0].replace("∞", "inf")) for k, row in enumerate(rows) if k != line]
  assert all(d <= 0.5 for d in far[:line]) and all(d > 0.5 for d in far[line:])


def test_arrows_move_between_sites_and_the_focus_stays(open_page):
  page = open_page()
  page.get_by_role("button", name="a0.0, the output of head 0").focus()
  page.keyboard.press("ArrowRight")
  focused = "(() => { let e = document.activeElement; while (e.shadowRoot) e = e.shadowRoot.activeElement; return e.textContent; })()"
  assert page.evaluate(focused).startswith("a0.1")
  page.keyboard.press("ArrowDown")
  assert page.evaluate(focused).startswith("a1.1")
  page.keyboard.press("Enter")
  settled(page, "site=a1.1")
  page.locator("h2", has_text="a1.1 at =").wait_for()
  assert page.evaluate(focused).startswith("a1.1")


def test_a_reading_can_be_saved_as_data_and_as_a_page(open_page):
  page = open_page("&epsilon=0.7&shown=7")
  saved = {}
  for name in ("JSON", "Page"):
    with page.expect_download() as download:
      page.get_by_role("button", name=name, exact=True).click()
    saved[name] = pathlib.Path(download.value.path()).read_text(encoding="utf-8")
  p = Preimage.from_json(saved["JSON"])
  assert (p.query.text, p.query.site, p.epsilon, len(p.samples)) == (TEXT, "a0.1", 0.7, 256)
  assert saved["Page"].startswith("<!doctype html>") and "ε = 0.7" in saved["Page"] and "<script" not in saved["Page"]
  assert saved["Page"].count('<td class="iv-d"') <= 7


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize(
  ("query", "wait"),
  [
    ("", ".iv-samples"),
    ("&method=monte_carlo&particles=256&epsilon=0.7", ".iv-features"),
    ("&panel=sites", ".ex-small ol"),
    ("&panel=positions&method=monte_carlo&particles=256&epsilon=0.7", ".ex-small ol"),
    ("&panel=attention", ".ex-thumb"),
    ("&panel=pinned&pin=small|a0.0|=|1%2B2=3&pin=small|a0.1|=|615%2B861=1476", ".ex-pin"),
    ("&panel=circuit", ".cp-wide svg, .cp-narrow svg"),
    ("&panel=circuit&node=a0.0@=", ".cp-detail"),
    ("&site=nowhere", "[role=alert]"),
  ],
  ids=["reading", "particles", "sites", "positions", "attention", "pinned", "circuit", "node", "error"],
)
def test_a_page_has_no_errors_no_sideways_scroll_and_text_that_can_be_read(open_page, query, wait, width, scheme):
  page = open_page(query, width, scheme, wait)
  pages.wait_for_all(page)
  assert page.errors == []
  assert page.evaluate(pages.SIDEWAYS) <= 0
  contrasts = page.evaluate(pages.CONTRASTS)
  assert len(contrasts) > 20 and [c for c in contrasts if c[0] < pages.LEAST_CONTRAST] == []


def test_text_that_can_hardly_be_read_is_found(browser):
  page = pages.new_page(browser)
  page.set_content(
    "<body style='background:#fff'><p style='color:#777'>grey</p><div style='opacity:.5'><p style='color:#000'>half</p></div>"
    "<div style='background:linear-gradient(#fff,#333)'><b style='color:#000'>gradient</b></div><p>plain</p></body>"
  )
  found = {text: contrast for contrast, text, _ in page.evaluate(pages.CONTRASTS)}
  assert found["grey"] == pytest.approx(4.48, abs=0.01) and found["half"] == pytest.approx(3.95, abs=0.03)
  assert found["gradient"] == pytest.approx(1.66, abs=0.03) and found["plain"] == pytest.approx(21)
  page.context.close()


def test_monte_carlo_shows_levels_and_particles_on_their_way_and_can_be_stopped(open_page):
  page = open_page("&method=monte_carlo&particles=4096&budget=1000000&epsilon=0.0001&seed=3", wait=".ex-preview")
  page.get_by_text(re.compile(r"level \d+, ε = [\d.e-]+ · [\d,]+ of at most 1,000,000 target runs")).wait_for()
  assert page.locator(".ex-preview tbody tr").count() > 10
  page.get_by_role("button", name="Stop", exact=True).click()
  page.get_by_text("Drawing was stopped.").wait_for()
  assert page.locator(".ex-preview").count() == 0 and page.get_by_role("progressbar").count() == 0
  page.get_by_role("button", name="Draw", exact=True).click()
  page.wait_for_selector(".ex-preview")
  page.get_by_role("button", name="Stop", exact=True).click()
  page.get_by_text("Drawing was stopped.").wait_for()


def test_the_keyboard_reaches_everything(open_page):
  page = open_page()
  reached: list[str] = []
  name = """(() => { let e = document.activeElement; while (e.shadowRoot?.activeElement) e = e.shadowRoot.activeElement;
    return e.getAttribute("aria-label") || e.labels?.[0]?.textContent || e.textContent || ""; })()"""
  page.get_by_label("Input").focus()
  for _ in range(70):
    page.keyboard.press("Tab")
    reached.append(page.evaluate(name).strip())
  for part in (
    "Random",
    "position 6, S2",
    "All sites",
    "a0.0, the output of head 0",
    "epsilon, the threshold",
    "Pin",
    "JSON",
  ):
    assert any(text.startswith(part) for text in reached), (part, reached)


def test_a_circuit_is_walked_through_with_the_keyboard(open_page):
  page = open_page("&panel=circuit", wait=".cp-wide svg")
  node = page.locator('.cp-wide [data-pick="node=a0.0%40%3D"]')
  node.focus()
  page.keyboard.press("Enter")
  settled(page, "node=a0.0")
  page.locator(".cp-detail h2", has_text="a0.0 at =").wait_for()
  assert page.locator(".cp-detail .iv-samples").count() == 1  # the preimage that lies beside the circuit
  draw = page.get_by_role("button", name="draw its preimage")
  draw.focus()
  page.keyboard.press("Enter")
  settled(page, "site=a0.0")
  page.locator("h2", has_text="a0.0 at =").wait_for()
  assert page.errors == []


def test_dark_and_light_follow_the_system(open_page):
  def brightness(scheme):
    page = open_page(scheme=scheme)
    colors = page.locator(".inversionview").last.evaluate(
      "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color]"
    )
    return [sum(map(float, re.findall(r"[\d.]+", color)[:3])) for color in colors]

  (light, dark_text), (dark, light_text) = brightness("light"), brightness("dark")
  assert light > 600 > 200 > dark and light_text > 500 > 200 > dark_text


def test_what_is_typed_stays_text(open_page):
  page = open_page()
  box = page.get_by_label("Input")
  box.fill("<img src=http://evil.invalid/x onerror=alert(1)>![x](http://evil.invalid/y)")
  box.press("Enter")
  page.get_by_role("alert").wait_for()
  assert "outside the vocabulary" in page.get_by_role("alert").inner_text()
  page.wait_for_timeout(500)
  assert not any("evil" in urllib.parse.urlparse(url).netloc for url in page.requests)
  box.fill(TEXT)
  box.press("Enter")
  page.wait_for_selector(".iv-samples")


@pytest.mark.parametrize(("width", "dark"), [(1440, False), (390, True)])
@pytest.mark.parametrize("name", ["addition", "counting", "ioi"])
def test_pages_of_the_readers_open_with_a_reading(browser, name, width, dark, tmp_path):
  if name == "ioi" and not pathlib.Path(pages.PAGES["smollm2"][1]).expanduser().exists():
    pytest.skip("SmolLM2 is not here: python launch/fetch_smollm2.py")
  times, page = pages.measure(browser, pages.PAGES[name], width, dark, tmp_path / "log")
  page.context.close()
  assert not times.wrong, times
  assert times.answers < times.paint < times.samples < times.all
