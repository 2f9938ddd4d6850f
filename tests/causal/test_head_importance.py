"""Heads by their share of the residual update: the definition, and the command."""

import ast
import json

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax.causal import head_importance
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
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


def test_shares_are_the_l1_proximity_of_what_is_added_up(target):
  texts = TEXTS[:10]
  tokens = target.tokenizer.encode_batch(texts, eos=False)
  at = np.array([len(target.tokenizer.encode(text)) for text in texts])
  shares, predicted = head_importance.head_shares(target, tokens, at, batch_size=4)
  run = target.run(
    tokens, [f"{kind}" for layer in range(3) for kind in (f"x{layer}.pre", f"a{layer}", f"x{layer}.mid")]
  )
  row = np.arange(len(texts))
  for layer in range(3):
    before, heads, after = (
      np.asarray(run[n], np.float64)[row, at] for n in (f"x{layer}.pre", f"a{layer}", f"x{layer}.mid")
    )
    bias = np.asarray(target.params[f"blocks_{layer}"]["attn"]["o"]["bias"], np.float64)
    parts = [*heads.swapaxes(0, 1), before, np.broadcast_to(bias, before.shape)]
    np.testing.assert_allclose(sum(parts), after, atol=1e-4)  # they are all there is
    near = np.stack([np.maximum(0, np.abs(after).sum(-1) - np.abs(after - part).sum(-1)) for part in parts], axis=1)
    np.testing.assert_allclose(shares[:, layer], (near / near.sum(axis=1, keepdims=True))[:, :4], atol=1e-4)
  np.testing.assert_array_equal(predicted, np.asarray(run.logits)[row, at].argmax(axis=-1))
  np.testing.assert_array_equal(head_importance.head_shares(target, tokens, at, batch_size=16)[1], predicted)


def test_ranking_counts_prompts_over_the_threshold_and_then_takes_the_mean():
  shares = np.zeros((4, 3, 2))
  shares[:, 1, 0] = 0.05, 0.05, 0.0, 0.0
  shares[:, 1, 1] = 0.03, 0.03, 0.03, 0.0
  shares[:, 2, 0] = 0.9, 0.9, 0.0, 0.0
  heads = head_importance.ranked(shares, 0.02, first_layer=1)
  assert [(head.site, head.over) for head in heads] == [("a1.1", 3), ("a2.0", 2), ("a1.0", 2), ("a2.1", 0)]
  assert head_importance.ranked(shares, 0.04, last_layer=1)[0].site == "a1.0" and heads[1].mean == pytest.approx(0.45)
  for wrong in ({"first_layer": 3}, {"last_layer": 7}, {"threshold": 1.5}):
    with pytest.raises(InversionViewError):
      head_importance.ranked(shares, **wrong)


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
    (["--task", "factual", "--target", "{}", "--threshold", "2"], "threshold = 2"), (["--prompts", "{p}", "--target", "{}", "--known"], "answers"),
    (["--prompts", "{p}", "--target", "{}", "--position", "40"], "out of range"),
  ],
)  # fmt: skip
def test_bad_input_is_one_line(folder, tmp_path, capsys, argv, named):
  (tmp_path / "p.txt").write_text("Paris is\n")
  code, output = run(capsys, *(a.format(folder, p=tmp_path / "p.txt") for a in argv))
  assert code == 2 and named in output
