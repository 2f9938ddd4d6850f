"""What reaches a terminal: control characters of foreign text are visible, those of styles and lines stay."""

import io

from inversionview_jax import terminal


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
