"""launch/figures.py: which figures of the READMEs it knows, and how it compares and rewrites them. The commands are not run here."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "launch"))  # as for a script in that folder

import figures


def text_of(table) -> str:
  return (ROOT / table.readme).read_text()


@pytest.mark.parametrize("table", figures.TABLES, ids=lambda table: table.name)
def test_every_table_is_in_its_readme_with_its_columns(table):
  lines = text_of(table).split("\n")
  first, last = figures._place(table, lines)
  assert last > first + 2 and set(table.tolerance) <= set(figures._split(lines[first]))


def test_console_blocks_are_found():
  blocks = {block.name: block for block in figures.consoles()}
  view = blocks["README.md:1"]
  lines = (ROOT / "README.md").read_text().split("\n")
  assert (
    lines[view.start] == f"$ inversionview {view.command}" and lines[view.start - 1] == lines[view.end + 1] == "```"
  )
  assert len(blocks) >= 5


def table(**tolerance):
  return figures.Table("t", "R.md", "| site |", (), lambda _: {}, tolerance)


TEXT = "before\n\n| site | rate | n |\n|---|---|---|\n| `a0.0` | 0.925 | 1,024 |\n| mean | 0.9 ± 0.01 | |\n\nafter\n"


def test_figures_within_their_tolerance_do_not_differ_and_are_rewritten():
  cells = {("a0.0", "rate"): "0.930", ("a0.0", "n"): "1,024", ("mean", "rate"): "0.908 ± 0.02"}
  text, different = figures.compared(table(rate=0.006), TEXT, cells)
  assert not different  # the mean's own error allows for 0.01
  assert text == TEXT.replace("0.925", "0.930").replace("0.9 ± 0.01", "0.908 ± 0.02")
  _, different = figures.compared(table(rate=0.004), TEXT, cells)
  assert different == ["t, a0.0, rate: 0.925 in the README, 0.930 now"]
  _, different = figures.compared(
    table(rate=0.006), TEXT, cells | {("mean", "rate"): "0.93 ± 0.02", ("a0.0", "n"): "1,023"}
  )
  assert len(different) == 2


def test_times_are_not_compared_and_a_table_without_figures_fails():
  assert figures.compared(table(n=figures.TIMES), TEXT, {("a0.0", "n"): "7"})[1] == []
  with pytest.raises(figures.Failed):
    figures.compared(table(), TEXT, {("a9.9", "rate"): "1"})
  with pytest.raises(figures.Failed):
    figures.compared(table(), TEXT + TEXT, {("a0.0", "rate"): "1"})


def test_a_console_block_is_compared_line_by_line_and_rewritten(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "ROOT", tmp_path)
  readme = "A\n\n```console\n$ inversionview view X\nrate 0.5\n\nend\n```\n\n```bash\ninversionview view Y\n```\n"
  (tmp_path / "README.md").write_text(readme)
  (block,) = figures.consoles()
  monkeypatch.setattr(figures, "output_of", lambda command, folder, width: "\nrate 0.5  \n\nend\n")
  assert figures.check_console(block, write=True) == [] and (tmp_path / "README.md").read_text() == readme
  monkeypatch.setattr(figures, "output_of", lambda command, folder, width: "rate 0.6\nmore\n\nend\n")
  assert "-rate 0.5" in figures.check_console(block, write=False) and (tmp_path / "README.md").read_text() == readme
  figures.check_console(block, write=True)
  assert (tmp_path / "README.md").read_text() == readme.replace("rate 0.5", "rate 0.6\nmore")
  (block,) = figures.consoles()
  assert figures.check_console(block, write=False) == []


def test_lines_that_a_block_leaves_out_are_not_compared(tmp_path, monkeypatch):
  monkeypatch.setattr(figures, "ROOT", tmp_path)
  readme = f"```console\n$ inversionview view X\nfirst\n...\nlast {'x' * 80}\n```\n"
  (tmp_path / "README.md").write_text(readme)
  (block,) = figures.consoles()
  widths = []
  printed = f"first\na\nb\nlast {'x' * 80}\n"
  monkeypatch.setattr(figures, "output_of", lambda command, folder, width: widths.append(width) or printed)
  assert figures.check_console(block, write=True) == [] and widths == [160]
  printed = f"other\na\nlast {'x' * 80}\n"
  assert figures.check_console(block, write=True) and (tmp_path / "README.md").read_text() == readme.replace(
    "first", "other"
  )
