"""Saved preimages with a field of another type or out of its range are refused by every reader, with the field's name and value."""

import copy
import json
import pathlib

import pytest
from refusals import refusal

from inversionview_jax.interpret import hypotheses
from inversionview_jax.preimage import Preimage
from inversionview_jax.show import report

SAVED = json.loads((pathlib.Path(__file__).parent / "saved" / "version_2.json").read_text())
TEXTS = [None, 3, True, ["a"], {"a": 1}]
NOT_NUMBERS = ["0.1", True, None, [1], "x", 10**400]
WRONG = [
  *(((name,), value) for name in ("reader", "task", "version", "convention") for value in TEXTS),
  *(((name,), value) for name in ("metric", "match") for value in (*TEXTS, "other")),
  *(("query", name, value) for name in ("text", "label", "site", "hook") for value in TEXTS),
  *((("epsilon",), value) for value in (*NOT_NUMBERS, 0, -0.1)),
  *((("seed",), value) for value in ("0", 1.5, True, None, 2**70)),
  *(("query", "position", value) for value in ("8", 8.0, True, None, -2, 10**12, 14)),
  *(("query", "tokens", value) for value in (None, "615", {"0": 1}, 5)),
  *(("query", "token_strings", value) for value in (None, "615", [3] * 14)),
  *(("query", "activation", value) for value in (None, 3, "0.1", [None], ["0.1"], [True], [1e39])),
  *(("query", "attention", value) for value in (3, "x", [None] * 9, [1.5] * 9, [-1] * 9)),
  *(("samples", name, value) for name in SAVED["samples"] for value in (None, 3, "x", {"0": 1})),
]
OF_A_SAMPLE = [
  *(("tokens", value) for value in (None, 5, "x", [10**12], [-1], [1.0], [True], ["1"])),
  *(("token_strings", value) for value in (None, "x", [1], [None])),
  *(("text", value) for value in TEXTS),
  *(("distance", value) for value in ("0.1", True, -1, [1])),
  *(("position", value) for value in ("1", 1.0, True, None, -2, 10**12)),
  *(("effect", value) for value in (None, 3, ["0.1"], [2.0], [None])),
  *(("temperature", value) for value in (*NOT_NUMBERS, -1)),
  *(("noise", value) for value in (*NOT_NUMBERS, -1)),
  *(("ended", value) for value in ("no", 1, 0, None)),
  *(("count", value) for value in (0, -1, 1.0, "1", True, None)),
]


def paths():
  for *path, value in WRONG:
    yield (*path[0], value) if isinstance(path[0], tuple) else (*path, value)
  for name, value in OF_A_SAMPLE:
    yield ("samples", name, 1, value)


@pytest.mark.parametrize("path", paths(), ids=lambda path: f"{'.'.join(map(str, path[:-1]))}={path[-1]!r}"[:60])
def test_a_field_of_another_kind_is_refused_by_name(path):
  *keys, value = path
  table = copy.deepcopy(SAVED)
  node = table
  for key in keys[:-1]:
    node = node[key]
  node[keys[-1]] = value
  message = refusal(Preimage.from_json, json.dumps(table))
  named = [str(key) for key in keys if isinstance(key, str) and key not in ("query", "samples")]
  assert named[-1] in message and message.startswith("this text")


def test_every_reader_names_the_file(tmp_path):
  wrong = copy.deepcopy(SAVED)
  wrong["query"]["label"] = 3
  (tmp_path / "wrong.json").write_text(json.dumps(wrong))
  for read in (Preimage.from_json, lambda path: hypotheses.load([path])):
    message = refusal(read, tmp_path / "wrong.json")
    assert "wrong.json" in message and "query.label = 3" in message
  assert "query.label = 3" in refusal(hypotheses.load, [tmp_path])
  assert "query.label = 3" in refusal(report.read_folder, tmp_path)
  (tmp_path / "right.json").write_text(json.dumps(SAVED))
  read, left_out = report.read_folder(tmp_path)
  assert len(read) == 1 and "wrong.json" in left_out[0] and "query.label = 3" in left_out[0]


def test_a_folder_or_a_pipe_among_saved_preimages_is_left_out(tmp_path):
  import os

  (tmp_path / "right.json").write_text(json.dumps(SAVED))
  (tmp_path / "folder.json").mkdir()
  os.mkfifo(tmp_path / "pipe.json")
  assert len(hypotheses.load([tmp_path])) == 1
  read, left_out = report.read_folder(tmp_path)
  assert len(read) == 1 and len(left_out) == 2


def test_what_was_saved_is_read_again():
  preimage = Preimage.from_json(json.dumps(SAVED))
  assert Preimage.from_json(preimage.to_json()) == preimage
