"""Throughput of a run: FLOPs, wall time by phase, memory, traces."""

import json

import jax
import jax.numpy as jnp
import pytest
import tiny_run
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import decoder_objective, loop, throughput

TASK = tasks.get("addition")
ROWS = TASK.tokens(TASK.split("train")[:64])

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def one(**changes):
  return ConfigDict(tiny_run.CONFIG | changes), parallel.make_mesh(devices=jax.devices()[:1])


def lines(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# FLOPs.


def test_products_are_counted_as_often_as_they_run():
  def function(x, w):
    y, _ = jax.lax.scan(lambda c, _: (jax.nn.relu(c @ w), None), x, length=5)
    return jax.jit(lambda y: jnp.einsum("bd,bd->b", y, y))(y)

  flops = throughput.matmul_flops(function, jnp.zeros((3, 8)), jnp.zeros((8, 8)))
  assert flops == 5 * 2 * 3 * 8 * 8 + 2 * 3 * 8


def test_flops_of_a_step_are_three_times_those_of_what_is_trained_and_those_of_the_target_once(small_target):
  """Against the textbook: 6 FLOPs per weight and token of a matrix that is trained, 2 for one that is only run."""
  config = ConfigDict({
    "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_mlp": 128}, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1,
    "normalize": "none", "sites": ("x1.post",), "pairs_per_text": 1, "bos_rate": 0.0, "reweight": 0.0, "noise": 0.0, "eval_queries": 1,
    "final_queries": 1, "seed": 0,
  })  # fmt: skip
  mesh = parallel.make_mesh(devices=jax.devices()[:1])
  flops = {}
  for remat in (False, True):
    config.compute = ConfigDict({"remat": remat})
    objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    flops[remat] = throughput.training_flops(objective, *shapes, objective.frozen, 10, TASK.length)
  assert flops[False] == flops[True]  # what is run again is not the model's

  def kernels(params, but=()):
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(x.size for path, x in flat if path[-1].key == "kernel" and not set(but) & {k.key for k in path})

  tokens = 10 * TASK.length
  trained = kernels(shapes[0]["transformer"]) + shapes[0]["transformer"]["embed"].size
  frozen = kernels(small_target.params, but=("unembed",))
  assert flops[False] == pytest.approx(tokens * (6 * trained + 2 * frozen), rel=0.12)  # and attention, and the encoder


@pytest.mark.parametrize(
  "kind, expected", [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)]
)
def test_peak_of_a_chip_is_known_by_its_kind(kind, expected):
  class Device:
    device_kind = kind

  assert throughput.peak_flops(Device) == expected


# Time, memory, traces.


def test_log_has_the_share_of_every_phase(tmp_path):
  loop.train(tiny_run.Slope(), tiny_run.rows(), *one(steps=16)[:1], tmp_path, one()[1])
  logged = [line for line in lines(tmp_path) if "loss" in line]
  for line in logged:
    parts = {k: v for k, v in line.items() if k.startswith("lost_") and k != "lost_share"}
    assert {"lost_start", "lost_restore", "lost_compile"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(line["lost_share"]) and 0 < line["lost_share"] <= 1
    assert line["memory_gb"] > 0.05 and line["model_tflops"] > 0 and "mfu" not in line  # a CPU's peak is not known
  assert {"lost_save", "lost_evaluate"} <= set(logged[-1])


def test_clock_counts_time_outside_of_phases_as_training(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
  monkeypatch.setattr(throughput, "_age", lambda: 5.0)
  clock = throughput.Clock()
  now[0] += 2
  clock.until_now("start")
  with clock("compile"):
    now[0] += 3
  now[0] += 10
  assert clock.wall == 20 and clock.training == 10 and clock.seconds == {"start": 7, "compile": 3}
  assert clock.shares() == pytest.approx({"lost_share": 0.5, "lost_start": 0.35, "lost_compile": 0.15})


def test_trace_is_written_of_the_calls_that_hold_the_steps(monkeypatch, tmp_path):
  seen = []
  monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(("start", folder)))
  monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append(("stop",)))
  profile = throughput.Profile("6:9", tmp_path)
  for first in (1, 5, 9, 13):
    profile.before(first, first + 3)
    if seen and len(seen) == 1:
      assert first in (5, 9)
    profile.after(first + 3, jnp.zeros(1))
  assert seen == [("start", str(tmp_path / "profile")), ("stop",)]


@pytest.mark.slow
def test_trace_is_a_trace(tmp_path):
  config, mesh = one(steps=12, profile="5:6")
  loop.train(tiny_run.Slope(), tiny_run.rows(), config, tmp_path, mesh)
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("steps", ["5", "0:3", "7:3", "a:b"])
def test_trace_of_no_steps_is_refused(steps, tmp_path):
  with pytest.raises(InversionViewError, match="must be two steps, such as 100:110"):
    throughput.Profile(steps, tmp_path)
