"""What the tests of checkpoints share: golden folders under other configurations, and a converter to GGUF."""

import json
import pathlib
import shutil

import gguf
import numpy as np
import pytest
import safetensors.numpy

from inversionview_jax import pretrained
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import load_target

GOLDEN = pathlib.Path(__file__).parent / "golden"


def all_parts(path):
  """(config, every parameter) of a checkpoint, without running it."""
  checkpoint = pretrained.open_checkpoint(path)
  return checkpoint.config, {name: checkpoint.parts[name] for name in checkpoint.parts}


def refusal(path) -> str:
  with pytest.raises(InversionViewError) as caught:
    load_target(path)
  message = str(caught.value)
  assert "\n" not in message
  return message


def copied(name, folder, remove=(), **changes):
  """The golden checkpoint with another config.json."""
  shutil.copytree(GOLDEN / name, folder)
  config = json.loads((folder / "config.json").read_text()) | changes
  (folder / "config.json").write_text(json.dumps({key: config[key] for key in config if key not in remove}))
  return folder


def tensors_of(folder):
  return safetensors.numpy.load_file(folder / "model.safetensors")


_NAMES = {
    "llama": {
        "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    },
    "gpt2": {
        "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "lm_head": "output",
    },
}  # fmt: skip
_NAMES["gemma2"] = _NAMES["llama"] | {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_NAMES["gemma3"] = _NAMES["gemma2"]


def interleaved(rows, heads):
  """What llama.cpp's conversion does to W_Q and W_K: of each head, row i of the first half and row i of the second become neighbours."""
  width = len(rows) // heads
  order = [h * width + half * (width // 2) + i for h in range(heads) for i in range(width // 2) for half in (0, 1)]
  return rows[order]


def write_gguf(path, folder, kind=None, change=None, divisors=None):
  """Converts a Hugging Face folder, with matrices quantised as `kind`; `change` edits the metadata before it is written."""
  config = json.loads((folder / "config.json").read_text())
  arch = {"mistral": "llama", "gemma3_text": "gemma3"}.get(config["model_type"], config["model_type"])
  writer = gguf.GGUFWriter(path, arch)
  if arch == "gpt2":
    metadata = {
        "context_length": config["n_positions"], "embedding_length": config["n_embd"], "block_count": config["n_layer"],
        "feed_forward_length": config["n_inner"] or 4 * config["n_embd"], "attention.head_count": config["n_head"],
        "attention.layer_norm_epsilon": config["layer_norm_epsilon"],
    }  # fmt: skip
  else:
    heads, rope = config["num_attention_heads"], config.get("rope_parameters", {})
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    width = config.get("head_dim") or config["hidden_size"] // heads
    metadata = {
        "context_length": config["max_position_embeddings"], "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "rope.freq_base": rope.get("rope_theta", 10000.0),
        "rope.dimension_count": width, "attention.key_length": width, "attention.value_length": width,
        "vocab_size": config["vocab_size"], "expert_count": 0,
    }  # fmt: skip
    if arch == "gemma2":
      metadata |= {"attention.sliding_window": config["sliding_window"],
               "attn_logit_softcapping": config["attn_logit_softcapping"],
               "final_logit_softcapping": config["final_logit_softcapping"]}  # fmt: skip
    if arch == "gemma3":
      metadata |= {"attention.sliding_window": config["sliding_window"], "rope.freq_base_swa": local["rope_theta"],
               "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config["layer_types"]],
               "rope.scaling.type": rope["rope_type"], "rope.scaling.factor": rope["factor"]}  # fmt: skip
  metadata = metadata if change is None else change(metadata)
  for name, value in metadata.items():
    add = {
      bool: writer.add_bool,
      int: writer.add_uint32,
      float: writer.add_float32,
      str: writer.add_string,
      list: writer.add_array,
    }
    add[type(value)](f"{arch}.{name}", value)
  table = _NAMES.get(arch, _NAMES["llama"])
  for name, value in tensors_of(folder).items():
    stem, last = name.removeprefix("model.").removeprefix("transformer.").rsplit(".", 1)
    if stem.startswith(("layers.", "h.")):
      _, layer, stem = stem.split(".", 2)
      named = f"blk.{layer}.{table[stem]}.{last}"
    else:
      named = f"{table[stem]}.{last}"
    if arch.startswith("gemma") and "norm" in named:
      value = 1 + value
    if arch == "gpt2" and value.ndim == 2 and "blk" in named:
      value = value.T
    if arch in ("llama", "smollm3") and stem in ("self_attn.q_proj", "self_attn.k_proj"):
      value = interleaved(value, heads if "q_proj" in stem else config["num_key_value_heads"])
    value = np.ascontiguousarray(value)
    if kind is None or value.ndim == 1:
      writer.add_tensor(named, value)
    elif kind == gguf.GGMLQuantizationType.F16:
      writer.add_tensor(named, value.astype(np.float16))
    else:
      writer.add_tensor(named, gguf.quants.quantize(value, kind), raw_dtype=kind)
  if divisors is not None:
    writer.add_tensor("rope_freqs.weight", np.asarray(divisors, np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def wide_folder(folder, width=32):
  """A llama whose rows are as long as blocks of quantised numbers."""
  rng, k = np.random.default_rng(0), width // 2
  shape = {
      "model.embed_tokens": (11, width), "model.norm": (width,), "input_layernorm": (width,), "post_attention_layernorm": (width,),
      "self_attn.q_proj": (width, width), "self_attn.k_proj": (k, width), "self_attn.v_proj": (k, width),
      "self_attn.o_proj": (width, width), "mlp.gate_proj": (width, width), "mlp.up_proj": (width, width),
      "mlp.down_proj": (width, width),
  }  # fmt: skip
  tensors = {
    (name if name.startswith("model.") else f"model.layers.0.{name}") + ".weight": rng.normal(size=size).astype(
      np.float32
    )
    for name, size in shape.items()
  }
  folder.mkdir()
  config = {
      "model_type": "llama", "vocab_size": 11, "hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1,
      "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8, "rms_norm_eps": 1e-5,
      "tie_word_embeddings": True, "rope_parameters": {"rope_theta": 100.0},
  }  # fmt: skip
  (folder / "config.json").write_text(json.dumps(config))
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return folder
