"""The jitted programs of a decoder's training step and of sampling from it, with shapes as arguments, on any mesh.

No parameters are loaded or initialized: they are shapes with shardings, so that a step for hundreds of chips, or for a target of billions of
parameters, can be lowered and compiled on a machine that has neither (`jax.experimental.topologies` makes the devices).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax import sites
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sampling import Sampler
from inversionview_jax.sampling.candidates import Queries, Rows
from inversionview_jax.tasks import Task
from inversionview_jax.training import loop, optimizers
from inversionview_jax.training.decoder_objective import DecoderObjective
from inversionview_jax.training.model_shapes import decoder_compute_in_training
from inversionview_jax.training.site_pairs import SitePairs
from inversionview_jax.training.update import initial_state, make_update, state_shardings, tokens_sharding


class ShapeObjective(DecoderObjective):
  """A `DecoderObjective` with shapes for the target's parameters: what `init` and `loss` read, and nothing else."""

  def __init__(self, task: Task, config: ConfigDict, target: Transformer, shape: DecoderConfig, mesh: Mesh):
    shapes: Any = _ShapeTarget(target)
    self.target = shapes
    self.task, self.model, self._config = task, shape, config
    self._sites = tuple(map(sites.parse, shape.sites))
    self._module = Decoder(shape, decoder_compute_in_training(shape, config, mesh))
    self._site_pairs = SitePairs(task, shapes, self._sites, mesh, texts_at_once=1)
    self.frozen = target_shapes(target)

  def init(self, key: jax.Array) -> tuple[dict, dict]:
    variables = decoder.initial(self.model, key)
    params = self._with_count_head(variables["params"], key)
    return params, {"stats": variables["stats"], "site_logits": jnp.zeros(len(self._sites))}


class _ShapeTarget:
  """The attributes of a `Target` that are used inside of a training step."""

  def __init__(self, module: Transformer):
    self.config, self.module = module.config, module


def target_shapes(module: Transformer) -> Any:
  """The parameters of a target as shapes, in the dtype that it computes in, as `load_target(dtype=...)` holds them."""
  variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
  dtype = jnp.dtype(module.compute.dtype)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), variables["params"])


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
  sampler = Sampler(shape, target, task, mesh)

  def at(tree, spec=PartitionSpec()):
    where = NamedSharding(mesh, spec)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

  def f32(*size):
    return jax.ShapeDtypeStruct(size, jnp.float32)

  def i32(*size):
    return jax.ShapeDtypeStruct(size, jnp.int32)

  variables = jax.eval_shape(functools.partial(decoder.initial, shape), jax.random.key(0))
  frozen = target_shapes(target)
  width = shape.d_activation
  query = Queries(f32(queries, width), i32(queries), i32(queries), i32(queries))
  candidate = Rows(i32(rows), i32(rows), f32(rows), f32(rows), f32(rows, 2))
  arguments = (
    sharding.with_shardings(variables, sharding.shardings(variables, mesh)),
    sharding.with_shardings(frozen, sharding.shardings(frozen, mesh)),
    at(f32(len(shape.sites), width)),
    at(query),
    at(candidate, PartitionSpec(parallel.DATA)),
    at(jax.ShapeDtypeStruct((), jnp.uint32)),
  )
  return sampler.program(effects), arguments
