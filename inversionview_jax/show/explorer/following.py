"""The progress of a drawing that several pages wait for: one of them draws, or none where the server has begun by itself."""

from collections.abc import Callable
from typing import Any

from inversionview_jax.preimage import Preimage

Progress = Callable[[int, int], object]


class Followed:
  """A progress function of `reading.monte_carlo.preimage` that passes everything on and keeps the last of it for those that come later.

  Args:
    own: of the page that draws; its attributes `level` and `preview` are called if it has them. None: no page does.
  """

  def __init__(self, own: Progress | None):
    self._own = own
    self._last: tuple[int, int] | None = None
    self._level: tuple[int, Any] | None = None
    self._make: Callable[[], Preimage] | None = None

  def __call__(self, done: int, total: int) -> None:
    self._last = done, total
    if self._own is not None:
      self._own(done, total)

  def level(self, number: int, level: Any) -> None:
    """Notes a level of Monte Carlo, counted from 1."""
    self._level = number, level
    _call(self._own, "level", number, level)

  def preview(self, make: Callable[[], Preimage]) -> None:
    """Notes the function that makes the preimage so far."""
    self._make = make
    _call(self._own, "preview", make)

  def report(self, progress: Progress) -> None:
    """Tells another page how far the drawing is."""
    if self._level is not None:
      _call(progress, "level", *self._level)
    if self._make is not None:
      _call(progress, "preview", self._make)
    progress(*(self._last or (0, 1)))


def _call(progress: Progress | None, name: str, *args: Any) -> None:
  method = getattr(progress, name, None)
  if method is not None:
    method(*args)
