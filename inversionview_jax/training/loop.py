"""One training loop: a target on its task, a decoder on fresh activations (`objectives` holds the two losses).

A call runs `steps_per_call` steps inside one jitted program with donated state; the metrics of a call are read while the next one runs.
Batch i is a function of (seed, i) and every example has its own key, so a resumed run goes on exactly where it was.
"""

import contextlib
import dataclasses
import functools
import pathlib
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax import preemption
from inversionview_jax.devices import hosts, parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder
from inversionview_jax.training import checkpoints, metrics_log, optimizers, throughput
from inversionview_jax.training.batches import Batches

# Keys that a config has once for all that is trained by it.
OF_THE_RUN = ("mesh", "compute", "keep_every", "skip_nonfinite", "profile")


@flax.struct.dataclass
class State:
  """Everything a resumed run needs.

  Attributes:
    step: int32[], steps done; also the data position.
    params, opt_state: the model's and the optimizer's.
    average: exponential moving average of `params`, or an empty dict if the config asks for none.
    extra: what the objective keeps (site weights).
  """

  step: jax.Array
  params: Any
  opt_state: Any
  average: Any
  extra: Any


class Objective(Protocol):
  """What is trained.

  Attributes:
    frozen: a pytree that the loss reads and nobody trains (the target's parameters).

  It may also have `start` (parameters to start from, in place of the fresh ones of the same name), `identity` (plain data that a saved state
  depends on besides config and inputs), `without_remat()` (the same loss, to count what it must compute) and `inspect(extra, tokens, keys)`
  -> (arrays, names of sites): what the loss draws for a batch that went wrong.
  """

  frozen: Any

  def init(self, key: jax.Array) -> tuple[Any, Any]:
    """-> (params, extra)."""

  def loss(self, params, extra, frozen, tokens: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32[B, T], key[B] -> summed loss float32[] and the number of predicted tokens float32[]; one device's share."""

  def evaluate(self, params, extra, final: bool) -> tuple[dict[str, float], Any]:
    """-> (metrics, extra); `final` asks for the whole held-out split."""

  def finish(self, params, metrics: dict[str, float], folder: pathlib.Path) -> None:
    """Writes the finished model."""


def make_update(objective: Objective, optimizer, config: ConfigDict, mesh):
  """-> jitted (state, frozen, int32[k, B, T]) -> (state, losses float32[k], gradient norms float32[k]), over all devices.

  Each device of the data axis takes its rows through the loss and the gradients are summed; the optimizer's part is left to the compiler,
  so that parameters sharded over "model" and, with `mesh.shard_optimizer`, optimizer state sharded over "data" are updated where they are.

  Args:
    objective: its `loss` is differentiated.
    optimizer: from `optimizers`.
    config: seed, average; and, optional, `mesh.shard_optimizer` and `compute`: `accumulate` (pieces of a device's batch that go through
      the loss one after the other), `donate` (False keeps the old state's buffers).
    mesh: ("data", "model").
  """
  seed, decay = config.seed, config.average
  compute = config.get("compute") or {}
  pieces, donate = compute.get("accumulate", 1), compute.get("donate", True)
  spread = sharding.shards_optimizer(config)

  def gradients(params, extra, frozen, step, tokens, index):
    """One device's rows int32[B, T] and their places int32[B] in the batch -> loss and count summed over all devices, and the gradients' sum, or this device's part of it."""
    batch = tokens.shape[0]
    keys = parallel.fold_in_each(jax.random.fold_in(jax.random.key(seed), step), index)

    def summed(params, tokens, keys):
      total, count = objective.loss(params, extra, frozen, tokens, keys)
      return total, count

    gradient = jax.value_and_grad(summed, has_aux=True)

    def add(so_far, piece):
      return jax.tree.map(jnp.add, so_far, gradient(params, *piece)), None

    if pieces == 1:
      (total, count), grads = gradient(params, tokens, keys)
    else:
      parts = jax.tree.map(lambda x: x.reshape(pieces, batch // pieces, *x.shape[1:]), (tokens, keys))
      zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, tokens, keys))
      ((total, count), grads), _ = jax.lax.scan(add, zero, parts)
    total, count = jax.lax.psum((total, count), parallel.DATA)

    def together(gradient, spec):
      if parallel.DATA in spec:
        dimension = spec.index(parallel.DATA)
        return jax.lax.psum_scatter(gradient, parallel.DATA, scatter_dimension=dimension, tiled=True)
      return jax.lax.psum(gradient, parallel.DATA)

    return total, count, jax.tree.map(together, grads, sharding.specs(params, mesh, spread))

  def step(frozen, state: State, tokens):
    whole, where = PartitionSpec(), sharding.specs(state.params, mesh, spread)
    own = jax.tree.map(  # what each device of the data axis returns; "model" is the compiler's
      lambda s: PartitionSpec(*(axis if axis == parallel.DATA else None for axis in s)), where, is_leaf=_is_spec
    )
    rows = PartitionSpec(parallel.DATA)
    by_device = parallel.per_device(gradients, mesh, (whole,) * 4 + (rows, rows), (whole, whole, own))
    index = jnp.arange(tokens.shape[0])
    total, count, grads = by_device(state.params, state.extra, frozen, state.step, tokens, index)
    grads = jax.tree.map(lambda g: g / count, grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if decay:
      # The usual correction: early on the average is a plain mean, not a memory of the initial parameters.
      rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
      average = jax.tree.map(lambda a, p: rate * a + (1.0 - rate) * p, average, params)
    norm = optax.global_norm(grads)
    new = State(state.step + 1, params, opt_state, average, state.extra)
    if config.get("skip_nonfinite", 0):
      sound = jnp.isfinite(total) & jnp.isfinite(norm)
      old = dataclasses.replace(state, step=new.step)
      new = jax.tree.map(lambda a, b: jnp.where(sound, a, b), new, old)
    state = jax.lax.with_sharding_constraint(new, state_shardings(new, config, mesh))
    return state, (total / count, norm)

  def steps(state, frozen, tokens):
    state, (losses, norms) = jax.lax.scan(functools.partial(step, frozen), state, tokens)
    return state, losses, norms

  placed = {}
  if (
    mesh.size > 1
  ):  # said, so that a state comes out as it went in: the compiler would choose for what it is told inside of the scan only
    everywhere = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(functools.partial(initial_state, objective, optimizer, config))
    placed["out_shardings"] = state_shardings(shapes, config, mesh), everywhere, everywhere
  options = parallel.compiler_options(parallel.platform(mesh))
  return jax.jit(steps, donate_argnums=(0,) if donate else (), compiler_options=options, **placed)


def _is_spec(x) -> bool:
  return isinstance(x, PartitionSpec)


def state_shardings(state: State, config: ConfigDict, mesh) -> State:
  """Where each leaf of a state lives: parameters and optimizer by `layout`'s rules, the rest whole on every device."""
  spread = sharding.shards_optimizer(config)
  whole = NamedSharding(mesh, PartitionSpec())
  return State(
    whole,
    sharding.shardings(state.params, mesh),
    sharding.shardings(state.opt_state, mesh, spread),
    sharding.shardings(state.average, mesh),
    jax.tree.map(lambda _: whole, state.extra),
  )


def initial_state(objective: Objective, optimizer, config: ConfigDict, start: dict | None = None):
  """The state before the first step; a function of the config and of `start`, parameters in place of fresh ones; to be jitted or shaped."""
  params, extra = objective.init(jax.random.key(config.seed))
  params = {**params, **(start or {})}
  average = jax.tree.map(jnp.copy, params) if config.average else {}
  return State(jnp.int32(0), params, optimizer.init(params), average, extra)


def tokens_sharding(mesh) -> NamedSharding:
  """Where int32[k, B, T], the texts of k steps, live: B over the data axis."""
  return NamedSharding(mesh, PartitionSpec(None, parallel.DATA))


def train(
  objective: Objective, rows: np.ndarray, config: ConfigDict, folder: str | pathlib.Path, mesh=None
) -> dict[str, float]:
  """Trains to the end, or goes on from the newest checkpoint in `folder`, and writes the finished model there.

  Args:
    objective: what is trained.
    rows: int[N, T], the training inputs.
    config: batch_size, steps, steps_per_call, seed, average, optimizer, log_every, eval_every, save_every, keep; and, optional, `mesh`,
      `compute` (`make_update`), keep_every (also keep a checkpoint in every so many steps), skip_nonfinite (so many steps in a row whose
      loss or gradient is not finite are left out before the run stops; 0: it stops at the first), profile ("100:110": write an XLA
      trace of these steps).
    folder: gets `checkpoints/`, `metrics.jsonl`, TensorBoard events in `tensorboard/`, `config.json` and the finished model. On storage
      that all hosts share.
    mesh: from `parallel.mesh_of`, which is the default.

  Returns:
    The final metrics.

  Raises:
    InversionViewError: a batch or step count that does not divide, an unusable folder, a checkpoint of another config, a loss that is not
      finite, or checkpoints that cannot be saved.
    Stopped: SIGTERM came (if `stop.listen` was called before); what was done is saved.
  """
  clock = throughput.Clock()
  folder = make_folder(folder)
  mesh = parallel.mesh_of(config) if mesh is None else mesh
  check(config, mesh)
  profile = throughput.Profile(config.get("profile", ""), folder)
  batches = Batches(rows, config.batch_size, config.seed)
  optimizer = optimizers.of_training(config, mesh)
  listener, votes = preemption.listener(), hosts.Votes(mesh)
  if listener is not None:
    listener.may_exit_at_once = True
    listener.exit_if_requested()
  depends = checkpoints.described(config, rows, getattr(objective, "identity", {}))

  fresh, begin = functools.partial(initial_state, objective, optimizer, config), getattr(objective, "start", {})
  with clock("start"):
    shapes = jax.eval_shape(fresh, begin)
    sharding.check_shardable(shapes.params, mesh, "model that is trained")
    where = state_shardings(shapes, config, mesh)
    frozen = parallel.put(objective.frozen, sharding.shardings(objective.frozen, mesh))
  saved = checkpoints.Checkpoints(checkpoints.place(folder), config.keep, config.get("keep_every", 0))
  with hosts.exit_on_lost_host(), saved, contextlib.closing(profile), hosts.exit_on_lost_host():
    with clock("restore"):
      found = saved.restore(sharding.with_shardings(shapes, where), depends, config, _same_rates(config))
    with clock("start"):
      state = parallel.jit(fresh, out_shardings=where)(begin) if found is None else found[0]
    done, evaluated = (0, True) if found is None else (found[1]["step"], found[1]["evaluated"])
    flops = throughput.training_flops(objective, shapes.params, shapes.extra, frozen, config.batch_size, rows.shape[1])
    size = sum(x.size for x in jax.tree.leaves(shapes.params))
    log = metrics_log.Journal(folder, config, done, size, clock, flops, mesh.devices.flat)
    update, program = make_update(objective, optimizer, config, mesh), {}
    bad = _NotFinite(objective, config, folder, batches)

    def read(step, losses, norms):
      losses, norms = np.asarray(losses), np.asarray(norms)
      left_out = bad.look(step, losses, norms, state.extra)
      for each in left_out:
        log.note(each, f"step {each:,} is left out: its loss or gradient is not finite")
      sound = np.isfinite(losses) & np.isfinite(norms)
      if sound.any():
        log.losses(step, losses[sound], norms[sound], _passed(step, len(losses), config.log_every))

    def evaluate(step, final):
      """Whether the evaluation was made to its end; SIGTERM ends it early, unless other hosts would be left alone in it."""
      nonlocal state
      arguments = objective.evaluate, _best(state), state.extra, final
      with clock("evaluate"):
        alone = listener is not None and not hosts.is_multihost()
        result = listener.interruptible(*arguments) if alone else arguments[0](*arguments[1:])
      if result is None:
        return False
      state = dataclasses.replace(state, extra=parallel.replicate(result[1], mesh))
      log.metrics(step, result[0])
      return True

    def save(evaluated):
      with clock("save"):
        saved.save(done, state, depends | {"evaluated": evaluated})
      tell()

    def tell():
      while saved.notes:
        log.note(done, saved.notes.pop(0))

    def stopped(evaluated):
      with clock("save"):
        save(evaluated)
        saved.close()
      tell()
      log.closing()
      raise preemption.Stopped(done)

    tell()
    clock.until_now("start")
    with log.progress:
      if not evaluated and not evaluate(done, done == config.steps):
        stopped(False)
      pending = None
      while done < config.steps:
        count = min(config.steps_per_call, config.steps - done)
        texts = _texts(batches, done, count, mesh)
        if count not in program:
          with clock("compile"):
            program[count] = update.lower(state, frozen, texts).compile()
          if listener is not None and listener.may_exit_at_once:
            listener.exit_if_requested()
            listener.may_exit_at_once = False
        profile.before(done + 1, done + count)
        state, losses, norms = program[count](state, frozen, texts)
        done += count
        profile.after(done, losses)
        if pending is not None:
          read(*pending)
        pending = (done, losses, norms)
        last = done == config.steps
        due, save_now = (_due(every, done, count, config.steps) for every in (config.eval_every, config.save_every))
        halt = votes.any(listener is not None and listener.stop_requested) and not last
        if due or save_now or halt:
          read(*pending)  # now, so that nothing is saved of steps whose loss was not finite
          pending = None
        if halt:
          stopped(not due)
        if due and not evaluate(done, last):
          stopped(False)
        if save_now:
          save(True)
        saved.poll()
        tell()
    if listener is not None:
      listener.may_exit_at_once = False
    final = log.last_metrics(done) or objective.evaluate(_best(state), state.extra, True)[0]
    with clock("save"):
      params = parallel.fetch(_best(state))
      if hosts.is_writer():
        objective.finish(params, final, folder)
    log.closing()
  return final


def _same_rates(config: ConfigDict):
  """-> (description of a checkpoint) -> whether its steps were done with the learning rates of this config.

  So a run whose rate is constant before it falls ("trapezoid") can be made longer or shorter until it falls.
  """

  def same(saved: dict) -> bool:
    at = np.unique(np.linspace(0, max(saved["step"] - 1, 0), 200).astype(int))
    mine, theirs = (
      optimizers.learning_rate(config.optimizer, steps) for steps in (config.steps, saved["config"]["steps"])
    )
    return bool(np.allclose([mine(i) for i in at], [theirs(i) for i in at], rtol=1e-6, atol=0))

  return same


def refuse_workdir(config: ConfigDict, folder: str | pathlib.Path, mesh) -> None:
  """What `train` would refuse, before anything is loaded or compiled: counts that do not divide, and a folder of another config.

  Raises:
    InversionViewError: one of these; or hosts that were not started alike.
  """
  hosts.require_same("config", checkpoints.flat(config))
  check(config, mesh)
  throughput.Profile(config.get("profile", ""), pathlib.Path(folder))
  optimizers.of_training(config, mesh)
  checkpoints.Checkpoints(checkpoints.place(folder), config.keep, config.get("keep_every", 0)).check(
    config, _same_rates(config)
  )


class _NotFinite:
  """Looks for losses and gradients that are not finite, and saves the batch of the first."""

  def __init__(self, objective: Objective, config: ConfigDict, folder: pathlib.Path, batches: Batches):
    self._objective, self._config, self._folder, self._batches = objective, config, folder, batches
    self._in_a_row = 0

  def look(self, step: int, losses: np.ndarray, norms: np.ndarray, extra) -> list[int]:
    """Losses and norms of the steps up to `step` -> those that were left out; raises `InversionViewError` where the run must stop."""
    left_out = []
    for i, sound in enumerate(np.isfinite(losses) & np.isfinite(norms)):
      at = step - len(losses) + i + 1
      self._in_a_row = 0 if sound else self._in_a_row + 1
      if sound:
        continue
      if self._in_a_row > self._config.get("skip_nonfinite", 0):
        self._stop(at, extra)
      left_out.append(at)
    return left_out

  def _stop(self, at: int, extra):
    tokens, said, sites = self._batches[at - 1], {}, ""
    if hasattr(self._objective, "inspect"):
      key = jax.random.fold_in(jax.random.key(self._config.seed), at - 1)
      keys = parallel.fold_in_each(key, jnp.arange(len(tokens)))
      said, names = self._objective.inspect(parallel.fetch(extra), tokens, keys)
      sites = f"; its sites: {', '.join(names[:12])}" + (f" and {len(names) - 12} more" if names[12:] else "")
    path = metrics_log.save_batch(self._folder, at, tokens, said)
    raise InversionViewError(
      f"loss or gradient is not finite at step {at}{sites}; the batch is in {path}; lower optimizer.lr or set optimizer.clip, or let "
      "skip_nonfinite leave out so many steps"
    )


def _texts(batches: Batches, first: int, count: int, mesh) -> jax.Array:
  """int32[count, B, T]: the batches of so many steps, of which each host looks up only its own rows."""

  def part(shard, shards):
    return np.stack([batches.local(first + i, shard, shards) for i in range(count)]).astype(np.int32)

  return parallel.from_parts((count, batches.batch_size, batches.rows.shape[1]), mesh, 1, part)


def _best(state: State):
  return state.average or state.params


def _passed(done: int, count: int, every: int) -> bool:
  """Whether a multiple of `every` lies in the last `count` steps."""
  return bool(every) and done // every > (done - count) // every


def _due(every: int, done: int, count: int, steps: int) -> bool:
  return done == steps or _passed(done, count, every)


def check(config: ConfigDict, mesh) -> None:
  """Raises `InversionViewError` for counts that cannot be used, or do not divide over the mesh."""
  for name in ("batch_size", "steps", "steps_per_call"):
    if config[name] < 1:
      raise InversionViewError(f"{name} = {config[name]} must be at least 1")
  pieces = (config.get("compute") or {}).get("accumulate", 1)
  if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 1:
    raise InversionViewError(f"compute.accumulate = {pieces!r} must be a whole number of at least 1")
  data = mesh.shape[parallel.DATA]
  if config.batch_size % (data * pieces):
    times = f" x {pieces} pieces (compute.accumulate)" if pieces > 1 else ""
    raise InversionViewError(
      f"batch_size = {config.batch_size} does not divide over {data} devices{times}; use a multiple of {data * pieces}"
    )
