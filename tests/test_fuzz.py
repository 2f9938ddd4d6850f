"""Whatever a person or a file says: it is taken, or refused in one line with exit code 2, and nothing is left behind.

Hypothesis makes the cases, the same ones in every run. Work that a command line leads to ends where it would load data, compile or listen.
"""

import argparse
import contextlib
import copy
import functools
import io
import json
import os
import pathlib
import shutil
import struct
import tracemalloc

import hypothesis
import pytest
from checkpoints import GOLDEN, all_parts, wide_folder, write_gguf
from hypothesis import strategies as st
from transformers import AutoConfig  # noqa: F401 - what its import takes (torch's, where it is installed) is not a file's

from inversionview_jax import cli, config_schema, reading, targets
from inversionview_jax.commands import bench, flags
from inversionview_jax.devices import hosts
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.targets import for_task
from inversionview_jax.tasks import datasets

ROOT = pathlib.Path(__file__).parent.parent
SAVED = ROOT / "tests" / "preimage" / "saved" / "version_2.json"
MOST_MEMORY = 50_000_000  # bytes; the files have some thousand


def cases(count):
  """The settings of a test: so many cases, the same in every run."""
  return hypothesis.settings(
    max_examples=count,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
  )


def outcome(function, *args):
  """What a call returns, or the `InversionViewError`, of one line; other exceptions pass. Its memory is bounded."""
  tracemalloc.start(1)
  try:
    return function(*args)
  except InversionViewError as error:
    assert "\n" not in str(error) and len(str(error)) < 2000
    return error
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MOST_MEMORY


# Command lines.


class Heavy(BaseException):
  """A command line has come to where the work begins."""


COMMANDS = next(
  action.choices for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)
)  # its parsers
GOOD = {
  "config": [f"{ROOT}/configs/addition.py:tiny", f"{ROOT}/configs/verify_addition.py:A1_F1S1", "c.py"],
  "reader": ["addition", "counting"], "target": ["addition"], "task": ["addition", "ioi"], "site": ["a0.0", "x0.pre"],
  "position": ["=", "-1", "A1"], "text": ["100+200=", "615+861=1476"], "texts": ["texts"], "requests": ["queries"], "folder": ["P"],
  "preimages": ["P"], "source": ["P"], "model": ["m"], "feature": ["A1", "A1 + B1"], "topology": ["cpu:2", "v5e:2x4"],
  "method": list(flags.METHODS), "prior": ["model"], "format": ["json"], "program": ["train"], "size": ["tiny"], "out": ["out"],
  "workdir": ["out"], "json": ["a.json"], "html": ["a.html"], "save": ["saved"], "address": ["127.0.0.1"],
}  # fmt: skip
BAD = [
  "", " ", "nosuch", "nan", "-inf", "1e400", "-1", "0", "1_0", "٣", "9" * 30, "n" * 300, "\udcff", "\x1b[31m", "a\nb", "\x00", "~nosuchuser/x",
  "loop", "pipe", "empty", "a_file", "deep.json", "bytes", "W", "H", "nosuch/out", "()", "None", "[", "{}", "a9.9", "99", "--", "-", "=",
]  # fmt: skip
# A name of anything could be looked up on the network, or be a folder outside of this one.
NAMED_ONLY = {
  "address": ["127.0.0.1", "", "\x00", "n" * 300],
  "coordinator": ["nosuch:1", ""],
  **{name: BAD for name in ("out", "workdir", "json", "html", "save", "config")},
}
SETTINGS = sorted({key for table in config_schema.OF_COMMAND.values() for key in table})


def values_of(name, kind):
  """Values of a flag: right ones, bad ones and any text; of a number its bounds, too."""
  pools = [st.sampled_from(GOOD[name])] * 3 if name in GOOD else []
  if isinstance(kind, flags.Whole | flags.Number):
    edges = (kind.low, kind.low + 1, kind.low - 1, kind.high + 1, -kind.high)
    pools += [st.sampled_from([f"{edge:g}" if isinstance(kind, flags.Number) else str(edge) for edge in edges])] * 3
  pools.append(st.sampled_from(NAMED_ONLY.get(name, BAD)))
  if name not in NAMED_ONLY:
    pools.append(st.text(st.characters(exclude_characters="/~"), max_size=12))
  return st.one_of(pools)


