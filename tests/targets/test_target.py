"""Running a target: captures and edits by name, and what they must not disturb."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import sites, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.capture import SiteEdit
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.sites import Site
from inversionview_jax.targets import Edit, Target, logit_lens
from inversionview_jax.targets import target as target_lib

TASK = tasks.get("addition")
L, H, D = 2, 4, 32
# With an unembedding of its own a model has the same shape under both conventions, and compiles once for both.
CONFIG = TransformerConfig(vocab_size=15, n_ctx=14, n_layers=L, n_heads=H, d_model=D, d_mlp=64, tied=False)
VECTOR_SITES = tuple(site.short for site in sites.enumerate_sites(L, H))
EVERY_SITE = (*VECTOR_SITES, "a0", "a1", "p0", "p1")
CONVENTIONS = ("centered", "raw")

TOKENS = TASK.tokens_of([615, 123, 999], [861, 456, 100])  # the second row ends in PAD
OTHER = TASK.tokens_of([842, 731, 500], [300, 102, 987])
B, T = TOKENS.shape
PLUS, EQUALS = 4, 8


def random_params(seed=0, config=CONFIG):
  """Parameters so large that every one of them matters, biases and norms included."""
  shapes = jax.eval_shape(lambda: Transformer(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
  rng = np.random.default_rng(seed)

  def random(path, leaf):
    return np.float32((path[-1].key == "scale") + 0.3 * rng.normal(size=leaf.shape))

  return jax.tree_util.tree_map_with_path(random, shapes)


@pytest.fixture(scope="module")
def raw_params():
  return random_params()


@pytest.fixture(scope="module", params=CONVENTIONS)
def target(request, raw_params):
  return Target.from_raw(raw_params, CONFIG, TASK.tokenizer, request.param)


@pytest.fixture(scope="module")
def raw(raw_params):
  return Target.from_raw(raw_params, CONFIG, TASK.tokenizer, "raw")


@pytest.fixture(scope="module")
def full(target):
  """A run of TOKENS with everything captured."""
  return target.run(TOKENS, capture=EVERY_SITE)


@pytest.fixture(scope="module")
def full_raw(raw):
  return raw.run(TOKENS, capture=EVERY_SITE)


@pytest.fixture(scope="module")
def other(target):
  """A run of OTHER with everything captured."""
  return target.run(OTHER, capture=EVERY_SITE)


def same(one, another) -> bool:
  """Equal bit by bit, but for the sign of zero."""
  return np.array_equal(np.asarray(one), np.asarray(another))


# What is captured.


def test_both_names_of_a_site_give_the_same_activation(raw, full_raw):
  by_hook = raw.run(TOKENS, capture=[sites.parse(name).hook for name in EVERY_SITE])
  for name in EVERY_SITE:
    hook = sites.parse(name).hook
    assert hook != name
    assert all(same(full_raw[name], twin) for twin in (full_raw[hook], by_hook[name], by_hook[hook]))


def test_captures_have_the_documented_shapes_and_keys(full):
  for name in VECTOR_SITES:
    assert full[name].shape == (B, T, D)
  assert full["a1"].shape == (B, T, H, D) and full["p1"].shape == (B, H, T, T)
  assert full.logits.shape == (B, T, CONFIG.vocab_size) and full.logits.dtype == jnp.float32
  assert full.keys() == list(EVERY_SITE)


def test_all_heads_of_a_layer_are_its_single_heads(full):
  for layer in range(L):
    assert same(full[f"a{layer}"], jnp.stack([full[f"a{layer}.{head}"] for head in range(H)], axis=2))


def test_residual_stream_is_the_sum_of_what_was_written_to_it(target, full):
  def assert_close(one, another):
    np.testing.assert_allclose(one, another, rtol=0, atol=1e-5)

  assert_close(full["x0.pre"], full["embed"] + full["pos_embed"])
  assert same(full["x1.pre"], full["x0.post"])
  for layer in range(L):
    b_o = target.params[f"blocks_{layer}"]["attn"]["o"]["bias"]
    assert np.abs(b_o).max() > 0.1  # or the next line would not notice it
    assert_close(full[f"x{layer}.mid"], full[f"x{layer}.pre"] + full[f"a{layer}"].sum(axis=2) + b_o)
    assert_close(full[f"x{layer}.post"], full[f"x{layer}.mid"] + full[f"m{layer}"])


def test_patterns_are_causal_distributions(full):
  for layer in range(L):
    pattern = np.asarray(full[f"p{layer}"])
    np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
    assert (pattern[..., ~np.tri(T, dtype=bool)] == 0).all() and (pattern[..., np.tri(T, dtype=bool)] > 0).all()


def test_conventions_agree_on_logits_up_to_a_constant_and_center_the_writes(raw_params, full_raw):
  centered = Target.from_raw(raw_params, CONFIG, TASK.tokenizer).run(TOKENS, capture=EVERY_SITE)
  less_mean = [run.logits - run.logits.mean(axis=-1, keepdims=True) for run in (full_raw, centered)]
  np.testing.assert_allclose(*less_mean, rtol=0, atol=1e-4)
  for name in VECTOR_SITES:
    np.testing.assert_allclose(np.asarray(centered[name]).mean(axis=-1), 0, atol=1e-5)
    assert np.abs(np.asarray(full_raw[name]).mean(axis=-1)).max() > 1e-2


@pytest.mark.parametrize("capture", [(), ("x1.mid",), EVERY_SITE[::-1]])
def test_capturing_changes_no_bit_of_the_logits(target, full, capture):
  assert same(target.run(TOKENS, capture=capture).logits, full.logits)


@pytest.mark.parametrize("name", ["x0.mid", "a0.0", "p0"])
def test_capturing_less_changes_no_bit_of_what_is_captured(raw, full_raw, name):
  assert same(raw.run(TOKENS, capture=[name])[name], full_raw[name])


def test_a_site_that_is_captured_twice_is_returned_once(raw, full_raw):
  run = raw.run(TOKENS, capture=["x0.pre", "blocks.0.hook_resid_pre"])
  assert run.keys() == ["x0.pre"] and same(run["x0.pre"], full_raw["x0.pre"])


def test_rows_do_not_depend_on_their_padding(raw, full_raw):
  changed = TOKENS.copy()
  changed[TOKENS == TASK.tokenizer.pad_id] = 0
  assert not same(changed, TOKENS)
  counted = TASK.counted_mask(TOKENS)
  np.testing.assert_allclose(raw.run(changed).logits[counted], full_raw.logits[counted], rtol=0, atol=1e-5)


# What an edit does.


@pytest.mark.parametrize(
  "position", [EQUALS, pytest.param(None, marks=pytest.mark.slow)], ids=["one-position", "all-positions"]
)
@pytest.mark.parametrize("name", VECTOR_SITES)
def test_writing_a_captured_value_back_changes_no_bit(target, full, name, position):
  value = full[name] if position is None else full[name][:, position]
  assert same(target.run(TOKENS, edits=[Edit(name, position, value)]).logits, full.logits)


@pytest.mark.parametrize("names", [("x0.pre",), ("embed", "pos_embed"), ("x0.mid",), ("x1.post",)])
def test_patching_everything_from_another_run_gives_exactly_that_run(target, full, other, names):
  patched = target.run(TOKENS, edits=[Edit(name, None, other[name]) for name in names])
  assert same(patched.logits, other.logits)
  assert not same(patched.logits, full.logits)


def test_patching_all_heads_of_a_layer_gives_that_layers_attention_output(raw, full_raw):
  source = raw.run(OTHER, capture=EVERY_SITE)["a1"]
  edits = [Edit(f"a1.{head}", None, source[:, :, head]) for head in range(H)]
  got = raw.run(TOKENS, capture=["a1", "x1.mid"], edits=edits)
  assert same(got["a1"], source) and not same(source, full_raw["a1"])
  expected = full_raw["x1.pre"] + source.sum(axis=2) + raw.params["blocks_1"]["attn"]["o"]["bias"]
  np.testing.assert_allclose(got["x1.mid"], expected, rtol=0, atol=1e-5)


def test_writing_a_captured_value_back_changes_no_bit_where_embedding_and_unembedding_are_tied():
  config = dataclasses.replace(CONFIG, tied=True)
  tied = Target.from_raw(random_params(config=config), config, TASK.tokenizer, "raw")
  full = tied.run(TOKENS, capture=["embed", "a1.1", "x1.post"])
  edits = [Edit(name, PLUS + k, full[name][:, PLUS + k]) for k, name in enumerate(full.keys())]
  assert same(tied.run(TOKENS, edits=edits).logits, full.logits)


@pytest.mark.parametrize("name", ["a0.1", "a1.3", "x0.mid", "m0", "x1.pre", "pos_embed", "embed"])
def test_edit_changes_its_own_and_later_positions_only(target, full, name):
  value = np.random.default_rng(1).normal(size=(B, D))
  edited = np.asarray(target.run(TOKENS, edits=[Edit(name, EQUALS, value)]).logits)
  changed = (edited != np.asarray(full.logits)).any(axis=-1)
  # Nothing carries what heads of the last layer write to other positions.
  reached = np.arange(T) >= EQUALS if name != "a1.3" else np.arange(T) == EQUALS
  np.testing.assert_array_equal(changed, np.broadcast_to(reached, (B, T)))


@pytest.fixture(scope="module")
def edited_head(raw):
  """A run in which a1.2 is all ones at "+"."""
  return raw.run(TOKENS, capture=["a1.2", "a1", "x1.mid"], edits=[Edit("a1.2", PLUS, np.ones((B, D)))])


def test_head_edit_adds_the_difference_to_the_residual_stream(edited_head, full_raw):
  expected = np.asarray(full_raw["x1.mid"]).copy()
  expected[:, PLUS] += 1 - np.asarray(full_raw["a1.2"])[:, PLUS]
  np.testing.assert_allclose(edited_head["x1.mid"], expected, rtol=0, atol=1e-5)


def test_captures_of_one_head_and_of_all_see_the_edited_head_and_nothing_else_changed(edited_head, full_raw):
  expected = np.asarray(full_raw["a1"]).copy()
  expected[:, PLUS, 2] = 1
  assert same(edited_head["a1"], expected) and same(edited_head["a1.2"], expected[:, :, 2])


def test_edited_residual_site_keeps_its_values_at_all_other_positions(raw, full_raw):
  got = np.asarray(raw.run(TOKENS, capture=["x0.mid"], edits=[Edit("x0.mid", PLUS, np.ones((B, D)))])["x0.mid"])
  expected = np.asarray(full_raw["x0.mid"]).copy()
  expected[:, PLUS] = 1
  assert same(got, expected)


def test_captures_see_the_edited_values_of_every_kind_of_site_when_all_are_edited_together(raw, full_raw):
  names = ["embed", "pos_embed", "x0.pre", "a0.1", "a0.2", "x0.mid", "m0", "x0.post", "a1.1", "x1.post"]
  values = {(name, 3 + k): k for k, name in enumerate(names)} | {("a0.1", 2): 20}
  edits = [Edit(name, position, np.full(D, value)) for (name, position), value in values.items()]
  run = raw.run(TOKENS, capture=names, edits=edits)
  for (name, position), value in values.items():
    assert (np.asarray(run[name])[:, position] == value).all()
    assert same(run[name][:, :2], full_raw[name][:, :2])


def test_each_row_can_have_its_own_position(target, full, other):
  positions = np.array([2, 5, EQUALS])
  value = np.asarray(other["a0.1"])[np.arange(B), positions]
  together = np.asarray(target.run(TOKENS, edits=[Edit("a0.1", positions, value)]).logits)
  for row, position in enumerate(positions):
    alone = np.asarray(target.run(TOKENS, edits=[Edit("a0.1", int(position), value)]).logits)
    assert same(together[row], alone[row])
    assert same(together[row, :position], full.logits[row, :position])
    assert not same(together[row, position], full.logits[row, position])


def test_negative_position_is_its_positive_twin(target, full):
  value = np.ones(D, np.float32)
  for negative, positive in ((-2, T - 2), (-T, 0), (np.array([-2, -3, -T]), np.array([T - 2, T - 3, 0]))):
    twins = [target.run(TOKENS, edits=[Edit("x0.mid", position, value)]).logits for position in (negative, positive)]
    assert same(*twins) and not same(twins[0], full.logits)


def test_one_vector_serves_every_row_and_position(target):
  value = np.linspace(-1, 1, D, dtype=np.float32)
  one = target.run(TOKENS, edits=[Edit("m0", PLUS, value)]).logits
  assert same(one, target.run(TOKENS, edits=[Edit("m0", PLUS, np.tile(value, (B, 1)))]).logits)
  everywhere = target.run(TOKENS, edits=[Edit("m0", None, value)]).logits
  assert same(everywhere, target.run(TOKENS, edits=[Edit("m0", None, np.tile(value, (B, T, 1)))]).logits)
  assert not same(one, everywhere)


def test_sweep_over_layers_heads_positions_and_values_compiles_once(raw):
  # A configuration nobody else uses, so that the first run compiles.
  swept = Target.from_raw(random_params(1), dataclasses.replace(CONFIG, norm_eps=2e-5), TASK.tokenizer, "raw")
  before = target_lib._run._cache_size()
  results = set()
  for layer in range(L):
    for head in range(H):
      for position in range(T - 2):
        value = np.full(D, layer + head, np.float32)
        results.add(np.asarray(swept.run(TOKENS, edits=[Edit(f"a{layer}.{head}", position, value)]).logits).tobytes())
  assert target_lib._run._cache_size() == before + 1
  assert len(results) == L * H * (T - 2)  # every one of these edits did something else


# Gradients.


def test_logits_have_exactly_no_gradient_from_later_positions(raw_params, full_raw):
  """By both ways in: a residual site, and a head's write."""
  readout = jax.random.normal(jax.random.key(1), (CONFIG.vocab_size,))  # the sum alone could cancel
  sites_of_edits = [Site("embed"), Site("head", 0, 1)]

  def read(*values):
    edits = [
      SiteEdit(s.kind, jnp.int32(s.layer or 0), jnp.int32(s.head or 0), None, v)
      for s, v in zip(sites_of_edits, values, strict=True)
    ]
    return Transformer(CONFIG).apply({"params": raw_params}, TOKENS[:1], edits=edits).logits[0] @ readout  # [T]

  for jacobian in jax.jit(jax.jacrev(read, argnums=(0, 1)))(*(full_raw[site][:1] for site in sites_of_edits)):
    depends = np.abs(jacobian[:, 0]).max(axis=-1)  # [T of the logits, T of the edit]
    assert (depends[~np.tri(T, dtype=bool)] == 0).all()
    assert (depends[np.tri(T, dtype=bool)] > 1e-6).all()


