"""Models of the Llama family: captures, edits, caches and slots behave as for GPT-2. (Parity with transformers has a file of its own.)"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import sites
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import cpu_attention
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.models.layers import rotate
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.pretrained import rotary
from inversionview_jax.sites import Site
from inversionview_jax.targets import Edit, Target, load_target, save_target

L, H, G, D, K, V, B, T, J = 2, 4, 2, 16, 6, 13, 3, 9, 2
FREQUENCIES = rotary.frequencies({"rope_theta": 30.0}, K, 12, "")[0]
PLAIN = TransformerConfig(
  vocab_size=V,
  n_ctx=12,
  n_layers=L,
  n_heads=H,
  d_model=D,
  d_mlp=20,
  activation="silu",
  norm="rms",
  norm_eps=1e-4,
  tied=False,
  n_kv_heads=G,
  head_width=K,
  rotary=FREQUENCIES,
  biases=("q", "k", "v"),
  gated=True,
)
# Everything that some family has, at once.
ALL = dataclasses.replace(
  PLAIN,
  tied=True,
  activation="gelu_new",
  query_width=5.0,
  n_kv_heads=1,
  rotary_gain=1.2,
  unrotated=(1,),
  windows=(4, 0),
  biases=("o", "gate"),
  qk_norm=True,
  post_norm=True,
  embed_scale=4.0,
  attn_cap=3.0,
  logit_cap=5.0,
)
CONFIGS = {"plain": PLAIN, "all": ALL}
VECTOR_SITES = tuple(site.short for site in sites.enumerate_sites(L, H) if site.kind != "pos_embed")
EVERY_SITE = (*VECTOR_SITES, "a0", "a1", "p0", "p1")
TOKENS = np.random.default_rng(5).integers(0, V, (B, T))

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module", params=list(CONFIGS))
def config(request):
  return CONFIGS[request.param]


@pytest.fixture(scope="module")
def params(config, random_variables):
  return random_variables(0.3, 0, Transformer(config), jnp.zeros((1, 1), jnp.int32))["params"]


@pytest.fixture(scope="module")
def target(config, params):
  return Target.from_raw(params, config)


@pytest.fixture(scope="module")
def full(target):
  return target.run(TOKENS, capture=EVERY_SITE)


def same(one, another) -> bool:
  return np.array_equal(np.asarray(one), np.asarray(another))


def assert_close(one, another):
  np.testing.assert_allclose(one, another, rtol=0, atol=2e-5)


# Captures and edits.


def test_residual_stream_is_the_sum_of_what_was_written_to_it(config, params, full):
  assert same(full["x0.pre"], full["embed"])
  assert_close(full["embed"], config.embed_scale * params["embed"][TOKENS])
  for layer in range(L):
    block = params[f"blocks_{layer}"]
    written = jnp.stack([full[f"a{layer}.{head}"] for head in range(H)]).sum(axis=0) + block["attn"]["o"].get("bias", 0)
    if config.post_norm:  # heads add up in front of the norm
      written = nn.RMSNorm(config.norm_eps).apply({"params": block["ln1_post"]}, written)
    assert_close(full[f"x{layer}.mid"], full[f"x{layer}.pre"] + written)
    assert_close(full[f"x{layer}.post"], full[f"x{layer}.mid"] + full[f"m{layer}"])
  assert same(full["a1"][:, :, 2], full["a1.2"])


def test_patterns_are_distributions_over_what_the_window_lets_a_query_see(config, full):
  back = np.arange(T)[:, None] - np.arange(T)[None, :]
  for layer in range(L):
    pattern = np.asarray(full[f"p{layer}"])
    assert pattern.shape == (B, H, T, T)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
    seen = (back >= 0) & (back < ((config.windows and config.windows[layer]) or T))
    assert (pattern[..., seen] > 0).all() and (pattern[..., ~seen] == 0).all()


def test_capturing_less_changes_no_bit(target, full):
  run = target.run(TOKENS, capture=["a1.3"])
  assert same(run.logits, full.logits) and same(run["a1.3"], full["a1.3"])


def test_writing_captured_values_back_changes_no_bit_and_others_do_from_their_position_on(target, full):
  positions = {
    "embed": 1,
    "a0.1": 2,
    "x0.mid": 3,
    "m0": 4,
    "x1.pre": 5,
    "a1.2": 6,
    "m1": 7,
  }  # one program for all of them

  def run(changed=None):
    values = {name: full[name][:, position] + (name == changed) for name, position in positions.items()}
    return target.run(TOKENS, edits=[Edit(name, positions[name], values[name]) for name in positions]).logits

  assert same(run(), full.logits)
  for name, position in positions.items():
    edited = run(name)
    assert same(edited[:, :position], full.logits[:, :position]), name
    assert not same(edited[:, position], full.logits[:, position]), name


@pytest.mark.parametrize("name", ["pos_embed", "hook_pos_embed", Site("pos_embed")])
def test_rotary_models_have_no_position_embedding_to_capture_or_edit(target, name):
  for arguments in ({"capture": [name]}, {"edits": [Edit(name, 0, np.zeros(D))]}):
    with pytest.raises(InversionViewError, match="rotary") as caught:
      target.run(TOKENS, **arguments)
    assert "pos_embed" in str(caught.value)


# Positions.


def test_order_reaches_the_logits_through_rotation_alone(config, params):
  """Without windows and rotation, a model whose first layer sees all earlier tokens alike cannot tell their order."""
  swapped = TOKENS.copy()
  swapped[:, [1, 2]] = TOKENS[:, [2, 1]]
  swapped, original = swapped[TOKENS[:, 1] != TOKENS[:, 2]], TOKENS[TOKENS[:, 1] != TOKENS[:, 2]]
  one_layer = dataclasses.replace(config, n_layers=1, windows=(), unrotated=())
  lost = dataclasses.replace(one_layer, unrotated=(0,))
  for shape, differs in ((one_layer, True), (lost, False)):
    run = parallel.jit(lambda tokens, shape=shape: Transformer(shape).apply({"params": params}, tokens).logits[:, -1])
    gap = np.abs(run(original) - run(swapped)).max()
    assert (gap > 1e-3) if differs else (gap < 1e-5)


def test_rotated_queries_and_keys_meet_by_their_distance_alone():
  q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, K)).astype(np.float32)

  def meet(at, of):
    turned = (np.asarray(rotate(x, np.array([place]), FREQUENCIES)) for x, place in ((q, at), (k, of)))
    return np.prod(list(turned), axis=0).sum()

  assert meet(7, 3) == pytest.approx(meet(11, 7), abs=1e-5) and abs(meet(7, 3) - meet(7, 4)) > 1e-2


def test_logits_have_exactly_no_gradient_from_tokens_that_are_later_or_outside_of_all_windows(config, params):
  readout = jax.random.normal(jax.random.key(1), (V,))
  windows = tuple(3 for _ in range(L))

  def read(embedded):
    edit = SiteEdit("embed", jnp.int32(0), jnp.int32(0), None, embedded)
    short = Transformer(dataclasses.replace(config, windows=windows))
    return short.apply({"params": params}, TOKENS[:1], edits=[edit]).logits[0] @ readout

  depends = np.abs(parallel.jit(jax.jacrev(read))(np.float32(params["embed"][TOKENS[:1]]))[:, 0]).max(axis=-1)
  back = np.arange(T)[:, None] - np.arange(T)[None, :]
  reached = (back >= 0) & (back <= 2 * L)  # each layer looks two further back
  assert (depends[~reached] == 0).all() and (depends[reached] > 0).all()


# As a decoder.


@pytest.fixture(scope="module")
def slots():
  return np.random.default_rng(3).normal(size=(B, L, J, D)).astype(np.float32)


def test_cached_decoding_equals_scoring_of_the_whole_text(config, params, slots):
  module = Transformer(config)
  step = parallel.jit(lambda *args: module.apply({"params": params}, *args, method="step"), static_argnums=3)
  whole = np.asarray(parallel.jit(lambda s: module.apply({"params": params}, TOKENS, slots=s).logits)(slots))
  assert whole.std() > 0.3
  cache = parallel.jit(lambda s: module.apply({"params": params}, s, T, method="init_cache"))(slots)
  assert cache[0][0].shape == (J + T, config.kv_heads, K, B)  # nothing is stored once per head that shares it
  for position in range(T):
    logits, cache = step(TOKENS[:, position], jnp.int32(position), cache, J)
    np.testing.assert_allclose(logits, whole[:, position], rtol=0, atol=1e-5)


def test_both_ways_of_computing_attention_agree(config, params, slots, monkeypatch):
  """Multiplied and summed where it is short, on CPUs; matrix products elsewhere."""
  outs = []
  for most in (0, 10**6):
    monkeypatch.setattr(cpu_attention, "_SCORES", most)
    run = parallel.jit(
      lambda s: Transformer(config).apply({"params": params}, TOKENS, slots=s, capture=[Site("pattern", 1)])
    )
    outs.append(run(slots))
  np.testing.assert_allclose(outs[0].logits, outs[1].logits, rtol=0, atol=1e-5)
  np.testing.assert_allclose(outs[0][Site("pattern", 1)], outs[1][Site("pattern", 1)], rtol=0, atol=1e-6)


def test_slots_reach_every_position_past_any_window(config, params, slots):
  run = parallel.jit(lambda s: Transformer(config).apply({"params": params}, TOKENS, slots=s).logits)
  assert (np.abs(run(slots) - run(slots[:, ::-1])).max(axis=-1) > 1e-4).all()


def test_logits_at_some_positions_are_those_of_all(config, params, slots):
  at = np.array([[0, 8], [3, 3], [7, 2]])
  module = Transformer(config)
  whole = parallel.jit(lambda s: module.apply({"params": params}, TOKENS, slots=s).logits)(slots)
  some = parallel.jit(lambda s: module.apply({"params": params}, TOKENS, slots=s, logits_at=at).logits)(slots)
  np.testing.assert_allclose(some, np.take_along_axis(np.asarray(whole), at[..., None], axis=1), rtol=0, atol=1e-5)


# Conventions, types, files.


def test_rms_norm_models_are_raw_unless_asked_and_refuse_to_be_centered(config, params, target):
  assert target.convention == "raw"
  assert target.fingerprint == Target.from_raw(params, config, convention="raw").fingerprint
  with pytest.raises(InversionViewError, match="centered.*RMSNorm.*raw"):
    Target.from_raw(params, config, convention="centered")
  with pytest.raises(InversionViewError, match="'centred'.*centered"):
    Target.from_raw(params, config, convention="centred")


def test_bfloat16_parameters_give_float32_logits_near_those_of_float32(config, params, full):
  half = Target.from_raw(params, config, dtype="bfloat16")
  assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype("bfloat16")}
  logits = half.run(TOKENS).logits
  assert logits.dtype == jnp.float32
  gap = np.abs(jax.nn.softmax(logits) - jax.nn.softmax(full.logits))
  assert 1e-4 < gap.max() < 0.1
  assert half.fingerprint == Target.from_raw(params, config).fingerprint
  with pytest.raises(InversionViewError, match="'float16'.*bfloat16"):
    Target.from_raw(params, config, dtype="float16")


def test_saved_model_is_loaded_as_it_was(config, params, full, tmp_path):
  save_target(tmp_path, params, config, None, "small")
  loaded = load_target(tmp_path)
  assert (loaded.config, loaded.convention) == (config, "raw")
  assert same(loaded.run(TOKENS).logits, full.logits)
  with pytest.raises(InversionViewError, match="float32"):
    load_target(tmp_path, dtype="bfloat16").save(tmp_path / "half")
