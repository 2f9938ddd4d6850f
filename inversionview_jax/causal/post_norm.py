"""What heads add to the residual stream of a model with a norm behind attention (Gemma 2 and 3, OLMo 2).

The norm divides the sum of the heads' writes by its root mean square. With this divisor frozen, as direct logit attribution freezes the final
norm's, each head's write is scaled by itself, and these parts sum to what attention adds.

Shapes: B batch, H heads, D d_model.
"""

import jax
import jax.numpy as jnp

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import TransformerConfig


def refuse_centering(config: TransformerConfig, name: str) -> None:
  """Raises `InversionViewError` for a LayerNorm behind attention, whose parts are not scaled copies of the heads' writes."""
  if config.post_norm and config.norm != "rms":
    raise InversionViewError(
      f"the target {name} has a LayerNorm behind attention, through which heads are not followed"
    )


def post_norm_scale(config: TransformerConfig, params: dict, layer: int, heads: jax.Array) -> jax.Array:
  """float32[B, 1, D], by which the norm behind attention multiplies each head's write; ones where there is none.

  Args:
    config: of the model.
    params: of the model.
    layer: whose heads.
    heads: float[B, H, D], the writes of all heads of the layer.
  """
  if not config.post_norm:
    return jnp.ones((len(heads), 1, heads.shape[-1]))
  block = params[f"blocks_{layer}"]
  total = jnp.sum(heads.astype(jnp.float32), axis=1, keepdims=True)
  if "o" in config.biases:
    total = total + block["attn"]["o"]["bias"]
  inverse = jax.lax.rsqrt(jnp.mean(jnp.square(total), axis=-1, keepdims=True) + config.norm_eps)
  return inverse * block["ln1_post"]["scale"]
