"""GPT-2: Hugging Face's config.json -> `TransformerConfig`, and which tensor each parameter is made of."""

import functools
from collections.abc import Mapping

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

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
  "scale_attn_by_inverse_layer_idx",
}
# Of training and of classification heads.
_NO_EFFECT = {"attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "is_decoder"} | {
  f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, _SHAPE | _NO_EFFECT, {})
  read = Attributes(attributes, where)
  width, heads = read.whole("n_embd", 1, MOST_WIDTH), read.whole("n_head", 1, MOST_WIDTH)
  if width % heads:
    raise InversionViewError(f"{where}: n_embd = {width} is not a multiple of n_head = {heads}")
  return TransformerConfig(
    vocab_size=read.whole("vocab_size", 1, MOST_TOKENS),
    n_ctx=read.whole("n_positions", 1, MOST_CONTEXT),
    n_layers=read.whole("n_layer", 0, MOST_LAYERS),  # a model may have none, only embedding and unembedding
    n_heads=heads,
    d_model=width,
    d_mlp=read.whole("n_inner", 1, MOST_INNER, 4 * width, null=True),
    activation=activation(read, "activation_function", "gelu_new"),
    norm_eps=read.number("layer_norm_epsilon", 0, 1, 1e-5),
    tied=read.switch("tie_word_embeddings", True),
    attn_scale=read.switch("scale_attn_weights", True),
    attn_scale_by_layer=read.switch("scale_attn_by_inverse_layer_idx", False),
  )


def layer_norm(name: str, width: int) -> dict:
  """The parameters of a LayerNorm with a bias."""
  return {"scale": Leaf(f"{name}.weight", (width,)), "bias": Leaf(f"{name}.bias", (width,))}


def layout(config: TransformerConfig) -> dict:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter. Kernels are [in, out] in the checkpoint, as here."""
  d, m = config.d_model, config.d_mlp

  norm = functools.partial(layer_norm, width=d)

  def linear(name, *shape):
    return {"kernel": Leaf(f"{name}.weight", shape), "bias": Leaf(f"{name}.bias", shape[1:])}

  def third(x, which):  # c_attn is q, k and v, concatenated over the last axis
    return np.ascontiguousarray(np.split(x, 3, axis=-1)[which])

  def one_of_qkv(name, which):
    take = functools.partial(third, which=which)
    return {"kernel": Leaf(f"{name}.weight", (d, 3 * d), take), "bias": Leaf(f"{name}.bias", (3 * d,), take)}

  out = {
    "embed": Leaf("wte.weight", (config.vocab_size, d)),
    "pos_embed": Leaf("wpe.weight", (config.n_ctx, d)),
    "ln_f": norm("ln_f"),
  }
  for layer in range(config.n_layers):
    h = f"h.{layer}"
    attn = {name: one_of_qkv(f"{h}.attn.c_attn", which) for which, name in enumerate("qkv")}
    attn["o"] = linear(f"{h}.attn.c_proj", d, d)
    mlp = {"fc": linear(f"{h}.mlp.c_fc", d, m), "proj": linear(f"{h}.mlp.c_proj", m, d)}
    out[f"blocks_{layer}"] = {"ln1": norm(f"{h}.ln_1"), "attn": attn, "ln2": norm(f"{h}.ln_2"), "mlp": mlp}
  if not config.tied:
    kernel = Leaf("lm_head.weight", (config.vocab_size, d), np.transpose)
    out["unembed"] = {"kernel": kernel, "bias": Leaf(None, (config.vocab_size,))}
  return out


def rename(name: str) -> str:
  """The tensor's name without "transformer.", with which it begins in some files and not in others."""
  return name.removeprefix("transformer.")


def unused(name: str) -> bool:
  """Whether a tensor is no parameter: the causal mask ("attn.bias", "attn.masked_bias") in old files, the unembedding of a tied model."""
  return name == "lm_head.weight" or name.endswith(("attn.bias", "attn.masked_bias"))


FAMILY = Family(("gpt2",), config, layout, rename, unused)