# What is refused.


def refusal(target, tokens=TOKENS, **kwargs) -> str:
  with pytest.raises(InversionViewError) as caught:
    target.run(tokens, **kwargs)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "name, closest",
  [
    ("a0.9", "a0.0"),
    ("x2.mid", "x1.mid"),
    ("p5", "p0"),
    ("blocks.0.attn.hook_resultt.1", "blocks.0.attn.hook_result.1"),
  ],
)
def test_unknown_site_is_refused_with_the_closest_names(raw, name, closest):
  message = refusal(raw, capture=["x0.pre", name])
  assert repr(name) in message
  assert closest in message.rsplit("closest", 1)[1].split(": ", 1)[1].split(", ")


def test_name_like_no_site_is_refused_with_examples_of_sites(raw):
  for kwargs in ({"capture": ["foo"]}, {"edits": [Edit("foo", 0, np.zeros(D))]}):
    message = refusal(raw, **kwargs)
    assert "'foo'" in message and "a0.3" in message and "blocks.0.attn.hook_result.3" in message


@pytest.mark.parametrize(
  "position", [T, -T - 1, 2**32 + PLUS, np.array([0, 1, T])], ids=["T", "-T-1", "beyond-int32", "one-row"]
)
def test_position_out_of_range_is_refused(raw, position):
  message = refusal(raw, edits=[Edit("a0.1", position, np.zeros(D))])
  assert "a0.1" in message and f"0 to {T - 1}" in message


