"""TPU chips and topologies by name."""

import pytest

from inversionview_jax.devices import chips
from inversionview_jax.errors import InversionViewError
from inversionview_jax.training import throughput


def test_peaks_are_those_of_the_throughput_log():
  for chip in chips.CHIPS.values():
    assert chip.flops == 1e12 * throughput.PEAK_TFLOPS[chip.kind]


def test_topologies_are_parsed_and_impossible_ones_refused():
  pod = chips.topology("v5e:16x16")
  assert (pod.devices, pod.hosts, pod.grid) == (256, 64, "16x16")
  assert chips.topology("cpu:8").devices == 8
  for name in ("v5e", "v5e:0x4", "v5p:4x4", "cpu:2x4", "v4:2x2x1", "v5e:16x16x16", ""):
    with pytest.raises(InversionViewError):
      chips.topology(name)
