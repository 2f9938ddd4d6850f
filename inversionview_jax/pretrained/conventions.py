"""The two conventions for a model's weights, and the conversion between them.

"raw" leaves the weights as they are. "centered" is what TransformerLens does on loading a model with LayerNorm, and what the published
distances are measured on: LayerNorm is folded into the weights that read from it, everything that writes to the residual stream is centred
over D, the unembedding is centred over V, and value biases move into b_O (so that a head's write has no constant part). The logits stay
the same up to a constant per position; activations, and so distances, do not.

A model with RMSNorm has no "centered": RMSNorm does not subtract the mean, so a centred residual stream would be another model. The rest
of TransformerLens' processing there (folding the norms' weights, centring the unembedding) changes no activation at any site, so "raw"
agrees with TransformerLens, except for models with value biases (Qwen2), whose heads include b_V W_O here.

Parts of a model are converted one by one: "embed", "pos_embed", "blocks_0" ..., "ln_f", "unembed".
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from inversionview_jax.devices import host_arrays
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.config import LINEAR
from inversionview_jax.models.transformer import TransformerConfig

CONVENTIONS = ("centered", "raw")
_FOLDED = ("q", "k", "v", "o", "fc", "proj", "unembed")  # linear maps that a centered model has with a bias
_AT_ONCE = 2**22  # numbers in float64 at a time


def resolve(convention: str | None, config: TransformerConfig) -> str:
  """The convention itself, or for None the default: "centered" for models with LayerNorm, "raw" for models with RMSNorm.

  Raises:
    InversionViewError: an unknown convention, or "centered" for a model that it would change.
  """
  if convention is None:
    return "centered" if config.norm == "layer" else "raw"
  if convention not in CONVENTIONS:
    raise one_of("convention", convention, CONVENTIONS)
  if convention == "centered" and config.norm != "layer":
    raise InversionViewError(
      "convention 'centered' is for models with LayerNorm: this one has "
      + ("none" if config.norm == "none" else "RMSNorm, which does not subtract the mean")
      + ", so centring its residual stream would change what it computes; use convention='raw', its default"
    )
  return convention


def converted(config: TransformerConfig, convention: str) -> TransformerConfig:
  """The configuration of the converted model: a centered one has an unembedding of its own, and a bias wherever one was folded in."""
  if convention != "centered":
    return config
  biases = tuple(name for name in LINEAR if name in (*config.biases, *_FOLDED))
  return dataclasses.replace(config, tied=False, biases=biases)


def convert(raw: Mapping, config: TransformerConfig, convention: str) -> Iterator[tuple[str, Any, Any]]:
  """Converts a model part by part, so that it need not be in memory twice.

  Args:
    raw: name of a part -> nested dicts of float32 arrays; each part is accessed once, except the embedding and ln_f. Without ln_f (the first
      layers of a model) there is no unembedding either; a base model's is missing.
    config: of the raw model.
    convention: of `CONVENTIONS`.

  Yields:
    ``(name, raw part, converted part)`` in the order of their names; the raw part is None for an unembedding that was tied.
  """
  names = set(raw)
  own = {"unembed"} if convention == "centered" and "ln_f" in names and config.tied else set()
  for name in sorted(names | own):
    part: Any = raw[name] if name in names else None
    if convention == "raw":
      yield name, part, part
    elif name == "unembed":
      kernel, bias = (part["kernel"], part.get("bias", 0.0)) if part else (raw["embed"].T, 0.0)
      yield name, part, _centered_unembedding(kernel, bias, raw["ln_f"])
    elif name == "ln_f":
      yield name, part, _plain(config.d_model)
    elif name.startswith("blocks_"):
      yield name, part, _centered_block(part, config.d_model)
    else:
      yield name, part, _by_rows(part, _over_width)


def _over_width(x):
  """x minus its mean over the last axis, D or V."""
  return x - x.mean(axis=-1, keepdims=True)


def _by_rows(x, function: Callable) -> np.ndarray:
  """Applies a function of rows in float64, a few rows at a time: float32[N, M] -> float32[N, M]."""
  out = host_arrays.empty(x.shape)
  step = max(1, _AT_ONCE // x.shape[-1])
  for start in range(0, len(x), step):
    out[start : start + step] = function(np.asarray(x[start : start + step], np.float64))
  return out


def _plain(width: int) -> dict:
  return {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}


def _centered_unembedding(kernel, bias, norm) -> dict:
  """ln_f folded in, then centred over V, in float64: kernel [D, V], bias [V]."""
  out, scale, shift = host_arrays.empty(kernel.shape), norm["scale"], np.asarray(norm["bias"], np.float64)
  bias, step = np.zeros(kernel.shape[1]) + bias, max(1, _AT_ONCE // kernel.shape[1])
  for start in range(0, len(kernel), step):
    rows = slice(start, start + step)
    wide = np.asarray(kernel[rows], np.float64)
    out[rows] = _over_width(np.asarray(scale[rows], np.float64)[:, None] * wide)
    bias = bias + shift[rows] @ wide
  return {"kernel": out, "bias": np.float32(_over_width(bias))}


def _centered_block(block: dict, width: int) -> dict:
  wide = _map(block, lambda x: np.asarray(x, np.float64))

  def bias(linear):
    return linear.get("bias", np.zeros(linear["kernel"].shape[1]))

  def folded(linear, norm):  # LayerNorm's scale and bias move into the linear map that reads from it
    return {
      "kernel": norm["scale"][:, None] * linear["kernel"],
      "bias": bias(linear) + norm["bias"] @ linear["kernel"],
    }

  q, k, v = (folded(wide["attn"][name], wide["ln1"]) for name in "qkv")
  o, proj = wide["attn"]["o"], wide["mlp"]["proj"]
  attn = {
    "q": q,
    "k": k,
    "v": {"kernel": v["kernel"], "bias": np.zeros_like(v["bias"])},
    "o": {"kernel": _over_width(o["kernel"]), "bias": _over_width(bias(o) + v["bias"] @ o["kernel"])},
  }
  mlp = {
    "fc": folded(wide["mlp"]["fc"], wide["ln2"]),
    "proj": {"kernel": _over_width(proj["kernel"]), "bias": _over_width(bias(proj))},
  }
  out = {"ln1": _plain(width), "attn": attn, "ln2": _plain(width), "mlp": mlp}
  return _map(out, host_arrays.float32)


def _map(tree, function):
  return {key: _map(value, function) if isinstance(value, dict) else function(value) for key, value in tree.items()}
