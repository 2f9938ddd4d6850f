"""The training loop of targets and decoders: calls of several jitted steps, with logging, evaluation, checkpoints and preemption between them.

A call runs `steps_per_call` steps in one program with donated state; the losses of a call are read while the next one runs. Batch i is a
function of (seed, i) and every example has its own random key, so that a resumed run computes what an uninterrupted one would.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax import bounds, config_schema, preemption
from inversionview_jax.devices import hosts, parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_make, output_folder, path_of
from inversionview_jax.training import boards, checkpoints, identity, metrics_log, optimizers, throughput
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.nonfinite import NonFiniteGuard
from inversionview_jax.training.update import Objective, initial_state, make_update, state_shardings

# Config keys that hold for every model of a run: written once in a config, beside the settings of the target and those of the decoder.
SHARED_KEYS = ("mesh", "compute", "keep_every", "skip_nonfinite", "profile", "log")
# What to do where another run is writing into the same folder.
IN_USE = "wait for it, stop it, or use another --workdir"


def train(
  objective: Objective, rows: np.ndarray, config: ConfigDict, folder: str | pathlib.Path, mesh: Mesh | None = None
) -> dict[str, float]:
  """Trains to the end, or resumes from the newest checkpoint in `folder`, and writes the finished model there.

  Args:
    objective: the model, its loss and its evaluation.
    rows: int[N, T], the training inputs.
    config: batch_size, steps, steps_per_call, seed, average, optimizer, log_every, eval_every, save_every, keep; and, optional, `mesh`,
      `compute` (`make_update`), keep_every (also keep a checkpoint in every so many steps), skip_nonfinite (number of steps in a row with a
      loss or gradient that is not finite to leave out before the run ends; 0: the first one ends it), profile ("100:110": write an XLA
      trace of these steps).
    folder: gets `checkpoints/`, `metrics.jsonl`, `tensorboard/` (and `wandb/`), `config.json` and the finished model. On storage
      that all hosts share.
    mesh: from `parallel.mesh_of`, which is the default.

  Returns:
    The final metrics.

  Raises:
    InversionViewError: a setting out of its range, a batch or step count that does not divide, an unusable folder or one that another run
      is using, a checkpoint of another config, a loss that is not finite, or checkpoints that cannot be saved.
    Stopped: SIGTERM arrived (if `preemption.listen` was called before); all steps done are saved.
  """
  clock = throughput.Clock()
  identity.refuse_renamed(config)
  config_schema.check(config, config_schema.TRAINING)
  mesh = parallel.mesh_of(config) if mesh is None else mesh
  check(config, mesh)
  profile = throughput.Profile(config.get("profile", ""), path_of(folder))
  with output_folder(folder) as folder, hosts.exclusive(folder, IN_USE):
    saved = checkpoints.Checkpoints(checkpoints.folder_of(folder), config.keep, config.get("keep_every", 0))
    run = _Run(objective, rows, config, folder, mesh, clock, profile, saved)
    with hosts.exit_on_lost_host(), saved, contextlib.closing(profile), hosts.exit_on_lost_host():
      run.restore()
      run.steps()
      return run.finish()


class _Run:
  """One call of `train`: the state, and its logging, evaluation and saving."""

  def __init__(
    self,
    objective: Objective,
    rows: np.ndarray,
    config: ConfigDict,
    folder: pathlib.Path,
    mesh: Mesh,
    clock: throughput.Clock,
    profile: throughput.Profile,
    saved: checkpoints.Checkpoints,
  ):
    self._objective, self._config, self._folder, self._mesh = objective, config, folder, mesh
    self._clock, self._profile, self._saved = clock, profile, saved
    self._batches = Batches(rows, config.batch_size, config.seed)
    self._optimizer = optimizers.of_training(config, mesh)
    self._votes, self._listener = hosts.Votes(mesh), preemption.listener()
    if self._listener is not None:
      self._listener.may_exit_at_once = True
      self._listener.exit_if_requested()
    self._description = identity.describe(config, rows, getattr(objective, "identity", {}))
    self._guard = NonFiniteGuard(objective, config, folder, self._batches)
    self._programs: dict[int, Any] = {}  # steps of a call -> compiled program
    self._unread: tuple[int, jax.Array, jax.Array] | None = None  # losses and norms of the newest call
    self._done, self._evaluated = 0, True

  def restore(self) -> None:
    """Sets up the state, from the newest checkpoint or at random, and opens the log."""
    start = getattr(self._objective, "start", {})
    fresh = functools.partial(initial_state, self._objective, self._optimizer, self._config)
    with self._clock("start"):
      shapes = jax.eval_shape(fresh, start)
      sharding.check_shardable(shapes.params, self._mesh, "model that is trained")
      _check_fits(shapes, self._mesh)
      where = state_shardings(shapes, self._config, self._mesh)
      frozen = self._objective.frozen
      self._frozen = parallel.put(frozen, sharding.shardings(frozen, self._mesh))
    with self._clock("restore"):
      like = sharding.with_shardings(shapes, where)
      restored = self._saved.restore(like, self._description, self._config, _same_rates(self._config))
    with self._clock("start"):
      if restored is None:
        self._state = parallel.jit(fresh, out_shardings=where)(start)
      else:
        self._state, about = restored
        self._done, self._evaluated = about["step"], about["evaluated"]
    batch, length = self._config.batch_size, self._batches.rows.shape[1]
    flops = throughput.training_flops(self._objective, shapes.params, shapes.extra, self._frozen, batch, length)
    size = sum(x.size for x in jax.tree.leaves(shapes.params))
    self._log = metrics_log.MetricsLog(
      self._folder, self._config, self._done, size, self._clock, flops, list(self._mesh.devices.flat)
    )
    self._update: Any = make_update(self._objective, self._optimizer, self._config, self._mesh)
    self._log_notes()
    self._clock.until_now("start")

  def steps(self) -> None:
    """Runs the remaining steps; evaluates, saves and stops where that is due."""
    total = self._config.steps
    with self._log.progress:
      if not self._evaluated and not self._evaluate(self._done == total):
        self._stop(evaluated=False)
      while self._done < total:
        count = min(self._config.steps_per_call, total - self._done)
        self._call(count)
        last = self._done == total
        evaluate_now = _is_due(self._config.eval_every, self._done, count, total)
        save_now = _is_due(self._config.save_every, self._done, count, total)
        stop_now = self._votes.any(self._listener is not None and self._listener.stop_requested) and not last
        if evaluate_now or save_now or stop_now:
          self._read_losses()  # now, so that no state is saved behind steps whose loss was not finite
        if stop_now:
          self._stop(evaluated=not evaluate_now)
        if evaluate_now and not self._evaluate(last):
          self._stop(evaluated=False)
        if save_now:
          self._save(evaluated=True)
        self._saved.poll()
        self._log_notes()
    if self._listener is not None:
      self._listener.may_exit_at_once = False

  def finish(self) -> dict[str, float]:
    """Writes the finished model; returns the final metrics."""
    params = self._state.best_params
    final = self._log.last_metrics(self._done) or self._objective.evaluate(params, self._state.extra, True)[0]
    with self._clock("save"):
      params = parallel.fetch(params)
      if hosts.is_writer():
        self._objective.finish(params, final, self._folder)
    self._log.print_times()
    self._log.close()
    return final

  def _call(self, count: int) -> None:
    """Runs `count` steps, and reads the losses of the call before."""
    texts = _texts(self._batches, self._done, count, self._mesh)
    if count not in self._programs:
      with self._clock("compile"):
        self._programs[count] = self._update.lower(self._state, self._frozen, texts).compile()
      if self._listener is not None and self._listener.may_exit_at_once:
        self._listener.exit_if_requested()
        self._listener.may_exit_at_once = False
    self._profile.before(self._done + 1, self._done + count)
    self._state, losses, norms = self._programs[count](self._state, self._frozen, texts)
    self._done += count
    self._profile.after(self._done, losses)
    self._read_losses()
    self._unread = self._done, losses, norms

  def _read_losses(self) -> None:
    """Waits for the newest call whose losses were not read yet, checks and logs them."""
    if self._unread is None:
      return
    (step, *arrays), self._unread = self._unread, None
    losses, norms = map(np.asarray, arrays)
    for skipped in self._guard.skipped(step, losses, norms, self._state.extra):
      self._log.note(skipped, f"step {skipped:,} is left out: its loss or gradient is not finite")
    finite = np.isfinite(losses) & np.isfinite(norms)
    if finite.any():
      line = _passed_multiple(step, len(losses), self._config.log_every)
      self._log.losses(step, losses[finite], norms[finite], line)

  def _evaluate(self, final: bool) -> bool:
    """Whether the evaluation was made to its end; SIGTERM interrupts it, unless other hosts would wait for this one in it."""
    arguments = self._objective.evaluate, self._state.best_params, self._state.extra, final
    with self._clock("evaluate"):
      if self._listener is not None and not hosts.is_multihost():
        result = self._listener.interruptible(*arguments)
      else:
        result = arguments[0](*arguments[1:])
    if result is None:
      return False
    metrics, extra = result
    self._state = dataclasses.replace(self._state, extra=parallel.replicate(extra, self._mesh))
    self._log.metrics(self._done, metrics)
    return True

  def _save(self, evaluated: bool) -> None:
    with self._clock("save"):
      self._saved.save(self._done, self._state, self._description | {"evaluated": evaluated})
    self._log_notes()

  def _log_notes(self) -> None:
    while self._saved.notes:
      self._log.note(self._done, self._saved.notes.pop(0))

  def _stop(self, evaluated: bool) -> NoReturn:
    """Saves and ends the run; `evaluated`: whether the evaluation due at this step was made."""
    with self._clock("save"):
      self._save(evaluated)
      self._saved.close()
    self._log_notes()
    self._log.print_times()
    self._log.close()
    raise preemption.Stopped(self._done)


def _same_rates(config: ConfigDict) -> Callable[[dict], bool]:
  """A function (description of a checkpoint) -> whether its steps had the learning rates that this config gives them.

  With it a run whose rate is constant before it falls ("trapezoid") can be made longer or shorter until it falls.
  """

  def same(saved: dict) -> bool:
    at = np.unique(np.linspace(0, max(saved["step"] - 1, 0), 200).astype(int))
    mine, theirs = (
      optimizers.learning_rate(config.optimizer, steps) for steps in (config.steps, saved["config"]["steps"])
    )
    return bool(np.allclose([mine(i) for i in at], [theirs(i) for i in at], rtol=1e-6, atol=0))

  return same


def refuse_workdir(config: ConfigDict, folder: str | pathlib.Path, mesh: Mesh) -> None:
  """Raises what `train` would raise, before anything is loaded or compiled: settings, counts that do not divide, a folder of another config.

  Raises:
    InversionViewError: one of these; or hosts that were started with different configs.
  """
  hosts.require_same("config", identity.flat(config))
  identity.refuse_renamed(config)
  config_schema.check(config, config_schema.TRAINING)
  check(config, mesh)
  check_can_make(folder)
  hosts.refuse_in_use(folder, IN_USE)
  throughput.Profile(config.get("profile", ""), pathlib.Path(folder))
  optimizers.of_training(config, mesh)
  saved = checkpoints.Checkpoints(checkpoints.folder_of(folder), config.keep, config.get("keep_every", 0))
  saved.check(config, _same_rates(config))


def check(config: ConfigDict, mesh: Mesh) -> None:
  """Checks the settings of a config that the loop uses.

  Raises:
    InversionViewError: a setting that is missing, of another type or out of its range, a batch that does not divide over the mesh, or a key
      that has another name now.
  """
  identity.refuse_renamed(config)
  config_schema.check(config, config_schema.STEP)
  config_schema.check_call(config)
  boards.check(config)
  pieces = (config.get("compute") or {}).get("accumulate", 1)
  data = mesh.shape[parallel.DATA]
  if config.batch_size % (data * pieces):
    times = f" x {pieces} pieces (compute.accumulate)" if pieces > 1 else ""
    raise InversionViewError(
      f"batch_size = {config.batch_size} does not divide over {data} devices{times}; use a multiple of {data * pieces}"
    )


def _check_fits(state: Any, mesh: Mesh) -> None:
  """Raises `InversionViewError` for a state that is larger than the memory of a machine without accelerators."""
  size = sum(
    x.size * x.dtype.itemsize for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
  )
  if mesh.devices.flat[0].platform == "cpu":
    remedy = "make the model smaller (model.d_model, model.n_layers, encoder_width, n_slots)"
    bounds.check_memory(size, "the parameters and the optimizer's state", remedy)


def _texts(batches: Batches, first: int, count: int, mesh: Mesh) -> jax.Array:
  """int32[count, B, T]: the batches first ... first + count - 1, of which each host looks up only its own rows."""

  def part(shard, shards):
    return np.stack([batches.local(first + i, shard, shards) for i in range(count)]).astype(np.int32)

  return parallel.from_parts((count, batches.batch_size, batches.rows.shape[1]), mesh, 1, part)


def _passed_multiple(done: int, count: int, every: int) -> bool:
  """Whether a multiple of `every` lies in the last `count` steps."""
  return bool(every) and done // every > (done - count) // every


def _is_due(every: int, done: int, count: int, steps: int) -> bool:
  return done == steps or _passed_multiple(done, count, every)
