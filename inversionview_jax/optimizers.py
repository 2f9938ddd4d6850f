"""config.optimizer -> optax: AdamW or Muon, and the learning rate's schedule."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from inversionview_jax.errors import one_of


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
  """config.optimizer -> optax.

  Keys: name ("adamw" or "muon": Muon on the kernels, Adam elsewhere), lr, adam_lr (with Muon, the rate of what Adam trains; 0: also
  lr), warmup_steps, schedule ("constant", "cosine" to zero at `steps`, or "trapezoid", which falls to zero over the last fifth),
  weight_decay (on matrices only), clip (global norm, 0: off), b2 (of Adam).

  Raises:
    InversionViewError: an unknown name or schedule.
  """
  rate = learning_rate(config, steps)

  def matrices(params):
    return jax.tree.map(lambda x: x.ndim >= 2, params)

  if config.name == "adamw":
    rule = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
  elif config.name == "muon":
    rule = optax.contrib.muon(
      rate,
      weight_decay=config.weight_decay,
      weight_decay_mask=matrices,
      adam_b2=config.b2,
      adam_weight_decay=0.0,
      adam_learning_rate=(lambda step: config.adam_lr / config.lr * rate(step)) if config.adam_lr else None,
      muon_weight_dimension_numbers=_hidden_matrices,
    )
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


def _hidden_matrices(params):
  """Muon is for matrices between hidden layers, one for each site too: not for embeddings, site tables and norms."""

  def spec(path, leaf):
    if path[-1].key == "site_inputs":
      return optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    hidden = path[-1].key == "kernel" and leaf.ndim == 2
    return optax.contrib.MuonDimensionNumbers() if hidden else None

  return jax.tree_util.tree_map_with_path(spec, params)
