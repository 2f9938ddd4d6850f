"""Monte Carlo on the command line: `view` and `evaluate` with --method, a target without a reader, and what is refused."""

import json

import numpy as np
import pytest
from small_models import gpt2_folder, prompts

from inversionview_jax import tasks
from inversionview_jax.preimage import Preimage
from inversionview_jax.sampling import exact

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXT = "615+861=1476"
FEW = ("--particles", 32, "--budget", 640)


def view(*argv):
  return ("view", TEXT, "--site", "a0.1", "--position", "=", "--json", "p.json", *argv)


def test_view_without_a_reader_samples_from_the_target(inversionview, tmp_path, saved_target):
  code, out, error = inversionview(*view("--target", saved_target, *FEW, "--epsilon", 0.5, "--html", "p.html"))
  assert (code, error) == (0, "")  # no bar into a pipe
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert preimage.method == "monte_carlo" and preimage.reader == "random-0" and len(preimage.particles) == 32
  assert f"{preimage.target_runs:,} target runs" in out and "particles" in out and (tmp_path / "p.html").exists()
  assert preimage.target_runs <= 640


@pytest.mark.parametrize("method", [pytest.param("monte_carlo", marks=pytest.mark.slow), "decoder+monte_carlo", None])
def test_view_with_a_reader_and_a_small_budget_reports_what_was_reached(inversionview, tmp_path, save_small, method):
  save_small(tmp_path / "W")
  flag = ("--method", method) if method else ("--num-samples", 16)  # the default; candidates of the start
  code, out, error = inversionview(*view("--reader", "W", *flag, "--particles", 32, "--budget", 1))
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert (code, error) == (0, "") and preimage.method == (method or "decoder+monte_carlo")
  assert preimage.converged is False
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
    (["--method", "montecarlo"], "did you mean monte_carlo"),
    (["--method", "monte_carlo", "--noise", "0.1"], "--noise has no effect with --method monte_carlo"),
    (["--method", "monte_carlo", "--temperature", "1"], "--temperature has no effect"),
    (["--method", "monte_carlo", "--mixture", "paper"], "--mixture has no effect"),
    (["--method", "monte_carlo", "--num-samples", "64"], "--num-samples has no effect"),
    (["--method", "decoder", "--particles", "64"], "--particles has no effect with --method decoder"),
    (["--method", "decoder", "--site", "a0.0"], "several sites or positions and --method decoder do not go together"),
    (["--method", "exact", "--directions", "d.npy"], "--directions and --method exact do not go together"),
    (["--target", "addition", "--temperature", "1"], "--temperature has no effect with --method monte_carlo"),
    (["--method", "exact", "--budget", "9"], "--budget has no effect with --method exact"),
    (["--method", "monte_carlo", "--particles", "1"], "--particles 1 must be a whole number from 2"),
    (["--method", "monte_carlo", "--budget", "0"], "--budget 0 must be a whole number from 1"),
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


@pytest.mark.slow
def test_view_of_two_sites_takes_the_larger_distance(inversionview, tmp_path, saved_target):
  code, _, error = inversionview(*view("--target", saved_target, *FEW, "--site", "x0.mid", "--epsilon", 0.8))
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert (code, error) == (0, "") and preimage.query.site == "a0.1" and [q.site for q in preimage.others] == ["x0.mid"]
  assert preimage.method == "monte_carlo"


def test_a_task_without_moves_is_read_by_the_decoder_and_says_so(inversionview, tmp_path, save_small, no_moves):
  save_small(tmp_path / "W")
  code, _, error = inversionview(*view("--reader", "W", "--num-samples", 16))
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert code == 0 and preimage.method == "decoder" and len(preimage.samples) == 16
  assert error == (
    "inversionview: the task 'addition' has no moves, which Monte Carlo needs: --method decoder is used\n"
  )
  code, _, error = inversionview(*view("--reader", "W", "--particles", 32))
  assert code == 2 and "--particles has no effect with --method decoder" in error
  code, _, error = inversionview(*view("--target", "addition"))
  assert code == 2 and error.count("\n") == 1


