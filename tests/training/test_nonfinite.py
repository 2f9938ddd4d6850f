"""Losses and gradients that are not finite: steps that are left out, the end of the run, and the batch that is written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict
from training_runs import POISON, ROWS, Slope, lines, refusal, settings

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import decoder_objective, loop, optimizers
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.update import initial_state, make_update

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def one(**changes):
  return ConfigDict(tiny_run.CONFIG | changes), parallel.make_mesh(devices=jax.devices()[:1])


def test_loss_that_is_not_finite_ends_the_run_at_its_step_and_nothing_of_it_is_saved(tmp_path):
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
  loop.train(Slope(), rows, settings(), tmp_path)  # the checkpoint before it is finite, and is resumed from
  assert lines(tmp_path)[-1]["step"] == 20 and np.isfinite(lines(tmp_path)[-1]["score"])


class Poisoned(tiny_run.Slope):
  """Its loss is not a number for the first row of some steps' batches."""

  def __init__(self, *tokens):
    super().__init__()
    self.bad = np.stack(tokens)

  def loss(self, params, extra, frozen, tokens, keys):
    total, count = super().loss(params, extra, frozen, tokens, keys)
    hit = jnp.any(jnp.all(tokens[:, None] == self.bad[None], axis=-1))
    return total * jnp.where(hit, jnp.nan, 1.0), count


def poisoned(*steps):
  rows = tiny_run.rows()
  batches = Batches(rows, 16, 0)
  return Poisoned(*(batches[step - 1][3] for step in steps)), rows


def test_steps_that_are_not_finite_leave_parameters_and_optimizer_as_they_were(tmp_path):
  objective, rows = poisoned(6, 7)
  config, mesh = one(steps=8, skip_nonfinite=2, eval_every=0)
  loop.train(objective, rows, config, tmp_path, mesh)
  notes = [line["note"] for line in lines(tmp_path) if "note" in line]
  assert [note.split(" is left out")[0] for note in notes] == ["step 6", "step 7"]
  assert all(np.isfinite(line["loss"]) for line in lines(tmp_path) if "loss" in line)
  model = make_update(objective, optimizers.make_optimizer(config.optimizer, 8), config, mesh)
  state = initial_state(objective, optimizers.make_optimizer(config.optimizer, 8), config)
  batch = Batches(rows, 16, 0)[5].astype(np.int32)[None]
  before = jax.tree.map(np.asarray, state)
  after, losses, _ = model(state, objective.frozen, batch)
  assert np.isnan(losses).all() and int(after.step) == 1
  jax.tree.map(np.testing.assert_array_equal, before.params, jax.tree.map(np.asarray, after.params))
  jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.tree.map(np.asarray, after.opt_state))


def test_more_in_a_row_than_allowed_end_the_run(tmp_path):
  objective, rows = poisoned(3, 6, 7)
  config, mesh = one(steps=8, skip_nonfinite=1)
  with pytest.raises(InversionViewError, match="not finite at step 7"):
    loop.train(objective, rows, config, tmp_path, mesh)
  assert (tmp_path / "nonfinite_7.npz").exists()


@pytest.mark.slow
def test_inspect_gives_the_sites_and_positions_that_the_loss_drew(small_target):
  config = ConfigDict({
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1,
    "normalize": "none", "sites": ("x0.pre", "a0.1", "x1.post"), "pairs_per_text": 2, "bos_rate": 0.2, "reweight": 0.0, "noise": 0.0,
    "eval_queries": 1, "final_queries": 1, "seed": 0,
  })  # fmt: skip
  objective = decoder_objective.DecoderObjective(
    TASK, config, small_target, ROWS, ROWS, parallel.make_mesh(devices=jax.devices()[:1])
  )
  drawn, tokens = [], jnp.asarray(ROWS[:8].astype(np.int32))
  keys = parallel.fold_in_each(jax.random.key(0), jnp.arange(8))
  params, extra = objective.init(jax.random.key(1))
  kept = decoder_objective.collect.collect

  def collect(*args, **kwargs):
    pairs = kept(*args, **kwargs)
    drawn.append(pairs)
    return pairs

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(decoder_objective.collect, "collect", collect)
    objective.loss(params, extra, objective.frozen, tokens, keys)
  choices, names = objective.inspect(extra, tokens, keys)
  np.testing.assert_array_equal(np.asarray(choices["site"]).reshape(-1), drawn[0].site)
  np.testing.assert_array_equal(np.asarray(choices["position"]).reshape(-1), drawn[0].position)
  assert names == sorted(set(names), key=config.sites.index) and len(names) >= 2
