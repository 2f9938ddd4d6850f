"""Plans: what is counted in a program, what is read from its compiled text, and what is said of a config on devices that are not here."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from inversionview_jax import cli
from inversionview_jax.benchmarks import bench
from inversionview_jax.commands import configs
from inversionview_jax.devices import chips, parallel, program_cost
from inversionview_jax.devices.program_cost import matmul_flops, traffic
from inversionview_jax.errors import InversionViewError
from inversionview_jax.planning import abstract_programs, architectures, planning

ROOT = pathlib.Path(__file__).parent.parent.parent
ADDITION = f"{ROOT / 'configs' / 'addition.py'}:tiny"
# A model that compiles in no time; Adam, whose update has no matrix products.
SMALL = [
  "--config.model.n_layers=1", "--config.model.d_model=16", "--config.model.d_mlp=32", "--config.encoder_blocks=1",
  "--config.encoder_width=16", "--config.n_slots=1", "--config.optimizer.name=adamw", "--config.pairs_per_text=1",
  "--config.sites=('x0.pre', 'a1.0', 'x1.post')",
]  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def struct(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(function, *shapes, **how):
  return matmul_flops(jax.jit(function).trace(*shapes).jaxpr, **{"share": 1} | how)


def test_matrix_products_are_counted_where_they_run():
  a, b = struct(4, 8), struct(8, 16)
  one = 2 * 4 * 8 * 16
  assert flops(lambda a, b: a @ b, a, b) == one
  assert flops(lambda a, b: jnp.einsum("xij,xjk->xik", a, b), struct(3, 4, 8), struct(3, 8, 16)) == 3 * one
  square = struct(8, 8)
  assert (
    flops(lambda x, m: jax.lax.scan(lambda x, _: (x @ m, None), x, None, length=5)[0], a, square) == 5 * 2 * 4 * 8 * 8
  )
  turn = lambda x, m: jax.lax.while_loop(lambda s: s.sum() < 9, lambda s: s @ m, x)
  assert flops(turn, a, square, loop=7) == 7 * 2 * 4 * 8 * 8
  assert (
    flops(lambda p, x, m: jax.lax.cond(p, lambda: x @ m, lambda: x), jax.ShapeDtypeStruct((), bool), a, square)
    == 2 * 4 * 8 * 8
  )
  # The gradient of a product is two products; what is rematerialized is run once more.
  loss = lambda m, x: jnp.sum(jnp.sin(jnp.sin(x @ m) @ m))
  plain, again = (flops(jax.grad(f), square, a) for f in (loss, jax.checkpoint(loss)))
  assert plain == (2 + 3) * 2 * 4 * 8 * 8 and again > plain


def test_a_device_counts_its_own_part(meshes):
  mesh = parallel.make_mesh(data=4, model=2)
  program = parallel.pmap(lambda x, m: x @ m, mesh, in_axes=(0, None), out_axes=0)
  found = matmul_flops(program.trace(struct(8, 6), struct(6, 10)).jaxpr, share=1)
  assert (
    found == 2 * 8 * 6 * 10 / 8
  )  # 4 places on the data axis, and a model axis over which the compiler splits the rest
  assert flops(lambda x, m: x @ m, struct(8, 6), struct(6, 10), share=8) == 2 * 8 * 6 * 10 / 8


def test_collectives_are_read_from_the_compiled_text(meshes):
  mesh = meshes(4)

  def per_device(x):  # float32[8, 16] on each of four devices
    def body(x, _):
      return jax.lax.psum(x * 2.0, parallel.DATA), None

    x, _ = jax.lax.scan(body, x, None, length=3)
    everything = jax.lax.all_gather(jnp.sin(x), parallel.DATA)
    part = jax.lax.psum_scatter(jnp.cos(x), parallel.DATA, tiled=True)
    neighbour = jax.lax.ppermute(x, parallel.DATA, [(i, (i + 1) % 4) for i in range(4)])
    return everything.sum(0) + neighbour, part

  split = P(parallel.DATA)
  program = jax.jit(parallel.per_device(per_device, mesh, (split,), (split, split)))
  found = traffic(program.lower(struct(32, 16)).compile().as_text()).collectives
  size = 8 * 16 * 4
  assert found["all-reduce"] == program_cost.Collectives(3, 3 * size, 3 * 2 * size * 3 / 4)
  assert found["all-gather"] == program_cost.Collectives(1, 4 * size, 4 * size * 3 / 4)
  assert found["reduce-scatter"] == program_cost.Collectives(1, size, size * 3 / 4)
  assert found["collective-permute"] == program_cost.Collectives(1, size, size)


def test_what_only_tpus_write_is_read():
  """Asynchronous collectives, a reduce-scatter hidden in a fusion, layouts with tiles, groups in the short form."""
  text = """HloModule jit_step

