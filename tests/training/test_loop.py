"""The training loop: what it writes, that it goes on where it was, and what it refuses."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.reading import load_reader
from inversionview_jax.targets import load_target, save_target
from inversionview_jax.training import decoder_objective as objectives
from inversionview_jax.training import loop, optimizers, target_objective
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.update import State, make_update

TASK = tasks.get("addition")
ROWS, HELD_OUT = TASK.tokens(TASK.split("train")[:320]), TASK.tokens(TASK.split("test")[:50])
ADAMW = {
  "name": "adamw", "lr": 1e-2, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01,
  "clip": 1.0, "b2": 0.99,
}  # fmt: skip
POISON = 99  # a token that makes the loss of `Slope` not a number

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def settings(**changes):
  config = ConfigDict({
    "batch_size": 16, "steps": 20, "steps_per_call": 5, "seed": 0, "average": 0.9, "log_every": 5, "eval_every": 10,
    "save_every": 10, "keep": 2, "optimizer": ADAMW,
  })  # fmt: skip
  config.update(changes)
  return config


class Slope:
  """An objective that compiles in no time: a linear map with noise, and what was asked of it."""

  frozen = {"wanted": np.arange(4, dtype=np.float32)}
  start = {}

  def __init__(self, width=4, finite=True, evaluate=None):
    self.width, self.finite, self.asked, self.finished = width, finite, [], 0
    self._evaluate = evaluate or (lambda extra: extra)

  def init(self, key):
    return {"layer": {"kernel": jax.random.normal(key, (self.width, 4)), "bias": jnp.zeros(4)}}, {
      "gain": jnp.float32(1)
    }

  def loss(self, params, extra, frozen, tokens, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    y = tokens[:, : self.width] / 10.0 @ params["layer"]["kernel"] + params["layer"]["bias"] + noise
    total = extra["gain"] * jnp.sum(jnp.square(y - frozen["wanted"]))
    return total if self.finite else total * jnp.where(jnp.any(tokens == POISON), jnp.nan, 1.0), jnp.float32(y.size)

  def evaluate(self, params, extra, final):
    self.asked.append(final)
    return {"score": float(np.sum(params["layer"]["kernel"]))}, self._evaluate(extra)

  def finish(self, params, metrics, folder):
    self.finished += 1
    storage.save_model(folder, params, {"config": {}, "notes": metrics})


def lines(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def finished(folder) -> bytes:
  return (folder / "model.safetensors").read_bytes()


def refusal(function, *args, **kwargs) -> str:
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# What a run writes.


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
  """A run of 20 steps without a stop: (folder, its metrics)."""
  folder = tmp_path_factory.mktemp("straight") / "run"
  return folder, loop.train(Slope(), ROWS, settings(), folder)


def test_log_has_a_line_per_interval_and_one_per_evaluation(straight):
  folder, metrics = straight
  found = lines(folder)
  assert [line["step"] for line in found if "loss" in line] == [5, 10, 15, 20]
  assert [line["step"] for line in found if "score" in line] == [10, 20]
  for line in found:
    assert line["seconds"] >= 0
    if "loss" in line:
      assert line["grad_norm"] > 0 and line["steps_per_second"] > 0
      assert line["examples_per_second"] == pytest.approx(16 * line["steps_per_second"])
  assert found[-1]["score"] == metrics["score"]
  assert json.loads((folder / "config.json").read_text()) == settings().to_dict()
  assert any((folder / "tensorboard").iterdir())


def test_steps_per_call_changes_nothing_but_speed(straight, tmp_path):
  loop.train(Slope(), ROWS, settings(steps_per_call=1), tmp_path)
  for one, other in zip(*(jax.tree.leaves(storage.load_model(folder)[0]) for folder in (straight[0], tmp_path))):
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_model_is_the_moving_average_of_the_parameters(meshes, tmp_path):
  objective, config = Slope(), settings(average=0.9, steps=3, steps_per_call=1)
  optimizer = optimizers.make_optimizer(config.optimizer, 3)
  update = make_update(objective, optimizer, config, meshes(1))
  params, extra = objective.init(jax.random.key(0))
  average = jax.tree.map(np.asarray, params)
  state = State(jnp.int32(0), params, optimizer.init(params), jax.tree.map(jnp.copy, params), extra)
  for i in range(3):
    state, _, _ = update(state, objective.frozen, Batches(ROWS, 16, 0)[i][None])
    rate = min(0.9, (1 + i) / (10 + i))
    average = jax.tree.map(lambda a, p: rate * a + (1 - rate) * np.asarray(p), average, state.params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), average, state.average)
  assert np.abs(average["layer"]["kernel"] - state.params["layer"]["kernel"]).max() > 1e-4
  loop.train(objective, ROWS, config, tmp_path, meshes(1))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), storage.load_model(tmp_path)[0], average)


def test_what_evaluation_returns_as_extra_is_what_the_next_steps_use(tmp_path):
  objective = Slope(evaluate=lambda extra: {"gain": jnp.float32(0)})
  loop.train(objective, ROWS, settings(), tmp_path)
  assert [line["grad_norm"] > 0 for line in lines(tmp_path) if "loss" in line] == [True, True, False, False]


# Resuming.


def test_longer_run_goes_on_where_the_shorter_one_ended_bit_by_bit(straight, tmp_path):
  first = Slope()
  loop.train(first, ROWS, settings(steps=10), tmp_path)
  assert finished(tmp_path) != finished(straight[0])
  second = Slope()
  loop.train(second, ROWS, settings(), tmp_path)
  assert finished(tmp_path) == finished(straight[0])
  assert first.asked == [True] and second.asked == [True]
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize("torn", ["", '{"step": 10, "seco'])
def test_run_that_was_stopped_goes_on_from_its_newest_checkpoint_bit_by_bit(straight, tmp_path, torn):
  class Stopped(Exception):
    pass

  class Stopping(Slope):
    def evaluate(self, params, extra, final):
      if final:
        raise Stopped
      return super().evaluate(params, extra, final)

  with pytest.raises(Stopped):
    loop.train(Stopping(), ROWS, settings(), tmp_path)
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]
  assert not (tmp_path / "model.json").exists()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write(torn)
  objective = Slope()
  loop.train(objective, ROWS, settings(), tmp_path)
  assert objective.asked == [True]  # that of step 10 was done before
  assert finished(tmp_path) == finished(straight[0])
  assert [line["step"] for line in lines(tmp_path) if "loss" in line] == [5, 10, 15, 20]


@pytest.mark.parametrize("steps", [20, 10])
def test_running_a_finished_run_again_trains_nothing_and_changes_nothing(straight, tmp_path, monkeypatch, steps):
  folder, metrics = straight
  shutil.copytree(folder, tmp_path / "run")
  monkeypatch.setattr(loop, "make_update", lambda *args: lambda *args: pytest.fail("trained"))
  objective = Slope()
  again = loop.train(objective, ROWS, settings(steps=steps), tmp_path / "run")
  assert again == metrics and objective.asked == []
  assert finished(tmp_path / "run") == finished(folder)
  assert (tmp_path / "run" / "model.json").read_text() == (folder / "model.json").read_text()
  assert lines(tmp_path / "run") == lines(folder)


@pytest.mark.parametrize(
  "width, changes, named",
  [
    (6, {}, "params/layer/kernel is of shape (4, 4) there and of shape (6, 4) here"),
    (4, {"average": 0.0}, "config key average is 0.0, but the run"),
    (4, {"optimizer": ADAMW | {"name": "muon"}}, "config key optimizer.name is 'muon'"),
    (4, {"optimizer": ADAMW | {"lr": 0.1, "clip": 0.5}}, "config key optimizer.clip is 0.5"),
    (4, {"optimizer": ADAMW | {"schedule": "cosine"}}, "config key optimizer.schedule"),
  ],
)
def test_checkpoint_of_another_config_is_refused_and_left_alone(straight, tmp_path, width, changes, named):
  shutil.copytree(straight[0], tmp_path / "run")
  before = contents(tmp_path / "run")
  message = refusal(loop.train, Slope(width), ROWS, settings(steps=30, **changes), tmp_path / "run")
  assert named in message and "resume" in message and "--workdir" in message
  assert contents(tmp_path / "run") == before


def contents(folder) -> dict:
  return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_loss_that_is_not_finite_stops_at_its_step_and_leaves_nothing_of_it(straight, tmp_path):
  rows = ROWS.copy()
  bad = Batches(np.arange(320)[:, None], 16, 0)[12][3, 0]  # comes in step 13
  rows[bad, 13] = POISON
  config = settings(steps_per_call=2, save_every=2, eval_every=20)
  message = refusal(loop.train, Slope(finite=False), rows, config, tmp_path)
  assert "step 13" in message and "optimizer.lr" in message and "nonfinite_13.npz" in message
  with np.load(tmp_path / "nonfinite_13.npz") as held:
    assert held["step"] == 13
    np.testing.assert_array_equal(held["tokens"], Batches(rows, 16, 0)[12])
  assert not (tmp_path / "model.json").exists() and not (tmp_path / "model.safetensors").exists()
  loop.train(Slope(), rows, settings(), tmp_path)  # what was saved before it is sound, and is gone on with
  assert lines(tmp_path)[-1]["step"] == 20 and np.isfinite(lines(tmp_path)[-1]["score"])


def test_settings_that_cannot_be_used_are_named(tmp_path):
  for wrong in ({"steps": 0}, {"batch_size": 0}, {"steps_per_call": -1}, {"batch_size": 12}):
    (name,) = wrong
    assert f"{name} = {wrong[name]}" in refusal(loop.train, Slope(), ROWS, settings(**wrong), tmp_path)
  (tmp_path / "file").write_text("")
  assert "folder" in refusal(loop.train, Slope(), ROWS, settings(), tmp_path / "file" / "run")


# Targets and decoders.


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


def test_accuracy_is_the_share_of_answers_right_in_every_token_as_greedy_generation_gives_them(small_target):
  rows = TASK.tokens(TASK.split("test")[:60])
  for place in range(9, 14):  # every other row gets the model's own answer
    rows[::2, place] = np.asarray(small_target.run(rows).logits)[::2, place - 1].argmax(axis=-1)
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


def decoder_objective(small_target, **changes):
  config = settings(steps=4, steps_per_call=2, log_every=2, eval_every=0, save_every=0, average=0.0)
  config.update({
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}, "encoder_blocks": 1, "encoder_width": 0, "n_slots": 1, "normalize": "standard",
    "sites": ("x0.pre", "a0.0", "x1.post"), "pairs_per_text": 1, "bos_rate": 0.01, "reweight": 0.0, "noise": 0.0,
    "eval_queries": 50, "final_queries": 60,
  })  # fmt: skip
  config.update(changes)
  return objectives.DecoderObjective(TASK, config, small_target, ROWS, HELD_OUT), config


def test_decoder_becomes_a_reader_that_says_how_well_it_reads(small_target, tmp_path):
  objective, config = decoder_objective(small_target)
  metrics = loop.train(objective, ROWS, config, tmp_path / "decoder")
  rates = [metrics[f"rate/{name}"] for name in config.sites]
  assert metrics["rate"] == pytest.approx(np.mean(rates)) and metrics["rate_lowest"] == min(rates)
  assert metrics["queries_per_site"] == len(HELD_OUT) < 60  # no more than there are
  assert not any(name.startswith("weight/") for name in metrics)
  save_target(
    tmp_path / "target", small_target.params, small_target.config, TASK.tokenizer, small_target.name, "addition"
  )
  reader = load_reader(tmp_path)
  assert reader.config.sites == tuple(config.sites)
  np.testing.assert_array_equal(reader.variables["stats"]["encoder"]["mean"], objective._statistics["mean"])


def test_weak_sites_are_drawn_more_often_if_the_config_asks_for_it(small_target, random_variables):
  objective, config = decoder_objective(small_target, reweight=6.0)
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32)
  params = parallel.replicate(
    random_variables(0.2, 0, Decoder(objective.model), *blank)["params"], parallel.make_mesh()
  )
  extra = {"stats": {"encoder": objective._statistics}, "site_logits": jnp.zeros(3)}
  metrics, after = objective.evaluate(params, extra, False)
  rates = np.array([metrics[f"rate/{name}"] for name in config.sites])
  assert rates.max() > rates.min()
  np.testing.assert_allclose(after["site_logits"], 6.0 * (rates.mean() - rates), rtol=1e-5)
  weights = np.exp(6.0 * (rates.mean() - rates))
  np.testing.assert_allclose(
    [metrics[f"weight/{name}"] for name in config.sites], 3 * weights / weights.sum(), rtol=1e-5
  )
  jax.tree.map(np.testing.assert_array_equal, after["stats"], extra["stats"])
  same, _ = decoder_objective(small_target)
  assert not same.evaluate(params, extra, False)[1]["site_logits"].any()
  # Sites that are not drawn have no say in the loss.
  grad = parallel.jit(jax.grad(lambda params, extra: objective.loss(
      params, extra, objective.frozen, jnp.asarray(ROWS[:16]), parallel.fold_in_each(jax.random.key(0), jnp.arange(16))
  )[0]))  # fmt: skip
  for logits, drawn in ((np.zeros(3), [True] * 3), ([-1e9, 0, -1e9], [False, True, False])):
    moved = grad(params, {**extra, "site_logits": jnp.asarray(logits, jnp.float32)})["encoder"]["site_embed"]
    assert (np.abs(moved).max(axis=1) > 0).tolist() == drawn


def test_token_counts_are_learned_by_the_encoder_and_a_run_that_starts_from_it_has_their_head(small_target, tmp_path):
  """With no pairs for the decoder: its transformer stands still but for weight decay, and the loss is that of counting tokens."""
  objective, config = decoder_objective(small_target, token_count_loss=0.5, pairs_per_text=0)
  params, extra = objective.init(jax.random.key(0))
  params["count_head"] = jax.tree.map(
    jnp.zeros_like, params["count_head"]
  )  # every number of times as likely as any other
  texts, keys = jnp.asarray(ROWS[:6]), jax.random.split(jax.random.key(1), 6)
  (total, count), grads = jax.value_and_grad(objective.loss, has_aux=True)(
    params, extra, small_target.params, texts, keys
  )
  assert count == 6 * 3
  np.testing.assert_allclose(total / count, TASK.tokenizer.vocab_size * np.log(11), rtol=1e-5)
  assert not any(np.any(g) for g in jax.tree.leaves(grads["transformer"]))
  # The bias of a token's number of times: what the uniform guess gave it less how often it was so.
  said = np.asarray(grads["count_head"]["bias"]).reshape(TASK.tokenizer.vocab_size, 11)
  equals = TASK.tokenizer.encode("=")[0]
  np.testing.assert_allclose(said[equals, :3], [18 / 11, 18 / 11 - 18, 18 / 11], rtol=1e-4)  # in every text just once

  alone = loop.train(objective, ROWS, config, tmp_path)
  assert np.isfinite(alone["rate"])
  found, _ = storage.load_model(tmp_path)
  assert set(found["params"]) == {"encoder", "transformer"}
  both, config = decoder_objective(small_target, token_count_loss=0.5, init_from=str(tmp_path))
  start = jax.tree.map(jnp.asarray, both.start)
  assert set(start) == set(params) == {"encoder", "transformer", "count_head"}
  jax.tree.map(np.testing.assert_array_equal, start["count_head"], found["count_head"])
  args = extra, small_target.params, texts, keys
  without, _ = decoder_objective(small_target, init_from=str(tmp_path))
  assert set(without.start) == {"encoder", "transformer"}  # this one has no use for it
  assert both.loss(start, *args)[0] - without.loss(without.start, *args)[0] > 0


def test_finished_decoder_is_given_a_matrix_for_each_site_which_then_learns(small_target, tmp_path):
  plain, config = decoder_objective(small_target, encoder_width=12)
  loop.train(plain, ROWS, config, tmp_path)
  again = {"encoder_width": 12, "init_from": str(tmp_path)}
  texts, keys = jnp.asarray(ROWS[:16]), jax.random.split(jax.random.key(1), 16)
  losses, grads = [], []
  for has in (False, True):
    objective, _ = decoder_objective(small_target, site_inputs=has, **again)
    params, extra = objective.init(jax.random.key(0))
    params = {**params, **jax.tree.map(jnp.asarray, objective.start)}
    (loss, _), grad = jax.value_and_grad(objective.loss, has_aux=True)(params, extra, small_target.params, texts, keys)
    losses.append(loss)
    grads.append(grad["encoder"])
  assert losses[0] == losses[1]
  assert (np.abs(grads[1]["site_inputs"]).max(axis=(1, 2)) > 0).all() and "site_inputs" not in grads[0]
  loop.train(*decoder_objective(small_target, site_inputs=True, **again)[:1], ROWS, config, tmp_path / "more")
  with pytest.raises(InversionViewError, match="has site_inputs = True, the config False; set the same"):
    decoder_objective(small_target, encoder_width=12, init_from=str(tmp_path / "more"))


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"site_inputs": True}, "site_inputs needs an encoder_width above 0"),
    ({"pairs_per_text": 0}, "pairs_per_text = 0"),
    ({"pairs_per_text": 2, "token_count_loss": -1.0}, "token_count_loss = -1"),
    ({"eval_queries": 0}, "eval_queries = 0"),
    ({"model": {"n_layers": 1, "n_heads": 3, "d_model": 16, "d_mlp": 32}}, "model.d_model = 16 does not divide into 3"),
    ({"model": {"n_layers": 0, "n_heads": 2, "d_model": 16, "d_mlp": 32}}, "model.n_layers = 0"),
  ],
)
def test_settings_of_a_decoder_that_leave_nothing_to_learn_are_refused(small_target, changes, named):
  with pytest.raises(InversionViewError, match=named):
    decoder_objective(small_target, **changes)
