"""Patching and ablation: against runs by hand, on models whose wiring is known, on any number of devices; attribution; what is refused."""

import doctest

import jax
import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.causal import attribution, interventions, patching, verification
from inversionview_jax.causal.interventions import estimate, ordered, share
from inversionview_jax.causal.patching import METRICS
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Edit, Target

TASK = tasks.get("addition")
CLEAN = ["615+261=876", "302+140=442", "999+123=1122", "100+100=200", "577+422=999"]
CORRUPTED = ["635+291=926", "372+149=521", "111+123=234", "109+101=210", "577+423=1000"]
N = len(CLEAN)
EQUALS = 8
HEADS = ["a0.0", "a0.1", "a1.0", "a1.1"]

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def encoded(texts):
  return TASK.tokenizer.encode_batch(texts, TASK.length, eos=True)


def log_softmax(x):
  return np.asarray(jax.nn.log_softmax(np.asarray(x, np.float64)), np.float64)


def by_hand(target, pairs, read, answer, foil):
  """The metrics of one patched run from clean and patched logits at a position, computed another way; float[N] each."""
  base, patched = (np.asarray(run.logits)[np.arange(len(run.logits)), read].astype(np.float64) for run in pairs)
  rows, top = np.arange(len(base)), base.argmax(axis=1)
  p, q = log_softmax(base), log_softmax(patched)
  fall = base[rows, top] - patched[rows, top]
  return {
    "logit_difference": (base[rows, answer] - base[rows, foil]) - (patched[rows, answer] - patched[rows, foil]),
    "kl": (np.exp(p) * (p - q)).sum(axis=1),
    "top_logit": fall,
    "top_logit_share": fall / base[rows, top],
    "top_changed": (patched.argmax(axis=1) != top).astype(float),
  }


def assert_close(one, another, **tolerance):
  np.testing.assert_allclose(one, another, rtol=0, **({"atol": 2e-5} | tolerance))


ONE = parallel.make_mesh(devices=jax.devices()[:1])
THREE = ["a0.0", "a0.1", "a1.1"]  # most tests patch these, so that they share a program
ASKED = {"at": "=", "answers": ("3", "7"), "mesh": ONE}


# Patches against runs by hand.


def test_a_patch_is_the_edit_of_that_site_with_the_other_inputs_activation(small_target):
  # The last token is "=" in the clean inputs, and S1 in what is left of the corrupted ones.
  clean, corrupted = encoded(CLEAN)[:, : EQUALS + 1], encoded(CORRUPTED)[:, :6]
  names = ["embed", "x0.mid", "m0", "a0.1", "a1.0"]
  captured, base = small_target.run(corrupted, capture=names), small_target.run(clean)
  for metric in METRICS:
    found = iv.patch(small_target, clean, corrupted, names, -1, metric, order="each", answers=("3", "7"), mesh=ONE)
    assert found.values.shape == (5, N) and found.steps == tuple(f"{name}@-1" for name in names)
    for name, value in zip(names, found.values, strict=True):
      edited = small_target.run(clean, edits=[Edit(name, EQUALS, np.asarray(captured[name])[:, -1])])
      expected = by_hand(small_target, (base, edited), np.full(N, EQUALS), 3, 7)
      assert np.abs(expected["logit_difference"]).max() > 1e-3
      assert_close(value, expected[metric])


def test_positions_are_looked_up_in_both_inputs(small_target):
  clean, corrupted = encoded(CLEAN), encoded(CORRUPTED)
  lasts = [np.array([len(text) for text in texts]) for texts in (CLEAN, CORRUPTED)]
  assert (lasts[0] != lasts[1]).any()
  value = np.asarray(small_target.run(corrupted, capture=THREE)["a0.1"])[np.arange(N), lasts[1]]
  edited = small_target.run(clean, edits=[Edit("a0.1", lasts[0], value)])
  expected = by_hand(small_target, (small_target.run(clean), edited), lasts[0], 3, 7)["logit_difference"]
  found = iv.patch(small_target, clean, corrupted, THREE, -1, order="each", answers=("3", "7"), mesh=ONE)
  assert_close(found.values[1], expected)
  found = iv.patch(small_target, clean, corrupted, THREE, np.full(N, EQUALS), order="each", **ASKED)
  named = iv.patch(small_target, clean, corrupted, THREE, "=", order="each", **ASKED)
  assert found.steps[0] == "a0.0@..." and (found.values == named.values).all()


