"""A `Preimage` in a terminal, by rich: with colors, or with marks in their place."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.text import Text

from inversionview_jax.preimage.render import formatting
from inversionview_jax.terminal import console as make_console
from inversionview_jax.terminal import visible

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage, Query, Sample

_FAINT = 0.05  # effects below this are not colored
_GUTTER = 15  # columns to the left of a sample's text: "  0.0213  ×12  "
_BARS = "▁▂▃▄▅▆▇█"


def to_rich(preimage: Preimage, shown: int = 100, colors: bool = True) -> TerminalView:
  """A rich renderable of at most `shown` samples; with `colors` off, or on a console without any, marks are written as text."""
  return TerminalView(preimage, shown, colors)


def to_text(preimage: Preimage, shown: int = 100, width: int = 80) -> str:
  """Plain text, `width` columns: what a pipe or a log receives."""
  file = io.StringIO()
  console = make_console(file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False)
  print_preimage(preimage, console, shown)
  return file.getvalue()


def print_preimage(preimage: Preimage, console: Console | None = None, shown: int = 100, colors: bool = True) -> None:
  """Prints to `console` (default: standard output), honouring NO_COLOR and pipes as rich does."""
  (console or make_console()).print(to_rich(preimage, shown, colors))


@dataclasses.dataclass(frozen=True)
class TerminalView:
  """What `to_rich` returns; colors and width are decided when it is printed, since only then the console is known."""

  preimage: Preimage
  shown: int
  colors: bool

  def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
    p, width = self.preimage, options.max_width
    plain = not self.colors or console.no_color or console.color_system is None
    samples = p.shown(self.shown)
    groups = formatting.grouped(samples)

    for label, value in formatting.facts(p):
      yield from _hanging(label, Text(value), console, width)
    yield Text()
    yield from _query_lines(p.query, max(width - _GUTTER, 16), plain)
    yield Text()
    for inside in (True, False):
      for sample, times in (g for g in groups if g[0].inside == inside):
        left = f"{formatting.distance(sample.distance):>8} {f'×{times}' if times > 1 else '':>5}"
        yield from _hanging(left, _sample_line(sample, plain), console, width)
      if inside:
        yield Rule(Text(f"ε = {p.epsilon:g}"), characters="─", style="" if plain else "yellow")
    yield Text()
    counts, of_shown = formatting.counts(p, samples, len(groups))
    yield Text(counts, "bold")
    yield Text(of_shown)
    if warning := formatting.warning(p):
      yield Text(warning, "bold" if plain else "bold red")
    yield _legend(plain, any(s.effect for s in samples), any(not s.ended for s in samples))


def _hanging(left: str, body: Text, console: Console, width: int) -> Iterator[Text]:
  for line in body.wrap(console, max(width - _GUTTER, 16), overflow="fold"):
    line.rstrip()
    yield Text.assemble((left.ljust(_GUTTER), "dim"), line)
    left = ""


def _sample_line(sample: Sample, plain: bool) -> Text:
  line = Text()
  for string, effect, here in formatting.token_pieces(sample):
    if plain and here:  # [Paris], with a leading space left outside
      word = string.lstrip(" ") or string
      line.append(f"{string[: len(string) - len(word)]}[{word}]")
    else:
      line.append(string, "" if plain else f"{_background(effect or 0.0)} {'bold underline' if here else ''}".strip())
  if not sample.ended:
    line.append(formatting.TRUNCATED, "dim")
  return line if line.plain else Text("∅", "dim")


def _background(effect: float) -> str:
  """A color between grey and blue (positive) or red: strength is shown by hue, not brightness, since a terminal may be dark or light."""
  if abs(effect) < _FAINT:
    return ""
  grey, hue = ((94, 106, 128), (29, 78, 216)) if effect > 0 else ((122, 108, 106), (200, 30, 45))
  mixed = (round(g + (h - g) * min(abs(effect), 1.0)) for g, h in zip(grey, hue))
  return "#ffffff on #{:02x}{:02x}{:02x}".format(*mixed)


def _legend(plain: bool, effects: bool, cut: bool) -> Text:
  legend = Text("[ ]") if plain else Text.assemble(("underlined", "bold underline"))
  legend.append(" nearest to the query · ×2 drawn twice" + (f" · {formatting.TRUNCATED} cut off" if cut else ""), "dim")
  if effects and not plain:
    legend.append("\n").append(" blue ", _background(0.9)).append(" the activation made the token more likely, ", "dim")
    legend.append(" red ", _background(-0.9)).append(" less likely", "dim")
  return legend


def _query_lines(query: Query, width: int, plain: bool) -> Iterator[Text]:
  """The query's tokens, a row of bars for attention below them, and a caret below the position; folded at `width` columns."""
  strings = [visible(s) or "∅" for s in query.token_strings]
  attention = query.attention or ()
  top = max(attention, default=0.0) or 1.0
  # BOS is written into the gutter, so that the query's text is aligned with that of the samples.
  hang = cell_len(strings[0]) if strings[:1] == ["<BOS>"] else 0
  rows: list[list[int]] = [[]]
  column = -hang
  for k, string in enumerate(strings):
    if column > 0 and column + cell_len(string) > width:
      rows, column = [*rows, []], 0
    rows[-1].append(k)
    column += cell_len(string)
  for number, row in enumerate(rows):
    indent = _GUTTER if number else _GUTTER - hang
    tokens, bars = (Text.assemble((("" if number else name).ljust(indent), "dim")) for name in ("query", "attention"))
    caret = None
    for k in row:
      word = strings[k].lstrip(" ") or strings[k]
      lead, size = cell_len(strings[k]) - cell_len(word), max(cell_len(word), 1)
      if k == query.position:
        caret = Text(" " * (cell_len(tokens.plain) + lead) + "^" * size)
      tokens.append(" " * lead).append(word, "reverse" if k == query.position and not plain else "bold")
      height = int(8 * attention[k] / top) if k < len(attention) else 0
      bars.append(" " * lead).append(
        (_BARS[min(height, 7)] if k < len(attention) else " ") * size, "" if plain else "cyan"
      )
    yield tokens
    if attention and row[0] < len(attention):
      bars.rstrip()
      yield bars
    if caret is not None:
      label = visible(query.label) or f"position {query.position}"
      yield caret.append(f" {label}") if cell_len(f"{caret.plain} {label}") <= _GUTTER + width else caret
  if attention:
    ranked = sorted(range(len(attention)), key=lambda k: -attention[k])[:3]
    most = ", ".join(f'{k} "{strings[k].strip(" ")}" {attention[k]:.2f}' for k in ranked)
    yield Text(" " * _GUTTER + f"mostly to {most}", "dim", no_wrap=True, overflow="ellipsis")
