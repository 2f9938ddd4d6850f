"""Hugging Face folders: shards, types of numbers, attributes of a config.json. (Parity with transformers has a file of its own.)"""

import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import GOLDEN, all_parts, copied, refusal, tensors_of

from inversionview_jax import cli
from inversionview_jax.pretrained import rotary

# Safetensors.


@pytest.fixture
def sharded(tmp_path):
  """The golden llama checkpoint in two shards."""
  folder = copied("llama", tmp_path / "sharded")
  tensors = tensors_of(folder)
  (folder / "model.safetensors").unlink()
  names = sorted(tensors)
  shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
  for shard, own in shards.items():
    safetensors.numpy.save_file({name: tensors[name] for name in own}, folder / shard)
  index = {"metadata": {"total_size": 1}, "weight_map": {name: shard for shard, own in shards.items() for name in own}}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return folder


def test_shards_are_the_same_model_as_one_file(sharded):
  (config, parts), (whole_config, whole) = all_parts(sharded), all_parts(GOLDEN / "llama")
  assert config == whole_config and jax.tree.structure(parts) == jax.tree.structure(whole)
  jax.tree.map(np.testing.assert_array_equal, parts, whole)


def test_missing_truncated_and_incomplete_shards_are_named(sharded):
  shard = sharded / "model-00002-of-00002.safetensors"
  content = shard.read_bytes()
  for kept in (0, 100, -1):
    shard.write_bytes(content[:kept])
    message = refusal(sharded)
    assert shard.name in message and "truncated" in message
  shard.unlink()
  assert f"{shard.name} is missing" in refusal(sharded)
  tensors = safetensors.numpy.load(content)
  lost = sorted(tensors)[0]
  safetensors.numpy.save_file({name: tensors[name] for name in tensors if name != lost}, shard)
  message = refusal(sharded)
  assert shard.name in message and lost in message


@pytest.mark.parametrize("content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', "{}"])
def test_damaged_index_is_named(sharded, content):
  (sharded / "model.safetensors.index.json").write_text(content)
  assert "model.safetensors.index.json" in refusal(sharded)


def test_index_names_no_file_outside_of_its_folder(sharded):
  index = json.loads((sharded / "model.safetensors.index.json").read_text())
  shutil.copytree(GOLDEN / "llama", sharded.parent / "elsewhere")
  index["weight_map"] = {name: "../elsewhere/model.safetensors" for name in index["weight_map"]}
  (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
  assert "model.safetensors is missing" in refusal(sharded)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_numbers_of_other_types_become_float32(tmp_path, dtype):
  folder = copied("llama3", tmp_path / "model")
  rounded = {name: value.astype(dtype) for name, value in tensors_of(folder).items()}
  safetensors.numpy.save_file(rounded, folder / "model.safetensors")
  parts = all_parts(folder)[1]
  assert {leaf.dtype for leaf in jax.tree.leaves(parts)} == {np.dtype(np.float32)}
  kernel = rounded["model.layers.1.mlp.up_proj.weight"].astype(np.float32).T
  np.testing.assert_array_equal(parts["blocks_1"]["mlp"]["fc"]["kernel"], kernel)


def test_type_that_is_no_floating_point_number_is_named(tmp_path):
  folder = copied("llama3", tmp_path / "model")
  tensors = tensors_of(folder)
  tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.int8)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  message = refusal(folder)
  assert (
    "model.norm.weight" in message.replace("tensor norm", "tensor model.norm") and "I8" in message and "BF16" in message
  )


# Attributes of a config.json.


@pytest.mark.parametrize(
  "name, change",
  [
    ("llama", {"rope_interleaved": True}),
    ("llama", {"sliding_window": 4}),
    ("llama", {"hidden_act": "xielu"}),
    ("llama", {"quantization_config": {"bits": 4}}),
    ("llama", {"num_experts": 8}),
    ("llama", {"per_layer_config": {"0": {"hidden_act": "relu"}}}),
    ("llama", {"model_type": "bloom"}),
    ("llama", {"num_key_value_heads": 3}),
    ("gemma", {"use_bidirectional_attention": True}),
    ("gemma", {"attn_logit_softcapping": 50.0}),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention"]}),
    ("smollm3", {"no_rope_layers": [1]}),
  ],
)
def test_attribute_that_is_not_handled_is_refused_by_name(tmp_path, name, change):
  all_parts(copied(name, tmp_path / "whole"))
  message = refusal(copied(name, tmp_path / "changed", **change))
  ((attribute, value),) = change.items()
  assert attribute in message and "config.json" in message
  assert any(str(part) in message for part in (value if isinstance(value, list) else [value])) or "1 entries" in message


@pytest.mark.parametrize(
  "rope, named",
  [
    ({"rope_type": "proportional", "factor": 2.0}, "proportional"),
    ({"rope_type": "longrope", "factor": 2.0}, "longrope"),
    ({"rope_type": "linear"}, "factor"),
    ({"rope_type": "linear", "factor": 2.0, "low_freq_factor": 1.0}, "low_freq_factor"),
    ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_type": "linear", "factor": 0.0}, "linear"),
    (7, "7"),
  ],
)
def test_rotary_scaling_that_is_not_handled_is_refused_by_name(tmp_path, rope, named):
  assert named in refusal(copied("llama", tmp_path / "model", remove=["rope_parameters"], rope_scaling=rope))


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": "2"}, {"hidden_size": 24.5}, {"vocab_size": None}, {"num_attention_heads": 0}, {"num_attention_heads": -4},
     {"rms_norm_eps": "small"}, {"model_type": ["llama"]}, {"head_dim": "wide"}],
)  # fmt: skip
def test_number_that_is_none_is_refused_in_one_line(tmp_path, change):
  assert "config.json" in refusal(copied("llama", tmp_path / "model", **change))