def test_sites_are_patched_in_the_order_that_was_asked_for(small_target):
  clean, corrupted = encoded(CLEAN), encoded(CORRUPTED)
  run, base = small_target.run(corrupted, capture=THREE), small_target.run(clean)
  edits = [Edit(name, EQUALS, np.asarray(run[name])[:, EQUALS]) for name in THREE]

  def lost(*which):
    runs = base, small_target.run(clean, edits=[edits[i] for i in which])
    return by_hand(small_target, runs, EQUALS, 3, 7)["logit_difference"]

  steps = {
    "each": [lost(0), lost(1), lost(2)],
    "forward": [lost(0), lost(0, 1), lost(0, 1, 2)],
    "backward": [lost(2), lost(1, 2), lost(0, 1, 2)],
  }
  for order, expected in steps.items():
    assert_close(iv.patch(small_target, clean, corrupted, THREE, "=", order=order, **ASKED).values, expected)


def test_the_names_of_steps_say_what_was_patched():
  groups = [["a@1", "b@1"], ["c@2"]]
  assert ordered(groups, "forward")[0] == ["a@1 b@1", "+ c@2"] and ordered(groups, "backward")[0] == [
    "c@2",
    "+ a@1 b@1",
  ]
  assert ordered(groups, "backward")[1].tolist() == [[False, False, True], [True, True, True]]
  assert ordered(groups, "each")[0] == ["a@1 b@1", "c@2"] and ordered(groups, "together")[0] == ["a@1 b@1 c@2"]


# Identities.


@pytest.mark.parametrize(
  "everything, order",
  [(["x0.pre", "x1.mid", "x1.post"], "backward"), (["embed", "pos_embed", *HEADS, "m0", "m1"], "together")],
  ids=["streams", "writes"],
)
def test_patching_everything_does_what_the_corrupted_input_does(small_target, everything, order):
  same_length = [0, 1, 3]
  clean, corrupted = ([texts[i] for i in same_length] for texts in (CLEAN, CORRUPTED))
  for metric in METRICS:
    found = iv.patch(small_target, clean, corrupted, everything, None, metric, order=order, **ASKED)
    assert_close(found.values, np.broadcast_to(found.total, found.values.shape))
    assert metric in ("top_changed",) or np.abs(found.total).max() > 0.01


def test_patching_an_input_into_itself_does_nothing(small_target):
  names = ["embed", "x0.pre", "m0", "a0.1", "x1.post"]
  for metric in ("kl", "top_logit", "top_changed"):
    found = iv.patch(small_target, CLEAN, CLEAN, names, "=", metric, order="each", at="=", mesh=ONE)
    assert_close(found.values, 0, atol=1e-5)
    assert_close(found.total, 0, atol=1e-5)


def test_the_places_of_one_row_do_not_touch_another(small_target):
  mixed = [CORRUPTED[0], *CLEAN[1:]]
  found = iv.patch(small_target, CLEAN, mixed, THREE, "=", "kl", order="each", **ASKED).values
  assert found[:, 0].min() > 1e-5
  assert_close(found[:, 1:], 0, atol=1e-8)


def test_by_default_the_answers_are_what_the_target_says_itself(small_target):
  tokens = [encoded(texts) for texts in (CLEAN, CORRUPTED)]
  answer, foil = (np.asarray(small_target.run(t).logits)[:, EQUALS].argmax(axis=1) for t in tokens)
  strings = tuple(TASK.tokenizer.strings(ids) for ids in (answer, foil))
  assert (answer != foil).any()
  how = {"order": "each", "at": "=", "mesh": ONE}
  given = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", answers=strings, **how)
  itself = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", **how)
  np.testing.assert_array_equal(given.values, itself.values)
  assert (itself.original[answer != foil] > 0).all()  # the answer is on top


# Ablation.


