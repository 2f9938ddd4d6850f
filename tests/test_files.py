"""Lines of text files: they end at a line feed and nowhere else, for every command that reads lines."""

import argparse
import json

import pytest

from inversionview_jax.commands import inputs
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import read_lines
from inversionview_jax.interpret import language_model
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
