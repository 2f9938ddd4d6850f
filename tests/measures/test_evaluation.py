"""The evaluation of a reader, made of held-out rates, base rates and exact preimages."""

import json
import math

import numpy as np
import pytest

from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import evaluation, held_out
from inversionview_jax.tasks import Mixture

MIXTURE = Mixture(((0.5, 0.0), (1.0, 0.2)), num_samples=64)

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_evaluation_agrees_with_its_parts_and_is_strict_json(small_reader, tmp_path):
  result = evaluation.evaluate(small_reader, queries=8, exact_queries=3, mixture=MIXTURE)
  held = held_out.held_out_queries(small_reader, 8)
  hits, base = held_out.inside(small_reader, held), held_out.base_rates(small_reader, held)
  for s, site in enumerate(result.sites):
    own = held.queries.site == s
    assert (site.rate.hits, site.rate.count) == (hits[own].sum(), 8)
    assert site.base == pytest.approx(base[own].mean())
    assert sum(rate.count for rate, _ in site.by_label.values()) == 8
  assert result.rate == pytest.approx(hits.mean()) and len(result.exact) == 3
  table = json.loads(result.to_json(tmp_path / "e.json"), parse_constant=pytest.fail)
  assert json.loads((tmp_path / "e.json").read_text()) == table
  assert table["summary"]["coverage"] == pytest.approx(np.mean([one.coverage for one in result.exact]))
  assert math.isclose(table["sites"][0]["rate"]["low"], result.sites[0].rate.low)
  assert f"{result.rate:.3f} ±" in repr(result) and "3 queries against exact preimages" in result._repr_html_()


def test_exact_part_of_a_task_that_cannot_enumerate_is_refused_before_anything_runs(small_reader, few, monkeypatch):
  monkeypatch.setattr(type(few), "enumerable", False)
  with pytest.raises(InversionViewError, match="cannot be enumerated"):
    evaluation.evaluate(small_reader, exact_queries=1)
  assert evaluation.evaluate(small_reader, queries=2, exact_queries=0).exact == ()
