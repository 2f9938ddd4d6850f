"""What a config would take on devices that are not here: its programs, compiled ahead of time and read.

The training step and the sampler come from `ahead`, with shapes for parameters; libtpu compiles for TPU topologies on a machine without a TPU.
Nothing is run: times are a roofline, which no run can beat.

Bytes and FLOPs are per device.
"""

import dataclasses
import importlib.metadata
import importlib.util
import os
import re
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import sites, tasks
from inversionview_jax.devices import parallel, program_cost, sharding
from inversionview_jax.devices.chips import Chip, Topology
from inversionview_jax.devices.program_cost import Collectives
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.layers import compiling_for
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.planning import abstract_programs, architectures
from inversionview_jax.training import loop, model_shapes

_KEYS = ("target", "decoder", "length", "dtype")


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is planned.

  Attributes:
    task: what the programs read of a `Task`.
    target, decoder: shapes.
    config: of the training.
  """

  task: object
  target: TransformerConfig
  decoder: DecoderConfig
  config: ConfigDict


@dataclasses.dataclass(frozen=True)
class Program:
  """One compiled program.

  Attributes:
    name: what it does.
    arguments: bytes that live in memory all the time: parameters, optimizer state, inputs; also those that this program does not read.
    temporaries: bytes besides, at the worst moment; results that do not take over an argument's memory, and the program, included.
    flops: of matrix products.
    bytes: read and written in the chip's memory.
    collectives: by kind.
    examples: texts, or samples, of one run of the program on all devices.
    seconds: it took to compile.
    refused: why the compiler gave up; then what is not known is 0.
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
    return self.arguments + self.temporaries

  def fits(self, chip: Chip | None) -> bool:
    return not self.refused and (chip is None or self.total <= chip.memory)

  def times(self, chip: Chip) -> dict[str, float]:
    """Seconds that the arithmetic, the memory and the links would take by themselves, each at its peak."""
    sent = sum(kind.sent for kind in self.collectives.values())
    return {"compute": self.flops / chip.flops, "memory": self.bytes / chip.bandwidth, "links": sent / chip.links}

  def step(self, chip: Chip) -> tuple[float, float]:
    """Seconds of a step if all of that overlaps, and if nothing does."""
    times = self.times(chip).values()
    return max(times), sum(times)


class _Tokens:
  """One token begins, ends and fills a text, as in GPT-2."""

  def __init__(self, vocab_size: int):
    self.vocab_size, self.bos_id, self.eos_id, self.pad_id = (vocab_size, *(vocab_size - 1,) * 3)


class _Texts:
  """Texts of a length, in place of a task."""

  name = "texts"
  bos_attention = rare = None  # as `Task` has them

  def __init__(self, vocab_size: int, length: int):
    self.tokenizer, self.length = _Tokens(vocab_size), length

  def query_mask(self, tokens):
    return tokens != self.tokenizer.pad_id

  counted_mask = query_mask


def setting(config: ConfigDict) -> Setting:
  """What a config is a plan of.

  Args:
    config: with `plan` (target and decoder by the names of `architectures`, length of the texts in tokens, dtype of the target), or one that
      `inversionview train` takes.

  Raises:
    InversionViewError: a config that is neither, or an architecture that is not known.
  """
  if "plan" in config:
    if missing := [key for key in _KEYS if key not in config.plan]:
      raise InversionViewError(f"config.plan has no {missing[0]}; it has target, decoder, length and dtype")
    plan = config.plan
    target = architectures.architecture(plan.target, dtype=plan.dtype)
    shape = architectures.architecture(plan.decoder, n_ctx=plan.length, vocab_size=target.vocab_size)
    if not 2 <= plan.length <= target.n_ctx:
      raise InversionViewError(f"config.plan.length = {plan.length} must be from 2 to {target.n_ctx}")
    task, names, forbidden = _Texts(target.vocab_size, plan.length), config.sites, ()
  elif {"task", "model", "target"} <= set(config):
    task = tasks.get(config.task)
    if not isinstance(config.target, ConfigDict) or "model" not in config.target:
      raise InversionViewError("the config does not say what its target looks like; give it a config.plan")
    dtype = (config.get("compute") or {}).get("target_dtype", "") or "float32"
    target, shape = (
      dataclasses.replace(model_shapes.transformer_config(task, config.target), dtype=dtype),
      model_shapes.transformer_config(task, config),
    )
    names = config.sites or task.default_sites(target.n_layers, target.n_heads)
    forbidden = (task.tokenizer.bos_id, task.tokenizer.pad_id)
  else:
    raise InversionViewError("the config is no training: it has neither a plan nor a task with target and model")
  for site in map(sites.parse, names):
    if (site.layer or 0) >= target.n_layers or (site.head or 0) >= target.n_heads:
      raise InversionViewError(
        f"site {site.short} is not in the target, which has {target.n_layers} layers of {target.n_heads} heads"
      )
  names = tuple(site.short for site in map(sites.parse, names))
  decoder = model_shapes.decoder_config(config, shape, names, target.d_model, forbidden)
  return Setting(task, target, decoder, config)


