"""Indirect object identification: prompts by index, positions and features that are known exactly, and pairs that differ in what is chosen."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from small_models import gpt2_folder, prompts, tokenizer_json

from inversionview_jax import pretrained, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import ioi
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizers import PartTokenizer, from_description


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  folder = gpt2_folder(tmp_path_factory.mktemp("gpt2"))
  return pretrained.tokenizer_of(folder, pretrained.open_checkpoint(folder))[0]


@pytest.fixture(scope="module")
def task(base):
  return tasks.get("ioi", base)


@pytest.fixture(scope="module")
def rows(task):
  return task.tokens(np.arange(3000))


def by_hand(task, row):
  """(template, order, IO, S, place, object) of a text, read off its words."""
  words = task.tokenizer.text(row).replace(",", "").replace(".", "").split()
  names = [word for word in words if word in task.names]
  assert len(names) == 4 and len(set(names)) == 2
  io, s = names[3], names[2]
  assert io != s
  return names[0] == s, io, s, words[-3]


def test_every_word_is_one_token(task, base):
  assert len(task.names) > 90 and len(task.places) > 15 and len(task.objects) > 15
  for word in (*task.names, *task.places, *task.objects):
    assert len(base.encode(f" {word}")) == 1


def test_prompts_are_different_and_a_function_of_the_index(task, rows):
  assert task.num_inputs == 250_000
  assert len(np.unique(rows, axis=0)) == len(rows)
  some = np.array([2999, 17, 17, 0])
  assert np.array_equal(task.tokens(some), rows[some])
  assert len(task.tokens(np.array([249_999]))) == 1


def test_a_prompt_encodes_to_its_tokens(task, rows):
  texts = [task.tokenizer.text(row) for row in rows[:200]]
  assert np.array_equal(task.tokenizer.encode_batch(texts, length=task.length, eos=True), rows[:200])


def test_patterns_and_templates_come_equally_often(task, rows):
  features = task.features(rows)
  counts = collections.Counter(zip(features["template"].tolist(), features["order"].tolist(), strict=True))
  assert len(counts) == 2 * len(ioi.TEMPLATES)
  assert max(counts.values()) < 2 * min(counts.values())


def test_features_are_the_words_of_the_text(task, rows):
  features = task.features(rows)
  for i, row in enumerate(rows[:300]):
    order, io, s, thing = by_hand(task, row)
    words = {name: task.value_name(name, int(features[name][i])) for name in ioi.FEATURES}
    assert (words["IO"], words["S"], words["object"], words["order"]) == (io, s, thing, ("ABBA", "BABA")[order])
    assert {words["first"], words["second"]} == {io, s}
    rebuilt = words["template"].format(words["first"], words["second"], s, place=words["place"], object=words["object"])
    assert task.tokenizer.text(row) == f"{rebuilt} {io}"


def test_a_beginning_has_the_features_it_reaches(task, rows):
  cut = np.where(np.arange(rows.shape[1]) < 6, rows, task.tokenizer.pad_id)
  features = task.features(cut)
  assert (features["IO"] == -1).all() and (features["object"] == -1).all() and (features["first"] >= 0).any()
  broken = rows.copy()
  broken[:, 3] = task.tokenizer.eos_id
  assert all((value == -1).all() for value in task.features(broken).values())


def test_every_prompt_is_as_probable_and_nothing_else_is(task, rows):
  prior = task.log_prior(rows[:500])
  assert np.allclose(np.exp(-prior), task._combinations)
  assert (task.log_prior(task.contrast(np.arange(50), kind="S2").corrupted) == prior[0]).all()
  wrong = rows[:50].copy()
  answer = np.argmax(wrong == task.tokenizer.eos_id, axis=1) - 1
  wrong[np.arange(50), answer] = rows[np.arange(50, 100), np.argmax(rows[50:100] == task.tokenizer.eos_id, axis=1) - 1]
  changed = (wrong != rows[:50]).any(axis=1)
  assert changed.sum() > 40 and (task.log_prior(wrong)[changed] == -np.inf).all()
  assert (task.log_prior(np.where(np.arange(rows.shape[1]) < 8, rows, task.tokenizer.pad_id)) == -np.inf).all()


def test_positions_have_their_names(task, rows):
  strings = task.tokenizer.strings
  for row in rows[:200]:
    labels = task.labels(row)
    at = {label: i for i, label in enumerate(labels) if label}
    assert set(at) == {"IO", "S1", "S1+1", "S2", "END", "answer"}
    _, io, s, _ = by_hand(task, row)
    shown = strings(row)
    assert [shown[at[label]] for label in ("IO", "answer", "S1", "S2", "END")] == [
      f" {io}",
      f" {io}",
      f" {s}",
      f" {s}",
      " to",
    ]
    assert at["S1+1"] == at["S1"] + 1 and at["answer"] == at["END"] + 1
    assert task.position(row, "S2") == at["S2"]


def test_queries_are_taken_at_the_positions_in_the_settings_also_on_the_device(base, rows):
  task = tasks.get("ioi", base, {"positions": ["S1+1", "S2", "END"]})
  mask = task.query_mask(rows[:100])
  assert np.array_equal(mask, np.asarray(task.query_mask(jnp.asarray(rows[:100]))))
  for row, here in zip(rows[:100], mask, strict=True):
    assert {task.labels(row)[i] for i in np.flatnonzero(here)} == {"S1+1", "S2", "END"}


@pytest.mark.parametrize("kind", ["S2", "names", "others"])
def test_pairs_have_another_answer(task, kind):
  pairs = task.contrast(np.arange(200), kind=kind)
  assert len(pairs) == 200
  before, after = task.features(pairs.clean), task.features(pairs.corrupted)
  assert (pairs.answer != pairs.foil).all()
  assert all((task.labels(row)[at] == "END") for row, at in zip(pairs.clean, pairs.clean_at, strict=True))
  assert all(np.array_equal(before[name], after[name]) for name in ("template", "place", "object"))
  if kind == "S2":
    assert np.sum(pairs.clean != pairs.corrupted, axis=1).tolist() == [2] * 200  # S2 and the answer
    assert np.array_equal(before["IO"], after["S"]) and np.array_equal(before["first"], after["first"])
  elif kind == "names":
    assert np.array_equal(before["IO"], after["S"]) and np.array_equal(before["order"], after["order"])
  else:
    own = np.stack([before["IO"], before["S"]], axis=1)
    for name in ("IO", "S"):
      assert (own != after[name][:, None]).all()


@pytest.mark.parametrize("feature", ["IO", "S", "place", "object", "template", "order"])
@pytest.mark.parametrize("vary", ["only", "rest"])
def test_pairs_differ_in_a_feature_only_or_in_all_others(task, feature, vary):
  pairs = task.contrast_in(feature, vary, np.arange(300))
  assert len(pairs) == 300
  before, after = task.features(pairs.clean), task.features(pairs.corrupted)
  for name in ("IO", "S", "place", "object", "template", "order"):
    same = (name == feature) == (vary == "rest")
    assert (before[name] == after[name]).all() if same else (before[name] != after[name]).all()


def test_unknown_contrasts_are_refused(task, base):
  for wrong, message in (
    (lambda: task.contrast(np.arange(3), kind="s2"), "unknown kind of contrast 's2'.*S2"),
    (lambda: task.contrast_in("verb", "only", np.arange(3)), "unknown feature to vary: 'verb'"),
    (lambda: task.contrast_in("IO", "only", np.arange(3), predict="A1"), "cannot predict 'A1'"),
    (lambda: tasks.get("ioi"), "is for language models"),
    (lambda: tasks.get("ioi", tasks.get("addition").tokenizer), "is for language models"),
    (lambda: tasks.get("ioi", base, {"position": ["S2"]}), "unknown setting of the task ioi: 'position'.*positions"),
    (lambda: tasks.get("ioi", base, {"positions": ["s2"]}), "unknown value of inputs.positions: 's2'"),
    (lambda: tasks.get("ioi", base, {"vocabulary": "some"}), "inputs.vocabulary = 'some' must be one of task, all"),
    (lambda: tasks.get("addition", None, {"positions": ["="]}), "addition has no settings"),
  ):
    with pytest.raises(InversionViewError, match=message):
      wrong()


def test_a_tokenizer_without_the_words_is_refused():
  other = HuggingFaceTokenizer(tokenizer_json(["1 2 3 4 5"] * 50, vocabulary=260), 0, 0, 0)
  with pytest.raises(InversionViewError, match="names, places and objects that are one token"):
    tasks.get("ioi", other)


# --- part of a vocabulary -------------------------------------------------------------------------------------------------------------


def test_part_of_a_vocabulary_writes_the_same_texts(base, task):
  part = task.tokenizer
  assert part.vocab_size < base.vocab_size / 2
  for text in prompts(50, seed=3):
    assert part.text(part.encode(text)) == text
    assert part.to_base(part.encode(text)).tolist() == base.encode(text)
  row = part.encode_batch([prompts(1)[0]], length=task.length, eos=True)[0]
  assert part.strings(row)[0] == "<BOS>" and part.strings(row)[-1] == "<PAD>" and "<EOS>" in part.strings(row)
  assert len({part.bos_id, part.eos_id, part.pad_id}) == 3
  assert from_description(part.describe()) == part


def test_all_of_a_vocabulary_keeps_its_numbers(base):
  part = PartTokenizer(base)
  assert part.vocab_size == base.vocab_size + 2
  assert part.encode("Then, Mary") == base.encode("Then, Mary")
  assert from_description(part.describe()) == part


def test_a_token_outside_the_part_is_named(task):
  with pytest.raises(InversionViewError, match=r"'Z' \(in 'Zorro'\) is not among the .* tokens of this task"):
    task.tokenizer.encode("Zorro")


@pytest.mark.parametrize("kept", [(3, 2, 0), (0, 0, 1), (1, 2), (0, 10**6)])
def test_a_part_that_is_none_is_refused(base, kept):
  with pytest.raises(InversionViewError, match="a part of a vocabulary needs increasing token ids"):
    PartTokenizer(base, kept)


def test_prompts_that_are_no_input_are_known(task, rows):
  t = task.tokenizer
  for row in rows[::150]:
    ids = [int(token) for token in row if token not in (t.eos_id, t.pad_id)]
    names = [i for i, token in enumerate(ids) if t.strings([token])[0].strip() in task.names]
    first, second, giver, answer = names
    other = next(token for token in t.encode(" Mary John Anna") if token not in (ids[first], ids[second]))
    assert all(task.may_be_input(ids[:end]) for end in range(1, len(ids) + 1))
    assert task.may_be_input(row)

    def changed(place, token, end=None, ids=ids):
      return task.may_be_input([*ids[:place], token, *ids[place + 1 :]][:end])

    assert changed(first, other, giver) and not changed(first, other if ids[giver] == ids[first] else ids[second])
    assert not changed(second, ids[first], second + 1)
    assert not changed(giver, other, giver + 1) and not changed(giver, ids[second + 1], giver + 1)
    assert not changed(answer, ids[giver]) and not changed(answer, other)
    assert not task.may_be_input([*ids, ids[-1]])
