"""The published models: every activation that TransformerLens captured on them, reproduced from their checkpoints."""

import functools
import pathlib

import numpy as np
import pytest

from inversionview_jax import targets, tasks
from inversionview_jax.causal import experiments
from inversionview_jax.commands import configs

REFERENCE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "reference"
TOLERANCE = 5e-5  # of the largest absolute value of an array

pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference data in ../shared/reference")

NAMES = ("addition", "counting")
LAYERS = 2
HEADS = {"addition": 4, "counting": 1}
KINDS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_mlp_out", "attn.hook_result", "attn.hook_pattern")
HOOKS = tuple(f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS)


@functools.cache
def arrays(name):
  with np.load(REFERENCE / f"{name}_activations.npz") as file:
    return dict(file)


@functools.cache
def run(name, convention="centered"):
  """The target on the reference's tokens, with everything captured."""
  model = targets.load_target(REFERENCE / f"{name}_target", convention, tokenizer=tasks.get(name).tokenizer)
  heads = [f"a{layer}.{head}" for layer in range(LAYERS) for head in range(HEADS[name])]
  return model.run(arrays(name)["tokens"], capture=[*HOOKS, *heads])


def assert_close(got, expected):
  assert np.asarray(got).shape == expected.shape
  np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_reference_holds_the_arrays_that_are_compared_and_no_others(name):
  assert set(arrays(name)) == {"tokens", "logits", *HOOKS}


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_reference(name):
  assert_close(run(name).logits, arrays(name)["logits"])


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", NAMES)
def test_activation_is_that_of_the_reference(name, hook):
  assert_close(run(name)[hook], arrays(name)[hook])


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", NAMES)
def test_single_heads_are_the_slices_of_the_reference(name, layer):
  every = arrays(name)[f"blocks.{layer}.attn.hook_result"]
  for head in range(HEADS[name]):
    expected = every[:, :, head]
    got = np.asarray(run(name)[f"a{layer}.{head}"])
    # Against the largest value of this head alone, which is the stricter.
    np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())
    assert np.array_equal(got, run(name)[f"blocks.{layer}.attn.hook_result.{head}"])


@pytest.mark.parametrize(
  "short, hook",
  [
    ("x0.pre", "blocks.0.hook_resid_pre"),
    ("x1.mid", "blocks.1.hook_resid_mid"),
    ("x0.post", "blocks.0.hook_resid_post"),
    ("m1", "blocks.1.hook_mlp_out"),
    ("a0", "blocks.0.attn.hook_result"),
    ("p1", "blocks.1.attn.hook_pattern"),
  ],
)
@pytest.mark.parametrize("name", NAMES)
def test_short_names_mean_the_arrays_of_the_reference(name, short, hook):
  assert_close(run(name)[short], arrays(name)[hook])


@pytest.mark.parametrize("name", NAMES)
def test_raw_logits_differ_by_a_constant_per_position_and_activations_by_more(name):
  raw, expected = run(name, "raw"), arrays(name)
  logits = np.asarray(raw.logits)
  shift = logits - expected["logits"]
  constant = shift.mean(axis=-1, keepdims=True)
  np.testing.assert_allclose(shift - constant, 0, atol=TOLERANCE * np.abs(expected["logits"]).max())
  assert np.abs(constant).max() > 100 * TOLERANCE
  for hook in HOOKS:
    largest = np.abs(expected[hook]).max()
    gap = np.abs(np.asarray(raw[hook]) - expected[hook]).max()
    if hook.endswith("hook_pattern"):  # who attends to whom is the same
      assert gap <= TOLERANCE * largest
    else:
      assert gap > 100 * TOLERANCE * largest


# Causal experiments, as published (paper, appendix on activation patching).

CONFIGS = pathlib.Path(__file__).parent.parent.parent / "configs"


def experiment(task, name, pairs):
  """The forward and backward tables of an experiment of the configs, step -> mean, on the published model."""
  config = configs.load_config(f"{CONFIGS}/verify_{task}.py:{name}", [f"--config.pairs={pairs}"])
  model = targets.load_target(REFERENCE / f"{task}_target", tokenizer=task)
  prepared = experiments.prepare(model, tasks.get(task), name, config.experiments[name].to_dict(), config)
  result = experiments.run(model, prepared, batch_size=config.batch_size)
  assert result["pairs"] == pairs
  return [[row["logit_difference"]["mean"] for row in table["rows"]] for table in result["results"]]


@pytest.mark.slow
def test_patching_f1_and_s1_takes_what_was_published():
  forward, _ = experiment("addition", "A1_F1S1", 20_480)
  np.testing.assert_allclose([*forward[:3], forward[-1]], [8.5, 18.9, 24.6, 25.3], rtol=0.02)


def test_patching_f2_and_s2_takes_what_was_published():
  forward, _ = experiment("addition", "A1_F2S2", 1_536)
  assert np.abs(np.array(forward[:3]) - 0.03).max() < 0.01  # nothing, until a0.3 brings the carry
  np.testing.assert_allclose(forward[3], 13.25, rtol=0.02)


@pytest.mark.slow
def test_of_a_flipped_letter_the_second_layer_hears_by_its_head_alone():
  _, backward = experiment("counting", "flip", 4_096)
  assert backward[0] > 0.98 * backward[-1]  # a1.0 at ":"
