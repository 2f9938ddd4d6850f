"""Decoders that start from a language model, or from a finished decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import TRAIN_IOI, gpt2_folder

from inversionview_jax import reading as reader
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.targets import load_target
from inversionview_jax.training import decoder_start

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def refused(capsys, *argv) -> str:
  capsys.readouterr()
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Traceback" not in error
  return error


def test_a_decoder_starts_as_the_language_model(ioi_folder, ioi_target, ioi_task):
  start = decoder_start.load(str(ioi_folder), ioi_task, ioi_target, {})
  config = DecoderConfig(start.transformer, ("x0.pre", "a1.0"), ioi_target.config.d_model)
  key, tokens = jax.random.key(0), ioi_task.tokens(np.arange(4))
  blank = tokens[:1], jnp.zeros((1, ioi_target.config.d_model)), jnp.zeros(1, jnp.int32)
  fresh = jax.jit(Decoder(config).init)(key, *blank)
  params = {**fresh["params"], **start.parameters(None)}
  assert set(params) == {"encoder", "transformer"}
  # Without slots it says what the model says; under "raw", as the decoder holds the weights.
  logits = jax.jit(lambda params: Decoder(config).bind({"params": params}).transformer(tokens).logits)(params)
  raw = load_target(ioi_folder, "raw").run(ioi_task.tokenizer.to_base(tokens)).logits
  real = tokens < ioi_task.tokenizer.eos_id
  np.testing.assert_allclose(
    np.asarray(logits)[..., :-2][real], np.asarray(raw)[..., ioi_task.tokenizer.base_ids][real], rtol=0, atol=2e-5
  )
  eos = np.asarray(raw)[..., ioi_task.tokenizer.base.eos_id]
  np.testing.assert_allclose(np.asarray(logits)[..., -2][real], eos[real], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_decoder_trains_from_a_language_model(ioi_folder, tmp_path, capsys):
  """`config.model` is emptied, since the model brings its own shape."""
  text = (
    "import importlib.util\nfrom ml_collections import ConfigDict\n"
    "spec = importlib.util.spec_from_file_location('base', 'configs/ioi_smollm2.py')\n"
    "base = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(base)\n\n\n"
    "def get_config():\n  config = base.get_config('tiny')\n  config.model = ConfigDict()\n"
    f"  config.init_from = {str(ioi_folder)!r}\n  return config\n"
  )
  (tmp_path / "config.py").write_text(text)
  argv = [
    "train",
    "--config",
    str(tmp_path / "config.py"),
    "--target",
    str(ioi_folder),
    "--workdir",
    str(tmp_path / "w"),
  ]
  assert main(argv) == 0
  loaded = reader.load_reader(tmp_path / "w")
  assert loaded.config.transformer.n_layers == 3 and loaded.config.transformer.d_model == 16
  # And goes on from that decoder.
  (tmp_path / "config.py").write_text(text.replace("config.model = ConfigDict()", "pass"))
  error = refused(capsys, *argv[:-1], str(tmp_path / "again"))
  assert "brings its own shape, so model.d_mlp = 64 would not be used" in error


@pytest.mark.slow
def test_training_goes_on_from_a_finished_decoder(ioi_workdir, ioi_folder, tmp_path, capsys):
  common = [*TRAIN_IOI, "--target", str(ioi_folder), f"--config.init_from={ioi_workdir}"]
  settings = [
    "--config.optimizer.lr=1e-9",
    "--config.optimizer.adam_lr=1e-9",
    "--config.optimizer.weight_decay=0.0",
    "--config.steps=1",
  ]
  assert main([*common, *settings, "--workdir", str(tmp_path / "w")]) == 0
  before, after = (reader.load_reader(where).variables for where in (ioi_workdir, tmp_path / "w"))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7), before, after)
  error = refused(capsys, *common, "--config.encoder_blocks=2", "--workdir", str(tmp_path / "x"))
  assert "has encoder_blocks = 1, the config 2" in error
  error = refused(capsys, *common, "--config.model.d_model=16", "--workdir", str(tmp_path / "x"))
  assert "has model.d_model = 32, the config 16" in error


def test_a_start_that_does_not_fit_is_refused(ioi_folder, ioi_target, ioi_task, ioi_workdir, tmp_path):
  other = gpt2_folder(tmp_path / "other", seed=2)
  tokens = gpt2_folder(tmp_path / "tokens", texts=["another"] * 3)
  short = gpt2_folder(tmp_path / "short", context=8)
  for source, target, model, message in (
    ("/nowhere", ioi_target, {}, "init_from = '/nowhere': no such folder or file"),
    (ioi_folder, ioi_target, {"n_layers": 2}, "so model.n_layers = 2 would not be used"),
    (tokens, ioi_target, {}, "has another tokenizer"),
    (short, ioi_target, {}, "has a context of 8 tokens"),
    (ioi_workdir, load_target(other).restrict_to(ioi_task.tokenizer), {}, "was trained on another target"),
    ("counting", ioi_target, {}, "was trained on another target"),
  ):
    with pytest.raises(InversionViewError, match=message):
      decoder_start.load(str(source), ioi_task, target, model)
  assert decoder_start.load("", ioi_task, ioi_target, {}) is None
