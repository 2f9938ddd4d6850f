"""Optimizers and learning rate schedules of a config: AdamW and Muon, as transformations of optax.

Shapes: D rows of a matrix, E columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax.devices import numerics, sharding
from inversionview_jax.errors import one_of

# Coefficients of the quintic of Newton-Schulz, chosen for fast growth of small singular values, and its iterations (Jordan et al., 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def of_training(config: ConfigDict, mesh: Mesh) -> optax.GradientTransformation:
  """The optimizer of a whole config: `make_optimizer`, with `numerics.matmul_policy` unless its state is sharded."""
  dot_general = numerics.matmul if sharding.shards_optimizer(config) else numerics.matmul_policy(mesh, config)
  return make_optimizer(config.optimizer, config.steps, dot_general)


def make_optimizer(
  config: ConfigDict, steps: int, dot_general: numerics.DotGeneral = numerics.matmul
) -> optax.GradientTransformation:
  """The optimizer of `config.optimizer`.

  Args:
    config: name ("adamw" or "muon": Muon on the kernels, Adam elsewhere), lr, adam_lr (with Muon, the rate of what Adam trains; 0: also
      lr), warmup_steps, schedule ("constant", "cosine" to zero at `steps`, or "trapezoid", which falls to zero over the last fifth),
      weight_decay (on matrices only), clip (global norm, 0: off), b2 (of Adam).
    steps: of the whole run.
    dot_general: matmul policy of Muon's products.

  Raises:
    InversionViewError: an unknown name or schedule.
  """
  rate = learning_rate(config, steps)
  if config.name == "adamw":
    rule = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay, mask=_matrices)
  elif config.name == "muon":
    elsewhere = optax.adamw(
      (lambda step: config.adam_lr / config.lr * rate(step)) if config.adam_lr else rate,
      b2=config.b2,
      weight_decay=0.0,
      nesterov=True,
    )
    muon = optax.chain(
      orthogonal_momentum(dot_general),
      optax.add_decayed_weights(config.weight_decay),
      optax.scale_by_learning_rate(rate),
    )
    rule = optax.partition({"muon": muon, "adam": elsewhere}, _muon_or_adam)
  else:
    raise one_of("optimizer", config.name, ("adamw", "muon"))
  return optax.chain(optax.clip_by_global_norm(config.clip), rule) if config.clip else rule


def learning_rate(config: ConfigDict, steps: int) -> optax.Schedule:
  """The learning rate of `config.optimizer` as a function of the steps done; raises `InversionViewError` for an unknown schedule."""
  if config.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup_steps, max(steps, config.warmup_steps + 1))
  elif config.schedule in ("constant", "trapezoid"):
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    rate = optax.join_schedules([warmup, optax.constant_schedule(config.lr)], [config.warmup_steps])
    if config.schedule == "trapezoid":
      level, fall = rate, max(steps // 5, 1)

      def rate(step):  # the minimum of both, so that a run shorter than its warm-up has no jump
        return jnp.clip(config.lr * (steps - step) / fall, 0.0, level(step))

  else:
    raise one_of("schedule", config.schedule, ("constant", "cosine", "trapezoid"))
  return rate


def _matrices(params):
  return jax.tree.map(lambda x: x.ndim >= 2, params)


def _muon_or_adam(params):
  """Labels for `optax.partition`: Muon for matrices between hidden layers, also those of each site; not for embeddings and norms."""

  def label(path, leaf):
    name = path[-1].key
    return "muon" if (name == "kernel" and leaf.ndim == 2) or name == "site_inputs" else "adam"

  return jax.tree_util.tree_map_with_path(label, params)


class Momentum(NamedTuple):
  """State of `orthogonal_momentum`: count int32[] of steps, and the moving average of the gradients."""

  count: jax.Array  # type: ignore[assignment]  # as in the states of optax; tuples have a method of this name
  mu: optax.Updates


def orthogonal_momentum(
  dot_general: numerics.DotGeneral = numerics.matmul, beta: float = 0.95
) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024): the Nesterov momentum of every matrix with its singular values brought near 1.

  Gives the updates of `optax.contrib.scale_by_muon` with its scaling by shape, sqrt(max(1, E / D)). That one takes no matmul policy, and
  these products in float32 are two thirds of a training step of configs/addition.py; with bfloat16 inputs on a CPU with AMX the whole
  step takes half the time.

  Args:
    dot_general: matmul policy; Muon's authors multiply in bfloat16.
    beta: decay of the momentum.

  Returns:
    a transformation of float32[D, E] each, or float32[..., D, E] for several matrices of one shape.
  """

  def init(params):
    return Momentum(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, beta, 1)
    nesterov = jax.tree.map(
      lambda m, g: beta * m + (1 - beta) * g,
      optax.tree.bias_correction(mu, beta, optax.safe_increment(count)),
      optax.tree.bias_correction(grads, beta, count),
    )
    return jax.tree.map(lambda x: _orthogonal(x, dot_general) * _shape_scale(x.shape), nesterov), Momentum(count, mu)

  return optax.GradientTransformation(init, update)


def _shape_scale(shape: tuple[int, ...]) -> float:
  return max(1.0, shape[-1] / shape[-2]) ** 0.5


def _orthogonal(x: jax.Array, dot_general: numerics.DotGeneral) -> jax.Array:
  """float32[..., D, E] -> nearly U V^T of its singular value decomposition U S V^T, with singular values of 0.7 to 1.2."""
  if x.ndim > 2:  # in float32: XLA's CPU backend fails on batched bfloat16 products
    return jax.vmap(lambda each: _orthogonal(each, numerics.matmul))(x)
  if x.shape[0] > x.shape[1]:
    return _orthogonal(x.T, dot_general).T

  def dot(a, b, axis):
    return dot_general(a, b, (((1,), (axis,)), ((), ())))

  x = x / (jnp.linalg.norm(x) + 1e-8)
  for _ in range(_ITERATIONS):
    square = dot(x, x, 1)
    polynomial = _QUINTIC[1] * square + _QUINTIC[2] * dot(square, square, 0)
    x = _QUINTIC[0] * x + dot(polynomial, x, 0)
  return x
