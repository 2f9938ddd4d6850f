"""A reader against exact preimages: coverage, distinct members, features, completeness."""

import itertools
import json

import jax
import numpy as np
import pytest

from inversionview_jax.devices import parallel
from inversionview_jax.measures import coverage
from inversionview_jax.measures.held_out import held_out_queries
from inversionview_jax.reading.log_prob import mixture_log_prob
from inversionview_jax.sampling import candidates, exact
from inversionview_jax.tasks import Mixture

MIXTURE = Mixture(((0.5, 0.0), (1.0, 0.2)), num_samples=64)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.mark.slow
def test_coverage_counts_members_with_a_tenth_of_the_uniform_probability(small_reader, few):
  some = held_out_queries(small_reader, 4, every_site=False)
  comparisons = coverage.compare_with_exact(small_reader, some, MIXTURE, members=300)
  distances = exact.distances(small_reader.target, few, small_reader.sites, some.queries, np.arange(300))
  for q, one in enumerate(comparisons):
    members = distances.members(q, few.epsilon)
    assert one.size == one.members == len(members) >= 1  # the query itself
    log_p = mixture_log_prob(
      small_reader, some.queries.activation[q], int(some.queries.site[q]), few.tokens(members), MIXTURE.settings, seed=q
    )
    assert one.coverage == np.mean(np.exp(log_p) >= 0.1 / len(members))
    assert 0 <= one.precision <= 1 and one.distinct <= len(members)
    assert set(one.features) <= set(few.features(few.tokens(members)))
    assert f"{one.coverage:.3f}" in repr(one) and "<table>" in one._repr_html_()


class Oracle:
  """A sampler that returns the texts of a list in turn, all of them inside epsilon."""

  mesh = parallel.make_mesh(devices=jax.devices()[:1])

  def __init__(self, tokens):
    self.tokens = tokens

  def run(self, *args, **kwargs):
    rows = args[4]
    tokens = self.tokens[np.arange(len(rows.query)) % len(self.tokens)]
    return candidates.Candidates(tokens, np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.int32), None)


def test_distinct_members_and_features_are_of_what_was_drawn(small_reader, few, monkeypatch):
  some = held_out_queries(small_reader, 1, every_site=False)
  distances = exact.distances(small_reader.target, few, small_reader.sites, some.queries, np.arange(300))
  members = distances.members(0, few.epsilon)
  assert len(members) > 3
  oracle = Oracle(few.tokens(members[:3]))
  oracle.decoder = small_reader.sampler.decoder  # of the log-probabilities
  monkeypatch.setattr(small_reader, "sampler", oracle)
  (one,) = coverage.compare_with_exact(small_reader, some, MIXTURE)
  assert (one.precision, one.distinct) == (1.0, 3)
  values, drawn = few.features(few.tokens(members)), few.features(few.tokens(members[:3]))
  for name, share in one.features.items():
    assert share == len(set(drawn[name].tolist()) - {-1}) / len(set(values[name].tolist()) - {-1})


def test_auc_is_the_chance_that_an_inside_input_has_the_higher_probability():
  inside, outside = np.array([0.0, 2.0, 2.0]), np.array([1.0, 2.0])
  pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
  one = coverage.Completeness(
    "a0.0", "=", "1+1", 0.1, np.array([0, 0, 0, 1, 1], np.float32), np.concatenate([inside, outside])
  )
  assert one.to_dict()["auc"] == one.auc == np.mean(pairs)
  assert f"AUC {one.auc:.4f}" in repr(one)
  alone = coverage.Completeness("a0.0", "=", "1+1", 0.1, np.zeros(3, np.float32), inside)
  assert alone.to_dict()["auc"] is None and json.dumps(alone.to_dict(), allow_nan=False)


def test_completeness_has_the_distance_and_the_log_probability_of_every_input(small_reader, few):
  some = held_out_queries(small_reader, 2, every_site=False)
  distances = exact.distances(small_reader.target, few, small_reader.sites, some.queries, np.arange(300))
  for q, one in enumerate(coverage.completeness(small_reader, some)):
    np.testing.assert_allclose(one.distance, distances.distance[q], atol=2e-6)
    log_prob = small_reader.log_prob(few.tokens(np.arange(300)), some.queries.activation[q], one.site)
    np.testing.assert_allclose(one.log_prob, log_prob, rtol=1e-4)
    table = one.to_dict()
    assert table["inside"]["inputs"] + table["outside"]["inputs"] == 300 == np.sum(table["counts"])
    assert table["inside"]["probability"] == pytest.approx(np.exp(one.log_prob[one.distance <= np.float32(0.1)]).sum())
  assert len(coverage.completeness(small_reader, some, inputs=20)[0].distance) == 20
