"""The target's training objective: learning, and accuracy of whole answers."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from training_runs import HELD_OUT, ROWS, TASK, lines, settings

from inversionview_jax.devices import parallel
from inversionview_jax.targets import load_target
from inversionview_jax.training import loop, target_objective

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_target_learns_and_its_finished_model_is_the_one_that_was_evaluated(tmp_path):
  config = settings(batch_size=32, steps=60, steps_per_call=20, log_every=20, eval_every=60, save_every=60, average=0.0)
  config.update({"model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}, "eval_examples": 20})
  objective = target_objective.TargetObjective(TASK, config, HELD_OUT)
  metrics = loop.train(objective, ROWS, config, tmp_path / "target")
  losses = [line["loss"] for line in lines(tmp_path / "target") if "loss" in line]
  assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]
  assert metrics["held_out"] == len(HELD_OUT)  # all of them at the end
  target = load_target(tmp_path, convention="raw")
  params = parallel.replicate(target.params, parallel.make_mesh())
  assert target.task == "addition" and target.tokenizer == TASK.tokenizer
  assert json.loads((tmp_path / "target" / "model.json").read_text())["notes"] == metrics
  assert objective.evaluate(params, {}, True)[0] == metrics


def test_accuracy_is_the_share_of_answers_whose_tokens_greedy_generation_all_gives(small_target):
  rows = TASK.tokens(TASK.split("test")[:60])
  for position in range(9, 14):  # every other row gets the model's own answer
    rows[::2, position] = np.asarray(small_target.run(rows).logits)[::2, position - 1].argmax(axis=-1)
  rows[4::10, 11] = (rows[4::10, 11] + 1) % 10  # and some of these are wrong in one digit
  config = ConfigDict(
    {"model": {"n_layers": 2, "n_heads": 2, "d_model": 16, "d_mlp": 32, "tied": False}, "eval_examples": 30}
  )
  objective = target_objective.TargetObjective(TASK, config, rows)
  metrics, _ = objective.evaluate(small_target.params, {}, True)
  right = np.arange(60) % 2 == 0
  right[4::10] = False
  best = np.asarray(small_target.run(rows).logits).argmax(axis=-1)
  by_hand = [
    all(row[t] == TASK.tokenizer.pad_id or row[t] == own[t - 1] for t in range(9, 14)) for row, own in zip(rows, best)
  ]
  assert by_hand == right.tolist()
  hard = rows[:, 2] + rows[:, 6] == 9
  assert hard.any()
  assert metrics == {
    "accuracy": pytest.approx(right.mean()),
    "held_out": 60,
    "accuracy_tens_sum_9": pytest.approx(right[hard].mean()),
  }
  assert objective.evaluate(small_target.params, {}, False)[0]["held_out"] == 30