def test_ablation_puts_the_mean_or_zero_there(small_target):
  clean = encoded(CLEAN)
  names = ["x0.post", "a0.1"]
  run = small_target.run(clean, capture=names)
  for to in ("mean", "zero"):
    by_site = []
    for name in names:
      value = np.asarray(run[name])[:, 4].mean(axis=0) * (to == "mean")
      edited = small_target.run(clean, edits=[Edit(name, 4, np.broadcast_to(value, (N, 16)))])
      by_site.append(by_hand(small_target, (run, edited), EQUALS, 3, 7))
      assert by_site[-1]["kl"].max() > 1e-6
    for metric in METRICS:
      found = iv.ablate(small_target, CLEAN, names, "+", to, metric, order="each", **ASKED)
      assert_close(found.values, [one[metric] for one in by_site])
      assert found.total is None and found.shares == (None, None)


def test_zero_ablation_of_all_positions(small_target):
  clean = encoded(CLEAN)
  runs = small_target.run(clean), small_target.run(clean, edits=[Edit("m0", None, np.zeros(16, np.float32))])
  found = iv.ablate(small_target, clean, "m0", None, "zero", at="=", mesh=ONE)
  assert_close(found.values[0], by_hand(small_target, runs, EQUALS, 3, 7)["kl"])


# One program; any number of devices; any size of batch.


def test_a_sweep_over_heads_positions_and_orders_compiles_once(small_target):
  iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", "kl", order="each", at="=", mesh=ONE)
  program = patching._program(small_target.module, ONE, (("head", False),) * 3, True)
  compiled, programs = program._cache_size(), patching._program.cache_info().currsize
  found = set()
  for names, place in ((THREE, 8), (["a1.0", "a0.1", "a1.1"], 8), (["a0.1", "a1.0", "a0.0"], "="), (HEADS[:3], "A1")):
    for order in ("forward", "backward", "each"):
      effects = iv.patch(small_target, CLEAN, CORRUPTED, names, place, "kl", order=order, at=place, mesh=ONE)
      found.add(tuple(effects.values.ravel()))
  assert len(found) == 12
  assert (program._cache_size(), patching._program.cache_info().currsize) == (compiled, programs)


def test_results_depend_neither_on_devices_nor_on_batches(small_target):
  texts = CLEAN * 4, CORRUPTED[1:] * 5

  def run(mesh, batch_size):
    how = ASKED | {"mesh": mesh, "batch_size": batch_size}
    return iv.patch(small_target, *texts, THREE, "=", order="each", **how)

  one, eight = run(ONE, 5), run(parallel.make_mesh(), 10)
  assert np.abs(one.values).max() > 0.1 and one.values.shape == (3, 20)
  assert_close(one.values, eight.values, atol=2e-6)
  assert_close(one.total, eight.total, atol=2e-6)


# Statistics.


def test_estimates_are_means_with_standard_errors():
  values = np.array([1.0, 2.0, 4.0, 9.0])
  found = estimate(values)
  assert (found.mean, found.n) == (4.0, 4) and found.se == pytest.approx(np.sqrt(np.var(values, ddof=1) / 4))
  assert np.isnan(estimate(values[:1]).se)


def test_the_error_of_a_share_is_that_of_redrawing_the_pairs():
  rng = np.random.default_rng(0)
  whole = rng.normal(10, 3, 2000)
  part = 0.6 * whole + rng.normal(0, 1, 2000)
  found = share(part, whole)
  assert found.mean == part.sum() / whole.sum() and found.n == 2000
  redrawn = [rng.integers(0, 2000, 2000) for _ in range(1000)]
  assert found.se == pytest.approx(np.std([part[i].sum() / whole[i].sum() for i in redrawn]), rel=0.1)
  assert share(part, np.zeros(2000)) is None


def test_shares_are_of_what_the_corrupted_input_does(small_target):
  found = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", order="each", **ASKED)
  for row, one in zip(found.values, found.shares, strict=True):
    assert one.mean == pytest.approx(row.mean() / found.total.mean())
  assert "everything" in str(found) and "n = 5" in str(found)


# Attribution.