%fused (p.1: f32[64,128]) -> f32[16,128] {
  %p.1 = f32[64,128]{1,0:T(8,128)} parameter(0)
  ROOT %reduce-scatter.1 = f32[16,128]{1,0:T(8,128)} reduce-scatter(%p.1), channel_id=3, replica_groups=[64,4]<=[256], dimensions={0}, to_apply=%add
}

ENTRY %main (a: bf16[8,128], b: f32[64,128]) -> (f32[16,128], bf16[32,128]) {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = f32[64,128]{1,0:T(8,128)} parameter(1)
  %all-gather-start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[32,128]{1,0:T(8,128)(2,1)}) all-gather-start(%a), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}
  %fusion = f32[16,128]{1,0:T(8,128)} fusion(%b), kind=kCustom, calls=%fused
  %all-gather-done = bf16[32,128]{1,0:T(8,128)(2,1)} all-gather-done(%all-gather-start)
  ROOT %tuple = (f32[16,128]{1,0}, bf16[32,128]{1,0}) tuple(%fusion, %all-gather-done)
}
"""
  found = traffic(text)
  assert found.collectives == {
    "all-gather": program_cost.Collectives(1, 32 * 128 * 2, 32 * 128 * 2 * 3 / 4),
    "reduce-scatter": program_cost.Collectives(1, 64 * 128 * 4, 64 * 128 * 4 * 3 / 4),
  }
  gathered = 8 * 128 * 2 + (8 + 32) * 128 * 2
  assert found.bytes == gathered + (64 + 16) * 128 * 4


def test_traffic_of_a_plain_program_is_what_xla_says():
  program = jax.jit(lambda a, b: jnp.sin(a @ b) @ b).lower(struct(64, 64), struct(64, 64)).compile()
  assert traffic(program.as_text()).bytes == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.05)


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
  assert planning.parameters(abstract_programs.target_shapes(architectures.architecture(name))) == count


def small(*overrides):
  return planning.setting(configs.load_config(ADDITION, [*SMALL, *overrides]))


@functools.cache
def stepped(count, *overrides):
  return planning.training_step(small(*overrides), chips.topology(f"cpu:{count}"))


def test_flops_of_a_step_are_those_on_paper():
  found = stepped(1, "--config.batch_size=8").flops / 8
  plan, length = small(), 14
  # On a CPU attention over so few tokens is no matrix product (keys = 0). Of the target's last layer only the position that is read goes
  # through the MLP, and its unembedding is not run.
  decoder = 3 * bench.transformer_flops(plan.decoder.transformer, length, 0)
  shape = dataclasses.replace(plan.target, n_layers=1, vocab_size=0)
  layer = bench.transformer_flops(shape, length, 0)
  encoder = 3 * 2 * (35 * 16 + 2 * 16 * 16 + 16 * 16)  # widen, one block, one slot
  assert decoder + encoder + layer < 1.02 * found and found < 1.02 * (decoder + encoder + 2 * layer)


def test_program_per_device_is_constant_per_example():
  one, eight = (stepped(n, f"--config.batch_size={8 * n}") for n in (1, 8))
  assert one.flops == eight.flops and one.examples * 8 == eight.examples
  assert one.arguments == eight.arguments
  assert eight.bytes == pytest.approx(one.bytes, rel=0.1)
  assert not one.collectives
  (reduced,) = eight.collectives.values()
  weights = 4 * planning.decoder_parameters(small())
  assert weights <= reduced.bytes <= 1.01 * weights + 64  # the gradients, once, and the loss


@pytest.mark.slow
def test_sharded_state_takes_less_memory_and_the_same_work():
  whole = stepped(8, "--config.batch_size=16")
  spread = stepped(8, "--config.batch_size=16", "--config.mesh.shard_optimizer=True")
  moments = 8 * planning.decoder_parameters(small())  # Adam's two, of which each device keeps an eighth
  assert whole.arguments - spread.arguments == pytest.approx(moments * 7 / 8, rel=0.02)
  assert spread.flops == whole.flops
  assert {"reduce-scatter", "all-gather"} & set(spread.collectives)
  halved = stepped(8, "--config.batch_size=16", "--config.mesh.model=2")
  assert halved.arguments < 0.7 * whole.arguments


def plan(capsys, *argv):
  code = cli.main(["plan", *map(str, argv)])
  return code, *capsys.readouterr()


def test_command_says_it_all(capsys, tmp_path):
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
  for said in ("mesh data 2 x model 1", "arguments", "temporaries", "FLOPs", "bytes read", "sampler: fits"):
    assert said in out
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
  )  # said before anything is compiled


def test_what_does_not_fit_says_what_to_change():
  chip = dataclasses.replace(chips.CHIPS["v5e"], memory=100.0)
  topology = chips.Topology("v5e:2x4", chip, (2, 4))
  program = planning.Program("training step", 90.0, 30.0, 1e9, 1e9, {}, 8, 1.0)
  data = planning.plan_data(small(), topology, [program])
  found = data["programs"]["training step"]
  assert (found["fits"], found["total"]) == (False, 120.0)
  assert [r.split("=")[0] for r in found["remedies"][:2]] == ["--config.mesh.shard_optimizer", "--config.mesh.model"]
  assert any(r.startswith("--config.compute.remat") for r in found["remedies"])
  light = dataclasses.replace(program, arguments=10.0, temporaries=110.0)
  assert planning.remedies(small(), light, topology)[0].startswith("--config.compute.dtype")
  for remedy in found["remedies"]:  # each is a setting that the config takes
    configs.load_config(ADDITION, [remedy.split()[0]])


def test_roofline():
  kinds = {"all-reduce": program_cost.Collectives(1, 1e9, 2e9)}
  program = planning.Program("x", 0.0, 0.0, 197e12, 819e9 / 2, kinds, 8, 1.0)
  times = program.times(chips.CHIPS["v5e"])
  assert times == pytest.approx({"compute": 1.0, "memory": 0.5, "links": 0.01})
  assert program.step(chips.CHIPS["v5e"]) == pytest.approx((1.0, 1.51))


@pytest.mark.parametrize(
  ("arguments", "said"),
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
def test_bad_input_is_one_line(arguments, said, capsys):
  code, out, error = plan(capsys, "--config", ADDITION, *arguments)
  assert (code, out, error.count("\n")) == (2, "", 1) and said in error


def test_configs_that_are_no_plan_are_refused(capsys):
  code, _, error = plan(capsys, "--config", ROOT / "configs" / "verify_addition.py", "--topology=cpu:8")
  assert code == 2 and error.count("\n") == 1


def test_without_libtpu_the_extra_is_named(capsys, monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(InversionViewError, match=r"inversionview_jax\[plan\]"):
    planning.devices(chips.topology("v5e:2x2"))


def test_program_that_jaxlib_cannot_read_names_the_two_that_do_not_belong_together():
  said = str(
    planning._unreadable(RuntimeError("INTERNAL: RET_CHECK failure\n async-update instruction should have 1 operands"))
  )
  assert (
    "\n" not in said
    and f"jax {jax.__version__}" in said
    and "async-update" in said
    and "pip install 'jax[tpu]'" in said
  )


@pytest.mark.parametrize("name", ["plan_gpt2_xl", "plan_llama_8b"])
def test_plans_of_large_targets_are_understood(name):
  made = planning.setting(configs.load_config(str(ROOT / "configs" / f"{name}.py"), []))
  assert made.target.dtype == "bfloat16" and made.task.length == made.decoder.transformer.n_ctx
  assert (name == "plan_gpt2_xl") == (len(made.decoder.sites) == 25 and made.task.length == 41)
  with pytest.raises(InversionViewError, match="gpt2-xl"):
    planning.setting(configs.load_config(str(ROOT / "configs" / f"{name}.py"), ["--config.plan.target=gpt2-xxl"]))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`")
def test_a_slice_is_compiled_for():
  found = planning.training_step(small("--config.batch_size=16"), chips.topology("v5e:2x2"))
  assert found.fits(chips.CHIPS["v5e"])
  assert (
    1 < found.flops / stepped(1, "--config.batch_size=4").flops < 1.2
  )  # there attention over few tokens is a matrix product, too
  assert "all-reduce" in found.collectives
  large = small("--config.batch_size=16000000")
  refused = planning.training_step(large, chips.topology("v5e:2x2"))
  assert not refused.fits(chips.CHIPS["v5e"]) and refused.total > chips.CHIPS["v5e"].memory
