"""The page that Streamlit runs from top to bottom at every click; its state is a `View`, kept in the session and in the address."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import streamlit as st

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render import DisplayOptions, to_page
from inversionview_jax.show.explorer import attention, circuits, panels, pins, service
from inversionview_jax.show.explorer.controls import control, set_view, sidebar
from inversionview_jax.show.explorer.drawing import Stopped, drawing, was_stopped
from inversionview_jax.show.explorer.pane import PREVIEW_STYLE, pane
from inversionview_jax.show.explorer.state import PANELS, View

_NO_MEMBERS = (
  "Candidates of the decoder are no sample of the task's inputs, so that what they share need not be encoded; the task has no moves, with which "
  "particles could be drawn."
)
_CANDIDATES = (
  "Candidates of the decoder are no sample of the task's inputs: what they share need not be encoded. Particles of Monte Carlo are one, and "
  "take minutes for a language model."
)
_MOST_SITES = 48  # of which all are drawn at once
_STYLE = """<style>
.stMainBlockContainer{padding:2.2rem clamp(.8rem,3vw,2.5rem) 4rem;max-width:88rem}
.stMainBlockContainer h1{font-size:1.5rem;padding:0;font-weight:650}
[data-testid="stHeader"]{background:none}
@media(max-width:48rem){.stMainBlockContainer{padding-top:3.4rem}}
@media(max-width:40rem){.st-key-reading-columns [data-testid="stHorizontalBlock"]:first-child{flex-direction:column-reverse}
.stMainBlockContainer h1{display:none}}
[data-testid="stVerticalBlock"]{gap:.8rem}
[data-testid="stCaptionContainer"],[data-testid="stCaptionContainer"] *,::placeholder{color:light-dark(#5d6775,#97a1af)!important;opacity:1!important}
</style>"""


def main() -> None:
  """The whole page."""
  st.set_page_config("InversionView", page_icon=str(pathlib.Path(__file__).parent / "icon.svg"), layout="wide")
  st.html(_STYLE + PREVIEW_STYLE)
  st.title("What does this activation encode?", anchor=False)  # at once, before JAX is imported and a reader loaded
  readers = service.current()
  _from_address(readers)
  sidebar(readers)
  view: View = st.session_state.view
  for message in st.session_state.pop("errors", []):
    _alert(message)
  try:
    readers.source(view.reader)
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
  name = params.get("reader", [next(iter(readers.sources.names))])[-1]
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


def _on_click(action: str) -> None:
  """Applies a click in a pane to the view."""
  try:
    st.session_state.view = st.session_state.view.after_click(action)
  except InversionViewError as error:
    st.session_state.errors = [str(error)]


def _alert(message: str) -> None:
  """Shows an error message."""
  pane(f"alert {message}", panels.alert(message), _on_click)


# The page.


def _input(readers: service.Service, view: View) -> None:
  """The input, its tokens, and the chosen panel."""
  with st.container(horizontal=True, vertical_alignment="bottom"):
    control(st.text_input, "text", "Input", width="stretch", change=lambda text: {"text": text.strip()})
    st.button(
      "Random", on_click=lambda: set_view(text=readers.random_text(view.reader)), help="Another input of the task"
    )
  try:
    encoded = readers.input(view.reader, view.text)
    readers.source(view.reader).check_site(view.site)
  except InversionViewError as error:
    _alert(str(error))
    return
  pane("tokens", panels.token_strip(view, encoded, "decoder" in readers.method(view)), _on_click)
  labels = PANELS | {"pinned": f"Pinned ({len(view.pins)})"}
  control(
    st.segmented_control, "panel", "View", list(PANELS), format_func=labels.get, label_visibility="collapsed",
    change=lambda name: {"panel": name or view.panel},
  )  # fmt: skip
  shows = {"reading": _reading, "sites": _sites, "positions": _positions, "attention": _attention, "pinned": _pinned}
  shows["circuit"] = _circuit
  try:
    shows[view.panel](readers, view, encoded)
  except InversionViewError as error:
    _alert(str(error))
  except Stopped as stopped:
    was_stopped(stopped)


def _preimage(readers: service.Service, view: View, shows: bool = False) -> Preimage:
  """The preimage of the view, with a progress bar and a button that stops it while it is drawn; `shows` its particles as they are by then, too."""
  if (preimage := readers.known(view)) is not None:
    return preimage
  with drawing(str(hash(view)), readers.method(view)) as progress:
    if shows:
      progress.shows(view)
    return readers.preimage(view, None, progress)


def _reading(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The preimage of the view, the map of sites, and what the activation encodes."""
  del encoded
  with st.container(key="reading columns"):  # on a phone the samples come first, see _STYLE
    left, right = st.columns([3, 5], gap="medium")
  with left:
    map_slot, features_slot = st.empty(), st.container()
  with right:
    preimage: Preimage | None = None
    try:
      drawn = preimage = _preimage(readers, view, shows=True)
    except Stopped as stopped:
      was_stopped(stopped)
    else:
      pane("reading", panels.reading(view, drawn), _on_click, [panels.slider_data(drawn, view)])
      with st.container(horizontal=True):
        pinned = view.here in view.pins
        st.button("Pinned" if pinned else "Pin", on_click=_on_click, args=("pin",), disabled=pinned)
        _downloads([drawn], view)
  with map_slot:
    known = functools.partial(_known, readers, view)
    pane("sites", panels.site_map(view, _site_names(readers, view), known), _on_click)
  if preimage is not None:
    with features_slot:
      _features(readers, view, preimage)


def _features(readers: service.Service, view: View, preimage: Preimage) -> None:
  """What the activation encodes, from particles: those that are shown or, where candidates of a decoder are, others of the same query."""
  members = readers.members_view(view)
  if members is None:
    pane("features", panels.not_measured(_NO_MEMBERS), _on_click)
    return
  if members is not view:
    found = readers.known(members)
    if found is None and not readers.quick(view.reader) and st.session_state.get("measure") != members:
      pane("features", panels.not_measured(_CANDIDATES), _on_click)
      st.button(
        "Draw particles", on_click=lambda: st.session_state.update(measure=members), help="By Monte Carlo: minutes"
      )
      return
    preimage = _preimage(readers, members) if found is None else found
  reading, information = readers.reading(members, preimage), readers.information(preimage)
  pane("features", panels.encoded_features(view, reading, information, readers.about(view.reader)), _on_click)


def _encodes(readers: service.Service, view: View, samples: int | None = None) -> Any:
  """The `ActivationReading` of a view whose particles are drawn already; None where they are not."""
  members = readers.members_view(view)
  found = None if members is None else readers.known(members, samples)
  return None if members is None or found is None else readers.reading(members, found)


def _known(readers: service.Service, view: View, site: str) -> Preimage | None:
  """The preimage of another site for the same input and position if it has been drawn, with all candidates or with few."""
  view = dataclasses.replace(view, site=site)
  preimage = readers.known(view)
  return readers.known(view, readers.sketch(view)) if preimage is None else preimage


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
  """A small panel for each site; where there are many, for each of the layer of the chosen one."""
  del encoded
  names = _site_names(readers, view)
  if len(names) > _MOST_SITES:
    layer = sites.parse(view.site).layer
    names = [name for name in names if sites.parse(name).layer == layer]
  _grid(readers, view, [(name, {"site": name}) for name in names])


def _site_names(readers: service.Service, view: View) -> list[str]:
  """The sites that the page shows: those of the reader, or the default ones of a target and the one that was typed."""
  names = list(readers.source(view.reader).sites)
  chosen = sites.parse(view.site).short
  return names if chosen in names else [*names, chosen]


def _positions(readers: service.Service, view: View, encoded: service.Input) -> None:
  """A small panel for each position where the task takes queries."""
  parts = []
  for k, string in enumerate(encoded.strings):
    name = encoded.name(k)
    if name in encoded.query_positions:
      parts.append((name if name == string else f"{string}  {name}", {"position": name}))
  _grid(readers, view, parts)


def _grid(readers: service.Service, view: View, parts: Sequence[tuple[str, dict[str, Any]]]) -> None:
  """Small panels of (name, changes of the view), drawn with few candidates or particles."""
  views, samples = [dataclasses.replace(view, **changes) for _, changes in parts], readers.sketch(view)
  preimages = [readers.known(v, samples) for v in views]
  if None in preimages:
    with drawing(str(hash((view, view.panel))), readers.method(view, samples)) as progress:
      for k, v in enumerate(views):
        if preimages[k] is None:
          preimages[k] = readers.preimage(v, samples)
        progress.bar.progress((k + 1) / len(views), f"{k + 1} of {len(views)} panels")
  readings = [_encodes(readers, v, samples) for v in views]
  drawn = [(*part, p) for part, p in zip(parts, preimages, strict=True)]
  pane("grid", panels.grid(view, drawn, readings, readers.about(view.reader)), _on_click)


def _attention(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The attention patterns of the input."""
  del readers
  pane("attention", attention.attention(view, encoded), _on_click)


def _pinned(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The pinned readings, with one epsilon for all."""
  del encoded
  if not view.pins:
    st.caption("Nothing is pinned yet: open a reading and press Pin.")
    return
  results: list[Preimage | str] = []
  encode: list[Any] = []
  about: dict[str, str] = {}
  for pin in view.pins:
    try:
      preimage = _preimage(readers, view.at(pin))
      results.append(preimage)
      members = readers.members_view(view.at(pin))
      if members is not None and readers.quick(pin.reader):
        _preimage(readers, members)
      encode.append(_encodes(readers, view.at(pin)))
      about |= readers.about(pin.reader)
      if view.epsilon is None:  # tasks differ in theirs: that of the first pin holds for all
        view = dataclasses.replace(view, epsilon=preimage.epsilon)
    except InversionViewError as error:
      results.append(str(error))
      encode.append(None)
  preimages = [p for p in results if not isinstance(p, str)]
  readings = [None if isinstance(p, str) else panels.slider_data(p, view) for p in results]
  pane("pinned", pins.pinned(view, results, encode, about), _on_click, readings)
  if preimages:
    with st.container(horizontal=True):
      _downloads(preimages, view)


def _circuit(readers: service.Service, view: View, encoded: service.Input) -> None:
  """The circuit that the page was started with, or one that is picked here; a click on a node shows what it carries."""
  del encoded
  opened = st.session_state.get("picked", readers.circuit)
  if opened is None:
    st.caption(
      "No circuit is open. `inversionview circuit` finds one and writes circuit.json; `inversionview explore --circuit C` opens it here."
    )
  with st.expander("Open a circuit.json", expanded=opened is None):
    st.file_uploader("circuit.json", "json", key="circuit file", on_change=_picked, label_visibility="collapsed")
  if opened is None:
    return
  node = opened.node(view.node)
  if node is None:
    pane("circuit", circuits.overview(opened), _on_click)
    return
  reader = readers.sources.reader_of(opened.circuit.target)
  pane("circuit", circuits.node_panel(opened, node, opened.preimages(node), reader), _on_click)


def _picked() -> None:
  """Opens the file that was picked in the browser, for this session."""
  file = st.session_state["circuit file"]
  if file is None:
    st.session_state.pop("picked", None)
    return
  try:
    if file.size > circuits.MOST_BYTES:
      raise InversionViewError(
        f"{file.name} has {file.size:,} bytes; a circuit.json has at most {circuits.MOST_BYTES:,}"
      )
    st.session_state.picked = circuits.OpenedCircuit.of_text(file.getvalue().decode("utf-8", "replace"), file.name)
    st.session_state.view = dataclasses.replace(st.session_state.view, node="")
  except InversionViewError as error:
    st.session_state.errors = [str(error)]


main()
