"""The in-epsilon rate of queries, and per site."""

import numpy as np

from inversionview_jax.sampling import in_epsilon
from inversionview_jax.sampling.candidates import Candidates, Queries


def test_hits_are_the_queries_whose_one_sample_is_inside():
  queries = Queries.of(np.zeros((3, 2)), 0, "euclidean")
  seen = []

  def draw(queries, rows):
    seen.append((queries, rows))
    return Candidates(np.zeros((3, 4), np.int32), np.float32([0.05, 0.1, 0.2]), np.zeros(3, np.int32), None)

  assert in_epsilon.hits(draw, queries, 0.1).tolist() == [True, True, False]  # the float32 of 0.1 is inside 0.1
  ((sent, rows),) = seen
  assert sent is queries and rows.query.tolist() == [0, 1, 2] and (rows.temperature == 1).all()


def test_rate_per_site_is_the_weighted_share_of_hits():
  hits, site = np.array([True, False, True, True]), np.array([0, 0, 1, 1])
  assert in_epsilon.rate_per_site(hits, site, 3).tolist() == [0.5, 1.0, 0.0]
  assert in_epsilon.rate_per_site(hits, site, 2, np.array([0.0, 1.0, 1.0, 0.0])).tolist() == [0.0, 1.0]