@pytest.mark.parametrize("position", [T - 1, -1, np.array([0, T - 1, 0])])
def test_position_on_padding_is_refused_and_the_row_named(raw, position):
  assert TOKENS[1, T - 1] == TASK.tokenizer.pad_id
  message = refusal(raw, edits=[Edit("x0.mid", position, np.zeros(D))])
  assert "x0.mid" in message and "row 1" in message and f"position {T - 1} is padding" in message


@pytest.mark.parametrize(
  "position", [1.0, "=", True, np.array([1, 2]), np.ones((2, 2), int), [1, 2, 3], [], [4, 4], slice(20, 22)]
)
def test_position_that_is_no_index_is_refused(raw, position):
  message = refusal(raw, edits=[Edit("x0.mid", position, np.zeros(D))])
  assert (
    "position" in message
    and "x0.mid" in message
    or "belongs to no task" in message
    or "as many numbers as there are rows" in message
  )


@pytest.mark.parametrize(
  "position, shape",
  [(PLUS, (B, T, D)), (PLUS, (D - 1,)), (PLUS, (B + 1, D)), (PLUS, ()), (None, (B, D)), (None, (1, T, D))],
)
def test_value_of_another_shape_is_refused_with_the_shapes_that_fit(raw, position, shape):
  message = refusal(raw, edits=[Edit("x0.mid", position, np.zeros(shape))])
  assert "x0.mid" in message and str(shape) in message
  assert str((B, D) if position is not None else (B, T, D)) in message


