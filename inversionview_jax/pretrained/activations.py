"""Names of activation functions in a config.json -> those of `models.layers.ACTIVATIONS`.

Source: ACT2FN of transformers' activations.py. Its names that mean one function are one here; "prelu" and "xielu", which have parameters of
their own, are not read.
"""

from typing import Any

from inversionview_jax.pretrained.attributes import REQUIRED, Attributes

_SAME = (
  "gelu",
  "gelu_new",
  "gelu_10",
  "hardswish",
  "laplace",
  "leaky_relu",
  "linear",
  "mish",
  "quick_gelu",
  "relu",
  "relu2",
  "relu6",
  "sigmoid",
  "silu",
  "sqrtsoftplus",
  "tanh",
)
NAMES = {name: name for name in _SAME} | {
  "gelu_python": "gelu",
  "gelu_accurate": "gelu_new",
  "gelu_fast": "gelu_new",
  "gelu_python_tanh": "gelu_new",
  "gelu_pytorch_tanh": "gelu_new",
  "swish": "silu",
}


def activation(read: Attributes, name: str, default: Any = REQUIRED, null: bool = False) -> str:
  """The activation function that an attribute names, as `TransformerConfig` has it; arguments as for `Attributes.choice`."""
  return NAMES[read.choice(name, tuple(NAMES), default, null)]
