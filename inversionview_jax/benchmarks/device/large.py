"""The paper's largest setting on one chip: a decoder of GPT-2 medium's size that reads GPT-2 XL, cut behind layer 42, in bfloat16 with random weights.

The batch is the largest power of two that fits: estimated from the memory of the chip, checked against what the compiler says, halved as long as
the program does not fit.

Shapes: B texts, T tokens.
"""

import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks
from inversionview_jax.benchmarks.device import speed
from inversionview_jax.benchmarks.device.parts import Record, Settings, short
from inversionview_jax.devices import parallel, program_cost
from inversionview_jax.planning import abstract_programs, scenario
from inversionview_jax.training import throughput

_LAYERS = 43  # 0 to 42
# Bytes of a pair's activations in a training step, beside state and target; a text of 41 tokens in both models took 0.17 GiB in a program
# compiled for a TPU.
_PER_PAIR = 0.2 * 2**30
_SHARE = 0.9  # of the chip's memory that may be used


def run(record: Record, settings: Settings) -> None:
  """Compiles, initializes and times the training step."""
  if jax.default_backend() == "cpu" and not settings.small:
    record.values(skipped="needs an accelerator")
    return
  mesh = parallel.make_mesh()
  plan = _plan(settings.small)
  record.values(about=f"target of {plan.target.n_layers} layers, d={plan.target.d_model}; decoder of {plan.decoder.transformer.n_layers} layers, "
                      f"d={plan.decoder.transformer.d_model}; {plan.task.length} tokens")  # fmt: skip
  size = speed.size_of(settings)
  speed.measured_peaks(record, size)
  limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
  batch = 4 if settings.small else _estimate(plan, mesh, limit)
  while batch:
    try:
      return _measure(record, plan, mesh, batch, limit, size.repeats)
    except (jax.errors.JaxRuntimeError, MemoryError) as error:
      record.row(name=_name(batch * mesh.size), error=short(error))
      if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
        raise
    batch //= 2


def _name(batch: int) -> str:
  return f"large decoder training, bfloat16, batch {batch:,}"


def _plan(small: bool) -> scenario.Scenario:
  """The scenario as shapes; `small`: two layers of each, to try the code out."""
  config = ConfigDict()
  config.plan = ConfigDict({"target": "gpt2-xl", "decoder": "gpt2-medium", "length": 41, "dtype": "bfloat16"})
  config.seed = 0
  config.sites = tuple(
    f"a{24 + i % 19}.{i}" for i in range(25)
  )  # as many heads as the paper reads, in every layer from 24 to 42
  config.encoder_blocks, config.encoder_width, config.n_slots = 6, 0, 1
  config.normalize = "none"
  config.pairs_per_text, config.bos_rate, config.noise = 1, 0.01, 0.0
  config.optimizer = blocks.adamw()
  config.steps, config.steps_per_call, config.average = 250_000, 1, 0.0
  config.mesh, config.compute = blocks.mesh(), blocks.compute("bfloat16")
  if small:
    config.plan.length, config.sites = 9, ("a0.0", "a1.1")
  plan = scenario.scenario_of(config)
  if not small:
    return dataclasses.replace(plan, target=dataclasses.replace(plan.target, n_layers=_LAYERS))
  tiny: dict[str, Any] = {"vocab_size": 211, "n_layers": 2, "n_heads": 2, "d_model": 32, "d_mlp": 64}
  target = dataclasses.replace(plan.target, **tiny)
  decoder = dataclasses.replace(
    plan.decoder, d_activation=32, transformer=dataclasses.replace(plan.decoder.transformer, **tiny)
  )
  return dataclasses.replace(
    plan, target=target, decoder=decoder, task=type(plan.task)(tiny["vocab_size"], config.plan.length)
  )


def _program(plan: scenario.Scenario, mesh: Mesh, batch: int) -> tuple[Any, tuple]:
  """The update and its arguments as shapes, `batch` texts per device."""
  config = plan.config.copy_and_resolve_references()
  config.batch_size = batch * mesh.size
  return abstract_programs.training_step(plan.task, config, plan.target_module, plan.decoder, mesh)


def _estimate(plan: scenario.Scenario, mesh: Mesh, limit: int | None) -> int:
  """Texts per device, a power of two, from the memory that is left beside state and target."""
  _, (state, frozen, _) = _program(plan, mesh, 1)
  held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state, frozen)))
  room = (limit or 16 * 2**30) * _SHARE - held
  return 2 ** max(0, int(np.log2(max(room / _PER_PAIR, 1.0))))


def _measure(record: Record, plan: scenario.Scenario, mesh: Mesh, batch: int, limit: int | None, repeats: int) -> None:
  update, shapes = _program(plan, mesh, batch)
  flops = program_cost.matmul_flops(update.trace(*shapes).jaxpr, share=mesh.size) * mesh.size
  begin = time.perf_counter()
  compiled = update.lower(*shapes).compile()
  record.values(compile_seconds=round(time.perf_counter() - begin, 1), batch=batch * mesh.size)
  needed = speed.program_memory(compiled)
  if limit and needed and needed * 2**30 > limit:
    raise MemoryError(f"out of memory: the program takes {needed:.1f} GiB of {limit / 2**30:.1f}")
  if not repeats:
    return
  state, frozen, tokens = _arguments(shapes, plan.task.tokenizer.vocab_size - 1)
  first = None
  seconds = []
  for number in range(1 + repeats):
    begin = time.perf_counter()
    state, losses, _ = compiled(state, frozen, tokens)
    losses.block_until_ready()
    took = time.perf_counter() - begin
    if number:
      seconds.append(took)
    else:
      first = took
  loss = float(losses[0])
  if not np.isfinite(loss):
    raise FloatingPointError(f"the loss is {loss} after {1 + repeats} steps")
  pairs = batch * mesh.size
  rate = pairs / float(np.median(seconds))
  record.row(
    name=_name(pairs),
    unit="pairs",
    rate=rate,
    low=pairs / max(seconds),
    high=pairs / min(seconds),
    first_seconds=first,
    loss=loss,
    **speed.shares(record, flops / pairs * rate),
    peak_gib=speed.gib(throughput.memory_in_use()),
    program_gib=needed,
  )


def _arguments(shapes: tuple, vocabulary: int) -> tuple:
  """Random weights, zeros for the state of the optimizer and statistics, and random texts, for these shapes."""
  state, frozen, tokens = shapes
  number = iter(range(10**6))

  def weight(path, leaf):
    if getattr(path[-1], "key", "") == "scale":
      return jax.device_put(jnp.ones(leaf.shape, leaf.dtype), leaf.sharding)
    return jax.device_put(_normal(leaf.shape, leaf.dtype, next(number)), leaf.sharding)

  def zeros(leaf):
    return jax.device_put(jnp.zeros(leaf.shape, leaf.dtype), leaf.sharding)

  params = jax.tree_util.tree_map_with_path(weight, state.params)
  state = dataclasses.replace(jax.tree.map(zeros, dataclasses.replace(state, params={})), params=params)
  texts = np.random.default_rng(0).integers(vocabulary, size=tokens.shape).astype(np.int32)
  return state, jax.tree_util.tree_map_with_path(weight, frozen), jax.device_put(texts, tokens.sharding)


@functools.partial(jax.jit, static_argnums=(0, 1))  # one program for each shape
def _normal(shape: tuple[int, ...], dtype: Any, seed: int) -> jax.Array:
  return (0.02 * jax.random.normal(jax.random.key(seed), shape)).astype(dtype)
