"""Optimizers: AdamW and Muon as optax has them, Muon's bfloat16 matmuls, the schedules and what is refused."""

import jax
import numpy as np
import optax
import optax.contrib
import pytest
from ml_collections import ConfigDict

from inversionview_jax.devices import cpu, numerics, parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import optimizers

ADAMW = {
  "name": "adamw", "lr": 1e-2, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01,
  "clip": 1.0, "b2": 0.99,
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def optimizer(steps=100, **changes):
  return optimizers.make_optimizer(ConfigDict(ADAMW | changes), steps)


def parameters(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
    "embed": (15, 8),
    "block": {"q": {"kernel": (8, 8), "bias": (8,)}, "fc": {"kernel": (8, 16)}},
    "ln": {"scale": (8,)},
  }
  return jax.tree.map(lambda shape: np.float32(rng.normal(size=shape)), shapes, is_leaf=lambda x: isinstance(x, tuple))


def first_updates(rule, grads, params=None):
  params = parameters() if params is None else params
  return jax.tree.map(np.asarray, parallel.jit(rule.update)(grads, rule.init(params), params)[0])


def test_adamw_decays_matrices_only():
  params = parameters()
  updates = first_updates(optimizer(lr=0.1, weight_decay=0.5), jax.tree.map(np.zeros_like, params), params)
  for decayed, param in (
    (updates["embed"], params["embed"]),
    (updates["block"]["q"]["kernel"], params["block"]["q"]["kernel"]),
  ):
    np.testing.assert_allclose(decayed, -0.1 * 0.5 * param, rtol=1e-5)
  assert not updates["block"]["q"]["bias"].any() and not updates["ln"]["scale"].any()


@pytest.mark.parametrize("adam_lr", [0.0, 0.02])
def test_muon_moves_kernels_by_orthogonal_matrices_and_everything_else_as_adam_does(adam_lr):
  grads = parameters(1)
  updates = first_updates(optimizer(name="muon", lr=0.1, adam_lr=adam_lr, weight_decay=0.0, clip=0.0), grads)
  for path in (("embed",), ("ln", "scale"), ("block", "q", "bias")):
    update, grad = updates, grads
    for key in path:
      update, grad = update[key], grad[key]
    # Adam's first step is as long for every element; optax looks ahead (Nesterov), which makes it 1.47 times the rate.
    np.testing.assert_allclose(update, -1.474 * (adam_lr or 0.1) * np.sign(grad), rtol=1e-3)
  for name in ("q", "fc"):
    update, grad = updates["block"][name]["kernel"], grads["block"][name]["kernel"]
    sizes = np.linalg.svd(update, compute_uv=False)
    assert sizes.max() / sizes.min() < 2 < np.divide(*np.linalg.svd(grad, compute_uv=False)[[0, -1]])
    assert np.sum(update * grad) < 0 and np.std(np.abs(update)) > 0.1 * np.abs(update).mean()


def test_muon_decays_kernels():
  params = parameters()
  zero = jax.tree.map(np.zeros_like, params)
  plain, decayed = (
    first_updates(optimizer(name="muon", lr=0.1, weight_decay=decay), zero, params) for decay in (0.0, 0.5)
  )
  np.testing.assert_allclose(
    decayed["block"]["q"]["kernel"] - plain["block"]["q"]["kernel"],
    -0.1 * 0.5 * params["block"]["q"]["kernel"],
    rtol=1e-4,
  )
  assert not decayed["ln"]["scale"].any() and not decayed["block"]["q"]["bias"].any()


def muon_of_optax(rate, weight_decay):
  def matrices(params):
    def spec(path, leaf):
      if path[-1].key == "site_inputs":
        return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
      return optax.contrib.MuonDimensionNumbers() if path[-1].key == "kernel" else None

    return jax.tree_util.tree_map_with_path(spec, params)

  def decayed(params):
    return jax.tree.map(lambda x: x.ndim >= 2, params)

  return optax.contrib.muon(
    rate, weight_decay=weight_decay, weight_decay_mask=decayed, adam_b2=0.99, muon_weight_dimension_numbers=matrices
  )


def test_muon_is_that_of_optax():
  rng, shapes = np.random.default_rng(0), {"site_inputs": (3, 8, 16), "tall": {"kernel": (48, 8)}}
  sited = jax.tree.map(lambda s: np.float32(rng.normal(size=s)), shapes, is_leaf=lambda x: isinstance(x, tuple))
  mine, theirs = optimizer(name="muon", lr=0.1, weight_decay=0.1, clip=0.0), muon_of_optax(0.1, 0.1)
  params = parameters() | sited
  states = [rule.init(params) for rule in (mine, theirs)]
  one, other = (parallel.jit(rule.update) for rule in (mine, theirs))
  for seed in range(3):
    grads = parameters(seed) | jax.tree.map(lambda x, s=seed: x * (s + 1), sited)
    updates, states[0] = one(grads, states[0], params)
    expected, states[1] = other(grads, states[1], params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), updates, expected)


