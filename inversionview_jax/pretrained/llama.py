"""Llama, Mistral, Qwen2, Qwen3, SmolLM, Gemma: Hugging Face's config.json -> `TransformerConfig`, and the tensor of each parameter.

Other families that differ from Llama in one thing or two are made of the same pieces: `common`, `rope`, `windows` and `layout`.

Source: transformers' modelling files, against which tests/pretrained/test_parity_transformers.py compares every model type.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import REQUIRED, Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

SHAPE = {
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
# Model type -> the attributes that its config.json may have besides.
_MORE = {
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
# Attributes of training, or of how a file was made.
_NO_EFFECT = {"attention_dropout", "pretraining_tp", "is_llama_config"}
_MUST_BE = {
  "rope_interleaved": (False, None),
  "use_bidirectional_attention": (None, False),
  "use_mrope": (False, None),
  "partial_rotary_factor": (1.0, None),
}
# Defaults of attributes that config.json leaves out, where they differ from Llama's.
_TIED = {"smollm3", "gemma", "gemma2"}
_THETA = {"smollm3": 2_000_000.0}
_HEAD_DIM = {"qwen3": 128, "gemma": 256, "gemma2": 256}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  model_type = attributes["model_type"]
  refuse_unhandled(attributes, where, SHAPE | _MORE[model_type] | _NO_EFFECT, _MUST_BE)
  read = Attributes(attributes, where)
  kv_default = REQUIRED
  if model_type == "llama" or attributes.get("num_key_value_heads", 0) is None:
    kv_default = None
  shape = common(read, where, kv_default, _HEAD_DIM.get(model_type, 0))
  layers, n_ctx, width = shape["n_layers"], shape["n_ctx"], shape["d_model"]
  turned = rotary.read(rope(read, _THETA.get(model_type, 10_000.0)), head_width(shape), n_ctx, where)
  gemma, gemma2 = model_type.startswith("gemma"), model_type == "gemma2"
  return TransformerConfig(
    **shape,
    **rotates(turned),
    activation=_activation(read, model_type),
    tied=read.switch("tie_word_embeddings", model_type in _TIED),
    query_width=float(read.number("query_pre_attn_scalar", 1e-6, MOST_INNER, 256)) if gemma2 else 0.0,
    unrotated=_unrotated(read, layers, where) if model_type == "smollm3" else (),
    windows=_windows(read, model_type, layers, n_ctx, where),
    biases=_biases(read, model_type),
    qk_norm=model_type == "qwen3",
    post_norm=gemma2,
    embed_scale=width**0.5 if gemma else 1.0,
    attn_cap=read.read("attn_logit_softcapping", cap, 50.0) if gemma2 else 0.0,
    logit_cap=read.read("final_logit_softcapping", cap, 30.0) if gemma2 else 0.0,
  )


def common(read: Attributes, where: str, kv_heads: Any = None, head_dim: int = 0) -> dict[str, Any]:
  """Sizes and norms of a Llama-like model, as arguments of `TransformerConfig`.

  Args:
    read: attributes of config.json.
    where: its name, for error messages.
    kv_heads: "num_key_value_heads" where it is left out; None for the number of heads.
    head_dim: "head_dim" where it is left out; 0 for the width shared out among the heads.
  """
  width, heads = read.whole("hidden_size", 1, MOST_WIDTH), read.whole("num_attention_heads", 1, MOST_WIDTH)
  groups = read.whole("num_key_value_heads", 1, MOST_WIDTH, heads if kv_heads is None else kv_heads, null=True)
  if heads % groups:
    raise InversionViewError(
      f"{where}: num_attention_heads = {heads} is not a multiple of num_key_value_heads = {groups}"
    )
  own = read.whole("head_dim", 1, MOST_WIDTH, head_dim, null=True)
  if not own and width % heads:
    raise InversionViewError(
      f"{where}: hidden_size = {width} is not a multiple of num_attention_heads = {heads}, and head_dim is not given"
    )
  return {
    "vocab_size": read.whole("vocab_size", 1, MOST_TOKENS),
    "n_ctx": read.whole("max_position_embeddings", 1, MOST_CONTEXT),
    "n_layers": read.whole("num_hidden_layers", 0, MOST_LAYERS),
    "n_heads": heads,
    "d_model": width,
    "d_mlp": read.whole("intermediate_size", 1, MOST_INNER),
    "norm": "rms",
    "norm_eps": read.number("rms_norm_eps", 0, 1, 1e-6),
    "n_kv_heads": groups if groups != heads else 0,
    "head_width": own if own and own * heads != width else 0,
    "gated": True,
  }


def head_width(shape: Mapping[str, Any]) -> int:
  """The width of a head of these arguments of `TransformerConfig`."""
  return shape["head_width"] or shape["d_model"] // shape["n_heads"]


def rotates(turned: rotary.Rotary) -> dict[str, Any]:
  """A rotary embedding as arguments of `TransformerConfig`."""
  out: dict[str, Any] = {"rotary": turned.frequencies, "rotary_gain": turned.gain}
  return out | ({"long_rotary": turned.long, "long_from": turned.long_from} if turned.long else {})


def cap(name: str, value: object) -> float:
  """The cap of scores or logits; 0 where the attribute is null, for none."""
  return 0.0 if value is None else values.number(name, value, 0, 1e9)


def window(name: str, value: object) -> int | None:
  """The length of a sliding window; None where the attribute is null, for none."""
  return None if value is None else values.whole(name, value, 1, MOST_CONTEXT)


def rope(read: Attributes, theta: float = 10_000.0) -> dict[str, Any]:
  """Attributes of the rotary embedding: "rope_parameters" since transformers 5, "rope_theta" and "rope_scaling" before.

  Args:
    read: attributes of config.json.
    theta: where it is left out.
  """
  for name in ("rope_scaling", "rope_parameters"):
    if found := read.read(name, values.mapping, {}, null=True):
      break
  return {"rope_theta": read.number("rope_theta", 1e-6, 1e30, theta, null=True)} | found


def _activation(read: Attributes, model_type: str) -> str:
  """The activation of the MLP, as `TransformerConfig` names it."""
  if not model_type.startswith("gemma"):
    return activation(read, "hidden_act", "silu")
  # Gemma's "gelu" has always meant the approximation that "hidden_activation" names since.
  older = read.read("hidden_act", values.text, "gelu_pytorch_tanh", null=True)
  return activation(read, "hidden_activation", "gelu_pytorch_tanh" if older == "gelu" else older, null=True)


def _biases(read: Attributes, model_type: str) -> tuple[str, ...]:
  """The linear maps that have a bias."""
  if model_type == "qwen2":
    return ("q", "k", "v")
  attention = ("q", "k", "v", "o") if read.switch("attention_bias", False) else ()
  return attention + (("gate", "fc", "proj") if read.switch("mlp_bias", False) else ())


def _unrotated(read: Attributes, layers: int, where: str) -> tuple[int, ...]:
  """The layers of SmolLM3 without rotary embedding, by default every fourth."""
  zero_or_one = functools.partial(values.whole, low=0, high=1)  # 1 for a layer that has it
  check = functools.partial(values.sequence, check=zero_or_one, most=MOST_LAYERS)
  rotates = read.read("no_rope_layers", check, None, null=True)
  if rotates is None:
    interval = read.whole("no_rope_layer_interval", 1, MOST_LAYERS, 4)
    rotates = [int((layer + 1) % interval != 0) for layer in range(layers)]
  if len(rotates) < layers:
    raise InversionViewError(f"{where}: no_rope_layers has {len(rotates)} entries for {layers} layers")
  return tuple(layer for layer in range(layers) if not rotates[layer])


def _windows(read: Attributes, model_type: str, layers: int, n_ctx: int, where: str) -> tuple[int, ...]:
  """Length of each layer's sliding window, 0 for none; () where no window is shorter than the context."""
  if "sliding_window" not in _MORE[model_type]:
    return ()
  length = read.read("sliding_window", window, 4096 if model_type == "gemma2" else None)
  kinds = layer_types(read, layers, where)
  most = read.whole("max_window_layers", 0, MOST_CONTEXT, 28)
  if length is None or length >= n_ctx:
    return ()
  if model_type in ("qwen2", "qwen3", "smollm3") and not read.switch("use_sliding_window", False):
    return ()
  if kinds is None:
    if model_type == "gemma2":
      slides = [layer % 2 == 0 for layer in range(layers)]
    elif model_type == "smollm3":
      unrotated = set(_unrotated(read, layers, where))
      slides = [layer in unrotated for layer in range(layers)]
    elif model_type == "mistral":
      slides = [True] * layers
    else:
      slides = [layer >= most for layer in range(layers)]
  else:
    slides = kinds
  return tuple(length if slide else 0 for slide in slides) if any(slides) else ()


