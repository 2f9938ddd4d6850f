"""A norm whose divisor and normalized activation can be captured and edited.

Shapes: B batch, T tokens, D d_model.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.models.capture import Recorder


def through_norm(module: nn.Module, x: jax.Array, recorder: Recorder | None, kind: str, layer: int | None) -> jax.Array:
  """`module(x)`, step by step where one of its sites is captured or edited.

  Args:
    module: a LayerNorm or RMSNorm of Flax, or one with the same attributes and parameters.
    x: float[B, T, D].
    recorder: captures and edits.
    kind: of its site, such as "ln1"; with "_scale" the divisor's.
    layer: of the site.
  """
  scale_kind = f"{kind}_scale"
  if recorder is None or not recorder.uses(kind, scale_kind):
    return module(x)  # type: ignore[operator]
  wide = x.astype(jnp.float32)
  if isinstance(module, nn.LayerNorm):
    wide = wide - wide.mean(axis=-1, keepdims=True)
  scale = jnp.sqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + module.epsilon)  # type: ignore[attr-defined]
  scale = recorder.inner(scale_kind, layer, scale)
  out = recorder.inner(kind, layer, wide / scale)
  weights = module.variables.get("params", {})
  out = out * weights["scale"] if "scale" in weights else out
  return (out + weights["bias"] if "bias" in weights else out).astype(x.dtype)
