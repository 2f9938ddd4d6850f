"""Memory, FLOPs and traffic of a config's programs on devices that are not here, from programs that are compiled and never run.

The training step, the sampler and the sweeps of Monte Carlo come from `abstract_programs`, with shapes for parameters; libtpu compiles for TPU topologies on a machine
without a TPU. Times are a roofline, a lower bound of those of a run.

Bytes and FLOPs are per device.
"""

import dataclasses
import importlib.metadata
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax.devices import parallel, program_cost, sharding
from inversionview_jax.devices.chips import Chip, Topology
from inversionview_jax.devices.program_cost import Collectives, Loop
from inversionview_jax.errors import InversionViewError
from inversionview_jax.planning import abstract_programs, topologies
from inversionview_jax.planning.scenario import Scenario
from inversionview_jax.reading import text_prior
from inversionview_jax.training import loop as training_loop

# Settings of a run that no program depends on, and that a config made for plans has no use for.
_OF_A_RUN = {"log_every": 0, "eval_every": 0, "save_every": 0, "keep": 1}


@dataclasses.dataclass(frozen=True)
class Program:
  """The cost of one compiled program.

  Attributes:
    name: "training step", "sampler" or "Monte Carlo".
    arguments: bytes of parameters, optimizer state and inputs, also of those that this program does not read.
    temporaries: largest number of bytes in use at a time besides, with results that do not reuse an argument's memory and the program.
    flops: of matrix products.
    bytes: read and written in the chip's memory.
    collectives: by kind.
    examples: texts, candidates, or particles that are moved once, of one run of the program on all devices.
    seconds: of the compilation.
    refused: the compiler's reason if it gave up; then what is not known is 0.
  """

  name: str
  arguments: float
  temporaries: float
  flops: float
  bytes: float
  collectives: dict[str, Collectives]
  examples: int
  seconds: float
  refused: str = ""

  @property
  def total(self) -> float:
    """Bytes in memory."""
    return self.arguments + self.temporaries

  def fits(self, chip: Chip | None) -> bool:
    """Whether it was compiled and its memory is that of the chip at most; None has no limit."""
    return not self.refused and (chip is None or self.total <= chip.memory)

  def times(self, chip: Chip) -> dict[str, float]:
    """Seconds of the arithmetic, the memory traffic and the link traffic by themselves, each at the chip's peak."""
    sent = sum(kind.sent for kind in self.collectives.values())
    return {"compute": self.flops / chip.flops, "memory": self.bytes / chip.bandwidth, "links": sent / chip.links}

  def step(self, chip: Chip) -> tuple[float, float]:
    """Seconds of a step if these overlap completely, and if they do not overlap."""
    times = self.times(chip).values()
    return max(times), sum(times)


def mesh_for(plan: Scenario, topology: Topology) -> tuple[Mesh, ConfigDict]:
  """The config's mesh over a topology's devices, and the config with the batch size for that mesh."""
  mesh = parallel.mesh_of(plan.config, topologies.devices(topology))
  config = plan.config.copy_and_resolve_references()
  config.unlock()
  if "batch_per_device" in config:
    config.batch_size = config.batch_per_device * mesh.shape[parallel.DATA]
  config.steps_per_call = 1
  for key, value in _OF_A_RUN.items():
    if key not in config:
      config[key] = value
  return mesh, config


def check(plan: Scenario, topology: Topology) -> None:
  """Raises `InversionViewError` for a mesh or a batch that does not divide, before anything is compiled."""
  mesh, config = mesh_for(plan, topology)
  training_loop.check(config, mesh)


def training_step(plan: Scenario, topology: Topology) -> Program:
  """The cost of one training step of the decoder, with the target's forward pass inside; compiles it."""
  mesh, config = mesh_for(plan, topology)
  program, arguments = abstract_programs.training_step(plan.task, config, plan.target_module, plan.decoder, mesh)
  share = mesh.size if sharding.shards_optimizer(config) else mesh.shape[parallel.MODEL]
  return _compiled("training step", program, arguments, parallel.platform(mesh), share, config.batch_size)


def sampler(plan: Scenario, topology: Topology, rows: int) -> Program:
  """The cost of sampling with the re-run of the target; compiles it.

  Args:
    plan: what is sampled from.
    topology: the devices.
    rows: candidates per device of the data axis, each of a query of its own.
  """
  mesh, _ = mesh_for(plan, topology)
  count = rows * mesh.shape[parallel.DATA]
  program, arguments = abstract_programs.sampling(
    plan.task, plan.target_module, plan.decoder, mesh, queries=count, rows=count
  )
  return _compiled("sampler", program, arguments, parallel.platform(mesh), mesh.size, count, loop=plan.task.length - 1)


