"""Preimages of many activations from one set of random inputs: distances by hand, and what is reported of them."""

import math

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Request
from inversionview_jax.reading.rejection import preimages_of_random_inputs

TASK = tasks.get("addition")
TEXT = "615+861=1476"


def nearest(target, site, position, metric):
  """Distances of the first 400 random inputs of seed 3 to the query, each at its nearest position; float64."""
  tokens = TASK.tokens(np.random.default_rng(3).integers(TASK.num_inputs, size=400))
  z = np.asarray(target.run([TEXT], [site])[site], np.float64)[0, position]
  x = np.asarray(target.run(tokens, [site])[site], np.float64)
  if metric == "euclidean":
    each = np.linalg.norm(x - z, axis=-1) / np.linalg.norm(z)
  else:
    each = 1 - (x @ z) / np.linalg.norm(x, axis=-1) / np.linalg.norm(z)
  special = np.isin(tokens, [TASK.tokenizer.bos_id, TASK.tokenizer.eos_id, TASK.tokenizer.pad_id])
  return [TASK.tokenizer.text(row) for row in tokens], np.where(special, np.inf, each).min(axis=1)


def test_members_are_the_random_inputs_within_epsilon(small_target):
  places = (("a0.1", "=", 8, "euclidean", 0.3), ("x0.mid", "S2", 6, "cosine", 0.05))
  by_hand = [nearest(small_target, site, position, metric) for site, _, position, metric, _ in places]
  requests = [
    Request(TEXT, site, label, float(np.quantile(distance, share)), metric)
    for (site, label, _, metric, share), (_, distance) in zip(places, by_hand, strict=True)
  ]
  found = preimages_of_random_inputs(small_target, TASK, requests, inputs=400, seed=3)
  for request, (texts, distance), preimage in zip(requests, by_hand, found, strict=True):
    inside = distance <= request.epsilon
    assert sorted(s.text for s in preimage.inside) == sorted(t for t, i in zip(texts, inside, strict=True) if i)
    assert preimage.bits == pytest.approx(math.log2(400 / inside.sum()))
    assert preimage.bits_error == pytest.approx(math.sqrt(1 / inside.sum() - 1 / 400) / math.log(2))
    assert preimage.target_runs == 400
    assert preimage.outside[0].distance == pytest.approx(distance[~inside].min(), abs=1e-5)
  many, few = found
  assert many.converged and not few.converged and "20 of 400 random inputs lie inside epsilon" in few.problem
  assert Preimage.from_json(many.to_json()) == many and many.query.attention is not None


def test_what_cannot_be_drawn_is_refused(small_target):
  with pytest.raises(InversionViewError, match="unknown position 'Q'"):
    preimages_of_random_inputs(small_target, TASK, [Request(TEXT, "a0.1", "Q")], inputs=10)
  with pytest.raises(InversionViewError, match="inputs"):
    preimages_of_random_inputs(small_target, TASK, [Request(TEXT, "a0.1", "=")], inputs=0)
