"""Targets of other people: their first layers, over a task's tokens, named by readers instead of copied; decoders that start from one."""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import gpt2_folder

from inversionview_jax import reading as reader
from inversionview_jax import tasks
from inversionview_jax.causal import attribution
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.targets import language_model, load_target
from inversionview_jax.training import decoder_start

pytestmark = pytest.mark.usefixtures("quick_to_compile")
TINY = "configs/ioi_smollm2.py:tiny"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", layers=3)


@pytest.fixture(scope="module")
def whole(folder):
  return load_target(folder)


@pytest.fixture(scope="module")
def task(whole):
  return tasks.get("ioi", whole.tokenizer)


@pytest.fixture(scope="module")
def workdir(folder, tmp_path_factory):
  """A reader trained for four steps by the command line."""
  workdir = tmp_path_factory.mktemp("reader")
  assert main(["train", "--config", TINY, "--target", str(folder), "--workdir", str(workdir)]) == 0
  return workdir


def refused(capsys, *argv) -> str:
  capsys.readouterr()
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Traceback" not in error
  return error


@pytest.mark.parametrize("convention", ["centered", "raw"])
def test_over_a_part_of_the_tokens_activations_and_logits_stay(folder, task, convention):
  whole = load_target(folder, convention)
  part = whole.restrict_to(task.tokenizer)
  tokens = task.tokens(np.arange(20))
  sites = ["x0.pre", "a1.1", "m2", "x2.post"]
  one, other = part.run(tokens, sites), whole.run(task.tokenizer.to_base(tokens), sites)
  real = tokens < task.tokenizer.eos_id
  for site in sites:
    np.testing.assert_allclose(np.asarray(one[site])[real], np.asarray(other[site])[real], rtol=0, atol=1e-6)
  logits = np.asarray(one.logits)
  np.testing.assert_allclose(
    logits[..., :-2][real], np.asarray(other.logits)[..., task.tokenizer.base_ids][real], rtol=0, atol=2e-5
  )
  assert (logits[..., -2:][real] < -1e8).all()  # EOS and PAD are never what the model says
  assert part.fingerprint == whole.fingerprint and whole.config.vocab_size != part.config.vocab_size


def test_over_the_tokens_of_another_model_is_refused(whole, tmp_path):
  other = load_target(gpt2_folder(tmp_path / "other", texts=["Then, Mary and John"] * 9))
  with pytest.raises(InversionViewError, match="is not a part of that of the target"):
    other.restrict_to(tasks.get("ioi", whole.tokenizer).tokenizer)


@pytest.mark.parametrize("convention", ["centered", "raw"])
def test_the_first_layers_hold_what_they_hold_in_the_whole_model(folder, convention):
  whole, first = (load_target(folder, convention, layers=layers) for layers in (None, 2))
  tokens = np.arange(1, 13).reshape(2, 6)
  for site in ("x0.pre", "a0.1", "m1", "x1.post"):
    assert np.array_equal(first.run(tokens, [site])[site], whole.run(tokens, [site])[site])
  assert set(first.params) == {"embed", "pos_embed", "blocks_0", "blocks_1"}
  with pytest.raises(InversionViewError, match="no site 'a2.0' in a network of 2 layers"):
    first.run(tokens, ["a2.0"])
  for ask in (lambda: first.run(tokens).logits, lambda: attribution.attribute(first, tokens)):
    with pytest.raises(InversionViewError, match="has no logits; load it without layers="):
      ask()
  with pytest.raises(InversionViewError, match="layers = 4 must be from 1 to 3"):
    load_target(folder, layers=4)


def test_layers_are_those_that_the_sites_need(whole):
  for names, layers in (
    (("x0.pre",), 1),
    (("a0.0", "x2.pre"), 2),
    (("m1",), 2),
    (("x0.pre", "blocks.2.attn.hook_result.1"), 3),
  ):
    assert language_model.layers_of(names, whole.config) == layers


