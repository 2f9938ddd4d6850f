"""The jitted programs of a decoder's training step, of sampling from it, and of Monte Carlo on its target, with shapes as arguments, on any mesh.

No parameters are loaded or initialized: they are shapes with shardings, so that a step for hundreds of chips, or for a target of billions of
parameters, can be lowered and compiled on a machine that has neither (`jax.experimental.topologies` makes the devices).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax import sites
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sampling import Sampler
from inversionview_jax.sampling.candidates import Queries, Rows
from inversionview_jax.sampling.language_prior import LanguagePrior
from inversionview_jax.sampling.nearness import Nearness
from inversionview_jax.sampling.sweeps import TaskSweeps
from inversionview_jax.sampling.text_sweeps import TextSettings, TextSweeps
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task
from inversionview_jax.training import loop, optimizers
from inversionview_jax.training.decoder_objective import DecoderObjective
from inversionview_jax.training.model_shapes import decoder_compute_in_training
from inversionview_jax.training.site_pairs import SitePairs
from inversionview_jax.training.update import initial_state, make_update, state_shardings, tokens_sharding


class ShapeObjective(DecoderObjective):
  """A `DecoderObjective` with shapes for the target's parameters: what `init` and `loss` read, and nothing else."""

  def __init__(self, task: Task, config: ConfigDict, target: Transformer, shape: DecoderConfig, mesh: Mesh):
    self.target = shapes = shape_target(target)
    self.task, self.model, self._config = task, shape, config
    self._sites = tuple(map(sites.parse, shape.sites))
    self._module = Decoder(shape, decoder_compute_in_training(shape, config, mesh))
    self._site_pairs = SitePairs(task, shapes, self._sites, mesh, texts_at_once=1)
    self.frozen = shapes.params

  def init(self, key: jax.Array) -> tuple[dict, dict]:
    variables = decoder.initial(self.model, key)
    params = self._with_count_head(variables["params"], key)
    return params, {"stats": variables["stats"], "site_logits": jnp.zeros(len(self._sites))}


def target_shapes(module: Transformer) -> Any:
  """The parameters of a target as shapes, in the dtype that it computes in, as `load_target(dtype=...)` holds them."""
  variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
  dtype = jnp.dtype(module.compute.dtype)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), variables["params"])


def shape_target(module: Transformer) -> Target:
  """A target whose parameters are shapes, for programs that are compiled and never run."""
  return Target(target_shapes(module), module.config, None, "raw", "", compute=module.compute)


def training_step(
  task: Task, config: ConfigDict, target: Transformer, shape: DecoderConfig, mesh: Mesh
) -> tuple[Any, tuple]:
  """The update of `training.loop.train` for a decoder, and its arguments as shapes.

  Args:
    task: its tokenizer, masks and length.
    config: of the training, as for `DecoderObjective`; the program makes `steps_per_call` steps.
    target: the frozen model's module; its `compute.dtype` is also that of the parameters.
    shape: the decoder.
    mesh: ("data", "model"), of real devices or of a topology's.

  Returns:
    ``(update, (state, frozen, tokens))``; ``update.lower(state, frozen, tokens).compile()`` needs no memory for the numbers.

  Raises:
    InversionViewError: a batch that does not divide over the mesh, or a model axis that divides nothing.
  """
  loop.check(config, mesh)
  objective = ShapeObjective(task, config, target, shape, mesh)
  optimizer = optimizers.of_training(config, mesh)
  state = jax.eval_shape(functools.partial(initial_state, objective, optimizer, config))
  sharding.check_shardable(state.params, mesh, "decoder")
  state = sharding.with_shardings(state, state_shardings(state, config, mesh))
  frozen = sharding.with_shardings(objective.frozen, sharding.shardings(objective.frozen, mesh))
  tokens = jax.ShapeDtypeStruct(
    (config.steps_per_call, config.batch_size, task.length), jnp.int32, sharding=tokens_sharding(mesh)
  )
  return make_update(objective, optimizer, config, mesh), (state, frozen, tokens)


