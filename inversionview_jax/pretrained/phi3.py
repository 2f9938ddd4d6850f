"""Phi-3: Llama with queries, keys and values in one matrix, and gate and fc in another; longrope, partial rotary embeddings."""

import functools
from collections.abc import Mapping

import numpy as np

from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import llama, rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

_MORE = {"sliding_window", "original_max_position_embeddings", "partial_rotary_factor"}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, llama.SHAPE | _MORE, {})
  read = Attributes(attributes, where)
  shape = llama.common(read, where)
  n_ctx = shape["n_ctx"]
  turned = rotary.read(llama.rope(read), llama.head_width(shape), n_ctx, where, partial=True)
  window = read.read("sliding_window", llama.window, None)
  return TransformerConfig(
    **shape,
    **llama.rotates(turned),
    activation=activation(read, "hidden_act", "silu"),
    tied=read.switch("tie_word_embeddings", False),
    windows=(window,) * shape["n_layers"] if window and window < n_ctx else (),
    biases=(),
  )


def _rows(name: str, into: int, sizes: Mapping[str, int]) -> llama.Leaves:
  """Linear maps whose kernels [out, in] stand one under the other in one tensor."""
  out, start = {}, 0
  for ours, size in sizes.items():
    take = functools.partial(_some_rows, rows=slice(start, start + size))
    out[ours] = {"kernel": Leaf(f"{name}.weight", (sum(sizes.values()), into), take)}
    start += size
  return out


def _some_rows(x, rows):
  return np.ascontiguousarray(x[rows].T)


def attention(c: TransformerConfig, name: str) -> llama.Leaves:
  """The linear maps of attention, from two tensors."""
  k = c.d_head
  qkv = _rows(f"{name}.qkv_proj", c.d_model, {"q": c.n_heads * k, "k": c.kv_heads * k, "v": c.kv_heads * k})
  return qkv | {"o": llama.linear(f"{name}.o_proj", c.n_heads * k, c.d_model)}


def mlp(c: TransformerConfig, name: str, layer: int) -> llama.Leaves:
  """A gated MLP, from two tensors."""
  del layer
  inner = _rows(f"{name}.gate_up_proj", c.d_model, {"gate": c.d_mlp, "fc": c.d_mlp})
  return inner | {"proj": llama.linear(f"{name}.down_proj", c.d_mlp, c.d_model)}


FAMILY = Family(
  ("phi3",), config, functools.partial(llama.layout, attention=attention, mlp=mlp), llama.rename, llama.unused
)
