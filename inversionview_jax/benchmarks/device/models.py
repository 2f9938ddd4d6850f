"""The models that parity is measured on: the shipped readers, and random ones of the kinds that do not ship.

Random parameters come from a hash, so that they are the same bits on every machine and with every version of NumPy and JAX.

Shapes: B texts, T tokens, V vocabulary.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.reading import Reader, load_reader
from inversionview_jax.targets import Target, load_target
from inversionview_jax.tasks import hashing

_WIDTH, _LAYERS, _HEADS = 16, 2, 4
# What GPT-2 does not have: rotary embeddings, shared key/value heads, RMSNorm, gates, windows, caps, norms of queries, keys and writes.
_ROTARY = TransformerConfig(
  vocab_size=24,
  n_ctx=16,
  n_layers=_LAYERS,
  n_heads=_HEADS,
  d_model=_WIDTH,
  d_mlp=32,
  activation="silu",
  norm="rms",
  n_kv_heads=2,
  head_width=8,
  rotary=(1.0, 0.3, 0.1, 0.03),
  windows=(4, 0),
  biases=("q", "k", "v"),
  gated=True,
  qk_norm=True,
  post_norm=True,
  embed_scale=4.0,
  attn_cap=20.0,
  logit_cap=10.0,
)


def numbers(shape: tuple[int, ...], seed: int) -> np.ndarray:
  """float32 of this shape, uniform with mean 0 and variance 1; a function of the seed and of the index of each."""
  size = math.prod(shape)
  uniform = hashing.uniform(2**24, seed, np.arange(size)) / 2**24
  return ((uniform - 0.5) * 12**0.5).astype(np.float32).reshape(shape)


def variables(module: Any, *inputs: Any) -> Any:
  """Variables of a module in which every parameter matters, biases and norms included."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)
  leaves, structure = jax.tree_util.tree_flatten_with_path(shapes)
  made = []
  for seed, (path, leaf) in enumerate(leaves):
    scale = 1.0 if str(getattr(path[-1], "key", "")) == "scale" else 0.0
    made.append(np.float32(scale + 0.3 * numbers(leaf.shape, seed)))
  return jax.tree.unflatten(structure, made)


def random_like(params: Any) -> Any:
  """Parameters of these shapes under which gradients are well conditioned: those of a trained model are small sums of large terms."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(params)
  made = []
  for seed, (path, leaf) in enumerate(leaves):
    spread = leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
    made.append(np.asarray(leaf) if path[-1].key == "scale" else numbers(leaf.shape, seed) * spread)
  return jax.tree.unflatten(structure, made)


@functools.cache
def mesh() -> jax.sharding.Mesh:
  """One device: what more of them give is a check of its own."""
  return parallel.make_mesh(devices=jax.devices()[:1])


@functools.cache
def reader(name: str) -> Reader:
  """A shipped reader on the first device."""
  return load_reader(name, mesh=mesh())


@functools.cache
def targets(dtype: str | None = None) -> dict[str, Target]:
  """The targets whose logits, activations and edits are compared."""
  return {"addition": load_target("addition", dtype=dtype), "rotary": rotary_target(dtype)}


def rotary_target(dtype: str | None = None) -> Target:
  """A random target with everything in `_ROTARY`, over token ids."""
  params = variables(Transformer(_ROTARY), jnp.zeros((1, 1), jnp.int32))["params"]
  return Target.from_raw(params, _ROTARY, None, "raw", name="rotary", dtype=dtype)


def tokens(name: str) -> np.ndarray:
  """int32[B, T], the texts of a target: two of a task, three of the random one."""
  if name == "rotary":
    return hashing.uniform(_ROTARY.vocab_size, 7, np.arange(36)).reshape(3, 12).astype(np.int32)
  task = reader(name).task
  return task.tokens(hashing.uniform(task.num_inputs, 11, np.arange(2)))


def cross_decoder() -> tuple[Decoder, Any]:
  """A random decoder of the cross-attention variant for the addition target, on one device; its module and variables."""
  width = 20
  shape = TransformerConfig(15, 14, _LAYERS, _HEADS, _WIDTH, 32, cross_width=width)
  module = Decoder(
    DecoderConfig(shape, ("a0.0", "x0.post"), 32, encoder_blocks=1, encoder_width=width, forbidden=(10, 14))
  )
  return module, variables(module, jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 32)), jnp.zeros(1, jnp.int32))
