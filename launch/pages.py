"""The explorer in headless Chromium: how soon it shows something, whether its pages can be read, and the picture of it in the README; by hand.

    pip install playwright                       # beside the extra `explore`, and a Chromium on the path
    python launch/pages.py times                 # seconds from the start of the process, of addition, counting and SmolLM2
    python launch/pages.py times --page counting --wide 390 --dark
    python launch/pages.py picture               # writes configs/explorer.png

`times` starts a process for each page and prints the seconds until its first paint, until samples are shown and until all of it is; then console
errors, what scrolls sideways, and the text with the least contrast. The exit code is 1 where a page has an error, scrolls sideways or has text of a contrast
below 4.5.
"""

import argparse
import contextlib
import dataclasses
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LEAST_CONTRAST = 4.5  # of text and its background: level AA of the Web Content Accessibility Guidelines 2
# Name -> arguments of `inversionview explore`. A target alone is read by Monte Carlo.
PAGES = {
  "addition": ("--reader", "addition"),
  "counting": ("--reader", "counting"),
  "ioi": ("--reader", "launch/readers/ioi_smollm2"),
  "smollm2": ("--target", "~/.cache/inversionview_jax/SmolLM2-135M-Instruct.Q4_1.gguf", "--task", "ioi"),
}
SAMPLES = ".iv-samples"
# What is on the page of a reading until all of it is shown.
_BUSY = "[role=progressbar], [data-testid=stStatusWidget], [data-testid=stSpinner]"
_ENCODES = ".iv-features, .ex-in:has-text('Candidates of the decoder')"

