"""Plans: the memory, FLOPs and collectives of a config on devices that are not here, and what the command prints and refuses."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import pytest

from inversionview_jax import cli
from inversionview_jax.benchmarks import timing
from inversionview_jax.commands import configs
from inversionview_jax.devices import chips, program_cost
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.planning import abstract_programs, architectures, planning, report, topologies
from inversionview_jax.planning.planning import training_step
from inversionview_jax.planning.scenario import scenario_of

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
  shape = dataclasses.replace(plan.target, n_layers=1, vocab_size=0)
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
  large = small("--config.batch_size=16000000")
  refused = planning.training_step(large, chips.topology("v5e:2x2"))
  assert not refused.fits(chips.CHIPS["v5e"]) and refused.total > chips.CHIPS["v5e"].memory