@pytest.mark.parametrize("convention", ["centered", "raw"])
def test_contributions_sum_to_the_logits(make_target, convention):
  target = make_target(3, convention)
  logits = np.asarray(target.run(encoded(CLEAN)).logits)
  for at, column in (("=", logits[:, 8]), (-1, logits[np.arange(N), [11, 11, 12, 11, 11]])):
    found = iv.attribute(target, CLEAN, at)
    assert_close(found.logits, column, atol=1e-4)
    assert_close(found.values.sum(axis=1), column, atol=1e-4)
  assert set(found.components) == {"embed", "pos_embed", *HEADS, "b_O.0", "b_O.1", "m0", "m1", "bias"}
  tokens = iv.attribute(target, CLEAN, "=", of=["0", "7"])
  assert_close(tokens.values, iv.attribute(target, CLEAN, "=").values[:, :, [0, 7]])


def test_a_contribution_is_the_write_seen_through_the_frozen_norm(small_target):
  """With the divisor frozen the logits are linear: leaving a write out takes exactly its contribution away."""
  tokens = encoded(CLEAN)
  run = small_target.run(tokens, capture=["a1.1", "x1.post"])
  final, write = (np.asarray(run[name])[:, EQUALS].astype(np.float64) for name in ("x1.post", "a1.1"))
  divisor = np.sqrt(final.var(axis=1, keepdims=True) + 1e-5)
  norm, kernel = small_target.params["ln_f"], np.asarray(small_target.params["unembed"]["kernel"])

  def logits(x):
    return ((x - x.mean(axis=1, keepdims=True)) / divisor * norm["scale"] + norm["bias"]) @ kernel

  expected = logits(final) - logits(final - write)
  assert_close(iv.attribute(small_target, CLEAN, "=", components=["a1.1"])["a1.1"], expected, atol=1e-4)
  assert np.abs(expected).max() > 0.1


def test_attribution_refuses_what_is_not_there(small_target):
  for wrong, message in (
    ({"components": ["a0.7"]}, "unknown component 'a0.7'"),
    ({"of": ["ten"]}, "'ten' is not one token"),
    ({"of": [99]}, "token id 99"),
    ({"at": 20}, "position 20 is out of range"),
  ):
    with pytest.raises(InversionViewError, match=message):
      attribution.attribute(small_target, CLEAN, **wrong)


# From a reading to a verdict, on the target that ships.


@pytest.fixture(scope="module")
def addition():
  return iv.load_target("addition")


def test_the_shipped_model_hears_of_the_carry_from_one_head_only(addition):
  found = verification.verify(addition, "a0.0", "=", "C2", pairs=64, mesh=ONE)
  assert found.predict == "A1" and found.only.share.mean > 0.98 and abs(found.rest.share.mean) < 0.05
  assert found.only.answer_differs.mean == 1 and found.only.effect.n == found.rest.effect.n == 64
  other = verification.verify(addition, "blocks.0.attn.hook_result.3", "=", "C2", pairs=64, mesh=ONE)
  assert abs(other.only.share.mean) < 0.02 and other.site == "a0.3"


def test_a_feature_that_leaves_the_answer_alone_has_no_share():
  target = iv.load_target("counting")
  found = iv.verify(target, "x1.mid", ":", "count", pairs=64, mesh=ONE)
  assert (
    found.only.share.mean == pytest.approx(1, abs=1e-4)
    and found.rest.share is None
    and found.rest.answer_differs.mean == 0
  )
  assert "nothing to share out" in str(found)
  assert found.to_data()["rest"]["share"] is None and found.to_data()["only"]["effect"]["n"] == 64