def layer_types(read: Attributes, layers: int, where: str) -> list[bool] | None:
  """For each layer whether it has a sliding window, by "layer_types"; None where that is left out."""
  check = functools.partial(values.choice, choices=("full_attention", "sliding_attention"))
  kinds = read.read("layer_types", functools.partial(values.sequence, check=check, most=MOST_LAYERS), None, null=True)
  if kinds is None:
    return None
  if len(kinds) != layers:
    raise InversionViewError(f"{where}: layer_types has {len(kinds)} entries for {layers} layers")
  return [kind == "sliding_attention" for kind in kinds]


Leaves = dict[str, Any]
"""Nested dicts of `Leaf` and `Stack`."""


def linear(name: str, into: int, out: int, bias: bool = False) -> Leaves:
  """A linear map whose kernel is [out, in] in the checkpoint."""
  leaf = {"kernel": Leaf(f"{name}.weight", (out, into), np.transpose)}
  return leaf | ({"bias": Leaf(f"{name}.bias", (out,))} if bias else {})


def attention(c: TransformerConfig, name: str) -> Leaves:
  """The linear maps of attention, from four tensors."""
  d, k = c.d_model, c.d_head
  return {
    "q": linear(f"{name}.q_proj", d, c.n_heads * k, "q" in c.biases),
    "k": linear(f"{name}.k_proj", d, c.kv_heads * k, "k" in c.biases),
    "v": linear(f"{name}.v_proj", d, c.kv_heads * k, "v" in c.biases),
    "o": linear(f"{name}.o_proj", c.n_heads * k, d, "o" in c.biases),
  }


