"""Queries and rows: the arrays that go into a sampling program."""

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling.candidates import Queries, mixture_rows, one_row_per_query


def test_queries_are_made_of_one_value_for_all_or_one_each():
  z = np.arange(6.0).reshape(3, 2)
  queries = Queries.of(z, 4, "cosine")
  assert queries.activation.dtype == np.float32 and len(queries) == 3
  assert (queries.site.tolist(), queries.position.tolist(), queries.metric.tolist()) == ([4] * 3, [-1] * 3, [1] * 3)
  each = Queries.of(z, [0, 1, 2], ["euclidean", "cosine", "euclidean"], [5, -1, 7], decoder_activation=-z)
  assert {x.dtype for x in (each.site, each.position, each.metric)} == {np.dtype(np.int32)}
  assert (each.site.tolist(), each.position.tolist(), each.metric.tolist()) == ([0, 1, 2], [5, -1, 7], [0, 1, 0])
  np.testing.assert_array_equal(each.decoder_activation, -z)
  for wrong in ("manhattan", ["euclidean", "cosin", "cosine"]):
    with pytest.raises(InversionViewError, match="euclidean"):
      Queries.of(z, 0, wrong)


def test_some_queries_are_taken_by_index():
  queries = Queries.of(np.arange(6.0).reshape(3, 2), [0, 1, 2], "euclidean", decoder_activation=np.ones((3, 2)))
  assert queries.take(1).site.tolist() == [1] and queries.take(1).activation.tolist() == [[2.0, 3.0]]
  assert queries.take([2, 0, 0]).site.tolist() == [2, 0, 0] and queries.take(slice(1, None)).site.tolist() == [1, 2]
  assert queries.take([2, 0]).decoder_activation.shape == (2, 2) and queries.take(0).suppressed is None


def test_one_row_per_query_is_at_temperature_1_without_noise():
  rows = one_row_per_query(4)
  assert rows.query.tolist() == rows.number.tolist() == [0, 1, 2, 3]
  assert (rows.temperature == 1).all() and (rows.noise == 0).all() and rows.stratum is None


def test_stratified_rows_of_a_setting_partition_the_unit_interval():
  rows = mixture_rows(((1.0, 0.0), (2.0, 0.1)), 7, queries=2, stratified=True)
  for temperature, count in ((1.0, 4), (2.0, 3)):
    own = rows.stratum[(rows.temperature == temperature) & (rows.query == 1)]
    np.testing.assert_allclose(own[:, 0], np.arange(count) / count, atol=1e-6)
    np.testing.assert_allclose(own[:, 1], 1 / count, atol=1e-6)
