"""What families besides GPT-2's and Llama's have: parallel residual streams, mixtures of experts, attention sinks, two rotary embeddings.

Captures, edits, caches, masks and slots behave as for the others. (Parity with transformers has a file of its own.)
"""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import cpu_attention
from inversionview_jax.models.layers import ACTIVATIONS
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.pretrained.activations import NAMES
from inversionview_jax.targets import Edit, Target, load_target, save_target

L, H, G, D, K, V, B, T, J, E = 2, 4, 2, 16, 6, 13, 2, 9, 2, 4
GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
# Everything that some family has, at once; layer 1 has a plain MLP.
PARALLEL = TransformerConfig(
  vocab_size=V,
  n_ctx=12,
  n_layers=L,
  n_heads=H,
  d_model=D,
  d_mlp=20,
  activation="quick_gelu",
  norm="rms",
  norm_eps=1e-3,
  tied=False,
  n_kv_heads=G,
  head_width=K,
  rotary=(1.0, 0.3),
  windows=(0, 3),
  biases=("q", "o", "router", "experts"),
  gated=True,
  qk_norm=True,
  qk_norm_joint=True,
  parallel=True,
  attn_scale_by_layer=True,
  sinks=True,
  local_layers=(1,),
  local_rotary=(0.5, 0.2),
  local_rotary_gain=1.1,
  long_rotary=(0.7, 0.1),
  long_from=7,
  n_experts=E,
  experts_per_token=2,
  expert_width=10,
  expert_weights_sum=True,
  dense_layers=(1,),
  gate_limit=1.5,
)
# OLMo 2's norms, and GPT-Neo's order.
SERIAL = dataclasses.replace(PARALLEL, parallel=False, pre_norm=False, post_norm=True, sinks=False)
CONFIGS = {"parallel": PARALLEL, "serial": SERIAL}
only_parallel = pytest.mark.parametrize("config", ["parallel"], indirect=True)
TOKENS = np.random.default_rng(5).integers(0, V, (B, T))

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module", params=list(CONFIGS))
def config(request):
  return CONFIGS[request.param]


