"""Monte Carlo on the command line: `view` and `evaluate` with --method, a target without a reader, and what is refused."""

import json

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.preimage import Preimage
from inversionview_jax.sampling import exact
from inversionview_jax.targets import save_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXT = "615+861=1476"
FEW = ("--particles", 32, "--budget", 640)


@pytest.fixture
def saved_target(small_target, tmp_path):
  """The folder of a small target of addition."""
  t = small_target
  save_target(tmp_path / "T", t.params, t.config, tasks.get("addition").tokenizer, t.name, t.task)
  return tmp_path / "T"


def view(*argv):
  return ("view", TEXT, "--site", "a0.1", "--position", "=", "--json", "p.json", *argv)


def test_view_without_a_reader_samples_from_the_target(inversionview, tmp_path, saved_target):
  code, out, error = inversionview(*view("--target", saved_target, *FEW, "--epsilon", 0.5, "--html", "p.html"))
  assert (code, error) == (0, "")  # no bar into a pipe
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert preimage.method == "monte_carlo" and preimage.reader == "random-0" and len(preimage.particles) == 32
  assert f"{preimage.target_runs:,} target runs" in out and "particles" in out and (tmp_path / "p.html").exists()
  assert preimage.target_runs <= 640


@pytest.mark.parametrize("method", ["monte_carlo", "decoder+monte_carlo"])
def test_view_with_a_reader_and_a_small_budget_reports_what_was_reached(inversionview, tmp_path, save_small, method):
  save_small(tmp_path / "W")
  code, out, _ = inversionview(*view("--reader", "W", "--method", method, "--particles", 32, "--budget", 1))
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert code == 0 and preimage.method == method and preimage.converged is False
  assert "not converged" in out and preimage.problem


def test_view_exact_has_every_member_and_the_nearest_outside(inversionview, tmp_path, saved_target, monkeypatch):
  some = np.arange(0, 810_000, 2699)  # stands for all inputs
  monkeypatch.setattr(exact, "every_input", lambda task: some)
  task = tasks.get("addition")
  text = task.tokenizer.text(task.tokens(some[7:8])[0])
  argv = ("--site", "x0.mid", "--position", "A1", "--json", "p.json", "--method", "exact", "--epsilon", 0.9)
  code, out, _ = inversionview("view", text, "--target", saved_target, *argv)
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert code == 0 and preimage.method == "exact" and preimage.target_runs == len(some)
  assert preimage.bits == pytest.approx(np.log2(len(some) / len(preimage.inside))) and preimage.bits_error is None
  assert preimage.inside[0].text == text and len(preimage.samples) == min(len(some), len(preimage.inside) + 256)
  assert f"{len(some)} target runs" in out


@pytest.mark.parametrize(
  ("wrong", "named"),
  [
    (["--method", "montecarlo"], "did you mean monte_carlo?"),
    (["--method", "monte_carlo", "--noise", "0.1"], "--noise has no effect with --method monte_carlo"),
    (["--method", "monte_carlo", "--temperature", "1"], "--temperature has no effect"),
    (["--method", "monte_carlo", "--mixture", "paper"], "--mixture has no effect"),
    (["--method", "monte_carlo", "--num-samples", "64"], "--num-samples has no effect"),
    (["--particles", "64"], "--particles has no effect with --method decoder"),
    (["--method", "exact", "--budget", "9"], "--budget has no effect with --method exact"),
    (["--method", "monte_carlo", "--particles", "1"], "--particles 1 must be at least 2"),
    (["--method", "monte_carlo", "--budget", "0"], "--budget 0 must be at least 1"),
    (["--method", "monte_carlo", "--particles", "33"], "33 particles do not divide"),
    (["--target", "addition", "--method", "decoder+monte_carlo"], "needs a reader"),
    (["--target", "addition", "--task", "counting"], "another tokenizer"),
    (["--task", "addition"], "--task has no effect with a reader"),
    (["--target", "addition", "--site", "a7.0"], "a7.0"),
  ],
)
def test_view_refuses(refused, wrong, named):
  assert named in refused(*view(*wrong))


def test_a_task_that_cannot_enumerate_has_no_exact_preimage(refused):
  assert "cannot be enumerated" in refused(
    "view", "abca|a:2", "--target", "counting", "--method", "exact", "--site", "m1", "--position", ":"
  )


@pytest.mark.parametrize("method", ["monte_carlo", "all"])
def test_evaluate_compares_with_exact_preimages(inversionview, tmp_path, save_small, monkeypatch, method):
  some = np.arange(0, 810_000, 2699)
  monkeypatch.setattr(exact, "every_input", lambda task: some)
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.split", lambda *_: some)
  save_small(tmp_path / "W")
  code, out, error = inversionview("evaluate", "--reader", "W", "--out", "E", "--method", method, "--queries", 2, *FEW)
  assert (code, error) == (0, "")
  assert [path.name for path in (tmp_path / "E").iterdir()] == ["methods.json"]
  written = json.loads((tmp_path / "E" / "methods.json").read_text())
  methods = ["decoder", "decoder+monte_carlo", "monte_carlo"] if method == "all" else [method]
  assert written["methods"] == methods and written["particles"] == 32 and written["budget"] == 640
  assert len(written["queries"]) == 2 * len(methods)
  for query in written["queries"]:
    assert query["size"] >= 1 and (query["marginals"] is None or 0 <= query["marginals"] <= 1)
    assert query["distinct"] <= query["size"] and query["distinct_of_draws"] <= query["size"]
    assert query["method"] == "monte_carlo" or query["bits_error"] is None
    assert query["method"] == "decoder" or query["converged"] == (not query["problem"])
    assert any(line.split()[:3] == [query["method"], query["site"], "1"] for line in out.splitlines())
  for name in methods:
    assert written["summary"][name]["queries"] == 2


def test_evaluate_needs_no_reader(inversionview, tmp_path, saved_target, monkeypatch):
  some = np.arange(0, 810_000, 2699)
  monkeypatch.setattr(exact, "every_input", lambda task: some)
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.split", lambda *_: some)
  argv = ("--target", saved_target, "--out", "E", "--method", "monte_carlo", "--queries", 1, "--site", "m1", *FEW)
  code, _, error = inversionview("evaluate", *argv)
  assert (code, error) == (0, "")
  written = json.loads((tmp_path / "E" / "methods.json").read_text())
  assert written["reader"] == "" and [query["site"] for query in written["queries"]] == ["m1"]


@pytest.mark.parametrize(
  ("wrong", "named"),
  [
    (["--method", "exact"], "known: decoder, monte_carlo, decoder+monte_carlo, all"),
    (["--method", "monte_carlo", "--exact", "5"], "--exact has no effect with --method monte_carlo"),
    (["--method", "monte_carlo", "--completeness", "2"], "--completeness has no effect"),
    (["--method", "decoder+monte_carlo", "--no-plots"], "--no-plots has no effect"),
    (["--method", "monte_carlo", "--mixture", "paper"], "--mixture has no effect"),
    (["--method", "decoder+monte_carlo", "--mixture", "papre"], "did you mean paper?"),
    (["--budget", "9"], "--budget has no effect with --method decoder"),
    (["--task", "addition"], "--task and --site have no effect"),
    (["--target", "addition", "--method", "all"], "needs a reader"),
  ],
)
def test_evaluate_refuses_and_writes_nothing(refused, wrong, named):
  assert named in refused("evaluate", "--out", "E", *wrong)
