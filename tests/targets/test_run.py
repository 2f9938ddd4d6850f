"""Running texts: encoded without EOS, read at their last tokens, edited at labels; what a run and a target show; tracing."""

import dataclasses
import html.parser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Edit, Run, Target

TASK = tasks.get("addition")
TEXTS = ["615+861=", "42", "1+2=3"]
LENGTHS = [9, 3, 6]
EQUALS = 8

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def bare(small_target):
  return dataclasses.replace(small_target, tokenizer=None, task="")


def ids(texts):
  return TASK.tokenizer.encode_batch(texts)


# Texts.


def test_texts_are_encoded_with_bos_and_without_eos(small_target):
  run = small_target.run(TEXTS, capture=["x0.mid"])
  np.testing.assert_array_equal(run.tokens, ids(TEXTS))
  assert run.tokens.shape == (3, 9) and run.tokens.dtype == np.int32
  assert (run.tokens[:, 0] == TASK.tokenizer.bos_id).all() and not (run.tokens == TASK.tokenizer.eos_id).any()
  by_ids = small_target.run(ids(TEXTS), capture=["x0.mid"])
  np.testing.assert_array_equal(run.logits, by_ids.logits)
  np.testing.assert_array_equal(run["x0.mid"], by_ids["x0.mid"])


def test_one_text_is_a_batch_of_one(small_target):
  np.testing.assert_array_equal(small_target.run(TEXTS[0]).logits, small_target.run([TEXTS[0]]).logits)
  np.testing.assert_array_equal(small_target.run(np.array(TEXTS)).tokens, small_target.run(TEXTS).tokens)


