"""Drawing with a mixture: the decoder's noisy inputs, and rounds that suppress tokens drawn too often.

Shapes: Q queries, R rows (one candidate each), T tokens, D width of the activation.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.candidates import (
  Array,
  Candidates,
  Queries,
  Rows,
  mixture_rows,
  overused_tokens,
  rows_by_round,
)
from inversionview_jax.tasks import Mixture, Task


def add_noise(activation: Array, eta: ArrayLike, normal: Array, query: Array | None = None) -> Any:
  """activation + eta * std(z) * normal: Gaussian noise in units of the query's own standard deviation (paper, section 2.2).

  Args:
    activation: float32[..., D].
    eta: float or float[...], one for each activation.
    normal: float32[..., D], standard normal.
    query: float32[..., D], the z whose standard deviation over D is the unit; None: `activation`.

  Returns:
    float32[..., D], a NumPy array for a NumPy activation, else a JAX one.
  """
  query = activation if query is None else query
  xp = query.__array_namespace__()
  eta = xp.asarray(eta, dtype=query.dtype)[..., None]
  return activation + eta * xp.std(query, axis=-1, keepdims=True) * normal


def vectors_at_cosine(z: Array, normal: Array, cosine: Array, factor: Array) -> jax.Array:
  """Vectors at this cosine to z, of its norm times a factor (paper, sampling for factual recall).

  Args:
    z: float32[R, D].
    normal: float32[R, D], not parallel to z; its component across z is the direction of the turn.
    cosine, factor: float32[R].

  Returns:
    float32[R, D].
  """
  norm = jnp.linalg.norm(z, axis=-1, keepdims=True)
  along = z / jnp.maximum(norm, 1e-30)
  across = normal - jnp.sum(normal * along, axis=-1, keepdims=True) * along
  across = across / jnp.linalg.norm(across, axis=-1, keepdims=True)
  sine = jnp.sqrt(jnp.maximum(0.0, 1 - cosine**2))
  return factor[:, None] * norm * (cosine[:, None] * along + sine[:, None] * across)


def decoder_inputs(queries: Queries, rows: Rows, keys: jax.Array) -> jax.Array:
  """What the decoder is conditioned on in each row: the activation with noise, or a direction near it.

  Args:
    queries: the query of each row, R of them.
    rows: R rows.
    keys: key[R].

  Returns:
    float32[R, D].
  """
  z = queries.activation
  activation = z if queries.decoder_activation is None else queries.decoder_activation
  normal = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
  noisy = add_noise(activation, rows.noise, normal, query=z)
  if rows.directions is None:
    return noisy
  u = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), minval=-1.0, maxval=1.0))(keys)
  turned = vectors_at_cosine(activation, normal, 1 - rows.noise, jnp.exp(u))
  return jnp.where(rows.directions[:, None], turned, noisy)


def draw_mixture(
  draw: Callable[[Queries, Rows], Candidates], queries: Queries, mixture: Mixture, task: Task
) -> tuple[Candidates, Rows]:
  """Candidates of a mixture for each query, and the rows they were drawn with.

  A mixture with `rounds` and `repeats` is drawn round by round: rare tokens that the rounds before have too often at a position are
  suppressed there (paper, sampling for factual recall).

  Args:
    draw: (queries, rows) -> candidates of these rows.
    queries: Q of them.
    mixture: how candidates are drawn.
    task: of the texts; its `rare` tokens.

  Returns:
    Candidates and rows as NumPy arrays, Q * num_samples each, those of each query together.

  Raises:
    InversionViewError: a mixture that suppresses rare tokens, for a task that does not define them.
  """
  count = len(queries)
  rows = mixture_rows(mixture.settings, mixture.num_samples, count, mixture.stratified, mixture.directions)
  rare = task.rare
  if mixture.repeats and rare is None:
    raise InversionViewError(
      f"this mixture suppresses rare tokens, and the task {task.name} does not define which tokens are rare"
    )
  rounds = rows_by_round(rows, mixture.num_samples, mixture.rounds)
  drawn: list[Candidates] = []
  tokens, query = np.zeros((0, task.length), np.int32), np.zeros(0, np.int32)  # of the rounds so far
  for index in rounds:
    if mixture.repeats and rare is not None:
      suppressed = overused_tokens(tokens, query, count, rare, mixture.repeats)
      queries = dataclasses.replace(queries, suppressed=suppressed)
    part = jax.tree.map(lambda x, index=index: x[index], rows)
    drawn.append(jax.tree.map(np.asarray, draw(queries, part)))
    tokens, query = np.concatenate([tokens, drawn[-1].tokens]), np.concatenate([query, part.query])
  order = np.argsort(np.concatenate(rounds), kind="stable")
  return jax.tree.map(lambda *each: np.concatenate(each)[order], *drawn), rows
