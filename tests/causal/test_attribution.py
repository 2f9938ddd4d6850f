"""Direct logit attribution: the parts sum to the logits, each is its write through the frozen norm; what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizer_cases
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.causal import addresses, attribution
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer

TASK = tasks.get("addition")
CLEAN = ["615+261=876", "302+140=442", "999+123=1122", "100+100=200", "577+422=999"]
N = len(CLEAN)
EQUALS = 8
HEADS = ["a0.0", "a0.1", "a1.0", "a1.1"]

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def encoded(texts):
  return TASK.tokenizer.encode_batch(texts, TASK.length, eos=True)


def assert_close(one, another, **tolerance):
  np.testing.assert_allclose(one, another, rtol=0, **({"atol": 2e-5} | tolerance))


@pytest.mark.parametrize("convention", ["centered", "raw"])
def test_contributions_sum_to_the_logits(make_target, convention):
  target = make_target(3, convention)
  logits = np.asarray(target.run(encoded(CLEAN)).logits)
  for at, column in (("=", logits[:, 8]), (-1, logits[np.arange(N), [11, 11, 12, 11, 11]])):
    effects = iv.attribute(target, CLEAN, at)
    assert_close(effects.logits, column, atol=1e-4)
    assert_close(effects.values.sum(axis=1), column, atol=1e-4)
  assert set(effects.components) == {"embed", "pos_embed", *HEADS, "b_O.0", "b_O.1", "m0", "m1", "bias"}
  tokens = iv.attribute(target, CLEAN, "=", tokens=["0", "7"])
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
    ({"tokens": ["ten"]}, "'ten' is not one token"),
    ({"tokens": [99]}, "token id 99"),
    ({"position": 20}, "position 20 is out of range"),
  ):
    with pytest.raises(InversionViewError, match=message):
      attribution.attribute(small_target, CLEAN, **wrong)


def test_the_parts_of_a_mistral_sum_to_its_logits():
  target = iv.load_target("tests/golden/mistral")
  tokens = np.random.default_rng(0).integers(1, target.config.vocab_size, (3, 6))
  parts = attribution.attribute(target, tokens)
  assert set(parts.components) == {
    "embed",
    "m0",
    "m1",
    *(f"a{l}.{h}" for l in range(2) for h in range(target.config.n_heads)),
  }
  np.testing.assert_allclose(parts.values.sum(axis=1), target.run(tokens).logits[:, -1], rtol=0, atol=1e-4)


def test_a_model_whose_logits_are_no_sum_is_refused():
  target = iv.load_target("tests/golden/gemma2")
  with pytest.raises(InversionViewError, match="its logits are not the sum of what its parts write"):
    attribution.attribute(target, np.array([[1, 2, 3]]))


def test_an_attribution_shows_its_largest_parts(small_target):
  parts = iv.attribute(small_target, CLEAN, "=", tokens=["3", "7"], components=["a0.0", "m0", "embed"])
  lines = repr(parts).splitlines()
  assert parts.token_names == ("3", "7") and "'3'" in lines[1] and "'7'" in lines[1]
  assert [line.split()[0] for line in lines[2:]] == ["a0.0", "m0", "embed", "logit"]
  assert f"{parts['m0'][:, 0].mean():.3f} ±" in lines[3]
  assert parts._repr_html_().count("<tr>") == 5
  whole = iv.attribute(small_target, CLEAN, "=")
  assert "most probable token" in repr(whole) and "logit" in repr(whole)
  each = iv.attribute(small_target, CLEAN, "=", tokens=[[3, 7]] * 4 + [[7, 3]])
  assert each.token_names == () and "token 0" in repr(each)


def test_ranks_show_contributions_and_ranks(small_target):
  parts = attribution.ranks(small_target, CLEAN, "=", ["3", "7"])
  assert "a0.0" in repr(parts) and "rank" in repr(parts) and "<table>" in parts._repr_html_()


# Tokens.


def test_strings_and_ids_may_be_mixed(small_target):
  expected = iv.attribute(small_target, CLEAN, "=", tokens=[3, 7])
  for tokens in (["3", 7], ("3", np.int64(7)), [3, "7"], np.array(["3", "7"]), np.array(["3", 7], object)):
    got = iv.attribute(small_target, CLEAN, "=", tokens=tokens)
    np.testing.assert_array_equal(got.tokens, expected.tokens)
  each = iv.attribute(small_target, CLEAN, "=", tokens=[["3", 7]] * N)
  np.testing.assert_array_equal(each.tokens, expected.tokens)
  # An id is never the string of its digits: the token of the digit 5 has another id in counting.
  counting = iv.load_target("counting")
  five = counting.tokenizer.encode("5")[0]
  assert five != 5
  assert iv.attribute(counting, ["aab|a:"], tokens=["5", 5]).tokens.tolist() == [[five, 5]]
  answers = (["3", 7, "3", 7, "3"], "8")
  mixed = iv.patch(small_target, CLEAN, CLEAN[::-1], "m0", "=", answers=answers, read_position="=")
  same = iv.patch(small_target, CLEAN, CLEAN[::-1], "m0", "=", answers=([3, 7, 3, 7, 3], 8), read_position="=")
  np.testing.assert_array_equal(mixed.values, same.values)


@pytest.mark.parametrize(
  "tokens", [[["3", 7], ["3"]], [3.0], [None], [True], {"3": 1}, "3", [], [["3"], 7], np.array([["a", "b"], ["c", 5]], object)[0]]
)  # fmt: skip
def test_what_is_neither_is_refused_in_one_line(small_target, tokens):
  with pytest.raises(InversionViewError) as caught:
    attribution.attribute(small_target, CLEAN, "=", tokens=tokens)
  assert "\n" not in str(caught.value)


def test_a_string_of_several_tokens_is_ambiguous(tmp_path):
  target = iv.load_target(gpt2_folder(tmp_path / "gpt2", texts=["the cat sat, née 漢"] * 9))
  with pytest.raises(
    InversionViewError, match=r"'�' is the text of \d+ tokens \(ids \d+, \d+, \d+, \d+, ...\): give an id"
  ):
    attribution.attribute(target, ["the cat"], tokens=["\ufffd"])
  spelled = attribution.attribute(target, ["the cat"], tokens=["<|endoftext|>", "a"])
  assert spelled.tokens.tolist() == [[0, *target.tokenizer.encode("a")]]


def test_the_token_of_a_character_comes_before_that_of_its_byte():
  tokenizer = HuggingFaceTokenizer(json.dumps(tokenizer_cases.pieces_json()), 1, 2, 2)
  vocabulary = tokenizer_cases.pieces_json()["model"]["vocab"]
  target = SimpleNamespace(
    tokenizer=tokenizer,
    require_tokenizer=lambda: tokenizer,
    config=SimpleNamespace(vocab_size=500, outputs=500, vocab_out=0),
    outputs=(),
  )
  ids = addresses.token_ids(target, ["a", " the", "\n"], 1)
  assert ids.tolist() == [[vocabulary["a"], vocabulary["▁the"], vocabulary["<0x0A>"]]]
