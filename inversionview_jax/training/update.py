"""The jitted training step: loss and gradients of each device's rows, one reduction, and the optimizer's update of a donated state.

Shapes: B texts of a batch, T tokens, k steps of one call.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax.devices import parallel, sharding


@flax.struct.dataclass
class State:
  """The state of a training run, complete for resuming it.

  Attributes:
    step: int32[], steps done; also the index of the next batch.
    params, opt_state: of the model and the optimizer.
    average: exponential moving average of `params`, or an empty dict if the config does not use one.
    extra: arrays that the objective keeps between evaluations (site weights, activation statistics).
  """

  step: jax.Array
  params: Any
  opt_state: Any
  average: Any
  extra: Any

  @property
  def best_params(self) -> Any:
    """The parameters that are evaluated and saved as the finished model: the moving average where there is one."""
    return self.average or self.params


class Objective(Protocol):
  """A model with its loss and its evaluation.

  Attributes:
    frozen: a pytree of parameters that the loss reads and that are not trained (those of the target).

  Optional members: `start` (initial parameters, which replace the random ones of the same name), `identity` (plain data that a saved state
  depends on besides config and inputs), `without_remat()` (the same loss without rematerialization, for counting its FLOPs) and
  `inspect(extra, tokens, keys)` -> (arrays, names of sites), the random choices of the loss for a batch that gave a non-finite loss.
  """

  frozen: Any

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """Random initial values, ``(params, extra)``."""

  def loss(
    self, params: Any, extra: Any, frozen: Any, tokens: jax.Array, keys: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """int32[B, T], key[B] -> summed loss float32[] and the number of predicted tokens float32[]; called with one device's rows."""

  def evaluate(self, params: Any, extra: Any, final: bool) -> tuple[dict[str, float], Any]:
    """``(metrics, extra)`` on the held-out split, on all of it if `final`."""

  def finish(self, params: Any, metrics: dict[str, float], folder: pathlib.Path) -> None:
    """Writes the finished model."""


def make_update(
  objective: Objective, optimizer: optax.GradientTransformation, config: ConfigDict, mesh: Mesh
) -> Callable[..., Any]:
  """A jitted (state, frozen, int32[k, B, T]) -> (state, losses float32[k], gradient norms float32[k]), over all devices.

  Each device of the data axis differentiates the loss of its own rows and the gradients are summed; the optimizer's part is left to the
  compiler, so that parameters sharded over "model" and, with `mesh.shard_optimizer`, optimizer state sharded over "data" are updated in
  place.

  Args:
    objective: its `loss` is differentiated.
    optimizer: from `optimizers`.
    config: seed, average; and, optional, `mesh.shard_optimizer`, `skip_nonfinite` and `compute`: `accumulate` (number of pieces in which a
      device's rows go through the loss one after the other), `donate` (False keeps the old state's buffers).
    mesh: ("data", "model").
  """
  compute = config.get("compute") or {}
  step = functools.partial(_step, objective, optimizer, config, mesh)

  def steps(state, frozen, tokens):
    state, (losses, norms) = jax.lax.scan(functools.partial(step, frozen), state, tokens)
    return state, losses, norms

  options: dict[str, Any] = {}
  # Explicit output shardings on more than one device: without them the compiler chooses those of the state that comes out of the scan, and
  # the next call would not find it as it expects.
  if mesh.size > 1:
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(functools.partial(initial_state, objective, optimizer, config))
    options["out_shardings"] = state_shardings(shapes, config, mesh), replicated, replicated
  donated = (0,) if compute.get("donate", True) else ()
  return parallel.jit(steps, parallel.platform(mesh), donate_argnums=donated, **options)


