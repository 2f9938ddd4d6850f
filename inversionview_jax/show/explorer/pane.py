"""A part of the page in the browser: shows HTML made in Python, and sends clicks back.

The HTML comes from `panels`, escaped there. The script moves epsilon from the distances it was given, so that the line follows the slider;
when the slider rests it sends the new epsilon, and Python chooses samples for it from the candidates that are drawn, or draws particles anew.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from inversionview_jax.preimage.render.style import STYLE
from inversionview_jax.show.circuit_picture.style import NODE_STYLE, PICTURE_STYLE

_SCRIPT = """
const LOW = 1e-3, HIGH = 2;
const axis = d => d > LOW ? Math.min(Math.log(d / LOW) / Math.log(HIGH / LOW), 1) : 0;
const value = x => Number((LOW * (HIGH / LOW) ** x).toPrecision(3));
const percent = (part, whole) => part && part < whole
  ? Math.min(Math.max(Math.round(100 * part / whole), 1), 99) + " %" : part ? "100 %" : "0 %";

function move(root, readings, epsilon, from) {
  const limit = Math.fround(epsilon);
  for (const part of root.querySelectorAll("[data-reading]")) {
    const reading = readings[part.dataset.reading];
    if (!reading) continue;
    const share = part.querySelector("[data-percent]");
    if (share) {
      let inside = 0;
      for (const d of reading.distances) if (d <= limit) inside++;
      share.textContent = percent(inside, reading.distances.length);
      part.querySelector("[data-inside]").textContent = inside;
      part.querySelector("[data-value]").textContent = epsilon;
    }
    // Particles belong to the epsilon they were drawn for; the server draws others when the slider rests.
    part.classList.toggle("ex-stale", "drawn" in part.dataset && Number(part.dataset.drawn) !== Number(epsilon));
    part.querySelector(".iv-hist").style.setProperty("--x", 100 * axis(epsilon) + "%");
    const table = part.querySelector(".iv-samples"), line = table.querySelector(".iv-line");
    table.style.setProperty("--full", 3 * epsilon);
    line.querySelector("div").textContent = "ε = " + epsilon;
    const rows = [...table.tBodies[0].rows].filter(row => row !== line);
    let k = 0;
    while (k < rows.length && reading.rows[k] <= limit) k++;
    table.tBodies[0].insertBefore(line, rows[k] || null);
  }
  const slider = root.querySelector("[data-epsilon]"), exact = root.querySelector("[data-exact]");
  if (slider && from !== slider) slider.value = 1000 * axis(epsilon);
  if (slider) slider.setAttribute("aria-valuetext", epsilon);
  if (exact && from !== exact) exact.value = epsilon;
}

const focusKey = element => element && (element.dataset.pick ? "p" + element.dataset.pick
  : "epsilon" in element.dataset ? "e" : "exact" in element.dataset ? "x" : null);

