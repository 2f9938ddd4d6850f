"""The configuration of a `HookedTransformer` of TransformerLens -> `TransformerConfig`; what is not handled is refused by name."""

import math
from collections.abc import Mapping
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import rotary
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled

_MARKS = {"d_model", "d_head", "n_layers", "n_ctx"}  # attributes that every such config.json has, and no other
_NORMS = {"LN": "layer", "LNPre": "layer", "RMS": "rms", "RMSPre": "rms", None: "none"}
_ACTIVATIONS = {
  "relu": "relu",
  "gelu": "gelu",
  "gelu_new": "gelu_new",
  "gelu_fast": "gelu_new",  # the same function, written otherwise
  "gelu_pytorch_tanh": "gelu_new",
  "silu": "silu",
  "relu2": "relu2",
  "solu": "solu",
  "solu_ln": "solu_ln",
}
_POSITIONS = ("standard", "rotary")
_SHAPE = _MARKS | {
  "act_fn",
  "attention_dir",
  "attn_only",
  "attn_scale",
  "attn_scores_soft_cap",
  "attn_types",
  "d_mlp",
  "d_vocab",
  "d_vocab_out",
  "default_prepend_bos",
  "eps",
  "final_rms",
  "gated_mlp",
  "model_type",
  "n_heads",
  "n_key_value_heads",
  "normalization_type",
  "original_architecture",
  "output_logits_soft_cap",
  "parallel_attn_mlp",
  "positional_embedding_type",
  "rotary_adjacent_pairs",
  "rotary_base",
  "rotary_base_local",
  "rotary_dim",
  "rotary_scaling_factor",
  "scale_attn_by_inverse_layer_idx",
  "use_NTK_by_parts_rope",
  "NTK_by_parts_factor",
  "NTK_by_parts_high_freq_factor",
  "NTK_by_parts_low_freq_factor",
  "NTK_original_ctx_len",
  "use_attention_sinks",
  "use_attn_scale",
  "use_local_attn",
  "use_normalization_before_and_after",
  "use_qk_norm",
  "window_size",
}
# Of training, initialization, devices, and of which activations TransformerLens computes one by one.
_NO_EFFECT = {
  "checkpoint_index",
  "checkpoint_label_type",
  "checkpoint_value",
  "decoder_start_token_id",
  "device",
  "dtype",
  "from_checkpoint",
  "init_mode",
  "init_weights",
  "initializer_range",
  "layer_norm_folding",
  "model_name",
  "n_devices",
  "n_params",
  "norm_topk_prob",
  "seed",
  "tie_word_embeddings",
  "tokenizer_name",
  "tokenizer_prepends_bos",
  "train_seq_length",
  "trust_remote_code",
  "ungroup_grouped_query_attention",
  "use_attn_in",
  "use_attn_result",
  "use_hook_mlp_in",
  "use_hook_tokens",
  "use_split_qkv_input",
  "uses_rms_norm",
  "weight_init_mode",
  "yarn_attention_factor",
  "yarn_beta_fast",
  "yarn_beta_slow",
  "yarn_factor",
  "yarn_global_attn_only",
  "yarn_original_max_position_embeddings",
  "yarn_truncate",
}
_MUST_BE: dict[str, tuple] = {
  "clip_qkv": (None,),
  "experts_per_token": (None,),
  "load_in_4bit": (False,),
  "num_experts": (None,),
  "post_embedding_ln": (False,),
  "quantization_method": (None,),
  "relative_attention_max_distance": (None,),
  "relative_attention_num_buckets": (None,),
  "use_dynamic_ntk_rope": (False,),
  "use_logn_attn": (False,),
  "use_yarn_rope": (False,),
}
# Architectures whose names change what TransformerLens computes (norms behind attention and MLP only, one norm over all heads).
_OTHER_FORWARD = ("Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoeForCausalLM")


