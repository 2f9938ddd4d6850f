"""The two tasks: what their inputs look like, what their positions are called, which tokens count."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError

ADDITION, COUNTING = tasks.get("addition"), tasks.get("counting")
_SPECIAL = {"<BOS>": "B", "<EOS>": "E", "<PAD>": "."}


def _shown(task, tokens) -> str:
  """One character a token: B, E and . for BOS, EOS and PAD."""
  return "".join(_SPECIAL.get(t, t) for t in task.tokenizer.strings(tokens))


@pytest.fixture(scope="module")
def strings():
  """int32[1800, 33]: counting inputs, among them the first 600, which have the letters a, b and c."""
  index = np.concatenate([np.arange(600), np.random.default_rng(0).integers(0, COUNTING.num_inputs, 1200)])
  return index, COUNTING.tokens(index)


def test_get_names_the_known_tasks():
  assert tasks.names() == ("addition", "counting", "ioi", "factual", "text")
  with pytest.raises(InversionViewError, match="unknown task 'adition': did you mean addition"):
    tasks.get("adition")


@pytest.mark.parametrize(
  "task, count, first",
  [(ADDITION, 607_500, [409763, 663016, 392925]), (COUNTING, 1_170_000, [102052, 924547, 1342339])],
)
def test_splits_are_three_quarters_and_the_rest(task, count, first):
  assert len(task.split("train")) == count
  assert task.split("train")[:3].tolist() == first  # datasets and models were made with these
  both = np.concatenate([task.split("train"), task.split("test")])
  np.testing.assert_array_equal(np.sort(both), np.arange(task.num_inputs))
  np.testing.assert_array_equal(task.split("train"), task.split("train"))
  with pytest.raises(InversionViewError, match="unknown split 'validation'"):
    task.split("validation")


class TestAddition:
  @pytest.mark.parametrize(
    "first, second, shown",
    [
      (615, 861, "B615+861=1476E"),
      (100, 100, "B100+100=200E."),
      (499, 500, "B499+500=999E."),
      (500, 500, "B500+500=1000E"),
      (999, 999, "B999+999=1998E"),
    ],
  )
  def test_tokens_of_operands(self, first, second, shown):
    (row,) = ADDITION.tokens_of([first], [second])
    assert row.dtype == np.int32 and _shown(ADDITION, row) == shown
    text = ADDITION.tokenizer.text(row)
    np.testing.assert_array_equal(row, ADDITION.tokenizer.encode_batch([text], ADDITION.length, eos=True)[0])

  def test_index_counts_through_both_operands(self):
    rows = ADDITION.tokens(np.array([0, 1, 900, 809_999]))
    texts = [ADDITION.tokenizer.text(row) for row in rows]
    assert texts == ["100+100=200", "100+101=201", "101+100=201", "999+999=1998"]

  def test_another_answer_may_be_given(self):
    assert _shown(ADDITION, ADDITION.tokens_of([615], [861], [999])[0]) == "B615+861=999E."

  def test_labels(self):
    long, short = ADDITION.tokens_of([615, 100], [861, 200])
    assert ADDITION.labels(long) == "<BOS> F1 F2 F3 + S1 S2 S3 = A1 A2 A3 A4 <EOS>".split()
    assert ADDITION.labels(short) == "<BOS> F1 F2 F3 + S1 S2 S3 = A1 A2 A3 <EOS> <PAD>".split()

  @pytest.mark.parametrize(
    "where, index",
    [("=", 8), ("+", 4), ("F1", 1), ("S3", 7), ("A1", 9), ("A4", 12)]
    + [(0, 0), (12, 12), ("8", 8), (-1, 12), ("-1", 12), (-13, 0)],
  )
  def test_position(self, where, index):
    assert ADDITION.position(ADDITION.tokens_of([615], [861])[0], where) == index

  def test_position_counts_from_the_last_token_of_the_text(self):
    assert ADDITION.position(ADDITION.tokens_of([100], [200])[0], -1) == 11

  @pytest.mark.parametrize(
    "where, message",
    [
      ("A4", r"unknown position 'A4'.*100\+200=300.* F1, .*A3; or give an index from 0 .* to 11"),
      ("x", "unknown position 'x'"),
      (12, "position 12 is out of range.* to 11"),
      (-13, "position -13 is out of range"),
    ],
  )
  def test_position_that_is_not_there(self, where, message):
    with pytest.raises(InversionViewError, match=message):
      ADDITION.position(ADDITION.tokens_of([100], [200])[0], where)

  def test_masks_and_groups(self):
    tokens = ADDITION.tokens_of([615, 100, 145], [861, 200, 254])
    marks = lambda mask: ["".join("x" if m else " " for m in row) for row in mask]
    #                                                "B615+861=1476E"  "B100+200=300E."
    assert marks(ADDITION.loss_mask(tokens))[:2] == [" xxxxxxxxxxxxx", " xxxxxxxxxxxx "]
    assert marks(ADDITION.answer_mask(tokens))[:2] == ["         xxxxx", "         xxxx "]
    assert marks(ADDITION.query_mask(tokens))[:2] == [" xxxxxxxxxxxx ", " xxxxxxxxxxx  "]
    assert marks(ADDITION.counted_mask(tokens))[:2] == ["xxxxxxxxxxxxx ", "xxxxxxxxxxxx  "]
    np.testing.assert_array_equal(ADDITION.groups(tokens)["tens_sum_9"], [False, False, True])


class TestCounting:
  def test_strings_are_three_letters_and_the_count_of_one(self, strings):
    _, rows = strings
    assert rows.shape[1] == 33 and rows.dtype == np.int32
    for row in rows:
      letters, query, count = re.fullmatch(r"B([a-z]+)\|([a-z]):([1-9])E\.*", _shown(COUNTING, row)).groups()
      counts = {letter: letters.count(letter) for letter in letters}
      assert len(counts) == 3 and set(counts.values()) <= set(range(1, 10))
      assert counts[query] == int(count)

  def test_the_indices_of_one_triple_of_letters(self, strings):
    texts = [COUNTING.tokenizer.text(row) for row in strings[1][:600]]
    assert all(set(text.split("|")[0]) == set("abc") for text in texts)
    counts = [tuple(text.split("|")[0].count(letter) for letter in "abc") for text in texts]
    assert len(set(counts)) == 200 and counts[0::3] == counts[1::3] == counts[2::3]
    assert [text.split("|")[1][0] for text in texts] == [*"abc"] * 200

  def test_the_order_of_letters_is_random(self, strings):
    letters = [COUNTING.tokenizer.text(row).split("|")[0] for row in strings[1]]
    assert sum(text == "".join(sorted(text)) for text in letters) < 0.1 * len(letters)
    # A letter comes first with a probability proportional to its count: 1/3 for each of a, b and c overall.
    assert 0.2 < np.mean([text[0] == "a" for text in letters[:600]]) < 0.5

  def test_is_a_function_of_the_index_alone(self, strings):
    index, rows = strings
    np.testing.assert_array_equal(COUNTING.tokens(index[::-1]), rows[::-1])
    np.testing.assert_array_equal(COUNTING.tokens(index[700:701])[0], rows[700])

  def test_inputs_stay_what_datasets_and_models_were_made_with(self):
    rows = COUNTING.tokens(np.array([0, 777_777, COUNTING.num_inputs - 1]))
    assert [COUNTING.tokenizer.text(row) for row in rows] == ["ccbca|a:1", "fhhphhfff|f:4", "zyyyxyzzzzxyzyzzyz|z:9"]

  def test_positions(self):
    (row,) = COUNTING.tokenizer.encode_batch(["vvzccv|v:3"], COUNTING.length, eos=True)
    named = [(place, label) for place, label in enumerate(COUNTING.labels(row)) if label]
    assert named == [(7, "|"), (8, "query"), (9, ":"), (10, "count")]
    assert [COUNTING.position(row, where) for where in ("|", "query", ":", "count", -1, "-2")] == [7, 8, 9, 10, 10, 9]
    with pytest.raises(InversionViewError, match=r"unknown position 'v'.* \|, query, :, count"):
      COUNTING.position(row, "v")

  def test_masks(self):
    rows = COUNTING.tokenizer.encode_batch(["vvzccv|v:3"], COUNTING.length, eos=True)
    assert np.flatnonzero(COUNTING.answer_mask(rows)[0]).tolist() == [10]
    assert np.flatnonzero(COUNTING.loss_mask(rows)[0]).tolist() == [10]
    assert np.flatnonzero(COUNTING.query_mask(rows)[0]).tolist() == [8, 9]
    assert np.flatnonzero(COUNTING.counted_mask(rows)[0]).tolist() == [*range(11)]


@pytest.mark.parametrize("task", [ADDITION, COUNTING], ids=lambda task: task.name)
@pytest.mark.parametrize("mask", ["loss_mask", "answer_mask", "query_mask", "counted_mask"])
def test_masks_agree_on_numpy_and_jax_arrays(task, mask):
  tokens = task.tokens(task.split("test")[:50])
  here, there = getattr(task, mask)(tokens), getattr(task, mask)(jnp.asarray(tokens))
  assert isinstance(here, np.ndarray) and isinstance(there, jnp.ndarray) and there.dtype == bool
  np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize(
  "task, n_layers, n_heads, count",
  [(ADDITION, 2, 4, 13), (COUNTING, 2, 1, 9)],
  ids=lambda value: getattr(value, "name", None),
)
def test_default_sites_are_as_many_as_in_the_paper(task, n_layers, n_heads, count):
  names = task.default_sites(n_layers, n_heads)
  assert len(names) == len(set(names)) == count


def _features(task, texts):
  """The features of each text that it has."""
  features = task.features(task.tokenizer.encode_batch(texts, eos=True))
  assert all(values.dtype == np.int32 and values.shape == (len(texts),) for values in features.values())
  return [
    {name: int(values[row]) for name, values in features.items() if values[row] >= 0} for row in range(len(texts))
  ]


class TestFeatures:
  def test_addition_names_digits_carries_and_length(self):
    long, short = _features(ADDITION, ["615+867=1482", "100+299=999"])
    operands = {"F1": 6, "F2": 1, "F3": 5, "S1": 8, "S2": 6, "S3": 7}
    assert long == operands | {"A1": 1, "A2": 4, "A3": 8, "A4": 2, "C1": 1, "C2": 0, "C3": 1, "length": 4}
    # The answer is read as it is written, right or not; the carries are those of the operands.
    operands = {"F1": 1, "F2": 0, "F3": 0, "S1": 2, "S2": 9, "S3": 9}
    assert short == operands | {"A1": 9, "A2": 9, "A3": 9, "C1": 0, "C2": 0, "C3": 0, "length": 3}

  def test_a_carry_can_come_from_the_place_below(self):
    (nines,) = _features(ADDITION, ["445+555=1000"])
    assert [nines[name] for name in ("C1", "C2", "C3")] == [1, 1, 1]

  def test_addition_agrees_with_arithmetic_on_every_kind_of_input(self):
    index = np.random.default_rng(0).integers(0, ADDITION.num_inputs, 3000)
    first, second = 100 + index // 900, 100 + index % 900
    features = ADDITION.features(ADDITION.tokens(index))
    np.testing.assert_array_equal(features["length"], np.where(first + second >= 1000, 4, 3))
    for name, scale in (("C1", 1000), ("C2", 100), ("C3", 10)):
      np.testing.assert_array_equal(features[name], first % scale + second % scale >= scale)

  def test_the_beginning_of_an_input_has_the_features_it_reaches(self):
    begun, whole_sum, cut = _features(ADDITION, ["615+8", "615+861=", "615+861=14"])
    assert begun == {"F1": 6, "F2": 1, "F3": 5, "S1": 8}
    assert "length" not in whole_sum and whole_sum["C1"] == 1 and cut["A2"] == 4 and "length" not in cut

  @pytest.mark.parametrize("text", ["740+8+4=1584", "615+861=14761", "615+861=1+", "+", "61+5861=1476", "6158861=1476"])
  def test_addition_that_is_malformed_has_none(self, text):
    assert _features(ADDITION, [text]) == [{}]

  def test_counting_names_count_query_and_length(self):
    assert _features(COUNTING, ["vvzccv|v:3", "vvzccv|z:9", "vvz|y:2"]) == [
      {"count": 3, "query": 21, "length": 6},
      {"count": 1, "query": 25, "length": 6},  # the letters are counted, not what is written behind them
      {"count": 0, "query": 24, "length": 3},
    ]
    assert _features(COUNTING, ["vvz", "vvz|", "vvz|v"]) == [{}, {"length": 3}, {"count": 2, "query": 21, "length": 3}]

  @pytest.mark.parametrize("text", ["|v:3", "vz|v:3|", "vz|v:33", "vz3|v:1", "vz||:1", "v:1", "vz|v:3v"])
  def test_counting_that_is_malformed_has_none(self, text):
    assert _features(COUNTING, [text]) == [{}]

  def test_rows_may_be_longer_or_shorter_than_the_task_and_must_begin_with_bos(self):
    row = ADDITION.tokens_of([615], [861])
    longer = np.concatenate([row, np.full((1, 3), ADDITION.tokenizer.pad_id)], axis=1)
    assert ADDITION.features(longer)["A4"].tolist() == ADDITION.features(row[:, :13])["A4"].tolist() == [6]
    assert ADDITION.features(row[:, 1:])["F1"].tolist() == [-1]
    again = np.concatenate([row, row], axis=1)  # something behind the end
    assert ADDITION.features(again)["F1"].tolist() == [-1]
    assert COUNTING.features(COUNTING.tokens(np.array([0]))[:, 1:])["count"].tolist() == [-1]

  def test_a_written_count_is_the_feature_on_the_inputs_of_the_task(self, strings):
    features = COUNTING.features(strings[1])
    texts = [COUNTING.tokenizer.text(row) for row in strings[1]]
    assert features["count"].tolist() == [int(text[-1]) for text in texts]
    assert features["length"].tolist() == [text.index("|") for text in texts]


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("615+861=1476", True), ("615+861=", True), ("615", True), ("", True), ("12+34=46", False), ("615+861=1477", False),
    ("615+861=15", False), ("100+100=2000", False), ("615+861=14761476", False),
  ],
)  # fmt: skip
def test_sums_that_are_no_input_are_known(text, expected):
  t = ADDITION.tokenizer
  assert ADDITION.may_be_input([t.bos_id, *t.encode(text)]) is expected


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("vvzccvczvvvzvcvc|v:8", True), ("vvzccvczvvvzvcvc|v:", True), ("vvzccvczvvvzvcvc|", True), ("vvz", True), ("", True), ("zzz", True),
    ("vvzccvczvvvzvcvc|v:7", False), ("vvzccvczvvvzvcvc|x", False), ("vvzvvz|v:4", False), ("abcd", False), ("a" * 10, False),
    ("vvz|c", False), ("vzc||", False), ("vzc|v:1:", False), ("v:z", False), ("vzc|v:11", False),
  ],
)  # fmt: skip
def test_strings_that_are_no_input_are_known(text, expected):
  t = COUNTING.tokenizer
  assert COUNTING.may_be_input([t.bos_id, *t.encode(text)]) is expected
  row = np.full((1, COUNTING.length), t.pad_id, np.int32)
  row[0, : len(text) + 2] = [t.bos_id, *t.encode(text), t.eos_id]
  if text[-1:].isdigit():
    assert np.isfinite(COUNTING.log_prior(row))[0] == expected
