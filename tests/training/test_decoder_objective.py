"""The decoder's training objective: initial parameters, losses, in-epsilon rates, and what a trained decoder prefers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from training_runs import HELD_OUT, settings
from training_runs import ROWS as FEW_ROWS

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder, storage
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.reading import load_reader
from inversionview_jax.targets import save_target
from inversionview_jax.training import decoder_objective, loop, optimizers
from inversionview_jax.training.update import State, make_update

TASK = tasks.get("addition")
PAD = TASK.tokenizer.pad_id

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROWS = TASK.tokens(TASK.split("train")[:1000])
ONE = parallel.make_mesh(devices=jax.devices()[:1])


def objective(small_target, mesh=None, **changes):
  config = ConfigDict({
      "model": {"n_layers": 1, "n_heads": 2, "d_model": 32, "d_mlp": 64}, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1, "normalize": "standard",
      "sites": ("a0.1", "x1.mid"), "pairs_per_text": 1, "bos_rate": 0.01, "reweight": 0.0, "noise": 0.0,
      "eval_queries": 8, "final_queries": 8, "seed": 0, "average": 0.0,
  })  # fmt: skip
  config.update(changes)
  return decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)


def test_site_embeddings_start_with_mean_and_spread_of_their_sites_activations_without_normalization(small_target):
  embeds = {}
  for normalize in ("none", "standard"):
    made = objective(small_target, normalize=normalize)
    embeds[normalize] = np.asarray(parallel.jit(made.init)(jax.random.key(5))[0]["encoder"]["site_embed"])
  run = small_target.run(ROWS, capture=made.model.sites)
  for s, name in enumerate(made.model.sites):
    own = np.asarray(run[name])[TASK.query_mask(ROWS)]
    drawn = embeds["standard"][s]  # from a standard normal distribution
    np.testing.assert_allclose(embeds["none"][s], own.mean() + own.std() * drawn, atol=0.05 * own.std())
  assert np.abs(embeds["none"] - embeds["standard"]).max() > 0.2


@pytest.mark.slow
def test_trained_decoder_prefers_the_text_that_an_activation_came_from(small_target, meshes):
  made = objective(small_target, meshes(1))
  params, extra = parallel.jit(made.init)(jax.random.key(0))
  settings = {
    "name": "muon",
    "lr": 1e-2,
    "adam_lr": 0.0,
    "schedule": "constant",
    "warmup_steps": 10,
    "weight_decay": 0.0,
    "clip": 1.0,
    "b2": 0.99,
  }
  optimizer = optimizers.make_optimizer(ConfigDict(settings), 180)
  state = parallel.replicate(State(jnp.int32(0), params, optimizer.init(params), {}, extra), meshes(1))
  update = make_update(made, optimizer, ConfigDict({"seed": 0, "average": 0.0}), meshes(1))
  rng = np.random.default_rng(0)
  for _ in range(6):
    state, _, _ = update(state, made.frozen, ROWS[rng.integers(0, len(ROWS), (30, 64))])
  held_out = TASK.tokens(TASK.split("test")[:200])
  run = small_target.run(held_out, capture=made.model.sites)
  variables = {"params": state.params, "stats": state.extra["stats"]}
  score = parallel.jit(decoder.log_prob, static_argnums=(0, 5))
  for s, name in enumerate(made.model.sites):
    last_digit, site = np.asarray(run[name])[:, 7], np.full(200, s, np.int32)
    own = np.asarray(score(Decoder(made.model), variables, held_out, last_digit, site, PAD))
    shuffled = np.asarray(score(Decoder(made.model), variables, held_out, np.roll(last_digit, 1, axis=0), site, PAD))
    assert own.mean() > shuffled.mean() + 0.5 and (own > shuffled).mean() > 0.65


def run_objective(small_target, **changes):
  config = settings(steps=4, steps_per_call=2, log_every=2, eval_every=0, save_every=0, average=0.0)
  config.update({
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}, "encoder_blocks": 1, "encoder_width": 0, "n_slots": 1, "normalize": "standard",
    "sites": ("x0.pre", "a0.0", "x1.post"), "pairs_per_text": 1, "bos_rate": 0.01, "reweight": 0.0, "noise": 0.0,
    "eval_queries": 50, "final_queries": 60,
  })  # fmt: skip
  config.update(changes)
  return decoder_objective.DecoderObjective(TASK, config, small_target, FEW_ROWS, HELD_OUT, ONE), config


def start_of(objective):
  """(params, extra) before training."""
  return parallel.jit(objective.init)(jax.random.key(0))


def test_trained_decoder_is_a_reader_and_its_metrics_are_in_epsilon_rates(small_target, tmp_path):
  objective, config = run_objective(small_target)
  metrics = loop.train(objective, FEW_ROWS, config, tmp_path / "decoder", ONE)
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


@pytest.mark.slow
def test_weak_sites_are_drawn_more_often_if_the_config_asks_for_it(small_target, random_variables):
  objective, config = run_objective(small_target, reweight=6.0)
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32)
  params = parallel.replicate(random_variables(0.2, 0, Decoder(objective.model), *blank)["params"], ONE)
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
  same, _ = run_objective(small_target)
  assert not same.evaluate(params, extra, False)[1]["site_logits"].any()
  # Sites that are not drawn do not change the loss.
  grad = parallel.jit(jax.grad(lambda params, extra: objective.loss(
      params, extra, objective.frozen, jnp.asarray(FEW_ROWS[:16]), parallel.fold_in_each(jax.random.key(0), jnp.arange(16))
  )[0]))  # fmt: skip
  for logits, drawn in ((np.zeros(3), [True] * 3), ([-1e9, 0, -1e9], [False, True, False])):
    moved = grad(params, {**extra, "site_logits": jnp.asarray(logits, jnp.float32)})["encoder"]["site_embed"]
    assert (np.abs(moved).max(axis=1) > 0).tolist() == drawn


@pytest.mark.slow
def test_token_counts_are_learned_by_the_encoder_and_a_run_that_starts_from_it_has_their_head(small_target, tmp_path):
  """With no pairs for the decoder: its transformer stands still but for weight decay, and the loss is that of counting tokens."""
  objective, config = run_objective(small_target, token_count_loss=0.5, pairs_per_text=0)
  params, extra = start_of(objective)
  params["count_head"] = jax.tree.map(
    jnp.zeros_like, params["count_head"]
  )  # every number of times as likely as any other
  texts, keys = jnp.asarray(FEW_ROWS[:6]), jax.random.split(jax.random.key(1), 6)
  loss_and_grad = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
  (total, count), grads = loss_and_grad(params, extra, small_target.params, texts, keys)
  assert count == 6 * 3
  np.testing.assert_allclose(total / count, TASK.tokenizer.vocab_size * np.log(11), rtol=1e-5)
  assert not any(np.any(g) for g in jax.tree.leaves(grads["transformer"]))
  # The bias of a token's number of times: what the uniform guess gave it less how often it was so.
  gradient = np.asarray(grads["count_head"]["bias"]).reshape(TASK.tokenizer.vocab_size, 11)
  equals = TASK.tokenizer.encode("=")[0]
  np.testing.assert_allclose(
    gradient[equals, :3], [18 / 11, 18 / 11 - 18, 18 / 11], rtol=1e-4
  )  # in every text just once

  alone = loop.train(objective, FEW_ROWS, config, tmp_path, ONE)
  assert np.isfinite(alone["rate"])
  stored, _ = storage.load_model(tmp_path)
  assert set(stored["params"]) == {"encoder", "transformer"}
  both, config = run_objective(small_target, token_count_loss=0.5, init_from=str(tmp_path))
  start = jax.tree.map(jnp.asarray, both.start)
  assert set(start) == set(params) == {"encoder", "transformer", "count_head"}
  jax.tree.map(np.testing.assert_array_equal, start["count_head"], stored["count_head"])
  args = extra, small_target.params, texts, keys
  without, _ = run_objective(small_target, init_from=str(tmp_path))
  assert set(without.start) == {"encoder", "transformer"}  # this one has no use for it
  assert jax.jit(both.loss)(start, *args)[0] - jax.jit(without.loss)(without.start, *args)[0] > 0


@pytest.mark.slow
def test_finished_decoder_is_given_a_matrix_for_each_site_which_then_learns(small_target, tmp_path):
  plain, _ = run_objective(small_target, encoder_width=12)
  plain.finish(start_of(plain)[0], {}, tmp_path)
  again = {"encoder_width": 12, "init_from": str(tmp_path)}
  texts, keys = jnp.asarray(FEW_ROWS[:16]), jax.random.split(jax.random.key(1), 16)
  losses, grads = [], []
  for has in (False, True):
    objective, _ = run_objective(small_target, site_inputs=has, **again)
    params, extra = start_of(objective)
    params = {**params, **jax.tree.map(jnp.asarray, objective.start)}
    loss_and_grad = jax.jit(jax.value_and_grad(objective.loss, has_aux=True))
    (loss, _), grad = loss_and_grad(params, extra, small_target.params, texts, keys)
    losses.append(loss)
    grads.append(grad["encoder"])
  assert losses[0] == losses[1]
  assert (np.abs(grads[1]["site_inputs"]).max(axis=(1, 2)) > 0).all() and "site_inputs" not in grads[0]
  objective.finish(params, {}, tmp_path / "more")
  with pytest.raises(InversionViewError, match="has site_inputs = True, the config False; set the same"):
    run_objective(small_target, encoder_width=12, init_from=str(tmp_path / "more"))


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
    run_objective(small_target, **changes)