def check_monte_carlo(plan: Scenario, topology: Topology, particles: int = 2) -> None:
  """Raises what the sampler itself would, before anything is compiled.

  Args:
    plan: whose target is read.
    topology: the devices.
    particles: per device of the data axis.

  Raises:
    InversionViewError: a task without a prior or moves, or texts whose keys and values are too large.
  """
  mesh = mesh_for(plan, topology)[0]
  _sweeps(plan, mesh)
  if plan.texts:
    count = particles * mesh.shape[parallel.DATA]
    text_prior.check_memory(plan.target_module.config, plan.task.length - 2, count, mesh)


def monte_carlo(plan: Scenario, topology: Topology, particles: int) -> Program:
  """The cost of one sweep of Monte Carlo on the target, which needs no decoder; compiles the program of all sweeps of a call.

  Args:
    plan: whose target is read.
    topology: the devices.
    particles: per device of the data axis, an even number.
  """
  mesh, _ = mesh_for(plan, topology)
  count = particles * mesh.shape[parallel.DATA]
  program, arguments = abstract_programs.monte_carlo(_sweeps(plan, mesh), plan.target_module, mesh, count)
  # Of a text, a sweep computes the tokens from a position on that is drawn uniformly: half of them, on average.
  passes = (plan.task.length - 1) / 2 if plan.texts else 1.0
  return _compiled("Monte Carlo", program, arguments, parallel.platform(mesh), mesh.size, count, loop=(1.0, passes))


def _sweeps(plan: Scenario, mesh: Mesh) -> Any:
  return abstract_programs.monte_carlo_sweeps(plan.task, plan.target_module, plan.decoder.sites, mesh, plan.texts)


def _compiled(
  name: str, program: Any, arguments: tuple, platform: str, share: int, examples: int, loop: Loop = 1
) -> Program:
  """Compiles a program and reads its cost.

  Args:
    name, examples: of the `Program`.
    program: a jitted function.
    arguments: its arguments as shapes.
    platform: "cpu" or "tpu".
    share: number of devices that share the work outside of the per-device parts (the optimizer's).
    loop: iterations of a `while_loop`; several, outermost first, for loops in loops.
  """
  traced = program.trace(*arguments)
  flops = program_cost.matmul_flops(traced.jaxpr, share, loop)
  own = float(sum(_bytes_per_device(x) for x in jax.tree.leaves(arguments)))
  start = time.perf_counter()
  settings: Any = jax.config
  cached = settings.jax_enable_compilation_cache
  # JAX would cache programs for other machines, and cannot read them from the cache.
  jax.config.update("jax_enable_compilation_cache", cached and platform == "cpu")
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    needed, reason = _needed_memory(str(error))
    return Program(name, own, needed, flops, 0.0, {}, examples, time.perf_counter() - start, reason)
  finally:
    jax.config.update("jax_enable_compilation_cache", cached)
  seconds = time.perf_counter() - start
  try:
    memory = compiled.memory_analysis()
    cost = program_cost.traffic(compiled.as_text(), loop)
  except jax.errors.JaxRuntimeError as error:
    raise _unreadable(error) from None
  temporaries = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  temporaries += max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
  return Program(
    name,
    max(own, float(memory.argument_size_in_bytes)),  # the compiler leaves out what is not read, and pads what is
    float(temporaries),
    flops,
    cost.bytes,
    cost.collectives,
    examples,
    seconds,
  )


def _needed_memory(error: str) -> tuple[float, str]:
  """The bytes that a compiler's "out of memory" names, 0 if it names none, and its reason in one line."""
  size = re.search(r"\(([\d.]+)([MGT])\) exceeds", error)
  needed = float(size[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[size[2]] if size else 0.0
  return needed, " ".join(error.split("See https")[0].split())


def _unreadable(error: Exception) -> InversionViewError:
  """The error for a program that libtpu compiled and jaxlib cannot read.

  Seen with libtpu 0.0.52 under JAX 0.10.2, which asks for 0.0.42, and only for v6e.
  """
  versions = ", ".join(f"{name} {_version(name)}" for name in ("libtpu", "jax"))
  return InversionViewError(
    f"the compiled program cannot be read ({versions}): {' '.join(str(error).split())[:120]}; libtpu and jax must belong together: "
    "pip install 'jax[tpu]' takes the libtpu of the installed jax"
  )


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "of unknown version"


def _bytes_per_device(x: jax.ShapeDtypeStruct) -> int:
  """Bytes of an argument on one device."""
  shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
  itemsize = 4 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.dtype(x.dtype).itemsize
  return int(np.prod(shape, dtype=np.int64)) * itemsize
