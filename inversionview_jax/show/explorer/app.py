"""The page that Streamlit runs, from top to bottom at every click; what is looked at is a `View`, kept in the session and in the address."""

import contextlib
import dataclasses
import pathlib
import re

import streamlit as st

from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage.render import Look, to_page
from inversionview_jax.show.explorer import panels, service
from inversionview_jax.show.explorer.pane import pane
from inversionview_jax.show.explorer.state import MOST_SHOWN, PANELS, SAMPLES, View, numbers

_OWN = "my own"
_STYLE = """<style>
.stMainBlockContainer{padding:2.2rem clamp(.8rem,3vw,2.5rem) 4rem;max-width:88rem}
.stMainBlockContainer h1{font-size:1.5rem;padding:0;font-weight:650}
[data-testid="stHeader"]{background:none}
@media(max-width:48rem){.stMainBlockContainer{padding-top:3.4rem}}
[data-testid="stVerticalBlock"]{gap:.8rem}
</style>"""


def main() -> None:
  st.set_page_config("InversionView", page_icon=str(pathlib.Path(__file__).parent / "icon.svg"), layout="wide")
  st.html(_STYLE)
  readers = service.current()
  _from_address(readers)
  _settings(readers)
  view: View = st.session_state.view
  st.title("What does this activation say?", anchor=False)
  for complaint in st.session_state.pop("complaints", []):
    _alert(complaint)
  try:
    readers.reader(view.reader)
  except InversionViewError as error:
    _alert(str(error))
  else:
    _input(readers, view)
  _to_address(st.session_state.view)


# The address and the session.


def _from_address(readers: service.Service) -> None:
  """Takes the view from the address when a page opens, and when the address changes without us (back, forward)."""
  params = {name: st.query_params.get_all(name) for name in st.query_params}
  if "view" in st.session_state and params == st.session_state.address:
    return
  name = params.get("reader", [next(iter(readers.names))])[-1]
  start = {"reader": name}
  try:
    with st.spinner("loading the reader"):
      start |= readers.start(name)
  except InversionViewError:
    pass  # the page says so where the reader would be
  st.session_state.view, st.session_state.complaints = View(**start).read(params)
  st.session_state.address = params


def _to_address(view: View) -> None:
  params = {name: value if isinstance(value, list) else [value] for name, value in view.to_params().items()}
  if params != st.session_state.address:
    st.session_state.address = params
    st.query_params.from_dict(params)


def _set(**changes) -> None:
  st.session_state.view = dataclasses.replace(st.session_state.view, **changes)


def _picked(said: str) -> None:
  """Something of a pane was clicked."""
  try:
    st.session_state.view = st.session_state.view.picked(said)
  except InversionViewError as error:
    st.session_state.complaints = [str(error)]


def _alert(message: str) -> None:
  pane(f"alert {message}", panels.alert(message), _picked)


# The settings: each control shows what the view says and changes the view.


def _control(make, name: str, *args, said=None, change=None, **kwargs):
  """A widget for one part of the view; `change` makes of its value what the view holds."""
  view, key = st.session_state.view, f"control {name}"
  st.session_state[key] = getattr(view, name) if said is None else said

  def changed() -> None:
    value = st.session_state[key]
    try:
      _set(**(change(value) if change else {name: value}))
    except InversionViewError as error:
      st.session_state.complaints = [str(error)]

  return make(*args, key=key, on_change=changed, **kwargs)