# Every text on the page with the contrast of its color and of what lies behind it, least first: [[contrast, text, where], ...].
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = "#000"; canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((v, k) => v * a + below[k] * (1 - a));
  const linear = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const luminance = c => 0.2126 * linear(c[0]) + 0.7152 * linear(c[1]) + 0.0722 * linear(c[2]);
  const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const parent = e => e.assignedSlot || e.parentElement || (e.getRootNode().host ?? null);
  const canvasColor = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
  // Colors behind an element: several where a gradient is.
  const behind = e => {
    const layers = [], own = e.getBoundingClientRect(), x = own.x + own.width / 2, y = own.y + own.height / 2;
    for (let at = e; at; at = parent(at)) {
      const box = at.getBoundingClientRect();  // text may stand beside the box of an ancestor, as the value of a slider does
      if (at !== e && at !== document.body && at !== document.documentElement && box.width && (x < box.left || x > box.right || y < box.top || y > box.bottom)) continue;
      const style = getComputedStyle(at), opacity = Number(style.opacity);
      const thin = /[^.\\d][0-4]px/.test(" " + style.backgroundSize);  // a line below the text
      const stops = !thin && style.backgroundImage.match(/(?:rgba?|color|oklab|oklch|hsla?|lab|lch)\\([^()]*\\)/g);
      const colors = [rgba(style.backgroundColor)];
      layers.push({ colors, stops: stops ? stops.map(rgba) : [], opacity });
    }
    let found = [canvasColor];
    for (const { colors, stops, opacity } of layers.reverse()) {
      found = found.flatMap(below => {
        const base = over([...colors[0].slice(0, 3), colors[0][3] * opacity], below);
        return [base, ...stops.map(([r, g, b, a]) => over([r, g, b, a * opacity], base))];
      });
    }
    return found;
  };
  const drawn = (text, backgrounds) => {  // shapes of a picture that lie behind its text
    const box = text.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
    for (const shape of text.ownerSVGElement.querySelectorAll("rect, circle, ellipse, path, polygon")) {
      if (!(shape.compareDocumentPosition(text) & Node.DOCUMENT_POSITION_FOLLOWING)) continue;
      const b = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      if (style.fill === "none" || style.visibility === "hidden" || x < b.left || x > b.right || y < b.top || y > b.bottom) continue;
      if (!/^(rgb|color|ok|hsl|lab|lch)/.test(style.fill) || shape.tagName === "path") continue;
      const [r, g, bl, a] = rgba(style.fill);
      backgrounds = backgrounds.map(below => over([r, g, bl, a * Number(style.fillOpacity) * Number(style.opacity)], below));
    }
    return backgrounds;
  };
  const all = [];
  const see = (e, text, color) => {
    let opacity = 1;
    for (let at = e; at; at = parent(at)) {
      const style = getComputedStyle(at);
      if (style.visibility === "hidden" || style.display === "none" || Number(style.opacity) === 0 || at.disabled) return;
      opacity *= Number(style.opacity);
    }
    const box = e.getBoundingClientRect();
    if (box.width < 2 || box.height < 2 || /Material/.test(getComputedStyle(e).fontFamily)) return;
    const svg = e.ownerSVGElement, style = getComputedStyle(e);
    const [r, g, b, a] = rgba(color ?? (svg ? style.fill : style.color));
    const alpha = a * opacity * (svg ? Number(style.fillOpacity) : 1);
    const least = Math.min(...(svg ? drawn(e, behind(e)) : behind(e)).map(back => contrast(over([r, g, b, alpha], back), back)));
    all.push([least, text.slice(0, 60), e.tagName.toLowerCase() + (e.getAttribute("class") ? "." + e.getAttribute("class") : "")]);
  };
  const walk = root => {
    for (const e of root.querySelectorAll("*")) {
      if (["STYLE", "SCRIPT", "TITLE", "NOSCRIPT", "OPTION"].includes(e.tagName.toUpperCase())) continue;
      const text = [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join(" ").trim();
      if (text) see(e, text);
      if (e.placeholder && !e.value) see(e, e.placeholder, getComputedStyle(e, "::placeholder").color);
      else if (e.tagName === "INPUT" && e.value && !["range", "checkbox", "radio", "file"].includes(e.type)) see(e, e.value);
      if (e.shadowRoot) walk(e.shadowRoot);
    }
  };
  walk(document);
  return all.sort((a, b) => a[0] - b[0]);
}"""
# By how many pixels the page, or one of its boxes, is wider than the window.
SIDEWAYS = """() => {
  let most = document.documentElement.scrollWidth - innerWidth;
  const walk = root => { for (const e of root.querySelectorAll("*")) {
    if (e.classList.contains("inversionview")) most = Math.max(most, e.getBoundingClientRect().right - innerWidth);
    if (e.shadowRoot) walk(e.shadowRoot);
  } };
  walk(document);
  return Math.ceil(most);
}"""


@dataclasses.dataclass
class Times:
  """Seconds from the start of the process, and what is wrong with the page at the end."""

  answers: float = 0.0
  paint: float = 0.0
  tokens: float = 0.0
  samples: float = 0.0
  all: float = 0.0
  sideways: int = 0
  contrast: float = 0.0
  worst: str = ""
  errors: tuple[str, ...] = ()

  @property
  def wrong(self) -> bool:
    """Whether there is an error, a page that scrolls sideways, or text that is hard to read."""
    return bool(self.errors) or self.sideways > 0 or self.contrast < LEAST_CONTRAST


def free_port() -> int:
  """A port of this machine that nothing listens on."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def answers(port: int) -> bool:
  """Whether a server listens there."""
  with socket.socket() as probe:
    probe.settimeout(1)
    return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def served(
  argv: Sequence[str], log: pathlib.Path, program: Sequence[str] = ("-m", "inversionview_jax.cli"), cwd: pathlib.Path = ROOT,
  environment: Mapping[str, str] = {},
) -> Iterator[tuple[str, float]]:  # fmt: skip
  """Starts `inversionview explore` as a process of its own, and ends it.

  Args:
    argv: of the command.
    log: file that its output goes to.
    program: of the interpreter, in place of the command line.
    cwd: folder that it starts in.
    environment: variables that it has besides.

  Yields:
    The address of the page, which answers, and `time.perf_counter` at the start of the process.

  Raises:
    RuntimeError: it ends before it answers.
  """
  port, start = free_port(), time.perf_counter()
  words = [os.path.expanduser(word) for word in argv]
  with open(log, "w") as out:
    process = subprocess.Popen(
      [sys.executable, *program, "explore", *words, "--port", str(port), "--no-browser"],
      cwd=cwd, env={**os.environ, **environment}, stdout=out, stderr=out,
    )  # fmt: skip
  try:
    while not answers(port):
      if process.poll() is not None:
        raise RuntimeError(f"the server ended: {log.read_text()}")
      time.sleep(0.02)
    yield f"http://127.0.0.1:{port}/", start
  finally:
    process.terminate()
    process.wait(60)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
  """A headless Chromium of playwright's; ends the program where one of the two is missing."""
  try:
    from playwright.sync_api import sync_playwright
  except ModuleNotFoundError:
    sys.exit("pages.py: playwright is not installed: pip install playwright")
  if CHROMIUM is None:
    sys.exit("pages.py: no Chromium is on the path")
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    try:
      yield browser
    finally:
      browser.close()


