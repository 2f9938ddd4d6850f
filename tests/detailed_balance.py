"""Moves checked by enumeration: whether Metropolis-Hastings with a move leaves a task's prior as it is."""

import itertools

import jax
import numpy as np


def grid(*sizes):
  """float32[G, U]: uniforms such that `moves.choice` among each of these numbers, and their divisors, comes out equally often."""
  points = list(itertools.product(*((np.arange(n) + 0.5) / n for n in sizes)))
  return np.array(points, np.float32).reshape(len(points), len(sizes))


def flow(move, uniforms, rows, log_prior):
  """float[M, M]: how much probability a move takes from each input to each other one, by all uniforms and, of a drawn move, all inputs.

  Args:
    move: a `Move`.
    uniforms: float32[G, U], equally probable.
    rows: int32[M, T], all inputs of the task, different ones.
    log_prior: of the task.
  """
  prior = np.asarray(log_prior(rows), float)
  assert np.isclose(np.exp(prior).sum(), 1, rtol=1e-6)
  number = {tuple(row): i for i, row in enumerate(rows.tolist())}
  out = np.zeros((len(rows), len(rows)))
  drawn = range(len(rows)) if move.drawn else (None,)
  for u, y in itertools.product(uniforms, drawn):
    more = () if y is None else (np.repeat(rows[y : y + 1], len(rows), axis=0),)
    new, ratio = move.propose(np.repeat(u[None], len(rows), axis=0), rows, *more)
    accept = np.exp(np.minimum(np.asarray(log_prior(new), float) - prior + ratio, 0.0))
    share = np.exp(prior) / len(uniforms) * (1.0 if y is None else np.exp(prior[y])) * accept
    to = np.array([number.get(tuple(row), -1) for row in new.tolist()])
    assert (share[to < 0] == 0).all()
    np.add.at(out, (np.arange(len(rows))[to >= 0], to[to >= 0]), share[to >= 0])
  return out


def assert_balanced(move, uniforms, rows, log_prior):
  """As much goes from each input to each other one as back, and something does."""
  there = flow(move, uniforms, rows, log_prior)
  np.testing.assert_allclose(there, there.T, rtol=1e-5, atol=1e-12)
  assert (there - np.diag(np.diag(there))).sum() > 0.02
  return there


def assert_same_in_jit(move, tokens, log_prior, seed=0):
  """NumPy and jitted JAX give the same proposals, ratios and priors."""
  rng = np.random.default_rng(seed)
  more = (tokens[rng.permutation(len(tokens))],) if move.drawn else ()
  arguments = (rng.random((len(tokens), move.uniforms), np.float32), tokens, *more)
  new, ratio = move.propose(*arguments)
  other, other_ratio = jax.jit(move.propose)(*arguments)
  assert new.dtype == other.dtype == np.int32 and ratio.shape == other_ratio.shape == (len(tokens),)
  np.testing.assert_array_equal(new, other)
  np.testing.assert_allclose(ratio, other_ratio, rtol=1e-6)
  np.testing.assert_allclose(log_prior(new), jax.jit(log_prior)(other), rtol=1e-6)
