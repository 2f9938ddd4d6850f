"""GGUF files: metadata as the attributes of a Hugging Face config.json, tensors under Hugging Face's names.

So the families' modules serve both formats. What llama.cpp's conversion did to a tensor is undone here.
Sources: the `gguf` package, which also dequantises, and llama.cpp's conversion script.
"""

import functools
import itertools
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from inversionview_jax import values
from inversionview_jax.devices import host_arrays
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_INNER, MOST_LAYERS, MOST_WIDTH
from inversionview_jax.pretrained import gguf_header
from inversionview_jax.pretrained.weights import read_array
from inversionview_jax.terminal import visible

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3")
_AT_ONCE = 2**22  # numbers dequantised at a time
# llama.cpp rotates neighbouring dimensions (2 i, 2 i + 1) of these, so its conversion reorders the rows of W_Q and W_K.
_REORDERED = ("llama", "smollm3")

_OUTSIDE = {
  "token_embd.weight": "embed_tokens.weight",
  "output_norm.weight": "norm.weight",
  "output.weight": "lm_head.weight",
}
_INSIDE = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_INSIDE_GEMMA2 = _INSIDE | {
  "post_attention_norm": "post_attention_layernorm",
  "ffn_norm": "pre_feedforward_layernorm",
  "post_ffw_norm": "post_feedforward_layernorm",
}
_OUTSIDE_GPT2 = {
  "token_embd.weight": "wte.weight",
  "position_embd.weight": "wpe.weight",
  "output_norm.weight": "ln_f.weight",
  "output_norm.bias": "ln_f.bias",
  "output.weight": "lm_head.weight",
}
_INSIDE_GPT2 = {
  "attn_norm": "ln_1",
  "attn_qkv": "attn.c_attn",
  "attn_output": "attn.c_proj",
  "ffn_norm": "ln_2",
  "ffn_up": "mlp.c_fc",
  "ffn_down": "mlp.c_proj",
}
# Key without the architecture in front ("llama.block_count") -> attribute of config.json.
_KEYS = {
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "block_count": "num_hidden_layers",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "attention.key_length": "head_dim",
  "attention.sliding_window": "sliding_window",
  "attn_logit_softcapping": "attn_logit_softcapping",
  "final_logit_softcapping": "final_logit_softcapping",
}
_KEYS_GPT2 = {
  "context_length": "n_positions",
  "embedding_length": "n_embd",
  "block_count": "n_layer",
  "feed_forward_length": "n_inner",
  "attention.head_count": "n_head",
  "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Key -> the smallest and the largest size.
_SIZES = {
  "context_length": (1, MOST_CONTEXT),
  "embedding_length": (1, MOST_WIDTH),
  "block_count": (0, MOST_LAYERS),
  "feed_forward_length": (1, MOST_INNER),
  "attention.head_count": (1, MOST_WIDTH),
  "attention.head_count_kv": (1, MOST_WIDTH),
  "attention.key_length": (1, MOST_WIDTH),
}
_ROPE_KEYS = {
  "rope.freq_base": "rope_theta",
  "rope.scaling.type": "rope_type",
  "rope.scaling.factor": "factor",
  "rope.scaling.original_context_length": "original_max_position_embeddings",
}
# Keys that are read elsewhere, or have no effect here.
_OTHER_KEYS = {
  "vocab_size",
  "rope.dimension_count",
  "attention.value_length",
  "rope.scaling.finetuned",
  "expert_count",
  "expert_used_count",
  "attention.causal",
  "rope.freq_base_swa",
  "attention.sliding_window_pattern",
}
_MODEL_TYPES = {"gemma3": "gemma3_text"}  # where Hugging Face has another name


class GgufFile:
  """An open GGUF file.

  Attributes:
    attributes: its metadata under the names of a config.json.
    architecture: llama.cpp's name of the model type.
    metadata: key -> a function that returns the value, as stored.
    names: Hugging Face's names of its tensors.

  Raises:
    InversionViewError: the gguf package is missing; the file is truncated, damaged, one of several, or of another architecture; an
      attribute that is not handled.
  """

  def __init__(self, path: pathlib.Path):
    kinds = _quantizations(path)
    header = gguf_header.read(path)
    self.path = path
    self.metadata = header.metadata
    self.architecture = self.read_value("general.architecture", values.text, "")
    if self.architecture not in ARCHITECTURES:
      raise InversionViewError(
        f"{path}: architecture {self.architecture!r} is not handled; of GGUF files this version reads {', '.join(ARCHITECTURES)}"
      )
    if (parts := self.read_value("split.count", functools.partial(values.whole, low=0, high=2**16), 0)) > 1:
      raise InversionViewError(f"{path} is one of {parts} parts; join them with llama.cpp's gguf-split --merge")
    self._tensors = {}  # Hugging Face's name -> (name here, type, shape, first byte, length)
    self._divisors = None
    size, entries = path.stat().st_size, []
    for tensor in header.tensors:
      if tensor.kind not in kinds:
        raise InversionViewError(
          f"{path}: tensor {visible(tensor.name)} is of type {tensor.kind}, which the gguf package does not know"
        )
      kind, block, width = kinds[tensor.kind]
      if tensor.shape and tensor.shape[-1] % block:
        raise InversionViewError(
          f"cannot read {path}: truncated or corrupt (rows of tensor {visible(tensor.name)} are no multiple of {block})"
        )
      length = math.prod(tensor.shape) // block * width
      entry = (tensor.name, kind, tensor.shape, tensor.start, length)
      if entry[3] + entry[4] > size:
        raise InversionViewError(
          f"cannot read {path}: truncated or corrupt (tensor {tensor.name} ends behind the file)"
        )
      entries.append(entry)
      if tensor.name == "rope_freqs.weight":
        self._divisors = [float(x) for x in self._read(entry)]
      else:
        self._tensors[self._renamed(tensor.name)] = entry
    for one, other in itertools.pairwise(sorted(entries, key=lambda entry: entry[3:])):
      if other[3] < one[3] + one[4]:
        raise InversionViewError(f"cannot read {path}: truncated or corrupt (tensors {one[0]} and {other[0]} overlap)")
    self.attributes = self._attributes()
    self.names = frozenset(self._tensors)

  def value(self, key: str, default: Any = None) -> Any:
    """A value of the metadata as it is stored, or `default`."""
    if key not in self.metadata:
      return default
    try:
      return self.metadata[key]()
    except (ValueError, IndexError, TypeError) as error:  # such as a text that is not UTF-8
      raise InversionViewError(f"cannot read {self.path}: the value of {key} is damaged ({error})") from None

  def read_value(self, key: str, check: Callable[[str, object], Any], default: Any = None) -> Any:
    """A value of the metadata that `check` takes: (name, value) -> value; or `default`."""
    return check(f"{self.path}: {key}", self.value(key)) if key in self.metadata else default

  def shape(self, name: str) -> tuple[int, ...]:
    """A tensor's shape, as Hugging Face has it."""
    shape = self._tensors[name][2]
    return shape[::-1] if self._is_transposed(name) else shape

  def read(self, name: str) -> np.ndarray:
    """A tensor as float32, as Hugging Face has it; raises `InversionViewError` for a quantisation that is not read."""
    tensor = self._read(self._tensors[name])
    if self._is_transposed(name):
      return tensor.T
    if self.architecture in _REORDERED and (which := re.search(r"\.self_attn\.([qk])_proj\.", name)):
      heads = self.attributes["num_attention_heads" if which[1] == "q" else "num_key_value_heads"]
      pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])  # (pair, member) -> (member, pair), as in Hugging Face
      return pairs.swapaxes(1, 2).reshape(tensor.shape)
    return tensor

  def _read(self, entry) -> np.ndarray:
    import gguf

    name, kind, shape, start, length = entry
    block, size = gguf.GGML_QUANT_SIZES[kind]
    width = (shape[-1] if shape else 1) // block * size
    raw = read_array(self.path, np.uint8, (length // width, width), start)
    out = host_arrays.empty((len(raw), shape[-1] if shape else 1))
    step = max(1, _AT_ONCE // max(out.shape[1], 1))
    try:
      for first in range(0, len(raw), step):  # a few rows at a time: dequantising takes several times their memory
        out[first : first + step] = gguf.quants.dequantize(raw[first : first + step], kind)
    except NotImplementedError:
      raise InversionViewError(
        f"{self.path}: tensor {name} is quantised as {kind.name}, which is not read; among others Q8_0, Q6_K, Q5_K, Q5_0, Q4_K, Q4_0, BF16, F16 and F32 are"
      ) from None
    return out.reshape(shape)

  def _renamed(self, name: str) -> str:
    """Hugging Face's name of a tensor."""
    gpt2 = self.architecture == "gpt2"
    outside = _OUTSIDE_GPT2 if gpt2 else _OUTSIDE
    inside = _INSIDE_GPT2 if gpt2 else _INSIDE_GEMMA2 if self.architecture in ("gemma2", "gemma3") else _INSIDE
    if name in outside:
      return outside[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if not match or match[2] not in inside:
      return name  # has no place in the model: `Parts` refuses it, under the name in the file
    return f"{'h' if gpt2 else 'layers'}.{match[1]}.{inside[match[2]]}.{match[3]}"

  def _is_transposed(self, name: str) -> bool:
    """Whether a kernel is [in, out] in Hugging Face's files and [out, in] here: GPT-2's linear maps."""
    return self.architecture == "gpt2" and len(self._tensors[name][2]) == 2 and name.startswith("h.")

  def _attributes(self) -> dict:
    """The metadata under the names of a config.json; refuses what has none."""
    gpt2 = self.architecture == "gpt2"
    keys, rope, attributes = _KEYS_GPT2 if gpt2 else _KEYS, {}, {}
    attributes["model_type"] = _MODEL_TYPES.get(self.architecture, self.architecture)
    for key in self.metadata:
      if not key.startswith(f"{self.architecture}."):
        continue
      name, value = key.removeprefix(f"{self.architecture}."), self.value(key)
      if isinstance(value, list) and name != "attention.sliding_window_pattern":
        raise InversionViewError(f"{self.path}: {key} differs between layers, which is not handled")
      if name in _SIZES:
        values.whole(f"{self.path}: {key}", value, *_SIZES[name])
      if name in keys:
        attributes[keys[name]] = value
      elif name in _ROPE_KEYS and not gpt2:
        rope[_ROPE_KEYS[name]] = value
      elif name not in _OTHER_KEYS:
        raise InversionViewError(f"{self.path}: attribute {key} = {value!r} is not handled")
    if self._entry("expert_count", 0) != 0:
      raise InversionViewError(
        f"{self.path}: {self.architecture}.expert_count = {values.brief(self._entry('expert_count'))} is not handled, only 0"
      )
    if (causal := self._entry("attention.causal", True)) is not True:
      raise InversionViewError(
        f"{self.path}: {self.architecture}.attention.causal = {values.brief(causal)} is not handled, only True"
      )
    embedding = self._tensors.get("wte.weight" if gpt2 else "embed_tokens.weight")
    if embedding is None or len(embedding[2]) != 2:
      raise InversionViewError(f"{self.path}: tensor token_embd.weight is missing, or no matrix")
    attributes |= {"vocab_size": embedding[2][0], "tie_word_embeddings": "lm_head.weight" not in self._tensors}
    return attributes if gpt2 else self._llama(attributes, rope)

  def _entry(self, name: str, default=None):
    """A value of the architecture's own metadata."""
    return self.value(f"{self.architecture}.{name}", default)

  def _llama(self, attributes: dict, rope: dict) -> dict:
    """Completes the attributes of a Llama-like model: those that follow from its tensors, and those that a GGUF file leaves out."""
    attributes.setdefault("num_key_value_heads", attributes.get("num_attention_heads"))
    if "head_dim" not in attributes and {"hidden_size", "num_attention_heads"} <= set(attributes):
      attributes["head_dim"] = attributes["hidden_size"] // attributes["num_attention_heads"]
    for name in ("rope.dimension_count", "attention.value_length"):
      if self._entry(name, attributes.get("head_dim")) != attributes.get("head_dim"):
        raise InversionViewError(
          f"{self.path}: {self.architecture}.{name} = {values.brief(self._entry(name))} is not handled, only the width of a head, {attributes['head_dim']}"
        )
    if self.architecture != "qwen2" and "layers.0.self_attn.q_proj.bias" in self._tensors:
      attributes["attention_bias"] = True
    if "layers.0.mlp.up_proj.bias" in self._tensors:
      attributes["mlp_bias"] = True
    if self.architecture.startswith("qwen") and "sliding_window" in attributes:
      attributes["use_sliding_window"] = True
    # GGUF has no key for the scale of the attention scores; the 27B models have one of their own.
    layers_27b = {"gemma2": 46, "gemma3": 62}.get(self.architecture)
    if layers_27b and attributes.get("num_hidden_layers") == layers_27b:
      attributes["query_pre_attn_scalar"] = attributes["hidden_size"] // attributes["num_attention_heads"]
    elif layers_27b:
      attributes["query_pre_attn_scalar"] = attributes.get("head_dim")
    if rope.get("rope_type") == "none":
      rope = {"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {}
    if self._divisors is not None:  # Llama 3's scaling, computed by the conversion
      if other := sorted(set(rope) - {"rope_theta"}):
        raise InversionViewError(
          f"{self.path}: tensor rope_freqs.weight together with rotary {other[0]} is not handled"
        )
      rope |= {"rope_type": "divided", "divisors": self._divisors}
    if self.architecture == "gemma3":
      return attributes | self._gemma3(attributes.get("num_hidden_layers"), rope)
    return attributes | {"rope_parameters": rope}

  def _gemma3(self, layers: int | None, rope: dict) -> dict:
    """Which layers of a Gemma 3 have a window, every layer but each sixth unless stated, and the two rotary embeddings."""
    local = {"rope_type": "default", "rope_theta": self._entry("rope.freq_base_swa", 10_000.0)}
    out: dict[str, Any] = {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
    pattern = self._entry("attention.sliding_window_pattern")
    if isinstance(pattern, int) and not isinstance(pattern, bool):
      values.whole(f"{self.path}: gemma3.attention.sliding_window_pattern", pattern, 1, MOST_LAYERS)
      pattern = [(layer + 1) % pattern != 0 for layer in range(layers or 0)]
    if pattern is not None:
      slides = values.sequence(
        f"{self.path}: gemma3.attention.sliding_window_pattern", pattern, values.switch, MOST_LAYERS
      )
      out["layer_types"] = ["sliding_attention" if each else "full_attention" for each in slides]
    return out


def _quantizations(path: pathlib.Path) -> dict[int, tuple[Any, int, int]]:
  """Number of a type of tensors -> (the type, numbers in a block, bytes of a block); raises `InversionViewError` without the gguf package."""
  try:
    import gguf
  except ImportError:
    raise InversionViewError(
      f"reading {path} needs the gguf package; install it with: pip install 'inversionview-jax[gguf]'"
    ) from None
  return {int(kind): (kind, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
