"""Warm start of a target: what is kept, reinitialised embeddings, noise on W_Q and W_K, and what is refused."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import save_target
from inversionview_jax.training import target_objective, target_start

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def finished(make_target, tmp_path):
  """A finished target whose digits 3 and 7 have the same embedding."""
  target = make_target()
  params = {key: dict(value) if isinstance(value, dict) else np.array(value) for key, value in target.params.items()}
  params["embed"][7] = params["embed"][3]
  save_target(tmp_path / "T", params, target.config, TASK.tokenizer, "stuck", "addition")
  return str(tmp_path / "T"), params, target.config


def start(target, **changes):
  return ConfigDict({"target": target, "reinit_tokens": "", "qk_noise_std": 0.0} | changes)


def test_without_changes_it_is_the_finished_target(finished):
  folder, params, config = finished
  start_params = target_start.parameters(start(folder), config, TASK, seed=0)
  np.testing.assert_array_equal(start_params["embed"], params["embed"])
  np.testing.assert_array_equal(
    start_params["blocks_1"]["attn"]["k"]["kernel"], params["blocks_1"]["attn"]["k"]["kernel"]
  )


def test_reinitialised_token_differs_from_the_others_and_nothing_else_changes(finished):
  folder, params, config = finished
  start_params = target_start.parameters(start(folder, reinit_tokens="7"), config, TASK, seed=0)
  new, twin = start_params["embed"][7], start_params["embed"][3]
  assert np.linalg.norm(new) == pytest.approx(np.linalg.norm(twin), rel=1e-5)
  assert new @ twin / np.linalg.norm(new) ** 2 < 0.9
  others = np.arange(len(params["embed"])) != 7
  np.testing.assert_array_equal(start_params["embed"][others], params["embed"][others])
  np.testing.assert_array_equal(start_params["pos_embed"], params["pos_embed"])
  assert not np.array_equal(
    target_start.parameters(start(folder, reinit_tokens="7"), config, TASK, seed=1)["embed"][7], new
  )


def test_noise_of_the_given_size_is_added_to_queries_and_keys_only(finished):
  folder, params, config = finished
  start_params = target_start.parameters(start(folder, qk_noise_std=0.25), config, TASK, seed=0)
  for layer in ("blocks_0", "blocks_1"):
    attention, before = start_params[layer]["attn"], params[layer]["attn"]
    moved = np.concatenate([(attention[name]["kernel"] - before[name]["kernel"]).ravel() for name in ("q", "k")])
    assert moved.std() == pytest.approx(0.25, rel=0.2)
    np.testing.assert_array_equal(attention["v"]["kernel"], before["v"]["kernel"])
  np.testing.assert_array_equal(start_params["embed"], params["embed"])


def test_training_starts_from_it(finished):

  folder, params, config = finished
  model = {
    "n_layers": config.n_layers,
    "n_heads": config.n_heads,
    "d_model": config.d_model,
    "d_mlp": config.d_mlp,
    "tied": config.tied,
  }
  settings = ConfigDict({"model": model, "eval_examples": 8, "seed": 0, "start": start(folder)})
  objective = target_objective.TargetObjective(TASK, settings, TASK.tokens(np.arange(8)))
  np.testing.assert_array_equal(objective.start["embed"], params["embed"])


def test_another_shape_no_target_and_unknown_tokens_are_refused(finished):
  import dataclasses

  folder, _, config = finished
  with pytest.raises(InversionViewError, match="has another shape"):
    target_start.parameters(start(folder), dataclasses.replace(config, n_layers=3), TASK, seed=0)
  with pytest.raises(InversionViewError, match="nowhere"):
    target_start.parameters(start("nowhere"), config, TASK, seed=0)
  with pytest.raises(InversionViewError, match="'x'"):
    target_start.parameters(start(folder, reinit_tokens="x"), config, TASK, seed=0)
