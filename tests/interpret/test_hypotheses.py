"""Prompts for a language model, its answers, and the test of their expressions."""

import json
import subprocess
import sys

import numpy as np
import pytest
from language_model_server import GOOD, TASK, preimage_of, sum_preimages

from inversionview_jax.errors import InversionViewError
from inversionview_jax.interpret import hypotheses
from inversionview_jax.tasks import grammar


@pytest.fixture(scope="module")
def preimages():
  return sum_preimages()


def test_a_prompt_shows_queries_samples_on_both_sides_and_the_names_of_parts(preimages):
  (group,) = hypotheses.group_preimages(preimages)
  assert (group.site, group.position, len(group.preimages)) == ("a0.3", "=", 8)
  text = hypotheses.prompt(group, queries=5, samples=20)
  assert text == hypotheses.prompt(group, queries=5, samples=20)
  assert text.count("QUERY ") == 5 and "615+861[=]1476   (F1 = 6, F2 = 1" in text
  inside = text.split("INSIDE (distance at most 0.1):\n")[1].split("OUTSIDE")[0].strip().splitlines()
  assert len(inside) == 20 and all("[=]" in line and "distance 0.050" in line for line in inside)
  assert all(f"  {name}: {what}" in text for name, what in TASK.feature_names.items())
  assert set(TASK.feature_names) == set(TASK.features(TASK.tokens(np.arange(1))))


def test_preimages_are_grouped_by_site_and_position(preimages):
  other = preimage_of(615, 861, np.random.default_rng(1), site="a0.1")
  groups = hypotheses.group_preimages([preimages[0], other, preimages[1], preimages[0]])
  assert [(group.site, len(group.preimages)) for group in groups] == [("a0.3", 2), ("a0.1", 1)]


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    (GOOD, ("The hundreds add up to the same.", ["F1 + S1", "F2", "F1 ** 2"])),
    ('{"reading": "a", "features": "F1"}', ("a", ["F1"])),
    (
      'first {"reading": "old", "features": []} then ```json\n{"reading": "new {x}", "features": ["F2"]}\n```',
      ("new {x}", ["F2"]),
    ),
    ("I cannot tell.", ("I cannot tell.", [])),
    ('{"reading": "a", "features": [1, null, "F1", " ", "F2", "F3", "S1"]}', ("a", ["F1", "F2", "F3"])),
    ('{"reading": "cut off', ('{"reading": "cut off', [])),
    ('{"reading": "a", "features": 7}', ("a", [])),
  ],
)
def test_answers_are_parsed(answer, expected):
  assert hypotheses.parse(answer) == expected


def test_expressions_have_values_where_their_features_are_known():
  features = {"F1": np.array([6, 1, -1]), "S1": np.array([8, 2, 3])}
  values, known = grammar.expression("(F1 + S1) % 10", features, 3)
  assert values[:2].tolist() == [4, 3] and known.tolist() == [True, True, False]
  assert grammar.expression("F1 + S1 >= 10", features, 3)[0][:2].tolist() == [1, 0]
  assert grammar.expression("not F1 == 6", features, 3)[0][:2].tolist() == [0, 1]


@pytest.mark.parametrize(
  "text",
  [
    "__import__('os').system('true')",
    "F1.__class__",
    "F1 ** 9",
    "F1 << 9",
    "[F1]",
    "F1 if S1 else 2",
    "lambda: F1",
    "F1 / 2",
    "F1 % S1",
    "F1 % 0",
    "F1 := 3",
    "'a' * 10",
    "True",
    "1.5",
    "F1 * F1 * F1 * F1",
    "99999999999999999999",
    "(" * 200 + "F1" + ")" * 200,
    "-" * 400 + "F1",
    "F1; S1",
    "",
    "F9",
    "print(F1)",
  ],
)
def test_other_expressions_are_refused(text):
  with pytest.raises(InversionViewError):
    grammar.expression(text, {"F1": np.array([1]), "S1": np.array([2])}, 1)


@pytest.mark.parametrize(
  ("feature", "verdict"),
  [
    ("F1 + S1", "confirmed"),
    ("F1 + S1 >= 10", "confirmed"),
    ("F1 + S1 == 14 or F1 + S1 == 5", "confirmed"),
    ("F2", "refuted"),
    ("F1", "refuted"),
    ("C2", "refuted"),
    ("F1 + 2 * S1", "refuted"),
    ("F1 >= 1", "not testable"),
    ("F1 +", "not testable"),
    ("F9", "not testable"),
    ("3 > 2", "not testable"),
  ],
)
def test_what_is_true_is_confirmed_and_what_is_not_is_refuted(preimages, feature, verdict):
  group = hypotheses.group_preimages(preimages)[0]
  result = hypotheses.score(group, feature, seen=5)
  assert result.verdict == verdict, result
  if verdict == "confirmed":
    assert result.rate.value == 1.0 and result.outside < 0.9
    assert (result.control < 0.1) == (feature == "F1 + S1")  # the three queries agree in the others
  if result.queries:
    assert (result.queries, result.unseen) == (3, True)  # of eight, those that the prompt did not show
  assert hypotheses.score(group, feature, seen=7).unseen is False
  json.dumps(result.to_dict(), allow_nan=False)


def test_an_expression_without_members_is_not_testable(preimages):
  far = [preimage.at(0.01) for preimage in preimages]
  result = hypotheses.score(hypotheses.group_preimages(far)[0], "F1 + S1")
  assert (result.verdict, result.rate) == ("not testable", None) and "members inside" in result.why


def test_prompts_and_scores_need_no_jax():
  code = "import sys; from inversionview_jax.interpret import hypotheses, language_model; assert 'jax' not in sys.modules and 'openai' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
