"""Moves and priors of the language tasks: IOI by its choices, facts and texts of files by a list of them."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from detailed_balance import assert_balanced, assert_same_in_jit, grid
from scipy import stats
from small_models import prompts, tokenizer_json

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import listed_inputs
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.ioi_words import TEMPLATES

NAMES, PLACES, OBJECTS = ("Mary", "John", "Tom", "James"), ("store", "school"), ("drink",)


def of_few_words():
  """A tokenizer in which 4 names, 2 places and 1 object are one token each."""
  words = [" ".join(f" {word}" for word in (*NAMES, *PLACES, *OBJECTS))]
  texts = [t.format("Mary", "John", "Tom", place="store", object="drink") for t in TEMPLATES]
  return HuggingFaceTokenizer(tokenizer_json((words + texts) * 20, 600), 0, 0, 0)


@pytest.fixture(scope="module")
def ioi():
  return tasks.get("ioi", of_few_words())


@pytest.fixture(scope="module")
def every(ioi):
  """All 480 IOI texts of these words."""
  sizes = [range(size) for size in ioi._choices.sizes.values()]
  choices = [c for c in itertools.product(*sizes) if c[2] != c[3]]
  return ioi._choices.texts(np.array(choices))


def test_the_prior_of_ioi_is_uniform_over_its_texts(ioi, every):
  assert ioi.names == NAMES and ioi.places == PLACES and ioi.objects == OBJECTS
  assert len(np.unique(every, axis=0)) == len(every) == 10 * 2 * 4 * 3 * 2
  assert {tuple(row) for row in ioi.tokens(np.arange(2000)).tolist()} <= {tuple(row) for row in every.tolist()}
  rng = np.random.default_rng(0)
  known = {tuple(row) for row in every.tolist()}
  wrong = np.where(
    rng.random((4000, ioi.length)) < 0.06,
    rng.integers(ioi.tokenizer.vocab_size, size=(4000, ioi.length)),
    every[rng.integers(len(every), size=4000)],
  ).astype(np.int32)
  names = ioi._words[0]
  wrong[:500] = every[rng.integers(len(every), size=500)]
  swapped = np.where(np.isin(wrong[:500], names) & (rng.random((500, ioi.length)) < 0.5), names[0], wrong[:500])
  for rows in (every, wrong, swapped.astype(np.int32)):
    expected = np.where([tuple(row) in known for row in rows.tolist()], -math.log(480), -math.inf)
    np.testing.assert_array_equal(ioi.log_prior(rows), expected)
    np.testing.assert_allclose(jax.jit(ioi.log_prior)(rows), expected, rtol=1e-6)
    wide = np.pad(rows, ((0, 0), (0, 2)), constant_values=ioi.tokenizer.pad_id)
    np.testing.assert_array_equal(ioi.log_prior(wide), expected)
    assert np.isinf(ioi.log_prior(np.where(np.arange(wide.shape[1]) == ioi.length, names[0], wide))).all()
  assert 100 < np.isfinite(ioi.log_prior(wrong)).sum() < 3000 and np.isinf(ioi.log_prior(swapped)).sum() > 100


def test_moves_of_ioi_are_in_detailed_balance_and_change_what_they_name(ioi, every):
  moves = {move.name: move for move in ioi.moves()}
  assert set(moves) == {
    "another template", "another order", "another IO", "another S", "another place", "redraw", "exchange the names",
  }  # fmt: skip
  features = ioi.features(every)
  for name, move in moves.items():
    if name == "redraw":
      continue
    there = assert_balanced(move, grid(*[9] * move.uniforms), every, ioi.log_prior)
    before, after = np.nonzero(there)
    before, after = before[before != after], after[before != after]
    changed = {f for f in ioi._choices.sizes if (features[f][before] != features[f][after]).any()}
    assert changed == ({name.removeprefix("another ")} if name.startswith("another ") else {"IO", "S"})


def test_many_moves_of_ioi_follow_its_prior(ioi, every):
  """From one text, all kinds in turn end at each of the 480 equally often; then redraws alone do."""
  rng = np.random.default_rng(3)
  number = {tuple(row): i for i, row in enumerate(every.tolist())}
  for sweeps, kinds in ((12, ioi.moves()), (2, [m for m in ioi.moves() if m.name == "redraw"])):
    tokens = np.repeat(every[7:8], 8_000, axis=0)
    for _ in range(sweeps):
      for move in kinds:
        new, ratio = move.propose(rng.random((len(tokens), move.uniforms), np.float32), tokens)
        accept = np.log(rng.random(len(tokens))) < ioi.log_prior(new) - ioi.log_prior(tokens) + ratio
        if len(kinds) > 1:
          accept &= rng.random(len(tokens)) < 0.7  # or a move of the order would only ever alternate
        tokens = np.where(accept[:, None], new, tokens)
    counts = np.bincount([number[tuple(row)] for row in tokens.tolist()], minlength=len(every))
    if len(kinds) > 1:
      assert stats.chisquare(counts).pvalue > 1e-3
    else:  # a combination with equal names is no text and is not made: one in four stays, one in sixteen twice
      assert stats.chisquare(np.delete(counts, 7)).pvalue > 1e-3
      assert abs(counts[7] / 8_000 - (1 / 16 + 15 / 16 / 480)) < 0.009


@pytest.mark.parametrize("vocabulary", ["task", "all"])
def test_numpy_and_jit_agree_on_ioi(vocabulary):
  base = HuggingFaceTokenizer(tokenizer_json(prompts(500)), 0, 0, 0)
  task = tasks.get("ioi", base, {"vocabulary": vocabulary})
  tokens = task.tokens(np.arange(300))
  assert np.isfinite(task.log_prior(tokens)).all()
  for move in task.moves():
    assert_same_in_jit(move, tokens, task.log_prior)


# Facts and texts: lists.


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
  """Four countries, two relations in two wordings, not all of them, one fact twice, and two sentences."""
  path, lines = tmp_path_factory.mktemp("facts") / "facts.jsonl", []
  table = {"France": ("Paris", "French"), "Italy": ("Rome", "Italian"), "Spain": ("Madrid", "Spanish"), "Peru": ("Lima", "Spanish")}  # fmt: skip
  wordings = (("The capital of {} is", "{} is ruled from"), ("They speak in {}", "People of {} speak"))
  for subject, answers in table.items():
    for relation, (answer, both) in enumerate(zip(answers, wordings, strict=True)):
      lines += [
        {"prompt": wording, "subject": subject, "answer": answer, "relation": f"r{relation}"} for wording in both
      ]
  lines = [*lines[:-1], lines[0], {"text": "The river is long"}, {"text": "The sea is wide"}]
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))
  base = HuggingFaceTokenizer(
    tokenizer_json(["The capital is ruled speak river long sea wide Paris Rome France Spain"] * 9, 300), 0, 0, 0
  )
  return tasks.get("factual", base, {"sources": ["files"], "files": [str(path)], "length": 40})


def test_the_prior_of_facts_is_uniform_over_the_lines(facts):
  rows = facts.tokens(np.arange(facts.num_inputs))
  assert facts.num_inputs == 18 and len(facts.listed.rows) == 17 and facts.enumerable
  expected = np.log(np.array([2 if i in (0, 15) else 1 for i in range(18)]) / 18)
  np.testing.assert_allclose(facts.log_prior(rows), expected)
  np.testing.assert_allclose(jax.jit(facts.log_prior)(rows), expected, rtol=1e-6)
  np.testing.assert_array_equal(facts.index(rows), [*range(15), 0, 16, 17])
  wrong = rows.copy()
  wrong[np.arange(18), 2 + np.arange(18) % 3] += 1
  assert np.isinf(facts.log_prior(wrong)).all() and (np.asarray(jax.jit(facts.index)(wrong)) == -1).all()


def test_moves_of_facts_are_in_detailed_balance_and_keep_what_they_name(facts):
  rows, log_prior = facts.listed.rows, facts.log_prior
  lines = [facts.tokenizer.text(facts.tokens(np.array([i]))[0]) for i in facts.listed.first]
  fact = {f"{f['prompt']} {f['answer']}": f for f in facts.facts}
  of = [fact.get(line, {"relation": line, "subject": line, "answer": line, "prompt": line}) for line in lines]
  kept = {
    "another subject": lambda f: f["prompt"].replace(f["subject"], "{}"),
    "another wording": lambda f: (f["relation"], f["subject"]),
    "another relation": lambda f: f["subject"],
    "another fact of the relation": lambda f: f["relation"],
    "another fact with this answer": lambda f: f["answer"],
  }
  moves = {move.name: move for move in facts.moves()}
  assert set(moves) == {"redraw", "near in order", "near in order of endings", *kept}
  for name, move in moves.items():
    there = assert_balanced(
      move, grid(17) if name == "redraw" else grid(*{1: [42], 3: [5, 16, 2]}[move.uniforms]), rows, log_prior
    )
    before, after = np.nonzero(there)
    apart = before != after
    if name in kept:
      assert all(kept[name](of[i]) == kept[name](of[j]) for i, j in zip(before[apart], after[apart], strict=True))
    elif name == "redraw":
      assert (there > 0).all()
    assert_same_in_jit(move, rows, log_prior)


def shared(one, other):
  return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def test_neighbours_of_a_text_share_its_beginning_or_its_ending(tmp_path):
  lines = [f"{a} {b} {c}" for a in "abcdef" for b in "ij" for c in "mnopqr"]
  path = tmp_path / "texts.txt"
  path.write_text("\n".join(np.random.default_rng(0).permutation(lines)) + "\n")
  base = HuggingFaceTokenizer(tokenizer_json(lines, 300), 0, 0, 0)
  task = tasks.get("text", base, {"files": str(path), "length": 9})
  rows, moves = task.tokens(np.arange(72)), {move.name: move for move in task.moves()}
  assert set(moves) == {"redraw", "near in order", "near in order of endings"}
  uniforms = grid(7, 64, 2)
  texts = [task.tokenizer.text(row) for row in rows]
  for name, step in (("near in order", 1), ("near in order of endings", -1)):
    there = assert_balanced(moves[name], uniforms, rows, task.log_prior)
    nearest = np.argmax(there - 2 * np.diag(np.diag(there)), axis=1)
    assert np.mean([shared(texts[i][::step], texts[j][::step]) >= 3 for i, j in enumerate(nearest)]) > 0.8
  np.testing.assert_allclose(np.exp(task.log_prior(rows)), 1 / 72)


def test_texts_whose_hashes_are_equal_are_told_apart(monkeypatch):
  monkeypatch.setattr(listed_inputs.hashing, "rows", lambda tokens: [tokens[:, 1].astype(np.uint32) % 3] * 2)
  rows = np.stack([np.zeros(12), np.arange(12), np.arange(12) % 5], axis=1).astype(np.int32)
  listed = listed_inputs.ListedInputs(rows[::-1], pad_id=9)
  np.testing.assert_array_equal(listed.find(rows), np.arange(12))
  np.testing.assert_array_equal(listed.index(jnp.asarray(rows)), np.arange(12)[::-1])
  assert (listed.find(rows + [[0, 0, 1]]) == -1).all()


def test_more_texts_than_can_be_listed_are_refused_in_one_line(facts, monkeypatch):
  monkeypatch.setattr(listed_inputs, "MOST_TOKENS", 17 * 40)
  monkeypatch.delitem(facts.__dict__, "listed", raising=False)
  with pytest.raises(InversionViewError, match="18 inputs of 40 tokens, and at most 17 are listed") as caught:
    facts.moves()
  assert "\n" not in str(caught.value)
