"""Finished models on disk: what is read is what was written, and nothing else is read."""

import importlib.resources
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.targets import Target, load_target, save_target, shipped_names

TOKENIZER = tasks.get("addition").tokenizer
# Nothing here is a default, so that a forgotten attribute is noticed.
CONFIG = TransformerConfig(
  vocab_size=15,
  n_ctx=14,
  n_layers=2,
  n_heads=2,
  d_model=8,
  d_mlp=12,
  activation="relu",
  norm_eps=1e-3,
  tied=False,
  attn_scale=False,
)


@pytest.fixture(scope="module")
def params():
  shapes = jax.eval_shape(lambda: Transformer(CONFIG).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


@pytest.fixture
def folder(tmp_path, params):
  """A saved model that may be damaged."""
  save_target(tmp_path / "model", params, CONFIG, TOKENIZER, "small", "addition", {"accuracy": 0.5})
  return tmp_path / "model"


def assert_same_tree(one, another):
  jax.tree.map(np.testing.assert_array_equal, one, another)


def change_json(folder, **changes):
  path = folder / "model.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(name) -> str:
  with pytest.raises(InversionViewError) as caught:
    load_target(name)
  message = str(caught.value)
  assert "\n" not in message
  return message


def test_loaded_target_is_the_saved_one(folder, params):
  target = load_target(folder, convention="raw")
  assert_same_tree(target.params, params)
  assert (target.config, target.tokenizer, target.convention) == (CONFIG, TOKENIZER, "raw")
  assert (target.name, target.task) == ("small", "addition")
  assert (
    target.fingerprint
    == storage.fingerprint(params, CONFIG.non_defaults())
    == Target.from_raw(params, CONFIG).fingerprint
  )
  assert storage.read_description(folder)["notes"] == {"accuracy": 0.5}


def test_convention_is_applied_on_loading_and_does_not_change_the_fingerprint(folder, params):
  target = load_target(folder)
  assert target.convention == "centered"
  assert_same_tree(target.params, Target.from_raw(params, CONFIG).params)
  before, after = (np.abs(np.asarray(tree["embed"]).mean(axis=-1)).max() for tree in (params, target.params))
  assert after < 1e-6 < before
  assert target.fingerprint == load_target(folder, convention="raw").fingerprint


def test_target_without_a_tokenizer_takes_the_one_given_on_loading(tmp_path, params):
  save_target(tmp_path, params, CONFIG, None)
  assert load_target(tmp_path).tokenizer is None
  assert load_target(tmp_path, tokenizer=TOKENIZER).tokenizer == TOKENIZER


def test_raw_target_saves_itself_and_a_centered_one_refuses(folder, tmp_path):
  load_target(folder, convention="raw").save(tmp_path / "again")
  assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
  assert load_target(tmp_path / "again").fingerprint == load_target(folder).fingerprint
  with pytest.raises(InversionViewError, match="raw"):
    load_target(folder).save(tmp_path / "centered")
  assert not (tmp_path / "centered").exists()


def test_workdir_is_loaded_by_its_target(tmp_path, params):
  save_target(tmp_path / "work" / "target", params, CONFIG, TOKENIZER)
  assert load_target(tmp_path / "work").fingerprint == storage.fingerprint(params, CONFIG.non_defaults())


def test_flatten_and_unflatten_are_inverse(params):
  flat = storage.flatten(params)
  assert "blocks_1/attn/q/kernel" in flat
  assert_same_tree(storage.unflatten(flat), params)


def test_fingerprint_distinguishes_values_names_and_shapes(params):
  tree = {"a": np.arange(6, dtype=np.float32), "b": np.zeros(2, np.float32)}
  different = [
    tree,
    {"a": tree["a"] + np.eye(1, 6, dtype=np.float32)[0] * 1e-6, "b": tree["b"]},
    {"a": tree["a"].reshape(2, 3), "b": tree["b"]},
    {"a": tree["a"], "c": tree["b"]},
    {"a": tree["a"].astype(np.float64), "b": tree["b"]},
  ]
  assert len({storage.fingerprint(one, {}) for one in different}) == len(different)
  assert storage.fingerprint(tree, {"n_heads": 2}) != storage.fingerprint(tree, {"n_heads": 4})
  assert storage.fingerprint({"b": tree["b"], "a": jnp.asarray(tree["a"])}, {}) == storage.fingerprint(tree, {})
  table = np.arange(6.0).reshape(2, 3)
  assert storage.fingerprint({"a": np.asfortranarray(table)}, {}) == storage.fingerprint({"a": table}, {})


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_truncated_weights_are_refused(folder, kept):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  message = refusal(folder)
  assert "model.safetensors" in message and "truncated" in message


def test_flipped_byte_in_the_data_is_refused(folder):
  path = folder / "model.safetensors"
  content = bytearray(path.read_bytes())
  first = 8 + int.from_bytes(content[:8], "little")  # behind the header and its length
  for place in (first, (first + len(content)) // 2, -1):
    damaged = content.copy()
    damaged[place] ^= 1
    path.write_bytes(damaged)
    message = refusal(folder)
    assert "model.safetensors" in message and "fingerprint" in message


def test_flipped_byte_in_the_header_is_refused(folder):
  path = folder / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[8] ^= 0xFF
  path.write_bytes(content)
  assert "model.safetensors" in refusal(folder)


def test_weights_of_another_model_are_refused(folder, params, tmp_path):
  save_target(tmp_path / "other", jax.tree.map(lambda leaf: leaf + 1, params), CONFIG, TOKENIZER)
  os.replace(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
  assert "fingerprint" in refusal(folder)


@pytest.mark.parametrize("content", ["", '{"format_version": 1, "kind', "[1]", "null", "\xff\xfe"])
def test_corrupt_description_is_refused(folder, content):
  (folder / "model.json").write_bytes(content.encode("latin-1"))
  assert "model.json" in refusal(folder)


def test_newer_format_is_refused_with_both_versions(folder):
  change_json(folder, format_version=storage.FORMAT_VERSION + 7)
  message = refusal(folder)
  assert str(storage.FORMAT_VERSION + 7) in message and f"reads {storage.FORMAT_VERSION}" in message


@pytest.mark.parametrize(
  "key, named",
  [
    ("kind", "not a target"),
    ("config", "config"),
    ("tokenizer", "tokenizer"),
    ("fingerprint", "fingerprint"),
    ("format_version", "format version"),
  ],
)
def test_description_without_a_needed_part_is_refused(folder, key, named):
  path = folder / "model.json"
  described = json.loads(path.read_text())
  del described[key]
  path.write_text(json.dumps(described))
  assert named in refusal(folder)


@pytest.mark.parametrize(
  "change, named",
  [
    ({"rotary": True}, "rotary"),
    ({"recurrent": True}, "recurrent"),
    ({"activation": "softplus"}, "softplus"),
    ({"norm": "batch"}, "batch"),
  ],
)
def test_config_that_this_version_does_not_know_is_named(folder, change, named):
  described = json.loads((folder / "model.json").read_text())
  change_json(folder, config=described["config"] | change)
  assert named in refusal(folder)


def test_parameter_of_another_shape_is_named(folder):
  described = json.loads((folder / "model.json").read_text())
  change_json(folder, config=described["config"] | {"d_mlp": 13})
  message = refusal(folder)
  assert "mlp/fc" in message and "12" in message and "13" in message


def test_missing_and_unknown_parameters_are_named(folder):
  described = json.loads((folder / "model.json").read_text())
  for layers, name, word in ((3, "blocks_2", "missing"), (1, "blocks_1", "not part of this model")):
    change_json(folder, config=described["config"] | {"n_layers": layers})
    message = refusal(folder)
    assert name in message and word in message


def test_decoder_is_refused_where_a_target_is_wanted(folder):
  change_json(folder, kind="decoder")
  message = refusal(folder)
  assert "'decoder'" in message and "target" in message


def test_tokenizer_of_an_unknown_kind_is_named(folder):
  change_json(folder, tokenizer={"kind": "sentences"})
  assert "sentences" in refusal(folder)


def test_missing_weights_are_named(folder):
  (folder / "model.safetensors").unlink()
  assert "model.safetensors is missing" in refusal(folder)


def test_missing_description_is_named(folder):
  (folder / "model.json").unlink()
  assert "model.json" in refusal(folder)


def test_unknown_name_lists_the_shipped_models(tmp_path, params, monkeypatch):
  for name in ("abacus", "addition"):
    save_target(tmp_path / "shipped" / name, params, CONFIG, TOKENIZER, name)
  monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
  assert shipped_names() == ["abacus", "addition"]
  assert load_target("abacus").name == "abacus"
  message = refusal("no-such-model")
  assert "'no-such-model'" in message and "abacus, addition" in message


def test_file_is_no_target(tmp_path):
  (tmp_path / "file").write_text("")
  assert "is not a model" in refusal(tmp_path / "file")


def test_writing_below_a_regular_file_is_refused_and_leaves_nothing(tmp_path, params):
  (tmp_path / "file").write_text("precious")
  with pytest.raises(InversionViewError) as caught:
    save_target(tmp_path / "file" / "model", params, CONFIG, TOKENIZER)
  message = str(caught.value)
  assert "\n" not in message and str(tmp_path / "file" / "model") in message
  assert [path.name for path in tmp_path.rglob("*")] == ["file"]
  assert (tmp_path / "file").read_text() == "precious"


def test_write_that_fails_half_way_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
  path = tmp_path / "model.json"
  storage.write_whole(path, b"old")

  def full(source, destination):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "replace", full)
  with pytest.raises(InversionViewError, match="No space left"):
    storage.write_whole(path, b"new")
  assert [path.name for path in tmp_path.iterdir()] == ["model.json"]
  assert path.read_bytes() == b"old"


def test_description_is_written_last(tmp_path, params, monkeypatch):
  """So that a folder with a description holds a whole model."""
  written = []
  monkeypatch.setattr(storage, "write_whole", lambda path, content: written.append(path.name))
  save_target(tmp_path, params, CONFIG, TOKENIZER)
  assert written == ["model.safetensors", "model.json"]