@st.composite
def command_lines(draw):
  name = draw(st.sampled_from(sorted(COMMANDS)))
  argv = [name]
  for action in COMMANDS[name]._actions:
    flag = next((option for option in action.option_strings if option.startswith("--")), None)
    if flag in ("--help", "--help-config", "--debug"):
      continue
    if draw(st.integers(0, 99)) >= (95 if action.required or flag is None else 12):
      continue
    if action.nargs == 0:
      argv.append(flag)
      continue
    value = draw(values_of(action.dest, action.type))
    argv += [value] if flag is None else [f"{flag}={value}"] if draw(st.booleans()) else [flag, value]
  if COMMANDS[name].get_default("overrides"):
    literals = st.one_of(st.sampled_from(BAD), st.integers().map(str), st.floats().map(str))
    for key in draw(st.lists(st.sampled_from(SETTINGS), max_size=2)):
      argv.append(f"--config.{key}={draw(literals)}")
  return argv


def raising(*_, **__):
  raise Heavy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A folder with inputs of all kinds, where commands end at their work."""
  place = tmp_path_factory.mktemp("fuzz")
  (place / "loop").symlink_to(place / "loop")
  os.mkfifo(place / "pipe")
  for name in ("empty", "P", "H", "W", "W/decoder"):
    (place / name).mkdir()
  shutil.copy(SAVED, place / "P")
  for name in ("deep.json", "H/config.json", "W/decoder/model.json"):
    (place / name).write_text("[" * 100_000)
  (place / "texts").write_text("100+200=\n")
  (place / "queries").write_text('{"text": "100+200=", "site": "a0.0", "position": "="}\n')
  (place / "a_file").write_text("")
  (place / "bytes").write_bytes(bytes(range(256)))
  (place / "c.py").write_text("def get_config():\n  return 1 / 0\n")
  with pytest.MonkeyPatch.context() as patch:
    start = hosts.start
    patch.setattr(hosts, "start", lambda *args: raising() if any(args[:2]) or args[2] >= 0 else start(*args))
    for module, name in ((targets, "load_target"), (for_task, "load_target"), (reading, "load_reader")):
      patch.setattr(module, name, _once(getattr(module, name)))
    for module, name in ((datasets, "load_rows"), (bench, "_machine"), (targets.Target, "run"), (reading, "preimage")):
      patch.setattr(module, name, raising)
    for name in (
      "benchmarks.device.check.check", "planning.topologies.simulate_devices", "interpret.language_model.ask",
      "show.explorer.service.Service.preload", "reading.reader.Reader.preimages", "reading.reader.Reader.preimage",
      "reading.source.Source.preimage", "causal.experiments.collect_pairs", "causal.verification.verify",
      "causal.head_importance.head_shares", "measures.readings.read", "measures.evaluation.evaluate", "measures.held_out.held_out_requests",
      "measures.held_out.queries_of", "causal.experiments.run", "causal.logit_experiments.run", "show.explorer.server.serve",
      "benchmarks.scoreboard.scoreboard", "causal.circuits.find.circuit",
    ):  # fmt: skip
      patch.setattr(f"inversionview_jax.{name}", raising)
    yield place


def _once(load):
  """The same, with what ships with the package read once."""
  loaded = functools.cache(load)

  def once(name, *args, **kwargs):
    simple = not any(args) and not any(kwargs.values()) and name in ("addition", "counting")
    return loaded(name) if simple else load(name, *args, **kwargs)

  return once


def contents(folder):
  return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@cases(250)
@hypothesis.given(argv=command_lines())
def test_a_command_line_is_taken_or_refused_in_one_line(folder, argv):
  before, out, error = contents(folder), io.StringIO(), io.StringIO()
  with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
    try:
      code = cli.main(argv)
    except Heavy:
      code = None
  after = contents(folder)
  for path in sorted(after.keys() - before.keys(), reverse=True):
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
  assert code in (None, 0, 2)
  if code == 2:
    line = error.getvalue()
    assert line.startswith("inversionview: ") and line.endswith("\n") and line.count("\n") == 1 and "\x1b" not in line
    assert len(line) < 1100 and not out.getvalue()
  if code != 0:
    assert after == before


# Documents and headers.

LEAVES = st.one_of(
  st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.sampled_from([0, -1, 1, 2**31, 10**18])
)  # fmt: skip
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=4)  # fmt: skip


def changed(draw, document):
  """A document of JSON in which up to three places are replaced, removed, doubled or added."""
  document = copy.deepcopy(document)
  for _ in range(draw(st.integers(1, 3))):
    node, depth = document, draw(st.integers(0, 4))
    while True:
      keys = list(node) if isinstance(node, dict) else range(len(node))
      if not keys:
        break
      key = keys[draw(st.integers(0, len(keys) - 1))]
      if depth and isinstance(node[key], dict | list) and node[key]:
        node, depth = node[key], depth - 1
        continue
      change = draw(st.sampled_from(["replace", "replace", "remove", "double", "add"]))
      if change == "replace":
        node[key] = draw(JSON)
      elif change == "remove":
        del node[key]
      elif isinstance(node, list):
        node.append(copy.deepcopy(node[key]) if change == "double" else draw(JSON))
      else:
        node[draw(st.text(max_size=5))] = copy.deepcopy(node[key])
      break
  return document


def saved():
  """A saved preimage with a few of its samples."""
  table = json.loads(SAVED.read_text())
  table["samples"] = {name: column[:4] for name, column in table["samples"].items()}
  return table


@cases(200)
@hypothesis.given(data=st.data())
def test_a_saved_preimage_is_read_and_can_be_shown_or_is_refused(data):
  found = outcome(Preimage.from_json, json.dumps(changed(data.draw, saved())))
  if isinstance(found, Preimage):
    assert Preimage.from_json(found.to_json()) == found
    str(found)


def bytes_changed(draw, content, header):
  """A file in whose header bytes or numbers are replaced; perhaps cut off."""
  content = bytearray(content)
  for _ in range(draw(st.integers(0, 3))):
    at = draw(st.integers(0, header - 1))
    if draw(st.booleans()):
      content[at] = draw(st.integers(0, 255))
    else:
      number = draw(st.sampled_from([0, 1, 9, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]))
      content[at : at + 8] = struct.pack("<Q", number)
  return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content)


@pytest.fixture(scope="module")
def safetensors_folder(tmp_path_factory):
  return shutil.copytree(GOLDEN / "default", tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fuzz")
  return write_gguf(folder / "model.gguf", wide_folder(folder / "model"))


@cases(150)
@hypothesis.given(data=st.data())
def test_a_safetensors_file_is_read_or_refused(safetensors_folder, data):
  content = (GOLDEN / "default" / "model.safetensors").read_bytes()
  length = int.from_bytes(content[:8], "little")
  if data.draw(st.booleans()):
    header = json.dumps(changed(data.draw, json.loads(content[8 : 8 + length]))).encode()
    content = len(header).to_bytes(8, "little") + header + content[8 + length :]
  else:
    content = bytes_changed(data.draw, content, 8 + length)
  (safetensors_folder / "model.safetensors").write_bytes(content)
  outcome(all_parts, safetensors_folder)


@cases(100)
@hypothesis.given(data=st.data())
def test_attributes_of_a_config_are_taken_or_refused(safetensors_folder, data):
  shutil.copy(GOLDEN / "default" / "model.safetensors", safetensors_folder)
  config = changed(data.draw, json.loads((GOLDEN / "default" / "config.json").read_text()))
  (safetensors_folder / "config.json").write_text(json.dumps(config))
  outcome(all_parts, safetensors_folder)


@cases(150)
@hypothesis.given(data=st.data())
def test_a_gguf_file_is_read_or_refused(gguf_file, tmp_path_factory, data):
  content = gguf_file.read_bytes()
  path = gguf_file.parent / "changed.gguf"
  path.write_bytes(bytes_changed(data.draw, content, 2500))
  outcome(all_parts, path)
