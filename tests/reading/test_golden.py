"""Shipped readers against preimages that version 0.1 made, sample for sample."""

import json
import math
import pathlib

import jax
import pytest

from inversionview_jax.reading import load_reader

pytestmark = pytest.mark.optimized

# Made by version 0.1 on a CPU, with float32 products (as here, so that CPUs with bfloat16 units agree), 64 samples each, seed 3.
GOLDEN = json.loads((pathlib.Path(__file__).parent / "golden_preimages.json").read_text())


@pytest.mark.parametrize("reader", ["addition", pytest.param("counting", marks=pytest.mark.slow)])
def test_shipped_reader_gives_the_preimages_of_version_0_1(reader):
  requests = [one for one in GOLDEN if one["reader"] == reader]
  with jax.default_matmul_precision("float32"):
    loaded = load_reader(reader)
    for one in requests:
      preimage = loaded.preimage(
        one["text"], site=one["site"], position=one["position"], num_samples=64, seed=3, effects=False
      )
      samples, expected = preimage.samples, one["samples"]
      assert len(samples) == len(expected) == 64
      # At most 2 % of the samples may differ, where another CPU's last bits decide between two tokens.
      left = {}
      for text, distance, position in expected:
        left.setdefault(text, []).append((math.inf if distance is None else distance, position))
      different = 0
      for sample in samples:
        if not left.get(sample.text):
          different += 1
          continue
        distance, position = left[sample.text].pop(0)
        assert sample.distance == pytest.approx(distance, abs=1e-4) and sample.position == position
      assert different <= 0.02 * 64, f"{different} of 64 samples differ: {one['site']} of {one['text']}"