def test_last_logits_predict_what_follows_each_text_whatever_its_length(small_target):
  run = small_target.run(TEXTS, capture=["a1.0"])
  assert list(run.lengths) == LENGTHS
  assert run.last_logits.shape == (3, 15) and run.last("a1.0").shape == (3, 16)
  for row, text in enumerate(TEXTS):
    alone = small_target.run([text], capture=["a1.0"])
    np.testing.assert_allclose(run.last_logits[row], alone.logits[0, -1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(run.last("a1.0")[row], alone["a1.0"][0, -1], rtol=0, atol=1e-5)


def test_eos_and_padding_behind_a_text_do_not_count(small_target, bare):
  with_eos = TASK.tokenizer.encode_batch(TEXTS, TASK.length, eos=True)
  run = small_target.run(with_eos)
  assert list(run.lengths) == LENGTHS
  np.testing.assert_allclose(run.last_logits, small_target.run(TEXTS).last_logits, rtol=0, atol=1e-5)
  assert list(bare.run(with_eos).lengths) == [TASK.length] * 3  # without a tokenizer nothing is known to be padding
  assert list(small_target.run([""]).lengths) == [1]


def test_texts_that_cannot_be_encoded_are_refused(small_target, bare):
  with pytest.raises(InversionViewError, match=r"'\*'"):
    small_target.run(["6*7="])
  with pytest.raises(InversionViewError, match="longer than the model's context of 14"):
    small_target.run(["1+1=2" * 5])
  with pytest.raises(InversionViewError, match="came without a tokenizer: give token ids"):
    bare.run(TEXTS)


# Positions of edits.


def test_an_edit_at_a_label_is_the_edit_at_its_index(small_target):
  value = np.ones((2, 16), np.float32)
  texts = ["615+861=", "100+22="]
  by_label = small_target.run(texts, edits=[Edit("a0.1", position="=", value=value)])
  by_index = small_target.run(texts, edits=[Edit("a0.1", np.array([8, 7]), value)])
  np.testing.assert_array_equal(by_label.logits, by_index.logits)


def test_a_negative_position_in_texts_counts_from_the_last_token_of_each(small_target):
  value = np.ones(16, np.float32)
  by_last = small_target.run(TEXTS, edits=[Edit("x0.mid", -1, value)], capture=["x0.mid"])
  assert (np.asarray(by_last.last("x0.mid")) == 1).all()
  with pytest.raises(InversionViewError, match="position -4 is outside"):
    small_target.run(TEXTS, edits=[Edit("x0.mid", -4, value)])  # the second text has three tokens
  with pytest.raises(InversionViewError, match="row 1: position 5 is padding"):
    small_target.run(TEXTS, edits=[Edit("x0.mid", 5, value)])


def test_a_label_that_a_text_does_not_have_is_refused(small_target, bare):
  with pytest.raises(InversionViewError, match="unknown position '='"):
    small_target.run(TEXTS, edits=[Edit("x0.mid", "=", np.ones(16))])
  with pytest.raises(InversionViewError, match="belongs to no task whose labels are known"):
    bare.run(ids(TEXTS), edits=[Edit("x0.mid", "=", np.ones(16))])


# Under transformations.


def logit_difference(target: Target, **edit) -> jax.Array:
  run = target.run(["615+861=", "123+456="], edits=[Edit(**edit)])
  return jnp.sum(run.last_logits[:, 3] - run.last_logits[:, 4])


@pytest.fixture(scope="module")
def captured(small_target):
  return small_target.run(["615+861=", "123+456="], capture=["a0.1", "embed"])


@pytest.mark.parametrize("site, position", [("a0.1", "="), ("embed", None)])
def test_an_edits_value_may_be_traced(small_target, captured, site, position):
  value = captured[site] if position is None else captured[site][:, EQUALS]

  def function(x):
    return logit_difference(small_target, site=site, position=position, value=x)

  expected = function(value)
  np.testing.assert_allclose(jax.jit(function)(value), expected, rtol=0, atol=1e-5)
  batched = jax.vmap(function)(jnp.stack([value, 2 * value]))
  np.testing.assert_allclose(batched, [expected, function(2 * value)], rtol=0, atol=1e-5)
  gradient, direction = jax.grad(function)(value), jax.random.normal(jax.random.key(0), value.shape)
  step = 1e-2
  finite = (function(value + step * direction) - function(value - step * direction)) / (2 * step)
  assert np.abs(gradient).max() > 1e-3
  np.testing.assert_allclose(jnp.vdot(gradient, direction), finite, rtol=2e-2, atol=2e-3)
  np.testing.assert_allclose(jax.jvp(function, (value,), (direction,))[1], finite, rtol=2e-2, atol=2e-3)


def test_a_run_leaves_jit_as_it_is(small_target, captured):
  run = jax.jit(lambda x: small_target.run(TEXTS, capture=["x1.mid"], edits=[Edit("a0.1", 1, x)]))(jnp.ones(16))
  assert isinstance(run, Run) and run.keys() == ["x1.mid"] and list(run.lengths) == LENGTHS
  plain = small_target.run(TEXTS, capture=["x1.mid"], edits=[Edit("a0.1", 1, np.ones(16))])
  np.testing.assert_allclose(run.last_logits, plain.last_logits, rtol=0, atol=1e-5)


def test_tokens_and_positions_may_be_traced(small_target):
  tokens = ids(TEXTS)
  together = jax.vmap(lambda row: small_target.run(row[None]).last_logits[0])(jnp.asarray(tokens))
  np.testing.assert_allclose(together, small_target.run(TEXTS).last_logits, rtol=0, atol=1e-5)
  value = np.ones(16, np.float32)
  swept = jax.vmap(lambda at: small_target.run(TEXTS, edits=[Edit("a0.1", at, value)]).last_logits)(jnp.array([1, -1]))
  for row, at in enumerate((1, -1)):
    one = small_target.run(TEXTS, edits=[Edit("a0.1", at, value)]).last_logits
    np.testing.assert_allclose(swept[row], one, rtol=0, atol=1e-5)


def test_parameters_have_gradients(small_target):
  def function(params):
    return dataclasses.replace(small_target, params=params).run(TEXTS).last_logits[:, 3].sum()

  gradient = jax.grad(function)(small_target.params)
  assert jax.tree.structure(gradient) == jax.tree.structure(small_target.params)
  assert np.abs(gradient["embed"]).max() > 1e-4


# What they show.


class Cells(html.parser.HTMLParser):
  """The tags and the text of a page."""

  def __init__(self, page: str):
    super().__init__()
    self.tags, self.texts = set(), []
    self.feed(page)

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}

  def handle_data(self, data):
    self.texts.append(data)


def test_a_run_shows_its_texts_and_what_it_predicts(small_target):
  run = small_target.run(TEXTS * 4, capture=["a0.1"])
  text, page = repr(run), Cells(run._repr_html_())
  best = TASK.tokenizer.strings([int(run.last_logits[0].argmax())])[0]
  for part in ("'615+861='", "a0.1 float32[12, 9, 16]", "logits float32[12, 9, 15]", repr(best), "4 more"):
    assert part in text and any(part in cell for cell in page.texts)
  assert page.tags <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td"}
  shown = []
  jax.jit(lambda x: shown.append(repr(small_target.run(TEXTS, edits=[Edit("a0.1", 1, x)]))) or x)(jnp.ones(16))
  assert "Run" in shown[0]


def test_a_target_shows_what_it_is(small_target):
  text = repr(small_target)
  for part in ("random-0", "addition", "2 layers, 2 heads, width 16", "raw", small_target.fingerprint):
    assert part in text
  page = dataclasses.replace(small_target, name="<script>alert(1)</script>")._repr_html_()
  assert "<script" not in page and "&lt;script&gt;" in page


def test_a_target_is_frozen(small_target):
  with pytest.raises(dataclasses.FrozenInstanceError):
    small_target.params = {}
