"""`inversionview bench`: its tables, its JSON, and what it refuses."""

import json

import pytest

from inversionview_jax.benchmarks import bench, timing

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.mark.parametrize("cases", [("capture",), pytest.param(bench.CASES, marks=pytest.mark.slow)], ids=("one", "all"))
def test_bench_times_every_case(cases, inversionview, tmp_path):
  only = [] if cases == bench.CASES else ["--only", *cases]
  code, out, _ = inversionview(
    "bench", "--size", "small", "--repeats", 1, "--seconds", 0, "--no-torch", "--json", "b.json", *only
  )
  assert code == 0
  table = json.loads((tmp_path / "b.json").read_text())
  assert [case["case"] for case in table["cases"]] == list(cases)
  for case in table["cases"]:
    (side,) = case["sides"]
    assert 0 < side["low"] <= side["median"] <= side["high"] and f"{case['case']}: {case['about']}" in out
  assert table["matmul_gflops"]["inversionview_jax"] > 0 and table["machine"]["cores"] >= 1


def test_bench_counts_the_work_that_a_transformer_does():
  """Matrix products of one layer, counted one by one: Q, K, V, O, two of the MLP, two of attention, and the unembedding."""
  from inversionview_jax.models.transformer import TransformerConfig

  d, m, t, v = 8, 24, 5, 11
  products = 4 * [(t, d, d)] + [(t, d, m), (t, m, d), (t, d, t), (t, t, d), (t, d, v)]
  config = TransformerConfig(v, t, 1, 2, d, m)
  assert timing.transformer_flops(config, t, t) == sum(2 * a * b * c for a, b, c in products)


@pytest.mark.parametrize(
  ("wrong", "named"),
  [
    (["--size", "fll"], "did you mean full"),
    (["--only", "trian"], "did you mean train?"),
    (["--repeats", "0"], "--repeats 0"),
  ],
)
def test_bench_names_what_it_does_not_know(inversionview, wrong, named):
  code, _, error = inversionview("bench", *wrong)
  assert code == 2 and named in error
