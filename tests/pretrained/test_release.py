"""Decoders of the paper's PyTorch release: the same logits, and a reader that works."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from inversionview_jax import cli, load_reader
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.decoder import Decoder, DecoderConfig, initial
from inversionview_jax.pretrained import release
from inversionview_jax.targets import save_target

GOLDEN = pathlib.Path(__file__).parent.parent / "golden_release"
KINDS = ("release", "release_cross")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture
def target(make_target, tmp_path):
  model = make_target()
  save_target(tmp_path / "T", model.params, model.config, model.tokenizer, model.name, model.task)
  return str(tmp_path / "T")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_release(kind):
  config, variables, _ = release.load(GOLDEN / kind)
  expected = np.load(GOLDEN / kind / "expected.npz")
  tokens, activation, site = (expected[name] for name in ("tokens", "activation", "site"))
  logits = np.asarray(Decoder(config).apply(variables, tokens, activation, site))
  np.testing.assert_allclose(logits, expected["logits"], atol=1e-4, rtol=1e-4)
  assert np.abs(expected["logits"]).max() > 3  # which is not close to nothing
  other = np.asarray(Decoder(config).apply(variables, tokens, -activation, site))
  assert np.abs(other - logits).max() > 0.1  # and the activation matters


@pytest.mark.parametrize("kind", KINDS)
def test_one_token_at_a_time_gives_the_same(kind):
  config, variables, _ = release.load(GOLDEN / kind)
  expected = np.load(GOLDEN / kind / "expected.npz")
  decoder, tokens = Decoder(config), expected["tokens"]
  slots = decoder.apply(variables, expected["activation"], expected["site"], method="slots")
  cache, rows = decoder.apply(variables, slots, tokens.shape[1], method="init_cache"), []
  for at in range(tokens.shape[1]):
    logits, cache = decoder.apply(variables, tokens[:, at], at, cache, method="step")
    rows.append(logits)
  np.testing.assert_allclose(np.stack(rows, axis=1), expected["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_variables_are_all_that_such_a_decoder_has(kind):
  import jax

  config, variables, _ = release.load(GOLDEN / kind)
  mine = jax.tree.map(np.shape, initial(config, jax.random.key(0)))
  assert mine == jax.tree.map(np.shape, variables)
  assert config == DecoderConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config))))


@pytest.mark.parametrize("kind", [KINDS[0], pytest.param(KINDS[1], marks=pytest.mark.slow)])
def test_import_makes_a_reader(kind, target, tmp_path, capsys):
  out = tmp_path / "W"
  argv = ["import", str(GOLDEN / kind), "--task", "addition", "--target", target, "--out", str(out)]
  assert cli.main(argv) == 0
  assert "5 sites: x0.pre, a0.0, a0.1, x0.mid, m1" in capsys.readouterr().out
  reader = load_reader(out)
  pre = reader.preimage("615+861=1476", "a0.1", "=", num_samples=16)
  assert len(pre.samples) == 16 and np.isfinite([sample.distance for sample in pre.samples]).all()
  expected = np.load(GOLDEN / kind / "expected.npz")
  written = np.delete(expected["logits"], reader.config.forbidden, axis=-1)  # all but BOS and PAD
  tokens = np.where(np.isin(expected["tokens"], reader.config.forbidden), 0, expected["tokens"])[2:3]
  z, site = (expected[name][2:3] for name in ("activation", "site"))
  logits = np.asarray(Decoder(reader.config).apply(reader.variables, expected["tokens"][2:3], z, site))
  kept = np.delete(logits, reader.config.forbidden, axis=-1)
  np.testing.assert_allclose(kept, written[2:3], atol=1e-4, rtol=1e-4)
  assert reader.log_prob(tokens, z[0], reader.config.sites[site[0]]).shape == (1,)
  assert cli.main(argv) == 2
  assert "holds a reader already" in capsys.readouterr().err


def test_the_variant_without_cross_attention_is_unchanged_by_it():
  config, _, _ = release.load(GOLDEN / "release")
  assert config.transformer.cross_width == 0
  before = {"sites": ["x0.pre"], "d_activation": 4, "forbidden": []}
  shape = {"vocab_size": 5, "n_ctx": 3, "n_layers": 1, "n_heads": 1, "d_model": 4, "d_mlp": 8}
  old = DecoderConfig.from_dict(before | {"transformer": shape})  # as in files of earlier versions
  assert (old.site_width, old.encoder_inner, old.transformer.cross_width) == (0, 0, 0)


def edited(tmp_path, kind="release", **changes):
  folder = tmp_path / "edited"
  shutil.copytree(GOLDEN / kind, folder)
  attributes = json.loads((folder / "config.json").read_text())
  for name, value in changes.items():
    attributes.pop(name, None)
    if value is not None:
      attributes[name] = value
  (folder / "config.json").write_text(json.dumps(attributes))
  return folder


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"act_dim": None}, "attribute act_dim is missing"),
    ({"act_dim": 21}, "leave no room"),
    ({"probed_acts": ["blocks.0.nowhere"]}, "unknown site"),
    ({"probed_acts": ["a0.0", "blocks.0.attn.hook_result.0"]}, "names a site twice"),
    ({"act_proc_num_mlp": 3}, "tensor act_proc_layer_MLPs.2.0.weight is missing"),
    ({"cross_attn": True}, "act_proc_layer_attn.c_attn_q.weight is missing"),
    ({"act_proc_mid_dim": 13}, "act_proc_layer_MLPs.0.1.weight has shape"),
    ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
    ({"new_thing": 1}, "attribute new_thing = 1 is not handled"),
  ],
)
def test_what_is_not_handled_is_refused_by_name(changes, message, tmp_path):
  with pytest.raises(InversionViewError, match=message.replace(".", r"\.")):
    release.load(edited(tmp_path, **changes))


@pytest.mark.parametrize(
  ("changes", "task", "message"),
  [
    ({"eos_token_id": 12}, "addition", "eos_token_id 12, the task addition 13"),
    ({}, "counting", "writes 15 tokens, the task counting has"),
  ],
)
def test_a_decoder_of_other_texts_is_refused(changes, task, message, tmp_path, capsys):
  folder = edited(tmp_path, **changes)
  assert cli.main(["import", str(folder), "--task", task, "--out", str(tmp_path / "W")]) == 2
  assert message in capsys.readouterr().err and not (tmp_path / "W").exists()


def test_a_decoder_of_another_model_is_refused(tmp_path, capsys):
  assert cli.main(["import", str(GOLDEN / "release"), "--task", "addition", "--out", str(tmp_path / "W")]) == 2
  err = capsys.readouterr().err
  assert "reads activations of width 16" in err and err.count("\n") == 1 and not (tmp_path / "W").exists()


def test_pickled_weights_are_not_opened(tmp_path):
  folder = edited(tmp_path)
  (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
  with pytest.raises(InversionViewError, match="never opened"):
    release.load(folder)
