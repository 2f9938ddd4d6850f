"""The programs of a run without its numbers: what training a decoder, and sampling from it, compile to on any mesh.

Nothing is loaded, made or run: parameters are shapes that say where they live, so that a step for hundreds of chips, or for a target of
billions of parameters, can be lowered and compiled on a machine that has neither (`jax.experimental.topologies` makes the devices).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from inversionview_jax import sites
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.sampling import sampler as sampling
from inversionview_jax.sampling.candidates import Queries, Rows
from inversionview_jax.tasks import Task
from inversionview_jax.training import loop, optimizers
from inversionview_jax.training.decoder_objective import DecoderObjective
from inversionview_jax.training.model_shapes import decoder_in_training
from inversionview_jax.training.update import initial_state, make_update, state_shardings, tokens_sharding


class _Shapes(DecoderObjective):
  """The loss of a `DecoderObjective` whose target is a shape: what `loss` reads, and parameters without values."""

  def __init__(self, task: Task, config: ConfigDict, target: TransformerConfig, shape: DecoderConfig, mesh):
    self.task, self.target, self.model, self._config = task, _Module(target), shape, config
    self._sites = tuple(map(sites.parse, shape.sites))
    self._module = Decoder(decoder_in_training(shape, config, mesh))
    self.frozen = target_shapes(target)

  def init(self, key):
    variables = decoder.initial(self.model, key)
    return variables["params"], {"stats": variables["stats"], "site_logits": jnp.zeros(len(self._sites))}


class _Module:
  def __init__(self, config: TransformerConfig):
    self.config, self.module = config, Transformer(config)


def target_shapes(config: TransformerConfig):
  """The parameters of a target as shapes, in the type that it computes in, as `load_target(dtype=...)` holds them."""
  made = jax.eval_shape(Transformer(config).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), jnp.int32))
  dtype = jnp.dtype(config.dtype)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), made["params"])


def training_step(task: Task, config: ConfigDict, target: TransformerConfig, shape: DecoderConfig, mesh):
  """The program of `training.train` for a decoder, and its arguments as shapes.

  Args:
    task: its tokenizer, masks and length.
    config: of the training, as for `training.train` with `objectives.DecoderObjective`; `steps_per_call` steps are in the program.
    target: the frozen model; its `dtype` is also that of its parameters.
    shape: the decoder.
    mesh: ("data", "model"), of real devices or of a topology's.

  Returns:
    ``(update, (state, frozen, tokens))``; ``update.lower(state, frozen, tokens).compile()`` needs no memory for the numbers.

  Raises:
    InversionViewError: a batch that does not divide over the mesh, or a model axis that divides nothing.
  """
  loop.check(config, mesh)
  objective = _Shapes(task, config, target, shape, mesh)
  optimizer = optimizers.of_training(config, mesh)
  state = jax.eval_shape(functools.partial(initial_state, objective, optimizer, config))
  sharding.check_shardable(state.params, mesh, "decoder")
  state = sharding.with_shardings(state, state_shardings(state, config, mesh))
  frozen = sharding.with_shardings(objective.frozen, sharding.shardings(objective.frozen, mesh))
  tokens = jax.ShapeDtypeStruct(
    (config.steps_per_call, config.batch_size, task.length), jnp.int32, sharding=tokens_sharding(mesh)
  )
  return make_update(objective, optimizer, config, mesh), (state, frozen, tokens)


def sampler(
  task: Task, target: TransformerConfig, shape: DecoderConfig, mesh, queries: int, rows: int, effects: bool = True
):
  """The program of `sampling.Sampler.run`, and its arguments as shapes.

  Args:
    task, target, shape, mesh: as for `training_step`.
    queries, rows: how many of each; rows over all devices, a multiple of the data axis.
    effects: whether to compute each token's effect.

  Returns:
    ``(program, arguments)``.
  """
  made = sampling.Sampler(shape, Transformer(target), task, mesh)

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
  asked = Queries(f32(queries, width), i32(queries), i32(queries), i32(queries))
  drawn = Rows(i32(rows), i32(rows), f32(rows), f32(rows), f32(rows, 2))
  arguments = (
    sharding.with_shardings(variables, sharding.shardings(variables, mesh)),
    sharding.with_shardings(frozen, sharding.shardings(frozen, mesh)),
    at(f32(len(shape.sites), width)),
    at(asked),
    at(drawn, PartitionSpec(parallel.DATA)),
    at(jax.ShapeDtypeStruct((), jnp.uint32)),
  )
  return made.program(effects), arguments
