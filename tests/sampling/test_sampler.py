"""The sampling program: candidates of a decoder, and the distances that the target itself measures on them."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from inversionview_jax import distance, sites, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.sampling import sampler as sampling
from inversionview_jax.sampling.candidates import Queries, mixture_rows

TASK = tasks.get("addition")
PAD, BOS, EOS = TASK.tokenizer.pad_id, TASK.tokenizer.bos_id, TASK.tokenizer.eos_id
T = TASK.length

pytestmark = pytest.mark.usefixtures("quick_to_compile")


# Distances.


def test_distances_are_taken_at_the_given_position_or_the_nearest_one_that_counts():
  rng = np.random.default_rng(0)
  activations, query = rng.normal(size=(400, 6, 8)).astype(np.float32), rng.normal(size=(400, 8)).astype(np.float32)
  position, metric = rng.integers(-1, 6, 400).astype(np.int32), rng.integers(0, 2, 400).astype(np.int32)
  counted = rng.random((400, 6)) < 0.6
  counted[:5] = False
  got, where = parallel.jit(sampling.distances)(activations, query, position, metric, counted)
  for row in range(400):
    best, place = by_hand(
      activations[row], query[row], position[row], list(distance.METRICS)[metric[row]], counted[row]
    )
    assert got[row] == pytest.approx(best, rel=1e-5) and where[row] == place
  assert {(p, m) for p, m in zip(position.tolist(), metric.tolist())} == set(itertools.product(range(-1, 6), (0, 1)))
  assert np.isinf(got).sum() > 50  # nothing counts, or the given position does not


def by_hand(activations, query, position, metric, counted):
  """(distance, position) of one candidate: float[T, D], float[D], ..."""
  best, place = np.inf, -1
  for t in range(len(counted)):
    z, other = query.astype(np.float64), activations[t].astype(np.float64)
    if metric == "euclidean":
      d = np.linalg.norm(other - z) / np.linalg.norm(z)
    else:
      d = 1 - other @ z / np.linalg.norm(other) / np.linalg.norm(z)
    if counted[t] and position in (-1, t) and d < best:
      best, place = d, t
  return best, place


# The whole program.

QUERIES = [  # site, position of the query, where candidates are compared, metric
    (1, 4, -1, "euclidean"), (3, 8, 8, "euclidean"), (5, 2, -1, "cosine"), (0, 6, 6, "cosine"),
]  # fmt: skip
SETTINGS = ((0.5, 0.0), (1.0, 0.0), (2.0, 0.8))
EACH = 9  # candidates per query: 36 rows, which 8 devices do not divide
CHUNK = 40  # what 36 rows are padded to, so that more rows take the same program


@pytest.fixture(scope="module")
def rows():
  return mixture_rows(SETTINGS, EACH, queries=len(QUERIES))


@pytest.fixture(scope="module")
def queries(small_target, small_decoder):
  names = small_decoder[0].sites
  run = small_target.run(TASK.tokens_of([615], [861]), capture=names)
  site, taken, compared, metric = zip(*QUERIES)
  activation = np.stack([np.asarray(run[names[s]])[0, t] for s, t in zip(site, taken)])
  return Queries.of(activation, site, metric, compared)


@pytest.fixture(scope="module")
def z0(small_target, small_decoder):
  return sampling.bos_activations(
    small_target.module, small_target.params, tuple(map(sites.parse, small_decoder[0].sites)), BOS
  )


@pytest.fixture(scope="module")
def samplers(small_target, small_decoder, meshes):
  """Number of devices -> a sampler of the small decoder."""
  return {n: sampling.Sampler(small_decoder[0], small_target.module, TASK, meshes(n)) for n in (1, 8)}


@pytest.fixture(scope="module")
def draw(samplers, small_target, small_decoder, z0):
  def run(queries, rows, seed=0, devices=8, **how):
    return jax.tree.map(
      np.asarray, samplers[devices].run(small_decoder[1], small_target.params, z0, queries, rows, seed, **how)
    )

  return run


@pytest.fixture(scope="module")
def drawn(draw, queries, rows):
  return draw(queries, rows)


def test_mixture_gives_each_query_an_equal_share_of_each_setting(rows):
  np.testing.assert_array_equal(rows.query, np.repeat(np.arange(4), 9))
  np.testing.assert_array_equal(rows.number, np.tile(np.arange(9), 4))
  pairs = list(zip(rows.temperature.tolist(), rows.noise.tolist()))
  assert [pairs.count(tuple(map(float, np.float32(setting)))) for setting in SETTINGS] == [12, 12, 12]
  uneven = mixture_rows(SETTINGS, 8)
  assert [np.sum(uneven.temperature == temperature) for temperature in (0.5, 1.0, 2.0)] == [3, 3, 2]


def test_bos_activation_of_a_site_is_what_the_target_holds_at_bos(z0, small_target, small_decoder):
  run = small_target.run(TASK.tokens_of([123], [456]), capture=small_decoder[0].sites)
  for site, name in enumerate(small_decoder[0].sites):
    np.testing.assert_allclose(z0[site], run[name][0, 0], rtol=1e-5, atol=1e-5)


def test_distances_and_positions_are_those_of_rerunning_the_target_on_the_tokens(
  drawn, queries, rows, small_target, small_decoder
):
  assert drawn.tokens.shape == (36, T) and drawn.distance.shape == (36,)
  run = small_target.run(drawn.tokens, capture=small_decoder[0].sites)
  counted = (drawn.tokens != PAD) & (drawn.tokens != EOS)
  for row, query in enumerate(rows.query):
    site, _, compared, metric = QUERIES[query]
    activations = np.asarray(run[small_decoder[0].sites[site]])[row]
    best, place = by_hand(activations, queries.activation[query], compared, metric, counted[row])
    assert drawn.distance[row] == pytest.approx(best, rel=1e-4, abs=1e-5) and drawn.position[row] == place
  assert (~counted).any(axis=1).sum() > 10 and len(set(drawn.position.tolist())) > 5
  assert np.isinf(drawn.distance).any()  # a candidate that ended before the compared position


def test_effects_are_the_difference_that_the_activation_makes_to_each_token(drawn, queries, rows, z0, small_decoder):
  config, variables = small_decoder
  score = parallel.jit(lambda z, site: jax.nn.softmax(Decoder(config).apply(variables, drawn.tokens, z, site)))
  site = queries.site[rows.query]
  with_z, with_z0 = np.asarray(score(queries.activation[rows.query], site)), np.asarray(score(z0[site], site))
  largest = 0
  for row, tokens in enumerate(drawn.tokens.tolist()):
    assert drawn.effect[row, 0] == 0
    for t in range(1, T):
      by_hand = with_z[row, t - 1, tokens[t]] - with_z0[row, t - 1, tokens[t]] if tokens[t] != PAD else 0
      assert drawn.effect[row, t] == pytest.approx(by_hand, abs=1e-5)
      largest = max(largest, abs(by_hand))
  assert largest > 0.1


def test_candidates_are_the_same_on_one_and_on_eight_devices(draw, drawn, queries, rows):
  one = draw(queries, rows, devices=1)
  np.testing.assert_array_equal(one.tokens, drawn.tokens)
  np.testing.assert_array_equal(one.position, drawn.position)
  np.testing.assert_allclose(one.distance, drawn.distance, rtol=1e-5)
  np.testing.assert_allclose(one.effect, drawn.effect, atol=1e-6)


def test_candidates_are_the_same_whether_they_run_at_once_or_in_chunks(
  drawn, queries, rows, small_target, small_decoder, z0, meshes, monkeypatch
):
  """A large target is re-run on some of the rows at a time; here on 16 of 36."""
  monkeypatch.setattr(sampling.Sampler, "rows_at_once", 16)
  sampler = sampling.Sampler(small_decoder[0], small_target.module, TASK, meshes(8))
  parts = sampler.run(small_decoder[1], small_target.params, z0, queries, rows, 0)
  assert len(parts.tokens) == len(rows.query)
  np.testing.assert_array_equal(parts.tokens, drawn.tokens)
  np.testing.assert_array_equal(parts.position, drawn.position)
  np.testing.assert_allclose(parts.distance, drawn.distance, rtol=1e-5)


def test_same_seed_draws_the_same_candidates_and_another_draws_others(draw, drawn, queries, rows):
  jax.tree.map(np.testing.assert_array_equal, draw(queries, rows), drawn)
  other = draw(queries, rows, seed=1)
  assert (other.tokens != drawn.tokens).any(axis=1).mean() > 0.9


def test_candidates_of_a_query_do_not_depend_on_the_other_queries(draw, drawn, queries):
  alone = mixture_rows(SETTINGS, 4 * EACH)
  for query in range(4):
    got = draw(queries, dataclasses.replace(alone, query=np.full(4 * EACH, query, np.int32)))
    mine = slice(query * EACH, (query + 1) * EACH)
    np.testing.assert_array_equal(got.tokens[:EACH], drawn.tokens[mine])
    np.testing.assert_allclose(got.distance[:EACH], drawn.distance[mine], rtol=1e-5)


def test_noise_changes_what_the_decoder_reads_but_not_what_candidates_are_compared_with(draw, drawn, queries, rows):
  noisy = dataclasses.replace(rows, noise=np.full(36, 3.0, np.float32))
  got = draw(queries, noisy)
  changed = (got.tokens != drawn.tokens).any(axis=1)
  assert changed.mean() > 0.5
  before, now = (
    {(q, tuple(text)): d for q, text, d in zip(rows.query.tolist(), one.tokens.tolist(), one.distance.tolist())}
    for one in (drawn, got)
  )
  both = set(before) & set(now)
  assert len(both) >= 5
  for text in both:
    assert before[text] == pytest.approx(now[text], rel=1e-5)


def test_another_query_compiles_nothing(samplers, draw, drawn, queries, rows):
  before = samplers[8].compiled()
  assert before == 1
  other = dataclasses.replace(
    queries,
    activation=-queries.activation,
    site=(queries.site + 1) % 6,
    position=queries.position[::-1].copy(),
    metric=1 - queries.metric,
  )
  hotter = dataclasses.replace(rows, temperature=rows.temperature * 2, noise=rows.noise + 0.5, number=rows.number + 100)
  got = draw(other, hotter, seed=7)
  assert (got.tokens != drawn.tokens).any(axis=1).mean() > 0.9
  assert samplers[8].compiled() == before


# Strata.


def test_strata_have_fewer_duplicates_and_each_setting_has_its_own(draw, queries):
  rows = {
    kind: mixture_rows(((0.4, 0.0), (0.6, 0.0)), 400, stratified=kind) for kind in (False, True)
  }  # of the first query
  for setting in (0.4, 0.6):
    own = rows[True].stratum[rows[True].temperature == np.float32(setting)]
    np.testing.assert_allclose(np.sort(own[:, 0]), np.arange(200) / 200, atol=1e-6)
    np.testing.assert_allclose(own[:, 1], 1 / 200, rtol=1e-6)
  distinct = {kind: len(np.unique(draw(queries, row, chunk=CHUNK).tokens, axis=0)) for kind, row in rows.items()}
  assert distinct[True] >= distinct[False] > 20


@pytest.mark.slow
def test_strata_do_not_depend_on_devices(draw, queries):
  rows = mixture_rows(SETTINGS, EACH, queries=len(QUERIES), stratified=True)
  one, eight = draw(queries, rows, devices=1), draw(queries, rows, devices=8)
  np.testing.assert_array_equal(one.tokens, eight.tokens)


def test_decoder_can_read_another_activation_than_distances_are_taken_to(draw, queries):
  rows = mixture_rows(((1.0, 0.0),), 36)  # of the first query
  plain, same = draw(queries, rows), draw(queries.replace(decoder_activation=queries.activation), rows)
  np.testing.assert_array_equal(plain.tokens, same.tokens)
  np.testing.assert_array_equal(plain.distance, same.distance)
  elsewhere = draw(queries.replace(activation=-queries.activation, decoder_activation=queries.activation), rows)
  np.testing.assert_array_equal(elsewhere.tokens, same.tokens)
  assert not np.allclose(elsewhere.distance, same.distance)


def test_progress_counts_every_row_once(samplers, small_target, small_decoder, z0, queries, rows, drawn):
  counts = []
  out = samplers[1].run(
    small_decoder[1], small_target.params, z0, queries, rows, 0, effects=False, chunk=16, progress=counts.append
  )
  assert counts == [16, 16, 4]
  np.testing.assert_array_equal(out.tokens, drawn.tokens)