def test_a_reader_of_a_language_model_is_trained_and_read(workdir, folder, capsys):
  assert not (workdir / "target" / "model.safetensors").exists()  # named, not copied
  assert json.loads((workdir / "target" / "reference.json").read_text())["layers"] == 1
  loaded = reader.load_reader(workdir)
  assert loaded.target.config.n_layers == 1
  text = loaded.task.tokenizer.text(loaded.task.tokens(np.array([5]))[0])
  found = loaded.preimage(text, "a0.0", "S2", num_samples=16)
  assert len(found.samples) == 16 and found.metric == "cosine"
  # Every distance is that of the whole model on the text itself.
  whole, t = load_target(folder), loaded.task.tokenizer
  for sample in [s for s in found.samples if s.position >= 0][:5]:
    run = whole.run(t.to_base([[t.bos_id, *sample.tokens]]), ["a0.0"])["a0.0"]
    one, other = np.asarray(run)[0, sample.position], np.asarray(found.query.activation)
    cosine = 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert sample.distance == pytest.approx(cosine, abs=1e-5)
  assert (
    main(["view", text, "--reader", str(workdir), "--site", "a0.0", "--position", "END", "--num-samples", "8"]) == 0
  )
  assert "a0.0" in capsys.readouterr().out


def test_training_goes_on_with_the_target_that_the_workdir_names(workdir, tmp_path, capsys):
  copy = shutil.copytree(workdir, tmp_path / "w")
  assert main(["train", "--config", TINY, "--workdir", str(copy)]) == 0
  other = gpt2_folder(tmp_path / "other", layers=3, seed=1)
  error = refused(capsys, "train", "--config", TINY, "--workdir", str(copy), "--target", str(other))
  assert "reads another target or other layers" in error


def test_a_reader_says_where_its_checkpoint_was(workdir, folder, tmp_path, capsys):
  moved = shutil.copytree(workdir, tmp_path / "w")
  path = moved / "target" / "reference.json"
  said = json.loads(path.read_text())
  path.write_text(json.dumps(said | {"path": str(tmp_path / "gone")}))
  with pytest.raises(
    InversionViewError, match=f"is not at {re.escape(str(tmp_path / 'gone'))} any more; say where it is with --target"
  ):
    reader.load_reader(moved)
  assert reader.load_reader(moved, folder).target.fingerprint == said["fingerprint"]
  view = [
    "view",
    "Then, Mary and John",
    "--reader",
    str(moved),
    "--site",
    "a0.0",
    "--position",
    "-1",
    "--num-samples",
    "4",
  ]
  assert "say where it is with --target" in refused(capsys, *view)
  assert main([*view, "--target", str(folder)]) == 0
  with pytest.raises(InversionViewError, match="is not the checkpoint that this reader was trained on"):
    reader.load_reader(moved, gpt2_folder(tmp_path / "other", layers=3, seed=1))
  path.write_text("{")
  with pytest.raises(InversionViewError, match="reference.json is damaged"):
    reader.load_reader(moved)


