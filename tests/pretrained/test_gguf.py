"""GGUF files: what is loaded is what the Hugging Face folder holds that they were made from; and how much memory loading takes."""

import json
import pathlib
import subprocess
import sys
import textwrap

import gguf
import jax
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import all_parts, copied, refusal, wide_folder, write_gguf

from inversionview_jax.pretrained import rotary

# The golden checkpoints, changed where a GGUF file has no key for an attribute of theirs.
CONVERTIBLE = {
  "default": {},
  "llama": {},
  "llama3": {},
  "mistral": {"sliding_window": None, "rope_parameters": {"rope_theta": 100.0}},
  "qwen2": {"use_sliding_window": False, "rope_parameters": {"rope_theta": 100.0}},
  "qwen3": {},
  "smollm3": {"no_rope_layers": [1, 1, 1]},  # GGUF means every fourth layer
  "gemma": {},
  "gemma2": {"query_pre_attn_scalar": 8},
  "gemma3": {"query_pre_attn_scalar": 8},
}


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_gguf_file_is_the_same_model_as_the_folder_it_was_made_from(tmp_path, name):
  folder = copied(name, tmp_path / "model", **CONVERTIBLE[name])
  config, parts = all_parts(folder)
  divisors = None
  if name == "llama3":  # its scaling goes into a tensor
    theta = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    divisors = np.divide(rotary.frequencies({"rope_theta": theta}, config.d_head, 0, "")[0], config.rotary)
  got_config, got = all_parts(write_gguf(tmp_path / "model.gguf", folder, divisors=divisors))
  np.testing.assert_allclose(got_config.rotary, config.rotary, rtol=1e-6)
  assert got_config.norm_eps == pytest.approx(config.norm_eps, rel=1e-6)
  like = {"rotary": config.rotary, "norm_eps": config.norm_eps}
  assert {**vars(got_config), **like} == {**vars(config), **like}
  if name.startswith("gemma"):  # whose norms are stored as 1 + weight there
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), got, parts)
  else:
    jax.tree.map(np.testing.assert_array_equal, got, parts)


@pytest.mark.parametrize(
  "name, largest", [("F16", 3e-3), ("BF16", 2e-2), ("Q8_0", 2e-2), ("Q4_0", 0.35), ("Q4_1", 0.3)]
)
def test_quantised_numbers_are_near_those_they_were_made_from(tmp_path, name, largest):
  folder = wide_folder(tmp_path / "model")
  parts = all_parts(folder)[1]
  got = all_parts(write_gguf(tmp_path / "model.gguf", folder, gguf.GGMLQuantizationType[name]))[1]
  for block in ("attn", "mlp"):
    gaps = jax.tree.map(lambda one, other: np.abs(one - other).max(), got["blocks_0"][block], parts["blocks_0"][block])
    assert all(0 < gap < largest for gap in jax.tree.leaves(gaps)), gaps
  np.testing.assert_array_equal(got["ln_f"]["scale"], parts["ln_f"]["scale"])


def q4_k_block(scale, smallest, sixes, mins, fours):
  """256 numbers: eight groups of 32 with a six-bit scale and minimum each; value = scale * six * four - smallest * min."""
  packed = np.zeros(12, np.uint8)
  for j in range(4):
    packed[j] = sixes[j] | (sixes[j + 4] >> 4) << 6
    packed[j + 4] = mins[j] | (mins[j + 4] >> 4) << 6
    packed[j + 8] = sixes[j + 4] & 15 | (mins[j + 4] & 15) << 4
  low, high = fours.reshape(4, 2, 32).swapaxes(0, 1)
  head = np.array([scale, smallest], np.float16).view(np.uint8)
  value = np.float16(scale) * np.float32(sixes)[:, None] * fours - np.float16(smallest) * np.float32(mins)[:, None]
  return np.concatenate([head, packed, (low | high << 4).ravel()]), value.ravel()


def q6_k_block(scale, eights, sixes):
  """256 numbers: sixteen groups of 16 with an eight-bit scale each; value = scale * eight * (six - 32)."""
  value = np.float16(scale) * np.float32(np.repeat(eights, 16)) * (sixes.astype(np.float32) - 32)
  low, high = [], []
  for half in sixes.reshape(2, 4, 32):
    low += [half[0] & 15 | (half[2] & 15) << 4, half[1] & 15 | (half[3] & 15) << 4]
    high.append(half[0] >> 4 | half[1] >> 4 << 2 | half[2] >> 4 << 4 | half[3] >> 4 << 6)
  return np.concatenate([*low, *high, eights.view(np.uint8), np.array([scale], np.float16).view(np.uint8)]), value


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_blocks_of_256_numbers_follow_the_format(tmp_path, name):
  folder, rng, rows = wide_folder(tmp_path / "model", width=256), np.random.default_rng(1), []
  for _ in range(11):
    if name == "Q4_K":
      fours = rng.integers(0, 16, (8, 32)).astype(np.uint8)
      rows.append(q4_k_block(0.01, 0.02, *rng.integers(0, 64, (2, 8)).astype(np.uint8), fours))
    else:
      rows.append(
        q6_k_block(0.01, rng.integers(-128, 128, 16).astype(np.int8), rng.integers(0, 64, 256).astype(np.uint8))
      )
  path = write_gguf(tmp_path / "model.gguf", folder)
  reader = gguf.GGUFReader(path)
  writer = gguf.GGUFWriter(tmp_path / "blocks.gguf", "llama")
  for field in reader.fields.values():
    if field.name.startswith("llama."):
      writer.add_key_value(field.name, field.contents(), field.types[0])
  for tensor in reader.tensors:
    blocks, kind = (np.stack([block for block, _ in rows]), gguf.GGMLQuantizationType[name])
    if tensor.name == "token_embd.weight":
      writer.add_tensor(tensor.name, blocks, raw_dtype=kind)
    else:
      writer.add_tensor(tensor.name, np.array(tensor.data))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  embed = all_parts(tmp_path / "blocks.gguf")[1]["embed"]
  np.testing.assert_allclose(embed, np.stack([value for _, value in rows]), rtol=1e-5, atol=1e-6)


