"""What the tests of measures share: a small random reader, and the shipped one, on few inputs of addition; held-out queries."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.measures.held_out import held_out_queries
from inversionview_jax.reading import Reader, load_reader

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


class Ones(type(TASK)):
  """The 8,100 inputs of addition whose numbers both end in 5."""

  num_inputs = 90 * 90

  def tokens(self, index):
    index = np.asarray(index)
    return TASK.tokens_of(105 + 10 * (index // 90), 105 + 10 * (index % 90))

  def index(self, tokens):
    index = TASK.index(tokens)
    first, second = index // 900, index % 900
    return np.where((index >= 0) & (first % 10 == 5) & (second % 10 == 5), first // 10 * 90 + second // 10, -1)


@pytest.fixture(scope="package")
def ones():
  return Ones()


@pytest.fixture(scope="package")
def reader(ones):
  """The shipped reader of addition on fewer inputs, which are enumerated at once."""
  shipped = load_reader("addition")
  return Reader(shipped.target, ones, shipped.config, shipped.variables, "ones")
