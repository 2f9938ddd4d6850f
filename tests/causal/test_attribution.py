"""Direct logit attribution: the parts sum to the logits, each is its write through the frozen norm; what is refused."""

import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.causal import attribution
from inversionview_jax.errors import InversionViewError

TASK = tasks.get("addition")
CLEAN = ["615+261=876", "302+140=442", "999+123=1122", "100+100=200", "577+422=999"]
N = len(CLEAN)
EQUALS = 8
HEADS = ["a0.0", "a0.1", "a1.0", "a1.1"]

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def encoded(texts):
  return TASK.tokenizer.encode_batch(texts, TASK.length, eos=True)


def assert_close(one, another, **tolerance):
  np.testing.assert_allclose(one, another, rtol=0, **({"atol": 2e-5} | tolerance))


@pytest.mark.parametrize("convention", ["centered", "raw"])
def test_contributions_sum_to_the_logits(make_target, convention):
  target = make_target(3, convention)
  logits = np.asarray(target.run(encoded(CLEAN)).logits)
  for at, column in (("=", logits[:, 8]), (-1, logits[np.arange(N), [11, 11, 12, 11, 11]])):
    effects = iv.attribute(target, CLEAN, at)
    assert_close(effects.logits, column, atol=1e-4)
    assert_close(effects.values.sum(axis=1), column, atol=1e-4)
  assert set(effects.components) == {"embed", "pos_embed", *HEADS, "b_O.0", "b_O.1", "m0", "m1", "bias"}
  tokens = iv.attribute(target, CLEAN, "=", tokens=["0", "7"])
  assert_close(tokens.values, iv.attribute(target, CLEAN, "=").values[:, :, [0, 7]])


def test_a_contribution_is_the_write_seen_through_the_frozen_norm(small_target):
  """With the divisor frozen the logits are linear: leaving a write out takes exactly its contribution away."""
  tokens = encoded(CLEAN)
  run = small_target.run(tokens, capture=["a1.1", "x1.post"])
  final, write = (np.asarray(run[name])[:, EQUALS].astype(np.float64) for name in ("x1.post", "a1.1"))
  divisor = np.sqrt(final.var(axis=1, keepdims=True) + 1e-5)
  norm, kernel = small_target.params["ln_f"], np.asarray(small_target.params["unembed"]["kernel"])

  def logits(x):
    return ((x - x.mean(axis=1, keepdims=True)) / divisor * norm["scale"] + norm["bias"]) @ kernel

  expected = logits(final) - logits(final - write)
  assert_close(iv.attribute(small_target, CLEAN, "=", components=["a1.1"])["a1.1"], expected, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_attribution_refuses_what_is_not_there(small_target):
  for wrong, message in (
    ({"components": ["a0.7"]}, "unknown component 'a0.7'"),
    ({"tokens": ["ten"]}, "'ten' is not one token"),
    ({"tokens": [99]}, "token id 99"),
    ({"position": 20}, "position 20 is out of range"),
  ):
    with pytest.raises(InversionViewError, match=message):
      attribution.attribute(small_target, CLEAN, **wrong)
