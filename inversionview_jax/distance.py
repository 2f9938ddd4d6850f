"""Distances between activations, in float32 whatever the compute type (paper, section 2.1).

Shapes: B batch, T positions, D width of the residual stream.
"""

from typing import TYPE_CHECKING

from inversionview_jax.errors import one_of

if TYPE_CHECKING:
  import jax

# name -> what a person reads, in the order by which programs number them
METRICS = {"euclidean": "normalized Euclidean distance", "cosine": "cosine distance"}
MATCHES = {"anywhere": "at the nearest position", "position": "at the position of the query"}
# An activation of a smaller norm counts as zero. Compiled programs write zeros: some exactly, others as what softmax leaves (1e-18 and less).
_ZERO = 1e-12


def metric_index(name: str) -> int:
  """The number that stands for a metric inside a program, its place in `METRICS`."""
  return list(METRICS).index(name)


def _float32(activation, query):
  """The namespace of the arrays (NumPy or `jax.numpy`, which therefore need not be imported here), and both as float32."""
  xp = activation.__array_namespace__()
  return xp, activation.astype(xp.float32), query.astype(xp.float32)


def _norm(xp, x):
  """float32[..., D] -> float32[...]; its gradient is 0, and not NaN, where x is 0."""
  squares = xp.sum(xp.square(x), axis=-1)
  zero = squares == 0
  return xp.where(zero, xp.zeros_like(squares), xp.sqrt(xp.where(zero, xp.ones_like(squares), squares)))


def normalized_euclidean(activation: "jax.Array", query: "jax.Array") -> "jax.Array":
  """``||z - z'|| / ||z||`` with z the query: float[..., D], float[..., D] -> float32[...], broadcasting.

  Of a query that is zero: 0 to an activation that is zero, and at least 1, mostly very much, to any other.
  """
  xp, activation, query = _float32(activation, query)
  difference, norm, other = _norm(xp, activation - query), _norm(xp, query), _norm(xp, activation)
  normalized = difference / xp.maximum(norm, _ZERO)
  of_zero = xp.where(other < _ZERO, xp.zeros_like(normalized), xp.maximum(normalized, 1.0))
  return xp.where(norm < _ZERO, of_zero, normalized)


def cosine(activation: "jax.Array", query: "jax.Array") -> "jax.Array":
  """``1 - cos(z, z')``, between 0 and 2: float[..., D], float[..., D] -> float32[...], broadcasting.

  Zero has no direction: 0 to an activation that is zero too, 1 to any other.
  """
  xp, activation, query = _float32(activation, query)
  one, other = _norm(xp, activation), _norm(xp, query)
  zeros = (one < _ZERO).astype(xp.int32) + (other < _ZERO)
  products, norms = xp.sum(activation * query, axis=-1), one * other
  similarity = products / xp.where(zeros > 0, xp.ones_like(norms), norms)
  return 1.0 - xp.where(zeros > 0, (zeros == 2).astype(xp.float32), similarity)


def distance(metric: str, activation: "jax.Array", query: "jax.Array") -> "jax.Array":
  """The distance called `metric` ("euclidean" is the normalized one); raises `InversionViewError` for another name."""
  if metric not in METRICS:
    raise one_of("metric", metric, METRICS)
  return {"euclidean": normalized_euclidean, "cosine": cosine}[metric](activation, query)


def masked_min(distances: "jax.Array", counted: "jax.Array", position=-1) -> tuple["jax.Array", "jax.Array"]:
  """The minimum over positions that count.

  Args:
    distances: float32[..., T].
    counted: bool[..., T]; False at padding and end-of-sequence, which never count (paper, section 2.1).
    position: int32[...]; the one position that is looked at, or -1 for all.

  Returns:
    ``(float32[...], int32[...])``: the minimum and its position; ``(inf, -1)`` for a row in which nothing counts.
  """
  xp = distances.__array_namespace__()
  position = xp.asarray(position)[..., None]
  counted = counted & ((xp.arange(counted.shape[-1]) == position) | (position < 0))
  distances = xp.where(counted, distances, xp.inf)
  where = xp.where(xp.any(counted, axis=-1), xp.argmin(distances, axis=-1), -1)
  return xp.min(distances, axis=-1), where.astype(xp.int32)