def _settings(readers: service.Service) -> None:
  view: View = st.session_state.view
  with st.sidebar:
    known = list(readers.names)
    names = known if view.reader in known else [view.reader, *known]
    _control(st.selectbox, "reader", "Reader", names, change=lambda name: _other_reader(readers, name))
    try:
      task = readers.reader(view.reader).task
    except InversionViewError:
      return  # said on the page
    metric = view.metric or task.metric
    _control(st.radio, "metric", "Distance", list(METRICS), said=metric, format_func=lambda m: METRICS[m].capitalize())
    _control(
      st.toggle, "match", "Only at this position", said=view.match == "position",
      change=lambda on: {"match": "position" if on else "anywhere"},
      help="Off: each sample counts with the nearest of its positions. On: with the position of the query.",
    )  # fmt: skip
    own = bool(view.temperatures or view.noise)
    mixtures = [*task.mixtures, _OWN]
    chosen = _OWN if own else view.mixture or next(iter(task.mixtures))
    if chosen not in mixtures:
      mixtures = [chosen, *mixtures]
    _control(st.selectbox, "mixture", "Sampling", mixtures, said=chosen, change=lambda name: _mixture(task, name))
    if own:
      for name, label in (("temperatures", "Temperatures"), ("noise", "Noise, for each or for all")):
        text = ", ".join(f"{v:g}" for v in getattr(view, name))
        _control(st.text_input, name, label, said=text, change=lambda said, name=name: {name: numbers(name, said)})
    elif view.notes and chosen in task.mixtures:
      pairs = ", ".join(f"({t:g}, {eta:g})" for t, eta in task.mixtures[chosen].settings)
      st.caption(f"(temperature, noise): {pairs}")
    _control(st.select_slider, "samples", "Candidates", SAMPLES)
    _control(st.number_input, "shown", "Shown", 1, MOST_SHOWN, step=10)
    _control(st.number_input, "seed", "Seed", 0, 2**32 - 1, step=1)
    _control(st.toggle, "colors", "Colours")
    _control(st.toggle, "notes", "Descriptions")


def _other_reader(readers: service.Service, name: str) -> dict:
  try:
    start = readers.start(name)
  except InversionViewError:
    start = {}  # said on the page
  return {"reader": name, "metric": "", "epsilon": None, "mixture": "", "head": "", **start}


def _mixture(task, name: str) -> dict:
  if name != _OWN:
    return {"mixture": "" if name == next(iter(task.mixtures)) else name, "temperatures": (), "noise": ()}
  pairs = task.mixture.settings
  return {"mixture": "", "temperatures": tuple(t for t, _ in pairs), "noise": tuple(eta for _, eta in pairs)}


# The page.


def _input(readers: service.Service, view: View) -> None:
  with st.container(horizontal=True, vertical_alignment="bottom"):
    _control(st.text_input, "text", "Input", width="stretch", change=lambda text: {"text": text.strip()})
    st.button("Random", on_click=lambda: _set(text=readers.random_text(view.reader)), help="Another input of the task")
  try:
    seen = readers.input(view.reader, view.text)
    readers.reader(view.reader).site_index(view.site)
  except InversionViewError as error:
    _alert(str(error))
    return
  pane("tokens", panels.token_strip(view, seen), _picked)
  labels = PANELS | {"pinned": f"Pinned ({len(view.pins)})"}
  _control(
    st.segmented_control, "panel", "View", list(PANELS), format_func=labels.get, label_visibility="collapsed",
    change=lambda name: {"panel": name or view.panel},
  )  # fmt: skip
  shows = {"reading": _reading, "sites": _sites, "positions": _positions, "attention": _attention, "pinned": _pinned}
  try:
    shows[view.panel](readers, view, seen)
  except InversionViewError as error:
    _alert(str(error))


def _drawn(readers: service.Service, view: View, samples: int | None = None):
  """The preimage of the view, with a bar while it is drawn."""
  if (found := readers.known(view, samples)) is not None:
    return found
  bar = st.progress(0.0, "drawing candidates")
  try:
    return readers.preimage(
      view, samples, lambda done, total: bar.progress(done / total, f"{done} of {total} candidates")
    )
  finally:
    bar.empty()


