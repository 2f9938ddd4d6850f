"""Means with standard errors, and ratios of them."""

import numpy as np
import pytest

from inversionview_jax.causal.estimates import estimate, share


def test_estimates_are_means_with_standard_errors():
  values = np.array([1.0, 2.0, 4.0, 9.0])
  effects = estimate(values)
  assert (effects.mean, effects.n) == (4.0, 4) and effects.se == pytest.approx(np.sqrt(np.var(values, ddof=1) / 4))
  assert np.isnan(estimate(values[:1]).se)


def test_the_error_of_a_share_is_that_of_redrawing_the_pairs():
  rng = np.random.default_rng(0)
  whole = rng.normal(10, 3, 2000)
  part = 0.6 * whole + rng.normal(0, 1, 2000)
  effects = share(part, whole)
  assert effects.mean == part.sum() / whole.sum() and effects.n == 2000
  redrawn = [rng.integers(0, 2000, 2000) for _ in range(1000)]
  assert effects.se == pytest.approx(np.std([part[i].sum() / whole[i].sum() for i in redrawn]), rel=0.1)
  assert share(part, np.zeros(2000)) is None
