"""Mixtral and Qwen3-MoE: Llama and Qwen3 with a mixture of experts in place of the MLP, in all layers or in some."""

import functools
import re
from collections.abc import Mapping

import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_EXPERTS, MOST_INNER, MOST_LAYERS
from inversionview_jax.models.experts import has_experts
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import llama, rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf, Stack

_EXPERTS = {"num_experts", "num_local_experts", "num_experts_per_tok"}
_MORE = {
  "mixtral": _EXPERTS | {"sliding_window"},
  "qwen3_moe": _EXPERTS
  | {
    "attention_bias",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "decoder_sparse_step",
    "moe_intermediate_size",
    "norm_topk_prob",
    "mlp_only_layers",
  },
}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  qwen = attributes["model_type"] == "qwen3_moe"
  refuse_unhandled(attributes, where, llama.SHAPE | _MORE[attributes["model_type"]], {})
  read = Attributes(attributes, where)
  shape = llama.common(read, where)
  layers, n_ctx = shape["n_layers"], shape["n_ctx"]
  turned = rotary.read(llama.rope(read), llama.head_width(shape), n_ctx, where)
  slides = not qwen or read.switch("use_sliding_window", False)
  window = read.read("sliding_window", llama.window, None) if slides else None
  count, each = experts(attributes, where, 0)
  return TransformerConfig(
    **shape,
    **llama.rotates(turned),
    activation=activation(read, "hidden_act", "silu"),
    tied=read.switch("tie_word_embeddings", False),
    windows=(window,) * layers if window and window < n_ctx else (),
    biases=("q", "k", "v", "o") if qwen and read.switch("attention_bias", False) else (),
    qk_norm=qwen,
    n_experts=count,
    experts_per_token=each,
    expert_width=read.whole("moe_intermediate_size", 1, MOST_INNER) if qwen else shape["d_mlp"],
    expert_weights_sum=read.switch("norm_topk_prob", False) if qwen else True,
    dense_layers=_dense(read, layers) if qwen else (),
  )


def experts(attributes: Mapping, where: str, least: int) -> tuple[int, int]:
  """How many experts there are, at least `least`, and how many of them a token passes."""
  read = Attributes(attributes, where)
  count = read.whole("num_experts" if "num_experts" in attributes else "num_local_experts", least, MOST_EXPERTS)
  each = read.whole("num_experts_per_tok", 1, MOST_EXPERTS)
  if count and each > count:
    raise InversionViewError(f"{where}: num_experts_per_tok = {each} is more than there are experts, {count}")
  return count, each


def _dense(read: Attributes, layers: int) -> tuple[int, ...]:
  """The layers of Qwen3-MoE with a plain MLP."""
  check = functools.partial(values.whole, low=0, high=MOST_LAYERS)
  stated = read.read("mlp_only_layers", functools.partial(values.sequence, check=check, most=MOST_LAYERS), (), True)
  step = read.whole("decoder_sparse_step", 1, MOST_CONTEXT, 1)
  return tuple(layer for layer in range(layers) if layer in stated or (layer + 1) % step)


def mlp(c: TransformerConfig, name: str, layer: int) -> llama.Leaves:
  """The parameters of an MLP: three tensors of each expert and the router's, or those of a plain MLP."""
  if not has_experts(c, layer):
    return llama.mlp(c, name, layer)

  def stack(tensor, into, out):
    every = (Leaf(f"{name}.experts.{i}.{tensor}.weight", (out, into), np.transpose) for i in range(c.n_experts))
    return {"kernel": Stack(tuple(every))}

  parts = {
    "gate": stack("gate_proj", c.d_model, c.expert_width),
    "fc": stack("up_proj", c.d_model, c.expert_width),
    "proj": stack("down_proj", c.expert_width, c.d_model),
  }
  return {"router": llama.linear(f"{name}.gate", c.d_model, c.n_experts), "experts": parts}


_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def rename(name: str) -> str:
  """The tensor's name without "model.", and with the words of Qwen3-MoE in place of Mixtral's."""
  name = llama.rename(name).replace(".block_sparse_moe.", ".mlp.")
  return re.sub(r"\.(w[123])\.weight$", lambda found: f".{_MIXTRAL[found[1]]}.weight", name)


FAMILY = Family(("mixtral", "qwen3_moe"), config, functools.partial(llama.layout, mlp=mlp), rename, llama.unused)
