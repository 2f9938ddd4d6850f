"""How fast training, sampling, Monte Carlo, capture and enumeration are here, with the FLOPs of each program, its share of the peak, and memory.

Five timed runs after the first, their median; a run lasts at least a fraction of a second. FLOPs are those of matrix products, counted in
the program as it was traced. Peaks are the chip's published bfloat16 peak, where it is known, and the best matrix product measured here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.benchmarks import jobs, timing
from inversionview_jax.benchmarks.device.parts import Record, Settings, short
from inversionview_jax.devices import parallel, program_cost
from inversionview_jax.sampling.candidates import Queries, mixture_rows
from inversionview_jax.training import throughput


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the jobs are.

  Attributes:
    jobs: width of the decoder, capture and enumeration, as for `inversionview bench`.
    batches: of decoder training.
    target_batch: of target training.
    samples: candidates of a query.
    product: rows and columns of the matrix product that is the measured peak.
    seconds: least duration of a timed run.
    repeats: timed runs of each job; 0: each is run once, so that it is compiled.
  """

  jobs: jobs.Size
  batches: tuple[int, ...]
  target_batch: int
  samples: tuple[int, ...]
  product: int
  seconds: float
  repeats: int = 5


FULL = Size(dataclasses.replace(jobs.SIZES["full"], capture_batch=8192), (256, 4096), 512, (1024, 16_384), 8192, 0.5)
SMALL = Size(jobs.SIZES["small"], (16,), 32, (32, 128), 512, 0.05)


def size_of(settings: Settings) -> Size:
  """The sizes of a check."""
  size = SMALL if settings.small else FULL
  return dataclasses.replace(size, repeats=0) if settings.prepare else size


def training(record: Record, settings: Settings) -> None:
  """Peaks, decoder training at both batches, the larger one in bfloat16 too, and target training."""
  size = size_of(settings)
  measured_peaks(record, size)
  work = jobs.Jobs(size.jobs)
  width = size.jobs.d_model
  for batch, dtype in ((size.batches[-1], "bfloat16"), *((batch, "") for batch in size.batches)):
    name = f"decoder training, d={width}, batch {batch:,}{dtype and f', {dtype}'}"
    attempt(record, name, functools.partial(_decoder_trained, record, size, name, work, batch, dtype))
  d = work.target.config.d_model
  name = f"target training, d={d}, batch {size.target_batch:,}"
  attempt(record, name, lambda: _trained(record, size, name, "texts", work.target_training(size.target_batch)))


def _decoder_trained(record: Record, size: Size, name: str, work: jobs.Jobs, batch: int, dtype: str) -> None:
  _trained(record, size, name, "pairs", work.decoder_training(batch, dtype))


def _made_case(record: Record, size: Size, make: Callable[[], Any]) -> None:
  _case(record, size, make())


def sampling(record: Record, settings: Settings) -> None:
  """Sampling at both numbers of candidates, a whole query, Monte Carlo, capture and enumeration."""
  size = size_of(settings)
  measured_peaks(record, size)
  work = jobs.Jobs(size.jobs)
  reader = work.reader()
  for count in size.samples:
    name = f"sampling, d={size.jobs.d_model}, {count:,} candidates"
    attempt(record, name, functools.partial(_sampled, record, size, reader, name, count))
  count = size.samples[0]
  query = functools.partial(reader.preimage, work.texts[0], "a0.0", "=", num_samples=count, effects=False)
  name = f"a whole query, {count:,} samples, text to sorted samples"
  attempt(record, name, lambda: timed(record, size, name, "queries", query, 1, 0.0))
  for case in (work.monte_carlo, work.capture, work.enumerate):
    attempt(record, case.__name__, functools.partial(_made_case, record, size, case))


def attempt(record: Record, name: str, measure: Callable[[], object]) -> None:
  """Measures a row; one that fails, such as for want of memory, is recorded with its error and the next one goes on."""
  try:
    measure()
  except Exception as error:
    record.row(name=name, error=short(error))