def _step(objective: Objective, optimizer, config: ConfigDict, mesh: Mesh, frozen, state: State, tokens):
  """One step on int32[B, T]: the new state, and its loss and gradient norm."""
  replicated, rows = PartitionSpec(), PartitionSpec(parallel.DATA)
  specs = sharding.specs(state.params, mesh, sharding.shards_optimizer(config))
  # What each device of the data axis returns of the gradients; the axis "model" is the compiler's.
  gradient_specs = jax.tree.map(
    lambda spec: PartitionSpec(*(axis if axis == parallel.DATA else None for axis in spec)),
    specs,
    is_leaf=lambda x: isinstance(x, PartitionSpec),
  )
  gradients = parallel.per_device(
    functools.partial(_device_gradients, objective, config, specs),
    mesh,
    (replicated,) * 4 + (rows, rows),
    (replicated, replicated, gradient_specs),
  )
  total, count, grads = gradients(state.params, state.extra, frozen, state.step, tokens, jnp.arange(tokens.shape[0]))
  grads = jax.tree.map(lambda g: g / count, grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  norm = optax.tree.norm(grads)
  new = State(state.step + 1, params, opt_state, _moving_average(state, params, config.average), state.extra)
  if config.get("skip_nonfinite", 0):
    finite = jnp.isfinite(total) & jnp.isfinite(norm)
    old = dataclasses.replace(state, step=new.step)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
  new = jax.lax.with_sharding_constraint(new, state_shardings(new, config, mesh))
  return new, (total / count, norm)


def _device_gradients(objective: Objective, config: ConfigDict, specs, params, extra, frozen, step, tokens, index):
  """Loss and token count summed over all devices, and the summed gradients, or this device's part of them where they are sharded.

  Args:
    objective, config: as for `make_update`.
    specs: the `PartitionSpec` of every gradient.
    params, extra, frozen, step: of the state.
    tokens: int32[b, T], this device's rows of the batch.
    index: int32[b], their indices in the batch; with the step they give each row its random key.
  """
  keys = parallel.fold_in_each(jax.random.fold_in(jax.random.key(config.seed), step), index)
  gradient = jax.value_and_grad(
    lambda params, tokens, keys: objective.loss(params, extra, frozen, tokens, keys), has_aux=True
  )
  pieces = (config.get("compute") or {}).get("accumulate", 1)
  if pieces == 1:
    (total, count), grads = gradient(params, tokens, keys)
  else:
    parts = jax.tree.map(lambda x: x.reshape(pieces, len(tokens) // pieces, *x.shape[1:]), (tokens, keys))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, tokens, keys))

    def add(accumulated, part):
      return jax.tree.map(jnp.add, accumulated, gradient(params, *part)), None

    ((total, count), grads), _ = jax.lax.scan(add, zero, parts)
  total, count = jax.lax.psum((total, count), parallel.DATA)

  def reduce(grad, spec):
    if parallel.DATA in spec:
      dimension = spec.index(parallel.DATA)
      return jax.lax.psum_scatter(grad, parallel.DATA, scatter_dimension=dimension, tiled=True)
    return jax.lax.psum(grad, parallel.DATA)

  return total, count, jax.tree.map(reduce, grads, specs)


def _moving_average(state: State, params, decay: float):
  if not decay:
    return state.average
  # The usual warm-up of the decay: early on the average is nearly a plain mean, so that the initial parameters are soon forgotten.
  rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
  return optax.incremental_update(params, state.average, 1.0 - rate)


def state_shardings(state: State, config: ConfigDict, mesh: Mesh) -> State:
  """The sharding of every leaf of a state: parameters and optimizer state by the rules of `devices.sharding`, the rest replicated."""
  spread = sharding.shards_optimizer(config)
  replicated: Any = NamedSharding(mesh, PartitionSpec())
  return State(
    replicated,
    sharding.shardings(state.params, mesh),
    sharding.shardings(state.opt_state, mesh, spread),
    sharding.shardings(state.average, mesh),
    jax.tree.map(lambda _: replicated, state.extra),
  )


def initial_state(
  objective: Objective, optimizer: optax.GradientTransformation, config: ConfigDict, start: dict | None = None
) -> State:
  """The state before the first step, a function of config.seed; to be jitted, or evaluated as shapes.

  Args:
    objective: initializes the parameters.
    optimizer: initializes its state.
    config: seed, average.
    start: parameters that replace the random ones of the same name.
  """
  params, extra = objective.init(jax.random.key(config.seed))
  params = {**params, **(start or {})}
  average = jax.tree.map(jnp.copy, params) if config.average else {}
  return State(jnp.int32(0), params, optimizer.init(params), average, extra)


def tokens_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of int32[k, B, T], the batches of k steps: B over the data axis."""
  return NamedSharding(mesh, PartitionSpec(None, parallel.DATA))
