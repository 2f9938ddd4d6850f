"""Marginals of particles beside those of as many exact draws."""

import numpy as np

from inversionview_jax.measures.methods import _marginals


def test_independent_draws_deviate_as_draws_do_and_a_missing_half_by_a_half():
  rng = np.random.default_rng(0)
  members = np.stack([np.zeros(1000, int), rng.integers(4, size=1000), rng.integers(4, size=1000)], axis=1)
  found = members[rng.integers(1000, size=256)]
  deviation, of_draws = _marginals(found, members, 4, rng)
  assert 0 < of_draws < 0.1 and deviation < 2 * of_draws
  half = members[members[:, 1] < 2][:256]  # the constant first position does not count
  deviation, of_draws = _marginals(half, members, 4, rng)
  assert 0.25 < deviation < 0.35 and of_draws < 0.1


def test_a_single_member_has_no_deviation():
  one = np.array([[1, 2, 3]])
  assert _marginals(np.repeat(one, 8, axis=0), one, 4, np.random.default_rng(0)) == (0.0, 0.0)
