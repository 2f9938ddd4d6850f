"""Beside PyTorch on the same device, in turn: training of a decoder and of a target, one query, and capture.

On a GPU PyTorch's training and capture are compiled (`torch.compile`) and everything of it runs under autocast to bfloat16, beside decoder training
in bfloat16 here and float32 at default precision (TF32) elsewhere; on a CPU it runs as it is, in float32.
"""

import dataclasses
import functools

from inversionview_jax.benchmarks import bench_torch, jobs, timing
from inversionview_jax.benchmarks.device import speed
from inversionview_jax.benchmarks.device.parts import Record, Settings

_CASES = ("train", "query", "capture", "train_target")


def run(record: Record, settings: Settings) -> None:
  """A row for each case, with our rate and those of the others; a case that fails leaves the others be."""
  import torch

  size = speed.size_of(settings)
  cuda = torch.cuda.is_available()
  record.values(**bench_torch.versions(), torch_device=torch.cuda.get_device_name(0) if cuda else "cpu", compiled=cuda)
  # On a GPU the float32 products of both use TF32: XLA by default, PyTorch with this setting.
  torch.set_float32_matmul_precision("high")
  rivals = bench_torch.Accelerated() if cuda else bench_torch
  batch, dtype = (size.batches[-1], "bfloat16") if cuda else (size.batches[0], "")
  work = jobs.Jobs(dataclasses.replace(size.jobs, batch=batch), rivals, dtype)
  for name in _CASES:
    speed.attempt(record, name, functools.partial(_compared, record, size, work, name))


def _compared(record: Record, size: speed.Size, work: jobs.Jobs, name: str) -> None:
  case: timing.Case = getattr(work, name)()
  measured = timing.measured(case, size.repeats, size.seconds)
  ours, *theirs = measured["sides"]
  record.row(
    name=case.about,
    unit=case.unit,
    rate=ours["median"],
    low=ours["low"],
    high=ours["high"],
    others=[{key: side[key] for key in ("name", "median", "low", "high", "ours_is_faster_by")} for side in theirs],
  )
