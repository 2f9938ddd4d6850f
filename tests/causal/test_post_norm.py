"""Heads behind a norm (Gemma 3, OLMo 2): attributions sum to the logits, and shares are those of what joins the residual stream."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax.causal import head_importance
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.targets import Target

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CONFIG = TransformerConfig(
  vocab_size=23, n_ctx=8, n_layers=2, n_heads=3, d_model=12, d_mlp=16, norm="rms", post_norm=True, biases=("o",), tied=True
)  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 23, (4, 7))


@pytest.fixture(scope="module")
def target():
  params = Transformer(CONFIG).init(jax.random.key(0), TOKENS)["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  random = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
  return Target.from_raw(jax.tree.map(np.asarray, tree.unflatten(random)), CONFIG, convention="raw")


def test_attributions_sum_to_the_logits(target):
  logits = np.asarray(target.run(TOKENS).logits)[:, -1]
  parts = iv.attribute(target, TOKENS, 6)
  np.testing.assert_allclose(parts.values.sum(axis=1), logits, rtol=0, atol=2e-4)
  assert "b_O.1" in parts.components and np.abs(parts["a1.0"]).max() > 1e-2


def test_shares_are_those_of_the_writes_behind_the_norm(target):
  run = target.run(TOKENS, capture=["x1.pre", "x1.mid", "a1"])
  heads, before, after = (np.asarray(run[name])[:, 6] for name in ("a1", "x1.pre", "x1.mid"))
  block = target.params["blocks_1"]
  total = heads.sum(axis=1) + block["attn"]["o"]["bias"]
  normed = np.asarray(nn.RMSNorm(CONFIG.norm_eps).apply({"params": block["ln1_post"]}, total))
  np.testing.assert_allclose(before + normed, after, rtol=0, atol=1e-5)
  scaled = heads * (normed / total)[:, None]
  parts = np.concatenate([scaled, before[:, None], (after - before - scaled.sum(axis=1))[:, None]], axis=1)
  proximity = np.maximum(0, np.abs(after).sum(-1)[:, None] - np.abs(after[:, None] - parts).sum(-1))
  expected = (proximity / proximity.sum(axis=1, keepdims=True))[:, :3]
  shares, _ = head_importance.head_shares(target, TOKENS, 6)
  np.testing.assert_allclose(shares[:, 1], expected, rtol=0, atol=1e-4)


def test_a_layer_norm_behind_attention_is_refused(target):
  other = dataclasses.replace(target, config=dataclasses.replace(CONFIG, norm="layer"))
  with pytest.raises(InversionViewError, match="LayerNorm behind attention"):
    head_importance.head_shares(other, TOKENS, 6)
  with pytest.raises(InversionViewError, match="LayerNorm behind attention"):
    iv.attribute(other, TOKENS, 6)
