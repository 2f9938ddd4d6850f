"""The jobs on PyTorch as they run on a GPU, here under autocast on a CPU and without its compiler, which needs a C++ compiler and minutes."""

import pytest

from inversionview_jax.benchmarks import jobs

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")


@pytest.mark.slow
def test_accelerated_jobs_run(monkeypatch):
  from inversionview_jax.benchmarks import bench_torch

  wrapped = []
  monkeypatch.setattr(torch, "compile", lambda function: wrapped.append(function) or function)
  work = jobs.Jobs(jobs.SIZES["small"])
  rivals = bench_torch.Accelerated()
  sides = [
    *rivals.train(work, 4),
    *rivals.train_target(work, 4),
    *rivals.capture(work, work.rows[:4]),
    *rivals.query(work, 4, work.decoder.transformer),
  ]
  for side in sides:
    side.run()
    assert "bfloat16" in side.name and (("torch.compile" in side.name) != (side is sides[-1])), side.name
  assert len(wrapped) == 4
