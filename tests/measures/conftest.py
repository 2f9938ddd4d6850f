"""What the tests of measures share: a small random reader of addition on a few of its inputs, and held-out queries of it."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.measures.held_out import held_out_queries
from inversionview_jax.reading import Reader

TASK = tasks.get("addition")


@pytest.fixture(scope="package")
def few():
  """Addition with 300 of its inputs, so that exact preimages are enumerated at once."""

  class Few(type(TASK)):
    num_inputs = 300

    def tokens(self, index):
      return TASK.tokens(np.asarray(index) * 2699)

    def index(self, tokens):
      index = TASK.index(tokens)
      return np.where((index >= 0) & (index % 2699 == 0), index // 2699, -1)

  return Few()


@pytest.fixture(scope="package")
def small_reader(small_target, small_decoder, few):
  return Reader(small_target, few, *small_decoder, "small")


@pytest.fixture(scope="package")
def held(small_reader):
  """Ten queries of every site."""
  return held_out_queries(small_reader, 10)
