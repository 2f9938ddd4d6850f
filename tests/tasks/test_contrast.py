"""Contrast pairs: they differ in what is chosen and nowhere else, whatever the batch; conditions on features."""

import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.causal import experiments
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import contrast, grammar, hashing

ADDITION, COUNTING = tasks.get("addition"), tasks.get("counting")
INDEX = np.random.default_rng(0).permutation(ADDITION.num_inputs)[:400]
STRINGS = np.random.default_rng(0).permutation(COUNTING.num_inputs)[:400]
COLUMNS = {"F1": 1, "F2": 2, "F3": 3, "S1": 5, "S2": 6, "S3": 7, "A1": 9, "A2": 10, "A3": 11, "A4": 12}


def numbers(tokens):
  """Operands and answer of each row, as Python reads them."""
  texts = [ADDITION.tokenizer.text(row).replace("=", "+").split("+") for row in tokens]
  return np.array([[int(part) for part in text] for text in texts])


def features(task, pairs):
  return task.features(pairs.clean), task.features(pairs.corrupted)


# Addition.


@pytest.mark.parametrize(
  "change, predict", [(("F1", "S1"), "A1"), (("F2", "S2"), "A2"), (("F3",), "A3"), (("F1", "S1"), "A4")]
)
def test_given_digits_change_and_the_predicted_one_with_them(change, predict):
  pairs = ADDITION.contrast(INDEX, 3, change=change, predict=predict)
  assert len(pairs) > 300
  np.testing.assert_array_equal(pairs.clean, ADDITION.tokens(pairs.index))
  first, second, answer = numbers(pairs.corrupted).T
  np.testing.assert_array_equal(first + second, answer)
  same = [column for name, column in COLUMNS.items() if name[0] in "FS" and name not in change]
  np.testing.assert_array_equal(pairs.clean[:, same], pairs.corrupted[:, same])
  assert (pairs.answer != pairs.foil).all() and set(pairs.clean_at) == {COLUMNS[predict] - 1}
  np.testing.assert_array_equal(pairs.answer, pairs.clean[:, COLUMNS[predict]])
  np.testing.assert_array_equal(pairs.foil, pairs.corrupted[:, COLUMNS[predict]])


def test_digits_are_redrawn_uniformly_with_leading_zeros():
  index = np.full(1, ADDITION.split("test")[0])
  clean = ADDITION.tokens(index)[0]
  drawn = np.concatenate([ADDITION.contrast(index, seed).corrupted for seed in range(2000)])
  sums = numbers(drawn)[:, 2]
  assert (drawn[:, 1] == 0).any() and (drawn[:, 5] == 0).any() and (sums < 1000).any()
  accepted = [
    (a, b) for a in range(10) for b in range(10) if _first_digit(clean, a, b) != clean[9]
  ]  # every pair of digits that makes another answer is as likely
  counts = np.array([((drawn[:, 1] == a) & (drawn[:, 5] == b)).sum() for a, b in accepted])
  assert counts.sum() == 2000
  expected = 2000 / len(accepted)
  assert ((counts - expected) ** 2 / expected).sum() < len(accepted) + 4 * (2 * len(accepted)) ** 0.5  # chi squared


def _first_digit(clean, first, second):
  total = 100 * (first + second) + int("".join(map(str, clean[2:4]))) + int("".join(map(str, clean[6:8])))
  return total // 1000 if total >= 1000 else total // 100


def test_pairs_are_those_that_fulfil_the_conditions():
  how = {
    "change": ("F3", "S3"),
    "predict": "A3",
    "where": "A1 == 1 and F2 + S2 != 9",
    "contrast_where": "A1 == 1 and C3 == 1",
  }
  pairs = ADDITION.contrast(INDEX, **how)
  clean, corrupted = features(ADDITION, pairs)
  assert 30 < len(pairs) < 250
  assert (clean["A1"] == 1).all() and (clean["F2"] + clean["S2"] != 9).all()
  assert (corrupted["A1"] == 1).all() and (corrupted["C3"] == 1).all()
  kept = ADDITION.features(ADDITION.tokens(INDEX))
  # A carry can be made from ones that have none; an input that has one already keeps its tens with it.
  expected = INDEX[(kept["A1"] == 1) & (kept["F2"] + kept["S2"] != 9) & (kept["C3"] == 0)]
  assert set(expected) <= set(pairs.index.tolist())


