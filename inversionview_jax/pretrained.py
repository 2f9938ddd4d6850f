"""Hugging Face GPT-2 checkpoints -> parameters of `Transformer`, and the two conventions for them.

"raw" leaves the weights as they are. "centered" is what TransformerLens does on loading, and what the published distances are measured
on: LayerNorm is folded into the weights that read from it, everything that writes to the residual stream is centred over D, the
unembedding is centred over V, and value biases move into b_O (so that a head's write has no constant part). The logits stay the same
up to a constant per position; activations, and so distances, do not.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np

from inversionview_jax import checkpoint
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.transformer import ACTIVATIONS, TransformerConfig

CONVENTIONS = ("centered", "raw")

# What a GPT-2 config.json may say. Attributes of training, of generation and of bookkeeping do not change the forward pass.
_SHAPE = {
  "vocab_size",
  "n_positions",
  "n_ctx",
  "n_embd",
  "n_layer",
  "n_head",
  "n_inner",
  "activation_function",
  "layer_norm_epsilon",
  "tie_word_embeddings",
  "scale_attn_weights",
  "attn_pdrop",
  "embd_pdrop",
  "resid_pdrop",
}
_NO_EFFECT = {
  "_name_or_path",
  "architectures",
  "model_type",
  "torch_dtype",
  "dtype",
  "transformers_version",
  "use_cache",
  "initializer_range",
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "reorder_and_upcast_attn",
  "task_specific_params",
  "is_decoder",
  "output_past",
  "_num_labels",
  "id2label",
  "label2id",
  "problem_type",
  "chunk_size_feed_forward",
  "output_attentions",
  "output_hidden_states",
  "return_dict",
  "_attn_implementation_autoset",
  "is_encoder_decoder",
}
_MUST_BE = {
  "scale_attn_by_inverse_layer_idx": (False,),
  "add_cross_attention": (False,),
  "quantization_config": (None,),
  "pruned_heads": ({}, None),
}


def read_gpt2(folder: str | os.PathLike) -> tuple[dict, TransformerConfig]:
  """Reads a Hugging Face GPT-2 checkpoint (config.json + model.safetensors).

  Returns:
    ``(params, config)``: float32 NumPy arrays under the "raw" convention.

  Raises:
    InversionViewError: no such folder, another architecture, a config attribute that is not handled (named), only pickled weights, or
      tensors missing, truncated or of another shape.
  """
  folder = pathlib.Path(folder)
  path = folder / "config.json"
  try:
    said = json.loads(path.read_text())
  except FileNotFoundError:
    raise InversionViewError(
      f"no model in {folder}: neither model.json (ours) nor config.json (Hugging Face) is there"
    ) from None
  except (OSError, ValueError) as error:
    raise InversionViewError(f"cannot read {path}: {error}") from None
  config = config_from_gpt2(said, str(path))
  if not (folder / "model.safetensors").exists() and list(folder.glob("*.bin")):
    raise InversionViewError(
      f"{folder} holds pickled weights, which are never opened; convert them with "
      "transformers' save_pretrained(..., safe_serialization=True)"
    )
  return params_from_gpt2(checkpoint.read_safetensors(folder / "model.safetensors"), config, folder), config


def config_from_gpt2(said: dict, where: str) -> TransformerConfig:
  """config.json -> `TransformerConfig`; raises `InversionViewError` naming an attribute that is not handled."""
  if not isinstance(said, dict):
    raise InversionViewError(f"{where} is damaged or not the configuration of a model")
  if said.get("model_type") != "gpt2":
    raise InversionViewError(f"{where}: model_type {said.get('model_type')!r} is not handled; this version reads gpt2")
  for name, value in said.items():
    if name in _MUST_BE and value not in _MUST_BE[name]:
      raise InversionViewError(f"{where}: {name} = {value!r} is not handled, only {_MUST_BE[name][0]!r}")
    if name not in _SHAPE | _NO_EFFECT | set(_MUST_BE) and not name.startswith("summary_"):
      raise InversionViewError(
        f"{where}: attribute {name} = {value!r} is not handled, so the model might not compute what it says"
      )
  activation = said.get("activation_function", "gelu_new")
  if activation not in ACTIVATIONS:
    raise InversionViewError(
      f"{where}: activation_function = {activation!r} is not handled, only {', '.join(ACTIVATIONS)}"
    )
  try:
    if said["n_embd"] % said["n_head"]:
      raise InversionViewError(f"{where}: n_embd = {said['n_embd']} is not a multiple of n_head = {said['n_head']}")
    return TransformerConfig(
      vocab_size=said["vocab_size"],
      n_ctx=said["n_positions"],
      n_layers=said["n_layer"],
      n_heads=said["n_head"],
      d_model=said["n_embd"],
      d_mlp=said.get("n_inner") or 4 * said["n_embd"],
      activation=activation,
      norm_eps=said.get("layer_norm_epsilon", 1e-5),
      tied=said.get("tie_word_embeddings", True),
      attn_scale=said.get("scale_attn_weights", True),
    )
  except KeyError as error:
    raise InversionViewError(f"{where}: attribute {error.args[0]} is missing") from None


def params_from_gpt2(tensors: dict[str, np.ndarray], config: TransformerConfig, where) -> dict:
  """Hugging Face's tensors -> our tree, float32; names carry "transformer." in some files and not in others."""
  tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
  d, taken = config.d_model, {"lm_head.weight"} if config.tied else set()

  def take(name, *shape):
    taken.add(name)
    if name not in tensors:
      raise InversionViewError(f"{where}: tensor {name} is missing")
    if tensors[name].shape != shape:
      raise InversionViewError(f"{where}: tensor {name} has shape {tensors[name].shape}, expected {shape}")
    return np.asarray(tensors[name], np.float32)

  def norm(name):
    return {"scale": take(f"{name}.weight", d), "bias": take(f"{name}.bias", d)}

  params = {
    "embed": take("wte.weight", config.vocab_size, d),
    "pos_embed": take("wpe.weight", config.n_ctx, d),
    "ln_f": norm("ln_f"),
  }
  for layer in range(config.n_layers):
    h = f"h.{layer}"
    kernels = np.split(take(f"{h}.attn.c_attn.weight", d, 3 * d), 3, axis=1)
    biases = np.split(take(f"{h}.attn.c_attn.bias", 3 * d), 3)
    attn = {name: {"kernel": k, "bias": b} for name, k, b in zip("qkv", kernels, biases, strict=True)}
    attn["o"] = {"kernel": take(f"{h}.attn.c_proj.weight", d, d), "bias": take(f"{h}.attn.c_proj.bias", d)}
    mlp = {
      "fc": {"kernel": take(f"{h}.mlp.c_fc.weight", d, config.d_mlp), "bias": take(f"{h}.mlp.c_fc.bias", config.d_mlp)},
      "proj": {"kernel": take(f"{h}.mlp.c_proj.weight", config.d_mlp, d), "bias": take(f"{h}.mlp.c_proj.bias", d)},
    }
    params[f"blocks_{layer}"] = {"ln1": norm(f"{h}.ln_1"), "attn": attn, "ln2": norm(f"{h}.ln_2"), "mlp": mlp}
  if not config.tied:
    kernel = take("lm_head.weight", config.vocab_size, d).T
    params["unembed"] = {"kernel": kernel, "bias": np.zeros(config.vocab_size, np.float32)}
  # Old files carry the causal mask as "attn.bias" and "attn.masked_bias".
  if surplus := sorted(name for name in set(tensors) - taken if not name.endswith(("attn.bias", "attn.masked_bias"))):
    raise InversionViewError(
      f"{where}: tensor {surplus[0]} has no place in a model of {config.n_layers} layers; is n_layer right?"
    )
  return params


