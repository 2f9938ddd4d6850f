"""Configs of language models: what they hold, their tiny variants from training to a reading, and what is refused on the way."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy
from small_models import gpt2_folder, prompts, tokenizer_json

from inversionview_jax import reading as readers
from inversionview_jax import tasks
from inversionview_jax.cli import main
from inversionview_jax.commands.configs import load_config
from inversionview_jax.models import transformer
from inversionview_jax.tasks import fact_files
from inversionview_jax.training import optimizers

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_files.bundled()]


def variants(name):
  spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded.VARIANTS


EVERY = [(name, variant) for name in ("ioi", "factual", "text") for variant in variants(name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS + prompts())


@pytest.fixture(scope="module")
def medium(folder, tmp_path_factory):
  """Another model with the same tokenizer, for a decoder to start from."""
  other = gpt2_folder(tmp_path_factory.mktemp("models") / "medium", texts=TEXTS + prompts(), layers=1, width=32, seed=1)
  shutil.copy(folder / "tokenizer.json", other)
  return other


@pytest.fixture
def lines(tmp_path):
  path = tmp_path / "lines.txt"
  path.write_text("\n".join(TEXTS[:60]) + "\n")
  return path


@pytest.mark.parametrize("name, variant", EVERY)
def test_variant_holds_what_training_asks_for_and_is_locked(name, variant):
  config = load_config(f"{CONFIGS / name}.py:{variant}", [])
  assert config.is_locked and config.task == name
  optimizers.make_optimizer(config.optimizer, config.steps)
  if not config.init_from:
    transformer.TransformerConfig(100, 20, **config.model)
  known = load_config(f"{CONFIGS}/ioi_smollm2.py", [])
  assert set(known) <= set(config)


def test_paper_settings_of_ioi_and_factual_recall():
  for name, pairs in (("ioi", 100 * 200_000), ("factual", 160 * 200_000)):
    config = load_config(f"{CONFIGS / name}.py", [])
    assert config.batch_size * config.steps * config.pairs_per_text == pairs
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.schedule, config.batch_size) == (
      "adamw",
      1e-4,
      "constant",
      128,
    )
    assert (config.encoder_blocks, config.encoder_width, config.n_slots, config.normalize) == (6, 0, 1, "none")
  assert (config.inputs.bos_attention, config.init_from, tuple(config.inputs.sources)) == (
    0.6, "gpt2-medium", ("counterfact", "bear", "minipile"),
  )  # fmt: skip
  ioi = load_config(f"{CONFIGS}/ioi.py", [])
  assert (ioi.model.n_layers, ioi.model.d_model) == (2, 256) and not ioi.inputs.positions
  mixture = tasks.Factual.mixtures["paper"]
  assert mixture.settings == ((1.0, 0.9), (1.0, 0.85), (1.0, 0.8), (1.0, 0.75)) and mixture.num_samples == 4 * 4 * 64
  assert (mixture.directions, mixture.rounds, mixture.repeats, tasks.Factual.epsilon) == (True, 4, 5, 0.25)


def test_ioi_reads_157_sites_of_gpt2_small(folder):
  from inversionview_jax import pretrained
  from inversionview_jax.pretrained import tokenizer_of

  task = tasks.get("ioi", tokenizer_of(folder, pretrained.open_checkpoint(folder))[0])
  assert len(task.default_sites(12, 12)) == 157


def trained(capsys, *argv):
  capsys.readouterr()
  assert main(["train", *argv]) == 0


def viewed(capsys, workdir, text, site, position, *more):
  out = workdir / "seen.json"
  argv = [
    "view",
    text,
    "--reader",
    str(workdir),
    "--site",
    site,
    "--position",
    position,
    "--method",
    "decoder",
    "--num-samples",
    "16",
    "--json",
    str(out),
  ]
  assert main([*argv, *more]) == 0
  seen = json.loads(out.read_text())
  assert len(seen["samples"]["distance"]) == 16 and seen["query"]["label"] == position
  return seen


@pytest.mark.slow
def test_tiny_ioi_trains_over_all_sites_and_reads(folder, tmp_path, capsys):
  workdir = tmp_path / "W"
  trained(capsys, "--config", f"{CONFIGS}/ioi.py:tiny", "--target", str(folder), "--workdir", str(workdir))
  reader = readers.load_reader(workdir)
  assert len(reader.config.sites) == 1 + 2 * 2 + 2
  text = "When Mary and John went to the store, John gave a drink to"
  viewed(capsys, workdir, text, "a1.1", "END")


@pytest.mark.slow
def test_tiny_factual_trains_on_the_bundled_facts_and_reads(folder, tmp_path, capsys):
  workdir = tmp_path / "W"
  trained(capsys, "--config", f"{CONFIGS}/factual.py:tiny", "--target", str(folder), "--workdir", str(workdir))
  seen = viewed(capsys, workdir, "The capital of France is", "a1.1", "END")
  assert (seen["epsilon"], seen["metric"]) == (0.25, "cosine")
  assert sorted(set(np.round(seen["samples"]["noise"], 3))) == [0.1, 0.15, 0.2, 0.25]


@pytest.mark.slow
def test_factual_decoder_starts_from_another_model_and_keeps_only_dropout(folder, medium, tmp_path, capsys):
  workdir = tmp_path / "W"
  settings = ["--config.sites=('a1.0',)", f"--config.init_from={medium}", "--config.batch_size=8", "--config.steps=2", "--config.steps_per_call=2",
              "--config.eval_queries=2", "--config.final_queries=2", "--config.encoder_blocks=1"]  # fmt: skip
  trained(
    capsys, "--config", f"{CONFIGS}/factual.py:bundled", "--target", str(folder), "--workdir", str(workdir), *settings
  )
  reader = readers.load_reader(workdir)
  assert (reader.config.transformer.n_layers, reader.config.transformer.d_model) == (1, 32)


@pytest.fixture(scope="module")
def text_workdir(folder, tmp_path_factory):
  """A reader of texts in a file that is not there any more."""
  where = tmp_path_factory.mktemp("texts")
  lines = where / "lines.txt"
  lines.write_text("\n".join(TEXTS[:60]) + "\n")
  argv = ["train", "--config", f"{CONFIGS}/text.py:tiny", "--target", str(folder), "--workdir", str(where / "W")]
  more = "--config.optimizer.name=adamw", "--config.sites=('x0.pre','x1.post')"  # compiles faster
  assert main([*argv, f"--config.inputs.files={lines}", "--config.inputs.length=7", *more]) == 0
  lines.unlink()
  return where / "W"


@pytest.mark.slow
def test_tiny_text_trains_on_a_file_and_reads_without_it(text_workdir, tmp_path, capsys):
  seen = viewed(capsys, text_workdir, "The capital of France", "x1.post", "END")
  assert seen["task"] == "text"
  capsys.readouterr()
  assert main(["evaluate", "--reader", str(text_workdir), "--out", str(tmp_path / "E"), "--no-plots"]) == 2
  assert "no file" in capsys.readouterr().err


# --- what is refused: one line, exit code 2 ---------------------------------------------------------------------------------------


def refused(capsys, *argv) -> str:
  capsys.readouterr()
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Traceback" not in error
  return error


def text_run(folder, lines, tmp_path, *more):
  return ("train", "--config", f"{CONFIGS}/text.py:tiny", "--target", str(folder), "--workdir", str(tmp_path / "W"),
          f"--config.inputs.files={lines}", *more)  # fmt: skip


@pytest.fixture
def copied(folder, tmp_path):
  return pathlib.Path(shutil.copytree(folder, tmp_path / "model"))


def test_missing_tokenizer_is_refused(copied, lines, tmp_path, capsys):
  (copied / "tokenizer.json").unlink()
  assert "tokenizer.json is missing" in refused(capsys, *text_run(copied, lines, tmp_path))
  assert not (tmp_path / "W").exists()


def test_tokenizer_of_another_model_is_refused(copied, lines, tmp_path, capsys):
  (copied / "tokenizer.json").write_text(tokenizer_json(TEXTS[:50], 300))
  error = refused(capsys, *text_run(copied, lines, tmp_path))
  assert "tokenizer has" in error and "but the model" in error


def test_text_longer_than_the_context_is_refused(folder, lines, tmp_path, capsys):
  assert "context of gpt2, 48" in refused(capsys, *text_run(folder, lines, tmp_path, "--config.inputs.length=64"))


def test_lines_that_are_empty_or_not_utf8_are_refused_by_number(folder, lines, tmp_path, capsys):
  lines.write_bytes(b"Paris is\n\xff\n")
  assert "lines.txt:2 is not UTF-8" in refused(capsys, *text_run(folder, lines, tmp_path))
  lines.write_bytes(b"Paris is\nRome is\n\n")
  assert "lines.txt:3 is empty" in refused(capsys, *text_run(folder, lines, tmp_path))
  assert "set inputs.files" in refused(capsys, *text_run(folder, "", tmp_path))
  assert not (tmp_path / "W").exists()


def test_missing_and_truncated_shards_are_refused(copied, lines, tmp_path, capsys):
  tensors = safetensors.numpy.load_file(copied / "model.safetensors")
  names, shards = sorted(tensors), ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
  where = {name: shards[i % 2] for i, name in enumerate(names)}
  for shard in shards:
    safetensors.numpy.save_file({name: tensors[name] for name in names if where[name] == shard}, copied / shard)
  (copied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
  (copied / "model.safetensors").unlink()
  content = (copied / shards[1]).read_bytes()
  (copied / shards[1]).write_bytes(content[:-100])
  assert f"{shards[1]}: truncated" in refused(capsys, *text_run(copied, lines, tmp_path))
  (copied / shards[1]).unlink()
  assert f"{shards[1]} is missing" in refused(capsys, *text_run(copied, lines, tmp_path))


def test_quantisation_that_is_not_read_is_refused(tmp_path, capsys):
  gguf = pytest.importorskip("gguf")
  from checkpoints import wide_folder, write_gguf

  kinds = gguf.GGMLQuantizationType
  path = write_gguf(tmp_path / "model.gguf", wide_folder(tmp_path / "llama"), kinds.Q8_0)
  # The last one, which may grow: Q8_1 takes more bytes.
  last = max(gguf.GGUFReader(path).tensors, key=lambda tensor: tensor.data_offset)
  start = last.field.offset + sum(part.nbytes for part in last.field.parts[:4])  # behind name and shape comes the type
  content = bytearray(path.read_bytes())
  assert content[start : start + 4] == int(last.tensor_type).to_bytes(4, "little")
  content[start : start + 4] = int(kinds.Q8_1).to_bytes(4, "little")
  path.write_bytes(content + bytes(last.n_bytes))
  (tmp_path / "p.txt").write_text("Paris is\n")
  error = refused(capsys, "heads", "--target", str(path), "--prompts", str(tmp_path / "p.txt"))
  assert "is quantised as Q8_1, which is not read" in error


def test_unknown_sites_and_missing_starts_are_refused(folder, lines, tmp_path, capsys):
  assert "a9.1" in refused(capsys, *text_run(folder, lines, tmp_path, "--config.sites=a9.1"))
  assert "no such folder" in refused(capsys, *text_run(folder, lines, tmp_path, "--config.init_from=/no/where"))
  error = refused(
    capsys,
    "train",
    "--config",
    f"{CONFIGS}/factual.py:bundled",
    "--target",
    str(folder),
    "--workdir",
    str(tmp_path / "F"),
  )
  assert "inversionview heads" in error


@pytest.mark.slow
def test_queries_that_are_empty_too_long_or_of_unknown_tokens_are_refused(text_workdir, capsys):
  view = ("view", "--reader", str(text_workdir), "--site", "x0.pre", "--position", "END")
  assert "text is empty" in refused(capsys, view[0], "", *view[1:])
  assert "at most" in refused(capsys, view[0], "The capital city of France is", *view[1:])
  assert "not among the" in refused(capsys, view[0], "Zyx 0123", *view[1:])
