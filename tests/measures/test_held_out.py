"""Held-out queries, their in-epsilon rate, and the base rate of random inputs."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures.held_out import base_rates, held_out_queries, held_out_requests, inside
from inversionview_jax.sampling import candidates, exact

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_queries_are_the_targets_activations_at_positions_of_the_query_mask(held, small_reader):
  reader = small_reader
  assert len(held) == 10 * len(reader.sites)
  assert np.bincount(held.queries.site).tolist() == [10] * len(reader.sites)
  mask = np.asarray(TASK.query_mask(held.tokens))
  assert mask[np.arange(len(held)), held.position].all() and len(set(held.position.tolist())) > 5
  run = reader.target.run(held.tokens, capture=reader.sites)
  for i in range(len(held)):
    captured = np.asarray(run[reader.sites[held.queries.site[i]]])[i, held.position[i]]
    np.testing.assert_allclose(held.queries.activation[i], captured, rtol=1e-5, atol=1e-5)
    assert held.labels[i] == TASK.labels(held.tokens[i])[held.position[i]]


def test_queries_are_held_out_and_a_function_of_the_seed(small_reader, few, held):
  test = {tuple(row) for row in few.tokens(few.split("test")).tolist()}
  assert {tuple(row) for row in held.tokens.tolist()} <= test
  np.testing.assert_array_equal(held_out_queries(small_reader, 10).position, held.position)
  assert not np.array_equal(held_out_queries(small_reader, 10, seed=1).position, held.position)


def test_requests_are_held_out_inputs_with_the_position(small_reader, few):
  requests = held_out_requests(small_reader, "a0.1", "A4", 12)
  test = {TASK.tokenizer.text(row) for row in few.tokens(few.split("test"))}
  assert len(requests) == len({request.text for request in requests}) == 12
  assert {request.text for request in requests} <= test and all(len(request.text) == 12 for request in requests)
  assert {(request.site, request.position) for request in requests} == {("a0.1", "A4")}
  assert held_out_requests(small_reader, "a0.1", "A4", 12) == requests
  assert held_out_requests(small_reader, "a0.1", "A4", 12, seed=1) != requests
  with pytest.raises(InversionViewError, match="unknown position 'Z'"):
    held_out_requests(small_reader, "a0.1", "Z", 12)
  with pytest.raises(InversionViewError, match="from 1 to"):
    held_out_requests(small_reader, "a0.1", "=", 0)


def test_base_rate_is_the_share_of_random_inputs_inside(held, small_reader, few):
  base = base_rates(small_reader, held, inputs=3000)
  distances = exact.distances(small_reader.target, few, small_reader.sites, held.queries, np.arange(300))
  share = (distances.distance <= np.float32(0.1)).mean(axis=1)
  assert 0.01 < share.mean() < 0.99
  assert np.abs(base - share).max() < 5 * 0.5 / 3000**0.5


def test_a_sample_is_inside_where_the_samplers_distance_is(held, small_reader):
  hits = inside(small_reader, held, seed=3)
  number, ones = np.arange(len(held)), np.ones(len(held), np.float32)
  out = small_reader.sampler.run(
    small_reader.variables, small_reader.target.params, small_reader.bos_activations, held.queries,
    candidates.Rows(number, number, ones, 0 * ones), 3,
  )  # fmt: skip
  np.testing.assert_array_equal(hits, np.asarray(out.distance) <= np.float32(0.1))