@pytest.mark.parametrize("task, index", [(ADDITION, INDEX), (COUNTING, STRINGS)], ids=["addition", "counting"])
def test_a_pair_is_a_function_of_index_and_seed(task, index):
  whole = task.contrast(index, 5)
  parts = contrast.joined([task.contrast(index[i : i + 37], 5) for i in range(0, len(index), 37)])
  np.testing.assert_array_equal(whole.corrupted, parts.corrupted)
  backwards = task.contrast(index[::-1], 5)
  np.testing.assert_array_equal(whole.corrupted, backwards.corrupted[::-1])
  assert (task.contrast(index, 6).corrupted != whole.corrupted).any(axis=1).mean() > 0.5


@pytest.mark.parametrize("feature", ["F1", "F3", "S2", "C1", "C2", "C3", "length", "A2", "A3"])
def test_only_the_feature_differs(feature):
  predict = {"C3": "A2", "F3": "A3", "A2": "A2", "A3": "A3"}.get(feature, "A1")
  pairs = ADDITION.contrast_in(feature, "only", INDEX, predict=predict)
  clean, corrupted = features(ADDITION, pairs)
  assert len(pairs) > 20 and (clean[feature] != corrupted[feature]).all() and (pairs.answer != pairs.foil).all()
  differ = {name for name in COLUMNS if name[0] in "FS" and (clean[name] != corrupted[name]).any()}
  if feature[0] in "FS":
    assert differ == {feature}
  elif feature in ("C1", "C2", "C3", "length"):
    place = "1" if feature == "length" else feature[1]
    assert differ == {f"F{place}", f"S{place}"}
    own = [side[f"F{place}"] + side[f"S{place}"] for side in (clean, corrupted)]
    np.testing.assert_array_equal(own[0] % 10, own[1] % 10)  # the digit of the sum stays, the carry does not
  else:
    others = [name for name in ("A1", "A2", "A3", "A4", "C1", "C2", "C3", "length") if name != feature]
    assert all((clean[name] == corrupted[name]).all() for name in others)
  assert (corrupted["F1"] > 0).all() and (corrupted["S1"] > 0).all()  # an input of the task


@pytest.mark.parametrize("feature", ["F1", "S3", "C2", "length", "A2"])
def test_everything_but_the_feature_differs(feature):
  pairs = ADDITION.contrast_in(feature, "rest", INDEX, predict="A1")
  clean, corrupted = features(ADDITION, pairs)
  assert len(pairs) > 390 and (clean[feature] == corrupted[feature]).all()
  for name in ("F1", "F2", "F3", "S1", "S2", "S3"):
    assert name == feature or (clean[name] != corrupted[name]).all()
  first, second, answer = numbers(pairs.corrupted).T
  assert (first >= 100).all() and (second >= 100).all() and (first + second == answer).all()


def test_the_thousands_of_an_answer_cannot_change_alone():
  pairs = ADDITION.contrast_in("A1", "only", INDEX, predict="A1")
  assert len(pairs) > 50 and (ADDITION.features(pairs.clean)["length"] == 3).all()