def under_convention(params: dict, config: TransformerConfig, convention: str) -> tuple[dict, TransformerConfig]:
  """Raw parameters -> parameters and configuration under a convention; raises `InversionViewError` for an unknown one."""
  if convention not in CONVENTIONS:
    raise one_of("convention", convention, CONVENTIONS)
  return (params, config) if convention == "raw" else center(params, config)


def center(params: dict, config: TransformerConfig) -> tuple[dict, TransformerConfig]:
  """The "centered" convention (module docstring), computed in float64. The result has an unembedding of its own."""
  wide = _map(params, lambda x: np.asarray(x, np.float64))

  def over_width(x):  # what writes to the residual stream: mean zero over D
    return x - x.mean(axis=-1, keepdims=True)

  def folded(linear, norm):  # what reads from a LayerNorm takes over its scale and bias
    return {
      "kernel": norm["scale"][:, None] * linear["kernel"],
      "bias": linear["bias"] + norm["bias"] @ linear["kernel"],
    }

  plain = {"scale": np.ones(config.d_model), "bias": np.zeros(config.d_model)}
  out = {"embed": over_width(wide["embed"]), "pos_embed": over_width(wide["pos_embed"]), "ln_f": plain}
  for layer in range(config.n_layers):
    block = wide[f"blocks_{layer}"]
    q, k, v = (folded(block["attn"][name], block["ln1"]) for name in "qkv")
    o, proj = block["attn"]["o"], block["mlp"]["proj"]
    attn = {
      "q": q,
      "k": k,
      "v": {"kernel": v["kernel"], "bias": np.zeros_like(v["bias"])},
      "o": {"kernel": over_width(o["kernel"]), "bias": over_width(o["bias"] + v["bias"] @ o["kernel"])},
    }
    mlp = {
      "fc": folded(block["mlp"]["fc"], block["ln2"]),
      "proj": {"kernel": over_width(proj["kernel"]), "bias": over_width(proj["bias"])},
    }
    out[f"blocks_{layer}"] = {"ln1": plain, "attn": attn, "ln2": plain, "mlp": mlp}
  unembed = wide.get("unembed") or {"kernel": wide["embed"].T, "bias": np.zeros(config.vocab_size)}
  out["unembed"] = {name: over_width(value) for name, value in folded(unembed, wide["ln_f"]).items()}
  return _map(out, lambda x: np.asarray(x, np.float32)), dataclasses.replace(config, tied=False)


def _map(tree, function):
  return {key: _map(value, function) if isinstance(value, dict) else function(value) for key, value in tree.items()}
