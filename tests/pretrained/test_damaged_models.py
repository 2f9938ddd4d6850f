"""Damaged checkpoints: each attribute and each count has a type and a range, checked before anything of its size is made."""

import json
import struct

import gguf
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import copied, refusal, tensors_of, wide_folder, write_gguf

from inversionview_jax.pretrained import gguf_header


@pytest.mark.parametrize(
  "golden, key, value",
  [
    ("default", "n_layer", 10**9),
    ("default", "n_layer", 9999),
    ("default", "n_embd", 10**9),
    ("default", "vocab_size", 10**18),
    ("default", "n_head", 0),
    ("default", "n_head", True),
    ("default", "n_positions", 10**9),
    ("default", "n_inner", "64"),
    ("default", "n_layer", 2.0),
    ("default", "layer_norm_epsilon", float("nan")),
    ("default", "layer_norm_epsilon", "1e-5"),
    ("default", "layer_norm_epsilon", None),
    ("default", "layer_norm_epsilon", -1.0),
    ("default", "tie_word_embeddings", "no"),
    ("default", "tie_word_embeddings", 1),
    ("default", "scale_attn_weights", "false"),
    ("default", "activation_function", []),
    ("default", "activation_function", "swiglu"),
    ("default", "add_cross_attention", "no"),
    ("default", "model_type", ["gpt2"]),
    ("llama", "hidden_size", 10**9),
    ("llama", "num_hidden_layers", 10**9),
    ("llama", "num_attention_heads", 10**9),
    ("llama", "num_key_value_heads", 0),
    ("llama", "head_dim", 10**9),
    ("llama", "rms_norm_eps", float("inf")),
    ("llama", "rope_theta", "10000"),
    ("llama", "rope_scaling", "linear"),
    ("llama", "rope_parameters", {"rope_type": []}),
    ("llama", "rope_parameters", {"rope_theta": float("nan")}),
    ("llama", "attention_bias", "yes"),
    ("llama", "hidden_act", {}),
  ],
)
def test_an_attribute_of_another_type_or_size_is_named_at_once(tmp_path, golden, key, value):
  if golden == "llama":
    folder = wide_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (folder / "config.json").write_text(json.dumps(config))
  else:
    folder = copied(golden, tmp_path / "model", **{key: value})
  message = refusal(folder)
  named = next(iter(value)) if key == "rope_parameters" else key
  assert ("config.json" in message and named in message) or "layers are more than" in message or "layers.1" in message
  assert len(message) < 500


@pytest.mark.parametrize(
  "change, named",
  [
    ({"data_offsets": [-4, 0]}, "data_offsets"),
    ({"data_offsets": [4, 0]}, "data_offsets"),
    ({"data_offsets": [0, 10**18]}, "ends after the file"),
    ({"data_offsets": [0.0, 4.0]}, "data_offsets"),
    ({"data_offsets": "all"}, "data_offsets"),
    ({"data_offsets": [0]}, "data_offsets"),
    ({"shape": [-1]}, "shape"),
    ({"shape": [2**62, 2**62]}, "another size than its shape"),
    ({"shape": None}, "shape"),
    ({"dtype": []}, "dtype"),
    ({"dtype": "I32"}, "I32"),
  ],
)
def test_an_entry_of_a_safetensors_header_that_cannot_be_is_named(tmp_path, change, named):
  folder = copied("default", tmp_path / "model")
  file = folder / "model.safetensors"
  content = file.read_bytes()
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  name = next(name for name in header if name != "__metadata__")
  header[name] |= change
  damaged = json.dumps(header).encode()
  file.write_bytes(len(damaged).to_bytes(8, "little") + damaged + content[8 + length :])
  message = refusal(folder)
  assert named in message and name in message


def test_tensors_that_overlap_are_refused(tmp_path):
  folder = copied("default", tmp_path / "model")
  file = folder / "model.safetensors"
  content = file.read_bytes()
  length = int.from_bytes(content[:8], "little")
  header = json.loads(content[8 : 8 + length])
  first, second = [name for name, entry in header.items() if name.endswith("ln_f.weight") or name.endswith("ln_f.bias")]
  header[first]["data_offsets"] = header[second]["data_offsets"]
  damaged = json.dumps(header).encode()
  file.write_bytes(len(damaged).to_bytes(8, "little") + damaged + content[8 + length :])
  message = refusal(folder)
  assert first in message and second in message and "overlap" in message


@pytest.mark.parametrize(
  "key, value, named",
  [
    ("block_count", 10**9, "llama.block_count"),
    ("block_count", 9999, "layers are more than"),
    ("block_count", "two", "llama.block_count"),
    ("embedding_length", 10**9, "llama.embedding_length"),
    ("attention.head_count", 0, "llama.attention.head_count"),
    ("attention.head_count", True, "llama.attention.head_count"),
    ("attention.key_length", 2**32 - 1, "llama.attention.key_length"),
    ("attention.layer_norm_rms_epsilon", float("nan"), "rms_norm_eps"),
    ("attention.layer_norm_rms_epsilon", "small", "rms_norm_eps"),
    ("attention.causal", 0, "llama.attention.causal"),
    ("rope.freq_base", float("nan"), "rope_theta"),
    ("rope.scaling.type", 5, "rope_type"),
  ],
)
def test_metadata_of_a_gguf_file_of_another_type_or_size_is_named(tmp_path, key, value, named):
  folder = wide_folder(tmp_path / "model")
  message = refusal(write_gguf(tmp_path / "model.gguf", folder, change=lambda metadata: metadata | {key: value}))
  assert named in message and "model.gguf" in message


def test_the_number_of_parts_of_a_gguf_file_is_a_number(tmp_path):
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "llama")
  writer.add_string("split.count", "2")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  assert "split.count = '2'" in refusal(path)


def test_counts_in_the_header_of_a_gguf_file_are_not_looped_over(tmp_path):
  """The gguf package does not see where a file ends, and reads on for every entry of a list."""
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "model"))
  content = path.read_bytes()
  for at in (8, 16):  # the number of tensors, and of keys
    path.write_bytes(content[:at] + struct.pack("<Q", 2**60) + content[at + 8 :])
    assert "too short" in refusal(path)
  key = b"general.x"
  endless = struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + struct.pack("<Q", len(key)) + key
  for kind in (0, 4, 8, 9, 77):
    path.write_bytes(endless + struct.pack("<IIQ", 9, kind, 2**60))
    assert "general.x" in refusal(path)


def test_the_header_of_a_gguf_file_is_what_the_gguf_package_reads(tmp_path):
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "model"))
  header, reader = gguf_header.read(path), gguf.GGUFReader(path)
  fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
  assert {name: value() for name, value in header.metadata.items()} == fields
  assert [(one.name, one.kind, one.shape, one.start) for one in header.tensors] == [
    (one.name, int(one.tensor_type), tuple(reversed(one.shape.tolist())), int(one.data_offset))
    for one in reader.tensors
  ]


def test_a_shard_index_of_another_form_is_named(tmp_path):
  folder = copied("default", tmp_path / "model")
  tensors = tensors_of(folder)
  (folder / "model.safetensors").unlink()
  safetensors.numpy.save_file({name: np.asarray(value) for name, value in tensors.items()}, folder / "one.safetensors")
  index = folder / "model.safetensors.index.json"
  for content in ("[]", "{}", '{"weight_map": 5}', '{"weight_map": {"wte.weight": 7}}', "{", '{"a": 1, "a": 2}'):
    index.write_text(content)
    assert "model.safetensors.index.json" in refusal(folder)
