"""Models of TransformerLens' own: every activation that it caches, and a refusal of what would give others.

The numbers in tests/golden_transformer_lens were computed by TransformerLens 3.9 (tests/parity/make_transformer_lens.py); fresh ones, of other
weights, are where it is installed.
"""

import dataclasses
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
import safetensors.numpy

import inversionview_jax as iv
from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets.edits import CAPTURABLE
from inversionview_jax.tasks import CharTokenizer, Task

HERE = pathlib.Path(__file__).parent.parent
GOLDEN = HERE / "golden_transformer_lens"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
TOLERANCE = 5e-5

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def assert_same_as_transformer_lens(folder, expected):
  """Logits and every cached activation but those of norms inside of attention, and of what goes into the unembedding."""
  target = iv.load_target(folder)
  assert target.convention == "raw"
  other = ("q_norm", "k_norm", "unembed.", "hook_attn_in", "hook_mlp_in")
  names = [name for name in expected if name not in ("tokens", "logits") and not any(word in name for word in other)]
  captured = {name: target.site(name, CAPTURABLE) for name in names}
  assert {site.hook for site in captured.values()} == set(names)
  run = target.run(expected["tokens"], list(captured))
  np.testing.assert_allclose(run.logits, expected["logits"], rtol=0, atol=TOLERANCE)
  for name in names:
    got, want = np.asarray(run[name]), expected[name]
    assert got.shape == want.shape, name
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_every_cached_activation_is_that_of_transformer_lens(name):
  with np.load(GOLDEN / name / "expected.npz") as file:
    assert_same_as_transformer_lens(GOLDEN / name, dict(file))


def test_every_cached_activation_live(tmp_path):
  pytest.importorskip("transformer_lens")
  own = runpy.run_path(str(HERE / "parity" / "make_transformer_lens.py"))
  for number, (name, settings) in enumerate(own["VARIANTS"].items()):
    model, tokens, logits, cache = own["make"](settings, seed=1 + number)
    own["write"](tmp_path / name, model)
    assert_same_as_transformer_lens(tmp_path / name, {"tokens": tokens, "logits": logits, **cache})


def test_sites_that_a_model_of_attention_only_does_not_have():
  target = iv.load_target(GOLDEN / "attn_only")
  for name in ("x0.mid", "m1", "blocks.0.mlp.hook_post"):
    with pytest.raises(InversionViewError, match="attention only"):
      target.site(name)
  with pytest.raises(InversionViewError, match="no norm"):
    target.site("ln_final")
  parts = iv.attribute(target, np.array([[1, 2, 3]]))
  assert "m0" not in parts.components and "a1.1" in parts.components
  np.testing.assert_allclose(parts.values.sum(axis=1), parts.logits, atol=1e-4)


def test_logits_of_other_things_than_tokens(tmp_path):
  target = iv.load_target(GOLDEN / "no_norm")
  assert target.run(np.array([[1, 2]])).logits.shape == (1, 2, 3)
  assert iv.attribute(target, np.array([[1, 2]])).logits.shape == (1, 3)
  with pytest.raises(InversionViewError, match="token id 3 is outside the vocabulary of 3"):
    iv.attribute(target, np.array([[1, 2]]), tokens=[3])


def test_texts_of_other_lengths_do_not_change_attention_in_both_directions():
  target = iv.load_target(GOLDEN / "ln_solu_both_directions")
  together, alone = (target.run(rows, ["x1.post"]) for rows in ([[1, 2, 3], [4]], [[4]]))
  np.testing.assert_allclose(together["x1.post"][1, :1], alone["x1.post"][0], atol=1e-5)
  masked = target.run(np.array([[4, 0, 0]]), ["x1.post"], mask=np.array([[1, 0, 0]]))
  np.testing.assert_allclose(masked["x1.post"][0, :1], alone["x1.post"][0], atol=1e-5)
  edit = iv.Edit("x0.post", position=2, value=np.ones(12, np.float32))
  base, edited = (target.run(np.array([[1, 2, 3]]), ["x1.post"], edits=edits) for edits in ([], [edit]))
  assert (np.abs(np.asarray(edited["x1.post"]) - np.asarray(base["x1.post"]))[0, 0] > 1e-3).any()  # backwards, too


