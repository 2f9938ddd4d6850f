"""SmolLM2-135M-Instruct, four bits a weight, read from its GGUF file: it must know what a model of its size knows."""

import pathlib
import runpy
import subprocess

import jax
import numpy as np
import pytest

from inversionview_jax.targets import Edit, load_target

ROOT = pathlib.Path(__file__).parent.parent.parent
FETCH = runpy.run_path(str(ROOT / "launch" / "fetch_smollm2.py"))["fetch"]

pytestmark = pytest.mark.slow

NAMES = "Mary John Tom James Sarah Anna Peter Paul David Laura Alice Jack Kate Mark Emma Susan".split()
PLACES = "store school park office restaurant house hospital library".split()
OBJECTS = "drink book ring basketball computer kiss necklace bone".split()
# It is less sure of some others: of "... decided to give a {object} to" behind a comma (21 of 24) and "... gave it to" (15 of 24).
OPENINGS = [
  "When {0} and {1} went to the {place}, {subject} gave a {object} to",
  "Then, {0} and {1} went to the {place}. {subject} gave a {object} to",
  "Then, {0} and {1} had a lot of fun at the {place}. {subject} gave a {object} to",
  "Then, {0} and {1} had a long argument at the {place}. Afterwards {subject} gave a {object} to",
  "Then, {0} and {1} were working at the {place}. {subject} decided to give a {object} to",
]


def ioi_prompts(count, seed=0):
  """``(prompt, indirect object, subject)``, half of them with the subject second (ABBA) and half with it first (BABA)."""
  rng = np.random.default_rng(seed)
  for number in range(count):
    one, other = rng.choice(NAMES, 2, replace=False)
    subject, indirect = (other, one) if number % 2 == 0 else (one, other)
    place, thing = rng.choice(PLACES), rng.choice(OBJECTS)
    template = OPENINGS[number // 2 % len(OPENINGS)]
    yield template.format(one, other, place=place, object=thing, subject=subject), indirect, subject


@pytest.fixture(scope="module")
def target():
  try:
    path = FETCH()
  except (OSError, subprocess.TimeoutExpired) as error:
    pytest.skip(f"SmolLM2-135M is not to be had: {error}")
  return load_target(path)


def last_logits(target, texts):
  """float32[B, V]: what is predicted to follow each text."""
  tokens = target.tokenizer.encode_batch(texts, eos=False)
  logits = np.asarray(target.run(tokens).logits)
  lengths = [1 + len(target.tokenizer.encode(text)) for text in texts]
  return logits[np.arange(len(texts)), np.array(lengths) - 1]


def test_it_is_of_its_published_size_and_named_by_its_file(target):
  c = target.config
  assert (c.n_layers, c.n_heads, c.kv_heads, c.d_model, c.d_head, c.vocab_size) == (30, 9, 3, 576, 64, 49152)
  assert target.name.startswith("SmolLM2-135M") and target.convention == "raw"
  assert 134e6 < sum(leaf.size for leaf in jax.tree.leaves(target.params)) < 135e6


def test_tokenizer_takes_apart_digits_and_keeps_words(target):
  t = target.require_tokenizer()
  assert t.strings(t.encode("The capital of France is 123")) == [
    "The",
    " capital",
    " of",
    " France",
    " is",
    " ",
    "1",
    "2",
    "3",
  ]
  for text in ("Hello  world\n\n 12345 it's ÄÖ 漢字 😀", "  leading, and\ttabs don't\r\n stop 3.14"):
    assert t.text(t.encode_batch([text], eos=True)[0]) == text
  assert all(len(t.encode(f" {name}")) == 1 for name in NAMES)


def test_paris_is_the_capital_of_france(target):
  (logits,) = last_logits(target, ["The capital of France is"])
  assert target.tokenizer.strings([np.argmax(logits)]) == [" Paris"]


def test_indirect_object_is_preferred_to_the_subject(target):
  prompts, right = list(ioi_prompts(200)), 0
  for start in range(0, len(prompts), 25):  # logits over 49,152 tokens take room
    batch = prompts[start : start + 25]
    logits = last_logits(target, [text for text, _, _ in batch])
    for row, (_, indirect, subject) in zip(logits, batch, strict=True):
      (one,), (other,) = target.tokenizer.encode(f" {indirect}"), target.tokenizer.encode(f" {subject}")
      right += row[one] > row[other]
  print(f"indirect object preferred on {right} of {len(prompts)}")
  assert right >= 0.95 * len(prompts)


def test_writing_the_residual_stream_of_one_prompt_into_another_moves_its_answer(target):
  tokens = target.tokenizer.encode_batch(["The capital of France is", "The capital of Germany is"], eos=False)
  run = target.run(tokens, capture=["x10.post", "a10.4", "x29.post"])
  assert run["a10.4"].shape == (2, 6, 576)
  swapped = target.run(tokens, edits=[Edit("x29.post", -1, run["x29.post"][::-1, -1])]).logits[:, -1]
  assert target.tokenizer.strings(np.argmax(swapped, axis=-1)) == [" Berlin", " Paris"]
