"""Measuring a reader: intervals, base rates, probabilities of a mixture, coverage, completeness, and the evaluation that has them all."""

import itertools
import json
import math

import jax
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import coverage, evaluation, held_out
from inversionview_jax.measures.held_out import Rate
from inversionview_jax.reading.reader import Reader
from inversionview_jax.sampling import exact, sampler
from inversionview_jax.tasks import Mixture

TASK = tasks.get("addition")
MIXTURE = Mixture(((0.5, 0.0), (1.0, 0.2)), num_samples=64)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def few():
  """Addition with 300 of its inputs, so that a preimage is found at once."""

  class Few(type(TASK)):
    num_inputs = 300

    def tokens(self, index):
      return TASK.tokens(np.asarray(index) * 2699)

    def index(self, tokens):
      found = TASK.index(tokens)
      return np.where((found >= 0) & (found % 2699 == 0), found // 2699, -1)

  return Few()


@pytest.fixture(scope="module")
def reader(small_target, small_decoder, few):
  return Reader(small_target, few, *small_decoder, "small")


@pytest.fixture(scope="module")
def asked(reader):
  return held_out.held_out(reader, 10)


@pytest.mark.parametrize(
  ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (190, 200, 0.9104, 0.9726)]
)
def test_interval_is_wilsons(hits, count, low, high):  # values of the textbook formula
  rate = Rate(hits, count)
  assert rate.value == hits / count
  assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_interval_covers_the_truth_as_often_as_it_says():
  hits = np.random.default_rng(0).binomial(60, 0.8, size=4000)
  covered = np.mean([Rate(int(h), 60).low <= 0.8 <= Rate(int(h), 60).high for h in hits])
  assert 0.93 < covered < 0.97


def test_queries_are_the_targets_activations_at_positions_where_the_task_asks(asked, reader):
  assert len(asked) == 10 * len(reader.sites)
  assert np.bincount(asked.queries.site).tolist() == [10] * len(reader.sites)
  mask = np.asarray(TASK.query_mask(asked.tokens))
  assert mask[np.arange(len(asked)), asked.at].all() and len(set(asked.at.tolist())) > 5
  run = reader.target.run(asked.tokens, capture=reader.sites)
  for i in range(len(asked)):
    held = np.asarray(run[reader.sites[asked.queries.site[i]]])[i, asked.at[i]]
    np.testing.assert_allclose(asked.queries.activation[i], held, rtol=1e-5, atol=1e-5)
    assert asked.labels[i] == TASK.labels(asked.tokens[i])[asked.at[i]]


def test_queries_are_held_out_and_decided_by_the_seed(reader, few, asked):
  test = {tuple(row) for row in few.tokens(few.split("test")).tolist()}
  assert {tuple(row) for row in asked.tokens.tolist()} <= test
  np.testing.assert_array_equal(held_out.held_out(reader, 10).at, asked.at)
  assert not np.array_equal(held_out.held_out(reader, 10, seed=1).at, asked.at)


def test_exact_preimage_of_a_query_has_its_members_nearest_first(reader, few):
  text = TASK.tokenizer.text(few.tokens([7])[0, 1:13].tolist())
  found = reader.exact_preimage(text, "a0.1", "=", epsilon=0.3)
  assert len(found) > 1 and 7 in found.index and found.inputs == 300
  assert (np.diff(found.distance) >= 0).all() and found.distance[0] < 1e-6 and found.distance[-1] <= 0.3
  np.testing.assert_array_equal(found.tokens, few.tokens(found.index))
  here = reader.exact_preimage(text, "a0.1", "=", epsilon=0.3, match="position")
  assert set(here.position.tolist()) == {8} and set(here.index.tolist()) <= set(found.index.tolist())
  with pytest.raises(InversionViewError, match="unknown position 'Z'"):
    reader.exact_preimage(text, "a0.1", "Z")


