"""Gemma 3, the text model: Gemma 2 with norms of queries and keys, and two rotary embeddings; alone, or as a part of the multimodal one."""

import functools
import re
from collections.abc import Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.models.config import MOST_INNER
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import llama, rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family

_MORE = {
  "hidden_activation",
  "attention_bias",
  "query_pre_attn_scalar",
  "sliding_window",
  "sliding_window_pattern",
  "layer_types",
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "rope_local_base_freq",
}
# Of the multimodal model: what surrounds its text model, and how images stand in texts.
_AROUND = {
  "text_config",
  "vision_config",
  "tie_word_embeddings",
  "mm_tokens_per_image",
  "boi_token_index",
  "eoi_token_index",
  "image_token_index",
}
_MUST_BE = {"use_bidirectional_attention": (False, None)}
_TYPES = ("full_attention", "sliding_attention")
_THETA = {"full_attention": 1_000_000.0, "sliding_attention": 10_000.0}
_EVERY = 6  # layers without a window, where nothing else is stated


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed; of the multimodal model, its text model is read.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  tied = Attributes(attributes, where).switch("tie_word_embeddings", True)
  if attributes["model_type"] == "gemma3":
    refuse_unhandled(attributes, where, _AROUND, {})
    attributes = Attributes(attributes, where).read("text_config", values.mapping)
    where = f"{where}: text_config"
  refuse_unhandled(attributes, where, llama.SHAPE | _MORE, _MUST_BE)
  read = Attributes(attributes, where)
  shape = llama.common(read, where, head_dim=256)
  slides = _slides(read, shape["n_layers"], where)
  window = read.read("sliding_window", llama.window, 4096)
  local = tuple(layer for layer, each in enumerate(slides) if each)
  return TransformerConfig(
    **shape,
    **_rotates(read, shape, local, where),
    windows=tuple(window if each else 0 for each in slides) if local and window and window < shape["n_ctx"] else (),
    activation=activation(read, "hidden_activation", "gelu_pytorch_tanh"),
    tied=tied and read.switch("tie_word_embeddings", True),
    query_width=float(read.number("query_pre_attn_scalar", 1e-6, MOST_INNER, 256)),
    biases=("q", "k", "v", "o") if read.switch("attention_bias", False) else (),
    qk_norm=True,
    post_norm=True,
    embed_scale=shape["d_model"] ** 0.5,
    attn_cap=read.read("attn_logit_softcapping", llama.cap, 0.0),
    logit_cap=read.read("final_logit_softcapping", llama.cap, 0.0),
  )


def _slides(read: Attributes, layers: int, where: str) -> list[bool]:
  """For each layer whether it has a sliding window: by "layer_types", or all but every sixth."""
  kinds = llama.layer_types(read, layers, where)
  return [(layer + 1) % _EVERY != 0 for layer in range(layers)] if kinds is None else kinds


def _rotates(read: Attributes, shape: Mapping[str, Any], local: tuple[int, ...], where: str) -> dict[str, Any]:
  """The two rotary embeddings, as arguments of `TransformerConfig`: that of layers without a window, and that of those with one."""
  ropes = read.read("rope_parameters", values.mapping, {}, null=True)
  if not set(ropes) & set(_TYPES):  # one for all layers
    ropes = dict.fromkeys(_TYPES, ropes) if ropes else {}
  found = {}
  for kind in _TYPES:
    rope = values.mapping(f"{where}: rope_parameters of {kind}", ropes.get(kind) or {})
    found[kind] = rotary.read(
      {"rope_theta": _THETA[kind]} | rope, llama.head_width(shape), shape["n_ctx"], f"{where}: {kind}"
    )
  out = llama.rotates(found["full_attention"])
  if local:
    one = found["sliding_attention"]
    out |= {"local_layers": local, "local_rotary": one.frequencies, "local_rotary_gain": one.gain}
  return out


def rename(name: str) -> str:
  """The tensor's name without what stands in front of it: "model.", and in the multimodal model "language_model." on either side of that."""
  return re.sub(r"^((model|language_model)\.)+", "", name)


def unused(name: str) -> bool:
  """Whether a tensor is no parameter of the text model: of the vision model, and the unembedding of a tied model."""
  return llama.unused(name) or name.startswith(("vision_tower.", "multi_modal_projector."))


_NAMES = ("gemma3_text", "gemma3")
FAMILY = Family(_NAMES, config, functools.partial(llama.layout, one_plus=True), rename, unused)
# llama.cpp's conversion adds the 1 to the norms' scales.
GGUF = Family(_NAMES, config, llama.layout, rename, unused)
