"""Decoders trained with the paper's PyTorch release -> `DecoderConfig` and its variables.

Such a decoder is a Hugging Face folder: a GPT-2 configuration with `act_dim`, `probed_acts`, `cross_attn`, `act_proc_resid_dim`,
`act_proc_mid_dim` and `act_proc_num_mlp`, and GPT-2's tensors with those of the activation's encoder, whose names begin with
"act_proc_layer". Linear maps are [in, out] in these files, as here.

Shapes: D width of the activation, S sites, R width of the encoder's residual stream, M width of the decoder.
"""

import dataclasses
import pathlib

import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import read_json
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.pretrained import gpt2
from inversionview_jax.pretrained.attributes import refuse_sizes
from inversionview_jax.pretrained.parts import Leaf, Parts, Renamed, has_own_unembedding
from inversionview_jax.pretrained.weights import Safetensors

_OWN = {"act_dim", "probed_acts", "cross_attn", "act_proc_resid_dim", "act_proc_mid_dim", "act_proc_num_mlp"}
_BLOCKS = 6  # residual blocks of the encoder where `act_proc_num_mlp` is missing
_EPS = 1e-5  # of the encoder's norms


def is_release(folder: pathlib.Path) -> bool:
  """Whether a folder holds a decoder of the release: its config.json has "probed_acts"."""
  try:
    return "probed_acts" in read_json(folder / "config.json", finite=False)
  except (InversionViewError, TypeError):
    return False


def load(folder: pathlib.Path) -> tuple[DecoderConfig, dict, dict]:
  """Reads a folder of the release.

  Returns:
    The configuration, the variables as float32 arrays, and the attributes of config.json.

  Raises:
    InversionViewError: files missing or damaged, only pickled weights, or an attribute or tensor that is missing or not handled (named).
  """
  where = folder / "config.json"
  attributes = read_json(where, finite=False)  # a number that is not finite is refused by its name, where it is used
  config = config_of(attributes, str(where))
  tensors = Renamed(Safetensors(folder), gpt2.rename, folder)
  if config.transformer.tied:
    untied = dataclasses.replace(config, transformer=dataclasses.replace(config.transformer, tied=False))
    if has_own_unembedding(tensors, layout(config), layout(untied)):
      config = untied
  parts = Parts(tensors, layout(config), gpt2.unused, folder)
  read = {name: parts[name] for name in parts}
  mean = {"mean": np.zeros((len(config.sites), config.d_activation), np.float32)}
  return (
    config,
    {"params": {"encoder": read.pop("encoder"), "transformer": read}, "stats": {"encoder": mean}},
    attributes,
  )


def config_of(attributes: dict, where: str) -> DecoderConfig:
  """The decoder that a config.json describes; raises `InversionViewError` naming an attribute that is missing or not handled."""
  if not isinstance(attributes, dict):
    raise InversionViewError(f"{where} is damaged or not the configuration of a model")
  transformer = gpt2.config({name: value for name, value in attributes.items() if name not in _OWN}, where)
  if transformer.norm_eps != _EPS:
    raise InversionViewError(f"{where}: layer_norm_epsilon = {transformer.norm_eps} is not handled, only {_EPS}")
  refuse_sizes(attributes, where, ("act_dim", "act_proc_resid_dim", "act_proc_mid_dim"))
  names = attributes.get("probed_acts")
  if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
    raise InversionViewError(f"{where}: probed_acts = {names!r} is not a list of sites")
  probed = tuple(sites.parse(name).short for name in names)
  if len(set(probed)) < len(probed):
    raise InversionViewError(f"{where}: probed_acts names a site twice")
  if not isinstance(crossed := attributes.get("cross_attn", False), bool):
    raise InversionViewError(f"{where}: cross_attn = {crossed!r} is neither true nor false")
  blocks = attributes.get("act_proc_num_mlp", _BLOCKS)
  width, site_width = attributes["act_proc_resid_dim"], attributes["act_proc_resid_dim"] - attributes["act_dim"]
  if site_width < 1 or not isinstance(blocks, int) or blocks < 0:
    raise InversionViewError(
      f"{where}: act_proc_resid_dim = {width}, act_dim = {attributes['act_dim']} and act_proc_num_mlp = {blocks!r} leave no room for "
      "the embedding of a site"
    )
  return DecoderConfig(
    transformer=dataclasses.replace(transformer, cross_width=width if crossed else 0),
    sites=probed,
    d_activation=attributes["act_dim"],
    encoder_blocks=blocks,
    site_width=site_width,
    encoder_inner=attributes["act_proc_mid_dim"],
  )


def layout(config: DecoderConfig) -> dict:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter."""
  r, inner, m = config.d_activation + config.site_width, config.encoder_inner, config.transformer.d_model

  def norm(name, width):
    return {"scale": Leaf(f"{name}.weight", (width,)), "bias": Leaf(f"{name}.bias", (width,))}

  def linear(name, *shape):
    return {"kernel": Leaf(f"{name}.weight", shape), "bias": Leaf(f"{name}.bias", shape[1:])}

  encoder = {
    "site_embed": Leaf("act_proc_layer_emb.weight", (len(config.sites), config.site_width)),
    "ln_f": norm("act_proc_layer_final_ln", r),
  }
  for block in range(config.encoder_blocks):
    own = f"act_proc_layer_MLPs.{block}"
    encoder |= {
      f"ln_{block}": norm(f"{own}.0", r),
      f"in_{block}": linear(f"{own}.1", r, inner),
      f"out_{block}": linear(f"{own}.3", inner, r),
    }
  out = gpt2.layout(config.transformer)
  heads = (config.transformer.n_heads, config.transformer.d_head)
  for layer in range(config.transformer.n_layers):
    own = f"h.{layer}.act_proc_layer"
    if config.transformer.cross_width:
      cross = {"q": linear(f"{own}_attn.c_attn_q", m, m), "kv": linear(f"{own}_attn.c_attn_kv", r, 2 * m)}
      cross["o"] = linear(f"{own}_attn.c_proj", m, m)
      for which in ("no_op_k", "no_op_v"):
        cross[which] = Leaf(f"{own}_attn.{which}", (1, heads[0], 1, heads[1]), lambda x: x[0, :, 0])
      out[f"blocks_{layer}"] |= {"cross": cross, "cross_ln": norm(f"{own}_ln", m)}
    else:
      encoder |= {f"slot_{layer}": linear(f"{own}_block.0", r, m), f"slot_ln_{layer}": norm(f"{own}_block.1", m)}
  return out | {"encoder": encoder}