def sampling(
  task: Task, target: Transformer, shape: DecoderConfig, mesh: Mesh, queries: int, rows: int, effects: bool = True
) -> tuple[Any, tuple]:
  """The program of `Sampler.run`, and its arguments as shapes.

  Args:
    task, target, shape, mesh: as for `training_step`.
    queries, rows: how many of each; rows over all devices, a multiple of the data axis.
    effects: whether to compute each token's effect.

  Returns:
    ``(program, arguments)``.
  """
  sampler, at = Sampler(shape, target, task, mesh), functools.partial(_at, mesh)
  variables = jax.eval_shape(functools.partial(decoder.initial, shape), jax.random.key(0))
  frozen = target_shapes(target)
  width = shape.d_activation
  candidate = Rows(_i32(rows), _i32(rows), _f32(rows), _f32(rows), _f32(rows, 2))
  arguments = (
    sharding.with_shardings(variables, sharding.shardings(variables, mesh)),
    sharding.with_shardings(frozen, sharding.shardings(frozen, mesh)),
    at(_f32(len(shape.sites), width)),
    at(_query(queries, width)),
    at(candidate, PartitionSpec(parallel.DATA)),
    at(jax.ShapeDtypeStruct((), jnp.uint32)),
  )
  return sampler.program(effects), arguments


def monte_carlo_sweeps(
  task: Task, target: Transformer, names: Sequence[str], mesh: Mesh, texts: bool
) -> TaskSweeps | TextSweeps:
  """The sweeps of Monte Carlo on a target without parameters; builds the program and compiles nothing.

  Args:
    task, target, mesh: as for `training_step`.
    names: of the sites that queries may have.
    texts: whether the target itself is the prior, over texts that fill the task's length; otherwise the task has the prior and the moves.

  Raises:
    InversionViewError: a task without a prior or moves, or one whose texts have no token between BOS and EOS.
  """
  model, parsed = shape_target(target), tuple(map(sites.parse, names))
  if not texts:
    return TaskSweeps(model, task, Nearness(model, task, parsed, mesh))
  tokens = task.length - 2  # without BOS and EOS
  if tokens < 1:
    raise InversionViewError(
      f"texts of {task.length} tokens with BOS and EOS have none in between: use a longer config.plan.length"
    )
  allowed = np.arange(target.config.vocab_size) != task.tokenizer.pad_id
  # A query is at one site; which one is no matter, as the whole model runs for the prior.
  return TextSweeps(LanguagePrior(model, parsed[:1], allowed), task, mesh, TextSettings((tokens, tokens)))


def monte_carlo(sweeps: TaskSweeps | TextSweeps, target: Transformer, mesh: Mesh, particles: int) -> tuple[Any, tuple]:
  """The program of the sweeps of Monte Carlo, and its arguments as shapes.

  Args:
    sweeps: of `monte_carlo_sweeps`.
    target, mesh: the same as there.
    particles: over all devices, a multiple of the data axis.

  Returns:
    ``(program, arguments)``.
  """
  frozen, data = target_shapes(target), PartitionSpec(parallel.DATA)
  *rest, state = sweeps.shapes(particles)
  scalars = (_f32(), _f32(), _f32(), _i32())  # threshold, epsilon, moves that are wanted, most sweeps
  arguments = (
    sharding.with_shardings(frozen, sharding.shardings(frozen, mesh)),
    _query(1, target.config.d_model),
    None,  # no projection
    jax.eval_shape(jax.random.key, 0),
    *scalars,
    # Inputs that are drawn for the moves: int32[sweeps, N, T].
    *(_at(mesh, x, PartitionSpec(None, parallel.DATA)) if x is not None and x.ndim == 3 else x for x in rest),
    {name: _at(mesh, x, PartitionSpec() if name.startswith("rejected_") else data) for name, x in state.items()},
  )
  return sweeps.program, arguments


def _at(mesh: Mesh, tree: Any, spec: PartitionSpec = PartitionSpec()) -> Any:
  where = NamedSharding(mesh, spec)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)


def _f32(*size: int) -> Any:
  return jax.ShapeDtypeStruct(size, jnp.float32)


def _i32(*size: int) -> Any:
  return jax.ShapeDtypeStruct(size, jnp.int32)


def _query(count: int, width: int) -> Queries:
  return Queries(_f32(count, width), _i32(count), _i32(count), _i32(count))
