"""The jitted update: moving average, and steps whose loss or gradient is not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training_runs import ROWS, Slope, settings

from inversionview_jax.models import storage
from inversionview_jax.training import loop, optimizers
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.update import State, make_update

pytestmark = pytest.mark.usefixtures("quick_to_compile")


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