@pytest.mark.parametrize(
  "one, another",
  [
    (("a0.1", PLUS), ("a0.1", PLUS)),
    (("a0.1", PLUS), ("blocks.0.attn.hook_result.1", PLUS - T)),
    (("x0.mid", None), ("x0.mid", EQUALS)),
    (("x0.mid", np.array([1, 2, 3])), ("x0.mid", np.array([3, 1, 3]))),
    (("x0.post", PLUS), ("x1.pre", PLUS)),  # two names of one activation
    (("x1.pre", None), ("x0.post", PLUS)),
  ],
)
def test_two_edits_of_one_activation_are_refused(raw, one, another):
  message = refusal(raw, edits=[Edit(*one, np.zeros(D)), Edit(*another, np.ones(D))])
  assert "two edits" in message and one[0] in message and sites.parse(another[0]).short in message


def test_edits_of_one_site_at_different_positions_of_each_row_are_no_overlap(raw):
  positions = np.array([1, 2, 3]), np.array([3, 1, 2])
  edits = [Edit("x0.mid", position, np.full(D, k)) for k, position in enumerate(positions)]
  run = raw.run(TOKENS, capture=["x0.mid"], edits=edits)
  for k, position in enumerate(positions):
    assert (np.asarray(run["x0.mid"])[np.arange(B), position] == k).all()


