"""Attention by multiply-and-sum, for the small matrices of short texts on a CPU; the same numbers as `attention.attend` and `attend_cached`.

Only where `numerics.has_safe_sums`: under a plain `jax.jit`, XLA's CPU backend may return wrong numbers for this form.

Shapes: B batch, P queries, S keys, H heads, G key/value heads, K d_head, C cached positions.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics

# (scores, seen or None, axis of the keys) -> the weights of the sum, in the values' dtype, and the pattern before dropout, float32.
Weigh = Callable[[jax.Array, jax.Array | None, int], tuple[jax.Array, jax.Array]]

# Queries times keys, and width of a head, up to which this is faster than XLA's batched matmuls of such small matrices (with gradients 3
# times at 14 x 14 and width 8, 1.5 times at width 32). XLA's fusions of larger ones are slower (6 times at 33 x 33 and width 32), and
# before sums over more than 32 numbers it writes the products to memory (twice as slow at 14 x 14 and width 64).
_SCORES, _WIDTH = 400, 32


def is_faster(q: jax.Array, k: jax.Array) -> bool:
  """Whether `attend` is faster than matmuls for these float[B, P, H, K] and float[B, S, H, K]: small matrices on a CPU."""
  return numerics.platform() == "cpu" and q.shape[1] * k.shape[1] <= _SCORES and q.shape[-1] <= _WIDTH


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, weigh: Weigh, seen: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """`attention.attend`."""
  # Keys on the last axis of the scores, [B, P, H, S], so that the CPU vectorizes the softmax; heads would be too few.
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
  seen = None if seen is None else seen.swapaxes(1, 2)
  weights, pattern = weigh(jnp.sum(q[:, :, :, None] * k[:, None], axis=-1), seen, -1)
  return jnp.sum(weights[..., None] * v[:, None], axis=3), pattern.swapaxes(1, 2)


def attend_cached(q: jax.Array, keys: jax.Array, values: jax.Array, weigh: Weigh, seen: jax.Array) -> jax.Array:
  """`attention.attend_cached`; with one query per row this is faster than a batched matmul of tiny matrices."""
  weights, _ = weigh(_dot(q, keys[:, :, None]), seen, 0)
  return jnp.sum(weights[..., None, :] * values[:, :, None], axis=0)


def _dot(q, keys):
  """float[..., K, B] each -> float[..., B]: the sum over K, 32 at a time; before longer sums XLA's CPU backend writes the products to memory."""
  parts = (slice(start, start + 32) for start in range(0, q.shape[-2], 32))
  return sum(jnp.sum(q[..., part, :] * keys[..., part, :], axis=-2) for part in parts)
