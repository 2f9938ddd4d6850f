"""Patching and ablation: against runs by hand, on models whose wiring is known, on any number of devices; what is refused."""

import doctest

import jax
import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.causal import interventions, patching
from inversionview_jax.causal.interventions import ordered
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
SETTINGS = {"read_position": "=", "answers": ("3", "7"), "mesh": ONE}


# Patches against runs by hand.


def test_a_patch_is_the_edit_of_that_site_with_the_other_inputs_activation(small_target):
  # The last token is "=" in the clean inputs, and S1 in what is left of the corrupted ones.
  clean, corrupted = encoded(CLEAN)[:, : EQUALS + 1], encoded(CORRUPTED)[:, :6]
  names = ["embed", "x0.mid", "m0", "a0.1", "a1.0"]
  captured, base = small_target.run(corrupted, capture=names), small_target.run(clean)
  for metric in METRICS:
    effects = iv.patch(small_target, clean, corrupted, names, -1, metric, order="each", answers=("3", "7"), mesh=ONE)
    assert effects.values.shape == (5, N) and effects.steps == tuple(f"{name}@-1" for name in names)
    for name, value in zip(names, effects.values, strict=True):
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
  effects = iv.patch(small_target, clean, corrupted, THREE, -1, order="each", answers=("3", "7"), mesh=ONE)
  assert_close(effects.values[1], expected)
  effects = iv.patch(small_target, clean, corrupted, THREE, np.full(N, EQUALS), order="each", **SETTINGS)
  named = iv.patch(small_target, clean, corrupted, THREE, "=", order="each", **SETTINGS)
  assert effects.steps[0] == "a0.0@..." and (effects.values == named.values).all()


def test_sites_are_patched_in_the_given_order(small_target):
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
    assert_close(iv.patch(small_target, clean, corrupted, THREE, "=", order=order, **SETTINGS).values, expected)


def test_the_names_of_steps_name_what_was_patched():
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
  [(["x0.pre", "x1.mid", "x1.post"], "each"), (["embed", "pos_embed", *HEADS, "m0", "m1"], "together")],
  ids=["streams", "writes"],
)
def test_patching_everything_does_what_the_corrupted_input_does(small_target, everything, order):
  same_length = [0, 1, 3]
  clean, corrupted = ([texts[i] for i in same_length] for texts in (CLEAN, CORRUPTED))
  for metric in METRICS:
    effects = iv.patch(small_target, clean, corrupted, everything, None, metric, order=order, **SETTINGS)
    assert_close(effects.values, np.broadcast_to(effects.total, effects.values.shape))
    assert metric in ("top_changed",) or np.abs(effects.total).max() > 0.01


def test_patching_an_input_into_itself_does_nothing(small_target):
  names = ["embed", "x0.pre", "m0", "a0.1", "x1.post"]
  for metric in ("kl", "top_logit", "top_changed"):
    effects = iv.patch(small_target, CLEAN, CLEAN, names, "=", metric, order="each", read_position="=", mesh=ONE)
    assert_close(effects.values, 0, atol=1e-5)
    assert_close(effects.total, 0, atol=1e-5)


def test_patches_of_one_row_do_not_touch_another(small_target):
  mixed = [CORRUPTED[0], *CLEAN[1:]]
  effects = iv.patch(small_target, CLEAN, mixed, THREE, "=", "kl", order="each", **SETTINGS).values
  assert effects[:, 0].min() > 1e-5
  assert_close(effects[:, 1:], 0, atol=1e-8)


def test_by_default_the_answers_are_the_targets_own_top_tokens(small_target):
  tokens = [encoded(texts) for texts in (CLEAN, CORRUPTED)]
  answer, foil = (np.asarray(small_target.run(t).logits)[:, EQUALS].argmax(axis=1) for t in tokens)
  strings = tuple(TASK.tokenizer.strings(ids) for ids in (answer, foil))
  assert (answer != foil).any()
  how = {"order": "each", "read_position": "=", "mesh": ONE}
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
      effects = iv.ablate(small_target, CLEAN, names, "+", to, metric, order="each", **SETTINGS)
      assert_close(effects.values, [one[metric] for one in by_site])
      assert effects.total is None and effects.shares == (None, None)