@pytest.mark.parametrize("shape", [(128, 256), (256, 128)])
def test_bf16_matmuls_move_kernels_by_nearly_the_same_matrices(shape, monkeypatch):
  monkeypatch.setattr(cpu, "has_amx", lambda: True)
  rng = np.random.default_rng(0)
  grads = {"kernel": np.float32(rng.normal(size=shape) * np.geomspace(1e-2, 1, shape[1]))}
  with numerics.compiled_for("cpu"):
    exact, rounded = (
      np.asarray(jax.jit(rule.update)(grads, rule.init(grads), grads)[0]["kernel"])
      for rule in (optimizers.orthogonal_momentum(), optimizers.orthogonal_momentum(numerics.bf16_matmul))
    )
  assert (exact != rounded).any()
  assert np.linalg.norm(exact - rounded) < 0.03 * np.linalg.norm(exact)
  sizes = np.linalg.svd(rounded, compute_uv=False) / max(1, shape[1] / shape[0]) ** 0.5
  assert 0.5 < sizes.min() and sizes.max() < 1.3


@pytest.mark.parametrize(
  "changes, model, bf16",
  [
    ({}, 1, True),
    ({"compute": {"dtype": "bfloat16"}}, 1, True),
    ({"compute": {"dtype": "float32"}}, 1, False),
    ({"mesh": {"model": 1, "shard_optimizer": True}}, 1, False),
    ({}, 2, False),
  ],
)
def test_bf16_matmuls_are_for_whole_matrices_and_not_for_a_config_with_float32(changes, model, bf16, monkeypatch):
  policies = []
  monkeypatch.setattr(optimizers, "make_optimizer", lambda config, steps, dot_general: policies.append(dot_general))
  config = ConfigDict({"optimizer": ADAMW | {"name": "muon"}, "steps": 4, **changes})
  optimizers.of_training(config, parallel.make_mesh(model=model))
  assert policies == [numerics.bf16_matmul if bf16 else numerics.matmul]


@pytest.mark.parametrize(
  "schedule, steps, warmup, rates",
  [
    ("constant", 6, 2, [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]),
    ("cosine", 6, 2, [0, 0.05, 0.1, 0.0854, 0.05, 0.0146, 0]),
    ("trapezoid", 10, 2, [0, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.05, 0]),
    ("trapezoid", 5, 10, [0, 0.01, 0.02, 0.03, 0.04, 0]),
  ],
)
def test_rate_warms_up_and_then_stays_or_falls_to_zero_at_the_end(schedule, steps, warmup, rates):
  rule = optimizer(steps, schedule=schedule, lr=0.1, warmup_steps=warmup, weight_decay=0.0)
  params = {"w": np.ones(3, np.float32)}
  update, state, measured = parallel.jit(rule.update), rule.init(params), []
  for _ in rates:
    updates, state = update(params, state, params)  # Adam's step with a constant gradient is the rate
    measured.append(-float(updates["w"][0]))
  np.testing.assert_allclose(measured, rates, atol=2e-4)


def test_gradients_are_clipped_by_their_global_norm():
  rule = optimizer(clip=1.0, weight_decay=0.0, lr=0.1)
  params = {"v": np.zeros(2, np.float32), "w": np.zeros(2, np.float32)}
  small, large = (jax.tree.map(lambda x, s=s: np.float32([0.3 * s, 0.4 * s]), params) for s in (1, 1000))
  norm = float(optax.global_norm(small))
  updates, _ = rule.update(large, rule.update(small, rule.init(params), params)[1], params)
  unclipped, _ = rule.update(
    jax.tree.map(lambda g: g / norm, small), rule.update(small, rule.init(params), params)[1], params
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updates, unclipped)


@pytest.mark.parametrize(
  "wrong, named",
  [
    ({"name": "adamx"}, ("'adamx'", "adamw, muon")),
    ({"schedule": "cosin"}, ("'cosin'", "constant, cosine, trapezoid")),
  ],
)
def test_unknown_optimizer_and_schedule_are_named_with_the_known_ones(wrong, named):
  with pytest.raises(InversionViewError) as refused:
    optimizer(**wrong)
  assert all(name in str(refused.value) for name in named)