def describes(attributes: Mapping) -> bool:
  """Whether a config.json is that of a `HookedTransformer`."""
  return "model_type" not in attributes and set(attributes) >= _MARKS


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, `HookedTransformerConfig.to_dict()`.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, _SHAPE | _NO_EFFECT, _MUST_BE)
  read = Attributes(attributes, where)
  if attributes.get("original_architecture") in _OTHER_FORWARD:
    raise InversionViewError(
      f"{where}: original_architecture = {attributes['original_architecture']!r} is not handled; load its Hugging Face checkpoint"
    )
  width, head = read.whole("d_model", 1, MOST_WIDTH), read.whole("d_head", 1, MOST_WIDTH)
  heads = read.whole("n_heads", -1, MOST_WIDTH, -1, null=True)
  layers = read.whole("n_layers", 0, MOST_LAYERS)
  tokens = read.whole("d_vocab", 1, MOST_TOKENS)
  outputs = read.whole("d_vocab_out", -1, MOST_TOKENS, -1, null=True)
  normalization = attributes.get("normalization_type", "LN")
  if normalization not in _NORMS:
    raise InversionViewError(
      f"{where}: normalization_type = {normalization!r} is not handled, only LN, LNPre, RMS, RMSPre and null"
    )
  norm, attn_only = _NORMS[normalization], read.switch("attn_only", False)
  gated = read.switch("gated_mlp", False) and not attn_only
  qk_norm, post_norm = read.switch("use_qk_norm", False), read.switch("use_normalization_before_and_after", False)
  if (qk_norm or post_norm) and norm != "rms":
    which = "use_qk_norm" if qk_norm else "use_normalization_before_and_after"
    raise InversionViewError(
      f"{where}: {which} = true is handled with normalization_type RMS or RMSPre only, not {normalization!r}"
    )
  causal = read.choice("attention_dir", ("causal", "bidirectional"), "causal") == "causal"
  return TransformerConfig(
    vocab_size=tokens,
    n_ctx=read.whole("n_ctx", 1, MOST_CONTEXT),
    n_layers=layers,
    n_heads=heads if heads > 0 else max(1, width // head),
    d_model=width,
    d_mlp=1 if attn_only else read.whole("d_mlp", 1, MOST_INNER, 4 * width, null=True),
    head_width=head,
    n_kv_heads=read.whole("n_key_value_heads", 1, MOST_WIDTH, 0, null=True),
    activation="relu" if attn_only else _ACTIVATIONS[read.choice("act_fn", tuple(_ACTIVATIONS), "relu")],
    norm=norm,
    norm_eps=read.number("eps", 0, 1, 1e-5),
    final_norm="rms" if read.switch("final_rms", False) and norm == "layer" else "",
    pre_norm=norm != "none",
    post_norm=post_norm,
    qk_norm=qk_norm,
    tied=False,
    biases=("q", "k", "v", "o", *(() if gated or attn_only else ("fc",)), *(() if attn_only else ("proj",)), "unembed"),
    gated=gated,
    parallel=read.switch("parallel_attn_mlp", False) and not attn_only,
    attn_only=attn_only,
    causal=causal,
    vocab_out=outputs if outputs > 0 and outputs != tokens else 0,
    attn_scale_by_layer=read.switch("scale_attn_by_inverse_layer_idx", False),
    attn_cap=max(0.0, read.number("attn_scores_soft_cap", -1, 1e9, -1.0, null=True)),
    logit_cap=max(0.0, read.number("output_logits_soft_cap", -1, 1e9, -1.0, null=True)),
    sinks=read.switch("use_attention_sinks", False),
    **_scale(read, head),
    **_positions(read, head, layers, causal, where),
  )


def _scale(read: Attributes, head: int) -> dict[str, Any]:
  """What scores are divided by."""
  if not read.switch("use_attn_scale", True):
    return {"attn_scale": False}
  scale = read.number("attn_scale", -1, 1e6, -1.0, null=True)
  return {} if scale <= 0 or math.isclose(scale, head**0.5, rel_tol=1e-9) else {"query_width": scale**2}


def _positions(read: Attributes, head: int, layers: int, causal: bool, where: str) -> dict[str, Any]:
  """Windows and rotary embeddings."""
  out: dict[str, Any] = {}
  local: tuple[int, ...] = ()
  if read.switch("use_local_attn", False):
    kinds, window = read.read("attn_types", lambda name, value: value), read.whole("window_size", 1, MOST_CONTEXT)
    if not isinstance(kinds, list) or len(kinds) < layers or not set(kinds) <= {"local", "global"}:
      raise InversionViewError(f"{where}: attn_types must hold 'global' or 'local' for each of {layers} layers")
    local = tuple(layer for layer in range(layers) if kinds[layer] == "local")
    if causal:  # TransformerLens has windows in its causal mask only
      out["windows"] = tuple(window if layer in local else 0 for layer in range(layers))
  if read.choice("positional_embedding_type", _POSITIONS, "standard") == "standard":
    return out
  turned = read.whole("rotary_dim", 2, head, head, null=True)
  if turned % 2:
    raise InversionViewError(f"{where}: rotary_dim = {turned} must be even")
  base = read.number("rotary_base", 1, 1e30, 10000.0)
  settings: dict[str, Any] = {"rope_theta": base}
  if read.switch("use_NTK_by_parts_rope", False):
    settings |= {
      "rope_type": "llama3",
      "factor": read.number("NTK_by_parts_factor", 1, 1e6, 8.0),
      "low_freq_factor": read.number("NTK_by_parts_low_freq_factor", 0, 1e6, 1.0),
      "high_freq_factor": read.number("NTK_by_parts_high_freq_factor", 0, 1e6, 4.0),
      "original_max_position_embeddings": read.whole("NTK_original_ctx_len", 1, MOST_CONTEXT, 8192),
    }
  elif (factor := read.number("rotary_scaling_factor", 1e-6, 1e6, 1.0)) != 1.0:
    settings |= {"rope_type": "linear", "factor": factor}
  out["rotary"] = _frequencies(settings, turned, where)
  out["rotary_adjacent"] = read.switch("rotary_adjacent_pairs", False)
  own = read.number("rotary_base_local", 1, 1e30, base, null=True)
  if local and (own != base or settings.get("rope_type") == "linear"):
    out |= {"local_layers": local, "local_rotary": _frequencies({"rope_theta": own}, turned, where)}
  return out


def _frequencies(settings: Mapping, turned: int, where: str) -> tuple[float, ...]:
  return rotary.read(settings, turned, MOST_CONTEXT, where).frequencies
