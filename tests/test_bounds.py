"""Counts out of their range are refused by name before anything of their size is made, from Python as by flags."""

import tracemalloc

import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import bounds, tasks
from inversionview_jax.causal import experiments, head_importance
from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.interpret import language_model
from inversionview_jax.measures import coverage, evaluation, held_out, information, methods
from inversionview_jax.reading import Reader
from inversionview_jax.reading.source import Source

TEXT = "615+861=1476"
AT = (TEXT, "a0.0", "=")
HUGE = 10**9


@pytest.fixture(scope="module")
def reader(small_target, small_decoder):
  return Reader(small_target, tasks.get("addition"), *small_decoder)


# A function (reader, its target) and the name of the argument that is wrong.
CALLS = {
  "iv.preimage": (lambda r, t: iv.preimage(t, *AT, particles=HUGE), "particles"),
  "iv.preimage budget": (lambda r, t: iv.preimage(t, *AT, budget=10**13), "budget"),
  "iv.preimage seed": (lambda r, t: iv.preimage(t, *AT, seed=2**40), "seed"),
  "iv.preimage epsilon": (lambda r, t: iv.preimage(t, *AT, epsilon=1e300), "epsilon"),
  "Reader.preimage": (lambda r, t: r.preimage(*AT, num_samples=HUGE), "num_samples"),
  "Reader.preimage noise": (lambda r, t: r.preimage(*AT, noise=1e300), "noise"),
  "Reader.preimage temperatures": (lambda r, t: r.preimage(*AT, temperatures=[1.0, 1e9]), "temperature"),
  "Reader.preimage particles": (lambda r, t: r.preimage(*AT, method="monte_carlo", particles=HUGE), "particles"),
  "Reader.preimage both": (lambda r, t: r.preimage(*AT, method="decoder+monte_carlo", num_samples=HUGE), "num_samples"),
  "Reader.preimages": (lambda r, t: r.preimages([AT], chunk=HUGE), "chunk"),
  "Mixture": (lambda r, t: iv.Mixture(((1.0, 0.0),), num_samples=HUGE), "num_samples"),
  "Source.of": (lambda r, t: Source.of(t, particles=HUGE), "particles"),
  "evaluate": (lambda r, t: evaluation.evaluate(r, queries=HUGE), "queries"),
  "evaluate exact": (lambda r, t: evaluation.evaluate(r, exact_queries=HUGE), "exact_queries"),
  "evaluate seed": (lambda r, t: evaluation.evaluate(r, seed=2**40), "seed"),
  "evaluate none": (lambda r, t: evaluation.evaluate(r, queries=0), "queries"),
  "held_out_queries": (lambda r, t: held_out.held_out_queries(r, HUGE), "count"),
  "held_out_requests": (lambda r, t: held_out.held_out_requests(r, "a0.0", "=", HUGE), "count"),
  "base_rates": (lambda r, t: held_out.base_rates(r, [], inputs=HUGE), "inputs"),
  "information.measure": (lambda r, t: information.measure(r, [], inputs=HUGE), "inputs"),
  "information.measure draws": (lambda r, t: information.measure(r, [], draws=HUGE), "draws"),
  "completeness": (lambda r, t: coverage.completeness(r, [], draws=HUGE), "noise_draws"),
  "compare_with_exact": (lambda r, t: coverage.compare_with_exact(r, [], members=HUGE), "members"),
  "compare_methods": (lambda r, t: methods.compare_methods(r, [], particles=HUGE), "particles"),
  "iv.verify": (lambda r, t: iv.verify(t, "a0.0", "=", "F1", pairs=HUGE), "pairs"),
  "iv.verify batch": (lambda r, t: iv.verify(t, "a0.0", "=", "F1", batch_size=HUGE), "batch_size"),
  "iv.patch": (lambda r, t: iv.patch(t, [TEXT], ["100+200=300"], "a0.0", 8, batch_size=HUGE), "batch_size"),
  "iv.ablate": (lambda r, t: iv.ablate(t, [TEXT], "a0.0", 8, batch_size=HUGE), "batch_size"),
  "head_shares": (lambda r, t: head_importance.head_shares(t, [TEXT], batch_size=HUGE), "batch_size"),
  "collect_pairs": (lambda r, t: experiments.collect_pairs(r.task, r.task.contrast, HUGE), "pairs"),
  "Endpoint": (lambda r, t: language_model.Endpoint("m", retries=HUGE), "retries"),
  "Endpoint timeout": (lambda r, t: language_model.Endpoint("m", timeout=float("nan")), "timeout"),
  "ask": (lambda r, t: language_model.ask({}, "/nosuch/place", language_model.Endpoint("m"), at_once=HUGE), "at_once"),
}  # fmt: skip


@pytest.mark.parametrize("call, named", CALLS.values(), ids=CALLS)
def test_a_count_out_of_its_range_is_refused_by_name(reader, small_target, call, named):
  tracemalloc.start()
  with pytest.raises(InversionViewError, match=f"^{named}.* must be ") as refused:
    call(reader, small_target)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert len(str(refused.value)) < 200 and peak < 20_000_000


def test_scalars_of_array_libraries_are_counts_and_truth_values_are_not():
  import jax.numpy as jnp

  assert bounds.whole("particles", np.int64(8)) == bounds.whole("particles", jnp.asarray(8)) == 8
  for wrong in (True, 8.0, "8", None, np.float32(8), float("nan")):
    with pytest.raises(InversionViewError, match="particles"):
      bounds.whole("particles", wrong)


def test_more_texts_than_memory_holds_are_refused_before_they_run(small_target, monkeypatch):
  tokens = np.tile(small_target.encode(TEXT), (1000, 1))
  monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": 1_000_000}[name])
  with pytest.raises(InversionViewError, match="1,000 texts of 13 tokens .* run fewer texts at a time"):
    small_target.run(tokens)
  with pytest.raises(InversionViewError, match="attribute fewer texts at a time"):
    iv.attribute(small_target, np.tile(tokens, (20, 1)))


def test_flags_have_the_ranges_of_the_table_or_narrower_ones():
  for name, flag in flags.FLAGS.items():
    table = bounds.COUNTS if isinstance(flag.type, flags.Whole) else bounds.NUMBERS
    if isinstance(flag.type, flags.Whole | flags.Number) and (key := name.replace("-", "_")) in table:
      assert table[key][0] <= flag.type.low and flag.type.high <= table[key][1]