def simulate(count: int) -> None:
  """Asks for so many CPU devices at least; no effect once JAX has its devices."""
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):  # which says how many there are
    return
  try:
    jax.config.update("jax_num_cpu_devices", max(count, jax.config.jax_num_cpu_devices))
  except RuntimeError:
    pass


def devices(topology: Topology) -> list[jax.Device]:
  """The devices of a topology; for TPUs they can be compiled for and not run on.

  Raises:
    InversionViewError: no libtpu, a shape that it does not know, or fewer simulated CPU devices than asked for.
  """
  if topology.chip is None:
    simulate(topology.devices)
    found = jax.devices("cpu")
    if len(found) < topology.devices:
      raise InversionViewError(
        f"topology {topology.name}: JAX has {len(found)} CPU devices; unset XLA_FLAGS and start anew"
      )
    return found[: topology.devices]
  if importlib.util.find_spec("libtpu") is None:
    raise InversionViewError(
      f"topology {topology.name}: compiling for TPUs needs libtpu; install the extra: pip install inversionview_jax[plan]"
    )
  # Without these libtpu looks for a TPU's metadata server; and the plan must not take a TPU that is in use on this machine.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault(
    "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
  )  # two plans at a time, or one beside a training: no chip is touched
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
  except Exception as error:
    raise InversionViewError(f"topology {topology.name}: libtpu says: {' '.join(str(error).split())[:200]}") from None
  return list(found)


def mesh_for(plan: Setting, topology: Topology):
  """The config's mesh over a topology's devices, and the config with its batch for that mesh."""
  mesh = parallel.mesh_of(plan.config, devices(topology))
  config = plan.config.copy_and_resolve_references()
  config.unlock()
  if "batch_per_device" in config:
    config.batch_size = config.batch_per_device * mesh.shape[parallel.DATA]
  config.steps_per_call = 1
  return mesh, config


def check(plan: Setting, topology: Topology) -> None:
  """Raises `InversionViewError` for a mesh or a batch that does not divide, before anything is compiled."""
  mesh, config = mesh_for(plan, topology)
  loop.check(config, mesh)


def training_step(plan: Setting, topology: Topology) -> Program:
  """Compiles one step of training the decoder, the target's forward pass inside."""
  mesh, config = mesh_for(plan, topology)
  program, arguments = abstract_programs.training_step(plan.task, config, plan.target, plan.decoder, mesh)
  share = mesh.size if sharding.shards_optimizer(config) else mesh.shape[parallel.MODEL]
  return _compiled("training step", program, arguments, parallel.platform(mesh), share, config.batch_size)


def sampler(plan: Setting, topology: Topology, rows: int) -> Program:
  """Compiles sampling with the re-run of the target: `rows` candidates per place on the data axis, of as many queries."""
  mesh, _ = mesh_for(plan, topology)
  count = rows * mesh.shape[parallel.DATA]
  program, arguments = abstract_programs.sampler(plan.task, plan.target, plan.decoder, mesh, queries=count, rows=count)
  return _compiled("sampler", program, arguments, parallel.platform(mesh), mesh.size, count, loop=plan.task.length - 1)


