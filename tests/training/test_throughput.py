"""What a run is watched by: FLOPs, time, traces, and losses that are not finite."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import decoder_objective, loop, optimizers, throughput
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.update import initial_state, make_update

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

  found = throughput.matmul_flops(function, jnp.zeros((3, 8)), jnp.zeros((8, 8)))
  assert found == 5 * 2 * 3 * 8 * 8 + 2 * 3 * 8


def test_flops_of_a_step_are_three_times_those_of_what_is_trained_and_those_of_the_target_once(small_target):
  """Against the textbook: 6 FLOPs per weight and token of a matrix that is trained, 2 for one that is only run."""
  config = ConfigDict({
    "model": {"n_layers": 2, "n_heads": 2, "d_model": 32, "d_mlp": 128}, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1,
    "normalize": "none", "sites": ("x1.post",), "pairs_per_text": 1, "bos_rate": 0.0, "reweight": 0.0, "noise": 0.0, "eval_queries": 1,
    "final_queries": 1, "seed": 0,
  })  # fmt: skip
  mesh = parallel.make_mesh(devices=jax.devices()[:1])
  found = {}
  for remat in (False, True):
    config.compute = ConfigDict({"remat": remat})
    objective = decoder_objective.DecoderObjective(TASK, config, small_target, ROWS, ROWS, mesh)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    found[remat] = throughput.training_flops(objective, *shapes, objective.frozen, 10, TASK.length)
  assert found[False] == found[True]  # what is run again is not the model's

  def kernels(params, but=()):
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(x.size for path, x in flat if path[-1].key == "kernel" and not set(but) & {k.key for k in path})

  tokens = 10 * TASK.length
  trained = kernels(shapes[0]["transformer"]) + shapes[0]["transformer"]["embed"].size
  frozen = kernels(small_target.params, but=("unembed",))
  assert found[False] == pytest.approx(tokens * (6 * trained + 2 * frozen), rel=0.12)  # and attention, and the encoder


@pytest.mark.parametrize(
  "kind, expected", [("TPU v5 lite", 197e12), ("TPU v5p", 459e12), ("NVIDIA H100 80GB HBM3", 989e12), ("cpu", None)]
)
def test_peak_of_a_chip_is_known_by_its_kind(kind, expected):
  class Device:
    device_kind = kind

  assert throughput.peak_flops(Device) == expected


# Time, memory, traces.


def test_log_says_where_the_time_went(tmp_path):
  loop.train(tiny_run.Slope(), tiny_run.rows(), *one(steps=16)[:1], tmp_path, one()[1])
  logged = [line for line in lines(tmp_path) if "loss" in line]
  for line in logged:
    parts = {k: v for k, v in line.items() if k.startswith("lost_") and k != "lost_share"}
    assert {"lost_start", "lost_restore", "lost_compile"} <= set(parts)
    assert sum(parts.values()) == pytest.approx(line["lost_share"]) and 0 < line["lost_share"] <= 1
    assert line["memory_gb"] > 0.05 and line["model_tflops"] > 0 and "mfu" not in line  # a CPU's peak is not known
  assert {"lost_save", "lost_evaluate"} <= set(logged[-1])


def test_clock_gives_what_is_in_no_phase_to_training(monkeypatch):
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


@pytest.mark.parametrize("asked", ["5", "0:3", "7:3", "a:b"])
def test_trace_of_no_steps_is_refused(asked, tmp_path):
  with pytest.raises(InversionViewError, match="must be two steps, such as 100:110"):
    throughput.Profile(asked, tmp_path)


# Losses that are not finite.


class Poisoned(tiny_run.Slope):
  """Its loss is not a number for the first row of some steps' batches."""

  def __init__(self, *tokens):
    super().__init__()
    self.bad = np.stack(tokens)

  def loss(self, params, extra, frozen, tokens, keys):
    total, count = super().loss(params, extra, frozen, tokens, keys)
    hit = jnp.any(jnp.all(tokens[:, None] == self.bad[None], axis=-1))
    return total * jnp.where(hit, jnp.nan, 1.0), count


def poisoned(*steps):
  rows = tiny_run.rows()
  batches = Batches(rows, 16, 0)
  return Poisoned(*(batches[step - 1][3] for step in steps)), rows


def test_steps_that_are_not_finite_are_left_out_as_if_they_had_not_been(tmp_path):
  objective, rows = poisoned(6, 7)
  config, mesh = one(steps=8, skip_nonfinite=2, eval_every=0)
  loop.train(objective, rows, config, tmp_path, mesh)
  notes = [line["note"] for line in lines(tmp_path) if "note" in line]
  assert [note.split(" is left out")[0] for note in notes] == ["step 6", "step 7"]
  assert all(np.isfinite(line["loss"]) for line in lines(tmp_path) if "loss" in line)
  model = make_update(objective, optimizers.make_optimizer(config.optimizer, 8), config, mesh)
  state = initial_state(objective, optimizers.make_optimizer(config.optimizer, 8), config)
  batch = Batches(rows, 16, 0)[5].astype(np.int32)[None]
  before = jax.tree.map(np.asarray, state)
  after, losses, _ = model(state, objective.frozen, batch)
  assert np.isnan(losses).all() and int(after.step) == 1
  jax.tree.map(np.testing.assert_array_equal, before.params, jax.tree.map(np.asarray, after.params))
  jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.tree.map(np.asarray, after.opt_state))


def test_too_many_of_them_in_a_row_stop_the_run(tmp_path):
  objective, rows = poisoned(3, 6, 7)
  config, mesh = one(steps=8, skip_nonfinite=1)
  with pytest.raises(InversionViewError, match="not finite at step 7"):
    loop.train(objective, rows, config, tmp_path, mesh)
  assert (tmp_path / "nonfinite_7.npz").exists()


@pytest.mark.slow
def test_batch_that_is_saved_says_which_sites_it_was_about(small_target):
  """`inspect` draws what the loss drew."""
  config = ConfigDict({
    "model": {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}, "encoder_blocks": 0, "encoder_width": 0, "n_slots": 1,
    "normalize": "none", "sites": ("x0.pre", "a0.1", "x1.post"), "pairs_per_text": 2, "bos_rate": 0.2, "reweight": 0.0, "noise": 0.0,
    "eval_queries": 1, "final_queries": 1, "seed": 0,
  })  # fmt: skip
  objective = decoder_objective.DecoderObjective(
    TASK, config, small_target, ROWS, ROWS, parallel.make_mesh(devices=jax.devices()[:1])
  )
  drawn, tokens = [], jnp.asarray(ROWS[:8].astype(np.int32))
  keys = parallel.fold_in_each(jax.random.key(0), jnp.arange(8))
  params, extra = objective.init(jax.random.key(1))
  kept = decoder_objective.collect.collect

  def collect(*args, **kwargs):
    pairs = kept(*args, **kwargs)
    drawn.append(pairs)
    return pairs

  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(decoder_objective.collect, "collect", collect)
    objective.loss(params, extra, objective.frozen, tokens, keys)
  said, names = objective.inspect(extra, tokens, keys)
  np.testing.assert_array_equal(np.asarray(said["site"]).reshape(-1), drawn[0].site)
  np.testing.assert_array_equal(np.asarray(said["position"]).reshape(-1), drawn[0].position)
  assert names == sorted(set(names), key=config.sites.index) and len(names) >= 2
