"""The page that Streamlit runs from top to bottom at every click; its state is a `View`, kept in the session and in the address."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import streamlit as st

from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render import DisplayOptions, to_page
from inversionview_jax.show.explorer import panels, service
from inversionview_jax.show.explorer.pane import pane
from inversionview_jax.show.explorer.state import MOST_SHOWN, PANELS, SAMPLES, View, numbers
from inversionview_jax.tasks import Task

_CUSTOM = "custom"
_STYLE = """<style>
.stMainBlockContainer{padding:2.2rem clamp(.8rem,3vw,2.5rem) 4rem;max-width:88rem}
.stMainBlockContainer h1{font-size:1.5rem;padding:0;font-weight:650}
[data-testid="stHeader"]{background:none}
@media(max-width:48rem){.stMainBlockContainer{padding-top:3.4rem}}
[data-testid="stVerticalBlock"]{gap:.8rem}
</style>"""


def main() -> None:
  """The whole page."""
  st.set_page_config("InversionView", page_icon=str(pathlib.Path(__file__).parent / "icon.svg"), layout="wide")
  st.html(_STYLE)
  readers = service.current()
  _from_address(readers)
  _settings(readers)
  view: View = st.session_state.view
  st.title("What does this activation encode?", anchor=False)
  for message in st.session_state.pop("errors", []):
    _alert(message)
  try:
    readers.reader(view.reader)
  except InversionViewError as error:
    _alert(str(error))
  else:
    _input(readers, view)
  _to_address(st.session_state.view)


# The address and the session.


def _from_address(readers: service.Service) -> None:
  """Takes the view from the address when a page opens, and when the address was changed in the browser (back, forward)."""
  params = {name: st.query_params.get_all(name) for name in st.query_params}
  if "view" in st.session_state and params == st.session_state.address:
    return
  name = params.get("reader", [next(iter(readers.names))])[-1]
  start: dict[str, Any] = {"reader": name}
  try:
    with st.spinner("loading the reader"):
      start |= readers.start(name)
  except InversionViewError:
    pass  # the page shows the error in place of the reader
  st.session_state.view, st.session_state.errors = View(**start).read(params)
  st.session_state.address = params


def _to_address(view: View) -> None:
  """Writes the view into the address."""
  params = {name: value if isinstance(value, list) else [value] for name, value in view.to_params().items()}
  if params != st.session_state.address:
    st.session_state.address = params
    st.query_params.from_dict(params)


def _set(**changes: Any) -> None:
  """Changes fields of the view."""
  st.session_state.view = dataclasses.replace(st.session_state.view, **changes)


def _on_click(action: str) -> None:
  """Applies a click in a pane to the view."""
  try:
    st.session_state.view = st.session_state.view.after_click(action)
  except InversionViewError as error:
    st.session_state.errors = [str(error)]


def _alert(message: str) -> None:
  """Shows an error message."""
  pane(f"alert {message}", panels.alert(message), _on_click)


# The settings: each control shows a field of the view and changes it.


def _control(
  make: Callable, name: str, *args: Any, shown: Any = None, change: Callable[[Any], dict] | None = None, **kwargs: Any
) -> Any:
  """A widget for one field of the view.

  Args:
    make: the function of Streamlit that makes the widget.
    name: of the field.
    shown: the value that the widget shows, where it is not that of the field.
    change: the changes of the view for a value of the widget; by default the field becomes the value.
    *args, **kwargs: for `make`.
  """
  view, key = st.session_state.view, f"control {name}"
  st.session_state[key] = getattr(view, name) if shown is None else shown

  def changed() -> None:
    value = st.session_state[key]
    try:
      _set(**(change(value) if change else {name: value}))
    except InversionViewError as error:
      st.session_state.errors = [str(error)]

  return make(*args, key=key, on_change=changed, **kwargs)


def _settings(readers: service.Service) -> None:
  """The controls in the sidebar."""
  view: View = st.session_state.view
  with st.sidebar:
    known = list(readers.names)
    names = known if view.reader in known else [view.reader, *known]
    _control(st.selectbox, "reader", "Reader", names, change=lambda name: _other_reader(readers, name))
    try:
      task = readers.reader(view.reader).task
    except InversionViewError:
      return  # the page shows the error
    metric = view.metric or task.metric
    _control(st.radio, "metric", "Distance", list(METRICS), shown=metric, format_func=lambda m: METRICS[m].capitalize())
    _control(
      st.toggle, "match", "Only at this position", shown=view.match == "position",
      change=lambda on: {"match": "position" if on else "anywhere"},
      help="Off: each sample counts with the nearest of its positions. On: with the position of the query.",
    )  # fmt: skip
    own = bool(view.temperatures or view.noise)
    mixtures = [*task.mixtures, _CUSTOM]
    chosen = _CUSTOM if own else view.mixture or next(iter(task.mixtures))
    if chosen not in mixtures:
      mixtures = [chosen, *mixtures]
    _control(st.selectbox, "mixture", "Sampling", mixtures, shown=chosen, change=lambda name: _mixture(task, name))
    if own:
      for name, label in (("temperatures", "Temperatures"), ("noise", "Noise, for each or for all")):
        text = ", ".join(f"{v:g}" for v in getattr(view, name))
        _control(st.text_input, name, label, shown=text, change=functools.partial(_numbers, name))
    elif view.notes and chosen in task.mixtures:
      pairs = ", ".join(f"({t:g}, {eta:g})" for t, eta in task.mixtures[chosen].settings)
      st.caption(f"(temperature, noise): {pairs}")
    _control(st.select_slider, "samples", "Candidates", SAMPLES)
    _control(st.number_input, "shown", "Shown", 1, MOST_SHOWN, step=10)
    _control(st.number_input, "seed", "Seed", 0, 2**32 - 1, step=1)
    _control(st.toggle, "colors", "Colors")
    _control(st.toggle, "notes", "Descriptions")


def _other_reader(readers: service.Service, name: str) -> dict[str, Any]:
  """The changes of the view when another reader is chosen: its first query, and the settings of its task."""
  try:
    start = readers.start(name)
  except InversionViewError:
    start = {}  # the page shows the error
  return {"reader": name, "metric": "", "epsilon": None, "mixture": "", "head": "", **start}


def _numbers(name: str, text: str) -> dict[str, tuple[float, ...]]:
  """The changes of the view for a list of numbers as text."""
  return {name: numbers(name, text)}


def _mixture(task: Task, name: str) -> dict[str, Any]:
  """The changes of the view when another mixture is chosen; a custom one starts with the settings of the task's own."""
  if name != _CUSTOM:
    return {"mixture": "" if name == next(iter(task.mixtures)) else name, "temperatures": (), "noise": ()}
  pairs = task.mixture.settings
  return {"mixture": "", "temperatures": tuple(t for t, _ in pairs), "noise": tuple(eta for _, eta in pairs)}


