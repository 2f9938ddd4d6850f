"""Moves of Monte Carlo sampling: each leaves its task's prior invariant, on NumPy and on JAX arrays alike; and the priors themselves."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from inversionview_jax import tasks
from inversionview_jax.tasks.counting_moves import CountingMoves
from inversionview_jax.tasks.moves import choice, ranks

ADDITION, COUNTING = tasks.get("addition"), tasks.get("counting")
DRAWS = 60_000


class Sums:
  """Sums: classes are the first digits of the operands and whether the last ones carry."""

  moves = {move.name: move for move in ADDITION.moves()}
  log_prior = staticmethod(ADDITION.log_prior)

  @staticmethod
  def draw(rng, count):
    return ADDITION.tokens(rng.integers(ADDITION.num_inputs, size=count))

  @staticmethod
  def classes(tokens):
    return tokens[:, 1] // 2 + 5 * (tokens[:, 5] // 3) + 20 * (tokens[:, 3] + tokens[:, 7] >= 10)


class ShortCounting:
  """Counting inputs of at most 5 letters: classes are the pattern of letters by first occurrence, the query letter among them, and the half
  of the alphabet that the first is of."""

  longest = 5
  numbers = [n for n in itertools.product((1, 2, 3), repeat=3) if sum(n) <= 5]
  task_moves = CountingMoves(COUNTING._moves.ids, longest)
  moves = {move.name: move for move in task_moves.all()}

  @classmethod
  def log_prior(cls, tokens):
    return cls.task_moves.log_prior(tokens, math.log(2600 * len(cls.numbers) * 3))

  @classmethod
  def draw(cls, rng, count):
    texts = []
    for _ in range(count):
      letters = rng.choice(26, 3, replace=False)
      string = rng.permutation(np.repeat(letters, cls.numbers[rng.integers(len(cls.numbers))]))
      query = rng.choice(letters)
      texts.append("".join(chr(97 + x) for x in string) + f"|{chr(97 + query)}:{(string == query).sum()}")
    return COUNTING.tokenizer.encode_batch(texts, length=COUNTING.length, eos=True)

  @staticmethod
  def classes(tokens):
    found, keys = {}, []
    for row in tokens.tolist():
      bar = row.index(COUNTING.tokenizer.encode("|")[0])
      order = list(dict.fromkeys(row[1:bar]))
      keys.append((tuple(map(order.index, row[1:bar])), order.index(row[bar + 1]), row[1] < 13))
    return np.array([found.setdefault(key, len(found)) for key in keys])


CASES = [(space, name) for space in (Sums, ShortCounting) for name in space.moves]


@pytest.fixture(scope="module")
def drawn():
  return {
    Sums: Sums.draw(np.random.default_rng(0), DRAWS),
    ShortCounting: ShortCounting.draw(np.random.default_rng(0), 20_000),
  }


def uniforms_of(move, count, seed=1):
  return np.random.default_rng(seed).random((count, move.uniforms), np.float32)


@pytest.mark.parametrize("space, name", CASES)
def test_a_move_is_in_detailed_balance_with_the_prior(space, name, drawn):
  """From draws of the prior, as many Metropolis-Hastings steps lead from one class to another as back."""
  tokens, move = drawn[space], space.moves[name]
  new, ratio = move.propose(uniforms_of(move, len(tokens)), tokens)
  prior = space.log_prior(tokens)
  assert np.isfinite(prior).all()
  accept = np.log(np.random.default_rng(2).random(len(tokens))) < space.log_prior(new) - prior + ratio
  after = np.where(accept[:, None], new, tokens)
  assert (after != tokens).any(axis=1).mean() > 0.05
  each = space.classes(np.concatenate([tokens, after]))
  before, after = each[: len(tokens)], each[len(tokens) :]
  flow = np.zeros((each.max() + 1,) * 2)
  np.add.at(flow, (before, after), 1)
  there, back = flow[np.triu_indices(len(flow), 1)], flow.T[np.triu_indices(len(flow), 1)]
  many = there + back >= 10
  if name == "exchange operands":  # is its own inverse: what moves between classes is always as much, up to the draws
    assert many.any()
  statistic = ((there - back) ** 2 / np.maximum(there + back, 1))[many].sum()
  assert stats.chi2.sf(statistic, many.sum()) > 1e-3, (statistic, many.sum())


@pytest.mark.parametrize("space, name", CASES)
def test_numpy_and_jax_agree(space, name, drawn):
  tokens, move = drawn[space][:500], space.moves[name]
  uniforms = uniforms_of(move, len(tokens))
  new, ratio = move.propose(uniforms, tokens)
  other, other_ratio = move.propose(jnp.asarray(uniforms), jnp.asarray(tokens))
  assert new.dtype == other.dtype == np.int32
  np.testing.assert_array_equal(new, other)
  np.testing.assert_allclose(ratio, other_ratio, rtol=1e-6)
  np.testing.assert_allclose(space.log_prior(new), space.log_prior(other), rtol=1e-6)


@pytest.mark.parametrize("task", [ADDITION, COUNTING], ids=lambda task: task.name)
def test_many_moves_in_a_row_reach_other_inputs(task):
  """The moves together connect the inputs: from one of them, walks under the prior end anywhere."""
  rng = np.random.default_rng(0)
  tokens = np.repeat(task.tokens(np.array([1234])), 400, axis=0)
  first = tokens[0]
  for _ in range(60):
    for move in task.moves():
      new, _ = move.propose(rng.random((len(tokens), move.uniforms), np.float32), tokens)
      tokens = np.where(np.isfinite(task.log_prior(new))[:, None], new, tokens)
  assert len(np.unique(tokens, axis=0)) > 395
  operands = slice(1, 4)
  assert (tokens[:, operands] != first[operands]).any(axis=1).mean() > 0.95


def test_the_prior_of_addition_is_uniform_over_its_inputs():
  rng = np.random.default_rng(0)
  tokens = ADDITION.tokens(rng.integers(ADDITION.num_inputs, size=2000))
  wrong = np.where(rng.random(tokens.shape) < 0.1, rng.integers(15, size=tokens.shape), tokens).astype(np.int32)
  for rows in (tokens, wrong):
    expected = np.where(ADDITION.index(rows) >= 0, -math.log(810_000), -math.inf)
    np.testing.assert_array_equal(ADDITION.log_prior(rows), expected)
    np.testing.assert_allclose(ADDITION.log_prior(jnp.asarray(rows)), expected, rtol=1e-6)
  assert np.isinf(ADDITION.log_prior(wrong)).any()


def test_the_prior_of_counting_by_brute_force():
  """Every string of up to 5 letters a, b and c, with every query letter and count, right or wrong."""
  texts, expected = [], []
  for length in range(1, 6):
    for letters in itertools.product("abc", repeat=length):
      orders = len(set(itertools.permutations(letters)))
      for query, count in itertools.product("abd", range(1, 4)):
        texts.append(f"{''.join(letters)}|{query}:{count}")
        right = len(set(letters)) == 3 and letters.count(query) == count
        expected.append(-math.log(2600 * 9**3 * 3 * orders) if right else -math.inf)
  tokens = COUNTING.tokenizer.encode_batch(texts, length=COUNTING.length, eos=True)
  np.testing.assert_allclose(COUNTING.log_prior(tokens), expected, rtol=1e-12)
  np.testing.assert_allclose(COUNTING.log_prior(jnp.asarray(tokens)), expected, rtol=1e-6)


def test_a_choice_is_uniform_and_never_out_of_range():
  uniform = np.linspace(0, 1, 12_000, endpoint=False, dtype=np.float32)
  np.testing.assert_array_equal(np.bincount(choice(uniform, 12)), [1000] * 12)
  assert choice(np.nextafter(np.float32([1]), np.float32(0)), 7).tolist() == [6]


@pytest.mark.parametrize("xp", [np, jnp])
def test_ranks_are_those_of_a_stable_sort(xp):
  values = np.random.default_rng(0).integers(5, size=(50, 7)) / np.float32(4)
  expected = np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable")
  np.testing.assert_array_equal(ranks(xp.asarray(values)), expected)
