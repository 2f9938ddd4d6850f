"""`inversionview evaluate`: what it prints and writes, and what it refuses."""

import json

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling import exact
from inversionview_jax.show import charts

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_evaluate_prints_and_writes_what_it_measured(inversionview, tmp_path, save_small):
  save_small(tmp_path / "W")
  code, out, _ = inversionview(
    "evaluate", "--reader", "W", "--out", "E", "--queries", 3, "--exact", 0, "--completeness", 1, "--inputs", 300
  )
  assert code == 0
  evaluation = json.loads((tmp_path / "E" / "evaluation.json").read_text())
  assert [site["rate"]["count"] for site in evaluation["sites"]] == [3] * len(evaluation["sites"])
  for site in evaluation["sites"]:
    assert any(line.split()[:2] == [site["site"], f"{site['rate']['value']:.3f}"] for line in out.splitlines())
  assert f"{evaluation['summary']['rate']:.3f}" in out and "exact" in evaluation
  queries = json.loads((tmp_path / "E" / "completeness.json").read_text())["queries"]
  assert sum(map(sum, queries[0]["counts"])) == 300
  for name in ("rates.png", "completeness.png"):
    assert (tmp_path / "E" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_evaluate_compares_with_exact_preimages(inversionview, tmp_path, save_small, monkeypatch):
  some = np.arange(0, 810_000, 2699)  # stands for all inputs
  monkeypatch.setattr(exact, "every_input", lambda task: some)
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.split", lambda *_: some)
  save_small(tmp_path / "W")
  code, out, _ = inversionview(
    "evaluate",
    "--reader",
    "W",
    "--out",
    "E",
    "--queries",
    2,
    "--exact",
    2,
    "--num-samples",
    40,
    "--mixture",
    "paper",
    "--no-plots",
  )
  assert code == 0 and "against exact preimages: 40 candidates" in out
  evaluation = json.loads((tmp_path / "E" / "evaluation.json").read_text())
  assert (
    len(evaluation["exact"]) == 2
    and evaluation["mixture"]["num_samples"] == 40
    and not evaluation["mixture"]["stratified"]
  )
  assert sorted(path.name for path in (tmp_path / "E").iterdir()) == ["evaluation.json"]


@pytest.mark.parametrize(
  ("wrong", "named"),
  [
    (["--reader", "nobody"], "'nobody'"),
    (["--queries", "0"], "--queries 0 must be a whole number"),
    (["--exact", "-1"], "--exact -1 must be a whole number"),
    (["--mixture", "papre"], "did you mean paper?"),
    (["--target", "counting"], "the target counting has another tokenizer"),
  ],
)
def test_evaluate_refuses_in_one_line_and_writes_nothing(inversionview, tmp_path, wrong, named):
  code, out, error = inversionview("evaluate", "--out", tmp_path / "E", *wrong)
  assert (code, out) == (2, "") and error.count("\n") == 1 and named in error
  assert not (tmp_path / "E").exists()


def test_exact_preimages_of_a_task_that_cannot_enumerate_are_refused(inversionview, tmp_path, monkeypatch):
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.enumerable", False)
  code, _, error = inversionview("evaluate", "--out", "E", "--exact", 5)
  assert code == 2 and "cannot be enumerated" in error and not (tmp_path / "E").exists()


def test_figures_without_matplotlib_are_refused_before_the_work(inversionview, tmp_path, monkeypatch):
  def missing():
    raise InversionViewError("figures need matplotlib")

  monkeypatch.setattr(charts, "check", missing)
  code, _, error = inversionview("evaluate", "--out", "E")
  assert code == 2 and "matplotlib" in error and not (tmp_path / "E").exists()
