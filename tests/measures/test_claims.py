"""Claims about an activation: their language, and their verdicts against preimages whose truth is known."""

import functools
import importlib.util
import json
import math
import pathlib
import runpy
import subprocess

import compilation
import numpy as np
import pytest
from language_model_server import TASK, preimage_of, sum_preimages

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import claims, properties
from inversionview_jax.measures.claim_check import HOLDS
from inversionview_jax.measures.claims import check_preimage
from inversionview_jax.reading.source import Source
from inversionview_jax.targets import for_task

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROOT = pathlib.Path(__file__).parent.parent.parent
TABLE = json.loads((pathlib.Path(__file__).parent / "claims.json").read_text())["activations"]


@pytest.fixture(scope="module")
def preimage():
  """Of 615+861=1476: 60 members with F1 + S1 = 14, else random."""
  return sum_preimages()[0]


def values(expression, *texts):
  return properties.evaluate(TASK, expression, TASK.tokenizer.encode_batch(texts, length=TASK.length, eos=True))


@pytest.mark.parametrize(
  ("expression", "expected"),
  [
    ('contains("861")', [1, 0]),
    ('not contains("861") and count("1") == 2', [0, 0]),
    ('count("1")', [3, 1]),
    (r'regex("^6\d+\+8")', [1, 0]),
    ('regex("[)(*+]8")', [1, 0]),
    ('token(F1) == "6"', [1, 0]),
    ("token(F1) == token(A4)", [1, 0]),
    ('token("=") != token(-1)', [1, 1]),
    ("token(1) == token(-2)", [0, 0]),
    ("length()", [12, 11]),
    ("length", [4, 3]),  # the task's own: digits of the answer
    ("F1 - S1 == -2", [1, 0]),
  ],
)
def test_expressions_over_tokens_have_the_values_of_the_texts(expression, expected):
  found, known = values(expression, "615+861=1476", "100+250=350")
  there = np.array([True, "A4" not in expression])
  assert known.tolist() == there.tolist() and found[there].tolist() == np.array(expected)[there].tolist()


@pytest.mark.parametrize(
  ("expression", "message"),
  [
    ("C2 = 0", r"at character 4 \('= 0'\).*\"==\".*features are F1.*functions are token.*positions F1, F2"),
    ("C9 == 0", "unknown feature.*did you mean"),
    ('contains("a", "b")', "takes one argument"),
    ("contains(F1)", "written in quotes"),
    ("token(1) < token(2)", "== or !="),
    ('token(1) == "x"', "unknown token"),
    ('F1 == "six"', "numbers"),
    ('regex("(1+)+")', "repeats a group"),
    (r'regex("(1)\1")', "refers back"),
    ('regex("1*2*3*4*5*6")', "more than 4 repeats"),
    ('regex("[")', "cannot be read"),
    ('regex("' + "1" * 101 + '")', "longer than"),
    ("open('x')", "not understood at character 1"),
    ('contains(f"{F1}")', "in quotes"),
    ('contains("".join("a"))', "in quotes"),
    ("token(F1).real", "not understood"),
  ],
)
def test_what_is_no_expression_is_refused_with_the_place(expression, message):
  with pytest.raises(InversionViewError, match=message):
    values(expression, "615+861=1476")


@pytest.mark.parametrize(
  ("claim", "verdict", "why"),
  [
    ("F1 + S1 == 14", "confirmed", "100 % inside epsilon"),
    ("F1 + S1", "confirmed", ""),
    ("F1 + S1 >= 13 and C1 == 1", "confirmed", ""),
    ("F1 == 6", "refuted", ""),
    ("token(F1)", "refuted", ""),
    ("C2 == 1", "refuted", "false for the query itself"),
    ("F1 >= 1", "not testable", "do not differ"),
    ("F1 + S1 >= 3", "not testable", "random inputs fulfil it anyway"),
    ("F1 - F1", "not testable", "do not differ"),
  ],
)
def test_a_claim_is_judged_by_the_inputs_inside(preimage, claim, verdict, why):
  result = check_preimage(_many(preimage), claim)
  assert result.verdict == verdict and why in result.why, result
  for one in result.counterexamples:  # inputs inside epsilon for which it does not hold
    assert one.distance <= 0.1 and not _holds(claim, one.text, preimage.query.text)
  assert bool(result.counterexamples) == (verdict == "refuted")
  json.loads(result.to_json())


def _many(preimage):
  """The same with members enough for an interval."""
  return preimage_of(615, 861, np.random.default_rng(0), n=200)