export default function(component) {
  const { data, parentElement, setTriggerValue } = component;
  const root = parentElement.querySelector(".ex-root");
  const state = root.state || (root.state = { html: null, held: false, timer: 0 });
  state.data = data;
  state.readings = JSON.parse(data.readings);
  state.send = action => setTriggerValue("pick", action);
  state.show = () => {
    if (state.held || state.html === state.data.html) return;
    const active = focusKey(root.getRootNode().activeElement);
    state.html = state.data.html;
    root.innerHTML = state.html;
    if (active) for (const element of root.querySelectorAll("button,input,[data-pick]")) {
      if (focusKey(element) === active) { element.focus({ preventScroll: true }); break; }
    }
  };
  state.show();
  if (state.ready) return;
  state.ready = true;

  const settle = epsilon => {
    clearTimeout(state.timer);
    state.timer = setTimeout(() => { state.held = false; state.send("epsilon=" + epsilon); }, 80);
  };
  root.addEventListener("click", event => {
    const button = event.target.closest("[data-pick]");
    if (button) state.send(button.dataset.pick);
  });
  root.addEventListener("input", event => {
    const from = event.target;
    const epsilon = "epsilon" in from.dataset ? value(from.value / 1000) : Number(from.value);
    if (!(epsilon > 0 && isFinite(epsilon))) return;
    state.held = true;  // updates from Python must not replace the slider while it is dragged
    clearTimeout(state.timer);
    move(root, state.readings, epsilon, from);
  });
  root.addEventListener("change", event => {
    const from = event.target;
    const epsilon = "epsilon" in from.dataset ? value(from.value / 1000) : Number(from.value);
    if (epsilon > 0 && isFinite(epsilon)) settle(epsilon);
    else { state.held = false; state.html = null; state.show(); }
  });
  // Links in a picture, which are no buttons, answer to the same keys.
  root.addEventListener("keydown", event => {
    const link = event.target.closest("[data-pick]");
    if (!link || link.tagName === "BUTTON" || !["Enter", " "].includes(event.key)) return;
    event.preventDefault();
    state.send(link.dataset.pick);
  });
  // Arrow keys move the focus to the nearest button in their direction.
  root.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const group = event.target.closest("[data-keys]");
    if (!way || !group || event.target.tagName !== "BUTTON") return;
    const middle = e => { const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; };
    const [x, y] = middle(event.target);
    let best = null, least = Infinity;
    for (const other of group.querySelectorAll("button[data-pick]")) {
      const [u, v] = middle(other), along = (u - x) * way[0] + (v - y) * way[1];
      const aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
      if (along > 2 && along + 3 * aside < least) { best = other; least = along + 3 * aside; }
    }
    if (best) { best.focus(); event.preventDefault(); }
  });
}
"""

_PANEL_STYLE = """
.inversionview{color-scheme:inherit;max-width:none;margin:0 0 .25rem;padding:1rem 1.15rem}
.inversionview.ex-bare{border:0;padding:0;background:none}
.inversionview h3{margin:0 0 .6rem;font-size:.8rem;font-weight:600;color:var(--dim);letter-spacing:.02em}
.inversionview h2{margin:0;font-size:1.15rem;font-weight:400}
.inversionview h2 b{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-weight:700}
.inversionview small{color:var(--dim);font-size:.8rem}
.inversionview :is(button,input){font:inherit;color:inherit}
.inversionview button{background:none;border:1px solid var(--line);border-radius:8px;cursor:pointer;padding:.3rem .5rem}
.inversionview button:hover{border-color:var(--dim)}
.inversionview :is(button,input):focus-visible{outline:2px solid var(--in);outline-offset:2px}
.inversionview button[aria-pressed=true]{border-color:var(--fg);box-shadow:inset 0 0 0 1px var(--fg);font-weight:700}
.ex-tokens{display:flex;flex-wrap:wrap;gap:.3rem}
.inversionview .ex-token{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:1.25rem;line-height:1.2;
min-width:2.1rem;min-height:3rem;padding:.3rem .3rem .15rem;text-align:center;white-space:pre;--e:0;box-sizing:border-box;border-radius:8px}
.inversionview .ex-token small{display:block;font:.68rem system-ui,sans-serif;color:var(--dim);margin-top:.15rem}
.inversionview .ex-token[style] small{color:var(--fg)}
.inversionview .ex-end{font-size:.78rem;color:var(--dim);padding-top:.55rem;border:1px solid transparent}
.inversionview .ex-end[style]{color:var(--fg)}
.inversionview .ex-unusual:not(.ex-end){border-style:dashed}
.inversionview .ex-bare .iv-note,.inversionview.ex-bare .iv-note{margin:.5rem 0 0}
.ex-layer{display:flex;gap:.5rem;align-items:center;margin:0 0 .3rem}
.ex-layer>span{flex:none;width:2.7rem;font-size:.72rem;color:var(--dim)}
.ex-layer>div{flex:1;display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:.25rem}
.inversionview .ex-site{position:relative;overflow:hidden;min-height:2.4rem;padding:.2rem 0;font:600 .76rem ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.inversionview .ex-wide{grid-column:span 2}
.inversionview .iv-features+.iv-note{margin:.6rem 0 0}
.inversionview .ex-site u{position:absolute;left:0;right:0;bottom:0;height:4px;background:linear-gradient(var(--in),var(--in)) 0/var(--r) 100% no-repeat var(--line)}
.inversionview .ex-in{margin:.1rem 0 .4rem;color:var(--dim);font-size:.9rem}
.inversionview .ex-figure{display:flex;flex-wrap:wrap;gap:.1rem .7rem;align-items:baseline;margin:.5rem 0 .6rem;font-variant-numeric:tabular-nums;color:var(--dim);font-size:.87rem}
.inversionview .ex-figure>b{font-size:2rem;line-height:1.1;font-weight:650;color:var(--in);min-width:5.2rem}
.inversionview .ex-warning{margin:-.2rem 0 .6rem;font-size:.87rem;color:var(--eps);font-weight:600}
.ex-stale :is(.ex-figure,.ex-warning,.iv-samples){opacity:.35}
.ex-scale{display:grid;grid-template-columns:minmax(0,1fr) 5.6rem;gap:1rem;align-items:end;margin:0 0 .9rem}
.inversionview .ex-scale .iv-hist{margin:0}
.inversionview .ex-scale input[type=range]{display:block;width:calc(100% + 16px);height:1.7rem;margin:0 -8px;accent-color:var(--eps);cursor:ew-resize}
.ex-scale label{display:flex;gap:.4rem;align-items:center;color:var(--eps);font-weight:600}
.inversionview .ex-scale input[type=number]{box-sizing:border-box;width:100%;border:1px solid var(--line);border-radius:8px;background:none;padding:.2rem .4rem;
color:var(--fg);font-size:.9rem}
.ex-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,14rem),1fr));gap:.9rem}
.ex-small{border:1px solid var(--line);border-radius:10px;padding:.3rem .6rem .5rem;min-width:0}
.ex-small.ex-here{border-color:var(--fg)}
.inversionview .ex-open{display:flex;justify-content:space-between;gap:.5rem;width:100%;border:0;padding:.35rem .1rem;min-height:2.2rem;font-size:.95rem}
.inversionview .ex-open b{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.inversionview .ex-open span{color:var(--dim);font-variant-numeric:tabular-nums}
.ex-small ol{list-style:none;margin:0;padding:0;font-size:.86rem;line-height:1.55}
.ex-small .ex-out{border-left:3px solid var(--out);padding-left:.35rem}
.ex-attention{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,18rem),1fr));gap:1.2rem;margin-top:.6rem}
.ex-thumbs{display:grid;grid-template-columns:repeat(4,1fr);gap:.4rem}
.inversionview .ex-thumb{padding:.4rem;font-size:.75rem}
.ex-chips{display:flex;flex-wrap:wrap;gap:.25rem;margin:0 0 .6rem;align-items:center}
.inversionview .ex-chip{padding:.15rem .55rem;min-height:2rem;font-size:.8rem}
.ex-pins{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,21rem),1fr));gap:1.6rem}
.ex-pin{min-width:0}
.inversionview.iv-alert{border-color:var(--eps);border-left-width:4px;color:var(--fg)}
.inversionview .ex-carries{margin:.1rem 0 .3rem;font-size:.8rem;color:var(--fg)}
.inversionview .ex-words{margin:.5rem 0 0;font-size:.8rem;color:var(--dim)}
.inversionview .ex-words b{color:var(--fg);font-weight:600}
.inversionview.inversionview .ex-compare{width:auto;margin:0 0 .4rem}
.ex-compare~.ex-words,.ex-wider+.ex-words{margin-bottom:1.2rem}
.ex-wider{overflow-x:auto}
.inversionview.inversionview .ex-compare td.ex-dim{color:var(--dim)}.inversionview.inversionview .ex-compare td:last-child:not(.ex-dim){color:inherit}
.inversionview.inversionview .ex-compare :is(td,th,thead th+th){padding:.2rem .9rem .2rem 0;white-space:nowrap;vertical-align:bottom}
.inversionview .ex-compare thead small{display:block;max-width:14rem;overflow:hidden;text-overflow:ellipsis}
.ex-node{display:grid;grid-template-columns:minmax(0,23rem) minmax(0,1fr);gap:1.4rem;align-items:start;margin-top:.8rem}
.ex-node .cp-narrow{display:block}
.ex-circuit .cp-wide{margin-top:.8rem}
.ex-circuit .cp-curve{max-width:30rem;margin:0}
.ex-small-picture{max-height:82vh;overflow:auto}
.ex-row-of{margin:.8rem 0 0;font-size:.87rem}
.ex-row-of td{padding-right:.8rem}
@media(max-width:48rem){.ex-node{grid-template-columns:minmax(0,1fr)}.ex-node>.cp-detail{order:-1}}
@media(max-width:30rem){.inversionview{padding:.8rem .7rem}.inversionview.ex-bare .iv-note{display:none}
}
@media(prefers-reduced-motion:no-preference){.inversionview button{transition:border-color .12s}}
"""


# Of fragments that stand on the page itself and not in a pane, whose rules end at its border.
PREVIEW_STYLE = f"<style>{STYLE}{_PANEL_STYLE}</style>"


@functools.cache
def _component() -> Callable[..., Any]:
  import streamlit as st

  return st.components.v2.component(
    "inversionview_pane",
    html='<div class="ex-root"></div>',
    css=STYLE + PICTURE_STYLE + NODE_STYLE + _PANEL_STYLE,
    js=_SCRIPT,
  )


def pane(key: str, html: str, on_click: Callable[[str], None], readings: Sequence[dict | None] = ()) -> None:
  """Shows HTML of `panels`.

  Args:
    key: of the pane, the same from run to run.
    html: what is shown.
    on_click: called with the `data-pick` of the clicked element, before the page is made again.
    readings: `panels.slider_data` of each reading in it whose epsilon can be moved.
  """
  import streamlit as st

  def on_pick() -> None:
    action = st.session_state[key].get("pick")
    if action:
      on_click(str(action))

  # As strings: of a list, Streamlit asks pandas whether it is a table, and imports it first.
  data = {"html": html, "readings": json.dumps(list(readings))}
  _component()(key=key, data=data, on_pick_change=on_pick)
