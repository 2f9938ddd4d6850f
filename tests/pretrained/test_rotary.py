"""Frequencies of rotary embeddings: the same bits on every machine."""

from inversionview_jax.pretrained import rotary

# 1 / 100000 ** (torch.arange(0, 64, 2).float() / 64) of PyTorch 2.13 on a CPU: places where a power in float32 is easily off by one bit.
_TORCH = {
  1: "0x1.654a0c0000000p-1",
  7: "0x1.4a12ac0000000p-4",
  14: "0x1.a9942a0000000p-8",
  26: "0x1.6b36360000000p-14",
  31: "0x1.e0d6da0000000p-17",
}


def test_frequencies_are_correctly_rounded():
  found, gain = rotary.frequencies({"rope_theta": 100000.0}, 64, 2048, "config.json")
  assert gain == 1.0 and len(found) == 32
  assert {place: found[place].hex() for place in _TORCH} == _TORCH
