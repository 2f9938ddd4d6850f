"""What things cost on this machine: each job timed in turn with what a user would otherwise use, and against the machine's peak.

A `Case` is prepared once, then this package and the others run alternately, several times each, so that a drift of the machine affects
all. Reported are medians with the fastest and slowest, and the share of the matrix-product peak that was measured in the same run.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.benchmarks import timing
from inversionview_jax.benchmarks.jobs import SIZES, Jobs, random_variables
from inversionview_jax.benchmarks.timing import Case
from inversionview_jax.devices import parallel
from inversionview_jax.errors import one_of
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.sampling import generation
from inversionview_jax.terminal import print_text

CASES = ("train", "query", "shipped", "effects", "queries", "monte_carlo", "capture", "train_target", "enumerate")


def case(jobs: Jobs, name: str) -> Case:
  """The case of this name; raises `InversionViewError` for an unknown one."""
  if name not in CASES:
    raise one_of("benchmark", name, CASES)
  return getattr(jobs, name)()


def scaling(jobs: Jobs, repeats: int) -> list[dict]:
  """Median seconds against samples per query, captured sites, and length of generated texts; plain data."""
  rows, reader = [], jobs.reader()
  for n in jobs.size.scaling:
    rows.append(
      timing.timed(
        f"{n:,} samples of one query",
        functools.partial(reader.preimage, jobs.texts[0], "a0.0", "=", num_samples=n, effects=False),
        repeats,
      )
    )
  tokens = jobs.rows[: jobs.size.capture_batch]
  for count in (1, 4, len(jobs.sites)):
    rows.append(
      timing.timed(
        f"capture of {count} sites, batch {len(tokens)}", functools.partial(_capture, jobs, tokens, count), repeats
      )
    )
  t, n = jobs.task.tokenizer, jobs.size.samples
  for length in (jobs.task.length, 2 * jobs.task.length, 4 * jobs.task.length):
    config = dataclasses.replace(
      jobs.decoder,
      transformer=dataclasses.replace(jobs.decoder.transformer, n_ctx=length),
      forbidden=(t.bos_id, t.pad_id, t.eos_id),
    )
    rows.append(timing.timed(f"{n:,} texts of {length} tokens", _generation(config, n, length, t), repeats))
  return rows


def _capture(jobs: Jobs, tokens: np.ndarray, count: int) -> None:
  out = jobs.target.run(tokens, jobs.sites[:count])
  jax.block_until_ready(tuple(out[site] for site in jobs.sites[:count]))


def _generation(config: DecoderConfig, n: int, length: int, t: Any) -> Callable[[], object]:
  """A run of generating `n` texts of `length` tokens with a random decoder; `t`: tokenizer."""
  module = decoder.Decoder(config)
  variables = random_variables(config, jax.random.key(0))
  keys = parallel.fold_in_each(jax.random.key(1), jnp.arange(n))

  def program(variables, z, keys):
    slots = module.apply(variables, z, jnp.zeros(n, jnp.int32), method="slots")
    ids = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
    return generation.generate(module, variables, slots, keys, jnp.ones(n), length=length, **ids)

  compiled, z = parallel.jit(program), jnp.zeros((n, config.d_activation))
  return lambda: compiled(variables, z, keys).block_until_ready()


def simulated_devices(size: str, counts: Sequence[int] = (1, 2, 4, 8)) -> list[dict]:
  """Rates of training and of a query on simulated devices of this host, in a process for each number of them; plain data.

  The devices share the cores: the rates show the cost of dividing the work, not a speed-up.

  Args:
    size: a name of `SIZES`.
    counts: numbers of devices.
  """
  rows = []
  for count in counts:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "inversionview_jax.benchmarks.bench", size]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
      rows.append({"devices": count, "error": (done.stderr.strip().splitlines() or ["no error message"])[-1]})
    else:
      rows.append({"devices": count} | json.loads(done.stdout.strip().splitlines()[-1]))
  return rows


def _on_these_devices(size: str) -> dict:
  jobs = Jobs(SIZES[size], None)
  rates = {}
  for name in ("train", "query"):
    result = timing.measured(case(jobs, name), repeats=3)
    rates[f"{name}_{result['unit']}_per_second"] = result["sides"][0]["median"]
  return rates


if __name__ == "__main__":
  print_text(json.dumps(_on_these_devices(sys.argv[1])))
