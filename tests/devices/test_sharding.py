"""Sharding of parameters over "model" and optimizer state over "data", and a training step that does not depend on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import numerics, parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.planning import abstract_programs
from inversionview_jax.training import checkpoints, decoder_objective, identity, loop, model_shapes, optimizers
from inversionview_jax.training.update import initial_state, make_update, state_shardings, tokens_sharding

TASK = tasks.get("addition")
ROWS = TASK.tokens(TASK.split("train")[:48])
BATCH, STEPS = 16, 2
ADAMW = {
  "name": "adamw", "lr": 1e-2, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.1, "clip": 1.0, "b2": 0.99,
}  # fmt: skip
CONFIG = ConfigDict({
  "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32, "dropout_resid": 0.1}, "encoder_blocks": 1, "encoder_width": 0,
  "n_slots": 2, "normalize": "standard", "sites": ("x0.pre", "a0.1"), "pairs_per_text": 2, "bos_rate": 0.2, "reweight": 0.0,
  "noise": 0.1, "eval_queries": 3, "final_queries": 3, "seed": 3, "average": 0.9, "batch_size": BATCH, "steps": 4, "steps_per_call": STEPS,
  "optimizer": ADAMW,
})  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def changed(**changes) -> ConfigDict:
  config = ConfigDict(CONFIG.to_dict())
  for name, value in changes.items():
    config[name] = ConfigDict(value) if isinstance(value, dict) else value
  return config


def mesh_of(config, devices=8):
  return parallel.mesh_of(config, jax.devices()[:devices])


# Rules.


@pytest.mark.parametrize(
  "name, shape, expected",
  [
    ("blocks_0/attn/q/kernel", (16, 32), (None, "model")),
    ("blocks_0/attn/v/bias", (32,), ("model",)),
    ("transformer/blocks_1/attn/o/kernel", (32, 16), ("model",)),
    ("transformer/blocks_1/attn/o/bias", (16,), ()),
    ("blocks_0/mlp/gate/kernel", (16, 64), (None, "model")),
    ("blocks_0/mlp/proj/kernel", (64, 16), ("model",)),
    ("embed", (32, 16), ("model",)),
    ("transformer/embed", (15, 16), (None, "model")),  # the vocabulary does not divide: the width
    ("transformer/embed", (15, 9), ()),
    ("site_embed", (4, 4), ()),
    ("blocks_0/ln1/scale", (16,), ()),
    ("opt_state/1/0/mu/transformer/blocks_0/mlp/fc/kernel", (16, 64), (None, "model")),
    ("opt_state/1/0/count", (), ()),
  ],
)
def test_rules_split_what_divides_and_moments_as_their_parameters(name, shape, expected):
  assert sharding.spec(name, shape, parallel.make_mesh(model=2)) == PartitionSpec(*expected)
  assert sharding.spec(name, shape, parallel.make_mesh()) == PartitionSpec()


def test_optimizer_state_is_spread_over_data_along_another_dimension():
  mesh = parallel.make_mesh(model=2)  # 4 x 2
  assert sharding.spec("attn/q/kernel", (16, 32), mesh, over_data=True) == PartitionSpec("data", "model")
  assert sharding.spec("ln1/scale", (16,), mesh, over_data=True) == PartitionSpec("data")
  assert sharding.spec("ln1/scale", (6,), mesh, over_data=True) == PartitionSpec()


# A step is the same however it is sharded.

VARIANTS = {
  "data": (8, {}),
  "model": (2, {"mesh": {"model": 2}}),
  "both": (4, {"mesh": {"model": 2, "shard_optimizer": True}}),
  "zero": (4, {"mesh": {"model": 1, "shard_optimizer": True}}),
  "pieces": (2, {"compute": {"accumulate": 4}}),
  "remat": (1, {"compute": {"remat": True, "donate": False}}),
}


def two_steps(small_target, config, mesh):
  """-> (state after two calls of two steps, their losses and norms, the program)."""
  objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
  optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
  state = initial_state(objective, optimizer, config)
  rng = np.random.default_rng(0)  # large enough for every parameter to matter
  params = jax.tree.map(lambda x: x + 0.2 * rng.normal(size=x.shape).astype(np.float32), state.params)
  state = dataclasses.replace(state, params=params, average=jax.tree.map(jnp.copy, params))
  state = parallel.put(state, state_shardings(state, config, mesh))
  frozen = parallel.put(objective.frozen, sharding.shardings(objective.frozen, mesh))
  update, seen = make_update(objective, optimizer, config, mesh), []
  for call in range(2):
    tokens = ROWS[: 2 * BATCH].reshape(2, BATCH, -1)[:, ::-1] if call else ROWS[: 2 * BATCH].reshape(2, BATCH, -1)
    state, losses, norms = update(state, frozen, jax.device_put(tokens.astype(np.int32), tokens_sharding(mesh)))
    seen.append((np.asarray(losses), np.asarray(norms)))
  return state, np.array(seen)


@pytest.fixture(scope="module")
def one_device(small_target):
  config = changed()
  state, seen = two_steps(small_target, config, mesh_of(config, 1))
  return jax.tree.map(np.asarray, state), seen


_SLOW = ("data", "model", "zero", "pieces", "remat")  # "both" has three of them in one


@pytest.mark.parametrize("variant", [pytest.param(v, marks=pytest.mark.slow) if v in _SLOW else v for v in VARIANTS])
def test_steps_are_those_of_one_device(variant, small_target, one_device):
  devices, changes = VARIANTS[variant]
  config = changed(**changes)
  mesh = mesh_of(config, devices)
  state, seen = two_steps(small_target, config, mesh)
  np.testing.assert_allclose(seen, one_device[1], rtol=2e-5)
  moments, expected = jax.tree.leaves(state.opt_state), jax.tree.leaves(one_device[0].opt_state)
  for x, y in zip(moments, expected, strict=True):  # moments hold the gradients; Adam hides a factor in them
    np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * np.abs(y).max() + 1e-9)
  assert max(np.abs(x).max() for x in expected) > 1e-2
  wanted = state_shardings(state, config, mesh)
  for x, where in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
    assert x.sharding.is_equivalent_to(where, x.ndim)


def held(tree, device) -> int:
  """Bytes of a tree on one device."""
  return sum(s.data.nbytes for x in jax.tree.leaves(tree) for s in x.addressable_shards if s.device == device)


def test_a_device_holds_its_share_only(small_target):
  config = changed(mesh={"model": 2, "shard_optimizer": True})
  mesh = mesh_of(config)
  objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
  optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
  state = initial_state(objective, optimizer, config)
  placed = parallel.put(state, state_shardings(state, config, mesh))
  first = mesh.devices.flat[0]
  whole = sum(x.nbytes for x in jax.tree.leaves(state.params))
  assert held(placed.params, first) < 0.65 * whole
  # Two moments, over eight devices; but the embedding of 15 tokens divides in one dimension only, and is much of so small a model.
  assert held(placed.opt_state, first) < 2 * 0.32 * whole
  moments = jax.tree_util.tree_flatten_with_path(placed.opt_state)[0]
  kernels = [x for path, x in moments if sharding.path_name(path).endswith("fc/kernel")]
  assert len(kernels) == 2 and all(held(x, first) * 8 == x.nbytes for x in kernels)
  target = sum(x.nbytes for x in jax.tree.leaves(small_target.params))
  assert held(objective.frozen, first) < 0.65 * target


@pytest.mark.slow
def test_state_saved_on_one_mesh_is_restored_on_another(small_target, tmp_path):
  """From 2 x 4 devices with spread optimizer state to 4 x 1 without, and what is held where is as the new mesh wants it."""
  states = []
  for devices, mesh_config in ((8, {"model": 4, "shard_optimizer": True}), (4, {"model": 1, "shard_optimizer": False})):
    config = changed(mesh=mesh_config)
    mesh = mesh_of(config, devices)
    objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
    optimizer = optimizers.make_optimizer(config.optimizer, config.steps)
    state = initial_state(objective, optimizer, config)
    states.append((config, state, state_shardings(state, config, mesh)))
  (config, state, where), (other, like, there) = states
  about = identity.describe(config, ROWS, {}) | {"evaluated": True}
  with checkpoints.Checkpoints(tmp_path / "c") as saved:
    saved.save(7, parallel.put(state, where), about)
  with checkpoints.Checkpoints(tmp_path / "c") as saved:
    restored, description = saved.restore(
      sharding.with_shardings(like, there), identity.describe(other, ROWS, {}), other
    )
    assert description["step"] == 7 and not saved.notes
  for x, y, placement in zip(*map(jax.tree.leaves, (restored, state, there)), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
    assert x.sharding.is_equivalent_to(placement, x.ndim)


def test_optimizer_that_multiplies_matrices_takes_spread_ones(meshes):
  """Muon orthogonalises whole matrices, of which each device holds a part."""
  rng = np.random.default_rng(0)
  shapes = {"attn": {"q": {"kernel": (16, 32), "bias": (32,)}}, "embed": (15, 16)}
  params, grads = (
    jax.tree.map(lambda s: np.float32(rng.normal(size=s)), shapes, is_leaf=lambda x: isinstance(x, tuple)) for _ in "12"
  )
  rule = optimizers.make_optimizer(ConfigDict(ADAMW | {"name": "muon"}), 4)
  expected, _ = parallel.jit(rule.update)(grads, rule.init(params), params)
  mesh = parallel.make_mesh(model=2)
  spread = sharding.shardings(params, mesh, True)
  state = parallel.put(rule.init(params), sharding.shardings(rule.init(params), mesh, True))
  updated, _ = parallel.jit(rule.update)(
    parallel.put(grads, spread), state, parallel.put(params, sharding.shardings(params, mesh))
  )
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-6), updated, expected)


@pytest.mark.slow
def test_bfloat16_is_computed_in_and_float32_kept(small_target, one_device, tmp_path):
  config = changed(compute={"dtype": "bfloat16"})
  mesh = mesh_of(config, 1)
  state, seen = two_steps(small_target, config, mesh)
  assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
  assert (seen != one_device[1]).any()
  np.testing.assert_allclose(seen[:, 0], one_device[1][:, 0], rtol=0.03)
  objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
  objective.finish(parallel.fetch(state.params), {}, tmp_path)
  assert storage.read_description(tmp_path)["config"]["transformer"]["dtype"] == "float32"


# Compiled without values.


def test_step_compiled_ahead_is_the_step_that_trains(small_target, one_device):
  config = changed(mesh={"model": 2, "shard_optimizer": True})
  mesh = mesh_of(config, 4)
  objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
  update, (state, frozen, tokens) = abstract_programs.training_step(
    TASK, config, small_target.module, objective.model, mesh
  )
  real = initial_state(objective, optimizers.make_optimizer(config.optimizer, config.steps), config)
  assert jax.tree.structure(state) == jax.tree.structure(real)
  assert [(x.shape, x.dtype) for x in jax.tree.leaves(state)] == [(x.shape, x.dtype) for x in jax.tree.leaves(real)]
  compiled = update.lower(state, frozen, tokens).compile()
  placed = parallel.put(real, state_shardings(real, config, mesh))
  held_target = parallel.put(objective.frozen, sharding.shardings(objective.frozen, mesh))
  texts = jax.device_put(ROWS[: 2 * BATCH].reshape(2, BATCH, -1).astype(np.int32), tokens_sharding(mesh))
  after, losses, _ = compiled(placed, held_target, texts)
  assert int(after.step) == STEPS and np.isfinite(losses).all()


def test_sampler_compiled_ahead_takes_what_a_reader_gives(small_target, small_decoder):
  mesh = parallel.make_mesh(devices=jax.devices()[:2])
  program, arguments = abstract_programs.sampling(
    TASK, small_target.module, small_decoder[0], mesh, queries=2, rows=8, effects=False
  )
  assert program.lower(*arguments).compile().memory_analysis().argument_size_in_bytes > 0


# Refusals.


def test_meshes_that_do_not_fit_are_refused_in_one_line(small_target):
  for model, named in ((3, "8 devices"), (0, "mesh.model = 0"), (2.5, "mesh.model = 2.5"), (True, "mesh.model = True")):
    with pytest.raises(InversionViewError, match=named):
      parallel.mesh_of(ConfigDict({"mesh": {"model": model}}))
  params = {"attn": {"q": {"kernel": np.zeros((9, 9))}}}
  with pytest.raises(InversionViewError, match="mesh.model = 2 divides no matrix of the decoder"):
    sharding.check_shardable(params, parallel.make_mesh(model=2), "decoder")
  sharding.check_shardable(params, parallel.make_mesh(), "decoder")


@pytest.mark.parametrize("pieces, named", [(3, "16 does not divide over 8 devices x 3 pieces"), (0, "accumulate = 0")])
def test_pieces_that_do_not_fit_are_refused(pieces, named):
  with pytest.raises(InversionViewError, match=named):
    loop.check(changed(compute={"accumulate": pieces}), parallel.make_mesh())


def test_unknown_dtype_is_refused():
  with pytest.raises(InversionViewError, match="compute.dtype 'float16'"):
    model_shapes.compute_in_training(ConfigDict({"compute": {"dtype": "float16"}}))


@pytest.mark.parametrize(
  ("compute", "dropout", "model", "bf16"),
  [
    ({}, 0.0, 1, True),
    ({"dtype": "bfloat16"}, 0.0, 1, True),
    ({"dtype": "float32"}, 0.0, 1, False),
    ({}, 0.1, 1, False),
    ({}, 0.0, 2, False),
  ],
)
def test_decoders_train_with_bf16_matmuls_except_for_float32_dropout_or_a_divided_model(
  compute, dropout, model, bf16, small_decoder
):
  shape, _ = small_decoder
  shape = dataclasses.replace(shape, transformer=dataclasses.replace(shape.transformer, dropout_attn=dropout))
  mesh = parallel.make_mesh(model=model)
  made = model_shapes.decoder_compute_in_training(shape, ConfigDict({"compute": compute}), mesh)
  assert made.dot_general is (numerics.bf16_matmul if bf16 else numerics.matmul)
  assert made.dtype == compute.get("dtype", "float32")