@pytest.mark.parametrize(
  "argv, message",
  [
    ([], "give its Hugging Face folder or .gguf file with --target"),
    (["--target", "/nowhere"], "no checkpoint '/nowhere'"),
    (["--target", "FOLDER", "--config.sites=('a7.0',)"], "no site 'a7.0' in a network of 3 layers"),
    (["--target", "FOLDER", "--config.inputs.positions=('S3',)"], "unknown position of the task ioi: 'S3'"),
    (["--target", "addition"], "no checkpoint 'addition'"),
  ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(argv, message, folder, tmp_path, capsys):
  argv = [str(folder) if word == "FOLDER" else word for word in argv]
  assert message in refused(capsys, "train", "--config", TINY, "--workdir", str(tmp_path / "w"), *argv)
  assert not (tmp_path / "w").exists()


# --- where a decoder starts -----------------------------------------------------------------------------------------------------------


def test_a_decoder_starts_as_the_language_model(folder, whole, task):
  start = decoder_start.load(str(folder), task, whole, {})
  config = DecoderConfig(start.transformer, ("x0.pre", "a1.0"), whole.config.d_model)
  key, tokens = jax.random.key(0), task.tokens(np.arange(4))
  fresh = Decoder(config).init(key, tokens[:1], jnp.zeros((1, whole.config.d_model)), jnp.zeros(1, jnp.int32))
  params = {**fresh["params"], **start.parameters(None)}
  assert set(params) == {"encoder", "transformer"}
  # Without slots it says what the model says; under "raw", as the decoder holds the weights.
  logits = Decoder(config).bind({"params": params}).transformer(tokens).logits
  raw = load_target(folder, "raw").run(task.tokenizer.to_base(tokens)).logits
  real = tokens < task.tokenizer.eos_id
  np.testing.assert_allclose(
    np.asarray(logits)[..., :-2][real], np.asarray(raw)[..., task.tokenizer.base_ids][real], rtol=0, atol=2e-5
  )
  eos = np.asarray(raw)[..., task.tokenizer.base.eos_id]
  np.testing.assert_allclose(np.asarray(logits)[..., -2][real], eos[real], rtol=0, atol=2e-5)


@pytest.mark.slow
def test_a_decoder_trains_from_a_language_model(folder, tmp_path, capsys):
  """`config.model` is emptied, since the model brings its own shape."""
  text = (
    "import importlib.util\nfrom ml_collections import ConfigDict\n"
    "spec = importlib.util.spec_from_file_location('base', 'configs/ioi_smollm2.py')\n"
    "base = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(base)\n\n\n"
    "def get_config():\n  config = base.get_config('tiny')\n  config.model = ConfigDict()\n"
    f"  config.init_from = {str(folder)!r}\n  return config\n"
  )
  (tmp_path / "config.py").write_text(text)
  argv = ["train", "--config", str(tmp_path / "config.py"), "--target", str(folder), "--workdir", str(tmp_path / "w")]
  assert main(argv) == 0
  loaded = reader.load_reader(tmp_path / "w")
  assert loaded.config.transformer.n_layers == 3 and loaded.config.transformer.d_model == 16
  # And goes on from that decoder.
  (tmp_path / "config.py").write_text(text.replace("config.model = ConfigDict()", "pass"))
  error = refused(capsys, *argv[:-1], str(tmp_path / "again"))
  assert "brings its own shape, so model.d_mlp = 64 would not be used" in error


@pytest.mark.slow
def test_training_goes_on_from_a_finished_decoder(workdir, folder, tmp_path, capsys):
  common = ["train", "--config", TINY, "--target", str(folder), f"--config.init_from={workdir}"]
  settings = [
    "--config.optimizer.lr=1e-9",
    "--config.optimizer.adam_lr=1e-9",
    "--config.optimizer.weight_decay=0.0",
    "--config.steps=1",
  ]
  assert main([*common, *settings, "--workdir", str(tmp_path / "w")]) == 0
  before, after = (reader.load_reader(folder).variables for folder in (workdir, tmp_path / "w"))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-7), before, after)
  error = refused(capsys, *common, "--config.encoder_blocks=2", "--workdir", str(tmp_path / "x"))
  assert "has encoder_blocks = 1, the config 2" in error
  error = refused(capsys, *common, "--config.model.d_model=16", "--workdir", str(tmp_path / "x"))
  assert "has model.d_model = 32, the config 16" in error


