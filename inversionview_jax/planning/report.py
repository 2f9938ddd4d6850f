"""A plan as plain data: sizes, times, and settings that would make a program fit."""

import dataclasses
from typing import Any

import jax
import numpy as np

from inversionview_jax.devices import sharding
from inversionview_jax.devices.chips import Topology
from inversionview_jax.models import decoder
from inversionview_jax.planning import abstract_programs
from inversionview_jax.planning.planning import Program
from inversionview_jax.planning.scenario import Scenario


def remedies(plan: Scenario, program: Program, topology: Topology) -> list[str]:
  """Settings that would make a program that does not fit smaller, those that help most first."""
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
  elif program.name == "Monte Carlo":
    work.append("fewer --particles")
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


def plan_data(plan: Scenario, topology: Topology, programs: list[Program]) -> dict:
  """Devices, mesh, sizes, and every program with its times, and remedies where it does not fit; plain data."""
  mesh = plan.config.get("mesh") or {}
  model = mesh.get("model", 1)
  out: dict[str, Any] = {
    "topology": topology.name,
    "devices": topology.devices,
    "mesh": {"data": topology.devices // model, "model": model},
    "memory": topology.chip.memory if topology.chip else None,
    "target_parameters": parameters(abstract_programs.target_shapes(plan.target_module)),
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


def parameters(tree: Any) -> int:
  """The number of parameters of a tree of arrays or shapes."""
  return sum(int(np.prod(x.shape, dtype=np.int64)) for x in jax.tree.leaves(tree))


def decoder_parameters(plan: Scenario) -> int:
  """The number of parameters of the decoder."""
  shapes = jax.eval_shape(lambda key: decoder.initial(plan.decoder, key), jax.random.key(0))
  return parameters(shapes["params"])