def test_base_rate_is_the_share_of_random_inputs_inside(asked, reader, few):
  base = held_out.base_rates(reader, asked, inputs=3000)
  found = exact.distances(reader.target, few, reader.sites, asked.queries, np.arange(300))
  share = (found.distance <= np.float32(0.1)).mean(axis=1)
  assert 0.01 < share.mean() < 0.99
  assert np.abs(base - share).max() < 5 * 0.5 / 3000**0.5


def test_a_sample_is_inside_as_often_as_the_sampler_says(asked, reader):
  hits = held_out.inside(reader, asked, seed=3)
  rows = candidates.Rows(*(np.arange(len(asked)),) * 2, np.ones(len(asked), np.float32), np.zeros(len(asked), np.float32))
  out = reader.sampler.run(reader.variables, reader.target.params, reader.bos_activations, asked.queries, rows, 3)
  np.testing.assert_array_equal(hits, np.asarray(out.distance) <= np.float32(0.1))


def test_log_prob_at_temperature_1_is_the_readers_and_at_0_is_greedy(asked, reader):
  z, site, tokens = asked.queries.activation[3], int(asked.queries.site[3]), asked.tokens[:70:7]
  warm, greedy = coverage.log_probs(reader, z, site, tokens, [1.0, 0.0])
  np.testing.assert_allclose(warm, reader.log_prob(tokens, z, reader.config.sites[site]), rtol=1e-4)
  assert (greedy == -np.inf).all()
  best = reader.sampler.run(
    reader.variables, reader.target.params, reader.bos_activations, asked.take([3]).queries,
    candidates.mixture_rows(((0.0, 0.0),), 1), 0,
  ).tokens  # fmt: skip
  assert coverage.log_probs(reader, z, site, np.asarray(best), [0.0])[0, 0] == 0


def test_probability_of_a_mixture_is_how_often_it_is_drawn(reader, asked):
  """Of the most frequent texts, at two temperatures, one with noise."""
  one = asked.take([0])
  settings, n = ((0.4, 0.0), (0.6, 0.3)), 20_000
  out = reader.sampler.run(
    reader.variables, reader.target.params, reader.bos_activations, one.queries, candidates.mixture_rows(settings, n), 5, False
  )  # fmt: skip
  texts, counts = np.unique(np.asarray(out.tokens), axis=0, return_counts=True)
  often = np.argsort(-counts)[:5]
  ended = (texts[often] == TASK.tokenizer.eos_id).any(axis=1)
  log_p = coverage.mixture_log_prob(
    reader, one.queries.activation[0], int(one.queries.site[0]), texts[often], settings, draws=400
  )
  share = counts[often] / n
  assert share[0] > 0.001 and ended.any()
  error = 5 * np.sqrt(share / n) + 0.1 * share  # of counting, and of 400 draws of the noise
  assert (np.abs(np.exp(log_p) - share) < error)[ended].all()


def test_coverage_counts_members_with_a_tenth_of_their_share(reader, few):
  some = held_out.held_out(reader, 4, every_site=False)
  told = coverage.compare_with_exact(reader, some, MIXTURE, members=300)
  found = exact.distances(reader.target, few, reader.sites, some.queries, np.arange(300))
  for q, one in enumerate(told):
    members = found.members(q, few.epsilon)
    assert one.size == one.members == len(members) >= 1  # the query itself
    log_p = coverage.mixture_log_prob(
      reader, some.queries.activation[q], int(some.queries.site[q]), few.tokens(members), MIXTURE.settings, seed=q
    )
    assert one.coverage == np.mean(np.exp(log_p) >= 0.1 / len(members))
    assert 0 <= one.precision <= 1 and one.distinct <= len(members)
    assert set(one.features) <= set(few.features(few.tokens(members)))


class Oracle:
  """A sampler that draws from a list of texts in turn, all of them inside epsilon."""

  mesh = parallel.make_mesh(devices=jax.devices()[:1])

  def __init__(self, tokens):
    self.tokens = tokens

  def run(self, *args, **kwargs):
    rows = args[4]
    tokens = self.tokens[np.arange(len(rows.query)) % len(self.tokens)]
    return candidates.Candidates(tokens, np.zeros(len(tokens), np.float32), np.ones(len(tokens), np.int32), None)