def test_a_start_that_does_not_fit_is_refused(folder, whole, task, workdir, tmp_path):
  other = gpt2_folder(tmp_path / "other", seed=2)
  tokens = gpt2_folder(tmp_path / "tokens", texts=["another"] * 3)
  short = gpt2_folder(tmp_path / "short", context=8)
  for source, target, model, message in (
    ("/nowhere", whole, {}, "init_from = '/nowhere': no such folder or file"),
    (folder, whole, {"n_layers": 2}, "so model.n_layers = 2 would not be used"),
    (tokens, whole, {}, "has another tokenizer"),
    (short, whole, {}, "has a context of 8 tokens"),
    (workdir, load_target(other).restrict_to(task.tokenizer), {}, "was trained on another target"),
    ("counting", whole, {}, "was trained on another target"),
  ):
    with pytest.raises(InversionViewError, match=message):
      decoder_start.load(str(source), task, target, model)
  assert decoder_start.load("", task, whole, {}) is None


# --- causal experiments ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_experiments_run_on_a_language_model(folder, tmp_path, capsys):
  argv = [
    "patch",
    "--config",
    "configs/verify_ioi.py",
    "--target",
    str(folder),
    "--out",
    str(tmp_path),
    "--config.pairs=6",
  ]
  assert main([*argv, "--config.batch_size=4"]) == 0
  assert "IO in top 30" in capsys.readouterr().out
  names, swapped = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("names", "S2"))
  assert {row["name"] for row in names["results"][0]["rows"]} == {
    f"a{layer}.{head}" for layer in range(3) for head in range(2)
  }
  assert len(swapped["results"][0]["rows"]) == 6 and swapped["pairs"] == 6
  assert (tmp_path / "names.png").exists() and (tmp_path / "S2.svg").exists()
  (by_four,) = names["results"]
  assert main([*argv, "--config.batch_size=6"]) == 0
  (by_six,) = json.loads((tmp_path / "names.json").read_text())["results"]
  for one, other in zip(by_four["rows"], by_six["rows"], strict=True):
    assert one["name"] == other["name"] and one["top"] == other["top"]
    assert one["logit_difference"]["mean"] == pytest.approx(other["logit_difference"]["mean"], abs=1e-6)


def test_ranks_are_those_of_the_contributions(folder, task):
  target = load_target(folder, "centered")
  tokens = task.tokenizer.to_base(task.tokens(np.arange(3))).astype(np.int32)
  of = np.array([5, 40, 300])
  found = attribution.ranks(target, tokens, np.array([7, 8, 9]), of, ["a0.1", "m2", "embed"])
  whole = attribution.attribute(target, tokens, np.array([7, 8, 9]), components=["a0.1", "m2", "embed"]).values
  np.testing.assert_allclose(found.values, whole[:, :, of], rtol=0, atol=1e-4)
  expected = (whole[:, :, None] > found.values[..., None] + 1e-5).sum(axis=-1)
  assert np.abs(found.above - expected).max() <= 1  # but for what rounding makes of a tie
  assert (found.above + found.below < whole.shape[-1]).all()


def test_the_parts_of_a_mistral_sum_to_its_logits():
  target = load_target("tests/golden/mistral")
  tokens = np.random.default_rng(0).integers(1, target.config.vocab_size, (3, 6))
  found = attribution.attribute(target, tokens)
  assert set(found.components) == {
    "embed",
    "m0",
    "m1",
    *(f"a{l}.{h}" for l in range(2) for h in range(target.config.n_heads)),
  }
  np.testing.assert_allclose(found.values.sum(axis=1), target.run(tokens).logits[:, -1], rtol=0, atol=1e-4)


def test_verify_asks_about_a_feature_of_a_language_task(folder, capsys):
  argv = ["verify", "--task", "ioi", "--site", "x1.post", "--position", "S2", "--feature", "S", "--pairs", "8"]
  assert main([*argv, "--target", str(folder)]) == 0
  assert "S only" in capsys.readouterr().out
  assert "is about a language model" in refused(capsys, *argv)


def test_a_model_whose_logits_are_no_sum_is_refused():
  target = load_target("tests/golden/gemma2")
  with pytest.raises(InversionViewError, match="its logits are not the sum of what its parts write"):
    attribution.attribute(target, np.array([[1, 2, 3]]))