def _reading(readers: service.Service, view: View, seen: service.Input) -> None:
  del seen
  left, right = st.columns([3, 5], gap="medium")
  with left:
    place, said = st.empty(), st.container()
  with right:
    found = _drawn(readers, view)
    pane("reading", panels.reading(view, found), _picked, [panels.measured(found, view)])
    with st.container(horizontal=True):
      pinned = view.here in view.pins
      st.button("Pinned" if pinned else "Pin", on_click=_picked, args=("pin",), disabled=pinned)
      _downloads([found], view)
  with place:
    names = readers.reader(view.reader).config.sites
    pane(
      "sites",
      panels.site_map(view, names, lambda site: _glimpse(readers, dataclasses.replace(view, site=site))),
      _picked,
    )
  with said:
    wanted = st.session_state.pop("measure", False)
    with st.spinner("measuring bits") if wanted else contextlib.nullcontext():
      information = readers.information(view, found, measure=wanted)
    pane("says", panels.says(view, readers.saying(view, found), information), _picked)
    if information is None:
      st.button(
        "Measure bits",
        on_click=lambda: st.session_state.update(measure=True),
        help="log2 of 1 over the share of inputs inside ε; at this ε",
      )


def _glimpse(readers: service.Service, view: View):
  """What has been drawn of a place, if anything: a whole reading, or the few of a small panel."""
  found = readers.known(view)
  return readers.known(view, service.SKETCH) if found is None else found


def _downloads(found, view: View) -> None:
  name = re.sub(
    r"[^\w.-]+", "_", f"{found[0].query.site}-{found[0].query.label or found[0].query.position}-{found[0].query.text}"
  )
  look = Look(view.shown, view.colors, view.notes)
  st.download_button(
    "Page",
    lambda: to_page(found, look=look),
    f"{name}.html",
    "text/html",
    on_click="ignore",
    help="One file, to keep or to send",
  )
  if len(found) == 1:
    st.download_button(
      "JSON", lambda: found[0].to_json(), f"{name}.json", "application/json", on_click="ignore", help="All candidates"
    )


def _sites(readers: service.Service, view: View, seen: service.Input) -> None:
  names = readers.reader(view.reader).config.sites
  _grid(readers, view, [(name, {"site": name}) for name in names])


def _positions(readers: service.Service, view: View, seen: service.Input) -> None:
  _grid(readers, view, [(f"{seen.strings[k]}  {name}" if (name := seen.name(k)) != seen.strings[k] else name, {"position": name})
                        for k in range(len(seen.strings)) if seen.name(k) in seen.asked])  # fmt: skip


def _grid(readers: service.Service, view: View, places) -> None:
  views = [dataclasses.replace(view, **said) for _, said in places]
  found = [readers.known(v, service.SKETCH) for v in views]
  if None in found:
    bar = st.progress(0.0, "drawing candidates")
    for k, v in enumerate(views):
      if found[k] is None:
        found[k] = readers.preimage(v, service.SKETCH)
      bar.progress((k + 1) / len(views), f"{k + 1} of {len(views)} places")
    bar.empty()
  pane("grid", panels.grid(view, [(*place, p) for place, p in zip(places, found, strict=True)]), _picked)


def _attention(readers: service.Service, view: View, seen: service.Input) -> None:
  del readers
  pane("attention", panels.attention(view, seen), _picked)


def _pinned(readers: service.Service, view: View, seen: service.Input) -> None:
  del seen
  if not view.pins:
    st.caption("Nothing is pinned yet: open a reading and press Pin.")
    return
  found = []
  for pin in view.pins:
    try:
      found.append(_drawn(readers, view.at(pin)))
    except InversionViewError as error:
      found.append(str(error))
  preimages = [p for p in found if not isinstance(p, str)]
  if view.epsilon is None and preimages:  # one line for all
    found = [p if isinstance(p, str) else p.at(preimages[0].epsilon) for p in found]
  readings = [None if isinstance(p, str) else panels.measured(p, view) for p in found]
  pane("pinned", panels.pinned(view, found), _picked, readings)
  if preimages:
    with st.container(horizontal=True):
      _downloads(preimages, view)


main()
