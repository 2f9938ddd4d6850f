"""The Llama family (Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma): Hugging Face's config.json and tensor names -> ours.

Facts are those of transformers' modelling files, against which tests/test_parity_transformers.py compares every family.
"""

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import rotary
from inversionview_jax.pretrained.attributes import NO_EFFECT, refuse_sizes, refuse_unhandled
from inversionview_jax.pretrained.parts import Leaf

_SHAPE = {
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "num_key_value_heads",
  "head_dim",
  "hidden_act",
  "max_position_embeddings",
  "rms_norm_eps",
  "tie_word_embeddings",
  "rope_theta",
  "rope_scaling",
  "rope_parameters",
}
_BIASES, _WINDOWS = {"attention_bias", "mlp_bias"}, {"sliding_window", "layer_types"}
_QWEN = _WINDOWS | {"use_sliding_window", "max_window_layers"}
_SIZES = (
  "vocab_size",
  "hidden_size",
  "intermediate_size",
  "num_hidden_layers",
  "num_attention_heads",
  "max_position_embeddings",
)
# What each family's config.json may say besides.
FAMILIES = {
  "llama": _BIASES,
  "mistral": {"sliding_window"},
  "qwen2": _QWEN,
  "qwen3": _QWEN | {"attention_bias"},
  "smollm3": _QWEN | _BIASES | {"no_rope_layers", "no_rope_layer_interval"},
  "gemma": {"hidden_activation", "attention_bias"},
  "gemma2": _WINDOWS
  | {
    "hidden_activation",
    "attention_bias",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
  },
}
# Of training, or of how a file was made.
_NO_EFFECT = {"attention_dropout", "pretraining_tp", "is_llama_config"}
_MUST_BE = {
  "rope_interleaved": (False, None),
  "use_bidirectional_attention": (None, False),
  "use_mrope": (False, None),
  "partial_rotary_factor": (1.0, None),
}
# What a family means by leaving an attribute out, where that differs from Llama.
_TIED = {"smollm3", "gemma", "gemma2"}
_THETA = {"smollm3": 2_000_000.0}
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256}
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_new", "gelu_new": "gelu_new", "relu": "relu"}


def config(said: dict, where: str) -> TransformerConfig:
  """config.json -> `TransformerConfig`; raises `InversionViewError` naming an attribute that is missing or not handled."""
  family = said["model_type"]
  refuse_unhandled(said, where, _SHAPE | FAMILIES[family] | _NO_EFFECT | NO_EFFECT, _MUST_BE)
  refuse_sizes(said, where, _SIZES)
  try:
    layers, width, heads = said["num_hidden_layers"], said["hidden_size"], said["num_attention_heads"]
    kv_heads = (said.get if family == "llama" else said.__getitem__)("num_key_value_heads") or heads
    head_width = said.get("head_dim") or _HEAD_DIM.get(family, 0)
    if not head_width and width % heads:
      raise InversionViewError(
        f"{where}: hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and head_dim is not given"
      )
    if heads % kv_heads:
      raise InversionViewError(
        f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {kv_heads}"
      )
    head_width = head_width or width // heads
    frequencies, gain = rotary.frequencies(_rope(said, where), head_width, said["max_position_embeddings"], where)
    gemma = family.startswith("gemma")
    return TransformerConfig(
      vocab_size=said["vocab_size"],
      n_ctx=said["max_position_embeddings"],
      n_layers=layers,
      n_heads=heads,
      d_model=width,
      d_mlp=said["intermediate_size"],
      activation=_activation(said, where),
      norm="rms",
      norm_eps=float(said.get("rms_norm_eps", 1e-6)),
      tied=said.get("tie_word_embeddings", family in _TIED),
      query_width=float(said.get("query_pre_attn_scalar", 256)) if family == "gemma2" else 0.0,
      n_kv_heads=kv_heads if kv_heads != heads else 0,
      head_width=head_width if head_width * heads != width else 0,
      rotary=frequencies,
      rotary_gain=gain,
      unrotated=_unrotated(said, where) if family == "smollm3" else (),
      windows=_windows(said, where),
      biases=_biases(said),
      gated=True,
      qk_norm=family == "qwen3",
      post_norm=family == "gemma2",
      embed_scale=width**0.5 if gemma else 1.0,
      attn_cap=(said.get("attn_logit_softcapping", 50.0) or 0.0) if family == "gemma2" else 0.0,
      logit_cap=(said.get("final_logit_softcapping", 30.0) or 0.0) if family == "gemma2" else 0.0,
    )
  except KeyError as error:
    raise InversionViewError(f"{where}: attribute {error.args[0]} is missing") from None
  except InversionViewError:
    raise
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise InversionViewError(f"{where} is damaged or not the configuration of a model: {error}") from None


def _rope(said: dict, where: str) -> dict:
  """All that is said of rotary embeddings: in "rope_parameters" since transformers 5, in "rope_theta" and "rope_scaling" before."""
  rope = said.get("rope_scaling") or said.get("rope_parameters") or {}
  if not isinstance(rope, dict):
    raise InversionViewError(f"{where}: rope_scaling = {rope!r} is not handled")
  theta = said.get("rope_theta") or _THETA.get(said["model_type"], 10_000.0)
  return {"rope_theta": theta} | rope


