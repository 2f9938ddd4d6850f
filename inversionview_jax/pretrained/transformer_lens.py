"""Models of TransformerLens' own: a folder with the configuration of a `HookedTransformer` as config.json and its state dict as safetensors.

The three lines of torch that write such a folder are in pretrained/README.md. The weights are taken as they are, so that every activation is
TransformerLens' own; what its loading does to weights (`fold_ln`, `center_writing_weights`) was done before they were written, or not at all.

Shapes: H heads, G key/value heads, D d_model, K d_head, M d_mlp, V d_vocab, O d_vocab_out.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import transformer_lens_config
from inversionview_jax.pretrained.family import Family
from inversionview_jax.pretrained.parts import Leaf, Weights
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizers import CharTokenizer, Tokenizer

MODEL_TYPE = "transformer_lens"  # what is put into the attributes of such a config.json, which has no model_type


def _heads_last(x: np.ndarray) -> np.ndarray:
  """float32[H, D, K] -> float32[D, H * K]."""
  return np.ascontiguousarray(x.transpose(1, 0, 2).reshape(x.shape[1], -1))


def _flat(x: np.ndarray) -> np.ndarray:
  return x.reshape(-1)


def _rows(x: np.ndarray) -> np.ndarray:
  """float32[H, K, D] -> float32[H * K, D]."""
  return x.reshape(-1, x.shape[-1])


def _ones(x: np.ndarray) -> np.ndarray:
  return np.ones_like(x)


def layout(config: TransformerConfig, weights: bool | None = None) -> dict:
  """Name of a part -> nested dicts of `Leaf`: the tensor of each parameter.

  Args:
    config: the architecture.
    weights: whether norms have weights (LN and RMS) or none (LNPre and RMSPre).
  """
  d, m, out = config.d_model, config.d_mlp, config.outputs

  def norm(name, width=d, kind="", own=bool(weights)):
    tensors = {"scale": Leaf(f"{name}.w" if own else None, (width,), _same if own else _ones)}
    return tensors | (
      {"bias": Leaf(f"{name}.b" if own else None, (width,))} if (kind or config.norm) == "layer" else {}
    )

  parts: dict[str, Any] = {"embed": Leaf("embed.W_E", (config.vocab_size, d))}
  if not config.rotary:
    parts["pos_embed"] = Leaf("pos_embed.W_pos", (config.n_ctx, d))
  has_norms = config.norm != "none"
  parts["ln_f"] = norm("ln_final", kind=config.final_norm) if has_norms else {"scale": Leaf(None, (d,), _ones)}
  parts["unembed"] = {"kernel": Leaf("unembed.W_U", (d, out)), "bias": Leaf("unembed.b_U", (out,))}
  for layer in range(config.n_layers):
    block, h = {"attn": _attention(config, f"blocks.{layer}.attn", norm)}, f"blocks.{layer}"
    if not config.attn_only:
      mlp = {"fc": {"kernel": Leaf(f"{h}.mlp.W_in", (d, m))}}
      mlp |= {"gate": {"kernel": Leaf(f"{h}.mlp.W_gate", (d, m))}} if config.gated else {}
      if not config.gated:
        mlp["fc"]["bias"] = Leaf(f"{h}.mlp.b_in", (m,))
      mlp["proj"] = {"kernel": Leaf(f"{h}.mlp.W_out", (m, d)), "bias": Leaf(f"{h}.mlp.b_out", (d,))}
      if config.activation.endswith("_ln"):  # a LayerNorm in any case, with weights beside LN only
        mlp["ln"] = norm(f"{h}.mlp.ln", m, "layer", bool(weights) and config.norm == "layer")
      block["mlp"] = mlp
    for name in ("ln1", "ln2")[: 0 if not has_norms else 1 if config.attn_only else 2]:
      block[name] = norm(f"{h}.{name}")
      if config.post_norm:
        block[f"{name}_post"] = norm(f"{h}.{name}_post", own=True)
    parts[f"blocks_{layer}"] = block
  return parts


def _same(x: np.ndarray) -> np.ndarray:
  return x


def _attention(config: TransformerConfig, name: str, norm) -> dict[str, Any]:
  d, k, heads, kv_heads = config.d_model, config.d_head, config.n_heads, config.kv_heads
  grouped = "_" if config.n_kv_heads else ""  # keys and values of fewer heads have an underscore in front
  attn: dict[str, Any] = {
    which: {
      "kernel": Leaf(f"{name}.{mark}W_{which.upper()}", (count, d, k), _heads_last),
      "bias": Leaf(f"{name}.{mark}b_{which.upper()}", (count, k), _flat),
    }
    for which, mark, count in (("q", "", heads), ("k", grouped, kv_heads), ("v", grouped, kv_heads))
  }
  attn["o"] = {"kernel": Leaf(f"{name}.W_O", (heads, k, d), _rows), "bias": Leaf(f"{name}.b_O", (d,))}
  if config.qk_norm:
    attn |= {f"{which}_norm": norm(f"{name}.{which}_norm", k, own=True) for which in "qk"}
  if config.sinks:
    attn["sinks"] = Leaf(f"{name}.sinks", (heads,))
  return attn


def unused(name: str) -> bool:
  """Whether a tensor is no parameter: masks and tables of angles; the bias of a gated MLP, which `refuse_gated_bias` looks at."""
  return name.endswith((".mask", ".IGNORE", ".rotary_sin", ".rotary_cos", ".mlp.b_in"))


def family_of(attributes: Mapping) -> Family:
  """The family of a `HookedTransformer`: whether norms have weights is not in the configuration that is kept."""
  weights = attributes.get("normalization_type", "LN") in ("LN", "RMS")
  return Family(
    (MODEL_TYPE,), transformer_lens_config.config, functools.partial(layout, weights=weights), unused=unused
  )


def refuse_gated_bias(weights: Weights, config: TransformerConfig, where: str) -> None:
  """Raises `InversionViewError` for a gated MLP whose b_in, added behind the gate, is not zero; no such model was ever published."""
  if not config.gated:
    return
  for layer in range(config.n_layers):
    name = f"blocks.{layer}.mlp.b_in"
    if name in weights.names and np.any(weights.read(name)):
      raise InversionViewError(f"{where}: {name} is not zero; a gated MLP with a bias behind its gate is not handled")


def is_own(attributes: Mapping) -> bool:
  """Whether these attributes of an opened checkpoint are of a `HookedTransformer`."""
  return attributes.get("model_type") == MODEL_TYPE


def refuse_centered(convention: str | None) -> None:
  """Raises `InversionViewError` for another convention than "raw"."""
  if convention not in (None, "raw"):
    raise InversionViewError(
      f"convention {convention!r}: the weights of a TransformerLens folder are taken as they are ('raw'); to read centred ones, process them "
      "there before they are saved (HookedTransformer.process_weights_)"
    )


def fitted(
  parts: Mapping, config: TransformerConfig, attributes: Mapping, tokenizer: Tokenizer | None
) -> tuple[Mapping, TransformerConfig, Tokenizer | None]:
  """Parameters, architecture and tokenizer that go together.

  A model of an algorithmic task often has no BOS, EOS or PAD. A tokenizer of characters with these behind the model's own tokens is taken: their
  embeddings are zeros, and the logits stay as they are. Where attention is in both directions, nothing attends to EOS and PAD. A tokenizer
  of texts has no BOS in front of them where the model's `default_prepend_bos` is false.

  Args:
    parts, config, attributes: of the opened checkpoint.
    tokenizer: its own, or the one that was given; None for none.
  """
  if tokenizer is None:
    return parts, config, None
  if isinstance(tokenizer, HuggingFaceTokenizer) and not attributes.get("default_prepend_bos", True):
    tokenizer = dataclasses.replace(tokenizer, prepends_bos=False)
  special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
  rows = tokenizer.vocab_size
  if (
    isinstance(tokenizer, CharTokenizer) and rows > config.vocab_size and special >= set(range(config.vocab_size, rows))
  ):
    parts = _Extended(parts, rows - config.vocab_size)
    config = dataclasses.replace(config, vocab_size=rows, vocab_out=config.outputs)
  if not config.causal:
    ended = tuple(sorted({tokenizer.eos_id, tokenizer.pad_id} - {tokenizer.bos_id}))
    config = dataclasses.replace(config, unattended=ended)
  return parts, config, tokenizer


class _Extended(Mapping):
  """The parts of a model with so many rows of zeros more in its embedding."""

  def __init__(self, parts: Mapping, rows: int):
    self._parts, self._rows = parts, rows

  def __getitem__(self, part: str) -> Any:
    found = self._parts[part]
    return np.pad(found, ((0, self._rows), (0, 0))) if part == "embed" else found

  def __contains__(self, part: object) -> bool:
    return part in self._parts

  def __iter__(self) -> Iterator[str]:
    return iter(self._parts)

  def __len__(self) -> int:
    return len(self._parts)