@pytest.mark.slow
def test_the_lines_of_a_file_are_the_inputs_of_a_language_model(inversionview, refused, tmp_path):
  lines = prompts(60)
  folder = gpt2_folder(tmp_path / "tiny-gpt2", lines)
  (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
  argv = ("view", lines[3], "--target", folder, "--site", "a1.0", "--position", "END", "--epsilon", 0.5, *FEW)
  code, _, error = inversionview(*argv, "--texts", "lines.txt", "--json", "p.json")
  assert code == 0, error
  preimage = Preimage.from_json(tmp_path / "p.json")
  assert preimage.method == "monte_carlo" and preimage.task == "text"
  assert {sample.text for sample in preimage.particles} <= set(lines)
  assert "leave out --reader, --task and --prior" in refused(*argv, "--texts", "lines.txt", "--prior", "model")
  assert "gone.txt" in refused(*argv, "--texts", "gone.txt")


# The other commands that draw preimages, of a target alone.

QUERIES = [{"text": f"{100 + i}+861=", "site": ("a0.0", "m1")[i % 2], "position": "="} for i in range(3)]


@pytest.mark.slow
def test_sample_without_a_reader_resumes_after_every_preimage(inversionview, tmp_path, saved_target):
  (tmp_path / "q.jsonl").write_text("".join(json.dumps(query) + "\n" for query in QUERIES))
  argv = ("sample", "--target", saved_target, "--requests", "q.jsonl", "--out", "S", *FEW)
  code, out, error = inversionview(*argv)
  assert (code, error) == (0, "") and "3 preimages" in out and "of the particles" in out
  written = (tmp_path / "S" / "preimages.jsonl").read_text()
  preimages = [Preimage.from_json(line) for line in written.splitlines()]
  assert [(p.query.text, p.query.site) for p in preimages] == [(q["text"], q["site"]) for q in QUERIES]
  assert {p.method for p in preimages} == {"monte_carlo"}
  (tmp_path / "S" / "preimages.jsonl").unlink()
  lines = written.splitlines(keepends=True)
  (tmp_path / "S" / "preimages.part").write_text(lines[0] + lines[1][:40])  # interrupted in the second
  assert inversionview(*argv)[0] == 0
  assert (tmp_path / "S" / "preimages.jsonl").read_text() == written
  assert inversionview(*argv)[1].count("are there") == 1
  code, _, error = inversionview(*argv, "--seed", 1)
  assert code == 2 and "other queries or settings" in error


def test_measure_without_a_reader_counts_particles_as_they_are(inversionview, tmp_path, saved_target):
  argv = ("--target", saved_target, "--site", "m0", "--position", "=", "--epsilon", 0.7, "--json", "m.json")
  code, out, error = inversionview("measure", "--queries", 2, *argv, *FEW)
  assert (code, error) == (0, "")
  assert (
    "target random-0" in out and "Monte Carlo on the target, from the prior" in out and "in-epsilon rate" not in out
  )
  table = json.loads((tmp_path / "m.json").read_text())
  assert table["method"] == "monte_carlo" and table["format_version"] == 3
  for query in table["queries"]:
    assert query["from_prior"] and query["information"]["inputs"] is None
    assert max(step["epsilon"] for step in query["stability"]) <= 0.7  # particles know nothing of what lies beyond


def test_report_and_interpret_without_a_reader(inversionview, tmp_path, saved_target):
  argv = ("--target", saved_target, "--position", "=", *FEW, "--epsilon", 0.7)
  code, out, error = inversionview(
    "report", *argv, "--text", TEXT, "--site", "m0", "--site", "a0.1", "--out", "r.html", "--save", "S"
  )
  assert (code, error) == (0, "") and out.startswith("2 preimages")
  page = (tmp_path / "r.html").read_text()
  assert "Monte Carlo on the target" in page and "(temperature, noise)" not in page
  saved = [Preimage.from_json(path) for path in sorted((tmp_path / "S").iterdir())]
  assert [p.query.site for p in saved] == ["m0", "a0.1"] and all(p.method == "monte_carlo" for p in saved)
  assert inversionview("report", "S", "--out", "again.html")[0] == 0  # format 3 is read
  code, out, error = inversionview("interpret", "S", "--model", "M", "--out", "I", "--prompts-only")
  assert (code, error) == (0, "") and out.startswith("2 prompts")
  argv = ("--target", saved_target, "--site", "m0", "--position", "=", "--inputs", 2, *FEW)
  code, out, error = inversionview("interpret", *argv, "--model", "M", "--out", "J", "--prompts-only")
  assert (code, error) == (0, "") and out.startswith("1 prompts")
  assert len([Preimage.from_json(path) for path in (tmp_path / "J" / "preimages").iterdir()]) == 2


@pytest.mark.parametrize(
  ("argv", "named"),
  [
    (["measure", "--inputs", "99"], "--inputs has no effect with --method monte_carlo"),
    (["measure", "--target", "addition", "--method", "decoder"], "needs a reader"),
    (["measure", "--target", "addition", "--site", "a7.0"], "a7.0"),
    (["measure", "--method", "montecarlo"], "did you mean monte_carlo"),
    (["report", "--target", "addition", "--text", TEXT, "--out", "r.html", "--site", "a7.0"], "a7.0"),
    (["report", "--text", TEXT, "--out", "r.html", "--method", "exact", "--budget", "9"], "--budget has no effect"),
    (["report", "P", "--out", "r.html", "--method", "decoder"], "--site goes with --text"),
    (["interpret", "--model", "M", "--out", "I", "--target", "addition", "--method", "decoder"], "needs a reader"),
    (["interpret", "P", "--model", "M", "--out", "I"], "--site has no effect on saved preimages"),
  ],
)
def test_other_commands_refuse_and_write_nothing(refused, argv, named):
  more = () if "--site" in argv else ("--site", "a0.0")
  assert named in refused(*argv, *more, "--position", "=")


@pytest.mark.parametrize(
  ("argv", "named"),
  [
    (["--method", "monte_carlo", "--num-samples", "9"], "--num-samples has no effect"),
    (["--method", "monte_carlo", "--no-effects"], "--no-effects has no effect"),
    (["--target", "addition", "--mesh-model", "2"], "--mesh-model has no effect with --method monte_carlo"),
    (["--particles", "64"], "--particles has no effect with --method decoder"),
  ],
)
def test_sample_refuses(inversionview, tmp_path, argv, named):
  (tmp_path / "q.jsonl").write_text(json.dumps(QUERIES[0]) + "\n")
  code, _, error = inversionview("sample", "--requests", "q.jsonl", "--out", "S", *argv)
  assert code == 2 and named in error and error.count("\n") == 1 and not (tmp_path / "S").exists()


@pytest.mark.parametrize("method", ["monte_carlo", pytest.param("all", marks=pytest.mark.slow)])
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
    assert any(line.split()[:2] == [query["site"], "1"] for line in out.splitlines())
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
