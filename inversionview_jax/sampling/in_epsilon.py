"""The in-epsilon rate: how often one sample of the decoder, temperature 1 and no noise, lies within epsilon (paper, section 3).

Shapes: Q queries, S sites.
"""

from collections.abc import Callable

import numpy as np

from inversionview_jax.devices import parallel
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows, one_row_per_query


def hits(draw: Callable[[Queries, Rows], Candidates], queries: Queries, epsilon: float) -> np.ndarray:
  """Whether one sample for each query lies within epsilon of it.

  Args:
    draw: (queries, rows) -> candidates, such as `Sampler.run` with its first arguments bound.
    queries: Q of them.
    epsilon: the threshold, in the unit of the queries' metric.

  Returns:
    bool[Q].
  """
  candidates = parallel.fetch(draw(queries, one_row_per_query(len(queries))))
  return candidates.distance <= np.float32(epsilon)


def rate_per_site(hits: np.ndarray, site: np.ndarray, num_sites: int, weight: np.ndarray | None = None) -> np.ndarray:
  """The in-epsilon rate of each site.

  Args:
    hits: bool[Q], as `hits` makes them.
    site: int[Q].
    num_sites: S.
    weight: float[Q], how much each query counts; None: all the same.

  Returns:
    float64[S]; 0 for a site without queries.
  """
  weight = np.ones(len(hits)) if weight is None else np.asarray(weight, np.float64)
  inside = np.bincount(site, weight * hits, num_sites)
  return inside / np.maximum(np.bincount(site, weight, num_sites), 1)
