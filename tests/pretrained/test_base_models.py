"""Checkpoints without an unembedding: base models and classifiers have all activations and no logits."""

import json

import numpy as np
import pytest
import safetensors.numpy
from checkpoints import GOLDEN, copied, refusal, tensors_of
from small_models import gpt2_folder

from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import load_target

IDS = np.array([[1, 2, 3, 4]])


def base_model(folder, name, architecture, prefix, more=()):
  """The golden model `name` as `architecture` saves it: without lm_head, tensors without `prefix`."""
  copied(name, folder, architectures=[architecture])
  tensors = {key.removeprefix(prefix): value for key, value in tensors_of(folder).items() if key != "lm_head.weight"}
  safetensors.numpy.save_file({**tensors, **dict(more)}, folder / "model.safetensors")
  return folder


@pytest.mark.parametrize(
  "name, architecture, prefix, head",
  [
    ("llama", "LlamaModel", "model.", ()),
    ("llama", "LlamaForSequenceClassification", "", (("score.weight", np.ones((2, 3), np.float32)),)),
    ("untied", "GPT2Model", "transformer.", ()),
  ],
)
def test_a_base_model_has_the_activations_of_the_whole_one_and_no_logits(tmp_path, name, architecture, prefix, head):
  whole = load_target(GOLDEN / name)
  assert not whole.config.tied
  base = load_target(base_model(tmp_path / "model", name, architecture, prefix, head))
  sites = ["x0.pre", "a1.0", "x1.post"]
  runs = whole.run(IDS, capture=sites), base.run(IDS, capture=sites)
  for site in sites:
    np.testing.assert_allclose(*(np.asarray(run[site]) for run in runs), atol=1e-6)
  assert not base.has_logits and "no unembedding" in str(base)
  with pytest.raises(InversionViewError, match="base model"):
    _ = runs[1].logits
  assert base.convention == whole.convention


def test_a_language_model_without_its_unembedding_is_damaged(tmp_path):
  folder = base_model(tmp_path / "model", "llama", "LlamaForCausalLM", "")
  assert "lm_head.weight is missing" in refusal(folder)


@pytest.mark.parametrize("own", [False, True])
def test_texts_are_run_without_a_bos_where_it_is_said(tmp_path, own):
  folder = gpt2_folder(tmp_path / "model")
  config = (
    json.loads((folder / "tokenizer_config.json").read_text()) if (folder / "tokenizer_config.json").exists() else {}
  )
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"eos_token": "<|endoftext|>", **config, "tokenizer_class": "GPT2Tokenizer"})
  )
  behind, without = load_target(folder), load_target(folder, bos="own" if own else False)
  tokens = behind.run(["Mary went"]).tokens
  assert without.run(["Mary went"]).tokens.tolist() == tokens[:, 1:].tolist()
  with pytest.raises(InversionViewError, match="bos = 'no' must be"):
    load_target(folder, bos="no")
  with pytest.raises(InversionViewError, match="leave bos= out"):
    load_target("addition", bos=False)