def _holds(claim, *texts):
  found, _ = values(claim, *texts)
  return found[0] == (1 if "=" in claim else found[1])


def test_few_different_members_confirm_nothing(preimage):
  few = preimage_of(615, 861, np.random.default_rng(0), n=12)
  assert "too few different members" in check_preimage(few, "F1 + S1").why
  assert check_preimage(few, "F2").verdict == "refuted"
  copies = [s for s in preimage.samples if s.inside][:1] * 1000
  alone = check_preimage(_replaced(preimage, samples=tuple(copies)), "F1 + S1")
  assert (alone.verdict, alone.distinct, alone.drawn) == ("not testable", 1, 1000)
  none = check_preimage(_replaced(preimage, samples=()), "F1").why
  assert none.startswith("no input inside epsilon") and "itself" not in none


def _replaced(preimage, **changes):
  import dataclasses

  return dataclasses.replace(preimage, **changes)


def test_a_text_that_the_task_does_not_have_is_said_to_be_none(preimage):
  """Nothing needs to lie inside epsilon of its activation, however long one samples."""
  other = "615+861=1477"
  tokens = tuple(int(i) for i in TASK.tokenizer.encode_batch([other], length=TASK.length, eos=True)[0])
  query = _replaced(preimage.query, text=other, tokens=tokens)
  result = check_preimage(_replaced(preimage, query=query, samples=()), "F1")
  assert result.verdict == "not testable" and result.why.endswith("the text itself is no input of the task")


def test_particles_that_have_not_converged_refute_and_do_not_confirm():
  stuck = _replaced(_many(None), method="monte_carlo", converged=False, problem="stuck")
  assert check_preimage(stuck, "F2").verdict == "refuted"
  result = check_preimage(stuck, "F1 + S1")
  assert (result.verdict, result.why) == ("not testable", "not converged: stuck")


def test_bits_of_a_claim_are_those_of_its_share_of_random_inputs(preimage):
  result = check_preimage(preimage, "C2 == 0 and F1 == 6")
  assert result.claim_bits == pytest.approx(-math.log2(result.random)) and not result.claim_bits_at_least
  assert result.random == pytest.approx(0.5 / 9, abs=0.01)
  rare = check_preimage(preimage, 'contains("615+861")')
  assert rare.random == 0 and rare.claim_bits_at_least and rare.claim_bits == pytest.approx(math.log2(20_000 / 3))


def test_a_query_without_a_value_of_it_is_not_testable():
  short = preimage_of(123, 456, np.random.default_rng(0))
  assert check_preimage(short, "F1 + A4").why == "the query has no value of it"
  with pytest.raises(InversionViewError, match="unknown position 'A4'"):
    check_preimage(short, "token(A4) == token(A1)")


@pytest.mark.slow
def test_a_claim_is_tested_on_a_target_with_its_control_and_other_activations(reader):
  source = Source.of(reader, "monte_carlo", particles=128, budget=4000)
  own = {"match": "position"}
  true = iv.check(source, "F2", "615+865=1480", "x0.pre", "F2", **own)
  assert true.verdict == "confirmed" and true.control.count == 4 and len(true.others) == 3
  assert true.baseline < 1 and all((o.site, o.position) != ("x0.pre", 2) for o in true.others)
  assert true.claim_bits == pytest.approx(math.log2(10), abs=0.2) and true.claim_bits <= true.bits + 0.5
  wrong = iv.check(source, "S2 == 6", "615+865=1480", "x0.pre", "F2", controls=0, others=0, **own)
  assert wrong.verdict == "refuted" and wrong.control is wrong.baseline is None
  run = reader.target.run([wrong.counterexamples[0].text], ["x0.pre"])["x0.pre"][0, 2]
  z = reader.target.run(["615+865=1480"], ["x0.pre"])["x0.pre"][0, 2]
  measured = float(np.linalg.norm(run - z) / np.linalg.norm(z))
  assert measured == pytest.approx(wrong.counterexamples[0].distance, abs=1e-5)
  with pytest.raises(InversionViewError, match="give text, site and position"):
    iv.check(source, "F2")


def test_a_control_that_passes_shows_an_artefact(preimage):
  """Where the members of every other activation fulfil a rare claim, the samples do, and not the activation."""
  claim = "F1 + S1 == 14"
  checked = check_preimage(_many(None), claim)
  stated = claims._Claim.of(TASK, claim, preimage.query)
  same = claims._with_control(checked, stated, [], [_many(None)] * 4)
  assert same.verdict == "not testable" and "the control passes" in same.why
  others = [preimage_of(a, b, np.random.default_rng(1)) for a, b in ((123, 456), (222, 678), (801, 190))]
  assert claims._with_control(checked, stated, [], others).verdict == "confirmed"


