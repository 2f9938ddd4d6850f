"""Plans: the memory, FLOPs and collectives of a config on devices that are not here, and what the command prints and refuses."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest

from inversionview_jax import cli, sites, tasks
from inversionview_jax.benchmarks import timing
from inversionview_jax.commands import configs
from inversionview_jax.devices import chips, program_cost
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.planning import abstract_programs, architectures, planning, report, scenario, topologies
from inversionview_jax.planning.planning import training_step
from inversionview_jax.planning.scenario import scenario_of
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.language_prior import LanguagePrior
from inversionview_jax.sampling.nearness import Nearness
from inversionview_jax.sampling.sweeps import TaskSweeps
from inversionview_jax.sampling.text_sweeps import TextSettings, TextSweeps

ROOT = pathlib.Path(__file__).parent.parent.parent
ADDITION = f"{ROOT / 'configs' / 'addition.py'}:tiny"
# A model that compiles in no time; Adam, whose update has no matrix products.
SMALL = [
  "--config.model.n_layers=1", "--config.model.d_model=16", "--config.model.d_mlp=32", "--config.encoder_blocks=1",
  "--config.encoder_width=16", "--config.n_slots=1", "--config.optimizer.name=adamw", "--config.pairs_per_text=1",
  "--config.sites=('x0.pre', 'a1.0', 'x1.post')",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("gpt2", 124_439_808),
    ("gpt2-medium", 354_823_168),
    ("gpt2-xl", 1_557_611_200),
    ("llama-3-8b", 8_030_261_248),
    ("llama-3.2-1b", 1_235_814_400),
  ],
)
def test_architectures_have_the_parameters_they_are_known_for(name, count):
  assert report.parameters(abstract_programs.target_shapes(Transformer(architectures.architecture(name)))) == count


def small(*overrides):
  return scenario_of(configs.load_config(ADDITION, [*SMALL, *overrides]))


@functools.cache
def stepped(count, *overrides):
  return training_step(small(*overrides), chips.topology(f"cpu:{count}"))


def test_flops_of_a_step_are_those_on_paper():
  found = stepped(1, "--config.batch_size=8").flops / 8
  plan, length = small(), 14
  # On a CPU attention over so few tokens is no matrix product (keys = 0). Of the target's last layer only the position that is read goes
  # through the MLP, and its unembedding is not run.
  decoder = 3 * timing.transformer_flops(plan.decoder.transformer, length, 0)
  shape = dataclasses.replace(plan.target, n_layers=1, vocab_size=1)
  layer = timing.transformer_flops(shape, length, 0)
  encoder = 3 * 2 * (35 * 16 + 2 * 16 * 16 + 16 * 16)  # widen, one block, one slot
  assert decoder + encoder + layer < 1.02 * found and found < 1.02 * (decoder + encoder + 2 * layer)


def test_program_per_device_is_constant_per_example():
  one, eight = (stepped(n, f"--config.batch_size={8 * n}") for n in (1, 8))
  assert one.flops == eight.flops and one.examples * 8 == eight.examples
  assert one.arguments == eight.arguments
  assert eight.bytes == pytest.approx(one.bytes, rel=0.1)
  assert not one.collectives
  (reduced,) = eight.collectives.values()
  weights = 4 * report.decoder_parameters(small())
  assert weights <= reduced.bytes <= 1.01 * weights + 64  # the gradients, once, and the loss


@pytest.mark.slow
def test_sharded_state_takes_less_memory_and_the_same_work():
  whole = stepped(8, "--config.batch_size=16")
  spread = stepped(8, "--config.batch_size=16", "--config.mesh.shard_optimizer=True")
  moments = 8 * report.decoder_parameters(small())  # Adam's two, of which each device keeps an eighth
  assert whole.arguments - spread.arguments == pytest.approx(moments * 7 / 8, rel=0.02)
  assert spread.flops == whole.flops
  assert {"reduce-scatter", "all-gather"} & set(spread.collectives)
  halved = stepped(8, "--config.batch_size=16", "--config.mesh.model=2")
  assert halved.arguments < 0.7 * whole.arguments


def texts():
  """A small language model that is the prior of texts of five tokens."""
  target = TransformerConfig(vocab_size=50, n_ctx=8, n_layers=2, n_heads=2, d_model=16, d_mlp=32)
  task = scenario_of(configs.load_config(str(ROOT / "configs" / "plan_gpt2_xl.py"), [])).task
  return dataclasses.replace(small(), task=type(task)(50, 7), target=target)


@functools.cache
def swept(make, count):
  return planning.monte_carlo(make(), chips.topology(f"cpu:{count}"), particles=4)


def test_flops_of_a_sweep_are_the_target_run_once_for_each_particle():
  found = swept(small, 1)
  assert found.examples == 4
  # On a CPU attention over so few tokens is no matrix product (keys = 0); there are no logits.
  layers = timing.transformer_flops(dataclasses.replace(small().target, vocab_size=1), 14, 0)
  heads = 2 * 14 * 32 * 32  # what each head of the layer of a1.0 writes, by itself
  assert found.flops / 4 == pytest.approx(layers + heads, rel=0.002)
  # Of a text of five tokens one to five are computed, each with its logits.
  written = timing.transformer_flops(texts().target, 1, 0)
  assert swept(texts, 1).flops / 4 == pytest.approx(3 * written, rel=0.1)


@pytest.mark.parametrize("make", [small, pytest.param(texts, marks=pytest.mark.slow)])
def test_sweeps_on_more_devices_are_the_same_work_on_each(make):
  one, two = swept(make, 1), swept(make, 2)
  assert (one.flops, one.examples * 2) == (two.flops, two.examples)
  assert not one.collectives and two.collectives  # the nearest rejected proposals of all devices are kept
  assert two.arguments == pytest.approx(one.arguments, rel=0.01)  # each has its own particles only
  assert one.arguments > 4 * report.parameters(abstract_programs.target_shapes(make().target_module))


@pytest.mark.parametrize("of_texts", [False, True])
def test_program_of_sweeps_is_the_one_that_is_run(of_texts, small_target, meshes):
  task, names, mesh = texts().task if of_texts else tasks.get("addition"), ("x1.post",), meshes(2)
  site, ran = tuple(map(sites.parse, names)), []
  if of_texts:
    made = TextSweeps(LanguagePrior(small_target, site, np.ones(15, bool)), task, mesh, TextSettings((5, 5)))
  else:
    made = TaskSweeps(small_target, task, Nearness(small_target, task, site, mesh))

  def record(*arguments):
    ran.append(arguments)
    return arguments[-1], None

  made.program = record
  query = Queries.of(np.zeros((1, 16)), 0, "euclidean")
  state = made.begin(query, None, np.random.default_rng(0), None, 8)
  if not of_texts:
    made.sweep(query, None, jax.random.key(0), (0.1, 0.1), (1.0, 2), state)
  planned = abstract_programs.monte_carlo_sweeps(task, small_target.module, names, mesh, of_texts)
  _, arguments = abstract_programs.monte_carlo(planned, small_target.module, mesh, 8)
  assert kinds(arguments) == kinds(ran[0])


def kinds(tree):
  return jax.tree.map(lambda x: (np.shape(x), str(x.dtype)), tree)


def plan(capsys, *argv):
  code = cli.main(["plan", *map(str, argv)])
  return code, *capsys.readouterr()


def test_command_prints_memory_flops_and_traffic(capsys, tmp_path):
  code, out, _ = plan(
    capsys,
    "--config",
    ADDITION,
    "--topology",
    "cpu:2",
    *SMALL,
    "--program=sample",
    "--rows=4",
    "--json",
    tmp_path / "p.json",
  )
  assert code == 0
  for text in ("mesh data 2 x model 1", "arguments", "temporaries", "FLOPs", "bytes read", "sampler: fits"):
    assert text in out
  (data,) = json.loads((tmp_path / "p.json").read_text())["plans"]
  assert data["programs"]["sampler"]["examples"] == 8 and data["programs"]["sampler"]["flops"] > 0


def test_command_plans_sweeps(capsys, monkeypatch):
  monkeypatch.setattr(planning, "monte_carlo", lambda plan, topology, particles: swept(small, topology.devices))
  arguments = ["--config", ADDITION, "--topology=cpu:2", *SMALL, "--program=monte_carlo", "--particles=4"]
  code, out, _ = plan(capsys, *arguments)
  assert code == 0 and "Monte Carlo: fits" in out
  assert [line.split()[1] for line in out.splitlines() if line.startswith("examples")] == ["4"]


class NoMoves(tasks.Task):
  """A task whose inputs have no known probability."""

  name, tokenizer, length, num_inputs = "plain", tasks.get("addition").tokenizer, 14, 10
  tokens, loss_mask = tasks.get("addition").tokens, tasks.get("addition").loss_mask


def test_sweeps_are_left_out_where_there_are_none_and_refused_by_name(capsys, monkeypatch):
  made, known = dataclasses.replace(small(), task=NoMoves()), small()
  program = planning.Program("training step", 0.0, 0.0, 1.0, 1.0, {}, 8, 1.0)
  for name in ("training_step", "sampler", "monte_carlo"):
    named = dataclasses.replace(program, name=name)
    monkeypatch.setattr(planning, name, lambda *_, named=named, **__: named)
  for task, found in ((known, True), (made, False)):
    monkeypatch.setattr(scenario, "scenario_of", lambda config, task=task: task)
    code, out, _ = plan(capsys, "--config", ADDITION, "--topology=cpu:2", *SMALL)
    assert (code, "monte_carlo: fits" in out) == (0, found) and "sampler: fits" in out
  code, out, error = plan(capsys, "--config", ADDITION, "--topology=cpu:2", *SMALL, "--program=monte_carlo")
  assert (code, out, error.count("\n")) == (2, "", 1) and "plain" in error and "log_prior" in error


def test_several_topologies_are_a_table(capsys, monkeypatch):
  monkeypatch.setattr(
    planning,
    "training_step",
    lambda plan, topology: stepped(topology.devices, f"--config.batch_size={8 * topology.devices}"),
  )
  where = ["--topology=cpu:1", "--topology=cpu:8"]
  code, out, _ = plan(capsys, "--config", ADDITION, *where, *SMALL, "--program=train", "--batch-per-device=8")
  head, one, eight = (line.split() for line in out.splitlines())
  assert code == 0 and head[0] == "topology"
  assert (one[0], one[3], eight[0], eight[3]) == ("cpu:1", "1", "cpu:8", "8") and one[6] == eight[6]
  assert (
    plan(capsys, "--config", ADDITION, *where, "--config.batch_size=12")[0] == 2
  )  # refused before anything is compiled


def test_program_that_does_not_fit_comes_with_settings_that_make_it_smaller():
  chip = dataclasses.replace(chips.CHIPS["v5e"], memory=100.0)
  topology = chips.Topology("v5e:2x4", chip, (2, 4))
  program = planning.Program("training step", 90.0, 30.0, 1e9, 1e9, {}, 8, 1.0)
  data = report.plan_data(small(), topology, [program])
  found = data["programs"]["training step"]
  assert (found["fits"], found["total"]) == (False, 120.0)
  assert [r.split("=")[0] for r in found["remedies"][:2]] == ["--config.mesh.shard_optimizer", "--config.mesh.model"]
  assert any(r.startswith("--config.compute.remat") for r in found["remedies"])
  light = dataclasses.replace(program, arguments=10.0, temporaries=110.0)
  assert report.remedies(small(), light, topology)[0].startswith("--config.compute.dtype")
  for remedy in found["remedies"]:  # each is a setting that the config takes
    configs.load_config(ADDITION, [remedy.split()[0]])


def test_roofline():
  kinds = {"all-reduce": program_cost.Collectives(1, 1e9, 2e9)}
  program = planning.Program("x", 0.0, 0.0, 197e12, 819e9 / 2, kinds, 8, 1.0)
  times = program.times(chips.CHIPS["v5e"])
  assert times == pytest.approx({"compute": 1.0, "memory": 0.5, "links": 0.01})
  assert program.step(chips.CHIPS["v5e"]) == pytest.approx((1.0, 1.51))


@pytest.mark.parametrize(
  ("arguments", "named"),
  [
    (["--topology=v7:2x2"], "v5e"),
    (["--topology=v5e:3x3"], "even"),
    (["--topology=cpu"], "cpu:8"),
    (["--topology=cpu:8", "--config.mesh.model=3"], "8 devices"),
    (["--topology=cpu:8", "--config.batch_size=12"], "12"),
    (["--topology=cpu:8", "--program=tain"], "train"),
    (["--topology=cpu:8", "--rows=0"], "--rows 0"),
    (["--topology=cpu:8", "--particles=3"], "--particles 3"),
    (["--topology=cpu:8", "--particles=0"], "--particles 0"),
    (["--topology=cpu:8", "--batch-per-device=0"], "--batch-per-device 0"),
    (["--topology=cpu:8", "--config.sites=('a9.0',)"], "a9.0"),
    (["--topology=cpu:8", "--config.modle=3"], "model"),
    (["--topology=cpu:999"], "999"),
    (["--topology=cpu:8", "--json=/nowhere/at/all.json"], "/nowhere"),
  ],
)
def test_bad_input_is_one_line(arguments, named, capsys):
  code, out, error = plan(capsys, "--config", ADDITION, *arguments)
  assert (code, out, error.count("\n")) == (2, "", 1) and named in error


def test_configs_without_a_training_or_a_plan_are_refused(capsys):
  code, _, error = plan(capsys, "--config", ROOT / "configs" / "verify_addition.py", "--topology=cpu:8")
  assert code == 2 and error.count("\n") == 1


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InversionViewError, match=r"inversionview_jax\[plan\]"):
    topologies.devices(chips.topology("v5e:2x2"))


def test_error_for_a_program_that_jaxlib_cannot_read_names_both_versions():
  message = str(
    planning._unreadable(RuntimeError("INTERNAL: RET_CHECK failure\n async-update instruction should have 1 operands"))
  )
  assert (
    "\n" not in message
    and f"jax {jax.__version__}" in message
    and "async-update" in message
    and "pip install 'jax[tpu]'" in message
  )


@pytest.mark.parametrize("name", ["plan_gpt2_xl", "plan_llama_8b"])
def test_scenarios_of_large_targets(name):
  made = scenario_of(configs.load_config(str(ROOT / "configs" / f"{name}.py"), []))
  assert made.target_dtype == "bfloat16" and made.task.length == made.decoder.transformer.n_ctx
  assert (name == "plan_gpt2_xl") == (len(made.decoder.sites) == 25 and made.task.length == 41)
  with pytest.raises(InversionViewError, match="gpt2-xl"):
    scenario_of(configs.load_config(str(ROOT / "configs" / f"{name}.py"), ["--config.plan.target=gpt2-xxl"]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`")
def test_program_is_compiled_for_a_tpu_slice():
  found = planning.training_step(small("--config.batch_size=16"), chips.topology("v5e:2x2"))
  assert found.fits(chips.CHIPS["v5e"])
  assert (
    1 < found.flops / stepped(1, "--config.batch_size=4").flops < 1.2
  )  # there attention over few tokens is a matrix product, too
  assert "all-reduce" in found.collectives
  sweeps = planning.monte_carlo(small(), chips.topology("v5e:2x2"), particles=4)
  assert sweeps.fits(chips.CHIPS["v5e"]) and 1 <= sweeps.flops / swept(small, 1).flops < 1.2
  large = small("--config.batch_size=16000000")
  refused = planning.training_step(large, chips.topology("v5e:2x2"))
  assert not refused.fits(chips.CHIPS["v5e"]) and refused.total > chips.CHIPS["v5e"].memory


@pytest.mark.slow
def test_particles_that_the_sampler_would_refuse_are_refused_by_plan():
  plan = scenario_of(configs.load_config(str(ROOT / "configs" / "plan_gpt2_xl.py"), []))
  planning.check_monte_carlo(plan, chips.topology("cpu:1"), 128)
  with pytest.raises(InversionViewError, match="10000 texts of 39 tokens take .* GiB of keys and values, more than 4"):
    planning.check_monte_carlo(plan, chips.topology("cpu:1"), 10_000)
