"""Batches by index: a function of (rows, seed, i), epochs without gaps, and shards that make up the batch."""

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.training.batches import Batches

NUMBERED = np.arange(100, dtype=np.int8)[:, None] + np.zeros(3, np.int8)


def test_shape_and_dtype():
  batch = Batches(NUMBERED, 8, seed=0)[0]
  assert batch.shape == (8, 3) and batch.dtype == np.int32


def test_is_a_function_of_rows_seed_and_index():
  some, again = Batches(NUMBERED, 8, seed=3), Batches(NUMBERED, 8, seed=3)
  want = [some[i] for i in range(40)]
  for i in (39, 0, 13, 12, 25):  # out of order, across epochs
    np.testing.assert_array_equal(again[i], want[i])
  assert not np.array_equal(Batches(NUMBERED, 8, seed=4)[0], want[0])


@pytest.mark.parametrize("batch_size", [1, 10, 8, 100, 250])
def test_every_epoch_has_every_row_once_in_an_order_of_its_own(batch_size):
  batches = Batches(NUMBERED, batch_size, seed=0)
  stream = np.concatenate([batches[i][:, 0] for i in range(-(-300 // batch_size))])
  epochs = stream[:300].reshape(3, 100)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), [np.arange(100)] * 3)
  assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("num_shards", [1, 2, 4, 8])
def test_shards_make_up_the_batch(num_shards):
  batches = Batches(NUMBERED, 8, seed=0)
  for i in (0, 12, 1000):  # 12 straddles two epochs
    parts = [batches.local(i, shard, num_shards) for shard in range(num_shards)]
    assert {len(part) for part in parts} == {8 // num_shards}
    np.testing.assert_array_equal(np.concatenate(parts), batches[i])


def test_rejects_what_cannot_be_dealt_out():
  batches = Batches(NUMBERED, 8, seed=0)
  with pytest.raises(InversionViewError, match="batch of 8 rows cannot be divided evenly into 3 shards"):
    batches.local(0, 0, 3)
  with pytest.raises(InversionViewError, match="shard 2 is out of range"):
    batches.local(0, 2, 2)
  with pytest.raises(IndexError, match="batch -1"):
    batches[-1]
  for rows, batch_size, seed in ((NUMBERED[:0], 8, 0), (NUMBERED, 0, 0), (NUMBERED, 8, -1)):
    with pytest.raises(InversionViewError):
      Batches(rows, batch_size, seed)
