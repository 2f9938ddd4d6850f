"""GPT-Neo and TinyStories: Hugging Face's config.json -> `TransformerConfig`, and which tensor each parameter is made of."""

import functools
from collections.abc import Mapping

import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_TOKENS, MOST_WIDTH
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import gpt2, llama
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf

_SHAPE = {
  "vocab_size",
  "max_position_embeddings",
  "hidden_size",
  "num_layers",
  "num_heads",
  "intermediate_size",
  "activation_function",
  "layer_norm_epsilon",
  "tie_word_embeddings",
  "window_size",
  "attention_types",
  "attention_layers",
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
  width, heads = read.whole("hidden_size", 1, MOST_WIDTH), read.whole("num_heads", 1, MOST_WIDTH)
  if width % heads:
    raise InversionViewError(f"{where}: hidden_size = {width} is not a multiple of num_heads = {heads}")
  n_ctx, layers = (
    read.whole("max_position_embeddings", 1, MOST_CONTEXT),
    read.whole("num_layers", 0, MOST_LAYERS),
  )
  local, window = _local(read, layers, where), read.whole("window_size", 1, MOST_CONTEXT, 256)
  return TransformerConfig(
    vocab_size=read.whole("vocab_size", 1, MOST_TOKENS),
    n_ctx=n_ctx,
    n_layers=layers,
    n_heads=heads,
    d_model=width,
    d_mlp=read.whole("intermediate_size", 1, MOST_INNER, 4 * width, null=True),
    activation=activation(read, "activation_function", "gelu_new"),
    norm_eps=read.number("layer_norm_epsilon", 0, 1, 1e-5),
    tied=read.switch("tie_word_embeddings", True),
    attn_scale=False,
    windows=tuple(window if each else 0 for each in local) if window < n_ctx and any(local) else (),
    biases=("o", "fc", "proj"),
  )


def _local(read: Attributes, layers: int, where: str) -> list[bool]:
  """For each layer whether its attention is local, by "attention_types": ([kinds, how many times they follow one another], ...)."""
  kind = functools.partial(values.choice, choices=("global", "local"))

  def entry(name, value):
    if not isinstance(value, list | tuple) or len(value) != 2:
      raise InversionViewError(f"{name} = {values.brief(value)} must be a list of kinds and how many times they follow")
    kinds = values.sequence(f"{name}[0]", value[0], kind, MOST_LAYERS)
    return kinds * values.whole(f"{name}[1]", value[1], 0, MOST_LAYERS // max(len(kinds), 1))

  types = read.read("attention_types", functools.partial(values.sequence, check=entry, most=MOST_LAYERS))
  kinds = [each for part in types for each in part]
  if len(kinds) != layers:
    raise InversionViewError(f"{where}: attention_types has {len(kinds)} entries for {layers} layers")
  return [each == "local" for each in kinds]


def layout(config: TransformerConfig) -> dict:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter."""
  d, m = config.d_model, config.d_mlp

  norm = functools.partial(gpt2.layer_norm, width=d)

  out = {
    "embed": Leaf("wte.weight", (config.vocab_size, d)),
    "pos_embed": Leaf("wpe.weight", (config.n_ctx, d)),
    "ln_f": norm("ln_f"),
  }
  for layer in range(config.n_layers):
    h = f"h.{layer}"
    a = f"{h}.attn.attention"
    attn = {name: llama.linear(f"{a}.{name}_proj", d, d) for name in "qkv"}
    attn["o"] = llama.linear(f"{a}.out_proj", d, d, bias=True)
    mlp = {
      "fc": llama.linear(f"{h}.mlp.c_fc", d, m, bias=True),
      "proj": llama.linear(f"{h}.mlp.c_proj", m, d, bias=True),
    }
    out[f"blocks_{layer}"] = {"ln1": norm(f"{h}.ln_1"), "attn": attn, "ln2": norm(f"{h}.ln_2"), "mlp": mlp}
  if not config.tied:
    out["unembed"] = {"kernel": Leaf("lm_head.weight", (config.vocab_size, d), np.transpose)}
  return out


def unused(name: str) -> bool:
  """Whether a tensor is no parameter: the causal mask in old files, the unembedding of a tied model."""
  return name == "lm_head.weight" or name.endswith(("attn.attention.bias", "attn.attention.masked_bias"))


FAMILY = Family(("gpt_neo",), config, layout, gpt2.rename, unused)
