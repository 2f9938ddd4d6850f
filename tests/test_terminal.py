"""What reaches a terminal: control characters of foreign text are visible, those of styles and lines stay."""

import ast
import io
import pathlib

from inversionview_jax import Preimage, progress, tables, terminal
from inversionview_jax.commands.tables import make_table

PACKAGE = pathlib.Path(terminal.__file__).parent
SAVED = pathlib.Path(__file__).parent / "preimage" / "saved" / "version_2.json"


def test_invisible_characters_are_shown():
  assert terminal.visible("a\x1b[31mb\x07\n\t\x7f\x9b\u202e\ud800é") == "a␛[31mb␇⏎⇥␡\\u{9b}\\u{202e}\\u{d800}é"
  assert terminal.visible("a\nb", keep="\n") == "a\nb" and terminal.visible("plain") == "plain"


def test_a_console_writes_no_control_sequence_but_its_own():
  from rich.table import Table
  from rich.text import Text

  file = io.StringIO()
  console = terminal.console(file=file, width=60, force_terminal=True, color_system="standard", highlight=False)
  console.print("[red]own[/] \x1b]0;title\x07", Text("\x1b[2Jtext", style="bold"))
  table = Table("\x1b[1mhead")
  table.add_row("\x9b31mcell")
  console.print(table)
  printed = file.getvalue()
  assert "\x1b[31mown\x1b[0m" in printed  # a style
  for sequence in ("\x1b]0", "\x07", "\x1b[2J", "\x9b"):
    assert sequence not in printed
  assert "␛]0;title␇" in printed and "␛[2Jtext" in printed and "\\u{9b}31mcell" in printed


def test_a_message_is_one_line_on_stderr(capsys):
  terminal.print_message("cannot read \x1b[31m a\nb")
  assert capsys.readouterr() == ("", "inversionview: cannot read ␛[31m a b\n")


def test_nothing_is_printed_past_this_module():
  """A plain print, a console of rich or a stream that is written to would pass on what a file, a name or an answer holds."""
  past = []
  for path in PACKAGE.rglob("*.py"):
    if path == PACKAGE / "terminal.py":
      continue
    for node in ast.walk(ast.parse(path.read_text())):
      called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
      if (
        called in ("print", "rich.print", "sys.stdout.write", "sys.stderr.write") or called.split(".")[-1] == "Console"
      ):
        past.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {called}")
  assert not past


def test_tables_and_bars_take_brackets_and_control_characters_of_names_as_they_are(capsys):
  """To rich "[bold]" is a style and "[/x]" an error."""
  table = make_table("[/x] \x1b[2Jhead", "[bold]", left=["[/x] \x1b[2Jhead"])
  table.add_row("[red]12[/y]\x07", "[3]")
  file = io.StringIO()
  terminal.console(file=file, width=60).print(table)
  assert file.getvalue().split("\n")[0].split() == ["[/x]", "␛[2Jhead", "[bold]"]
  assert file.getvalue().split("\n")[1].split() == ["[red]12[/y]␇", "[3]"]
  with progress.bar("[/x]", 2) as advance:
    advance(1)
  assert "\x1b" not in repr(Preimage.from_json(SAVED.read_text().replace('"a0.0"', '"a0.0\\u001b[2J"')))
  shown = tables.Table("\x1b]0;t", ("\x1b", "b"), (("\x07", "1"),), "\x9b").to_text()
  assert shown.split("\n") == ["␛]0;t", "  ␛  b", "  ␇  1", "  \\u{9b}"]
