"""config.optimizer -> optax: AdamW or Muon, and the learning rate's schedule.

Shapes: D rows of a matrix, E columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from inversionview_jax.devices import numerics, sharding
from inversionview_jax.errors import one_of

# Newton-Schulz's quintic with a steep start, and how often (Jordan et al., Muon, 2024).
_QUINTIC, _ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def of_training(config: ConfigDict, mesh) -> optax.GradientTransformation:
  """The optimizer of a whole config: `make_optimizer`, with `numerics.matmul_policy` unless its state is sharded."""
  dot_general = numerics.matmul if sharding.shards_optimizer(config) else numerics.matmul_policy(mesh, config)
  return make_optimizer(config.optimizer, config.steps, dot_general)


def make_optimizer(
  config: ConfigDict, steps: int, dot_general: numerics.DotGeneral = numerics.matmul
) -> optax.GradientTransformation:
  """config.optimizer -> optax.

  Keys: name ("adamw" or "muon": Muon on the kernels, Adam elsewhere), lr, adam_lr (with Muon, the rate of what Adam trains; 0: also
  lr), warmup_steps, schedule ("constant", "cosine" to zero at `steps`, or "trapezoid", which falls to zero over the last fifth),
  weight_decay (on matrices only), clip (global norm, 0: off), b2 (of Adam). `dot_general`: matmul policy of
  Muon's products.

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


def learning_rate(config: ConfigDict, steps: int):
  """config.optimizer -> a function from steps done to the learning rate; raises `InversionViewError` for an unknown schedule."""
  if config.schedule == "cosine":
    rate = optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup_steps, max(steps, config.warmup_steps + 1))
  elif config.schedule in ("constant", "trapezoid"):
    warmed = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    rate = optax.join_schedules([warmed, optax.constant_schedule(config.lr)], [config.warmup_steps])
    if config.schedule == "trapezoid":
      level, fall = rate, max(steps // 5, 1)

      def rate(step):  # the smaller of the two, so that a run shorter than its warm-up never jumps
        return jnp.clip(config.lr * (steps - step) / fall, 0.0, level(step))

  else:
    raise one_of("schedule", config.schedule, ("constant", "cosine", "trapezoid"))
  return rate


def _matrices(params):
  return jax.tree.map(lambda x: x.ndim >= 2, params)


def _muon_or_adam(params):
  """Muon is for matrices between hidden layers, one for each site too: not for embeddings, site tables and norms."""

  def label(path, leaf):
    name = path[-1].key
    return "muon" if (name == "kernel" and leaf.ndim == 2) or name == "site_inputs" else "adam"

  return jax.tree_util.tree_map_with_path(label, params)


class Momentum(NamedTuple):
  """State of `orthogonal_momentum`: count int32[] of steps, and the moving average of the gradients."""

  count: jax.Array
  mu: optax.Updates


def orthogonal_momentum(
  dot_general: numerics.DotGeneral = numerics.matmul, beta: float = 0.95
) -> optax.GradientTransformation:
  """Muon (Jordan et al., 2024): the gradients' average, looking ahead (Nesterov), of every matrix with its singular values near 1.

  The same as `optax.contrib.scale_by_muon` and its scaling by shape, sqrt(max(1, E / D)); but there no matmul policy
  can be given, and products are most of a training step of our readers.

  Args:
    dot_general: matmul policy; its authors multiply in bfloat16.
    beta: the average's decay.

  Returns:
    a transformation of float32[D, E] each, or float32[..., D, E] for several matrices of one shape.
  """

  def init(params):
    return Momentum(jnp.zeros([], jnp.int32), jax.tree.map(jnp.zeros_like, params))

  def update(grads, state, params=None):
    del params
    count = optax.safe_increment(state.count)
    mu = optax.tree.update_moment(grads, state.mu, beta, 1)
    ahead = jax.tree.map(
      lambda m, g: beta * m + (1 - beta) * g,
      optax.tree.bias_correction(mu, beta, optax.safe_increment(count)),
      optax.tree.bias_correction(grads, beta, count),
    )
    return jax.tree.map(lambda x: _orthogonal(x, dot_general) * _length(x.shape), ahead), Momentum(count, mu)

  return optax.GradientTransformation(init, update)


def _length(shape) -> float:
  return max(1.0, shape[-1] / shape[-2]) ** 0.5


def _orthogonal(x, dot_general: numerics.DotGeneral):
  """float32[..., D, E] -> about U V^T of its singular value decomposition U S V^T: singular values of 0.7 to 1.2."""
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
