"""`inversionview sample`: many queries, written once and in order, also after an interruption."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import pytest
from full_disk import files_up_to

from inversionview_jax import cli, locks
from inversionview_jax.commands import inputs, sample
from inversionview_jax.models import storage
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Request, load_reader

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_small):
  """A small random reader, and ten queries."""
  reader = save_small(tmp_path_factory.mktemp("reader"))
  requests = [{"text": f"{100 + i}+861=", "site": ("a0.0", "x1.post")[i % 2], "position": "="} for i in range(10)]
  (reader / "queries.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))
  return reader


def run(folder, out, *more, queries="queries.jsonl"):
  return cli.main(
    [
      "sample",
      "--reader",
      str(folder),
      "--requests",
      str(folder / queries),
      "--out",
      str(out),
      "--num-samples=16",
      *more,
    ]
  )


def test_preimages_come_in_order_and_are_those_of_single_queries(folder, tmp_path, capsys, monkeypatch):
  assert run(folder, tmp_path / "out") == 0
  assert "10 preimages" in capsys.readouterr().out
  preimages = [Preimage.from_json(line) for line in (tmp_path / "out" / "preimages.jsonl").read_text().splitlines()]
  requests = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
  assert [(p.query.text, p.query.site) for p in preimages] == [(r["text"], r["site"]) for r in requests]
  assert preimages[9] == load_reader(folder).preimages([Request(**requests[9])], num_samples=16, chunk=8)[0]
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["preimages.jsonl", "sample.json"]
  written = (tmp_path / "out" / "preimages.jsonl").read_text()

  # The same again draws nothing; another seed is refused; an unfinished chunk is drawn again.
  monkeypatch.setattr(sample, "_append", lambda *_: pytest.fail("sampled"))
  assert run(folder, tmp_path / "out") == 0 and "are there" in capsys.readouterr().out
  assert run(folder, tmp_path / "out", "--seed=1") == 2 and "give another --out" in capsys.readouterr().err
  monkeypatch.undo()
  (tmp_path / "out" / "preimages.jsonl").unlink()
  lines = written.splitlines(keepends=True)
  (tmp_path / "out" / "preimages.part").write_text("".join(lines[:9]) + lines[9][:40])
  assert run(folder, tmp_path / "out") == 0
  assert (tmp_path / "out" / "preimages.jsonl").read_text() == written


def test_a_full_disk_is_one_line_and_the_same_command_resumes(folder, tmp_path, capsys):
  assert run(folder, tmp_path / "whole") == 0
  whole = (tmp_path / "whole" / "preimages.jsonl").read_bytes()
  capsys.readouterr()
  with files_up_to(len(whole) * 9 // 10):
    assert run(folder, tmp_path / "out") == 2
  out, error = capsys.readouterr()
  assert not out and error.count("\n") == 1 and "preimages.part: File too large; the same command resumes" in error
  assert run(folder, tmp_path / "out") == 0
  assert (tmp_path / "out" / "preimages.jsonl").read_bytes() == whole


def test_lines_of_text_are_read_at_every_site(tmp_path):
  (tmp_path / "texts.txt").write_text("1+2=\n\n3+4=\n")
  requests = inputs.read_requests(str(tmp_path / "texts.txt"), ["a0.0", "x1.mid"], "-1")
  assert [(r["text"], r["site"], r["position"]) for r in requests] == [
    ("1+2=", "a0.0", -1), ("1+2=", "x1.mid", -1), ("3+4=", "a0.0", -1), ("3+4=", "x1.mid", -1),
  ]  # fmt: skip


@pytest.mark.parametrize(
  "content, more, named",
  [
    ("", (), "no queries"),
    ("1+2=\n", (), "line 1 is a text: give --site and --position"),
    ('{"text": "1+2="}\n', (), "line 1 lacks position, site"),
    ('\n{"text": \n', (), "line 2 is not JSON"),
    ('{"text": "1*2=", "site": "a0.0", "position": "="}\n', (), "'*'"),
    ('{"text": "100+200=", "site": "a9.0", "position": "="}\n', (), "a9.0"),
    ("100+200=\n", ("--site=a0.0", "--position=7", "--mesh-model=3"), "3"),
  ],
)
def test_queries_that_are_wrong_are_refused_and_nothing_is_written(folder, tmp_path, capsys, content, more, named):
  (folder / "wrong").write_text(content)
  assert run(folder, tmp_path / "out", *more, queries="wrong") == 2
  error = capsys.readouterr().err
  assert named in error and error.count("\n") == 1
  assert not (tmp_path / "out").exists()


def test_one_process_at_a_time_writes_into_a_folder(folder, tmp_path, capsys):
  (tmp_path / "out").mkdir()
  with locks.exclusive(tmp_path / "out", ""):
    assert run(folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "in use by process" in error and "give another --out" in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [locks.FILE]
  assert run(folder, tmp_path / "out") == 0


def test_a_reader_that_was_replaced_is_refused(folder, tmp_path, capsys):
  """The name of the reader is the same, its weights are others."""
  shutil.copytree(folder, tmp_path / "R")
  assert run(tmp_path / "R", tmp_path / "out") == 0
  settings = json.loads((tmp_path / "out" / "sample.json").read_text())
  decoder = tmp_path / "R" / "decoder"
  params, description = storage.load_model(decoder)
  del description["fingerprint"]
  params["params"]["encoder"]["site_embed"] = params["params"]["encoder"]["site_embed"] + 1
  storage.save_model(decoder, params, description)
  for name in ("preimages.jsonl", "preimages.part"):  # finished, and half done
    (tmp_path / "out" / "preimages.jsonl").rename(tmp_path / "out" / name)
    assert run(tmp_path / "R", tmp_path / "out") == 2
    assert "another model under the same name (its decoder" in capsys.readouterr().err
    (tmp_path / "out" / name).rename(tmp_path / "out" / "preimages.jsonl")
  # Results of a version that kept no fingerprints go on.
  del settings["models"]
  (tmp_path / "out" / "sample.json").write_text(json.dumps(settings))
  assert run(tmp_path / "R", tmp_path / "out") == 0


def test_results_that_lack_lines_or_settings_are_refused(folder, tmp_path, capsys):
  assert run(folder, tmp_path / "out") == 0
  written = (tmp_path / "out" / "preimages.jsonl").read_text().splitlines(keepends=True)
  (tmp_path / "out" / "preimages.jsonl").write_text("".join(written[:8]))
  capsys.readouterr()
  assert run(folder, tmp_path / "out") == 2 and "holds 8 of 10 preimages" in capsys.readouterr().err
  (tmp_path / "out" / "sample.json").unlink()
  assert run(folder, tmp_path / "out") == 2 and "without its sample.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_refused_setting_does_not_block_the_right_one(folder, tmp_path, capsys):
  assert run(folder, tmp_path / "out", "--mixture=nosuch") == 2 and "nosuch" in capsys.readouterr().err
  assert not (tmp_path / "out").exists()
  assert run(folder, tmp_path / "out", "--mixture=paper") == 0


@pytest.mark.slow
def test_two_processes_write_what_one_does(folder, tmp_path):
  """Each of them has two devices; one of them writes."""
  assert run(folder, tmp_path / "one") == 0
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  environment = os.environ | {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(pathlib.Path(__file__).parent.parent.parent),
  }  # fmt: skip
  argv = [
    sys.executable,
    "-m",
    "inversionview_jax.cli",
    "sample",
    "--reader",
    str(folder),
    "--num-samples=16",
    "--num-processes=2",
  ]
  argv += [
    "--requests",
    str(folder / "queries.jsonl"),
    "--out",
    str(tmp_path / "two"),
    f"--coordinator=127.0.0.1:{port}",
  ]
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
  two = [subprocess.Popen([*argv, f"--process-id={i}"], **pipes) for i in range(2)]
  printed = [process.communicate(timeout=900) for process in two]
  assert [process.returncode for process in two] == [0, 0], printed
  assert "10 preimages" in printed[0][0] and "preimages" not in printed[1][0]
  one, both = (
    [Preimage.from_json(line) for line in (tmp_path / name / "preimages.jsonl").read_text().splitlines()]
    for name in ("one", "two")
  )
  assert len(one) == len(both) == 10
  for a, b in zip(one, both, strict=True):  # the same candidates; distances to rounding
    assert (a.query.text, a.query.site) == (b.query.text, b.query.site)
    assert sorted(s.text for s in a.samples) == sorted(s.text for s in b.samples)
    assert [s.distance for s in a.samples] == pytest.approx([s.distance for s in b.samples], rel=1e-4, abs=1e-4)
