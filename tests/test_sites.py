"""Names of sites, in both notations."""

import pytest

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site

NAMES = [
  # site, the paper's name, TransformerLens' name
  (Site("embed"), "embed", "hook_embed"),
  (Site("pos_embed"), "pos_embed", "hook_pos_embed"),
  (Site("pre", 0), "x0.pre", "blocks.0.hook_resid_pre"),
  (Site("mid", 1), "x1.mid", "blocks.1.hook_resid_mid"),
  (Site("post", 11), "x11.post", "blocks.11.hook_resid_post"),
  (Site("mlp", 3), "m3", "blocks.3.hook_mlp_out"),
  (Site("head", 10, 12), "a10.12", "blocks.10.attn.hook_result.12"),
  (Site("heads", 2), "a2", "blocks.2.attn.hook_result"),
  (Site("pattern", 0), "p0", "blocks.0.attn.hook_pattern"),
  (Site("head_pattern", 0, 1), "p0.1", "blocks.0.attn.hook_pattern.1"),
  (Site("scores", 0), "s0", "blocks.0.attn.hook_attn_scores"),
  (Site("head_scores", 0, 1), "s0.1", "blocks.0.attn.hook_attn_scores.1"),
  (Site("q_heads", 1), "q1", "blocks.1.attn.hook_q"),
  (Site("q", 1, 3), "q1.3", "blocks.1.attn.hook_q.3"),
  (Site("k_heads", 1), "k1", "blocks.1.attn.hook_k"),
  (Site("k", 1, 3), "k1.3", "blocks.1.attn.hook_k.3"),
  (Site("v_heads", 1), "v1", "blocks.1.attn.hook_v"),
  (Site("v", 1, 3), "v1.3", "blocks.1.attn.hook_v.3"),
  (Site("rot_q_heads", 1), "rot_q1", "blocks.1.attn.hook_rot_q"),
  (Site("rot_q", 1, 3), "rot_q1.3", "blocks.1.attn.hook_rot_q.3"),
  (Site("rot_k_heads", 1), "rot_k1", "blocks.1.attn.hook_rot_k"),
  (Site("rot_k", 1, 3), "rot_k1.3", "blocks.1.attn.hook_rot_k.3"),
  (Site("z_heads", 1), "z1", "blocks.1.attn.hook_z"),
  (Site("z", 1, 3), "z1.3", "blocks.1.attn.hook_z.3"),
  (Site("attn_out", 1), "a1.out", "blocks.1.hook_attn_out"),
  (Site("ln1", 0), "x0.ln1", "blocks.0.ln1.hook_normalized"),
  (Site("ln1_scale", 0), "x0.ln1.scale", "blocks.0.ln1.hook_scale"),
  (Site("ln2", 0), "x0.ln2", "blocks.0.ln2.hook_normalized"),
  (Site("ln2_scale", 0), "x0.ln2.scale", "blocks.0.ln2.hook_scale"),
  (Site("ln1_post", 0), "a0.ln", "blocks.0.ln1_post.hook_normalized"),
  (Site("ln1_post_scale", 0), "a0.ln.scale", "blocks.0.ln1_post.hook_scale"),
  (Site("ln2_post", 0), "m0.out.ln", "blocks.0.ln2_post.hook_normalized"),
  (Site("ln2_post_scale", 0), "m0.out.ln.scale", "blocks.0.ln2_post.hook_scale"),
  (Site("mlp_pre", 0), "m0.pre", "blocks.0.mlp.hook_pre"),
  (Site("mlp_linear", 0), "m0.linear", "blocks.0.mlp.hook_pre_linear"),
  (Site("mlp_mid", 0), "m0.mid", "blocks.0.mlp.hook_mid"),
  (Site("mlp_ln", 0), "m0.ln", "blocks.0.mlp.ln.hook_normalized"),
  (Site("mlp_ln_scale", 0), "m0.ln.scale", "blocks.0.mlp.ln.hook_scale"),
  (Site("mlp_post", 0), "m0.post", "blocks.0.mlp.hook_post"),
  (Site("router", 1), "r1", "blocks.1.mlp.hook_expert_weights"),
  (Site("expert", 1, 5), "e1.5", "blocks.1.mlp.hook_expert_out.5"),
  (Site("ln_final"), "ln_final", "ln_final.hook_normalized"),
  (Site("ln_final_scale"), "ln_final.scale", "ln_final.hook_scale"),
]
EVERY_KIND = tuple(sites.KINDS)


def test_names_cover_every_kind():
  assert {site.kind for site, _, _ in NAMES} == set(EVERY_KIND)


