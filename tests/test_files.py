"""Lines of text files: they end at a line feed and nowhere else, for every command that reads lines."""

import argparse
import json
import os

import pytest
from full_disk import files_up_to
from refusals import refusal

from inversionview_jax.commands import inputs
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import (
  check_can_hold,
  check_can_make,
  files_together,
  make_folder,
  output_folder,
  parse_json,
  read_json,
  read_lines,
  write_whole,
)
from inversionview_jax.interpret import language_model
from inversionview_jax.preimage import Preimage
from inversionview_jax.tasks import sources

# What str.splitlines() ends lines at, besides line feeds.
INSIDE = "\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"
LINES = [f"a{character}b" for character in INSIDE] + ["plain", " spaces "]


@pytest.fixture(params=["", "\ufeff"], ids=["plain", "bom"])
def mark(request):
  return request.param


@pytest.fixture(params=["\n", "\r\n"], ids=["lf", "crlf"])
def end(request):
  return request.param


def test_lines_end_at_line_feeds_only_and_a_byte_order_mark_is_dropped(tmp_path, mark, end):
  path = tmp_path / "a.txt"
  path.write_bytes((mark + end.join(LINES) + end).encode())
  assert list(read_lines(path)) == list(enumerate(LINES, 1))
  assert inputs.texts_of(argparse.Namespace(text=[], texts=str(path))) == LINES
  assert [request["text"] for request in inputs.read_requests(str(path), ["a0.0"], "1")] == LINES
  assert [text for _, text in sources.texts(str(path))] == LINES
  records = [json.dumps({"text": line, "hash": str(i)}, ensure_ascii=False) for i, line in enumerate(LINES)]
  # JSON may hold U+2028 and U+0085 as they are, but no control characters.
  path = tmp_path / "a.jsonl"
  path.write_bytes((mark + end.join(records) + end).encode())
  assert [text for _, text in sources.texts(str(path))] == LINES
  answers = language_model.replayed({str(i): "" for i in range(len(LINES))}, path)
  assert [answer.text for answer in answers.values()] == LINES
  queries = tmp_path / "q.jsonl"
  queries.write_bytes(
    (
      mark + end.join(json.dumps({"text": line, "site": "a0.0", "position": 1}, ensure_ascii=False) for line in LINES)
    ).encode()
  )
  assert [request["text"] for request in inputs.read_requests(str(queries))] == LINES
  content = tmp_path / "c.json"
  content.write_bytes((mark + json.dumps([{"text": line} for line in LINES])).encode())
  assert [text for _, text in sources.texts(str(content))] == LINES


def test_a_mark_inside_a_file_belongs_to_its_text(tmp_path):
  (tmp_path / "a.txt").write_text("one\n\ufefftwo\n", encoding="utf-8")
  assert [line for _, line in read_lines(tmp_path / "a.txt")] == ["one", "\ufefftwo"]


def test_lines_that_are_not_utf8_and_files_that_are_not_there_are_named(tmp_path):
  path = tmp_path / "a.txt"
  for content, number in ((b"one\n\xff\xfetwo\n", 2), ("one\n".encode("utf-16"), 1)):
    path.write_bytes(content)
    for read in (lambda: list(read_lines(path)), lambda: inputs.read_requests(str(path), ["a0.0"], "1")):
      with pytest.raises(InversionViewError, match=f"a.txt:{number} is not UTF-8") as caught:
        read()
      assert "\n" not in str(caught.value)
  for missing in (tmp_path / "none.txt", tmp_path):
    with pytest.raises(InversionViewError, match="cannot read .*; write lines"):
      list(read_lines(missing, "write lines"))


@pytest.fixture
def odd_paths(tmp_path):
  """Paths that are no files: (path, what a message names)."""
  loop, pipe, folder = tmp_path / "loop", tmp_path / "pipe.json", tmp_path / "x.json"
  loop.symlink_to(loop)
  os.mkfifo(pipe)
  folder.mkdir()
  return {
    str(loop): "symbolic links",
    str(pipe): "pipe",
    str(folder): "a folder",
    str(tmp_path / ("n" * 300)): "too long",
    "~nosuchuser/x": "no home folder",
    "a\0b": "null byte",
    "": "empty",
    str(tmp_path / "missing.json"): "No such file",
  }