# What is refused.


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"sites": "a0.2"}, "no site 'a0.2'.*closest: a0.1, a0.0"),
    ({"sites": "a0"}, "no site 'a0'"),
    ({"sites": []}, "no site to patch"),
    ({"sites": ["a0.0", "a0.0"]}, "two patches of one place, a0.0@=: "),
    ({"sites": ["x0.post", "x1.pre"]}, "two patches of one place, x0.post@= and x1.pre@="),
    ({"positions": "A5"}, "unknown position 'A5'"),
    ({"positions": 30}, "position 30 is out of range"),
    ({"positions": 12}, "position 12 is out of range: input 0 has the positions 0 to 11"),  # padding
    ({"positions": ["=", "+"]}, "3 sites and 2 positions"),
    ({"positions": 1.5}, "neither an index"),
    ({"positions": np.zeros(2, int)}, r"one per input \(5\)"),
    ({"positions": None}, "pairs of the same length; pair 2 has 13 and 12 tokens"),
    ({"positions": "A1"}, "a0.0@A1 cannot reach the prediction that is read, at position 8: it comes later"),
    ({"sites": "a1.0", "positions": "+"}, "no attention follows it"),
    ({"metric": "loss"}, "unknown metric 'loss'"),
    ({"order": "sideways"}, "unknown order 'sideways'"),
    ({"batch_size": 0}, "batch_size = 0"),
    ({"answers": ("1",)}, "tuple"),
    ({"answers": ("1", "eleven")}, "'eleven' is not one token"),
    ({"answers": (["1", "2"], "3")}, "tokens for 2 inputs"),
    ({"answers": ("3", "3")}, "answer and foil are the same in every pair"),
    ({"clean": CLEAN[:2]}, "2 clean inputs and 5 corrupted"),
    ({"clean": "615+261=876"}, "write \\['615"),
    ({"clean": ["615*261"]}, r"'\*'"),
  ],
  ids=str,
)
def test_patch_refuses_what_would_do_nothing_or_cannot_be(small_target, wrong, message):
  call = {"clean": CLEAN, "corrupted": CORRUPTED, "sites": THREE, "positions": "=", "order": "each"} | ASKED
  with pytest.raises(InversionViewError, match=message) as caught:
    iv.patch(small_target, **(call | wrong))
  assert "\n" not in str(caught.value)


def test_ablate_refuses_a_mean_without_a_position_and_a_difference_without_answers(small_target):
  for wrong, message in (
    ({"positions": None}, "the mean of a site needs a position"),
    ({"positions": "+", "to": "median"}, "unknown ablation 'median'"),
    ({"positions": "+", "metric": "logit_difference"}, "needs answers"),
    ({"positions": "A2"}, "cannot reach the prediction"),
  ):
    with pytest.raises(InversionViewError, match=message):
      iv.ablate(small_target, CLEAN, "m0", at="=", **wrong)


def test_a_target_without_task_or_tokenizer_takes_indices_and_ids(small_target):
  bare = Target.from_raw(small_target.params, small_target.config, None, "raw")
  tokens = [encoded(texts) for texts in (CLEAN, CORRUPTED)]
  found = iv.patch(bare, *tokens, THREE, EQUALS, order="each", at=EQUALS, answers=(3, 7), mesh=ONE)
  named = iv.patch(small_target, *tokens, THREE, "=", order="each", **ASKED)
  np.testing.assert_array_equal(found.values, named.values)
  for wrong, message in (({"positions": "="}, "belongs to no task"), ({"answers": ("3", "7")}, "without a tokenizer")):
    with pytest.raises(InversionViewError, match=message):
      iv.patch(bare, *tokens, **({"sites": "a0.0", "positions": EQUALS, "at": EQUALS} | wrong))
  with pytest.raises(InversionViewError, match="without a tokenizer"):
    iv.patch(bare, CLEAN, CORRUPTED, "a0.0", EQUALS)


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"feature": "F4"}, "unknown feature of the task addition: 'F4': did you mean F3 or F2 or F1"),
    ({"site": "a7.0"}, "no site 'a7.0'"),
    ({"position": "A9"}, "unknown position 'A9'"),
    ({"predict": "A9"}, "unknown digit 'A9'"),
    ({"where": "F1 > 9"}, "no input of the split 'test' fulfils 'F1 > 9'"),
    ({"where": "F9 > 1"}, "unknown feature in the condition"),
    ({"pairs": 0}, "pairs = 0"),
    ({"split": "validation"}, "unknown split"),
    ({"position": "A2", "predict": "A1"}, "cannot reach the prediction"),
  ],
  ids=str,
)
def test_verify_refuses_what_it_does_not_know(addition, wrong, message):
  call = {"site": "a0.0", "position": "=", "feature": "C2", "pairs": 8}
  with pytest.raises(InversionViewError, match=message):
    iv.verify(addition, **(call | wrong))


def test_the_example_in_the_docstring_runs():
  found = doctest.testmod(interventions)
  assert found.failed == 0 and found.attempted >= 5
