"""Which heads matter: the share of a head's write in the update that attention makes to the residual stream (paper, causal checks of factual recall).

At one position, y = x.mid of a layer is the sum of x.pre, of what each head writes, and of the output bias. The proximity of a part p to y is
max(0, |y| - |y - p|) in the L1 norm, and its share is its proximity among that of all parts (Ferrando and Voita, 2024, by whom the paper
selects its heads).

Shapes: N prompts, B batch, T tokens, L layers, H heads, D width.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal.addresses import Inputs, encode_inputs
from inversionview_jax.causal.post_norm import post_norm_scale, refuse_centering
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.targets.positions import Position, resolve_positions


@dataclasses.dataclass(frozen=True)
class Head:
  """One head over a list of prompts.

  Attributes:
    site: such as "a9.6".
    over: on how many prompts its share exceeds the threshold.
    mean: of its share.
  """

  site: str
  over: int
  mean: float


def head_shares(
  target: Target, inputs: Inputs, position: Position = -1, batch_size: int = 16
) -> tuple[np.ndarray, np.ndarray | None]:
  """The share of every head at one position of each text.

  Args:
    target: any `Target`; of one with an RMSNorm behind attention, a head's write is what it is behind that norm (`post_norm`).
    inputs: N texts or int[N, T].
    position: an index, a negative index, a label, or int[N]; by default the last token of each text.
    batch_size: texts at a time; the result does not depend on it.

  Returns:
    float32[N, L, H], and int32[N], the token that is predicted there (None for a target without logits).

  Raises:
    InversionViewError: a target with a LayerNorm behind attention, or a batch size out of range.
  """
  refuse_centering(target.config, target.name)
  bounds.check(batch_size=batch_size)
  texts = encode_inputs(target, inputs)
  tokens, at = texts.tokens, resolve_positions(target, texts, position)

  def program(rows):
    return _shares(target.module, target.has_logits, target.params, *rows)

  return parallel.in_chunks(program, (tokens, at), min(batch_size, len(tokens)))


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _shares(module, has_logits, params, tokens, at):
  c = module.config
  layers = range(c.n_layers)
  behind = ("post",) if c.attn_only else ("post", "mlp") if c.parallel else ("mid",)
  sites = [Site(kind, layer) for layer in layers for kind in ("pre", "heads", *behind)]
  last = Site("post", c.n_layers - 1)
  capture = (*sites, *((last,) if has_logits else ()))
  out = module.apply({"params": params}, tokens, capture=capture, at=at[:, None], logits=False)

  def share(layer):
    before, heads, after, *mlp = (
      out[Site(kind, layer)][:, 0].astype(jnp.float32) for kind in ("pre", "heads", *behind)
    )
    heads = heads * post_norm_scale(c, params, layer, heads)
    after = after - sum(mlp)  # without what the MLP adds beside attention
    bias = after - before - jnp.sum(heads, axis=1)
    parts = jnp.concatenate([heads, before[:, None], bias[:, None]], axis=1)  # [B, H + 2, D]

    def norm(x):
      return jnp.sum(jnp.abs(x), axis=-1)

    proximity = jnp.maximum(0.0, norm(after)[:, None] - norm(after[:, None] - parts))
    return (proximity / jnp.maximum(jnp.sum(proximity, axis=1, keepdims=True), 1e-30))[:, : c.n_heads]

  shares = jnp.stack([share(layer) for layer in layers], axis=1)
  if not has_logits:
    return shares, None
  return shares, jnp.argmax(module.apply({"params": params}, out[last][:, 0], method="logits"), axis=-1)


def ranked(
  shares: np.ndarray, threshold: float = 0.02, first_layer: int = 0, last_layer: int | None = None
) -> list[Head]:
  """All heads of some layers, those first whose share exceeds the threshold on most prompts; among equals the larger mean share.

  Args:
    shares: float32[N, L, H].
    threshold: the paper's.
    first_layer, last_layer: both included; None for the last there is.

  Raises:
    InversionViewError: no such layers, or a threshold that is no share.
  """
  layers = shares.shape[1]
  last_layer = layers - 1 if last_layer is None else last_layer
  if not 0 <= first_layer <= last_layer < layers:
    raise InversionViewError(f"layers {first_layer} to {last_layer}: the target has the layers 0 to {layers - 1}")
  if not 0 <= threshold < 1:
    raise InversionViewError(f"threshold = {threshold} must be a share from 0 to 1 (paper: 0.02)")
  over, mean = (shares > threshold).sum(axis=0), shares.mean(axis=0, dtype=np.float64)
  heads = [
    Head(f"a{layer}.{head}", int(over[layer, head]), float(mean[layer, head]))
    for layer in range(first_layer, last_layer + 1)
    for head in range(shares.shape[2])
  ]
  return sorted(heads, key=lambda head: (-head.over, -head.mean))
