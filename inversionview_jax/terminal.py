"""Text on a terminal: whatever comes from a file, a vocabulary, an endpoint or an argument is printed through here.

A control sequence in such a text could otherwise move the cursor, change the title or recolor what follows. Needs no JAX.
"""

import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rich.console import Console

_LONGEST_MESSAGE = 1000  # characters: a message may quote what it is about


def visible(text: str, keep: str = "") -> str:
  """`text` with control and invisible characters replaced by visible ones: "\\n" -> "⏎", ESC -> "␛".

  Args:
    text: any.
    keep: characters that stay as they are, such as "\\n" in a text of several lines.
  """
  if text.isprintable():
    return text
  return "".join(c if c in keep else _visible_character(c) for c in text)


def _visible_character(c: str) -> str:
  if c.isprintable():  # False for control, format (bidirectional overrides), surrogate and unassigned characters
    return c
  if c in "\n\t\x7f":
    return {"\n": "⏎", "\t": "⇥", "\x7f": "␡"}[c]
  return chr(0x2400 + ord(c)) if ord(c) < 32 else f"\\u{{{ord(c):x}}}"


def print_text(text: str, *, error: bool = False, flush: bool = False) -> None:
  """Prints lines with everything in them visible but their line ends.

  Args:
    text: without the last line end.
    error: on stderr in place of stdout.
    flush: at once.
  """
  print(visible(text, keep="\n"), file=sys.stderr if error else sys.stdout, flush=flush)


def print_message(text: str) -> None:
  """Prints a message as one line on stderr, behind the name of the program; the middle of a very long one is left out."""
  line = " ".join(text.split())
  if len(line) > _LONGEST_MESSAGE:
    half = _LONGEST_MESSAGE // 2
    line = f"{line[:half]} ... {line[-half:]}"
  print_text(f"inversionview: {visible(line)}", error=True, flush=True)


def print_traceback(error: BaseException) -> None:
  """Prints on stderr where an exception comes from, with those that it was raised in place of ("from None")."""
  import traceback

  shown: set[int] = set()
  inner: BaseException | None = error
  while inner is not None and id(inner) not in shown:  # contexts can go round
    shown.add(id(inner))
    inner.__suppress_context__ = False
    inner = inner.__cause__ or inner.__context__
  print_text("".join(traceback.format_exception(error)).rstrip("\n"), error=True, flush=True)


def console(**options: Any) -> "Console":
  """A console of rich whose own control sequences are the only ones it writes; `options` are those of rich's `Console`."""
  from collections.abc import Iterable

  from rich.console import Console, ConsoleOptions, RenderableType
  from rich.segment import Segment
  from rich.text import Text

  class VisibleConsole(Console):
    """Everything that is printed passes `render`, already styled: what is a control character there came with the text."""

    def render_str(self, text: str, **options: Any) -> Text:  # before widths are measured
      return super().render_str("".join(map(_without_control, text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
      for segment in super().render(renderable, options):
        if segment.control or segment.text.isprintable() or segment.text == "\n":
          yield segment
        else:
          yield Segment("".join(map(_without_control, segment.text)), segment.style)

  return VisibleConsole(**options)


def _without_control(c: str) -> str:
  """A character of a laid out text: line ends and wide spaces are of the layout, other invisible ones are not."""
  return _visible_character(c) if c != "\n" and unicodedata.category(c).startswith("C") else c