@pytest.fixture(scope="module")
def params(config, random_variables):
  return random_variables(0.4, 0, Transformer(config), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def target(config, params):
  return Target.from_raw(params, config)


@pytest.fixture(scope="module")
def full(config, target):
  mid = [] if config.parallel else ["x0.mid"]
  names = ["x0.pre", "x0.post", "m0", "m1", "r0", "p0", "a0", *(f"a0.{head}" for head in range(H)), *mid]
  return target.run(TOKENS, capture=[*names, *(f"e0.{expert}" for expert in range(E))])


def assert_close(one, another, atol=2e-5):
  np.testing.assert_allclose(np.asarray(one), np.asarray(another), rtol=0, atol=atol)


def test_residual_stream_is_the_sum_of_what_was_written_to_it(config, params, full):
  block = params["blocks_0"]
  written = np.asarray(full["a0"]).sum(axis=2) + block["attn"]["o"]["bias"]
  experts = sum(np.asarray(full[f"e0.{expert}"]) for expert in range(E))
  if config.post_norm:
    written = written / np.sqrt((written**2).mean(-1, keepdims=True) + config.norm_eps) * block["ln1_post"]["scale"]
    experts = experts / np.sqrt((experts**2).mean(-1, keepdims=True) + config.norm_eps) * block["ln2_post"]["scale"]
  assert_close(full["m0"], experts)
  assert_close(full["x0.post"], full["x0.pre"] + written + full["m0"])
  if not config.parallel:
    assert_close(full["x0.mid"], full["x0.pre"] + written)


def test_router_weighs_all_experts_and_each_token_takes_the_largest_few(full):
  assert_close(np.asarray(full["r0"]).sum(-1), np.ones((B, T)))
  largest = np.argsort(-np.asarray(full["r0"]), axis=-1)[..., :2]
  for expert in range(E):
    assert np.array_equal(np.abs(full[f"e0.{expert}"]).max(-1) > 0, (largest == expert).any(-1))


def test_sinks_take_their_share_of_attention(config, full):
  taken = 1 - np.asarray(full["p0"]).sum(-1)
  assert (taken > 1e-3).all() if config.sinks else np.abs(taken).max() < 1e-6


def test_there_is_nothing_between_attention_and_mlp_that_read_the_same_stream(config, target):
  if config.parallel:
    with pytest.raises(InversionViewError, match="x1.mid.*same residual stream"):
      target.run(TOKENS, capture=["x1.mid"])
    with pytest.raises(InversionViewError, match="x1.mid.*same residual stream"):
      target.run(TOKENS, edits=[Edit("x1.mid", 1, np.zeros(D))])
  with pytest.raises(InversionViewError, match="e1.0"):  # a layer with a plain MLP
    target.run(TOKENS, capture=["e1.0"])


def test_experts_are_edited_like_heads(config, target, full):
  """What is written back changes nothing; zeros take an expert's part out, at that position only."""
  expert = int(np.argmax(np.asarray(full["r0"])[0, 4]))
  site = f"e0.{expert}"
  same = target.run(TOKENS, edits=[Edit(site, None, full[site])])
  assert np.array_equal(np.asarray(same.logits), np.asarray(full.logits))
  cut = target.run(TOKENS, capture=["m0", site], edits=[Edit(site, 4, np.zeros(D))])
  assert not np.asarray(cut[site][:, 4]).any()
  moved = np.abs(np.asarray(cut["m0"]) - np.asarray(full["m0"])).max(-1)
  assert moved[0, 4] > 1e-3 and not np.delete(moved, 4, axis=1).any()
  if not config.post_norm:
    assert_close(cut["m0"][:, 4], full["m0"][:, 4] - full[site][:, 4])


@only_parallel
def test_edited_weights_of_the_router_choose_other_experts(target, full):
  only = np.eye(E)[3] * np.ones((B, T, 1))
  run = target.run(TOKENS, capture=[f"e0.{expert}" for expert in range(E)], edits=[Edit("r0", None, only)])
  weight = [np.abs(run[f"e0.{expert}"]).max() for expert in range(E)]
  assert weight[3] > 0 and max(weight[:3]) == 0


def test_cached_decoding_equals_scoring_of_the_whole_text(config, params):
  slots = np.random.default_rng(3).normal(size=(B, config.n_layers, J, D)).astype(np.float32)
  module = Transformer(config)
  step = parallel.jit(lambda *args: module.apply({"params": params}, *args, method="step"), static_argnums=3)
  whole = np.asarray(parallel.jit(lambda s: module.apply({"params": params}, TOKENS, slots=s).logits)(slots))
  cache = parallel.jit(lambda s: module.apply({"params": params}, s, T, method="init_cache"))(slots)
  for position in range(T):
    logits, cache = step(TOKENS[:, position], jnp.int32(position), cache, J)
    assert_close(logits, whole[:, position])


@only_parallel
def test_both_ways_of_computing_attention_agree(params, config, monkeypatch):
  outs = []
  for most in (0, 10**6):
    monkeypatch.setattr(cpu_attention, "_SCORES", most)
    outs.append(parallel.jit(lambda t: Transformer(config).apply({"params": params}, t).logits)(TOKENS))
  assert_close(outs[0], outs[1], 1e-5)


@only_parallel
def test_padding_in_front_changes_nothing(config, target, full):
  mask = np.concatenate([np.zeros((B, 2), int), np.ones((B, T), int)], axis=1)
  padded = target.run(np.concatenate([np.zeros((B, 2), int), TOKENS], axis=1), mask=mask, capture=["e0.1"])
  assert_close(padded.logits[:, 2:], full.logits, 5e-5)
  assert_close(padded["e0.1"][:, 2:], full["e0.1"], 5e-5)


@only_parallel
def test_texts_longer_than_the_shorter_frequencies_serve_take_the_longer_ones(config, params, target):
  run = {length: np.asarray(target.run(TOKENS[:, :length]).logits) for length in (7, 8)}
  same = dataclasses.replace(config, long_rotary=())
  short = Target.from_raw(params, same)
  assert_close(short.run(TOKENS[:, :7]).logits, run[7])
  assert np.abs(run[8][:, :7] - run[7]).max() > 1e-3


@only_parallel
def test_the_model_can_be_saved_cut_computed_in_bfloat16_and_differentiated(config, params, full, tmp_path):
  save_target(tmp_path, params, config, None, "small")
  loaded = load_target(tmp_path)
  assert loaded.config == config and np.array_equal(np.asarray(loaded.run(TOKENS).logits), np.asarray(full.logits))
  assert_close(load_target(tmp_path, layers=1).run(TOKENS, capture=["x0.post"])["x0.post"], full["x0.post"], 1e-6)
  half = Target.from_raw(params, config, dtype="bfloat16").run(TOKENS, capture=["x0.post"])
  assert 1e-4 < np.abs(np.asarray(half["x0.post"], np.float32) - np.asarray(full["x0.post"])).max() < 0.3

  def loss(p):
    return Transformer(config).apply({"params": p}, TOKENS).logits.var()

  grads = parallel.jit(jax.grad(loss))(params)
  experts = jax.tree.leaves(grads["blocks_0"]["mlp"])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads)) and all(
    np.abs(leaf).max() > 0 for leaf in experts
  )


def test_experts_are_sharded_as_plain_mlps_are():
  mesh = jax.sharding.AbstractMesh((1, 2), (parallel.DATA, parallel.MODEL))
  names = {
    "mlp/experts/gate/kernel": (None, None, parallel.MODEL),
    "mlp/experts/fc/bias": (None, parallel.MODEL),
    "mlp/experts/proj/kernel": (None, parallel.MODEL),
    "mlp/experts/proj/bias": (),
    "mlp/router/kernel": (),
  }
  shapes = {"kernel": (E, 10, 10), "bias": (E, 10)}
  for name, expected in names.items():
    assert tuple(sharding.spec(f"blocks_0/{name}", shapes[name.rsplit("/")[-1]], mesh)) == expected


@pytest.mark.parametrize(
  "change, named",
  [
    ({"experts_per_token": 5}, "experts_per_token = 5.*n_experts = 4"),
    ({"gated": False}, "gated"),
    ({"local_rotary": ()}, "local_layers and local_rotary"),
    ({"rotary": (1.0, 0.5, 0.2, 0.1)}, "rotary has 4 frequencies for heads of 6"),
    ({"rotary": ()}, "need rotary"),
    ({"cross_width": 8}, "parallel"),
  ],
)
def test_attributes_that_do_not_go_together_are_refused(change, named):
  with pytest.raises(InversionViewError, match=named):
    dataclasses.replace(PARALLEL, **change)


def test_activation_functions_are_those_of_transformers():
  golden = json.loads((GOLDEN / "activations.json").read_text())
  assert set(NAMES) == set(golden["values"]) and not set(NAMES) & set(golden["with_parameters"])
  assert set(NAMES.values()) <= set(ACTIVATIONS)
  points = jnp.array(golden["points"])
  for name, values in golden["values"].items():
    np.testing.assert_allclose(ACTIVATIONS[NAMES[name]](points), values, rtol=1e-5, atol=1e-6, err_msg=name)