def test_quantisation_that_is_not_read_is_named(tmp_path, monkeypatch):
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "model"), gguf.GGMLQuantizationType.Q8_0)

  def unknown(data, kind):
    raise NotImplementedError(kind)

  monkeypatch.setattr(gguf.quants, "dequantize", unknown)
  message = refusal(path)
  assert str(path) in message and "Q8_0" in message and "Q4_K" in message


@pytest.mark.parametrize(
  "change, named",
  [
    (lambda metadata: metadata | {"rope.scaling.attn_factor": 2.0}, "llama.rope.scaling.attn_factor"),
    (lambda metadata: metadata | {"expert_count": 8}, "llama.expert_count = 8"),
    (lambda metadata: metadata | {"rope.dimension_count": 4}, "llama.rope.dimension_count = 4"),
    (lambda metadata: metadata | {"attention.head_count": [4]}, "llama.attention.head_count"),
    (lambda metadata: metadata | {"rope.scaling.type": "longrope"}, "longrope"),
    (lambda metadata: {name: metadata[name] for name in metadata if name != "block_count"}, "num_hidden_layers"),
    (lambda metadata: metadata | {"embedding_length": 16, "attention.key_length": 8}, "embed_tokens.weight"),
  ],
)
def test_gguf_metadata_that_is_not_handled_is_named(tmp_path, change, named):
  message = refusal(write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "model"), change=change))
  assert named in message and "model.gguf" in message


def test_gguf_of_another_architecture_truncated_or_none_at_all_is_named(tmp_path):
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "model"))
  content = path.read_bytes()
  for kept in (0, 3, 100, len(content) // 2, len(content) - 40):
    path.write_bytes(content[:kept])
    message = refusal(path)
    assert str(path) in message and "truncated" in message
  path.write_bytes(b"no such format" * 100)
  assert "GGUF" in refusal(path)
  writer = gguf.GGUFWriter(path, "mamba")
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  message = refusal(path)
  assert "'mamba'" in message and "llama" in message


def test_folder_with_gguf_files_is_refused_naming_one_of_them(tmp_path):
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "other"))
  assert str(path) in refusal(tmp_path)


# Memory.


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_loading_takes_less_memory_than_the_checkpoint_and_a_third(tmp_path, kind):
  """Peak memory of a process that loads a checkpoint of 500 MB, less what one that imports the package takes."""
  if not pathlib.Path("/proc/self/status").exists():
    pytest.skip("no /proc/self/status here, from which peak memory is read")
  width, layers = 1024, 10
  config = {
      "model_type": "llama", "vocab_size": 8192, "hidden_size": width, "intermediate_size": 2752, "num_hidden_layers": layers,
      "num_attention_heads": 16, "num_key_value_heads": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
      "tie_word_embeddings": False, "rope_parameters": {"rope_theta": 100.0},
  }  # fmt: skip
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config))
  shapes = {"model.embed_tokens": (8192, width), "model.norm": (width,), "lm_head": (8192, width)}
  for layer in range(layers):
    own = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (width // 2, width), "self_attn.v_proj": (width // 2, width),
           "self_attn.o_proj": (width, width), "mlp.gate_proj": (2752, width), "mlp.up_proj": (2752, width),
           "mlp.down_proj": (width, 2752), "input_layernorm": (width,), "post_attention_layernorm": (width,)}  # fmt: skip
    shapes |= {f"model.layers.{layer}.{name}": size for name, size in own.items()}
  safetensors.numpy.save_file(
    {f"{name}.weight": np.full(size, 0.01, np.float32) for name, size in shapes.items()}, folder / "model.safetensors"
  )
  path = folder if kind == "safetensors" else write_gguf(tmp_path / "model.gguf", folder)
  size = (folder / "model.safetensors").stat().st_size
  assert 4.5e8 < size < 6e8

  def peak(line):
    script = f"""
      import jax
      import inversionview_jax as iv
      from inversionview_jax.targets import target
      jax.numpy.zeros(1).block_until_ready()
      {line}
      # Not ru_maxrss, which remembers the process that this one was started from.
      print(*(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout.split()[-1])

  taken = peak(f"loaded = iv.load_target({str(path)!r}); jax.block_until_ready(loaded.params)") - peak("import gguf")
  print(f"{kind}: {taken / size:.3f} of {size / 1e6:.0f} MB")
  assert size < taken < 1.3 * size