def test_modes_and_positions(raw, full_raw):
  """Every mode at spans, lists and [B, P], against NumPy; all in one run."""
  ones, one = np.ones(D, np.float32), np.asarray(full_raw["x0.mid"])
  edits = [
    Edit("x0.mid", slice(1, 3), ones, "add"),
    Edit("x0.mid", [4, 6], 2.0, "scale"),
    Edit("x0.mid", np.array([[7, 8], [8, 7], [9, 7]]), np.stack([np.full((B, D), k) for k in (5, 6)], axis=1)),
    Edit("x1.mid", 3, mode="mean"),
    Edit("a0", 2, mode="zero"),
    Edit("m1", [[0, 2]], TOKENS[:2], "mean"),
    Edit("z1.1", PLUS, mode="resample", seed=3),
  ]
  got = raw.run(TOKENS, capture=["x0.mid", "x1.mid", "a0", "m1", "z1.1"], edits=edits)
  mid = one.copy()
  b_o = np.asarray(raw.params["blocks_0"]["attn"]["o"]["bias"])
  mid[:, 2] = np.asarray(full_raw["x0.pre"])[:, 2] + b_o
  mid[:, 1:3] += 1
  mid[:, [4, 6]] *= 2
  for row, (first, second) in enumerate([(7, 8), (8, 7), (9, 7)]):
    mid[row, first], mid[row, second] = 5, 6
  np.testing.assert_allclose(got["x0.mid"], mid, atol=2e-5)
  np.testing.assert_allclose(got["x1.mid"][:, 3], np.tile(full_raw["x1.mid"][:, 3].mean(0), (B, 1)), atol=1e-5)
  assert (np.asarray(got["a0"])[:, 2] == 0).all()
  np.testing.assert_allclose(got["m1"][:, 2], np.tile(full_raw["m1"][:2, 2].mean(0), (B, 1)), atol=1e-5)
  z = np.asarray(raw.run(TOKENS, capture=["z1.1"])["z1.1"])[:, PLUS]
  drawn = [int(np.abs(z - row).max(axis=1).argmin()) for row in np.asarray(got["z1.1"])[:, PLUS]]
  assert sorted(drawn) == list(range(B)) and all(row != other for row, other in enumerate(drawn))


