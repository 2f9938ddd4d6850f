"""Bars on a terminal for what takes more than a second, with the time that is left; nothing elsewhere, and nothing with --quiet."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from inversionview_jax import terminal

if TYPE_CHECKING:
  from rich.progress import Progress, TaskID

_Item = TypeVar("_Item")
_hidden = False
# What `counted` loops report to: (done so far, all of it), or None where no bar follows them.
_follower: contextvars.ContextVar[Callable[[int, int], None] | None] = contextvars.ContextVar("follower", default=None)


def hide(hidden: bool) -> None:
  """Sets whether bars, and log lines of a training, are left out on a terminal, too: the flag --quiet."""
  global _hidden
  _hidden = hidden


def is_hidden() -> bool:
  """What `hide` has set."""
  return _hidden


def bars(show: bool = True) -> "Progress":
  """rich's bars on stderr, with the time passed and the time left; they disappear at the end, and show on a terminal and in a notebook only."""
  from rich import progress

  stderr = terminal.console(stderr=True)
  # Into a file they would write empty lines.
  show = show and not _hidden and (stderr.is_terminal or stderr.is_jupyter)
  columns = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.TaskProgressColumn(),
    progress.TimeElapsedColumn(),
    progress.TextColumn("[dim]left"),
    progress.TimeRemainingColumn(),
  )
  return progress.Progress(*columns, console=stderr, transient=True, disable=not show)


@contextlib.contextmanager
def bar(what: str, total: int, show: bool = True, done: int = 0) -> Iterator[Callable[[int], None]]:
  """Yields a function that moves a bar on stderr, which starts at `done`, by so many of `total`."""
  from rich.markup import escape

  with bars(show) as shown:
    yield functools.partial(shown.advance, shown.add_task(escape(what), total=total, completed=done))


@contextlib.contextmanager
def bar_of(what: str) -> Iterator[Callable[[int, int], None]]:
  """Yields a function (done so far, all of it) that draws a bar on stderr, on a terminal only; the first call has the total."""
  with contextlib.ExitStack() as stack:
    advance: list[Callable[[int], None]] = []
    before = 0

    def report(done: int, total: int) -> None:
      nonlocal before
      if not advance:
        advance.append(stack.enter_context(bar(what, total)))
      advance[0](done - before)
      before = done

    yield report


class StepBars:
  """A bar for each step of a long command, within its context: a function (step, done so far, all of it), 0 in place of a total that is not known."""

  def __enter__(self) -> "StepBars":
    self._shown = bars()
    self._shown.__enter__()
    self._tasks: dict[str, TaskID] = {}
    return self

  def __exit__(self, *error: Any) -> None:
    self._shown.__exit__(*error)

  def __call__(self, step: str, done: int, total: int) -> None:
    if step not in self._tasks:
      self._tasks[step] = self._shown.add_task(step, total=total or None)
    words = step if total else f"{step}, {done:,} runs of the target"
    self._shown.update(self._tasks[step], description=words, completed=done if total else None, total=total or None)


@contextlib.contextmanager
def following(what: str, show: bool = True) -> Iterator[None]:
  """A bar of the `counted` loops that run meanwhile, one after the other; it has no end while none of them does, as in compilation."""
  from rich.markup import escape

  with bars(show) as shown:
    task = shown.add_task(escape(what), total=None)
    total_before = -1

    def report(done: int, total: int) -> None:
      nonlocal total_before
      if done == 0 or total != total_before:
        shown.reset(task, total=total)
        total_before = total
      shown.update(task, completed=done)

    token = _follower.set(report)
    try:
      yield
    finally:
      _follower.reset(token)


def counted(items: Sequence[_Item]) -> Iterator[_Item]:
  """The items of a loop that takes time, reported to the bar that follows; of loops inside of each other, the outermost of several items is."""
  report = _follower.get()
  if report is None or len(items) < 2:
    yield from items
    return
  for done, item in enumerate(items):
    report(done, len(items))
    token = _follower.set(None)
    try:
      yield item
    finally:
      _follower.reset(token)
  report(len(items), len(items))