def test_paths_that_are_no_files_are_refused_by_every_reader_and_writer(odd_paths, tmp_path):
  for path, named in odd_paths.items():
    for read in (read_json, lambda path: list(read_lines(path)), Preimage.from_json):
      assert named in refusal(read, path)
    if named != "No such file":
      assert refusal(write_whole, path, "text")
      assert refusal(check_can_hold, path)
    if named not in ("No such file", "a folder"):
      assert refusal(make_folder, path)
      assert refusal(check_can_make, path)
  (tmp_path / "file").write_text("")
  assert "is a file" in refusal(check_can_make, tmp_path / "file" / "below")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "loop", "pipe.json", "x.json"]


@pytest.mark.parametrize(
  "content, named",
  [
    ("[" * 100_000, "nested too deep"), ('{"a":' * 100_000, "nested too deep"), ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
    ("[NaN]", "NaN"), ("[-Infinity]", "-Infinity"), ("[1e999]", "1e999"), ("[1,]", "not JSON"), ("9" * 5000, "not JSON"), ("", "not JSON"),
  ],
)  # fmt: skip
def test_json_that_a_program_would_read_in_another_way_is_refused(tmp_path, content, named):
  assert named in refusal(parse_json, content, "this text", "write it again")
  (tmp_path / "a.json").write_text(content)
  assert "a.json" in refusal(read_json, tmp_path / "a.json") and refusal(Preimage.from_json, tmp_path / "a.json")


def test_json_is_read_as_it_is_written(tmp_path):
  table = {"a": [1, -2.5, 1e-300, None, True, "\u2028"], "b": {"a": {}}}
  (tmp_path / "a.json").write_bytes("\ufeff".encode() + json.dumps(table, ensure_ascii=False).encode())
  assert read_json(tmp_path / "a.json") == table


def test_files_of_a_folder_appear_together_or_not_at_all(tmp_path):
  with pytest.raises(ZeroDivisionError), files_together(tmp_path / "new" / "out") as draft:
    (draft / "a").write_text("a")
    raise ZeroDivisionError
  assert not list(tmp_path.iterdir())
  (tmp_path / "out" / "sub").mkdir(parents=True)
  (tmp_path / "out" / "sub" / "kept").write_text("kept")
  (tmp_path / "out" / "a").write_text("old")
  with files_together(tmp_path / "out") as draft:
    (draft / "sub").mkdir()
    for name in ("a", "sub/b"):
      (draft / name).write_text("new")
    assert (tmp_path / "out" / "a").read_text() == "old"
  found = {str(path.relative_to(tmp_path / "out")): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
  assert found == {"a": "new", "sub/b": "new", "sub/kept": "kept"}
  with pytest.raises(ZeroDivisionError), output_folder(tmp_path / "out"):
    raise ZeroDivisionError
  assert (tmp_path / "out" / "a").exists()


def test_a_full_disk_leaves_the_files_that_were_there(tmp_path):
  (tmp_path / "a.json").write_text("before")
  with files_up_to(5_000):
    with pytest.raises(InversionViewError, match="cannot write .*a.json.*: File too large; choose another place"):
      write_whole(tmp_path / "a.json", "x" * 10_000)
    with pytest.raises(InversionViewError, match="cannot write .*b.json"), files_together(tmp_path) as draft:
      write_whole(draft / "a.json", "after")
      write_whole(draft / "b.json", "x" * 10_000)
    with pytest.raises(InversionViewError, match="cannot write"), output_folder(tmp_path / "new" / "W") as made:
      write_whole(make_folder(made / "target") / "model", "x" * 10_000)
  assert {path.name: path.read_text() for path in tmp_path.rglob("*")} == {"a.json": "before"}


def test_a_file_to_write_has_one_check_before_the_work_and_after_it(tmp_path):
  (tmp_path / "folder").mkdir()
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "link").symlink_to(tmp_path / "folder")
  for name in ("folder", "pipe", "link", "nosuch/a", "n" * 300):
    said = [refusal(check_can_hold, tmp_path / name), refusal(write_whole, tmp_path / name, "x")]
    assert said[0] == said[1] and "cannot" in said[0]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "link", "pipe"]
