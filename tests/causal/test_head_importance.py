"""Heads by their share of the residual update."""

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax.causal import head_importance
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import load_target
from inversionview_jax.tasks import fact_files

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_files.bundled()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS, heads=4, layers=3)


@pytest.fixture(scope="module")
def target(folder):
  return load_target(folder)


def test_shares_are_the_l1_proximity_of_what_is_added_up(target):
  texts = TEXTS[:10]
  tokens = target.tokenizer.encode_batch(texts, eos=False)
  at = np.array([len(target.tokenizer.encode(text)) for text in texts])
  shares, predicted = head_importance.head_shares(target, tokens, at, batch_size=4)
  run = target.run(
    tokens, [f"{kind}" for layer in range(3) for kind in (f"x{layer}.pre", f"a{layer}", f"x{layer}.mid")]
  )
  row = np.arange(len(texts))
  for layer in range(3):
    before, heads, after = (
      np.asarray(run[n], np.float64)[row, at] for n in (f"x{layer}.pre", f"a{layer}", f"x{layer}.mid")
    )
    bias = np.asarray(target.params[f"blocks_{layer}"]["attn"]["o"]["bias"], np.float64)
    parts = [*heads.swapaxes(0, 1), before, np.broadcast_to(bias, before.shape)]
    np.testing.assert_allclose(sum(parts), after, atol=1e-4)  # they are all there is
    near = np.stack([np.maximum(0, np.abs(after).sum(-1) - np.abs(after - part).sum(-1)) for part in parts], axis=1)
    np.testing.assert_allclose(shares[:, layer], (near / near.sum(axis=1, keepdims=True))[:, :4], atol=1e-4)
  np.testing.assert_array_equal(predicted, np.asarray(run.logits)[row, at].argmax(axis=-1))
  np.testing.assert_array_equal(head_importance.head_shares(target, tokens, at, batch_size=16)[1], predicted)


def test_ranking_counts_prompts_over_the_threshold_and_then_takes_the_mean():
  shares = np.zeros((4, 3, 2))
  shares[:, 1, 0] = 0.05, 0.05, 0.0, 0.0
  shares[:, 1, 1] = 0.03, 0.03, 0.03, 0.0
  shares[:, 2, 0] = 0.9, 0.9, 0.0, 0.0
  heads = head_importance.ranked(shares, 0.02, first_layer=1)
  assert [(head.site, head.over) for head in heads] == [("a1.1", 3), ("a2.0", 2), ("a1.0", 2), ("a2.1", 0)]
  assert head_importance.ranked(shares, 0.04, last_layer=1)[0].site == "a1.0" and heads[1].mean == pytest.approx(0.45)
  for wrong in ({"first_layer": 3}, {"last_layer": 7}, {"threshold": 1.5}):
    with pytest.raises(InversionViewError):
      head_importance.ranked(shares, **wrong)