@functools.cache
def source_of(name, method=None):
  """What the claims of a target are about; None: Monte Carlo with the defaults. "ioi" is SmolLM2-135M, with fewer particles."""
  if name != "ioi":
    return Source.of(iv.load_target(name), method)
  try:
    path = runpy.run_path(str(ROOT / "launch" / "fetch_smollm2.py"))["fetch"]()
  except (OSError, subprocess.TimeoutExpired) as error:
    pytest.skip(f"SmolLM2-135M is not to be had: {error}")
  task, target = for_task.task_and_target(name, path)
  return Source.of(target, method or "monte_carlo", task=task, particles=128)


def place(row):
  return {name: row[name] for name in ("text", "site", "position", "match")}


def judged(rows, method=None):
  """(claim, whether it is right, the test of it) for claims about these activations, all of one on the same preimage."""
  out = []
  for row in rows:
    stated = [(claim, right) for right in (True, False) for claim in row["right" if right else "wrong"]]
    source = source_of(row["target"], method)
    found = claims.check_each(source, [claim for claim, _ in stated], **place(row), controls=0, others=0)
    out += [(*one, result) for one, result in zip(stated, found, strict=True)]
  return out


def misjudged(results):
  """Right claims that are not confirmed, and wrong ones that are not refuted."""
  return [str(result) for _, right, result in results if result.verdict != ("confirmed" if right else "refuted")]


def test_claims_about_a_compiled_program_are_judged_rightly():
  pytest.importorskip("tracr", reason="pip install '.[tracr]'")
  rows = [row for row in TABLE if row["target"] == "tracr:hist" and row["text"] == "ddadc"]
  results = judged(rows, "exact")
  assert len(results) == 5 and not misjudged(results)


def test_texts_of_the_last_set_are_inputs_of_their_tasks():
  """Of a text that the task does not have, nothing may lie inside epsilon: no verdict on it says how claims are judged."""
  rows = [row for row in TABLE if row["set"] == "fifth"]
  known = {name: tasks.get(name) for name in ("addition", "counting")}
  if importlib.util.find_spec("tracr"):
    known |= {row["target"]: tasks.get(row["target"]) for row in rows if row["target"].startswith("tracr:")}
  checked = [row for row in rows if row["target"] in known]
  assert len(checked) >= 13
  for row in checked:
    task = known[row["target"]]
    tokens = task.tokenizer.encode_batch([row["text"]], length=task.length, eos=True)
    assert np.isfinite(task.log_prior(tokens)).all(), row["text"]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "second", "third", "fourth", "fifth"])
def test_of_right_and_of_wrong_claims_one_in_twenty_may_be_misjudged(which):
  pytest.importorskip("tracr", reason="pip install '.[tracr]'")
  with compilation.quick(False):  # as users have it: a hundred thousand runs of the target for each activation
    results = judged([row for row in TABLE if row["set"] == which])
  wrong = misjudged(results)
  print(f"{which}: {len(results) - len(wrong)} of {len(results)}", *wrong, sep="\n")
  for right in (True, False):
    of_kind = [one for one in results if one[1] == right]
    print(f"{'right' if right else 'wrong'}: {len(of_kind) - len(misjudged(of_kind))} of {len(of_kind)}")
    assert len(of_kind) >= 19 and len(misjudged(of_kind)) <= max(1, len(of_kind) // 20), wrong


@pytest.mark.slow
def test_right_and_wrong_claims_are_so_by_exact_preimages():
  pytest.importorskip("tracr", reason="pip install '.[tracr]'")
  rows = [row for row in TABLE if row["target"] not in ("counting", "ioi")]  # whose inputs cannot be enumerated
  with compilation.quick(False):
    preimages = [source_of(row["target"], "exact").preimage(place(row)) for row in rows]
  for row, preimage in zip(rows, preimages, strict=True):
    source = source_of(row["target"], "exact")
    for claim in row["right"]:
      assert check_preimage(preimage, claim, source.task).rate >= HOLDS, (row, claim)
    for claim in row["wrong"]:
      rate = check_preimage(preimage, claim, source.task).rate
      assert (rate < 0.9) == (claim not in row.get("mislabelled", ())), (row, claim)
