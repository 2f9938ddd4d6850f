"""The controls of the page: each shows a field of the view and changes it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import streamlit as st

from inversionview_jax import tasks
from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.show.explorer import service
from inversionview_jax.show.explorer.state import BUDGETS, MOST_SHOWN, SAMPLES, View, numbers
from inversionview_jax.tasks import Task

_CUSTOM = "custom"
_METHODS = {
  "decoder+monte_carlo": "Decoder, then Monte Carlo",
  "monte_carlo": "Monte Carlo",
  "decoder": "Decoder alone",
  "exact": "Every input",
}
_METHODS_HELP = (
  "Decoder alone: the paper's method. Monte Carlo: particles from the task's inputs, moved until all lie inside ε; gives bits. Decoder, then "
  "Monte Carlo: starts from the decoder's candidates and can miss what these lack. Every input: exact, takes seconds."
)
_TARGET_HELP = "A shipped target, a folder or file of a checkpoint on this machine, or an id on the Hugging Face Hub, which is downloaded unless it is in the cache."
_TASK_HELP = (
  "What its inputs are. A target that was trained here knows its task; a language model needs one of its own, or texts."
)


def set_view(**changes: Any) -> None:
  """Changes fields of the view."""
  st.session_state.view = dataclasses.replace(st.session_state.view, **changes)


def control(
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
      set_view(**(change(value) if change else {name: value}))
    except InversionViewError as error:
      st.session_state.errors = [str(error)]

  return make(*args, key=key, on_change=changed, **kwargs)


def sidebar(readers: service.Service) -> None:
  """The controls in the sidebar."""
  view: View = st.session_state.view
  with st.sidebar:
    known = list(readers.sources.names)
    names = known if view.reader in known else [view.reader, *known]
    label = "Reader or target" if readers.sources.has_targets else "Reader"
    control(st.selectbox, "reader", label, names, change=lambda name: _other_reader(readers, name))
    if readers.sources.may_open:
      _open_target(readers)
    try:
      source = readers.source(view.reader)
    except InversionViewError:
      return  # the page shows the error
    task = source.task
    if source.reader is None:
      control(st.text_input, "site", "Site", change=lambda text: {"site": text.strip()}, help="Any site of the target")
    methods, method = readers.methods(view.reader), readers.method(view)
    default = next(iter(methods), method)
    if method not in methods:
      methods = (method, *methods)  # the page shows what it lacks
    control(
      st.selectbox, "method", "Method", methods, shown=method, format_func=lambda name: _METHODS[name],
      change=lambda name: {"method": "" if name == default else name}, help=_METHODS_HELP,
    )  # fmt: skip
    metric = view.metric or task.metric
    control(st.radio, "metric", "Distance", list(METRICS), shown=metric, format_func=lambda m: METRICS[m].capitalize())
    control(
      st.toggle, "match", "Only at this position", shown=view.match == "position",
      change=lambda on: {"match": "position" if on else "anywhere"},
      help="Off: each sample counts with the nearest of its positions. On: with the position of the query.",
    )  # fmt: skip
    if "decoder" in method:
      _decoder(task, view)
    if "monte_carlo" in method:
      control(st.select_slider, "particles", "Particles", SAMPLES)
      control(
        st.select_slider, "budget", "Target runs at most", BUDGETS, format_func=lambda n: f"{n:,}",
        help="Sampling ends there, converged or not",
      )  # fmt: skip
    control(st.number_input, "shown", "Shown", 1, MOST_SHOWN, step=10)
    control(st.number_input, "seed", "Seed", 0, 2**32 - 1, step=1)
    control(st.toggle, "colors", "Colors")
    control(st.toggle, "notes", "Descriptions")


def _open_target(readers: service.Service) -> None:
  """A form that opens a target which the page was not started with."""
  with st.expander("Open another target"), st.form("open target", border=False):
    st.text_input("Target", key="target name", placeholder="addition, a folder, or OWNER/NAME", help=_TARGET_HELP)
    st.selectbox(
      "Task", ["", *tasks.names()], key="target task", format_func=lambda name: name or "its own", help=_TASK_HELP
    )
    st.text_area("Or your own texts", key="target texts", placeholder="one on each line", height=110)
    st.form_submit_button("Open", on_click=_opened, args=(readers,))


def _opened(readers: service.Service) -> None:
  """Opens the target of the form and shows it."""
  name, task, texts = (st.session_state[f"target {part}"] for part in ("name", "task", "texts"))
  try:
    with st.spinner(f"loading {name}"):
      label = readers.sources.open_target(name, task, texts)
      set_view(**_other_reader(readers, label))
  except InversionViewError as error:
    st.session_state.errors = [str(error)]


def _decoder(task: Task, view: View) -> None:
  """The controls of how the decoder draws its candidates."""
  own = bool(view.temperatures or view.noise)
  mixtures = [*task.mixtures, _CUSTOM]
  chosen = _CUSTOM if own else view.mixture or next(iter(task.mixtures))
  if chosen not in mixtures:
    mixtures = [chosen, *mixtures]
  control(st.selectbox, "mixture", "Sampling", mixtures, shown=chosen, change=lambda name: _mixture(task, name))
  if own:
    for name, label in (("temperatures", "Temperatures"), ("noise", "Noise, for each or for all")):
      text = ", ".join(f"{v:g}" for v in getattr(view, name))
      control(st.text_input, name, label, shown=text, change=functools.partial(_numbers, name))
  elif view.notes and chosen in task.mixtures:
    pairs = ", ".join(f"({t:g}, {eta:g})" for t, eta in task.mixtures[chosen].settings)
    st.caption(f"(temperature, noise): {pairs}")
  control(st.select_slider, "samples", "Candidates", SAMPLES)


def _other_reader(readers: service.Service, name: str) -> dict[str, Any]:
  """The changes of the view when another reader is chosen: its first query, and the settings of its task."""
  try:
    start = readers.start(name)
  except InversionViewError:
    start = {}  # the page shows the error
  return {"reader": name, "metric": "", "epsilon": None, "method": "", "mixture": "", "head": "", **start}


def _numbers(name: str, text: str) -> dict[str, tuple[float, ...]]:
  """The changes of the view for a list of numbers as text."""
  return {name: numbers(name, text)}


def _mixture(task: Task, name: str) -> dict[str, Any]:
  """The changes of the view when another mixture is chosen; a custom one starts with the settings of the task's own."""
  if name != _CUSTOM:
    return {"mixture": "" if name == next(iter(task.mixtures)) else name, "temperatures": (), "noise": ()}
  pairs = task.mixture.settings
  return {"mixture": "", "temperatures": tuple(t for t, _ in pairs), "noise": tuple(eta for _, eta in pairs)}