def test_distinct_members_and_features_are_of_what_was_drawn(reader, few, monkeypatch):
  some = held_out.held_out(reader, 1, every_site=False)
  found = exact.distances(reader.target, few, reader.sites, some.queries, np.arange(300))
  members = found.members(0, few.epsilon)
  assert len(members) > 3
  monkeypatch.setattr(reader, "sampler", Oracle(few.tokens(members[:3])))
  (one,) = coverage.compare_with_exact(reader, some, MIXTURE)
  assert (one.precision, one.distinct) == (1.0, 3)
  values, drawn = few.features(few.tokens(members)), few.features(few.tokens(members[:3]))
  for name, share in one.features.items():
    assert share == len(set(drawn[name].tolist()) - {-1}) / len(set(values[name].tolist()) - {-1})


def test_order_is_the_chance_that_an_inside_input_is_given_more():
  inside, outside = np.array([0.0, 2.0, 2.0]), np.array([1.0, 2.0])
  pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
  one = coverage.Completeness(
    "a0.0", "=", "1+1", 0.1, np.array([0, 0, 0, 1, 1], np.float32), np.concatenate([inside, outside])
  )
  assert one.to_dict()["order"] == np.mean(pairs)
  alone = coverage.Completeness("a0.0", "=", "1+1", 0.1, np.zeros(3, np.float32), inside)
  assert alone.to_dict()["order"] is None and json.dumps(alone.to_dict(), allow_nan=False)


def test_completeness_has_the_distance_and_the_log_probability_of_every_input(reader, few):
  some = held_out.held_out(reader, 2, every_site=False)
  found = exact.distances(reader.target, few, reader.sites, some.queries, np.arange(300))
  for q, one in enumerate(coverage.completeness(reader, some)):
    np.testing.assert_allclose(one.distance, found.distance[q], atol=2e-6)
    said = reader.log_prob(few.tokens(np.arange(300)), some.queries.activation[q], one.site)
    np.testing.assert_allclose(one.log_prob, said, rtol=1e-4)
    told = one.to_dict()
    assert told["inside"]["inputs"] + told["outside"]["inputs"] == 300 == np.sum(told["counts"])
    assert told["inside"]["probability"] == pytest.approx(np.exp(one.log_prob[one.distance <= np.float32(0.1)]).sum())
  assert len(coverage.completeness(reader, some, inputs=20)[0].distance) == 20


def test_evaluation_agrees_with_its_parts_and_is_strict_json(reader, tmp_path):
  found = evaluation.evaluate(reader, queries=8, exact_queries=3, mixture=MIXTURE)
  asked = held_out.held_out(reader, 8)
  hits, base = held_out.inside(reader, asked), held_out.base_rates(reader, asked)
  for s, site in enumerate(found.sites):
    own = asked.queries.site == s
    assert (site.rate.hits, site.rate.count) == (hits[own].sum(), 8)
    assert site.base == pytest.approx(base[own].mean())
    assert sum(rate.count for rate, _ in site.by_label.values()) == 8
  assert found.rate == pytest.approx(hits.mean()) and len(found.exact) == 3
  table = json.loads(found.to_json(tmp_path / "e.json"), parse_constant=pytest.fail)
  assert json.loads((tmp_path / "e.json").read_text()) == table
  assert table["summary"]["coverage"] == pytest.approx(np.mean([one.coverage for one in found.exact]))
  assert math.isclose(table["sites"][0]["rate"]["low"], found.sites[0].rate.low)


def test_exact_part_of_a_task_that_cannot_enumerate_is_refused_before_anything_runs(reader, few, monkeypatch):
  monkeypatch.setattr(type(few), "enumerable", False)
  with pytest.raises(InversionViewError, match="cannot be enumerated"):
    evaluation.evaluate(reader, exact_queries=1)
  assert evaluation.evaluate(reader, queries=2, exact_queries=0).exact == ()
