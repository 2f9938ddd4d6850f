"""A bar on a terminal for what takes more than a second; nothing elsewhere."""

import contextlib
import functools
from collections.abc import Callable, Iterator

from inversionview_jax import terminal


@contextlib.contextmanager
def bar(what: str, total: int, show: bool = True, done: int = 0) -> Iterator[Callable[[int], None]]:
  """Yields a function that moves a bar on stderr, which starts at `done`, by so many of `total`."""
  from rich import progress
  from rich.markup import escape

  stderr = terminal.console(stderr=True)
  # Into a file it would write empty lines.
  show = show and (stderr.is_terminal or stderr.is_jupyter)
  with progress.Progress(console=stderr, transient=True, disable=not show) as shown:
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
