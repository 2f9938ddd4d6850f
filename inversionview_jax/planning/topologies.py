"""The devices of a topology that is not here: simulated CPU devices, or TPUs that libtpu compiles for."""

import importlib.util
import os
from typing import Any

import jax

from inversionview_jax.devices.chips import Topology
from inversionview_jax.errors import InversionViewError


def simulate_devices(count: int) -> None:
  """Lets JAX simulate at least so many CPU devices; no effect once JAX has its devices."""
  if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):  # the number set there wins
    return
  settings: Any = jax.config
  try:
    settings.update("jax_num_cpu_devices", max(count, settings.jax_num_cpu_devices))
  except RuntimeError:
    pass


def devices(topology: Topology) -> list[jax.Device]:
  """The devices of a topology; programs can be compiled for TPU devices, but not run on them.

  Raises:
    InversionViewError: no libtpu, a shape that it does not know, or fewer simulated CPU devices than the topology has.
  """
  if topology.chip is None:
    simulate_devices(topology.devices)
    simulated = jax.devices("cpu")
    if len(simulated) < topology.devices:
      raise InversionViewError(
        f"topology {topology.name}: JAX has {len(simulated)} CPU devices; unset XLA_FLAGS and start anew"
      )
    return simulated[: topology.devices]
  if importlib.util.find_spec("libtpu") is None:
    raise InversionViewError(
      f"topology {topology.name}: compiling for TPUs needs libtpu; install the extra: pip install inversionview_jax[plan]"
    )
  # Without these libtpu looks for a TPU's metadata server; and the plan must not take a TPU that is in use on this machine.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  # Two plans at a time, or one beside a training: no chip is touched.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  jax.config.update("jax_platforms", "cpu")
  from jax.experimental import topologies

  try:
    tpus = topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices
  except Exception as error:
    raise InversionViewError(
      f"topology {topology.name}: libtpu refuses it: {' '.join(str(error).split())[:200]}"
    ) from None
  return list(tpus)
