"""The device check: parity lines against the golden numbers, its exit code, parts that fail or run out of time, its tables and traces."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import cli
from inversionview_jax.benchmarks.device import check, golden, parity, parts, report, traces
from inversionview_jax.errors import InversionViewError

LINES = [name for part in parts.PARTS for name in part.lines]


@pytest.fixture(scope="module")
def goldens():
  return golden.load(parts.GOLDEN)


@pytest.fixture
def one_device(monkeypatch):
  """Parts inherit the tests' eight simulated devices; one is what a user's CPU has."""
  monkeypatch.setenv("XLA_FLAGS", "")


def wrong(goldens, folder, name, change):
  """A file of golden numbers, one array of which is changed."""
  path = folder / "wrong.safetensors"
  golden.write(path, {**goldens, name: change(goldens[name])})
  return path


# Parity.


def test_error_is_relative_to_the_largest_golden_value():
  theirs = np.array([2.0, -4.0, np.inf])
  assert parity.error_of(theirs + [0.0, 0.04, 0.0], theirs) == pytest.approx(0.01)
  assert parity.error_of(np.array([2.0, np.nan, np.inf]), theirs) == np.inf
  assert parity.error_of(np.array([2.0, -4.0, 4.0]), theirs) == np.inf
  assert parity.error_of(theirs[:2], theirs) == np.inf
  assert parity.worst({"a": theirs, "b": theirs}, {"a": theirs}) == (np.inf, "no golden numbers")


@pytest.mark.usefixtures("quick_to_compile")
def test_a_wrong_golden_number_turns_its_line_red_and_no_other(goldens, tmp_path):
  names = ("logits", "captures", "distances", "edits")
  one = {
    "logits": "logits/rotary",
    "captures": "captures/addition/mlp/m1",
    "distances": "distances/cosine",
    "edits": "edits/rotary/m0",
  }

  def red(arrays):
    record = parts.Record(tmp_path / "record.json")
    with jax.default_matmul_precision("highest"):
      parity._forward(record, arrays, "", parity.HIGHEST, None)
    lines = json.loads((tmp_path / "record.json").read_text())["lines"]
    assert [line["name"] for line in lines] == ["logits", "captures", "edits", "distances"]
    return {line["name"]: line["note"] for line in lines if not line["green"]}

  assert red(goldens) == {}
  for name in names:
    largest = np.abs(goldens[one[name]]).max()
    array = goldens[one[name]].copy()
    array.flat[-1] += 3e-5 * largest
    assert red({**goldens, one[name]: array}) == {name: one[name].split("/", 1)[1]}


def test_a_line_that_cannot_be_measured_is_red(tmp_path):
  record = parts.Record(tmp_path / "record.json")

  def check():
    record.line("first", 0.0, 1.0, True)
    raise ValueError("no\nsuch thing")

  parity.isolated(record, ("first", "second"), check)
  assert [(line["name"], line["green"]) for line in record.data["lines"]] == [("first", True), ("second", False)]
  assert record.data["lines"][1]["note"] == "ValueError: no such thing"


def test_goldens_are_small_and_finite(goldens):
  assert parts.GOLDEN.stat().st_size < 400_000
  for name, array in goldens.items():
    assert not np.isnan(array).any() and (np.isfinite(array).all() or name.endswith("distance")), name


# The command.


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_command_is_green_and_a_wrong_golden_makes_it_exit_with_1(goldens, tmp_path, capsys):
  only = ["--only", "parity"]
  assert cli.main(["bench", "--device", "--small", "--out", str(tmp_path / "a"), *only]) == 0
  bad = wrong(goldens, tmp_path, "gradients/loss", lambda x: x * 1.001)
  assert cli.main(["bench", "--device", "--small", "--out", str(tmp_path / "b"), "--golden", str(bad), *only]) == 1
  data = json.loads((tmp_path / "b" / "device.json").read_text())
  assert data["complete"] and data["red"] == 1
  assert {line["name"] for line in data["parts"]["parity"]["lines"] if not line["green"]} == {"gradients"}
  assert "red: gradients" in capsys.readouterr().out
  assert "**red**" in (tmp_path / "b" / "device.md").read_text()


@pytest.mark.usefixtures("one_device")
@pytest.mark.slow
def test_a_part_that_fails_and_one_that_is_cut_off_are_reported_and_the_rest_goes_on(goldens, tmp_path, monkeypatch):
  (tmp_path / "damaged").write_bytes(b"not numbers")
  cut = [dataclasses.replace(p, limit=0.2) if p.name == "parity_lower" else p for p in parts.PARTS]
  monkeypatch.setattr(check, "PARTS", [*cut[:2], *cut[3:4]])  # environment, parity, parity_lower
  code = check.check(tmp_path / "out", small=True, golden=tmp_path / "damaged")
  data = json.loads((tmp_path / "out" / "device.json").read_text())
  status = {name: part["status"] for name, part in data["parts"].items()}
  assert code == 1 and status == {"environment": "done", "parity": "failed", "parity_lower": "cut off"}
  assert "damaged" in data["parts"]["parity"]["error"]
  assert data["parts"]["environment"]["values"]["platform"] == "cpu"
  assert data["red"] == len(parts.named("parity").lines) + len(parts.named("parity_lower").lines)


def test_parts_for_which_no_time_is_left_are_red_and_not_run(tmp_path):
  assert check.check(tmp_path, small=True, budget=1) == 1
  data = json.loads((tmp_path / "device.json").read_text())
  assert data["red"] == len(LINES) and {part["status"] for part in data["parts"].values()} <= {"not run", "left out"}
  assert "used up" in data["parts"]["parity"]["error"]


def test_on_a_gpu_what_is_timed_later_is_compiled_beside_the_parity_parts(tmp_path, monkeypatch):
  started, ended = [], []

  class Process:
    def __init__(self, command, env, **_):
      self.prepares = "--prepare" in command
      self.name = command[3]
      untuned = "--xla_gpu_autotune_level=0" in env.get("XLA_FLAGS", "")
      started.append((self.name, self.prepares, untuned, bool(env["JAX_COMPILATION_CACHE_DIR"])))

    def poll(self):
      return None if self.prepares else 0

  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  monkeypatch.setattr(check.subprocess, "Popen", Process)
  monkeypatch.setattr(check, "_kill", lambda process: ended.append(process.name))
  monkeypatch.setattr(check, "_CORES", 1)
  monkeypatch.setattr(check._Check, "_platform", lambda self: "gpu")
  check.check(tmp_path / "out", only=["parity", "training", "loops"])
  # name, prepares, untuned, whether it shares what is compiled
  assert started == [
    ("environment", False, False, True),
    ("parity", False, True, True),
    ("training", True, False, True),
    ("training", False, False, True),
    ("loops", False, False, False),
  ]
  assert ended == ["training"]


def test_what_is_missing_is_named_before_anything_runs(tmp_path, monkeypatch):
  monkeypatch.setattr(check, "_installed", lambda module: module not in ("optax", "ml_collections"))
  with pytest.raises(
    InversionViewError, match="optax, ml-collections are not installed .* pip install optax ml-collections"
  ):
    check.check(tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--device", "--scaling"], "--scaling has no effect with --device"),
    (["--device", "--only", "paritty"], "did you mean parity"),
    (["--device", "--golden", "nowhere"], "no golden numbers in"),
    (["--small"], "--small has no effect without --device"),
    (["--out", "x"], "--out has no effect without --device"),
  ],
)
def test_command_refuses(arguments, named, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(["bench", *arguments]) == 2
  assert named in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


# Tables and traces.


def test_tables_hold_what_was_measured():
  line = {"name": "logits", "error": 1e-3, "bound": 1e-5, "green": False, "note": "a|b", "at": 1.0}
  row = {
    "name": "training",
    "unit": "pairs",
    "rate": 1234.5,
    "low": 1000.0,
    "high": 2000.0,
    "tflops": 1.5,
    "share_of_peak": 0.25,
  }
  loop = {"name": "a loop", "per": "query", "times": 4, "seconds": 0.5, "each": {"waits": 2.0}}
  other = {"name": "transformers", "median": 500.0, "ours_is_faster_by": 2.469}
  data = {
    "date": "2026-01-01", "small": True, "complete": False, "seconds": 3.0, "red": 1,
    "parts": {
      "parity": {"about": "x", "status": "failed", "error": "why", "seconds": 1.0, "lines": [line], "rows": []},
      "training": {"about": "x", "status": "done", "seconds": 1.0, "rows": [row, {"name": "more", "error": "no room"}]},
      "loops": {"about": "x", "status": "done", "seconds": 1.0, "rows": [loop]},
      "torch": {"about": "x", "status": "done", "seconds": 1.0, "rows": [row | {"others": [other]}]},
    },
  }  # fmt: skip
  text = report.markdown(data)
  for expected in (
    "0 of 1 parity lines are green; red: logits",
    "| logits | **red** | 0.001 | 1e-05 | a\\|b |",
    "| training | 1,234 pairs/s (1,000 to 2,000) | 1.5 | 25.0 % |",
    "| more | no room |",
    "| a loop | query | 0.5 | 2 |",
    "| training | 1,234 pairs/s | transformers: 500 pairs/s | 2.47x |",
    "failed: why",
    "not finished",
  ):
    assert expected in text, expected
  assert "RED" in report.part_text("parity", data["parts"]["parity"])


def test_trace_counts_waits_and_programs(tmp_path):
  """As many programs as were run; and waits for those that take a while."""
  slow = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda _, y: y @ x, x))
  x = jnp.eye(400)
  slow(x).block_until_ready()
  counted = []
  for number in (1, 4):
    with traces.traced(tmp_path / str(number)) as trace:
      for _ in range(number):
        slow(x).block_until_ready()
    counted.append(trace)
  one, four = counted
  assert one.counts["programs"] == 1 and four.counts["programs"] == 4
  assert 1 <= one.counts["waits"] < four.counts["waits"]
  assert four.seconds["waits"] > 0 and four.names["waits"]


def test_golden_file_is_part_of_the_package():
  setup = (pathlib.Path(check.__file__).parents[3] / "setup.cfg").read_text()
  assert parts.GOLDEN.is_file() and "benchmarks/device/golden.safetensors" in setup
  assert shutil.which("bash")
