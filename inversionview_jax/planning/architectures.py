"""Published transformer shapes by name, for plans that need no weights.

The numbers are those of each model's config.json (openai-community/gpt2*, meta-llama/Meta-Llama-3-8B, meta-llama/Llama-3.2-1B).
"""

from typing import Any

from inversionview_jax.errors import one_of
from inversionview_jax.models.transformer import TransformerConfig

# layers, heads, width
_GPT2 = {"gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280), "gpt2-xl": (48, 25, 1600)}
# layers, heads, key/value heads, width, inner width, tied
_LLAMA3 = {"llama-3-8b": (32, 32, 8, 4096, 14336, False), "llama-3.2-1b": (16, 32, 8, 2048, 8192, True)}
NAMES = (*_GPT2, *_LLAMA3)


def architecture(name: str, **changes: Any) -> TransformerConfig:
  """The shape of a published model.

  Args:
    name: one of `NAMES`.
    changes: attributes of `TransformerConfig` with other values, such as n_ctx.

  Raises:
    InversionViewError: an unknown name.
  """
  shape: dict[str, Any]
  if name in _GPT2:
    layers, heads, width = _GPT2[name]
    shape = {
      "vocab_size": 50_257,
      "n_ctx": 1024,
      "n_layers": layers,
      "n_heads": heads,
      "d_model": width,
      "d_mlp": 4 * width,
    }
  elif name in _LLAMA3:
    layers, heads, kv_heads, width, inner, tied = _LLAMA3[name]
    d_head = width // heads
    # The frequencies of theta = 500,000. Llama 3.2 stretches the lowest of them for long texts, which does not change the cost.
    rotary = tuple(500_000.0 ** (-2 * i / d_head) for i in range(d_head // 2))
    shape = {
      "vocab_size": 128_256,
      "n_ctx": 8192,
      "n_layers": layers,
      "n_heads": heads,
      "n_kv_heads": kv_heads,
      "d_model": width,
      "d_mlp": inner,
      "activation": "silu",
      "norm": "rms",
      "tied": tied,
      "rotary": rotary,
      "biases": (),
      "gated": True,
    }
  else:
    raise one_of("architecture", name, NAMES)
  return TransformerConfig(**(shape | changes))
