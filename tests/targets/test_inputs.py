"""Where texts end, what is padding, and attention masks: in texts and token ids, by position and not by the value of an id."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax.causal import attribution, head_importance
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import Edit, load_target
from inversionview_jax.targets.inputs import resolve_inputs
from inversionview_jax.targets.positions import resolve_positions

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
GPT2 = "<|endoftext|>"
ONE = parallel.make_mesh(devices=jax.devices()[:1])

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=["the cat sat on the mat", "Mary and John"] * 20)


@pytest.fixture(scope="module")
def target(folder):
  """One id for BOS, EOS and PAD."""
  made = load_target(folder)
  assert made.tokenizer.bos_id == made.tokenizer.eos_id == made.tokenizer.pad_id == 0
  return made


def assert_close(one, other, atol=1e-5):
  np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=atol)


def refusal(function, *args, **kwargs):
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# Where a text ends.


def test_the_empty_text_ends_at_bos(target):
  alone = target.run(np.array([[0]])).logits[0, 0]
  texts = ["", "the cat sat on"]
  run = target.run(texts)
  assert run.lengths[0] == target.run([""]).lengths[0] == 1
  assert_close(run.last_logits[0], alone)
  for each in (texts, [""]):
    assert_close(attribution.attribute(target, each).logits[0], alone)
  # As token ids too, padded with the id that BOS has.
  rows = target.tokenizer.encode_batch(texts)
  assert (rows[0] == 0).all() and target.run(rows).lengths.tolist() == [1, rows.shape[1]]
  by_ids, by_text = (iv.ablate(target, each, "m0", 0, "zero", mesh=ONE).values[0, 0] for each in (rows, [""]))
  assert by_text > 1e-3
  assert_close(by_ids, by_text)


def test_a_spelled_out_special_token_at_the_end_of_a_text_is_its_last_token(target):
  text, other = "the cat" + GPT2, "the mat" + GPT2
  ids = np.array([[0, *target.tokenizer.encode("the cat"), 0]])
  run = target.run([text], capture=["x1.post"], edits=[Edit("a0.1", -1, np.ones(16))])
  expected = target.run(ids, capture=["x1.post"], edits=[Edit("a0.1", ids.shape[1] - 1, np.ones(16))])
  assert run.lengths[0] == ids.shape[1]
  assert_close(run.last("x1.post")[0], expected["x1.post"][0, -1])
  assert_close(run.last_logits[0], expected.logits[0, -1])
  assert_close(attribution.attribute(target, [text, "the"]).logits[0], target.run(ids).logits[0, -1])
  # Every function that takes a position asks this one.
  assert resolve_positions(target, resolve_inputs(target, [text, "the", ""]), -1).tolist() == [ids.shape[1] - 1, 1, 0]
  patched = iv.patch(target, [text], [other], "x0.pre", -1, "kl", mesh=ONE).values
  assert_close(patched, 0)  # the same token at the same position; "cat" and "mat" before it differ


def test_one_bos_where_a_text_begins_with_it(target):
  spelled, plain = target.run([GPT2 + "the cat"]), target.run(["the cat"])
  np.testing.assert_array_equal(spelled.tokens, plain.tokens)
  assert_close(attribution.attribute(target, [GPT2 + "the cat"]).logits, plain.last_logits)
  twice = target.run([GPT2 * 2 + "the cat"])
  assert twice.tokens[0, :2].tolist() == [0, 0] and twice.lengths[0] == plain.lengths[0] + 1


# What is padding.


def test_edits_of_the_padding_behind_a_text_are_refused(target):
  texts, value = ["the cat sat on", "the cat"], np.ones(16)
  ends = target.run(texts).lengths
  assert "row 1" in refusal(target.run, texts, edits=[Edit("x0.mid", int(ends[1]), value)])
  target.run(texts, edits=[Edit("x0.mid", int(ends[1]) - 1, value)])
  # In token ids the first of them may be EOS, which can be edited; the others cannot.
  rows = target.tokenizer.encode_batch(texts)
  target.run(rows, edits=[Edit("x0.mid", int(ends[1]), value)])
  assert "is padding" in refusal(target.run, rows, edits=[Edit("x0.mid", int(ends[1]) + 1, value)])


def test_lists_of_ids_may_differ_in_length(target):
  ids = [[0, 5, 7, 9, 11], [0, 5], [0, 8]]
  run = target.run(ids, capture=["m1"], edits=[Edit("x0.mid", -1, np.ones(16))])
  assert run.lengths.tolist() == [5, 2, 2]
  for row, one in enumerate(ids):
    alone = target.run(np.array([one]), capture=["m1"], edits=[Edit("x0.mid", -1, np.ones(16))])
    assert_close(run.last("m1")[row], alone["m1"][0, -1])
  arrays = [np.array(row) for row in ids]
  assert_close(target.run(arrays).last_logits, target.run(tuple(map(tuple, ids))).last_logits)
  assert "is padding" in refusal(target.run, ids, edits=[Edit("m0", 3, np.ones(16))])
  assert_close(attribution.attribute(target, ids).logits, target.run(ids).last_logits)
  # Nothing in them is padding, so that what the ids are does not matter.
  assert target.run([[0, 0, 5, 0], [7, 5]]).lengths.tolist() == [4, 2]
  for wrong in (
    [[0, 5], []],
    [[0, 5.5, 3], [0]],
    [[0, 5, 10**6], [0]],
    [[[0], [5]], [[0]]],
    [[0, 5], 3],
    [["a"], [0, 1]],
  ):
    refusal(target.run, wrong)


@pytest.mark.parametrize(
  "position",
  [[[1, 2]], [[1], [2, 3]], slice(1, 3), [1, 2, 3], 1.5, True, {1}, "=", [True, False], np.array([[1], [2]])],
  ids=str,
)
def test_positions_that_are_no_index_per_input_are_refused_in_one_line(target, position):
  texts = ["the cat", "the mat"]
  several = isinstance(position, slice | np.ndarray) or position == [[1, 2]]  # an edit takes them
  if not several:
    assert "position" in refusal(target.run, texts, edits=[Edit("x0.mid", position, np.ones(16))])
  assert "position" in refusal(attribution.attribute, target, texts, position)
  assert "position" in refusal(head_importance.head_shares, target, texts, position)
  assert "position" in refusal(iv.patch, target, texts, texts, ["x0.mid"], [position])
  if not isinstance(position, list):
    assert "position" in refusal(iv.ablate, target, texts, "x0.mid", position, "zero")


def test_positions_may_be_a_list_with_one_for_each_input(target):
  texts = ["the cat sat", "the mat sat"]
  for at in (np.array([1, 2]), jnp.array([1, 2])):  # an edit takes a list as the positions of every row
    edited = target.run(texts, edits=[Edit("x0.mid", at, np.ones(16))], capture=["x0.mid"])
    assert (np.asarray(edited["x0.mid"])[[0, 1], [1, 2]] == 1).all()
    assert_close(attribution.attribute(target, texts, at).logits, target.run(texts).logits[np.arange(2), [1, 2]])
  patched = iv.patch(target, texts, texts[::-1], ["a0.0", "a0.1"], [[1, 2], [1, 2]], "kl", order="each", mesh=ONE)
  assert patched.steps == ("a0.0@...", "a0.1@...")


# Values.


def test_values_may_be_of_any_library_and_precision(target):
  value = np.linspace(-1, 1, 16, dtype=np.float32)
  expected = target.run(["the cat"], edits=[Edit("a0.1", 1, value)]).logits
  values = [value.tolist(), jnp.asarray(value), value.astype(np.float64)]
  rounded = value.astype(ml_dtypes.bfloat16)
  low = target.run(["the cat"], edits=[Edit("a0.1", 1, np.float32(rounded))]).logits
  lows = [rounded, jnp.asarray(rounded)]
  if importlib.util.find_spec("torch"):
    import torch

    tensor = torch.tensor(value)
    values += [tensor, tensor.double(), torch.nn.Parameter(tensor)]
    lows.append(tensor.bfloat16())
  for one in values:
    assert_close(target.run(["the cat"], edits=[Edit("a0.1", 1, one)]).logits, expected)
  for one in lows:
    assert_close(target.run(["the cat"], edits=[Edit("a0.1", 1, one)]).logits, low)
  assert "needs a value" in refusal(target.run, ["the cat"], edits=[Edit("a0.1", 1, None)])
  for wrong in ("ones", [[1.0], [1.0, 2.0]], value + 1j, {"value": 1}):
    assert "array of numbers" in refusal(target.run, ["the cat"], edits=[Edit("a0.1", 1, wrong)])


def test_tensors_of_torch_are_inputs_positions_and_tokens(target):
  torch = pytest.importorskip("torch")
  ids = torch.tensor([[0, 5, 7], [0, 8, 6]])
  run = target.run(ids, edits=[Edit("m0", torch.tensor([1, 2]), torch.ones(2, 16))])
  expected = target.run(ids.numpy(), edits=[Edit("m0", np.array([1, 2]), np.ones((2, 16)))])
  assert_close(run.logits, expected.logits)
  assert_close(target.run(list(ids)).logits, target.run(ids.numpy()).logits)
  assert_close(target.run([ids[0], ids[1, :2]]).last_logits, target.run([[0, 5, 7], [0, 8]]).last_logits)
  parts = attribution.attribute(target, ids, torch.tensor(1), tokens=torch.tensor([3, 4]))
  assert_close(parts.logits, attribution.attribute(target, ids.numpy(), 1, tokens=[3, 4]).logits)
  mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
  assert_close(target.run(ids, mask=mask).last_logits[1], target.run(np.array([[8, 6]])).last_logits[0])


# Padding in front, and attention masks.

MASKED = (
  "default",
  "llama3",
  "mistral",
  "smollm3",
  "gemma2",
)  # learned positions, rotary ones, windows, layers without positions


@pytest.mark.parametrize("name", MASKED)
def test_padding_in_front_with_a_mask_gives_the_logits_of_transformers(name):
  """Of the committed golden rows, which causality lets us cut: a row behind padding must give the same logits."""
  golden = np.load(GOLDEN / name / "expected.npz")
  model = load_target(GOLDEN / name, convention="raw")
  length = model.config.n_ctx
  lengths = (length, length - 3, 4)
  tokens, mask = np.zeros((3, length), np.int64), np.zeros((3, length), np.int64)
  for row, n in enumerate(lengths):
    tokens[row, length - n :], mask[row, length - n :] = golden["tokens"][row, :n], 1
  run = model.run(tokens, capture=["x0.mid", "p0"], mask=mask)
  for row, n in enumerate(lengths):
    assert_close(run.logits[row, length - n :], golden["logits"][row, :n], atol=1e-4)
    assert_close(run["x0.mid"][row, length - n :], golden["mid"][0, row, :n], atol=1e-4)
    assert (np.asarray(run["p0"])[row, :, length - n :, : length - n] == 0).all()
    assert_close(run.last_logits[row], golden["logits"][row, n - 1], atol=1e-4)
  assert np.isfinite(run.logits).all()


@pytest.mark.parametrize("name", MASKED)
def test_masks_give_the_logits_that_transformers_computes_with_them(name):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  golden = np.load(GOLDEN / name / "expected.npz")
  tokens, mask = golden["tokens"][:, :8], np.ones((3, 8), np.int64)
  mask[0, :3] = mask[1, :1] = mask[1, 6:] = mask[2, 3:5] = 0  # in front, on both sides, inside
  theirs = transformers.AutoModelForCausalLM.from_pretrained(GOLDEN / name, attn_implementation="eager").eval()
  at = torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask), position_ids=at).logits.numpy()
  got = np.asarray(load_target(GOLDEN / name, convention="raw").run(tokens, mask=mask).logits)
  assert_close(got[mask == 1], expected[mask == 1], atol=1e-4)


def test_a_mask_of_padding_behind_is_the_run_without_it(target):
  rows = target.tokenizer.encode_batch(["the cat sat on", "the"])
  mask = np.arange(rows.shape[1]) < target.run(["the cat sat on", "the"]).lengths[:, None]
  for given in (mask, mask.astype(int), mask.astype(np.float32), jnp.asarray(mask), mask.tolist()):
    run = target.run(rows, mask=given)
    np.testing.assert_array_equal(run.logits, target.run(rows).logits)
    assert run.lengths.tolist() == mask.sum(axis=1).tolist()


def test_edits_with_a_mask_count_from_the_last_token_and_refuse_padding(target):
  tokens, mask = np.array([[0, 0, 0, 5, 7], [0, 5, 7, 9, 0]]), np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
  run = target.run(tokens, capture=["x0.mid"], edits=[Edit("x0.mid", -1, np.ones(16))], mask=mask)
  assert (np.asarray(run.last("x0.mid")) == 1).all() and run.lengths.tolist() == [5, 4]
  alone = target.run(np.array([[0, 5, 7]]), edits=[Edit("x0.mid", -1, np.ones(16))])
  assert_close(run.last_logits[0], alone.last_logits[0])
  for position, row in ((0, 0), (-1 - 3, 0), (4, 1)):
    message = refusal(target.run, tokens, edits=[Edit("m0", position, np.ones(16))], mask=mask)
    assert f"row {row}" in message and "is padding" in message


def test_masks_may_be_traced(target):
  tokens, mask = np.array([[0, 0, 0, 5, 7], [0, 5, 7, 9, 11]]), np.array([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
  expected = target.run(tokens, mask=mask).last_logits
  together = jax.jit(jax.vmap(lambda t, m: target.run(t[None], mask=m[None]).last_logits[0]))
  assert_close(together(tokens, mask), expected)


def test_padding_in_front_without_a_mask_is_refused(target, small_target):
  t = small_target.tokenizer
  (row,) = t.encode_batch(["1+2="])
  assert "row 1 begins with padding" in refusal(small_target.run, np.array([[*row, t.pad_id], [t.pad_id, *row]]))
  ids = target.tokenizer.encode("the cat sat")
  for rows in (
    [[0, 0, *ids]],  # BOS and PAD, or two PADs
    [[0, *ids], [ids[0], *ids]],  # without BOS, and one PAD
    [[0, 0, 0, ids[0]], [0, *ids[:3]]],
  ):
    for call in (target.run, lambda r: iv.attribute(target, r), lambda r: iv.patch(target, r, r, "m0", -1, "kl")):
      message = refusal(call, np.array(rows))
      assert "begins with padding" in message and "mask=" in message
    assert target.run(np.array(rows), mask=np.ones_like(rows)).logits.shape[1] == len(rows[0])
  for rows in ([[0, *ids]], [[0, *ids], [0, *ids]], [ids], [[0, 0, 0]], [[0, *ids], [0, 0, 0, 0]][: len(ids) - 2]):
    if len({len(row) for row in rows}) == 1:
      target.run(np.array(rows))


@pytest.mark.parametrize(
  "mask, message",
  [
    ([[1, 1]], r"mask has the shape \[1, 2\]"),
    ([[1, 1, 2], [1, 1, 1]], "mask must hold 1"),
    ([["a", "b", "c"]] * 2, "mask must hold 1"),
    ([[1, 1, 1], [0, 0, 0]], "row 1 of the mask has no token"),
    ([[1, float("nan"), 1], [1, 1, 1]], "mask must hold 1"),
  ],
)
def test_masks_that_are_none_are_refused(target, mask, message):
  with pytest.raises(InversionViewError, match=message):
    target.run(np.array([[0, 5, 7], [0, 5, 7]]), mask=mask)


def test_masks_belong_to_ids_of_one_length(target):
  assert "belongs to token ids" in refusal(target.run, ["the cat"], mask=np.ones((1, 3)))
  assert "belongs to token ids of one length" in refusal(target.run, [[0, 5], [0]], mask=np.ones((2, 2)))


def test_a_padded_vocabulary_of_the_models_own_is_accepted(tmp_path):
  """Embeddings of 64 rows more than tokens (a fifth of them): the ids and logits of the tokens stay."""
  import safetensors.numpy

  folder = gpt2_folder(tmp_path / "gpt2", texts=["the cat sat on the mat"] * 20)
  before = load_target(folder, convention="raw")
  tensors = safetensors.numpy.load_file(folder / "model.safetensors")
  rows = len(tensors["wte.weight"])
  tensors["wte.weight"] = np.concatenate([tensors["wte.weight"], np.ones((64, 16), np.float32)])
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  config = json.loads((folder / "config.json").read_text())
  (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows + 64}))
  padded = load_target(folder, convention="raw")
  assert padded.config.vocab_size == rows + 64 and padded.tokenizer.vocab_size == rows
  assert_close(padded.run(["the cat"]).logits[..., :rows], before.run(["the cat"]).logits)
  assert len(resolve_inputs(padded, ["the cat"])) == 1
