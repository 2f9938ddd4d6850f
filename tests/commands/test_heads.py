"""`inversionview heads`: over a task, a config and a file of prompts, and what it refuses."""

import ast
import json

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax.causal import head_importance
from inversionview_jax.cli import main
from inversionview_jax.targets import load_target
from inversionview_jax.tasks import fact_files

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_files.bundled()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS, heads=4, layers=3)


@pytest.fixture(scope="module")
def target(folder):
  return load_target(folder)


def run(capsys, *argv):
  capsys.readouterr()
  code = main(["heads", *argv])
  output = capsys.readouterr()
  assert "Traceback" not in output.err and (code == 0 or output.err.count("\n") == 1)
  return code, output.out + output.err


def test_command_over_the_bundled_facts(folder, target, tmp_path, capsys):
  out = tmp_path / "heads.json"
  code, output = run(capsys, "--target", str(folder), "--task", "factual", "--count", "20", "--first-layer", "1", "--top", "3",
                   "--json", str(out))  # fmt: skip
  assert code == 0 and "20 prompts" in output
  data = json.loads(out.read_text())
  assert data["prompts"] == 20 and data["target"]["fingerprint"] == target.fingerprint and len(data["heads"]) == 8
  assert [head["site"] for head in data["heads"][:3]] == list(
    ast.literal_eval(output.split("sites=")[1].strip().strip('"'))
  )


def test_command_over_prompts_of_a_file_and_only_those_that_are_known(folder, target, tmp_path, capsys):
  path, texts = tmp_path / "prompts.jsonl", [r["prompt"] for r in fact_files.bundled()[:6]]
  tokens = target.tokenizer.encode_batch(texts, eos=False)
  at = np.array([len(target.tokenizer.encode(text)) for text in texts])
  shares, predicted = head_importance.head_shares(target, tokens, at)
  answers = target.tokenizer.strings(predicted)
  known = [i for i in range(4) if answers[i].startswith(" ") and len(target.tokenizer.encode(answers[i])) == 1]
  lines = [{"prompt": t, "answer": answers[i].strip() if i in known else "nothing of it"} for i, t in enumerate(texts)]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  out = tmp_path / "h.json"
  assert run(capsys, "--target", str(folder), "--prompts", str(path), "--json", str(out), "--threshold", "0")[0] == 0
  means = {head["site"]: head["mean"] for head in json.loads(out.read_text())["heads"]}
  assert means["a1.2"] == pytest.approx(shares[:, 1, 2].mean(), abs=1e-5)
  code, text = run(capsys, "--target", str(folder), "--prompts", str(path), "--json", str(out), "--known")
  if known:
    means = {head["site"]: head["mean"] for head in json.loads(out.read_text())["heads"]}
    assert means["a1.2"] == pytest.approx(shares[known, 1, 2].mean(), abs=1e-5)
  else:
    assert code == 2 and "predicts none" in text


def test_command_over_a_task_of_ours(capsys):
  code, output = run(capsys, "--task", "addition", "--position", "=", "--count", "64", "--known")
  assert code == 0 and "64 prompts" in output and "a0.0" in output


@pytest.mark.parametrize(
  "argv, named",
  [
    (["--prompts", "no.txt", "--target", "{}"], "no file"), (["--task", "factual"], "--target"), (["--task", "addition"], "--position"),
    (["--task", "factual", "--target", "{}", "--first-layer", "9"], "layers 9 to 2"),
    (["--task", "factual", "--target", "{}", "--count", "0"], "--count"), (["--task", "nothing"], "task 'nothing'"),
    (["--task", "factual", "--target", "{}", "--threshold", "2"], "--threshold 2"), (["--prompts", "{p}", "--target", "{}", "--known"], "answers"),
    (["--prompts", "{p}", "--target", "{}", "--position", "40"], "out of range"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line(folder, tmp_path, capsys, argv, named):
  (tmp_path / "p.txt").write_text("Paris is\n")
  code, output = run(capsys, *(a.format(folder, p=tmp_path / "p.txt") for a in argv))
  assert code == 2 and named in output