def timed(
  record: Record, size: Size, name: str, unit: str, run: Callable[[], object], units: float, flops: float, **more: Any
) -> None:
  """Times a job and records its row.

  Args:
    record: gets the row.
    size: of the check.
    name, unit: of the row.
    run: does the job once and returns when it is done.
    units, flops: of one run; FLOPs of 0 are not shown.
    more: further columns.
  """
  first = timing.seconds_of(run)
  if not size.repeats:
    return
  count = max(1, round(size.seconds / max(timing.seconds_of(run), 1e-9)))
  rates = []
  for _ in range(size.repeats):
    seconds = timing.seconds_of(lambda: [run() for _ in range(count)])
    rates.append(units * count / seconds)
  rate = float(np.median(rates))
  row = {"name": name, "unit": unit, "rate": rate, "low": min(rates), "high": max(rates), "first_seconds": first}
  if flops:
    row |= shares(record, flops / units * rate)
  record.row(**row, peak_gib=gib(throughput.memory_in_use()), **more)


def shares(record: Record, flops: float) -> dict[str, float | None]:
  """The columns of a number of FLOP/s: TFLOP/s, and shares of the published and of the measured bfloat16 and float32 peaks."""
  devices = jax.devices()
  published, peaks = throughput.peak_flops(devices[0]), record.data["values"]
  best = max(peaks.get("matmul_float32", 0.0), peaks.get("matmul_bfloat16", 0.0)) * len(devices)
  return {
    "tflops": flops / 1e12,
    "share_of_peak": flops / (published * len(devices)) if published else None,
    "share_of_measured": flops / 1e12 / best if best else None,
  }


def measured_peaks(record: Record, size: Size) -> None:
  """Records the TFLOP/s of one device on a square matrix product, in float32 at default precision and in bfloat16."""
  if not size.repeats:
    return
  product = parallel.jit(lambda x: x @ x)
  for dtype in ("float32", "bfloat16"):

    def measure(dtype=dtype):
      a = jnp.full((size.product, size.product), 1 / size.product, dtype)
      gflops = timing.best_gflops(lambda: product(a).block_until_ready(), size.product)
      record.values(**{f"matmul_{dtype}": gflops / 1e3})

    attempt(record, f"matrix product, {dtype}", measure)


def _trained(record: Record, size: Size, name: str, unit: str, program: jobs.TrainingProgram) -> None:
  timed(
    record, size, name, unit, program.run, program.units, program.flops, program_gib=program_memory(program.compiled)
  )


def _sampled(record: Record, size: Size, reader: Any, name: str, count: int) -> None:
  """Candidates as arrays: encode, generate, run the target on them, and their distances."""
  task, mesh = reader.task, reader.sampler.mesh
  (query,) = reader.check([(task.tokenizer.text(task.tokens(np.zeros(1, np.int64))[0]), "a0.0", "=")])
  activation = np.asarray(reader.target.run(query.tokens[None], ["a0.0"])["a0.0"])[0, query.position]
  queries = Queries.of(activation[None], query.site, query.metric)
  rows = mixture_rows(((1.0, 0.0),), count)
  program = reader.sampler.program(False)
  arguments = reader.variables, reader.target.params, reader.bos_activations, queries, rows, np.uint32(0)
  jaxpr = program.trace(*arguments).jaxpr
  flops = program_cost.matmul_flops(jaxpr, share=mesh.size, loop=task.length - 1) * mesh.size
  timed(record, size, name, "candidates", lambda: reader.draw(queries, rows, 0), count, flops)


def _case(record: Record, size: Size, case: timing.Case) -> None:
  timed(record, size, case.about, case.unit, case.ours.run, case.ours.units, case.flops * case.ours.units)


def program_memory(compiled: Any) -> float | None:
  """GiB of one device that a compiled program takes: arguments, results and temporaries; None where the compiler does not tell."""
  try:
    sizes = compiled.memory_analysis()
    total = (
      sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes
    )
  except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
    return None
  return gib(total)


def gib(size: float | None) -> float | None:
  """Bytes in GiB."""
  return None if size is None else round(size / 2**30, 3)
