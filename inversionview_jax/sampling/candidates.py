"""Queries, the rows drawn for them, and the candidates that come back: the arrays that go in and out of a sampling program.

Shapes: Q queries, R rows (one candidate each, of any query), T tokens, D width of the activation, V vocabulary.
"""

from collections.abc import Sequence

import flax.struct
import jax
import numpy as np
from numpy.typing import ArrayLike

from inversionview_jax import distance
from inversionview_jax.errors import one_of

Array = jax.Array | np.ndarray
ANYWHERE = -1  # `Queries.position`: the minimum over positions


@flax.struct.dataclass
class Queries:
  """The activations whose preimages are sampled.

  Attributes:
    activation: float32[Q, D], the query activations z.
    site: int32[Q], index into the decoder's sites.
    position: int32[Q]; where a sample must match, or -1 for the minimum over positions.
    metric: int32[Q], index into `distance.METRICS`.
    suppressed: bool[Q, T, V], tokens that are not drawn at a position; None for none.
    decoder_activation: float32[Q, D] or None; the decoder's input where it differs from the query; distances use `activation`.
  """

  activation: Array
  site: Array
  position: Array
  metric: Array
  suppressed: Array | None = None
  decoder_activation: Array | None = None

  @classmethod
  def of(
    cls,
    activation: ArrayLike,
    site: ArrayLike,
    metric: str | Sequence[str],
    position: ArrayLike = ANYWHERE,
    decoder_activation: ArrayLike | None = None,
  ) -> "Queries":
    """Queries as NumPy arrays, from values of which one may stand for all.

    Args:
      activation: float[Q, D].
      site: int[Q] or int, index into the decoder's sites.
      metric: a name of `distance.METRICS`, or Q of them.
      position: int[Q] or int; -1 for the minimum over positions.
      decoder_activation: float[Q, D] or None.

    Raises:
      InversionViewError: an unknown metric.
    """
    activation = np.asarray(activation, np.float32)
    count = len(activation)
    names = [metric] if isinstance(metric, str) else metric
    for name in names:
      if name not in distance.METRICS:
        raise one_of("metric", name, distance.METRICS)
    index = np.array([distance.metric_index(name) for name in names], np.int32)

    def per_query(values: ArrayLike) -> np.ndarray:
      return np.array(np.broadcast_to(np.asarray(values, np.int32), (count,)))

    return cls(
      activation,
      per_query(site),
      per_query(position),
      per_query(index),
      decoder_activation=None if decoder_activation is None else np.asarray(decoder_activation, np.float32),
    )

  def __len__(self) -> int:
    return len(self.site)

  def take(self, index: int | slice | Sequence[int] | np.ndarray) -> "Queries":
    """Some of the queries, as another `Queries`; an int gives one."""
    index = np.atleast_1d(np.arange(len(self))[index])
    return jax.tree.map(lambda x: x[index], self)


@flax.struct.dataclass
class Rows:
  """The candidates to draw, one per row.

  Attributes:
    query: int32[R], index into the queries.
    number: int32[R], folded into the random key.
    temperature, noise: float32[R]; noise is eta, or 1 - cosine in rows of `directions`.
    stratum: float32[R, 2] or None. A row's sub-interval [low, low + width) of the decoder's CDF over sequences, which are ordered by
      their tokens. Rows that partition the unit interval sample it evenly (stratified sampling): together they follow the decoder's
      distribution and contain fewer duplicates than independent rows, which None draws.
    directions: bool[R] or None; True draws a vector at this cosine to z, with the norm of z times exp(U(-1, 1)), instead of adding
      Gaussian noise of eta * std(z). None: no row does.
  """

  query: Array
  number: Array
  temperature: Array
  noise: Array
  stratum: Array | None = None
  directions: Array | None = None


@flax.struct.dataclass
class Candidates:
  """Drawn texts with the distances that the target measures on them.

  Attributes:
    tokens: int32[R, T], from BOS to EOS, then PAD.
    distance: float32[R], inf where no position could be compared.
    position: int32[R], of the minimum; -1 where no position could be compared.
    effect: float32[R, T], p(token | prefix, z) - p(token | prefix, z0) per token, 0 at BOS and PAD; None unless effects were requested.
  """

  tokens: Array
  distance: Array
  position: Array
  effect: Array | None


def one_row_per_query(queries: int) -> Rows:
  """One candidate for each query, at temperature 1 and without noise, as for the in-epsilon rate (paper, section 3)."""
  number = np.arange(queries, dtype=np.int32)
  return Rows(number, number, np.ones(queries, np.float32), np.zeros(queries, np.float32))


def mixture_rows(
  settings: Sequence[tuple[float, float]],
  num_samples: int,
  queries: int = 1,
  stratified: bool = False,
  directions: bool = False,
) -> Rows:
  """`num_samples` rows for each query, an equal share at each (temperature, eta); the first settings take the remainder.

  Args:
    settings: pairs of (temperature, eta); of (temperature, cosine) with `directions`.
    num_samples: rows per query.
    queries: Q.
    stratified: whether the rows of a query at one setting partition the unit interval (`Rows.stratum`).
    directions: whether rows draw directions instead of Gaussian noise (`Rows.directions`).

  Returns:
    Q * num_samples rows as NumPy arrays, those of each query together.
  """
  number, kinds = np.arange(num_samples), len(settings)
  setting = np.asarray(settings, np.float32)[number % kinds]
  stratum = None
  if stratified:
    per_setting = (num_samples - number % kinds + kinds - 1) // kinds  # rows at the same setting as this one
    stratum = np.stack([number // kinds / per_setting, 1.0 / per_setting], axis=1).astype(np.float32)
    stratum = np.tile(stratum, (queries, 1))
  return Rows(
    query=np.repeat(np.arange(queries, dtype=np.int32), num_samples),
    number=np.tile(number, queries).astype(np.int32),
    temperature=np.tile(setting[:, 0], queries),
    noise=np.tile(np.float32(1) - setting[:, 1] if directions else setting[:, 1], queries),
    stratum=stratum,
    directions=np.ones(queries * num_samples, bool) if directions else None,
  )


def rows_by_round(rows: Rows, num_samples: int, rounds: int) -> list[np.ndarray]:
  """Indices of the rows of each round, int64[...] each: every query's rows in their order, in parts of nearly equal size."""
  part = np.asarray(rows.number) * rounds // num_samples
  return [np.flatnonzero(part == number) for number in range(rounds)]


def overused_tokens(tokens: np.ndarray, query: np.ndarray, queries: int, rare: np.ndarray, repeats: int) -> np.ndarray:
  """Rare tokens that were drawn more than `repeats` times at one position (paper, sampling for factual recall).

  Args:
    tokens: int32[R, T], of all rounds so far.
    query: int32[R], index of each row's query.
    queries: Q.
    rare: bool[V].
    repeats: how often a token may be drawn.

  Returns:
    bool[Q, T, V].
  """
  out = np.zeros((queries, tokens.shape[1], len(rare)), bool)
  for q in range(queries):
    for position, column in enumerate(tokens[query == q].T):
      values, counts = np.unique(column, return_counts=True)
      out[q, position, values[(counts > repeats) & rare[values]]] = True
  return out