def _compiled(name: str, program, arguments, platform: str, share: int, examples: int, loop: int = 1) -> Program:
  """Compiles and reads; `share`: devices over which the work outside of the per-device parts, the optimizer's, is spread."""
  with compiling_for(platform):
    traced = program.trace(*arguments)
  flops = program_cost.matmul_flops(traced.jaxpr, share, loop)
  held = float(sum(_held(x) for x in jax.tree.leaves(arguments)))
  began = time.perf_counter()
  kept = jax.config.jax_enable_compilation_cache
  jax.config.update(
    "jax_enable_compilation_cache", kept and platform == "cpu"
  )  # JAX keeps programs for other machines and cannot read them
  try:
    compiled = traced.lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    said = re.search(r"\(([\d.]+)([MGT])\) exceeds", str(error))
    needed = float(said[1]) * 2 ** {"M": 20, "G": 30, "T": 40}[said[2]] if said else 0.0
    reason = " ".join(str(error).split("See https")[0].split())
    return Program(name, held, needed, flops, 0.0, {}, examples, time.perf_counter() - began, reason)
  finally:
    jax.config.update("jax_enable_compilation_cache", kept)
  seconds = time.perf_counter() - began
  try:
    memory = compiled.memory_analysis()
    cost = program_cost.traffic(compiled.as_text(), loop)
  except jax.errors.JaxRuntimeError as error:
    raise _unreadable(error) from None
  besides = memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
  besides += max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes)
  return Program(
    name,
    max(held, float(memory.argument_size_in_bytes)),  # the compiler leaves out what is not read, and pads what is
    float(besides),
    flops,
    cost.bytes,
    cost.collectives,
    examples,
    seconds,
  )


def _unreadable(error: Exception) -> InversionViewError:
  """libtpu compiled what jaxlib cannot read: seen with libtpu 0.0.52 under JAX 0.10.2, which asks for 0.0.42, and only for v6e."""
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


def _held(x: jax.ShapeDtypeStruct) -> int:
  """Bytes of an argument on one device."""
  shape = x.sharding.shard_shape(x.shape) if x.sharding is not None else x.shape
  itemsize = 4 if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.dtype(x.dtype).itemsize
  return int(np.prod(shape, dtype=np.int64)) * itemsize


def remedies(plan: Setting, program: Program, topology: Topology) -> list[str]:
  """Settings that would make a program that does not fit smaller, what helps most first."""
  config, compute, mesh = plan.config, plan.config.get("compute") or {}, plan.config.get("mesh") or {}
  model = mesh.get("model", 1)
  batch = "batch_per_device" if "batch_per_device" in config else "batch_size"
  state, work = [], []
  if not sharding.shards_optimizer(config) and program.name == "training step":
    state.append("--config.mesh.shard_optimizer=True (optimizer state spread over the data axis)")
  if topology.devices % (2 * model) == 0:
    state.append(f"--config.mesh.model={2 * model} (parameters of target and decoder split over {2 * model} devices)")
  if program.name == "sampler":
    work.append("fewer --rows")
  else:
    if compute.get("dtype", "") != "bfloat16":
      work.append("--config.compute.dtype=bfloat16 (half the activations)")
    if not compute.get("remat", False):
      work.append("--config.compute.remat=True (a third more arithmetic, a fraction of the activations)")
    pieces = compute.get("accumulate", 1)
    work.append(f"--config.compute.accumulate={2 * pieces} (the batch in {2 * pieces} pieces)")
    work.append(f"--config.{batch}={max(1, config[batch] // 2)}")
  if topology.chip and program.arguments > 0.6 * topology.chip.memory:
    return state + work
  return work + state


def plan_data(plan: Setting, topology: Topology, programs: list[Program]) -> dict:
  """Everything as plain data."""
  mesh = plan.config.get("mesh") or {}
  model = mesh.get("model", 1)
  out = {
    "topology": topology.name,
    "devices": topology.devices,
    "mesh": {"data": topology.devices // model, "model": model},
    "memory": topology.chip.memory if topology.chip else None,
    "target_parameters": parameters(abstract_programs.target_shapes(plan.target)),
    "decoder_parameters": decoder_parameters(plan),
    "programs": {},
  }
  for program in programs:
    data = dataclasses.asdict(program) | {"total": program.total, "fits": program.fits(topology.chip)}
    if topology.chip and not program.refused:
      low, high = program.step(topology.chip)
      data |= {"seconds_by": program.times(topology.chip), "step_seconds": [low, high]}
      data |= {"utilisation": [program.flops / topology.chip.flops / time for time in (high, low)]}
    if not data["fits"]:
      data["remedies"] = remedies(plan, program, topology)
    out["programs"][program.name] = data
  return out


def parameters(tree) -> int:
  return sum(int(np.prod(x.shape, dtype=np.int64)) for x in jax.tree.leaves(tree))


def decoder_parameters(plan: Setting) -> int:
  from inversionview_jax.models import decoder

  shapes = jax.eval_shape(lambda key: decoder.initial(plan.decoder, key), jax.random.key(0))
  return parameters(shapes["params"])
