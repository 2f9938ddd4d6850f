"""gpt-oss: a mixture of experts in every layer, attention sinks, windows in every other layer; also with experts stored as MXFP4."""

import functools
from collections.abc import Mapping

import numpy as np

from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import llama, mixture, rotary
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

_MORE = {
  "attention_bias",
  "sliding_window",
  "layer_types",
  "num_local_experts",
  "num_experts",
  "num_experts_per_tok",
  "swiglu_alpha",
  "swiglu_limit",
}
# The gate's activation is x * sigmoid(1.702 x), whatever hidden_act says; the limits are those of `TransformerConfig.gate_limit`.
_MUST_BE = {"swiglu_alpha": (1.702,), "hidden_act": ("silu",)}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, llama.SHAPE | _MORE, _MUST_BE)
  read = Attributes(attributes, where)
  shape = llama.common(read, where)
  layers, n_ctx = shape["n_layers"], shape["n_ctx"]
  turned = rotary.read(llama.rope(read, 150_000.0), llama.head_width(shape), n_ctx, where)
  window = read.read("sliding_window", llama.window, None)
  slides = llama.layer_types(read, layers, where) or [False] * layers
  count, each = mixture.experts(attributes, where, 1)
  attention = ("q", "k", "v", "o") if read.switch("attention_bias", True) else ()
  return TransformerConfig(
    **shape,
    **llama.rotates(turned),
    activation="quick_gelu",
    gate_limit=read.number("swiglu_limit", 1e-6, 1e9, 7.0),
    tied=read.switch("tie_word_embeddings", False),
    windows=tuple(window if each else 0 for each in slides) if window and window < n_ctx and any(slides) else (),
    biases=(*attention, "router", "experts"),
    sinks=True,
    n_experts=count,
    experts_per_token=each,
    expert_width=shape["d_mlp"],
    expert_weights_sum=True,
  )


def _every_other(x, first):
  return np.ascontiguousarray(x[..., first::2])


def mlp(c: TransformerConfig, name: str, layer: int) -> llama.Leaves:
  """The parameters of a mixture of experts, which the file has stacked, as [in, out], columns of gate and fc by turns."""
  del layer
  e, d, m = c.n_experts, c.d_model, c.expert_width

  def of_gate_up(first):
    take = functools.partial(_every_other, first=first)
    return {
      "kernel": Leaf(f"{name}.experts.gate_up_proj", (e, d, 2 * m), take),
      "bias": Leaf(f"{name}.experts.gate_up_proj_bias", (e, 2 * m), take),
    }

  proj = {
    "kernel": Leaf(f"{name}.experts.down_proj", (e, m, d)),
    "bias": Leaf(f"{name}.experts.down_proj_bias", (e, d)),
  }
  experts = {"gate": of_gate_up(0), "fc": of_gate_up(1), "proj": proj}
  return {"router": llama.linear(f"{name}.router", d, e, bias=True), "experts": experts}


FAMILY = Family(("gpt_oss",), config, functools.partial(llama.layout, mlp=mlp), llama.rename, llama.unused)
