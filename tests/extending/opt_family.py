"""OPT (Zhang et al., 2022), a model family outside the package: pre-LayerNorm, ReLU, learned positions."""

import numpy as np

from inversionview_jax.models import TransformerConfig
from inversionview_jax.pretrained import Family, Leaf
from inversionview_jax.pretrained.attributes import refuse_sizes, refuse_unhandled

_SIZES = ("vocab_size", "max_position_embeddings", "num_hidden_layers", "num_attention_heads", "hidden_size", "ffn_dim")
_OTHERS = {
  "tie_word_embeddings",
  "dropout",
  "attention_dropout",
  "layerdrop",
  "init_std",
}  # all but the first: of training
_MUST_BE = {  # attribute -> the values that are handled
  "do_layer_norm_before": (True,),
  "_remove_final_layer_norm": (False,),
  "enable_bias": (True,),
  "layer_norm_elementwise_affine": (True,),
  "activation_function": ("relu",),
}


def config(attributes, where):
  must_be = {**_MUST_BE, "word_embed_proj_dim": (attributes.get("hidden_size"),)}
  refuse_unhandled(attributes, where, {*_SIZES, *_OTHERS}, must_be)
  refuse_sizes(attributes, where, _SIZES)
  return TransformerConfig(
    vocab_size=attributes["vocab_size"],
    n_ctx=attributes["max_position_embeddings"],
    n_layers=attributes["num_hidden_layers"],
    n_heads=attributes["num_attention_heads"],
    d_model=attributes["hidden_size"],
    d_mlp=attributes["ffn_dim"],
    activation="relu",
    tied=attributes.get("tie_word_embeddings", True),
  )


def layout(c):
  d, m = c.d_model, c.d_mlp

  def norm(name):
    return {"scale": Leaf(f"{name}.weight", (d,)), "bias": Leaf(f"{name}.bias", (d,))}

  def linear(name, inputs, outputs):  # [out, in] in the checkpoint, [in, out] here
    return {"kernel": Leaf(f"{name}.weight", (outputs, inputs), np.transpose), "bias": Leaf(f"{name}.bias", (outputs,))}

  parts = {
    "embed": Leaf("embed_tokens.weight", (c.vocab_size, d)),
    "pos_embed": Leaf("embed_positions.weight", (c.n_ctx + 2, d), lambda x: x[2:]),  # the first two rows are never used
    "ln_f": norm("final_layer_norm"),
  }
  for layer in range(c.n_layers):
    own = f"layers.{layer}"
    attn = {ours: linear(f"{own}.self_attn.{name}_proj", d, d) for ours, name in zip("qkvo", ("q", "k", "v", "out"))}
    mlp = {"fc": linear(f"{own}.fc1", d, m), "proj": linear(f"{own}.fc2", m, d)}
    norms = {"ln1": norm(f"{own}.self_attn_layer_norm"), "ln2": norm(f"{own}.final_layer_norm")}
    parts[f"blocks_{layer}"] = {"attn": attn, "mlp": mlp, **norms}
  return parts


def rename(name):
  return name.removeprefix("model.").removeprefix("decoder.")


OPT = Family(("opt",), config, layout, rename, unused=lambda name: name == "lm_head.weight")
