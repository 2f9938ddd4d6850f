"""OLMo 2: Llama whose norms follow attention and MLP, with norms of all queries and of all keys together."""

from collections.abc import Mapping

from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.pretrained import llama, rotary
from inversionview_jax.pretrained.activations import activation
from inversionview_jax.pretrained.attributes import Attributes, refuse_unhandled
from inversionview_jax.pretrained.family import Family


def config(attributes: Mapping, where: str) -> TransformerConfig:
  """The architecture that a config.json describes.

  Args:
    attributes: of config.json, completed.
    where: its name, for error messages.

  Raises:
    InversionViewError: names an attribute that is missing, of no use or not handled.
  """
  refuse_unhandled(attributes, where, llama.SHAPE | {"attention_bias"}, {})
  read = Attributes(attributes, where)
  shape = llama.common(read, where)
  turned = rotary.read(llama.rope(read), llama.head_width(shape), shape["n_ctx"], where)
  return TransformerConfig(
    **shape,
    **llama.rotates(turned),
    activation=activation(read, "hidden_act", "silu"),
    tied=read.switch("tie_word_embeddings", False),
    biases=("q", "k", "v", "o") if read.switch("attention_bias", False) else (),
    qk_norm=True,
    qk_norm_joint=True,
    pre_norm=False,
    post_norm=True,
  )


FAMILY = Family(("olmo2",), config, llama.layout, llama.rename, llama.unused)
