"""GPT-2: Hugging Face's config.json and tensor names -> ours."""

import functools

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import ACTIVATIONS, TransformerConfig
from inversionview_jax.pretrained.attributes import NO_EFFECT, refuse_sizes, refuse_unhandled
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
}
# Of training and of classification heads.
_NO_EFFECT = {"attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn", "is_decoder"} | {
  f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")
}
_MUST_BE = {"scale_attn_by_inverse_layer_idx": (False,)}


def config(said: dict, where: str) -> TransformerConfig:
  """config.json -> `TransformerConfig`; raises `InversionViewError` naming an attribute that is missing or not handled."""
  refuse_unhandled(said, where, _SHAPE | _NO_EFFECT | NO_EFFECT, _MUST_BE)
  refuse_sizes(said, where, ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"))
  activation = said.get("activation_function", "gelu_new")
  if activation not in ACTIVATIONS:
    raise InversionViewError(
      f"{where}: activation_function = {activation!r} is not handled, only {', '.join(ACTIVATIONS)}"
    )
  if said["n_embd"] % max(said["n_head"], 1):
    raise InversionViewError(f"{where}: n_embd = {said['n_embd']} is not a multiple of n_head = {said['n_head']}")
  try:
    return TransformerConfig(
      vocab_size=said["vocab_size"],
      n_ctx=said["n_positions"],
      n_layers=said["n_layer"],
      n_heads=said["n_head"],
      d_model=said["n_embd"],
      d_mlp=said.get("n_inner") or 4 * said["n_embd"],
      activation=activation,
      norm_eps=said.get("layer_norm_epsilon", 1e-5),
      tied=said.get("tie_word_embeddings", True),
      attn_scale=said.get("scale_attn_weights", True),
    )
  except TypeError as error:
    raise InversionViewError(f"{where} is damaged or not the configuration of a model: {error}") from None


def layout(config: TransformerConfig) -> dict:
  """Where each of our arrays comes from; kernels are [in, out] in the checkpoint, as here."""
  d, m = config.d_model, config.d_mlp

  def norm(name):
    return {"scale": Leaf(f"{name}.weight", (d,)), "bias": Leaf(f"{name}.bias", (d,))}

  def linear(name, *shape):
    return {"kernel": Leaf(f"{name}.weight", shape), "bias": Leaf(f"{name}.bias", shape[1:])}

  def third(x, which):  # of c_attn, which holds q, k and v side by side
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


def renamed(name: str) -> str:
  """Names carry "transformer." in some files and not in others."""
  return name.removeprefix("transformer.")


def unused(name: str) -> bool:
  """Old files carry the causal mask as "attn.bias" and "attn.masked_bias"; a tied model may carry its unembedding."""
  return name == "lm_head.weight" or name.endswith(("attn.bias", "attn.masked_bias"))