class Pairs(Task):
  """Two symbols "ab" without BOS in the model's own vocabulary, which has no special tokens."""

  tokenizer = CharTokenizer((*"abcdefg", "<BOS>", "<EOS>", "<PAD>"))
  length, num_inputs, enumerable = 4, 49, True

  def tokens(self, index):
    index, t = np.asarray(index), self.tokenizer
    special = [np.full(len(index), token) for token in (t.eos_id, t.pad_id)]
    return np.stack([index // 7, index % 7, *special], axis=1).astype(np.int32)

  def loss_mask(self, tokens):
    return tokens.__array_namespace__().zeros(tokens.shape, bool)


def test_a_model_without_special_tokens_is_read_with_a_task_that_has_them():
  task = Pairs()
  target = iv.load_target(GOLDEN / "ln_solu_both_directions", tokenizer=task.tokenizer)
  plain = iv.load_target(GOLDEN / "ln_solu_both_directions")
  tokens = task.tokens(np.arange(49))
  run, alone = target.run(tokens, ["a0.1"]), plain.run(tokens[:, :2], ["a0.1"])
  np.testing.assert_allclose(run["a0.1"][:, :2], alone["a0.1"], atol=1e-5)  # EOS and PAD are not seen
  np.testing.assert_allclose(run.logits[:, :2], alone.logits, atol=1e-5)
  with pytest.raises(InversionViewError, match="the tokenizer has 11 tokens but the model 7"):
    iv.load_target(GOLDEN / "attn_only", tokenizer=CharTokenizer((*"abcdefgh", "<BOS>", "<EOS>", "<PAD>")))


def changed(tmp_path, name, **settings):
  folder = tmp_path / "model"
  shutil.copytree(GOLDEN / name, folder)
  attributes = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(attributes | settings))
  return folder


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"positional_embedding_type": "shortformer"}, "positional_embedding_type = 'shortformer' is not handled"),
    ({"positional_embedding_type": "alibi"}, "positional_embedding_type = 'alibi' is not handled"),
    ({"act_fn": "xielu"}, "act_fn = 'xielu' is not handled"),
    ({"normalization_type": "Batch"}, "normalization_type = 'Batch'"),
    ({"num_experts": 4}, "num_experts = 4 is not handled"),
    ({"post_embedding_ln": True}, "post_embedding_ln = True is not handled"),
    ({"use_qk_norm": True}, "use_qk_norm = true is handled with normalization_type RMS"),
    ({"something_new": 3}, "attribute something_new = 3 is not handled"),
    ({"d_vocab_out": 5}, r"tensor unembed.W_U has shape \(12, 7\), expected \(12, 5\)"),
    ({"n_layers": 10**9}, "n_layers"),
    ({"eps": float("nan")}, "eps"),
    ({"attention_dir": "sideways"}, "attention_dir = 'sideways'"),
    ({"use_local_attn": True, "window_size": 2}, "attn_types"),
  ],
)
def test_what_would_compute_something_else_is_refused_by_name(tmp_path, settings, message):
  with pytest.raises(InversionViewError, match=message) as caught:
    iv.load_target(changed(tmp_path, "ln", **settings))
  assert "config.json" in str(caught.value) or "model" in str(caught.value)


def test_other_refusals(tmp_path):
  with pytest.raises(InversionViewError, match="'centered'.*taken as they are"):
    iv.load_target(GOLDEN / "ln", convention="centered")
  folder = changed(tmp_path, "rms_gated_grouped")
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  weights["blocks.1.mlp.b_in"] += 1
  safetensors.numpy.save_file(weights, folder / "model.safetensors")
  with pytest.raises(InversionViewError, match="blocks.1.mlp.b_in is not zero"):
    iv.load_target(folder)


def test_attributes_that_are_left_out_have_their_defaults(tmp_path):
  folder = changed(tmp_path, "ln")
  attributes = json.loads((folder / "config.json").read_text())
  needed = {"d_model", "d_head", "n_heads", "n_layers", "n_ctx", "d_vocab", "d_mlp", "act_fn", "eps", "use_attn_scale"}
  (folder / "config.json").write_text(json.dumps({name: attributes[name] for name in needed}))
  few, all_of = iv.load_target(folder), iv.load_target(GOLDEN / "ln")
  assert few.config == all_of.config and few.fingerprint == all_of.fingerprint


def test_texts_without_bos(tmp_path):
  from small_models import tokenizer_json

  folder = changed(tmp_path, "no_norm", d_vocab=300)
  weights = safetensors.numpy.load_file(folder / "model.safetensors")
  weights["embed.W_E"] = np.random.default_rng(0).normal(size=(300, 12)).astype(np.float32)
  safetensors.numpy.save_file(weights, folder / "model.safetensors")
  (folder / "tokenizer.json").write_text(tokenizer_json(["a b c d"] * 50, vocabulary=260))
  (folder / "tokenizer_config.json").write_text(
    json.dumps(
      {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    )
  )
  target = iv.load_target(folder)
  assert target.encode(["a b"]).tolist() == [target.tokenizer.encode("a b")]
  with_bos = dataclasses.replace(target, tokenizer=dataclasses.replace(target.tokenizer, prepends_bos=True))
  assert with_bos.encode(["a b"])[0, 0] == target.tokenizer.bos_id


def test_first_layers():
  whole, first = (iv.load_target(GOLDEN / "ln", layers=layers) for layers in (None, 1))
  tokens = np.array([[1, 2, 3]])
  np.testing.assert_array_equal(first.run(tokens, ["x0.post"])["x0.post"], whole.run(tokens, ["x0.post"])["x0.post"])
  assert sites.parse("x0.post") and not first.has_logits