def test_zero_ablation_of_all_positions(small_target):
  clean = encoded(CLEAN)
  runs = small_target.run(clean), small_target.run(clean, edits=[Edit("m0", None, np.zeros(16, np.float32))])
  effects = iv.ablate(small_target, clean, "m0", None, "zero", read_position="=", mesh=ONE)
  assert_close(effects.values[0], by_hand(small_target, runs, EQUALS, 3, 7)["kl"])


# One program; any number of devices; any size of batch.


def test_a_sweep_over_heads_positions_and_orders_compiles_once(small_target):
  iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", "kl", order="each", read_position="=", mesh=ONE)
  program = patching._program(small_target.module, ONE, (("head", False),) * 3, True)
  compiled, programs = program._cache_size(), patching._program.cache_info().currsize
  results = set()
  for names, position in (
    (THREE, 8),
    (["a1.0", "a0.1", "a1.1"], 8),
    (["a0.1", "a1.0", "a0.0"], "="),
    (HEADS[:3], "A1"),
  ):
    for order in ("forward", "backward", "each"):
      effects = iv.patch(
        small_target, CLEAN, CORRUPTED, names, position, "kl", order=order, read_position=position, mesh=ONE
      )
      results.add(tuple(effects.values.ravel()))
  assert len(results) == 12
  assert (program._cache_size(), patching._program.cache_info().currsize) == (compiled, programs)


def test_results_depend_neither_on_devices_nor_on_batches(small_target):
  texts = CLEAN * 4, CORRUPTED[1:] * 5

  def run(mesh, batch_size):
    how = SETTINGS | {"mesh": mesh, "batch_size": batch_size}
    return iv.patch(small_target, *texts, THREE, "=", order="each", **how)

  one, eight = run(ONE, 5), run(parallel.make_mesh(), 10)
  assert np.abs(one.values).max() > 0.1 and one.values.shape == (3, 20)
  assert_close(one.values, eight.values, atol=2e-6)
  assert_close(one.total, eight.total, atol=2e-6)


def test_shares_are_of_the_effect_of_the_corrupted_input(small_target):
  effects = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", order="each", **SETTINGS)
  for row, one in zip(effects.values, effects.shares, strict=True):
    assert one.mean == pytest.approx(row.mean() / effects.total.mean())
  assert "everything" in str(effects) and "n = 5" in str(effects)


# What is refused.


