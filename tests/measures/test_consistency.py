"""What an activation encodes, from its candidates: rates beside base rates, intervals, bits, diversity."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from inversionview_jax import Preimage, Query, Sample, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import consistency
from inversionview_jax.measures.consistency import Members
from inversionview_jax.measures.properties import Background
from inversionview_jax.measures.rates import Rate

TASK = tasks.get("addition")
T = TASK.tokenizer


def query_of(text="615+861=1476", position=8, label="=", site="a0.0"):
  ids = T.encode_batch([text], eos=True)[0].tolist()
  return Query(text, ids, T.strings(ids), position, label, site, "blocks.0.attn.hook_result.0", (0.0, 1.0))


def preimage_of(texts, distances, positions=None, query=None, match="anywhere", task="addition"):
  positions = [8] * len(texts) if positions is None else positions
  samples = []
  for text, far, at in zip(texts, distances, positions, strict=True):
    ids = T.encode(text)
    samples.append(Sample(ids, T.strings(ids), text, far, at))
  return Preimage(query or query_of(), samples, 0.1, "euclidean", match, 0, "made up", task, "centered", "0")


@pytest.fixture(scope="module")
def inputs():
  """900 random inputs with F1 = 6, as a preimage that encodes F1 and nothing else, and 300 others outside."""
  rng = np.random.default_rng(0)
  first, second = rng.integers(600, 700, 900), rng.integers(100, 1000, 900)
  other = TASK.tokens(rng.integers(TASK.num_inputs, size=300))
  texts = [T.text(row) for row in np.concatenate([TASK.tokens_of(first, second), other])]
  return preimage_of(texts, [0.05] * 900 + [0.5] * 300)


def rows_of(reading):
  return {row.feature: row for row in reading.rows}


def test_what_all_members_share_is_encoded_and_nothing_else(inputs):
  reading = consistency.activation_reading(inputs, TASK)
  rows = rows_of(reading)
  assert [row.feature for row in reading.encoded] == ["F1"]
  assert reading.rows[0].feature == "F1"  # the most certain comes first
  assert rows["F1"].value == "6" and rows["F1"].rate.value == 1.0 and rows["F1"].rate.low > 0.99
  assert rows["F1"].certainty == 1.0
  assert {rows[name].verdict for name in ("F2", "F3", "S1", "S2", "S3", "A2", "A3", "C2", "C3")} == {"-"}


def test_base_rates_are_those_of_the_tasks_inputs(inputs):
  rows = rows_of(consistency.activation_reading(inputs, TASK))
  every = TASK.features(TASK.tokens(np.arange(TASK.num_inputs)))
  own = TASK.features(np.array([inputs.query.tokens]))
  for name, row in rows.items():
    if name in own:
      assert row.base == pytest.approx(np.mean(every[name] == own[name][0]), abs=0.015), name


def test_bits_of_a_property_are_the_surprise_of_its_value(inputs):
  rows = rows_of(consistency.activation_reading(inputs, TASK))
  assert rows["F1"].bits == pytest.approx(math.log2(9), abs=0.1)  # one of nine
  assert all(rows[name].bits < 0.03 for name in ("F2", "F3", "S1", "S2", "S3"))


def test_candidates_outside_do_not_count_until_epsilon_is_larger(inputs):
  assert consistency.activation_reading(inputs, TASK).diversity.drawn == 900
  broad = consistency.activation_reading(inputs.at(0.6), TASK)
  assert broad.diversity.drawn == 1200
  share = np.mean([sample.text[0] == "6" for sample in inputs.samples])
  assert rows_of(broad)["F1"].rate.value == pytest.approx(share)
  steps = consistency.activation_reading(inputs.at(0.3), TASK).stability
  assert set(steps) == {0.075, 0.15, 0.3, 0.45, 0.6}
  assert (steps[0.3]["F1"], steps[0.6]["F1"]) == (1.0, pytest.approx(share))


def test_members_count_by_their_weight(inputs):
  every = Members.of(inputs, TASK)
  light = TASK.features(every.tokens)["F2"] != 1
  weighted = Members(every.tokens, every.distance, every.position, np.where(light, 0.001, 1.0))
  reading = rows_of(consistency.activation_reading(inputs, TASK, weighted))
  assert reading["F2"].rate.value > 0.95 and reading["F1"].rate.value == pytest.approx(1.0)
  # as many as weigh something, not as many as there are
  assert reading["F2"].rate.count == pytest.approx((~light[:900]).sum(), rel=0.1)


def test_a_candidate_drawn_several_times_counts_as_often():
  texts = ["615+861=1476", "615+861=1476", "615+861=1476", "722+111=833"]
  drawn = preimage_of(texts, [0.0, 0.0, 0.0, 0.01])
  for one in (drawn, drawn.merged()):
    reading = consistency.activation_reading(one, TASK)
    assert rows_of(reading)["F1"].rate.to_dict() == Rate(3, 4).to_dict()
    assert (reading.diversity.drawn, reading.diversity.distinct) == (4, 2)
    assert reading.diversity.effective == pytest.approx(4 * 3 / (3 * 2))


def test_diversity_counts_of_how_many_texts_draws_would_repeat_as_often():
  rng = np.random.default_rng(1)
  pool = [T.text(row) for row in TASK.tokens(rng.integers(TASK.num_inputs, size=50))]
  drawn = [pool[i] for i in rng.integers(50, size=2000)]
  reading = consistency.activation_reading(preimage_of(drawn, [0.0] * 2000), TASK).diversity
  assert reading.distinct == 50 and reading.effective == pytest.approx(50, rel=0.05)
  assert reading.differ == pytest.approx(reading.base, abs=0.05)
  same = consistency.activation_reading(preimage_of(["615+861=1476"] * 5, [0.0] * 5), TASK).diversity
  assert (same.distinct, same.effective, same.differ) == (1, pytest.approx(1.0), 0.0)


def test_tokens_around_the_match_are_included_and_those_that_the_position_decides_are_not():
  rng = np.random.default_rng(2)
  rows = TASK.tokens_of(rng.integers(600, 700, 300), rng.integers(100, 200, 300))  # A1 is 7 or 8: 615+101 ...
  pre = preimage_of([T.text(row) for row in rows], [0.0] * 300, query=query_of("615+161=776"))
  reading = rows_of(consistency.activation_reading(pre, TASK))
  assert "matched token" not in reading  # at "=" it is "=" whatever the input
  behind = [T.text(row)[8] == "7" for row in rows]
  assert reading["1 behind it"].rate.value == pytest.approx(np.mean(behind))
  assert reading["1 behind it"].value == "7"
  only = consistency.activation_reading(pre, TASK, tokens=False)
  assert set(rows_of(only)) == set(reading) - {"1 behind it", "1 before it", "2 before it"}
  at_position = consistency.activation_reading(preimage_of(["615+861=1476"], [0.0], match="position"), TASK)
  assert "1 behind it" not in rows_of(at_position)


def test_plain_tokens_of_a_task_are_named_by_their_position():
  task = tasks.get("counting")
  t = task.tokenizer
  ids = t.encode_batch(["aabbbc|a:2"], eos=True)[0].tolist()
  query = Query("aabbbc|a:2", ids, t.strings(ids), 8, "query", "x0.pre", "blocks.0.hook_resid_pre", (1.0,))
  texts = ["aabbbc|a:2", "aabbdd|a:2", "abbaac|a:3"]
  samples = [Sample(t.encode(text), t.strings(t.encode(text)), text, 0.0, 8) for text in texts]
  pre = Preimage(query, samples, 0.1, "euclidean", "anywhere", 0, "r", "counting", "centered", "0")
  rows = rows_of(consistency.activation_reading(pre, task))
  assert rows["matched token"].value == "a" and rows["matched token"].rate.value == 1.0
  assert rows["token 1"].rate.value == 1.0 and rows["token 2"].rate.value == pytest.approx(2 / 3)
  assert rows["count"].rate.value == pytest.approx(2 / 3)
  assert rows["query"].base == pytest.approx(1 / 26, abs=0.01)


def test_the_beginning_of_an_input_has_the_properties_it_reaches():
  ids = T.encode_batch(["615+861="], eos=False)[0].tolist()
  query = Query("615+861=", ids, T.strings(ids), 8, "=", "a0.0", "blocks.0.attn.hook_result.0", (1.0,))
  rows = rows_of(consistency.activation_reading(preimage_of(["615+861=1476"], [0.0], query=query), TASK))
  assert {"F1", "C2"} <= set(rows) and not {"A1", "length", "1 behind it"} & set(rows)


def test_expressions_are_properties_too(inputs):
  rows = rows_of(
    consistency.activation_reading(inputs, TASK, tokens=False, expressions=["F1 >= 5", "F1 - S1", "A1 + A4"])
  )
  assert {"F1 + S1", "F2 + S2", "F3 + S3"} < set(rows)  # the task's own
  assert rows["F1 >= 5"].rate.value == 1.0 and rows["F1 >= 5"].base == pytest.approx(5 / 9, abs=0.01)
  minus = TASK.features(Members.of(inputs, TASK).within(0.1).tokens)
  assert rows["F1 - S1"].value == "-2"
  assert rows["F1 - S1"].rate.value == pytest.approx(np.mean(minus["F1"] - minus["S1"] == -2))
  short = minus["A4"] < 0  # an answer of three digits has no such sum
  assert rows["A1 + A4"].rate.value <= 1 - short.mean()
  with pytest.raises(InversionViewError, match="not understood"):
    consistency.activation_reading(inputs, TASK, expressions=["F1 ** 2"])


def test_nothing_inside_encodes_nothing():
  reading = consistency.activation_reading(preimage_of(["722+111=833"], [0.5]), TASK)
  assert reading.encoded == [] and reading.diversity.drawn == 0
  assert all(row.rate.count == 0 and row.verdict == "-" for row in reading.rows)


def test_a_preimage_of_another_task_is_refused():
  with pytest.raises(InversionViewError, match="'counting', not of 'addition'"):
    consistency.activation_reading(preimage_of(["722+111=833"], [0.0], task="counting"), TASK)


def test_every_base_rate_is_measured_once():
  assert Background.of(TASK) is Background.of(TASK)


def test_a_reading_shows_itself(inputs):
  reading = consistency.activation_reading(inputs, TASK)
  text, html = repr(reading), reading._repr_html_()
  assert (
    "F1 = 6" in text
    and "shared" in text
    and "encodes" not in text
    and "900 inside epsilon = 0.1" in text
    and "\nF2" not in text
  )
  assert '<td style="text-align:left">F1 = 6</td>' in html
  particles = consistency.activation_reading(dataclasses.replace(inputs, method="exact"), TASK)
  assert "encodes" in repr(particles) and particles.rows == reading.rows and max(particles.stability) == 0.1
  nothing = consistency.activation_reading(preimage_of(["722+111=833"], [0.5]), TASK)
  assert "no candidate lies inside epsilon" in repr(nothing)
  assert consistency.activation_reading(inputs) == reading  # the task is found by its name


def test_needs_no_jax():
  code = "import sys; from inversionview_jax.measures import consistency; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