@pytest.mark.parametrize(
  "call, message",
  [
    (lambda: ADDITION.contrast(INDEX, change=("F1", "A1")), "unknown digit 'A1'.*F1, F2, F3, S1, S2, S3"),
    (lambda: ADDITION.contrast(INDEX, change=()), "no operand digit to change"),
    (lambda: ADDITION.contrast(INDEX, predict="A5"), "unknown digit 'A5'"),
    (lambda: ADDITION.contrast_in("B1", "only", INDEX), "unknown feature 'B1'"),
    (lambda: ADDITION.contrast_in("F1", "most", INDEX), "unknown kind of pairs 'most'"),
    (lambda: COUNTING.contrast_in("count", "most", STRINGS), "unknown kind of pairs 'most'"),
    (lambda: COUNTING.contrast(STRINGS, kind="swap"), "unknown kind of contrast 'swap'"),
    (lambda: COUNTING.contrast_in("letter", "only", STRINGS), "unknown feature 'letter'"),
    (lambda: COUNTING.contrast_in("count", "only", STRINGS, predict="A1"), "cannot predict 'A1'"),
  ],
)
def test_what_the_task_does_not_know_is_refused(call, message):
  with pytest.raises(InversionViewError, match=message):
    call()


# Counting.


def test_a_flip_turns_one_letter_into_another_of_the_three_and_changes_the_count_by_one():
  pairs = COUNTING.contrast(STRINGS, kind="flip")
  assert len(pairs) > 390
  for clean, corrupted in zip(pairs.clean, pairs.corrupted, strict=True):
    before, after = (COUNTING.tokenizer.text(row).split("|") for row in (clean, corrupted))
    assert sum(a != b for a, b in zip(before[0], after[0], strict=True)) == 1
    assert set(before[0]) == set(after[0]) and before[1][0] == after[1][0]
    assert after[0].count(after[1][0]) == int(after[1][2:]) and abs(int(after[1][2:]) - int(before[1][2:])) == 1
    assert max(map(after[0].count, set(after[0]))) <= 9
  np.testing.assert_array_equal(pairs.clean_at, pairs.corrupted_at)


def test_another_string_has_another_count_and_with_same_length_the_same_length():
  free = COUNTING.contrast(STRINGS)
  clean, corrupted = features(COUNTING, free)
  assert len(free) == 400 and (clean["count"] != corrupted["count"]).all() and (free.answer != free.foil).all()
  assert (clean["length"] == corrupted["length"]).mean() < 0.3
  where = COUNTING.tokenizer.strings(free.clean[np.arange(400), free.clean_at])
  assert set(where) == set(COUNTING.tokenizer.strings(free.corrupted[np.arange(400), free.corrupted_at])) == {":"}
  clean, corrupted = features(COUNTING, COUNTING.contrast(STRINGS, same_length=True, where="3 < length < 27"))
  assert len(clean["count"]) >= 395 and (clean["count"] != corrupted["count"]).all()
  np.testing.assert_array_equal(clean["length"], corrupted["length"])
  assert clean["length"].min() > 3 and clean["length"].max() < 27


def test_no_letter_of_the_shortest_strings_can_be_flipped():
  lengths = COUNTING.features(COUNTING.tokens(np.arange(6000)))["length"]
  assert lengths.min() == 3 and len(COUNTING.contrast(np.flatnonzero(lengths == 3), kind="flip")) == 0


def test_the_longest_strings_can_be_flipped_where_no_letter_comes_to_ten():
  lengths = COUNTING.features(COUNTING.tokens(np.arange(6000)))["length"]
  pairs = COUNTING.contrast(np.flatnonzero(lengths >= 25), kind="flip")
  letters = pairs.corrupted[:, 1:28, None] == pairs.clean[:, :1, None] * 0 + np.arange(26)
  assert len(pairs) > 10 and letters.sum(axis=1).max() <= 10  # of 27 columns, one may be the query letter after "|"
  occurs = COUNTING.features(pairs.corrupted)["count"]
  assert occurs.min() >= 1 and occurs.max() <= 9


