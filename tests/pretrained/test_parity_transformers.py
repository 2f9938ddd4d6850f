"""Hugging Face checkpoints of every family: the same numbers as transformers, and a refusal of what would not give them.

The numbers in tests/golden were computed by transformers (tests/parity/make_golden.py); fresh ones are where torch is
installed.
"""

import json
import os
import pathlib
import pickle
import re
import runpy
import secrets
import shutil

import numpy as np
import pytest
import safetensors.numpy

from inversionview_jax import targets
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.layers import norm
from inversionview_jax.pretrained import checkpoint, rotary

HERE = pathlib.Path(__file__).parent.parent
GOLDEN = HERE / "golden"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOLERANCE = 1e-4

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def assert_close(got, expected):
  np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=TOLERANCE)


def less_mean(array):
  return np.asarray(array) - np.mean(array, axis=-1, keepdims=True)


def assert_same_as_transformers(folder, expected):
  """Logits and residual stream of the checkpoint in `folder`, under the conventions that it has."""
  layers = len(expected["hidden_states"]) - 1
  raw = targets.load_target(folder, convention="raw")
  posts, mids = ([f"x{layer}.{kind}" for layer in range(layers)] for kind in ("post", "mid"))
  if raw.config.parallel:  # nothing lies between attention and MLP
    with pytest.raises(InversionViewError, match="x0.mid.*same residual stream"):
      raw.site("x0.mid")
    mids = []
  names = ["x0.pre", *posts, *mids]
  run = raw.run(expected["tokens"], capture=names)
  assert_close(run.logits, expected["logits"])
  # transformers returns the last hidden state behind the final norm.
  final = norm(raw.config).apply({"params": raw.params["ln_f"]}, run[posts[-1]])
  for got, hidden in zip([*(run[name] for name in names[:layers]), final], expected["hidden_states"], strict=True):
    assert_close(got, hidden)
  for name, mid in zip(mids, expected.get("mid", ()), strict=True):
    assert_close(run[name], mid)
  if "short_logits" in expected:  # longrope: other frequencies
    short = expected["short_logits"]
    assert np.abs(short - expected["logits"][:, : short.shape[1]]).max() > 100 * TOLERANCE
    assert_close(raw.run(expected["tokens"][:, : short.shape[1]]).logits, short)

  if raw.config.norm == "rms":
    with pytest.raises(InversionViewError, match="RMSNorm"):
      targets.load_target(folder, convention="centered")
    return
  centered = targets.load_target(folder, convention="centered").run(expected["tokens"], capture=names)
  assert_close(less_mean(centered.logits), less_mean(expected["logits"]))
  for name in names:  # what is centred over D is the residual stream less its mean, which LayerNorm never saw
    assert_close(centered[name], less_mean(run[name]))


def configs(gpt2):
  attributes = [json.loads((GOLDEN / name / "config.json").read_text()) for name in NAMES]
  return [config for config in attributes if (config["model_type"] in ("gpt2", "gpt_neo")) == gpt2]


def test_there_are_golden_gpt2_checkpoints_of_each_variant():
  attributes = [c for c in configs(gpt2=True) if c["model_type"] == "gpt2"]
  assert {c["activation_function"] for c in attributes} == {"gelu_new", "gelu", "relu", "quick_gelu"}
  assert (
    {c["tie_word_embeddings"] for c in attributes} == {c["scale_attn_weights"] for c in attributes} == {True, False}
  )
  assert {bool(c["n_inner"]) for c in attributes} == {True, False}
  assert {c["layer_norm_epsilon"] for c in attributes} == {1e-5, 1e-3}


def test_there_are_golden_checkpoints_of_every_family_attention_and_scaling():
  attributes = configs(gpt2=False)
  known = {name for family in checkpoint.FAMILIES for name in family.model_types}
  assert {c["model_type"] for c in attributes} == known - {"gpt2", "gpt_neo", "gemma3"}  # gemma3 holds gemma3_text
  shared = {c["num_attention_heads"] / c.get("num_key_value_heads", c["num_attention_heads"]) for c in attributes}
  assert {1, 4} < shared and any(1 < share < 4 for share in shared)  # full, multi-query, grouped
  ropes = [c["rope_parameters"] for c in attributes]
  assert {rope.get("full_attention", rope)["rope_type"] for rope in ropes} == set(rotary.KINDS)
  assert {bool(c.get("sliding_window")) for c in attributes} == {True, False}
  assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 2 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_golden_checkpoint_gives_the_logits_and_hidden_states_of_transformers(name):
  with np.load(GOLDEN / name / "expected.npz") as expected:
    assert_same_as_transformers(GOLDEN / name, dict(expected))


@pytest.mark.parametrize("name", NAMES)
def test_fresh_random_checkpoint_gives_the_logits_and_hidden_states_of_transformers(tmp_path, name):
  pytest.importorskip("torch")
  pytest.importorskip("transformers")
  golden = runpy.run_path(str(HERE / "parity" / "make_golden.py"))
  seed = secrets.randbelow(2**31)
  print("seed", seed)  # shown if this fails
  # Of a size that the golden one does not have, with weights that do not drive activations beyond float32's fourth digit.
  shape = golden["CHECKPOINTS"][name] | {"vocab_size": 29, "initializer_range": 0.2}
  model = golden["random_model"](seed, **shape)
  model.save_pretrained(tmp_path)
  assert_same_as_transformers(tmp_path, golden["expected"](model, golden["random_tokens"](seed, model.config)))


