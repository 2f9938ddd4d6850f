"""GPT-NeoX and Pythia: Hugging Face's config.json -> `TransformerConfig`, and which tensor each parameter is made of."""

import functools
from collections.abc import Mapping

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import gpt2, llama, rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

_SHAPE = {
  "vocab_size",
  "hidden_size",
  "num_hidden_layers",
  "num_attention_heads",
  "intermediate_size",
  "hidden_act",
  "max_position_embeddings",
  "layer_norm_eps",
  "tie_word_embeddings",
  "use_parallel_residual",
  "attention_bias",
  "rope_parameters",
  "rope_scaling",
  "rotary_pct",
  "rotary_emb_base",
}


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, _SHAPE, {})
  read = Attributes(attributes, where)
  width, heads = read.whole("hidden_size", 1, MOST_WIDTH), read.whole("num_attention_heads", 1, MOST_WIDTH)
  if width % heads:
    raise InversionViewError(f"{where}: hidden_size = {width} is not a multiple of num_attention_heads = {heads}")
  n_ctx = read.whole("max_position_embeddings", 1, MOST_CONTEXT)
  turned = rotary.read(llama.rope(read), width // heads, n_ctx, where, partial=True)
  attention = ("q", "k", "v", "o") if read.switch("attention_bias", True) else ()
  return TransformerConfig(
    vocab_size=read.whole("vocab_size", 1, MOST_TOKENS),
    n_ctx=n_ctx,
    n_layers=read.whole("num_hidden_layers", 0, MOST_LAYERS),
    n_heads=heads,
    d_model=width,
    d_mlp=read.whole("intermediate_size", 1, MOST_INNER),
    activation=activation(read, "hidden_act", "gelu"),
    norm_eps=read.number("layer_norm_eps", 0, 1, 1e-5),
    tied=read.switch("tie_word_embeddings", False),
    biases=(*attention, "fc", "proj"),
    parallel=read.switch("use_parallel_residual", True),
    **llama.rotates(turned),
  )


def layout(config: TransformerConfig) -> dict:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter."""
  d, m, heads = config.d_model, config.d_mlp, config.n_heads

  norm = functools.partial(gpt2.layer_norm, width=d)

  def one_of_qkv(x, which):  # rows are (head, which of the three, dimension)
    rows = x.reshape(heads, 3, -1, *x.shape[1:])[:, which]
    return np.ascontiguousarray(rows.reshape(-1, *x.shape[1:]).T)

  out = {"embed": Leaf("embed_in.weight", (config.vocab_size, d)), "ln_f": norm("final_layer_norm")}
  for layer in range(config.n_layers):
    h = f"layers.{layer}"
    qkv = f"{h}.attention.query_key_value"
    attn = {}
    for which, name in enumerate("qkv"):
      take = functools.partial(one_of_qkv, which=which)
      attn[name] = {"kernel": Leaf(f"{qkv}.weight", (3 * d, d), take)}
      if name in config.biases:
        attn[name]["bias"] = Leaf(f"{qkv}.bias", (3 * d,), take)
    attn["o"] = llama.linear(f"{h}.attention.dense", d, d, "o" in config.biases)
    mlp = {
      "fc": llama.linear(f"{h}.mlp.dense_h_to_4h", d, m, bias=True),
      "proj": llama.linear(f"{h}.mlp.dense_4h_to_h", m, d, bias=True),
    }
    norms = {"ln1": norm(f"{h}.input_layernorm"), "ln2": norm(f"{h}.post_attention_layernorm")}
    out[f"blocks_{layer}"] = {"attn": attn, "mlp": mlp, **norms}
  if not config.tied:
    out["unembed"] = {"kernel": Leaf("embed_out.weight", (config.vocab_size, d), np.transpose)}
  return out


def rename(name: str) -> str:
  """The tensor's name without "gpt_neox.", with which it begins in most files."""
  return name.removeprefix("gpt_neox.")


def unused(name: str) -> bool:
  """Whether a tensor is no parameter: causal masks and rotary frequencies in old files, the unembedding of a tied model."""
  return name == "embed_out.weight" or name.endswith(("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq"))


FAMILY = Family(("gpt_neox",), config, layout, rename, unused)