# The page.


def _input(readers: service.Service, view: View) -> None:
  """The input, its tokens, and the chosen panel."""
  with st.container(horizontal=True, vertical_alignment="bottom"):
    _control(st.text_input, "text", "Input", width="stretch", change=lambda text: {"text": text.strip()})
    st.button("Random", on_click=lambda: _set(text=readers.random_text(view.reader)), help="Another input of the task")
  try:
    encoded = readers.input(view.reader, view.text)
    readers.reader(view.reader).site_index(view.site)
  except InversionViewError as error:
    _alert(str(error))
    return
  pane("tokens", panels.token_strip(view, encoded), _on_click)
  labels = PANELS | {"pinned": f"Pinned ({len(view.pins)})"}
  _control(
    st.segmented_control, "panel", "View", list(PANELS), format_func=labels.get, label_visibility="collapsed",
    change=lambda name: {"panel": name or view.panel},
  )  # fmt: skip
  shows = {"reading": _reading, "sites": _sites, "positions": _positions, "attention": _attention, "pinned": _pinned}
  try:
    shows[view.panel](readers, view, encoded)
  except InversionViewError as error:
    _alert(str(error))


def _preimage(readers: service.Service, view: View, samples: int | None = None) -> Preimage:
  """The preimage of the view, with a progress bar while it is drawn."""
  if (preimage := readers.known(view, samples)) is not None:
    return preimage
  bar = st.progress(0.0, "drawing candidates")
  try:
    return readers.preimage(
      view, samples, lambda done, total: bar.progress(done / total, f"{done} of {total} candidates")
    )
  finally:
    bar.empty()