@pytest.mark.parametrize("feature", ["count", "query", "length"])
def test_counting_pairs_differ_in_a_feature_only_or_in_all_others(feature):
  for vary in ("only", "rest"):
    pairs = COUNTING.contrast_in(feature, vary, STRINGS)
    clean, corrupted = features(COUNTING, pairs)
    changed = {name for name in clean if (clean[name] != corrupted[name]).any()}
    assert len(pairs) > 380 and changed == {name for name in clean if (clean[name] != corrupted[name]).all()}
    expected = {feature} if vary == "only" else set(clean) - {feature}
    assert changed == (expected | {"count"} if (feature, vary) == ("query", "only") else expected)
    if (feature, vary) == ("query", "only"):  # the string itself is the same
      rows = clean["length"][:, None] >= np.arange(33)
      np.testing.assert_array_equal(pairs.clean * rows, pairs.corrupted * rows)


# Conditions, and the pairs of a split.


@pytest.mark.parametrize(
  "condition, expected",
  [
    ("", [1, 1, 1, 1]), ("A == 1", [1, 0, 0, 0]), ("A + B < 5 or A == 3", [1, 0, 1, 0]), ("not A == 1", [0, 1, 1, 0]),
    ("1 < A <= 3", [0, 1, 1, 0]), ("A % 2 == 1 and B != 9", [1, 0, 0, 0]), ("B - A > 3 * A", [0, 0, 0, 0]), ("A == 7", [0, 0, 0, 0]),
  ],
)  # fmt: skip
def test_conditions(condition, expected):
  features = {"A": np.array([1, 2, 3, -1], np.int32), "B": np.array([2, 5, 9, 4], np.int32)}  # the last has no A
  assert grammar.holds(condition, features, 4).tolist() == [bool(one) for one in expected]


@pytest.mark.parametrize(
  "condition",
  ["A", "A =", "A == 'x'", "A = 1", "__import__('os')", "A ** 2 == 4", "A == 1; B == 2", "A % 0 == 1", "A % B == 1", "A == 1.5", "A is 1",
   "A < True", "[A] == 1", "A if A == 1 else B"],
)  # fmt: skip
def test_what_is_no_condition_is_refused(condition):
  features = {"A": np.array([1]), "B": np.array([2])}
  with pytest.raises(InversionViewError, match="is not understood"):
    grammar.holds(condition, features, 1)


def test_a_condition_names_features_that_are_there():
  with pytest.raises(InversionViewError, match="unknown feature in the condition 'F9 > 1': 'F9'.*F1"):
    ADDITION.contrast(INDEX, where="F9 > 1")


def test_collected_pairs_are_of_the_split_and_as_many_as_requested_or_possible():
  held_out = set(ADDITION.split("test").tolist())

  def draw(index):
    return ADDITION.contrast(index, 0)

  pairs = experiments.collect_pairs(ADDITION, draw, 700, seed=1)
  assert len(pairs) == 700 == len(set(pairs.index.tolist())) and set(pairs.index.tolist()) <= held_out
  again = experiments.collect_pairs(ADDITION, draw, 300, seed=1)
  np.testing.assert_array_equal(again.index, pairs.index[:300])  # more pairs are more, not others
  few = experiments.collect_pairs(ADDITION, draw, 700, where="F1 + S1 == 2 and F2 + S2 == 18 and F3 == 9")
  assert 1 <= len(few) < 20  # all that there are


def test_a_search_without_result_is_refused_with_the_reason():
  for where, message in (
    ("F1 == 1 and F1 == 2", "no input of the split 'test' fulfils"),
    ("", "of 2,048 inputs none has such a contrast"),
  ):
    with pytest.raises(InversionViewError, match=f"no pairs: {message}"):
      experiments.collect_pairs(ADDITION, lambda index: ADDITION.contrast(index)[:0], 10, where=where)


def test_random_numbers_are_uniform_and_independent_of_their_neighbours():
  index = np.arange(20_000)
  one, other = hashing.uniform(10, 0, index, 3), hashing.uniform(10, 0, index, 4)
  table = np.histogram2d(one, other, bins=10)[0]
  assert ((table - 200) ** 2 / 200).sum() < 100 + 4 * 200**0.5
  np.testing.assert_array_equal(hashing.uniform(10, 0, index[50:60], 3), one[50:60])
  assert (hashing.uniform(np.arange(1, 20_001), 0, index) <= index).all()