def new_page(browser: Any, width: int = 1440, height: int = 900, dark: bool = False, scale: float = 1) -> Any:
  """An empty page; `page.errors` is the list of its console errors and exceptions."""
  context = browser.new_context(
    viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", device_scale_factor=scale
  )
  context.set_default_timeout(300_000)
  page = context.new_page()
  page.errors = []
  page.on("console", lambda message: page.errors.append(message.text) if message.type == "error" else None)
  page.on("pageerror", lambda error: page.errors.append(str(error)))
  return page


def wait_for_all(page: Any) -> None:
  """Waits until nothing is drawn any more."""
  quiet = 0
  while quiet < 4:
    page.wait_for_timeout(100)
    quiet = 0 if page.locator(_BUSY).count() else quiet + 1


def measure(browser: Any, argv: Sequence[str], width: int, dark: bool, log: pathlib.Path) -> tuple[Times, Any]:
  """Starts a page and waits for it; the page stays open, its server does not."""
  page, times = new_page(browser, width, 900 if width > 600 else 844, dark), Times()
  page.goto("about:blank")
  with served(argv, log) as (url, start):
    times.answers = time.perf_counter() - start
    page.goto(url, wait_until="commit")
    opened = time.perf_counter()
    page.wait_for_selector("h1", state="attached")
    heading = time.perf_counter()
    page.wait_for_selector(".ex-token")
    times.tokens = time.perf_counter() - start
    page.wait_for_selector(SAMPLES)
    times.samples = time.perf_counter() - start
    page.wait_for_selector(_ENCODES)
    wait_for_all(page)
    times.all = time.perf_counter() - start
    painted = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
    times.paint = (heading if painted is None else opened + painted / 1000) - start
    (times.contrast, text, where), *_ = page.evaluate(CONTRASTS)
    times.worst, times.sideways, times.errors = f"{text!r} in {where}", page.evaluate(SIDEWAYS), tuple(page.errors)
  return times, page


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("times", "picture"))
  parser.add_argument("--page", action="append", choices=list(PAGES), help="of these alone (may be repeated)")
  parser.add_argument("--wide", type=int, default=1440, help="pixels of the window (default: 1440)")
  parser.add_argument("--dark", action="store_true", help="with the dark colors")
  parser.add_argument("--out", type=pathlib.Path, default=ROOT / "configs" / "explorer.png", help="of the picture")
  parser.add_argument("--log", type=pathlib.Path, default=pathlib.Path(os.devnull), help="what the server prints")
  args = parser.parse_args(argv)
  with chromium() as browser:
    if args.what == "picture":
      picture(browser, args.out, args.log)
      return 0
    return show_times(browser, args)


def show_times(browser: Any, args: argparse.Namespace) -> int:
  """Prints a line for each page, and what is wrong with it."""
  wrong = False
  print(
    f"{'page':10} {'load':>5} {'answers':>8} {'paint':>6} {'tokens':>7} {'samples':>8} {'all':>6} {'sideways':>9} {'contrast':>9}"
  )
  for name in args.page or PAGES:
    load = os.getloadavg()[0]
    times, page = measure(browser, PAGES[name], args.wide, args.dark, args.log)
    page.context.close()
    print(
      f"{name:10} {load:5.1f} {times.answers:8.2f} {times.paint:6.2f} {times.tokens:7.2f} {times.samples:8.2f} {times.all:6.2f} "
      f"{times.sideways:9d} {times.contrast:9.2f}", flush=True,
    )  # fmt: skip
    if times.contrast < LEAST_CONTRAST:
      print(f"  least contrast: {times.worst}")
    for error in times.errors:
      print(f"  error: {error[:300]}")
    wrong |= times.wrong
  return int(wrong)


def picture(browser: Any, out: pathlib.Path, log: pathlib.Path) -> None:
  """Writes the picture of the page that opens with the shipped readers."""
  page = new_page(browser, scale=1)
  with served((), log) as (url, _):
    page.goto(url)
    page.wait_for_selector(_ENCODES)
    wait_for_all(page)
    out.write_bytes(page.screenshot())
  page.context.close()
  print(f"{out.relative_to(ROOT) if out.is_relative_to(ROOT) else out} is written")


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