def _reading(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The preimage of the view, the map of sites, and what the activation encodes."""
  del encoded
  left, right = st.columns([3, 5], gap="medium")
  with left:
    map_slot, features_slot = st.empty(), st.container()
  with right:
    preimage = _preimage(readers, view)
    pane("reading", panels.reading(view, preimage), _on_click, [panels.slider_data(preimage, view)])
    with st.container(horizontal=True):
      pinned = view.here in view.pins
      st.button("Pinned" if pinned else "Pin", on_click=_on_click, args=("pin",), disabled=pinned)
      _downloads([preimage], view)
  with map_slot:
    names = readers.reader(view.reader).config.sites
    known = functools.partial(_known, readers, view)
    pane("sites", panels.site_map(view, names, known), _on_click)
  with features_slot:
    _features(readers, view, preimage)


def _features(readers: service.Service, view: View, preimage: Preimage) -> None:
  """What the activation encodes, and a button that measures the information in bits."""
  measure = st.session_state.pop("measure", False)
  with st.spinner("measuring bits") if measure else contextlib.nullcontext():
    information = readers.information(view, preimage, measure=measure)
  pane("features", panels.encoded_features(view, readers.reading(view, preimage), information), _on_click)
  if information is None:
    st.button(
      "Measure bits",
      on_click=lambda: st.session_state.update(measure=True),
      help="log2 of 1 over the share of inputs inside ε; at this ε",
    )


def _known(readers: service.Service, view: View, site: str) -> Preimage | None:
  """The preimage of another site for the same input and position if it has been drawn, with all candidates or with few."""
  view = dataclasses.replace(view, site=site)
  preimage = readers.known(view)
  return readers.known(view, service.SKETCH_SAMPLES) if preimage is None else preimage


def _downloads(preimages: list[Preimage], view: View) -> None:
  """Buttons that save the preimages as a page and, of a single one, as JSON."""
  name = re.sub(
    r"[^\w.-]+",
    "_",
    f"{preimages[0].query.site}-{preimages[0].query.label or preimages[0].query.position}-{preimages[0].query.text}",
  )
  options = DisplayOptions(view.shown, view.colors, view.notes)
  st.download_button(
    "Page",
    lambda: to_page(preimages, options=options),
    f"{name}.html",
    "text/html",
    on_click="ignore",
    help="One file, to keep or to send",
  )
  if len(preimages) == 1:
    st.download_button(
      "JSON",
      lambda: preimages[0].to_json(),
      f"{name}.json",
      "application/json",
      on_click="ignore",
      help="All candidates",
    )


def _sites(readers: service.Service, view: View, encoded: service.Input) -> None:
  """A small panel for each site of the reader."""
  del encoded
  _grid(readers, view, [(name, {"site": name}) for name in readers.reader(view.reader).config.sites])


def _positions(readers: service.Service, view: View, encoded: service.Input) -> None:
  """A small panel for each position where the reader was trained to read."""
  parts = []
  for k, string in enumerate(encoded.strings):
    name = encoded.name(k)
    if name in encoded.query_positions:
      parts.append((name if name == string else f"{string}  {name}", {"position": name}))
  _grid(readers, view, parts)


def _grid(readers: service.Service, view: View, parts: Sequence[tuple[str, dict[str, Any]]]) -> None:
  """Small panels of (name, changes of the view), drawn with few candidates."""
  views = [dataclasses.replace(view, **changes) for _, changes in parts]
  preimages = [readers.known(v, service.SKETCH_SAMPLES) for v in views]
  if None in preimages:
    bar = st.progress(0.0, "drawing candidates")
    for k, v in enumerate(views):
      if preimages[k] is None:
        preimages[k] = readers.preimage(v, service.SKETCH_SAMPLES)
      bar.progress((k + 1) / len(views), f"{k + 1} of {len(views)} panels")
    bar.empty()
  pane("grid", panels.grid(view, [(*part, p) for part, p in zip(parts, preimages, strict=True)]), _on_click)


def _attention(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The attention patterns of the input."""
  del readers
  pane("attention", panels.attention(view, encoded), _on_click)


def _pinned(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The pinned readings, with one epsilon for all."""
  del encoded
  if not view.pins:
    st.caption("Nothing is pinned yet: open a reading and press Pin.")
    return
  results: list[Preimage | str] = []
  for pin in view.pins:
    try:
      results.append(_preimage(readers, view.at(pin)))
    except InversionViewError as error:
      results.append(str(error))
  preimages = [p for p in results if not isinstance(p, str)]
  if view.epsilon is None and preimages:  # tasks differ in theirs
    results = [p if isinstance(p, str) else p.at(preimages[0].epsilon) for p in results]
  readings = [None if isinstance(p, str) else panels.slider_data(p, view) for p in results]
  pane("pinned", panels.pinned(view, results), _on_click, readings)
  if preimages:
    with st.container(horizontal=True):
      _downloads(preimages, view)


main()