@pytest.mark.parametrize(
  "attribute", ["hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings"]
)
def test_missing_size_is_named(tmp_path, attribute):
  assert f"{attribute} is missing" in refusal(copied("qwen3", tmp_path / "model", remove=[attribute]))


def test_older_spelling_of_rotary_attributes_is_the_same_model(tmp_path):
  rope = json.loads((GOLDEN / "llama3" / "config.json").read_text())["rope_parameters"]
  theta, kind = rope.pop("rope_theta"), rope.pop("rope_type")
  older = copied(
    "llama3", tmp_path / "model", ["rope_parameters"], rope_theta=theta, rope_scaling={"type": kind, **rope}
  )
  assert all_parts(older)[0] == all_parts(GOLDEN / "llama3")[0]


def test_windows_no_shorter_than_the_context_and_windows_not_in_use_are_none(tmp_path):
  assert all_parts(GOLDEN / "mistral")[0].windows == (4, 4)
  assert all_parts(copied("mistral", tmp_path / "long", sliding_window=12))[0].windows == ()
  assert all_parts(copied("mistral", tmp_path / "none", sliding_window=None))[0].windows == ()
  assert all_parts(GOLDEN / "qwen2")[0].windows == (0, 5)
  assert all_parts(copied("qwen2", tmp_path / "unused", use_sliding_window=False))[0].windows == ()
  assert all_parts(copied("qwen2", tmp_path / "older", remove=["layer_types"]))[0].windows == (0, 5)


def test_llama3_scaling_keeps_fast_frequencies_and_divides_slow_ones():
  rope = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}  # fmt: skip
  scaled, gain = rotary.frequencies(rope, 128, 131072, "")
  plain, _ = rotary.frequencies({"rope_theta": 500000.0}, 128, 131072, "")
  ratio = np.array(plain) / np.array(scaled)
  wavelength = 2 * np.pi / np.array(plain)
  np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1)
  np.testing.assert_allclose(ratio[wavelength > 8192], 8, rtol=1e-6)
  between = ratio[(wavelength > 8192 / 4) & (wavelength < 8192)]
  assert len(between) and (np.diff(between) > 0).all() and 1 < between.min() < between.max() < 8 and gain == 1.0


# The command line.


def without_weights(folder):
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncated(folder):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
  "damage, named", [(without_weights, "pickled"), (truncated, "truncated"), (lambda folder: None, "15 tokens")]
)
def test_command_line_prints_one_line_for_a_checkpoint_that_cannot_be_read(tmp_path, capsys, damage, named):
  folder = copied("llama", tmp_path / "model")
  damage(folder)
  config = GOLDEN.parent.parent / "configs" / "addition.py"
  argv = ["train", "--config", f"{config}:tiny", "--workdir", str(tmp_path / "work"), "--target", str(folder)]
  assert cli.main(argv) == 2
  out, error = capsys.readouterr()
  assert out == "" and error.count("\n") == 1 and error.startswith("inversionview: ") and named in error
