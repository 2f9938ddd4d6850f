"""Information in bits, against enumeration."""

import json
import math

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.measures import information
from inversionview_jax.reading import Reader, Request, load_reader
from inversionview_jax.sampling import exact

FULL = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def queries(reader):
  requests = [Request("615+865=1480", site, at) for site, at in (("a0.0", "="), ("x0.pre", "F2"), ("x0.pre", "S3"))]
  return [preimage.query for preimage in reader.preimages(requests, effects=False, num_samples=8)]


def shares(reader, queries):
  """The exact ones."""
  sampled = information.sampling_queries(reader, queries, "euclidean", "anywhere")
  result = exact.distances(reader.target, reader.task, reader.sites, sampled, exact.every_input(reader.task))
  return [len(result.members(q, 0.1)) / reader.task.num_inputs for q in range(len(queries))]


@pytest.mark.slow
def test_random_inputs_and_the_decoder_together_find_the_share(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 10**9)  # the decoder has its part in each
  for share, result in zip(
    shares(reader, queries), information.measure(reader, queries, inputs=1024, draws=480), strict=True
  ):
    estimate = result.information
    assert estimate.draws == 480
    assert estimate.draws_inside > (10 if share == 1 else 0)
    assert abs(estimate.bits + math.log2(share)) < max(4 * estimate.error, 0.02)
    assert estimate.error < 0.3 and estimate.low <= estimate.bits <= estimate.high
    inside = result.members.within(0.1)
    assert (reader.task.index(inside.tokens) >= 0).all()  # no text that is no input
    assert (inside.weight <= (1024 + 480) / 1024 + 1e-9).all()


@pytest.mark.slow
def test_members_stand_for_the_whole_preimage(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 10**9)
  result = information.measure(reader, queries[:1], inputs=1024, draws=480)[0]
  sampled = information.sampling_queries(reader, queries[:1], "euclidean", "anywhere")
  every = exact.distances(reader.target, reader.task, reader.sites, sampled, exact.every_input(reader.task))
  true = FULL.features(reader.task.tokens(every.members(0, 0.1)))
  inside = result.members.within(0.1)
  own = FULL.features(inside.tokens)
  for name in ("F1", "F2", "S2", "C2", "A1"):
    for value in np.unique(true[name]):
      estimate = inside.weight[own[name] == value].sum() / inside.weight.sum()
      assert estimate == pytest.approx(np.mean(true[name] == value), abs=0.08), (name, value)


def test_estimate_is_unbiased_under_a_random_decoder(small_target, small_decoder, ones, monkeypatch):
  reader = Reader(small_target, ones, *small_decoder, "small")
  query = reader.preimage("615+865=1480", "x0.pre", "F1", effects=False, num_samples=8).query
  monkeypatch.setattr(information, "_ENOUGH", 10**9)
  estimate = information.measure(reader, [query], inputs=1024, draws=48)[0].information
  share = shares(reader, [query])[0]
  assert estimate.draws_inside <= 2 and abs(estimate.bits + math.log2(share)) < max(4 * estimate.error, 0.02)


def test_where_random_inputs_are_enough_the_decoder_is_not_used(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 50)
  monkeypatch.setattr(Reader, "draw", lambda *a, **k: pytest.fail("drawn"))
  estimate = information.measure(reader, queries[:1], inputs=1024)[0].information
  assert estimate.draws == 0 and estimate.bits == pytest.approx(-math.log2(shares(reader, queries[:1])[0]), abs=0.2)
  assert estimate.warning == ""


def test_unreliable_estimates_have_a_warning():
  def estimate(**over):
    usual = {"bits": 3.0, "error": 0.05, "share": 0.125, "effective": 400.0}
    rest = {"inputs": 1000, "inputs_inside": 100, "draws": 10, "draws_inside": 5, "heaviest": 0.01}
    return information.Information(**(usual | rest | over))

  assert estimate().warning == ""
  assert "uncertain" in estimate(error=0.4).warning and "uncertain" in estimate(effective=10.0).warning
  assert estimate(inputs_inside=2).warning.startswith("at most")
  nothing = estimate(bits=None, error=math.inf, share=0.0)
  assert "more than 8.4 bits" in nothing.warning and nothing.low is None
  json.dumps(nothing.to_dict(), allow_nan=False)


def test_the_prior_of_counting_is_that_of_its_inputs():
  task = tasks.get("counting")
  tokens = task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=4000))
  log_prior = task.log_prior(tokens)
  assert np.isfinite(log_prior).all()
  # All orders of 1 + 1 + 1 letters together have 3! texts for each triple and question.
  shortest = task.tokenizer.encode_batch(["abc|a:1"], length=task.length, eos=True)
  assert math.exp(task.log_prior(shortest)[0]) == pytest.approx(1 / (2600 * 729 * 3 * 6))
  # E[1 / p] under p is the number of texts: those of a length, from the sample and from counting them
  of_length = task.features(tokens)["length"] == 4
  there = 2600 * 3 * 3 * math.factorial(4) / 2
  assert np.exp(-log_prior[of_length]).sum() / len(log_prior) == pytest.approx(there, rel=1.0)
  wrong = ["aab|a:1", "aabc|d:1", "aabc|a:", "aabc", "abcd|a:1", "ab|a:1"]
  assert np.isinf(task.log_prior(task.tokenizer.encode_batch(wrong, length=task.length, eos=True))).all()


@pytest.mark.slow
def test_bits_of_ten_addition_queries_are_within_three_tenths_of_enumeration():
  from inversionview_jax.measures import held_out

  reader = load_reader("addition")
  sampled = held_out.held_out_queries(reader, 10, seed=3, every_site=False)
  result = exact.distances(reader.target, reader.task, reader.sites, sampled.queries, exact.every_input(reader.task))
  for q in range(10):
    site = reader.config.sites[sampled.queries.site[q]]
    request = Request(reader.task.tokenizer.text(sampled.tokens[q]), site, int(sampled.position[q]))
    query = reader.preimages([request], num_samples=8, effects=False)[0].query
    estimate = information.measure(reader, [query])[0].information
    truth = math.log2(reader.task.num_inputs / len(result.members(q, 0.1)))
    assert estimate.bits == pytest.approx(truth, abs=0.3), (site, request.text, sampled.position[q])