def mlp(c: TransformerConfig, name: str, layer: int) -> Leaves:
  """A gated MLP, from three tensors."""
  del layer
  return {
    "gate": linear(f"{name}.gate_proj", c.d_model, c.d_mlp, "gate" in c.biases),
    "fc": linear(f"{name}.up_proj", c.d_model, c.d_mlp, "fc" in c.biases),
    "proj": linear(f"{name}.down_proj", c.d_mlp, c.d_model, "proj" in c.biases),
  }


def layout(
  config: TransformerConfig,
  one_plus: bool = False,
  attention: Callable[[TransformerConfig, str], Leaves] = attention,
  mlp: Callable[[TransformerConfig, str, int], Leaves] = mlp,
) -> Leaves:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter.

  Args:
    config: of the model.
    one_plus: whether the checkpoint stores a norm's scale minus 1, as Gemma's do.
    attention: (configuration, name in the file) -> the linear maps of attention.
    mlp: (configuration, name in the file, layer) -> the parameters of an MLP.
  """
  d, c = config.d_model, config

  def norm(name, width=d):
    return {"scale": Leaf(f"{name}.weight", (width,), (lambda x: 1 + x) if one_plus else (lambda x: x))}

  out = {"embed": Leaf("embed_tokens.weight", (c.vocab_size, d)), "ln_f": norm("norm")}
  for layer in range(c.n_layers):
    h = f"layers.{layer}"
    a = f"{h}.self_attn"
    attn = attention(c, a)
    if c.qk_norm:
      heads = (c.n_heads, c.kv_heads) if c.qk_norm_joint else (1, 1)
      attn |= {f"{x}_norm": norm(f"{a}.{x}_norm", n * c.d_head) for x, n in zip("qk", heads, strict=True)}
    if c.sinks:
      attn["sinks"] = Leaf(f"{a}.sinks", (c.n_heads,))
    block = {"attn": attn, "mlp": mlp(c, f"{h}.mlp", layer)}
    names = {"ln1": "input_layernorm", "ln2": "post_attention_layernorm"}
    if c.post_norm:
      names = {"ln1_post": "post_attention_layernorm", "ln2_post": "post_feedforward_layernorm"} | (
        {"ln1": "input_layernorm", "ln2": "pre_feedforward_layernorm"} if c.pre_norm else {}
      )
    out[f"blocks_{layer}"] = block | {ours: norm(f"{h}.{name}") for ours, name in names.items()}
  if not c.tied:
    out["unembed"] = {"kernel": Leaf("lm_head.weight", (c.vocab_size, d), np.transpose)}
  return out


def rename(name: str) -> str:
  """The tensor's name without "model.", with which it begins in most files."""
  return name.removeprefix("model.")


def unused(name: str) -> bool:
  """Whether a tensor is no parameter: rotary frequencies in old files, the unembedding of a tied model."""
  return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


_GEMMA = ("gemma", "gemma2")
FAMILY = Family(
  tuple(model_type for model_type in _MORE if model_type not in _GEMMA),
  config,
  layout,
  rename,
  unused,
)
GEMMA = Family(_GEMMA, config, functools.partial(layout, one_plus=True), rename, unused)
# llama.cpp's conversion adds the 1 to the norms' scales.
GEMMA_GGUF = Family(_GEMMA, config, layout, rename, unused)
