"""Training pairs: which (site, position) is drawn for a text, and the activation captured there."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import sites, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.sampling import collect

TASK = tasks.get("addition")
ROWS = TASK.tokens(TASK.split("train")[:6])
B, T = ROWS.shape
SITES = sites.enumerate_sites(2, 2)  # every site of `small_target` that has one vector per position

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def keys(n, seed=0):
  return parallel.fold_in_each(jax.random.key(seed), jnp.arange(n))


# What is captured.


@pytest.fixture(scope="module")
def captured(small_target):
  """float32[S, B, T, D]: every site of every text, as `Target.run` gives it."""
  run = small_target.run(ROWS, capture=SITES)
  return np.stack([run[site] for site in SITES])


def test_activations_are_the_captures_at_those_positions_and_sites(small_target, captured):
  rng = np.random.default_rng(0)
  at, site = rng.integers(0, T, (B, 40)).astype(np.int32), rng.integers(0, len(SITES), (B, 40)).astype(np.int32)
  assert set(site.flat) == set(range(len(SITES)))
  activations_at = parallel.jit(collect.activations_at, static_argnums=(0, 5))
  got = activations_at(small_target.module, small_target.params, ROWS, at, site, SITES)
  assert got.shape == (B, 40, small_target.config.d_model) and got.dtype == jnp.float32
  by_hand = captured[site, np.arange(B)[:, None], at]
  assert np.abs(by_hand).mean() > 0.1
  np.testing.assert_allclose(got, by_hand, rtol=1e-5, atol=1e-5)


def test_pairs_of_a_text_follow_one_another(small_target, captured):
  pairs_per_text = 5
  pairs = parallel.jit(lambda params, rows, keys: collect.collect(
      small_target.module, params, rows, keys, sites=SITES, query_mask=TASK.query_mask,
      site_logits=jnp.zeros(len(SITES)), pairs_per_text=pairs_per_text, bos_rate=0.2,
  ))(small_target.params, ROWS, keys(B))  # fmt: skip
  np.testing.assert_array_equal(pairs.tokens, np.repeat(ROWS, pairs_per_text, axis=0))
  position, site = collect.draw(ROWS, keys(B), TASK.query_mask(ROWS), jnp.zeros(len(SITES)), pairs_per_text, 0.2)
  np.testing.assert_array_equal(pairs.position, np.ravel(position))
  np.testing.assert_array_equal(pairs.site, np.ravel(site))
  assert len(set(zip(pairs.position.tolist(), pairs.site.tolist()))) > 20
  text = np.repeat(np.arange(B), pairs_per_text)
  np.testing.assert_allclose(pairs.activation, captured[pairs.site, text, pairs.position], rtol=1e-5, atol=1e-5)


# What is drawn.

N, P = 500, 8
TEXTS = {name: tasks.get(name).tokens(tasks.get(name).split("train")[:N]) for name in ("addition", "counting")}
DRAW = parallel.jit(collect.draw, static_argnums=(4,))


def draw(task="addition", seed=0, site_logits=np.zeros(3), bos_rate=0.0):
  mask = tasks.get(task).query_mask(TEXTS[task])
  position, site = DRAW(TEXTS[task], keys(N, seed), mask, jnp.asarray(site_logits, jnp.float32), P, bos_rate)
  assert position.shape == site.shape == (N, P) and position.dtype == site.dtype == jnp.int32
  return np.asarray(position), np.asarray(site)


def assert_binomial(count, n, p):
  """`count` of `n` is within five standard deviations of p."""
  assert abs(count - n * p) < 5 * np.sqrt(n * p * (1 - p)), f"{count} of {n} where {n * p:.0f} were expected"


@pytest.mark.parametrize("task", ["addition", "counting"])
def test_positions_are_drawn_uniformly_from_those_the_task_allows(task):
  mask = tasks.get(task).query_mask(TEXTS[task])
  position, _ = draw(task)
  assert np.take_along_axis(mask, position, axis=1).all()
  allowed = mask.sum(axis=1)
  for place in np.flatnonzero(mask.all(axis=0))[:4] if task == "addition" else []:
    assert_binomial((position == place).sum(), N * P, np.mean(1 / allowed))
  rank = np.take_along_axis(np.cumsum(mask, axis=1), position, axis=1)
  assert_binomial((rank == 1).sum(), N * P, np.mean(1 / allowed))
  assert_binomial((rank == allowed[:, None]).sum(), N * P, np.mean(1 / allowed))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.3, 1.0])
def test_share_of_pairs_at_bos_is_the_rate(rate):
  position, _ = draw(bos_rate=rate)
  count = (position == 0).sum()
  if rate in (0.0, 1.0):
    assert count == rate * N * P
  else:
    assert_binomial(count, N * P, rate)


def test_sites_are_drawn_with_their_logits():
  logits = np.log([0.5, 0.2, 0.3]) + 3
  _, site = draw(site_logits=logits)
  for s, p in enumerate((0.5, 0.2, 0.3)):
    assert_binomial((site == s).sum(), N * P, p)
  _, uniform = draw()
  for s in range(3):
    assert_binomial((uniform == s).sum(), N * P, 1 / 3)


def test_draws_depend_on_the_texts_own_key_alone():
  first, again, other = draw(bos_rate=0.1), draw(bos_rate=0.1), draw(seed=1, bos_rate=0.1)
  for one, same, different in zip(first, again, other):
    np.testing.assert_array_equal(one, same)
    assert (one != different).mean() > 0.5
  mask = TASK.query_mask(TEXTS["addition"])
  alone = collect.draw(TEXTS["addition"][7:8], keys(N)[7:8], mask[7:8], jnp.zeros(3), P, 0.1)
  for one, mine in zip(first, alone):
    np.testing.assert_array_equal(one[7:8], mine)


def test_position_site_and_bos_are_drawn_independently():
  position, site = draw(bos_rate=0.5)
  at_bos = position == 0
  for s in range(3):
    assert_binomial((at_bos & (site == s)).sum(), N * P, 1 / 6)
  position, site = (drawn[:, 0] for drawn in draw())  # where keys that are used twice would show
  for place, s in itertools.product((1, 2, 3), range(3)):
    assert_binomial(((position == place) & (site == s)).sum(), N, 1 / 3 / 11.54)
  position, _ = draw(bos_rate=0.5)
  # The pairs of one text differ, as do the texts.
  assert len({tuple(row) for row in position}) > 0.95 * N and (position.std(axis=1) > 0).mean() > 0.9
