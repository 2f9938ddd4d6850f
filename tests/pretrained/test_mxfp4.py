"""Experts of gpt-oss stored as MXFP4: numbers of four bits, 32 of which have a power of two in common."""

import numpy as np
import pytest
import safetensors.numpy

from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained.weights import Safetensors

E, OUT, GROUPS = 2, 3, 2
NUMBERS = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.fixture(scope="module")
def packed():
  rng = np.random.default_rng(0)
  blocks = rng.integers(0, 256, (E, OUT, GROUPS, 16)).astype(np.uint8)
  return blocks, rng.integers(118, 136, (E, OUT, GROUPS)).astype(np.uint8)


def written(folder, blocks, scales):
  tensors = {"x_blocks": blocks, "x_scales": scales, "plain": np.ones(3, np.float32)}
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return Safetensors(folder)


def test_two_tensors_are_one_as_the_format_has_it(tmp_path, packed):
  blocks, scales = packed
  weights = written(tmp_path, blocks, scales)
  assert weights.names == {"x", "plain"} and weights.shape("x") == (E, 32 * GROUPS, OUT)
  got = weights.read("x")
  for expert, out, number in np.ndindex(E, OUT, 32 * GROUPS):
    byte = int(blocks[expert, out, number // 32, number % 32 // 2])
    four = byte & 15 if number % 2 == 0 else byte >> 4
    value = (-1) ** (four >> 3) * NUMBERS[four & 7] * 2.0 ** (int(scales[expert, out, number // 32]) - 127)
    assert got[expert, number, out] == value


def test_two_tensors_are_what_transformers_makes_of_them(tmp_path, packed):
  torch = pytest.importorskip("torch")
  convert = pytest.importorskip("transformers.integrations.mxfp4").convert_moe_packed_tensors
  theirs = convert(*(torch.from_numpy(x.copy()) for x in packed), dtype=torch.float32)
  np.testing.assert_array_equal(written(tmp_path, *packed).read("x"), theirs.numpy())


def test_bytes_that_are_no_pair_are_refused(tmp_path, packed):
  blocks, scales = packed
  weights = written(tmp_path, blocks, scales[:, :1])
  assert {"x_blocks", "x_scales"} < weights.names
  with pytest.raises(InversionViewError, match="x_blocks is of type U8"):
    weights.read("x_blocks")
