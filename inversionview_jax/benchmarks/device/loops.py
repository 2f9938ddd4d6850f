"""The training loop and the sampling loop as users run them: time to the first step, and how often they wait and copy, from a trace."""

import functools
import json
import time
from typing import Any

import numpy as np

from inversionview_jax import config_blocks as blocks
from inversionview_jax.benchmarks.device import speed, traces
from inversionview_jax.benchmarks.device.parts import Record, Settings
from inversionview_jax.reading import load_reader
from inversionview_jax.targets import load_target
from inversionview_jax.training import loop, throughput
from inversionview_jax.training.decoder_objective import DecoderObjective

_CALLS = 6  # of several steps each
_TRACED = 4  # calls that are traced, the last ones
_STEPS = 8  # of one call
_QUERIES = 4


class _WithoutEvaluation(DecoderObjective):
  """Evaluation is no part of the loop that is traced."""

  def evaluate(self, params: dict, extra: dict, final: bool) -> tuple[dict[str, float], dict]:
    del params, final
    return {"evaluated": 0.0}, extra


def run(record: Record, settings: Settings) -> None:
  """Both loops."""
  speed.attempt(record, "sampling loop", lambda: _sampling(record, settings))
  speed.attempt(record, "training loop", lambda: _training(record, settings))


def _sampling(record: Record, settings: Settings) -> None:
  """Queries of the shipped reader one after the other; the first one includes what is compiled."""
  begin = time.perf_counter()
  record.values(imported_seconds=round(throughput.Clock().wall, 2))  # since the process was started
  reader = load_reader("addition")
  loaded = time.perf_counter() - begin
  count = speed.size_of(settings).samples[0]
  query = functools.partial(reader.preimage, "615+861=1476", "a0.0", "=", num_samples=count, effects=False)
  query()
  record.values(first_query_seconds=round(time.perf_counter() - begin, 2), load_seconds=round(loaded, 2))
  with traces.traced(settings.folder / "trace_sampling") as trace:
    begin = time.perf_counter()
    for _ in range(_QUERIES):
      query()
    took = time.perf_counter() - begin
  _row(record, f"sampling loop, {count:,} candidates", "query", _QUERIES, took, trace)


def _training(record: Record, settings: Settings) -> None:
  """`training.loop.train` with its log, checkpoint and profile, without an evaluation."""
  size = speed.size_of(settings)
  folder = settings.folder / "training"
  config = blocks.reader("addition")
  config.model = blocks.transformer(size.jobs.d_model)
  blocks.devices(config)
  steps = _CALLS * _STEPS
  blocks.schedule(config, size.batches[0], steps, steps_per_call=_STEPS, log_every=_STEPS, eval_every=0, save_every=0)
  config.eval_queries = config.final_queries = 1
  config.profile = f"{steps - _TRACED * _STEPS + 1}:{steps}"
  target = load_target("addition")
  task = target.resolve_task()
  assert task is not None
  rows = task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=8192))
  objective = _WithoutEvaluation(task, config, target, rows, rows[:8])
  begin = time.perf_counter()
  loop.train(objective, rows, config, folder)
  record.values(training_loop_seconds=round(time.perf_counter() - begin, 2))
  lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  logged = [line for line in lines if "loss" in line]
  # The losses of a call are read while the next one runs, so that the first line comes after the first call.
  record.values(first_step_seconds=logged[0]["seconds"], training_loss=[logged[0]["loss"], logged[-1]["loss"]])
  trace = traces.read(folder)
  took = (_TRACED * _STEPS) / float(np.median([line["steps_per_second"] for line in logged[-_TRACED:]]))
  _row(record, f"training loop, batch {config.batch_size:,}", f"call of {_STEPS} steps", _TRACED, took, trace)


def _row(record: Record, name: str, unit: str, times: int, seconds: float, trace: traces.Trace) -> None:
  each: dict[str, Any] = {category: round(count / times, 2) for category, count in sorted(trace.counts.items())}
  record.row(
    name=name,
    per=unit,
    times=times,
    seconds=round(seconds / times, 5),
    each=each,
    waited_seconds={category: round(total / times, 6) for category, total in sorted(trace.seconds.items())},
    device_busy_seconds=round(trace.device_seconds / times, 5),
    events=trace.names,
  )
