"""RASP programs compiled by Tracr: outputs and residual streams are Tracr's, on every input; and their tasks."""

import pathlib
import runpy

import numpy as np
import pytest

pytest.importorskip("tracr", reason="pip install '.[tracr]'")

import detailed_balance

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import compile_rasp
from inversionview_jax.tasks.programs import LIBRARY, Program, program_named

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "tracr.npz"
PARITY = runpy.run_path(str(pathlib.Path(__file__).parent.parent / "parity" / "make_tracr.py"))
CASES = PARITY["CASES"]
QUICK = ("length", "frac_prevs,causal", "pair_balance", "sort_unique", "shift_by,causal")
pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@pytest.fixture(scope="module")
def fractions():
  """Share of a's so far."""
  return iv.load_target("tracr:frac_prevs")


def every(target):
  task = target.resolve_task()
  return task, task.tokens(np.arange(task.num_inputs))


@pytest.mark.parametrize(
  "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_outputs_are_those_of_tracr_and_of_the_program_on_every_input(case, golden):
  target = iv.load_target(f"tracr:{case}")
  task, tokens = every(target)
  logits = np.asarray(target.run(tokens).logits)
  symbols = (np.arange(tokens.shape[1]) > 0) & (tokens != target.tokenizer.eos_id) & (tokens != target.tokenizer.pad_id)
  of_tracr = golden[case]
  if target.program.values:
    np.testing.assert_array_equal(logits.argmax(axis=-1)[symbols], of_tracr)
  else:
    np.testing.assert_allclose(logits[..., 0][symbols], of_tracr, atol=1e-5)
  decoded = target.program.decode(logits)
  for row, out in zip(tokens[::7], decoded[::7], strict=True):
    text = task.symbols(row)
    for value, right in zip(out[1 : 1 + len(text)], task.program.evaluate(text)[-1], strict=True):
      # Where nothing is selected RASP has None, and the compiled model writes nothing at all.
      assert right is None or value == right or np.isclose(float(value), float(right), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_residual_streams_are_those_of_tracrs_own_model(case):
  target = iv.load_target(f"tracr:{case}")
  config, (task, tokens) = target.config, every(target)
  streams = [f"x{layer}.{kind}" for layer in range(config.n_layers) for kind in ("mid", "post")]
  for length, output, residuals in PARITY["run_by_tracr"](task):
    rows = tokens[(tokens == target.tokenizer.eos_id).argmax(axis=1) == length + 1]
    run = target.run(rows, streams)
    logits = np.asarray(run.logits)[:, : length + 1]
    np.testing.assert_allclose(logits[:, 1:] if config.vocab_out > 1 else logits[:, 1:, 0], output[:, 1:], atol=1e-5)
    for name, expected in zip(streams, residuals, strict=True):
      np.testing.assert_allclose(np.asarray(run[name])[:, : length + 1], expected, atol=1e-5, err_msg=name)


def test_the_weights_are_the_same_in_every_process(fractions):
  from tracr.rasp import rasp

  for _ in range(5):  # expressions that are made before are counted by Tracr
    assert rasp.Map(lambda x: x, rasp.tokens).label
  again, task = compile_rasp(program_named("tracr:frac_prevs").expression, {"c", "a", "b"}, 5, name="tracr:frac_prevs")
  assert again.fingerprint == fractions.fingerprint == "0795fae06d6d1f1c"
  assert task.tokenizer.describe() == fractions.tokenizer.describe()


def test_what_residual_dimensions_mean_and_who_writes_them(fractions):
  about = fractions.program
  assert len(about.residual_labels) == fractions.config.d_model
  assert about.writes["m0"] == ("map_3",) and about.writes["a1.0"] == ("frac_prevs_1",) and about.writes["a0.0"] == ()
  assert about.reads["a1.0 v"] == ("map_3",) and about.reads["m0"] == ("tokens:a",)
  run = fractions.run(["abca"], ["m0", "a1.0", "x0.post"])
  column = about.residual_labels.index("map_3")
  np.testing.assert_allclose(np.asarray(run["x0.post"])[0, 1:, column], [1, 0, 0, 1], atol=1e-6)
  for site in ("m0", "a1.0"):
    written = np.abs(np.asarray(run[site])[0]).max(axis=0) > 1e-6
    assert {label for label, used in zip(about.residual_labels, written, strict=True) if used} <= set(
      about.writes[site]
    )


def test_features_are_the_values_of_every_expression_at_every_symbol(fractions):
  task = fractions.resolve_task()
  tokens = task.tokenizer.encode_batch(["abca", "b"], task.length, eos=True)
  features = task.features(tokens)
  assert [features[f"map_3_at_{i}"].tolist() for i in range(5)] == [[1, 0], [0, -1], [0, -1], [1, -1], [-1, -1]]
  assert features["tokens_at_1"].tolist() == [1, -1]
  legend = dict(part.split(": ") for part in task.feature_names["frac_prevs_1_at_2"].split("; ")[1].split(", "))
  assert legend[str(features["frac_prevs_1_at_2"][0])] == "1/3"
  assert all(name.isidentifier() for name in features) and set(features) == set(task.feature_names)
  assert (np.array(list(task.features(tokens[:, 2:]).values())) == -1).all()  # no text of the task
  assert task.labels(tokens[0].tolist()) == ["", "i0", "i1", "i2", "i3", "", ""]


@pytest.mark.parametrize("name", ["tracr:hist,vocab=abc,max_seq_len=3", "tracr:sort_unique,vocab=123,max_seq_len=3"])
def test_inputs_by_index_their_prior_and_moves(name):
  task = tasks.get(name)
  index = np.arange(task.num_inputs)
  tokens = task.tokens(index)
  np.testing.assert_array_equal(task.index(tokens), index)
  assert len(np.unique(tokens, axis=0)) == task.num_inputs == (39 if "hist" in name else 15)
  np.testing.assert_allclose(task.log_prior(tokens), -np.log(task.num_inputs), rtol=1e-6)
  assert np.isneginf(task.log_prior(np.roll(tokens, 1, axis=1))).all()
  for move in task.moves():
    if move.name in ("another symbol", "two exchanged"):
      detailed_balance.assert_balanced(move, detailed_balance.grid(6, 6), tokens, task.log_prior)
    if move.name == "a symbol more or less":
      detailed_balance.assert_balanced(move, detailed_balance.grid(2, 12, 3), tokens, task.log_prior)


def test_texts_of_other_lengths_do_not_change_what_attention_in_both_directions_sees():
  target = iv.load_target("tracr:hist,vocab=abc,max_seq_len=4")
  sites = ["x0.post", "a0.0"]
  together = target.run(["aab", "c", "abca"], sites)
  padded = target.run(target.tokenizer.encode_batch(["aab"], 6, eos=True), sites)
  alone = target.run(["aab"], sites)
  for site in sites:
    for other in (together, padded):
      np.testing.assert_array_equal(np.asarray(other[site])[0, :4], np.asarray(alone[site])[0])


@pytest.mark.parametrize(
  "name, message",
  [
    ("tracr:hists", "did you mean|known|hist"),
    ("tracr:hist,size=3", "setting 'size=3'"),
    ("tracr:hist,max_seq_len=0", "max_seq_len"),
    ("tracr:hist,vocab=aab", "different symbols"),
    ("tracr:no_such_module:PROGRAM", "no module no_such_module"),
    ("tracr:hist,max_seq_len=40", "too many"),
  ],
)
def test_programs_that_cannot_be_compiled_are_refused_in_one_line(name, message):
  with pytest.raises(InversionViewError, match=message) as caught:
    iv.load_target(name)
  assert "\n" not in str(caught.value)


def test_what_tracr_cannot_compile_and_texts_that_are_too_long_are_refused(fractions):
  from tracr.rasp import rasp

  with pytest.raises(InversionViewError, match="cannot be compiled"):
    compile_rasp(rasp.numerical(rasp.tokens), "ab", 3)
  with pytest.raises(InversionViewError, match="must be a RASP expression"):
    Program("hist", tuple("ab"), 3)
  with pytest.raises(InversionViewError, match="has 6 symbols"):
    fractions.run(["aaaaaa"])
  too_long = np.full((1, 7), fractions.tokenizer.encode("a")[0])
  with pytest.raises(InversionViewError, match="more than 5 tokens"):
    fractions.run(too_long)
  with pytest.raises(InversionViewError, match="centered"):
    iv.load_target("tracr:hist", convention="centered")


def test_symbols_of_several_characters_are_separated_by_spaces():
  target = iv.load_target("tracr:hist,vocab=one|two|12,max_seq_len=3")
  run = target.run(["one 12 one"])
  assert target.program.decode(run.logits)[0, 1:].tolist() == [2, 1, 2]
  assert target.tokenizer.text(run.tokens[0]) == "one 12 one"
  with pytest.raises(InversionViewError, match="'three'"):
    target.run(["three"])


def test_every_program_of_the_library_compiles():
  assert set(LIBRARY) >= {case.split(",")[0] for case in CASES}
