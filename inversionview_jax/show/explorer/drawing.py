"""The bar of a drawing, the button that stops it, and the particles on their way to epsilon."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import streamlit as st

from inversionview_jax.preimage import Preimage
from inversionview_jax.show.explorer import panels
from inversionview_jax.show.explorer.state import View

_PREVIEW_EVERY = 1.0  # seconds between two pictures of particles on their way


class Stopped(Exception):
  """The user stopped this drawing."""


def was_stopped(stopped: Stopped) -> None:
  """In place of what was not drawn: a button that draws it after all."""
  st.caption("Drawing was stopped.")
  st.button("Draw", on_click=lambda: st.session_state.pop("stopped", None), key=f"again {stopped}")


@contextlib.contextmanager
def drawing(name: str, method: str) -> Iterator["Progress"]:
  """A progress bar, and a button that stops the drawing of this name until it is asked for again."""
  if st.session_state.get("stopped") == name:
    raise Stopped(name)
  slot = st.empty()
  with slot.container():
    with st.container(horizontal=True, vertical_alignment="center"):
      progress = Progress(method)
      st.button("Stop", key=f"stop {name}", on_click=lambda: st.session_state.update(stopped=name))
    progress.below = st.empty()
  try:
    yield progress
  finally:
    slot.empty()


class Progress:
  """A bar that follows the drawing of a preimage; Streamlit ends the drawing there when the view was changed meanwhile, or Stop was pressed."""

  def __init__(self, method: str):
    self._unit = "candidates" if method == "decoder" else "target runs"
    self._levels = ""
    self._view: View | None = None
    self._shown_at = -math.inf
    self._shown: object = None
    self.below: Any = None
    self.bar = st.progress(0.0, f"drawing {self._unit if method == 'decoder' else 'particles'}")

  def __call__(self, done: int, total: int) -> None:
    if (done, total) == (0, 1):  # see `Service.preimage`
      self.bar.progress(0.0, "waiting for another drawing")
      return
    of = f"{done:,} of {'at most ' if self._levels else ''}{total:,} {self._unit}"
    self.bar.progress(min(done / max(total, 1), 1.0), f"{self._levels}{of}")

  def level(self, number: int, level: Any) -> None:
    """Notes the threshold of a level of Monte Carlo, counted from 1, for the text of the bar."""
    threshold = "any distance" if math.isinf(level.epsilon) else f"ε = {level.epsilon:.3g}"
    self._levels = f"level {number}, {threshold} · "

  def shows(self, view: View) -> None:
    """Has the particles of this view shown on their way."""
    self._view = view

  def preview(self, make: Callable[[], Preimage]) -> None:
    """Shows the particles so far, once a second at most."""
    if self._view is None or make is self._shown or time.monotonic() - self._shown_at < _PREVIEW_EVERY:
      return
    self.below.html(panels.so_far(self._view, make()))
    self._shown_at, self._shown = time.monotonic(), make
