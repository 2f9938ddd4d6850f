"""The mesh, `pmap`, and training that does not depend on the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict
from training_runs import settings

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.devices.parallel import DATA
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import decoder_objective, loop
from inversionview_jax.training.target_objective import TargetObjective
from inversionview_jax.training.update import State, make_update

TASK = tasks.get("addition")
MODEL = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}
ROWS = TASK.tokens(TASK.split("train")[:80])
BATCH, STEPS = 16, 20
LEARNING_RATE = 0.1

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# The mesh.


def test_data_axis_takes_the_devices_that_the_model_axis_leaves():
  assert dict(parallel.make_mesh().shape) == {"data": 8, "model": 1}
  assert dict(parallel.make_mesh(model=2).shape) == {"data": 4, "model": 2}
  assert dict(parallel.make_mesh(data=2, model=4).shape) == {"data": 2, "model": 4}
  one = parallel.make_mesh(devices=jax.devices()[3:4])
  assert dict(one.shape) == {"data": 1, "model": 1} and one.devices.flat[0] == jax.devices()[3]


@pytest.mark.parametrize(
  "wrong",
  [
    {"data": 3},
    {"model": 3},
    {"data": 4, "model": 4},
    {"model": 16},
    {"model": 0},
    {"data": 0},
    {"data": -4, "model": -2},
    {"devices": []},
  ],
  ids=str,
)
def test_mesh_that_does_not_fit_the_devices_is_refused(wrong):
  with pytest.raises(InversionViewError) as caught:
    parallel.make_mesh(**wrong)
  assert "\n" not in str(caught.value)
  assert f"{0 if 'devices' in wrong else 8} devices" in str(caught.value)


def test_shard_splits_one_axis_over_the_devices_and_replicate_copies(meshes):
  x, mesh = np.arange(32.0).reshape(2, 16), meshes(8)
  split = parallel.shard({"x": x}, mesh, axis=1)["x"]
  assert split.sharding.spec == PartitionSpec(None, DATA)
  assert [s.data.shape for s in split.addressable_shards] == [(2, 2)] * 8
  np.testing.assert_array_equal(split.addressable_shards[3].data, x[:, 6:8])
  copies = parallel.replicate({"x": x}, mesh)["x"].addressable_shards
  assert len(copies) == 8
  for copy in copies:
    np.testing.assert_array_equal(copy.data, x)


def test_batch_that_does_not_divide_the_devices_is_refused_with_both_numbers(meshes):
  for axis, shape in ((0, (12, 8)), (1, (8, 12))):
    with pytest.raises(InversionViewError, match="12 does not divide over 8 devices"):
      parallel.shard({"good": np.zeros((8, 8)), "bad": np.zeros(shape)}, meshes(8), axis)
  config = settings(batch_size=12)
  with pytest.raises(InversionViewError, match="batch_size = 12 does not divide over 8 devices"):
    loop.check(config, meshes(8))


# pmap.


@pytest.mark.parametrize("data, model", [(8, 1), (4, 2), (1, 8)])
def test_pmap_runs_once_per_device_of_the_data_axis(data, model):
  shapes = []

  def function(x, y, whole):
    shapes.append((x.shape, y.shape, whole.shape))
    index = jax.lax.axis_index(DATA)
    total, mean = jax.lax.psum(x.sum(), DATA), jax.lax.pmean(x.mean(), DATA)
    return {"index": index[None], "y": y + whole.sum()}, (total, mean, jax.lax.psum(1, DATA))

  mesh = parallel.make_mesh(data, model)
  x, y = np.arange(16.0), np.arange(32.0).reshape(2, 16)
  mapped = parallel.pmap(function, mesh, in_axes=(0, 1, None), out_axes=({"index": 0, "y": 1}, None))
  each, (total, mean, count) = mapped(x, y, np.ones(3))
  assert set(shapes) == {((16 // data,), (2, 16 // data), (3,))}
  np.testing.assert_array_equal(each["index"], np.arange(data))
  np.testing.assert_array_equal(each["y"], y + 3)
  assert (total, mean, count) == (x.sum(), x.mean(), data)


def test_pmap_sums_no_gradient_on_its_own(meshes):
  x = np.arange(8.0)

  def function(w, x):
    grad = jax.grad(lambda w: w * x.sum())(w)
    return grad[None], jax.lax.psum(grad, DATA)

  own, total = parallel.pmap(function, meshes(8), in_axes=(None, 0), out_axes=(0, None))(2.0, x)
  np.testing.assert_array_equal(own, x)
  assert total == x.sum()


def test_key_of_an_example_depends_on_its_global_index_alone(meshes):
  key = jax.random.key(7)

  def bits(index):
    return (
      jax.random.bits(key, (3,))
      if index is None
      else jax.vmap(lambda k: jax.random.bits(k, (3,)))(parallel.fold_in_each(key, index))
    )

  index = np.arange(16, dtype=np.int32)
  whole = bits(index)
  assert len(np.unique(whole)) == 48
  np.testing.assert_array_equal(whole[5], jax.random.bits(jax.random.fold_in(key, 5), (3,)))
  np.testing.assert_array_equal(parallel.pmap(bits, meshes(8), in_axes=(0,), out_axes=0)(index), whole)


# Training. Losses would not do: Adam hides a factor in the gradients.


CONFIG = ConfigDict({
  "model": MODEL, "eval_examples": 8, "seed": 3, "average": 0.0, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1, "normalize": "standard",
  "sites": ("x0.pre", "a0.1"), "pairs_per_text": 2, "bos_rate": 0.2, "reweight": 0.0, "noise": 0.0, "eval_queries": 1,
  "final_queries": 1,
})  # fmt: skip


def _start(objective):
  """(params, extra); the parameters are large enough for gradients that are not tiny."""
  params, extra = jax.eval_shape(objective.init, jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree_util.tree_map_with_path(
    lambda path, x: np.float32((path[-1].key == "scale") + 0.2 * rng.normal(size=x.shape)), params
  )
  if extra:
    extra = {
      "stats": {"encoder": objective._statistics},
      "site_logits": np.zeros(extra["site_logits"].shape, np.float32),
    }
  return params, extra


def _steps(objective, mesh):
  """Gradient descent -> (first gradients, last parameters, losses and gradient norms of the steps)."""
  record = optax.GradientTransformation(init=lambda p: jax.tree.map(jnp.zeros_like, p), update=lambda g, old, p: (g, g))
  optimizer = optax.chain(record, optax.sgd(LEARNING_RATE))
  params, extra = _start(objective)
  state = parallel.replicate(State(np.int32(0), params, optimizer.init(params), {}, extra), mesh)
  frozen, losses = parallel.replicate(objective.frozen, mesh), []
  update = make_update(objective, optimizer, CONFIG, mesh)
  for step in range(STEPS):
    start = step * BATCH % len(ROWS)
    tokens = parallel.shard(ROWS[None, start : start + BATCH], mesh, axis=1)
    state, loss, norm = update(state, frozen, tokens)
    losses.append((float(loss[0]), float(norm[0])))
    if step == 0:
      first = jax.tree.map(np.asarray, state.opt_state[0])
  return first, jax.tree.map(np.asarray, state.params), losses


@pytest.fixture(scope="module")
def target_objective():
  return TargetObjective(TASK, CONFIG, ROWS)


@pytest.fixture(scope="module")
def target_runs(target_objective, meshes):
  """Number of devices -> what `_steps` returns."""
  return {n: _steps(target_objective, meshes(n)) for n in (1, 2, 8)}


@pytest.fixture(scope="module")
def decoder_runs(small_target, meshes):
  """The same for a decoder, with everything in it that is random."""
  config = ConfigDict(CONFIG)
  config.model = {**MODEL, "dropout_embed": 0.1}
  objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS)
  return {n: _steps(objective, meshes(n)) for n in (1, 8)}


def _largest(tree) -> float:
  return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def _assert_close(tree, expected):
  """To float32 rounding of a sum over the batch; some gradients are zero but for that rounding."""
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5 * np.abs(y).max() + 1e-8), tree, expected
  )


def test_gradients_are_those_of_the_mean_loss_over_the_whole_batch(target_runs, target_objective):
  params, _ = _start(target_objective)

  def mean(params):
    total, count = target_objective.loss(params, {}, (), jnp.asarray(ROWS[:BATCH]), None)
    return total / count

  loss, by_hand = parallel.jit(jax.value_and_grad(mean))(params)
  assert _largest(by_hand) > 0.1
  for first, _, losses in target_runs.values():
    _assert_close(first, by_hand)
    np.testing.assert_allclose(losses[0], (loss, optax.global_norm(by_hand)), rtol=1e-5)


@pytest.mark.parametrize(
  "runs, n", [("target_runs", 2), ("target_runs", 8), pytest.param("decoder_runs", 8, marks=pytest.mark.slow)]
)
def test_gradients_and_parameters_after_twenty_steps_do_not_depend_on_the_number_of_devices(runs, n, request):
  runs = request.getfixturevalue(runs)
  (one_first, one_last, one_losses), (first, last, losses) = runs[1], runs[n]
  assert _largest(one_first) > 0.1  # so that a step moves parameters by 1e-2, far more than what is tolerated
  _assert_close(first, one_first)
  _assert_close(last, one_last)
  np.testing.assert_allclose(losses, one_losses, rtol=1e-5)
