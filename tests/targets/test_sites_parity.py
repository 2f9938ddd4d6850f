"""Sites inside of attention and MLP: as torch hooks on Hugging Face's modules see them, and by their formulas; the table in the README."""

import pathlib
import re

import jax
import numpy as np
import pytest

from inversionview_jax import sites
from inversionview_jax.models import site_shapes
from inversionview_jax.targets import Edit, load_target

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
README = pathlib.Path(sites.__file__).parent / "targets" / "README.md"
CASES = ("default", "llama3", "gemma2")


@pytest.fixture(scope="module", params=CASES)
def case(request):
  folder = GOLDEN / request.param
  target = load_target(folder, convention="raw")
  tokens = np.load(folder / "expected.npz")["tokens"]
  every = site_shapes.every_site(target.config, sites.KINDS)
  return target, tokens, target.run(tokens, capture=every), dict(np.load(folder / "sites.npz")), every


def test_what_torch_hooks_see(case):
  target, _, run, expected, _ = case
  assert len(expected) >= 12 * target.config.n_layers + 2
  for name, value in expected.items():
    # Products of two activations of a gated MLP reach 8, where float32 itself has steps of 1e-6, and a layer before them rounds as well.
    np.testing.assert_allclose(run[name], value, rtol=1e-5, atol=5e-5, err_msg=name)


def test_every_site_has_the_shape_that_the_table_says(case):
  target, tokens, run, _, every = case
  c, (batch, length) = target.config, tokens.shape
  sizes = {
    "B": batch,
    "T": length,
    "H": c.n_heads,
    "G": c.kv_heads,
    "K": c.d_head,
    "M": c.d_mlp,
    "D": c.d_model,
    "1": 1,
  }
  for site in every:
    assert run[site].shape == tuple(sizes[letter] for letter in site_shapes.shape_name(site)[1:-1].split(", ")), site


def test_scores_and_heads_fit_together(case):
  target, _, run, _, _ = case
  for layer in range(target.config.n_layers):
    scores, pattern = np.asarray(run[f"s{layer}"], np.float64), np.asarray(run[f"p{layer}"])
    assert np.isneginf(scores[0, 0, 0, 1])  # what is masked
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(pattern, weights / weights.sum(-1, keepdims=True), atol=1e-5)
    assert (np.asarray(run[f"p{layer}.1"]) == pattern[:, 1]).all()
    share = target.config.n_heads // target.config.kv_heads
    v = np.repeat(np.asarray(run[f"v{layer}"]), share, axis=2)
    np.testing.assert_allclose(run[f"z{layer}"], np.einsum("bhqk,bkhd->bqhd", pattern, v), atol=1e-4)
    if not target.config.post_norm:
      bias = target.params[f"blocks_{layer}"]["attn"]["o"].get("bias", 0.0)
      np.testing.assert_allclose(run[f"a{layer}.out"], np.asarray(run[f"a{layer}"]).sum(2) + bias, atol=1e-4)


def test_one_token_at_a_time_has_the_same_vectors(case):
  target, tokens, run, _, _ = case
  names = site_shapes.every_site(target.config, sites.VECTOR_KINDS)
  cache = target.module.apply({"params": target.params}, len(tokens), 3, method="empty_cache")

  @jax.jit
  def advance(params, token, position, cache):
    return target.module.apply({"params": params}, token, position, cache, 0, names, method="advance")

  for position in range(3):
    _, cache, captured = advance(target.params, tokens[:, position], position, cache)
    for site in names:
      np.testing.assert_allclose(captured[site][:, 0], run[site][:, position], rtol=0, atol=1e-4, err_msg=site.short)


def test_writing_everything_back_changes_nothing_and_zero_of_each_does(case):
  target, tokens, run, _, every = case
  names = [s for s in every if s.layer in (None, 1) and s.head in (None, 1) and s.kind not in ("heads", "head")]
  same = target.run(tokens, edits=[Edit(s, None, run[s]) for s in names], in_order=True)
  np.testing.assert_allclose(same.logits, run.logits, rtol=0, atol=1e-4)
  edits = [
    Edit("z0.1", 5, mode="zero"),
    Edit("m1.pre", 5, mode="zero"),
    Edit("k1.1", 5, mode="zero"),
    Edit("p1.0", 6, mode="zero"),
  ]
  changed = target.run(tokens, capture=["z0", "m1.pre", "k1.1", "p1"], edits=edits)
  assert (np.asarray(changed["z0"])[:, 5, 1] == 0).all() and (np.asarray(changed["z0"])[:, 5, 0] != 0).any()
  assert (np.asarray(changed["m1.pre"])[:, 5] == 0).all() and (np.asarray(changed["k1.1"])[:, 5] == 0).all()
  assert (np.asarray(changed["p1"])[:, 0, 6] == 0).all() and (np.asarray(changed["p1"])[:, 1, 6] != 0).any()
  difference = np.abs(np.asarray(changed.logits - run.logits)).max(axis=(0, 2))
  assert (difference[:5] == 0).all() or difference[:5].max() < 1e-5
  assert (difference[5:] > 1e-3).all()


def test_the_table_of_the_readme_has_every_kind_of_site():
  rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|.*\| `(\[[^\]]+\])` \|$", README.read_text(), re.MULTILINE)
  expected = []
  for kind, one in sites.KINDS.items():
    site = sites.Site(kind, 0 if "{l}" in one.short else None, 1 if one.number else None)
    expected.append((site.short, site.hook, site_shapes.shape_name(site)))
  assert rows == expected