@pytest.fixture
def copied(tmp_path):
  """A checkpoint that may be damaged."""
  folder = tmp_path / "checkpoint"
  shutil.copytree(GOLDEN / "default", folder)
  return folder


def change_config(folder, remove=(), **changes):
  config = json.loads((folder / "config.json").read_text())
  config = {key: value for key, value in (config | changes).items() if key not in remove}
  (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder, change):
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  change(tensors)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")


def refusal(folder) -> str:
  with pytest.raises(InversionViewError) as caught:
    targets.load_target(folder)
  message = str(caught.value)
  assert "\n" not in message
  return message


@pytest.mark.parametrize(
  "attribute, value",
  [
    ("add_cross_attention", True),
    ("model_type", "bert"),
    ("rope_theta_squared", 3),
    ("activation_function", "prelu"),
    ("quantization_config", {"bits": 4}),
    ("pruned_heads", {"0": [1]}),
  ],
)
def test_config_attribute_that_is_not_handled_is_refused_by_name_and_value(copied, attribute, value):
  targets.load_target(copied)
  change_config(copied, **{attribute: value})
  message = refusal(copied)
  assert attribute in message and repr(value) in message and "config.json" in message


@pytest.mark.parametrize("attribute", ["n_embd", "n_layer", "n_head", "n_positions", "vocab_size"])
def test_config_without_a_size_is_refused_by_name(copied, attribute):
  change_config(copied, remove=[attribute])
  assert attribute in refusal(copied)


def test_width_that_heads_do_not_divide_is_refused_by_name(copied):
  change_config(copied, n_head=5)
  message = refusal(copied)
  assert "n_head" in message and "n_embd" in message


@pytest.mark.parametrize("content", ['{"model_type": "gpt2", "n_emb', "[]", "\x00"])
def test_config_that_is_no_json_object_is_refused(copied, content):
  (copied / "config.json").write_text(content)
  assert "config.json" in refusal(copied)


def test_attributes_that_do_not_change_the_forward_pass_are_accepted(copied):
  before = targets.load_target(copied)
  change_config(
    copied, _name_or_path="somewhere", resid_pdrop=0.5, summary_type="mean", use_cache=False, pruned_heads={}
  )
  after = targets.load_target(copied)
  assert (after.fingerprint, after.config) == (before.fingerprint, before.config)


@pytest.mark.parametrize(
  "name",
  [
    "transformer.h.1.attn.c_attn.bias",
    "transformer.h.0.mlp.c_fc.weight",
    "transformer.ln_f.weight",
    "transformer.wpe.weight",
  ],
)
def test_missing_tensor_is_named(copied, name):
  change_tensors(copied, lambda tensors: tensors.pop(name))
  assert re.search(rf"tensor {re.escape(name.removeprefix('transformer.'))} is missing", refusal(copied))


def test_missing_unembedding_of_an_untied_model_is_named(copied):
  change_config(copied, tie_word_embeddings=False)
  assert "lm_head.weight is missing" in refusal(copied)


def test_tensor_of_another_shape_is_named_with_both_shapes(copied):
  def change(tensors):
    tensors["transformer.h.0.attn.c_proj.weight"] = tensors["transformer.h.0.attn.c_proj.weight"][:, :-1].copy()

  change_tensors(copied, change)
  message = refusal(copied)
  assert all(part in message for part in ("h.0.attn.c_proj.weight", "(32, 31)", "(32, 32)"))


def test_names_without_the_transformer_prefix_are_the_same_model(copied):
  before = targets.load_target(copied).fingerprint
  content = safetensors.numpy.load_file(copied / "model.safetensors")
  shorter = {name.removeprefix("transformer."): value for name, value in content.items()}
  assert not set(shorter) & set(content)
  safetensors.numpy.save_file(shorter, copied / "model.safetensors")
  assert targets.load_target(copied).fingerprint == before


@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_truncated_weights_are_refused(copied, kept):
  path = copied / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  message = refusal(copied)
  assert "model.safetensors" in message and "truncated" in message


def test_missing_weights_are_named(copied):
  (copied / "model.safetensors").unlink()
  assert "model.safetensors is missing" in refusal(copied)


class _Trap:
  """Whoever unpickles this makes a folder."""

  def __init__(self, folder):
    self.folder = folder

  def __reduce__(self):
    return os.mkdir, (str(self.folder),)


def test_pickled_weights_are_refused_and_not_opened(copied, tmp_path):
  (copied / "model.safetensors").unlink()
  (copied / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(tmp_path / "opened")))
  message = refusal(copied)
  assert "pickled" in message and "safe_serialization" in message
  assert not (tmp_path / "opened").exists()


def test_folder_without_any_model_is_refused_naming_the_files_of_one(tmp_path):
  message = refusal(tmp_path)
  assert "config.json" in message and "model.json" in message
