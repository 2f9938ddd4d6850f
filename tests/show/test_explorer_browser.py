"""The page in a browser: what it loads, its keys and clicks, and its layout on a phone.

Needs Chromium and the playwright package (it downloads no browser of its own here); skipped where one of them is missing.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from inversionview_jax.commands import explore
from inversionview_jax.preimage import Preimage

ROOT = pathlib.Path(__file__).parent.parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
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
def server(save_small, tmp_path_factory):
  """(address, log file of the server) of a page of a small reader."""
  pytest.importorskip("streamlit", reason="streamlit is not installed: pip install 'inversionview_jax[explore]'")
  pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
  if CHROMIUM is None:
    pytest.skip("no Chromium on this machine")
  folder = tmp_path_factory.mktemp("browser")
  save_small(folder / "small")
  port = explore._port("127.0.0.1", None)
  log = folder / "log"
  environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  argv = [sys.executable, "-c", _AUDITED, "explore", "--reader", "small", "--port", str(port), "--no-browser"]
  with open(log, "w") as out:
    process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=out, stderr=out)
  try:
    base = f"http://127.0.0.1:{port}"
    for _ in range(600):
      try:
        urllib.request.urlopen(base + "/_stcore/health")
        break
      except (urllib.error.URLError, OSError):
        assert process.poll() is None, log.read_text()
        time.sleep(0.5)
    yield base, log
  finally:
    process.terminate()
    process.wait(60)


@pytest.fixture(scope="module")
def browser(server):
  from playwright.sync_api import sync_playwright

  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def open_page(server, browser):
  """A function (address, width, scheme) -> a page that shows its panes, with `requests`, every address it requested."""
  contexts = []

  def opened(query="", width=1280, scheme="light", wait=".iv-samples"):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(300_000)
    contexts.append(context)
    page = context.new_page()
    page.requests = []
    page.on("request", lambda request: page.requests.append(request.url))
    start = (
      f"?{urllib.parse.urlencode({'text': TEXT, 'site': 'a0.1', 'position': '=', 'samples': 256, 'method': 'decoder'})}"
    )
    page.goto(server[0] + "/" + start + query)
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


@pytest.mark.parametrize("query", ["", "&panel=sites", "&panel=attention"])
def test_a_phone_need_not_scroll_sideways(open_page, query):
  page = open_page(query, width=390, wait=".iv-samples, .ex-small ol, .ex-thumb")
  assert page.evaluate("document.documentElement.scrollWidth") <= 390
  for box in page.locator(".inversionview").evaluate_all("all => all.map(e => e.getBoundingClientRect().right)"):
    assert box <= 390


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
