"""Rates with their intervals, and the AUC: against textbook values and scipy."""

import itertools

import numpy as np
import pytest

from inversionview_jax.measures.rates import Rate, auc


@pytest.mark.parametrize(
  ("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (190, 200, 0.9104, 0.9726)]
)
def test_interval_is_wilsons(hits, count, low, high):  # values of the textbook formula
  rate = Rate(hits, count)
  assert rate.value == hits / count
  assert (rate.low, rate.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (3, 7), (60, 60), (190, 200)])
def test_interval_is_scipys_for_whole_counts(hits, count):
  from scipy import stats

  interval = stats.binomtest(hits, count).proportion_ci(0.95, "wilson")
  assert (Rate(hits, count).low, Rate(hits, count).high) == pytest.approx((interval.low, interval.high), abs=1e-8)


def test_interval_covers_the_true_rate_as_often_as_its_level():
  hits = np.random.default_rng(0).binomial(60, 0.8, size=4000)
  covered = np.mean([Rate(int(h), 60).low <= 0.8 <= Rate(int(h), 60).high for h in hits])
  assert 0.93 < covered < 0.97


def test_auc_is_the_probability_that_an_inside_value_is_larger():
  inside, outside = np.array([0.0, 2.0, 2.0]), np.array([1.0, 2.0])
  pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product(inside, outside)]
  assert auc(inside, outside) == np.mean(pairs)
  assert auc(inside, outside[:0]) is None and auc(inside[:0], outside) is None


def test_auc_is_scipys_mann_whitney_statistic():
  from scipy import stats

  rng = np.random.default_rng(0)
  inside, outside = rng.normal(1, 1, 50).round(1), rng.normal(0, 1, 300).round(1)  # with ties
  assert auc(inside, outside) == pytest.approx(stats.mannwhitneyu(inside, outside).statistic / (50 * 300), abs=1e-12)
