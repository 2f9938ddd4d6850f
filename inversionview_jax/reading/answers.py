"""Candidates as arrays -> a `Preimage`, which is plain data.

Shapes: N candidates, T tokens, D width of the activation.
"""

from typing import Any

import numpy as np

from inversionview_jax._version import __version__
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.reading.requests import ResolvedRequest
from inversionview_jax.sampling.candidates import Candidates, Rows
from inversionview_jax.sites import Site
from inversionview_jax.tasks import Task


def query_of(
  request: ResolvedRequest, task: Task, site: Site, activation: np.ndarray, attention: np.ndarray | None
) -> Query:
  """The query of a preimage.

  Args:
    request: with its text and position.
    task: of the text.
    site: where the activation was taken.
    activation: float32[D].
    attention: of a head, from the position to positions 0..position; None for other sites.
  """
  tokenizer = task.tokenizer
  used = [int(token) for token in request.tokens if token != tokenizer.pad_id]
  return Query(
    text=request.text,
    tokens=tuple(used),
    token_strings=tuple(tokenizer.strings(used)),
    position=request.position,
    label=task.labels(used)[request.position],
    site=site.short,
    hook=site.hook,
    activation=tuple(activation.tolist()),
    attention=None if attention is None else tuple(attention.tolist()),
  )


def samples_of(candidates: Candidates, rows: Rows, epsilon: float, task: Task) -> list[Sample]:
  """The samples of a preimage: N candidates and the rows they were drawn with, as NumPy arrays."""
  t = task.tokenizer
  effect = np.empty((len(candidates.tokens), 0)) if candidates.effect is None else candidates.effect
  is_eos = candidates.tokens == t.eos_id
  lengths = (~is_eos & (candidates.tokens != t.pad_id)).sum(axis=1)  # BOS and the text; EOS and PAD only follow it
  inside = candidates.distance <= np.float32(epsilon)
  columns = (candidates.tokens, lengths, is_eos.any(axis=1), candidates.distance, inside, candidates.position, effect)
  samples = []
  for tokens, length, ended, distance, is_inside, position, effects, temperature, noise in zip(
    *(column.tolist() for column in (*columns, rows.temperature, rows.noise)), strict=True
  ):
    text = tokens[1:length]
    samples.append(
      Sample(
        tokens=text,
        token_strings=tuple(t.strings(text)),
        text=t.text(text),
        distance=distance,
        position=position,
        effect=effects[1:length],
        temperature=temperature,
        noise=noise,
        inside=is_inside,
        ended=ended,
      )
    )
  return samples


def preimage_of(
  query: Query,
  samples: list[Sample],
  request: ResolvedRequest,
  *,
  seed: int,
  reader: str,
  task: str,
  convention: str,
  **results: Any,
) -> Preimage:
  """The preimage of a query with its samples, the settings they were drawn with, and the `results` of a method other than the decoder."""
  return Preimage(
    query,
    tuple(samples),
    epsilon=request.epsilon,
    metric=request.metric,
    match=request.match,
    seed=seed,
    reader=reader,
    task=task,
    convention=convention,
    version=__version__,
    **results,
  )