def _activation(said: dict, where: str) -> str:
  name = said.get("hidden_act", "silu")
  if said["model_type"].startswith("gemma"):
    # Gemma's "gelu" has always meant the approximation that "hidden_activation" names since.
    name = said.get("hidden_activation") or said.get("hidden_act", "gelu_pytorch_tanh")
    name = "gelu_pytorch_tanh" if name == "gelu" and said.get("hidden_activation") is None else name
  if name not in _ACTIVATIONS:
    raise InversionViewError(f"{where}: hidden_act = {name!r} is not handled, only {', '.join(_ACTIVATIONS)}")
  return _ACTIVATIONS[name]


def _biases(said: dict) -> tuple[str, ...]:
  if said["model_type"] == "qwen2":
    return ("q", "k", "v")
  attention = ("q", "k", "v", "o") if said.get("attention_bias") else ()
  return attention + (("gate", "fc", "proj") if said.get("mlp_bias") else ())


def _unrotated(said: dict, where: str) -> tuple[int, ...]:
  """SmolLM3 turns nothing in every fourth layer."""
  layers, rotates = said["num_hidden_layers"], said.get("no_rope_layers")  # a list of 1 where it does rotate
  if rotates is None:
    interval = said.get("no_rope_layer_interval", 4)
    rotates = [int((layer + 1) % interval != 0) for layer in range(layers)]
  if len(rotates) < layers:
    raise InversionViewError(f"{where}: no_rope_layers has {len(rotates)} entries for {layers} layers")
  return tuple(layer for layer in range(layers) if not rotates[layer])


def _windows(said: dict, where: str) -> tuple[int, ...]:
  """How far back each layer sees; () where no window is shorter than the context."""
  family, layers, window = said["model_type"], said["num_hidden_layers"], said.get("sliding_window")
  if family == "gemma2" and "sliding_window" not in said:
    window = 4096
  if window is None or "sliding_window" not in FAMILIES[family] or window >= said["max_position_embeddings"]:
    return ()
  if family in ("qwen2", "qwen3", "smollm3") and not said.get("use_sliding_window", False):
    return ()
  kinds = said.get("layer_types")
  if kinds is None:
    if family == "gemma2":
      slides = [layer % 2 == 0 for layer in range(layers)]
    elif family == "smollm3":
      slides = [layer in _unrotated(said, where) for layer in range(layers)]
    elif family == "mistral":
      slides = [True] * layers
    else:
      slides = [layer >= said.get("max_window_layers", 28) for layer in range(layers)]
  else:
    for kind in kinds:
      if kind not in ("full_attention", "sliding_attention"):
        raise InversionViewError(f"{where}: layer_types has {kind!r}, which is not handled")
    if len(kinds) != layers:
      raise InversionViewError(f"{where}: layer_types has {len(kinds)} entries for {layers} layers")
    slides = [kind == "sliding_attention" for kind in kinds]
  return tuple(window if slide else 0 for slide in slides) if any(slides) else ()


def layout(config: TransformerConfig, one_plus: bool) -> dict:
  """Where each of our arrays comes from.

  Args:
    config: of the model.
    one_plus: norms multiply by 1 + weight (Gemma).
  """
  d, m, k, c = config.d_model, config.d_mlp, config.d_head, config

  def norm(name, width=d):
    return {"scale": Leaf(f"{name}.weight", (width,), (lambda x: 1 + x) if one_plus else (lambda x: x))}

  def linear(ours, name, into, out):  # [out, in] in the checkpoint
    leaf = {"kernel": Leaf(f"{name}.weight", (out, into), np.transpose)}
    return leaf | ({"bias": Leaf(f"{name}.bias", (out,))} if ours in c.biases else {})

  out = {"embed": Leaf("embed_tokens.weight", (c.vocab_size, d)), "ln_f": norm("norm")}
  for layer in range(c.n_layers):
    h = f"layers.{layer}"
    a = f"{h}.self_attn"
    attn = {
      "q": linear("q", f"{a}.q_proj", d, c.n_heads * k),
      "k": linear("k", f"{a}.k_proj", d, c.kv_heads * k),
      "v": linear("v", f"{a}.v_proj", d, c.kv_heads * k),
      "o": linear("o", f"{a}.o_proj", c.n_heads * k, d),
    }
    if c.qk_norm:
      attn |= {"q_norm": norm(f"{a}.q_norm", k), "k_norm": norm(f"{a}.k_norm", k)}
    mlp = {
      "gate": linear("gate", f"{h}.mlp.gate_proj", d, m),
      "fc": linear("fc", f"{h}.mlp.up_proj", d, m),
      "proj": linear("proj", f"{h}.mlp.down_proj", m, d),
    }
    block = {"ln1": norm(f"{h}.input_layernorm"), "attn": attn, "mlp": mlp}
    if c.post_norm:
      block["ln1_post"] = norm(f"{h}.post_attention_layernorm")
      block["ln2"] = norm(f"{h}.pre_feedforward_layernorm")
      block["ln2_post"] = norm(f"{h}.post_feedforward_layernorm")
    else:
      block["ln2"] = norm(f"{h}.post_attention_layernorm")
    out[f"blocks_{layer}"] = block
  if not c.tied:
    out["unembed"] = {"kernel": Leaf("lm_head.weight", (c.vocab_size, d), np.transpose)}
  return out


def renamed(name: str) -> str:
  return name.removeprefix("model.")


def unused(name: str) -> bool:
  """Old files carry the frequencies of the rotary embedding; a tied model may carry its unembedding."""
  return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")
