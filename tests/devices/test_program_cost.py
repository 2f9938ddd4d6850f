"""Cost of compiled programs: FLOPs counted in a jaxpr, memory traffic and collectives read from HLO text."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from inversionview_jax.devices import parallel, program_cost
from inversionview_jax.devices.program_cost import matmul_flops, traffic

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def struct(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def flops(function, *shapes, **settings):
  return matmul_flops(jax.jit(function).trace(*shapes).jaxpr, **{"share": 1} | settings)


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
  twice = lambda x, m: jax.lax.while_loop(lambda s: s.sum() < 9, lambda s: turn(s @ m, m), x)
  assert flops(twice, a, square, loop=(3, 7)) == 3 * (1 + 7) * 2 * 4 * 8 * 8
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
  counted = matmul_flops(program.trace(struct(8, 6), struct(6, 10)).jaxpr, share=1)
  assert (
    counted == 2 * 8 * 6 * 10 / 8
  )  # 4 devices on the data axis, and a model axis over which the compiler splits the rest
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
  collectives = traffic(program.lower(struct(32, 16)).compile().as_text()).collectives
  size = 8 * 16 * 4
  assert collectives["all-reduce"] == program_cost.Collectives(3, 3 * size, 3 * 2 * size * 3 / 4)
  assert collectives["all-gather"] == program_cost.Collectives(1, 4 * size, 4 * size * 3 / 4)
  assert collectives["reduce-scatter"] == program_cost.Collectives(1, size, size * 3 / 4)
  assert collectives["collective-permute"] == program_cost.Collectives(1, size, size)


def test_hlo_text_of_tpus_is_read():
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
  cost = traffic(text)
  assert cost.collectives == {
    "all-gather": program_cost.Collectives(1, 32 * 128 * 2, 32 * 128 * 2 * 3 / 4),
    "reduce-scatter": program_cost.Collectives(1, 64 * 128 * 4, 64 * 128 * 4 * 3 / 4),
  }
  gathered = 8 * 128 * 2 + (8 + 32) * 128 * 2
  assert cost.bytes == gathered + (64 + 16) * 128 * 4


def test_traffic_of_a_program_without_loops_is_that_of_xla_cost_analysis():
  program = jax.jit(lambda a, b: jnp.sin(a @ b) @ b).lower(struct(64, 64), struct(64, 64)).compile()
  assert traffic(program.as_text()).bytes == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.05)


def test_traffic_of_loops_and_branches():
  """A loop that counts to a constant, one whose end is not known, and the branch that moves most."""

  def until(direction):
    return f"""
%until.{direction} (p: (s32[], f32[8])) -> pred[] {{
  %limit = s32[] constant(5)
  %p = (s32[], f32[8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %c = pred[] compare(%i, %limit), direction={direction}
}}
"""

  text = f"""HloModule jit_step
{until("LT")}{until("NE")}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8] get-tuple-element(%p), index=1
  %y = f32[8] negate(%x)
  ROOT %t = (s32[], f32[8]) tuple(%p, %y)
}}

%light (x: f32[8]) -> f32[8] {{
  ROOT %x = f32[8] parameter(0)
}}

%heavy (x: f32[8]) -> f32[8] {{
  %x = f32[8] parameter(0)
  ROOT %y = f32[8] negate(%x)
}}

ENTRY %main (a: (s32[], f32[8]), b: f32[8], i: s32[]) -> f32[8] {{
  %a = (s32[], f32[8]) parameter(0)
  %b = f32[8] parameter(1)
  %i = s32[] parameter(2)
  WHILE
  ROOT %d = f32[8] conditional(%i, %b, %b), branch_computations={{%light, %heavy}}
}}
"""
  each, compared = 2 * 8 * 4, 1 + 2 * 4  # bytes of a negation, and of a comparison
  for kind, times in (("LT", 5), ("NE", 7)):
    made = text.replace("WHILE", f"%w = (s32[], f32[8]) while(%a), condition=%until.{kind}, body=%body")
    assert traffic(made, loop=7).bytes == times * (each + compared) + each


@pytest.mark.parametrize(
  ("groups", "size"),
  [
    ("{{0,1},{2,3}}", 2),
    ("[2,16]<=[32]", 16),
    ("mesh['data'=4,'model'=1] {'data'}", 4),
    ("mesh['data'=4,'model'=2] {'data','model'}", 8),
    ("mesh['data'=4,'model'=2] {'data':(1)2}", 2),
  ],
)
def test_group_sizes_are_read_from_every_form_of_replica_groups(groups, size):
  text = f"""HloModule jit_step

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %all-reduce = f32[8]{{0}} all-reduce(%a), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
  assert traffic(text).collectives == {"all-reduce": program_cost.Collectives(1, 32, 2 * 32 * (size - 1) / size)}
