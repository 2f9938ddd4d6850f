"""Language targets: a model of other people over a task's tokens, and its first layers."""

import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax import tasks
from inversionview_jax.causal import attribution
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import language_model, load_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TINY = "configs/ioi_smollm2.py:tiny"


@pytest.mark.parametrize("convention", [pytest.param("centered", marks=pytest.mark.slow), "raw"])
def test_over_a_part_of_the_tokens_activations_and_logits_stay(ioi_folder, ioi_task, convention):
  whole = load_target(ioi_folder, convention)
  part = whole.restrict_to(ioi_task.tokenizer)
  tokens = ioi_task.tokens(np.arange(20))
  sites = ["x0.pre", "a1.1", "m2", "x2.post"]
  one, other = part.run(tokens, sites), whole.run(ioi_task.tokenizer.to_base(tokens), sites)
  real = tokens < ioi_task.tokenizer.eos_id
  for site in sites:
    np.testing.assert_allclose(np.asarray(one[site])[real], np.asarray(other[site])[real], rtol=0, atol=1e-6)
  logits = np.asarray(one.logits)
  np.testing.assert_allclose(
    logits[..., :-2][real], np.asarray(other.logits)[..., ioi_task.tokenizer.base_ids][real], rtol=0, atol=2e-5
  )
  assert (logits[..., -2:][real] < -1e8).all()  # the model never predicts EOS and PAD
  assert part.fingerprint == whole.fingerprint and whole.config.vocab_size != part.config.vocab_size


def test_over_the_tokens_of_another_model_is_refused(ioi_target, tmp_path):
  other = load_target(gpt2_folder(tmp_path / "other", texts=["Then, Mary and John"] * 9))
  with pytest.raises(InversionViewError, match="is not a part of that of the target"):
    other.restrict_to(tasks.get("ioi", ioi_target.tokenizer).tokenizer)


@pytest.mark.parametrize("convention", [pytest.param("centered", marks=pytest.mark.slow), "raw"])
def test_the_first_layers_hold_what_they_hold_in_the_whole_model(ioi_folder, convention):
  whole, first = (load_target(ioi_folder, convention, layers=layers) for layers in (None, 2))
  tokens = np.arange(1, 13).reshape(2, 6)
  for site in ("x0.pre", "a0.1", "m1", "x1.post"):
    assert np.array_equal(first.run(tokens, [site])[site], whole.run(tokens, [site])[site])
  assert set(first.params) == {"embed", "pos_embed", "blocks_0", "blocks_1"}
  with pytest.raises(InversionViewError, match="no site 'a2.0' in a network of 2 layers"):
    first.run(tokens, ["a2.0"])
  for call in (lambda: first.run(tokens).logits, lambda: attribution.attribute(first, tokens)):
    with pytest.raises(InversionViewError, match="has no logits; load it without layers="):
      call()
  with pytest.raises(InversionViewError, match="layers = 4 must be from 1 to 3"):
    load_target(ioi_folder, layers=4)


def test_layers_are_those_that_the_sites_need(ioi_target):
  for names, layers in (
    (("x0.pre",), 1),
    (("a0.0", "x2.pre"), 2),
    (("m1",), 2),
    (("x0.pre", "blocks.2.attn.hook_result.1"), 3),
  ):
    assert language_model.layers_needed(names, ioi_target.config) == layers