def test_edits_are_made_in_their_order_where_asked(raw):
  edits = [Edit("a0.1", 3, np.ones(D)), Edit("a0.1", 3, np.ones(D), "add"), Edit("a0.1", 3, 3.0, "scale")]
  message = refusal(raw, edits=edits)
  assert "a0.1" in message and "in_order=True" in message
  run = raw.run(TOKENS, capture=["a0.1", "x0.mid"], edits=edits, in_order=True)
  assert (np.asarray(run["a0.1"])[:, 3] == 6).all()
  once = raw.run(TOKENS, capture=["x0.mid"], edits=[Edit("a0.1", 3, np.full(D, 6.0))])
  np.testing.assert_allclose(run["x0.mid"], once["x0.mid"], atol=1e-5)


def test_edits_that_commute_may_share_an_activation(raw, full_raw):
  run = raw.run(TOKENS, capture=["m0"], edits=[Edit("m0", 3, np.ones(D), "add"), Edit("m0", None, np.ones(D), "add")])
  np.testing.assert_allclose(run["m0"][:, 3], full_raw["m0"][:, 3] + 2, atol=1e-5)


@pytest.mark.parametrize(
  "one, another",
  [("z0.1", "a0.1"), ("q0.1", "p0.1"), ("m0.pre", "m0.post"), ("m0.post", "m0"), ("a0.1", "a0.out"), ("a0.out", "x0.mid"), ("x1.post", "ln_final"),
   ("z0", "z0.1"), ("k0.1", "s0.1"), ("q1.0", "z1.0")],
)  # fmt: skip
def test_edits_inside_of_a_layer_that_others_overwrite_are_refused(raw, one, another):
  position = {"k0.1": None, "z0": 3}.get(one, 3)
  edits = [Edit(one, 3, mode="zero"), Edit(another, None if one == "k0.1" else position, mode="zero")]
  assert "in_order" in refusal(raw, edits=edits) or one in refusal(raw, edits=edits)


