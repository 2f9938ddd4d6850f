"""The decoder's training objective: how parameters start, and what a trained decoder prefers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.training import decoder_objective, optimizers
from inversionview_jax.training.update import State, make_update

TASK = tasks.get("addition")
PAD = TASK.tokenizer.pad_id

pytestmark = pytest.mark.usefixtures("quick_to_compile")

ROWS = TASK.tokens(TASK.split("train")[:1000])


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