def test_heads_are_parts_of_what_all_heads_have():
  assert sites.single(Site("k_heads", 2), 1) == Site("k", 2, 1) and sites.whole(Site("k", 2, 1)) == Site("k_heads", 2)
  assert sites.whole(Site("head_pattern", 0, 1)) == Site("pattern", 0) and sites.whole(Site("mid", 0)) == Site("mid", 0)


@pytest.mark.parametrize("site, short, hook", NAMES)
def test_site_is_read_and_written_in_both_notations(site, short, hook):
  assert sites.parse(short) == sites.parse(hook) == sites.parse(f" {short}\n") == sites.parse(site) == site
  assert (site.short, site.hook, str(site)) == (short, hook, short)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_enumerated_site_survives_the_round_trip(kind):
  found = sites.enumerate_sites(3, 2, kinds=(kind,), kv_heads=1, experts=4)
  many = {"": 1, "head": 2, "kv_head": 1, "expert": 4}[sites.KINDS[kind].number]
  assert len(found) == many * (3 if "{l}" in sites.KINDS[kind].short else 1)
  assert [sites.parse(site.short) for site in found] == [sites.parse(site.hook) for site in found] == list(found)
  assert [sites.resolve(site.short, 3, 2, (kind,), 1, 4) for site in found] == list(found)


def test_sites_are_enumerated_in_the_order_of_a_forward_pass():
  assert [site.short for site in sites.enumerate_sites(2, 2)] == [
    "embed",
    "pos_embed",
    "x0.pre",
    "a0.0",
    "a0.1",
    "x0.mid",
    "m0",
    "x0.post",
    "x1.pre",
    "a1.0",
    "a1.1",
    "x1.mid",
    "m1",
    "x1.post",
  ]
  assert [site.short for site in sites.enumerate_sites(2, 2, kinds=("pattern", "heads", "head"))] == [
    "p0",
    "a0",
    "a0.0",
    "a0.1",
    "p1",
    "a1",
    "a1.0",
    "a1.1",
  ]


@pytest.mark.parametrize(
  "name",
  [
    "",
    "foo",
    "a0.",
    "a.0",
    "a-1.0",
    "a0.3.1",
    "a0!3",
    "A0.3",
    "x0",
    "x0.prepost",
    "xx0.pre",
    "m0 m1",
    "hook_embeds",
    "blocks.0",
    "blocks0.hook_resid_pre",
    "blocks.0.hook_resid_pre.1",
    "blocks.0.attn.hook_result.",
    "blocks.0_hook_mlp_out",
  ],
)
def test_name_of_neither_form_is_refused_and_repeated(name):
  with pytest.raises(InversionViewError) as caught:
    sites.parse(name)
  assert repr(name) in str(caught.value) and "a0.3" in str(caught.value)


@pytest.mark.parametrize(
  "name, closest",
  [
    ("a0.9", "a0.0"),
    ("a2.1", "a0.1"),
    ("x2.mid", "x1.mid"),
    ("x1.middle", "x1.mid"),
    ("m7", "m0"),
    ("blocks.0.attn.hook_resultt.1", "blocks.0.attn.hook_result.1"),
    ("blocks.9.hook_mlp_out", "blocks.0.hook_mlp_out"),
    ("hook_embeds", "hook_embed"),
    ("pos-embed", "pos_embed"),
  ],
)
def test_near_miss_names_the_closest_sites_in_the_notation_of_the_question(name, closest):
  with pytest.raises(InversionViewError) as caught:
    sites.resolve(name, 2, 4)
  message, near = str(caught.value).rsplit("closest", 1)
  near = near.split(": ", 1)[1].split(", ")
  assert repr(name) in message and closest in near
  known = {form for site in sites.enumerate_sites(2, 4, sites.VECTOR_KINDS) for form in (site.short, site.hook)}
  assert set(near) <= known
  assert {"hook" in candidate for candidate in near} == {"hook" in name}


def test_site_of_a_kind_that_is_not_wanted_is_refused():
  assert sites.resolve("p1", 2, 4, EVERY_KIND) == Site("pattern", 1)
  for name in ("p1", "a1"):
    with pytest.raises(InversionViewError, match=repr(name)):
      sites.resolve(name, 2, 4)


def test_network_size_decides_which_layers_and_heads_there_are():
  assert sites.resolve("a1.3", 2, 4) == Site("head", 1, 3)
  for layers, heads in ((1, 4), (2, 3)):
    with pytest.raises(InversionViewError, match=f"{layers} layers and {heads} heads"):
      sites.resolve("a1.3", layers, heads)