@pytest.mark.parametrize(
  "wrong, message",
  [
    ({"sites": "a0.2"}, "no site 'a0.2'.*closest: a0.1, a0.0"),
    ({"sites": "a0"}, "no site 'a0'"),
    ({"sites": []}, "no site to patch"),
    ({"sites": ["a0.0", "a0.0"]}, "two patches of the same activation, a0.0@=: "),
    ({"sites": ["x0.post", "x1.pre"]}, "two patches of the same activation, x0.post@= and x1.pre@="),
    ({"position": "A5"}, "unknown position 'A5'"),
    ({"position": 30}, "position 30 is out of range"),
    ({"position": 12}, "position 12 is out of range: input 0 has the positions 0 to 11"),  # padding
    ({"position": ["=", "+"]}, "3 sites and 2 positions"),
    ({"position": 1.5}, "neither an index"),
    ({"position": np.zeros(2, int)}, r"one per input \(5\)"),
    ({"position": None}, "pairs of the same length; pair 2 has 13 and 12 tokens"),
    ({"position": "A1"}, "a0.0@A1 cannot reach the prediction that is read, at position 8: it comes later"),
    ({"sites": "a1.0", "position": "+"}, "no attention follows it"),
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
  call = {"clean": CLEAN, "corrupted": CORRUPTED, "sites": THREE, "position": "=", "order": "each"} | SETTINGS
  with pytest.raises(InversionViewError, match=message) as caught:
    iv.patch(small_target, **(call | wrong))
  assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_ablation_of_all_positions_by_means_and_by_other_inputs(small_target):
  texts = [CLEAN[0], CLEAN[1], CLEAN[4]]  # of one length
  clean = small_target.encode(texts)
  for to in ("mean", "resample"):
    for site in ("m0", "z0.1"):
      edited = small_target.run(clean, edits=[Edit(site, None, mode=to)])
      expected = by_hand(small_target, (small_target.run(clean), edited), np.full(3, EQUALS), 3, 7)["kl"]
      effects = iv.ablate(small_target, texts, site, None, to, read_position="=", mesh=ONE)
      assert_close(effects.values[0], expected)
      assert np.abs(expected).max() > 1e-5 and effects.total is None


def test_ablate_refuses_a_difference_without_answers(small_target):
  for wrong, message in (
    ({"position": "+", "to": "zero", "data": CLEAN}, "takes no data"),
    ({"position": "+", "to": "median"}, "unknown ablation 'median'"),
    ({"position": "+", "metric": "logit_difference"}, "needs answers"),
    ({"position": "A2"}, "cannot reach the prediction"),
  ):
    with pytest.raises(InversionViewError, match=message):
      iv.ablate(small_target, CLEAN, "m0", read_position="=", **wrong)


def test_a_target_without_task_or_tokenizer_takes_indices_and_ids(small_target):
  bare = Target.from_raw(small_target.params, small_target.config, None, "raw")
  tokens = [encoded(texts) for texts in (CLEAN, CORRUPTED)]
  effects = iv.patch(bare, *tokens, THREE, EQUALS, order="each", read_position=EQUALS, answers=(3, 7), mesh=ONE)
  named = iv.patch(small_target, *tokens, THREE, "=", order="each", **SETTINGS)
  np.testing.assert_array_equal(effects.values, named.values)
  for wrong, message in (({"position": "="}, "belongs to no task"), ({"answers": ("3", "7")}, "without a tokenizer")):
    with pytest.raises(InversionViewError, match=message):
      iv.patch(bare, *tokens, **({"sites": "a0.0", "position": EQUALS, "read_position": EQUALS} | wrong))
  with pytest.raises(InversionViewError, match="without a tokenizer"):
    iv.patch(bare, CLEAN, CORRUPTED, "a0.0", EQUALS)


def test_the_example_in_the_docstring_runs():
  effects = doctest.testmod(interventions)
  assert effects.failed == 0 and effects.attempted >= 5


# What effects show.


def test_effects_show_a_row_for_each_step_with_its_error(small_target):
  effects = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", order="each", **SETTINGS)
  lines = repr(effects).splitlines()
  assert lines[0] == "Effects (n = 5)" and "loss of logit difference" in lines[1] and "share of everything" in lines[1]
  for line, step, one in zip(lines[2:], effects.steps, effects.estimates, strict=False):
    assert line.split()[0] == step and f"{one.mean:.3f} ± {one.se:.3f}" in line
  assert lines[5].split()[0] == "everything"
  page = effects._repr_html_()
  assert page.count("<tr>") == 5 and "src=" not in page and "href=" not in page
  ablated = iv.ablate(small_target, CLEAN, "m0", "+", **SETTINGS)
  assert "everything" not in repr(ablated) and "KL" in repr(ablated)


def test_names_of_steps_are_escaped_in_html():
  effects = interventions.Effects(("<b>a0.0@=</b>",), "kl", np.ones((1, 3)), np.zeros(3), None)
  assert "<b>" not in effects._repr_html_() and "&lt;b&gt;a0.0@=&lt;/b&gt;" in effects._repr_html_()


# Inputs.


def test_texts_and_their_token_ids_are_the_same_inputs(small_target):
  """EOS and padding behind a text change nothing: the last token of the text is read."""
  by_texts = iv.patch(small_target, CLEAN, CORRUPTED, THREE, "=", order="each", **SETTINGS)
  by_ids = iv.patch(small_target, encoded(CLEAN), encoded(CORRUPTED), THREE, "=", order="each", **SETTINGS)
  assert_close(by_texts.values, by_ids.values)