@pytest.mark.parametrize(
  "edit, message",
  [
    (Edit("m0", 3, np.zeros(D), "double"), "unknown mode"),
    (Edit("m0", 3, np.zeros(D), "zero"), "takes no value"),
    (Edit("m0", 3), "needs a value"),
    (Edit("m0", np.array([1, 2, 3]), TOKENS[:2], "mean"), "mean nothing in the texts of a data set"),
    (Edit("m0", 3, ["x"], "resample"), "takes texts or token ids"),
    (Edit("q0.9", 3, np.zeros(8)), "q0.0"),
    (Edit("rot_q0.1", 3, np.zeros(8)), "no rotary"),
  ],
)
def test_edits_that_cannot_be_made_are_refused(raw, edit, message):
  assert message in refusal(raw, edits=[edit])


def test_logit_lens_is_the_final_norm_and_the_unembedding(raw, full_raw):
  lens = logit_lens(full_raw, raw)
  np.testing.assert_allclose(lens["x1.post"], full_raw.logits, atol=1e-5)
  np.testing.assert_allclose(logit_lens(full_raw["x0.mid"][0, 3], raw).logits[0], lens["x0.mid"][0, 3], atol=1e-5)
  assert "x0.mid" in repr(lens) and len(lens.top("x1.post", 3, 1)) == 5
  with pytest.raises(InversionViewError, match="width 32"):
    logit_lens(np.zeros(7), raw)
  with pytest.raises(InversionViewError, match="captured no residual stream"):
    logit_lens(raw.run(TOKENS, capture=["p0"]), raw)


@pytest.mark.parametrize("wrong", [15, -1, 2**32])
def test_token_outside_the_vocabulary_is_named(raw, wrong):
  tokens = TOKENS.astype(np.int64)
  tokens[1, 3] = wrong
  message = refusal(raw, tokens)
  assert str(wrong) in message and "15" in message


def test_text_longer_than_the_context_is_refused(raw):
  message = refusal(raw, np.zeros((1, T + 1), np.int32))
  assert str(T + 1) in message and str(T) in message.replace(str(T + 1), "")


@pytest.mark.parametrize(
  "tokens",
  [TOKENS.astype(np.float32), TOKENS[0], TOKENS[None], np.zeros((0, T), np.int32), np.zeros((1, 0), np.int32)],
  ids=["float", "1-D", "3-D", "no-rows", "no-tokens"],
)
def test_tokens_that_are_no_batch_of_integers_are_refused(raw, tokens):
  message = refusal(raw, tokens)
  assert "[B, T]" in message and str(tokens.dtype) in message


def test_reading_what_was_not_captured_names_what_was(full_raw, raw):
  run = raw.run(TOKENS, capture=["x0.mid"])
  for name in ("a0.1", "blocks.0.attn.hook_result.1"):
    with pytest.raises(InversionViewError) as caught:
      run[name]
    assert repr(name) in str(caught.value) and "x0.mid" in str(caught.value)
  with pytest.raises(InversionViewError, match="'foo'"):
    run["foo"]
  with pytest.raises(InversionViewError, match="nothing"):
    raw.run(TOKENS)["x0.mid"]


def test_unknown_convention_and_a_tokenizer_of_another_size_are_refused(raw_params):
  with pytest.raises(InversionViewError, match="'centred'.*centered"):
    Target.from_raw(raw_params, CONFIG, TASK.tokenizer, "centred")
  with pytest.raises(InversionViewError, match="40 tokens.*15"):
    Target.from_raw(raw_params, CONFIG, tasks.get("counting").tokenizer)


def test_without_a_tokenizer_token_ids_are_enough(raw_params, full_raw):
  bare = Target.from_raw(raw_params, CONFIG, None, "raw")
  assert same(bare.run(TOKENS, capture=EVERY_SITE).logits, full_raw.logits)
