"""Readers of language targets name the checkpoint instead of carrying it."""

import json
import re
import shutil

import numpy as np
import pytest
from small_models import TRAIN_IOI, gpt2_folder

from inversionview_jax import reading as reader
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import load_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def refused(capsys, *argv) -> str:
  capsys.readouterr()
  assert main(list(argv)) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and "Traceback" not in error
  return error


def test_a_reader_of_a_language_model_is_trained_and_read(ioi_workdir, ioi_folder, capsys):
  assert not (ioi_workdir / "target" / "model.safetensors").exists()  # named, not copied
  assert json.loads((ioi_workdir / "target" / "reference.json").read_text())["layers"] == 1
  loaded = reader.load_reader(ioi_workdir)
  assert loaded.target.config.n_layers == 1
  text = loaded.task.tokenizer.text(loaded.task.tokens(np.array([5]))[0])
  preimage = loaded.preimage(text, "a0.0", "S2", num_samples=16)
  assert len(preimage.samples) == 16 and preimage.metric == "cosine"
  # Every distance is that of the whole model on the text itself.
  whole, t = load_target(ioi_folder), loaded.task.tokenizer
  for sample in [s for s in preimage.samples if s.position >= 0][:5]:
    run = whole.run(t.to_base([[t.bos_id, *sample.tokens]]), ["a0.0"])["a0.0"]
    one, other = np.asarray(run)[0, sample.position], np.asarray(preimage.query.activation)
    cosine = 1 - one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert sample.distance == pytest.approx(cosine, abs=1e-5)
  view = ["view", text, "--reader", str(ioi_workdir), "--site", "a0.0", "--position", "END", "--method", "decoder"]
  assert main([*view, "--num-samples", "8"]) == 0
  assert "a0.0" in capsys.readouterr().out


def test_training_goes_on_with_the_target_that_the_workdir_names(ioi_workdir, tmp_path, capsys):
  copy = shutil.copytree(ioi_workdir, tmp_path / "w")
  assert main([*TRAIN_IOI, "--workdir", str(copy)]) == 0
  other = gpt2_folder(tmp_path / "other", layers=3, seed=1)
  error = refused(capsys, *TRAIN_IOI, "--workdir", str(copy), "--target", str(other))
  assert "reads another target or other layers" in error


def test_the_path_of_a_checkpoint_that_was_moved_is_given(ioi_workdir, ioi_folder, tmp_path, capsys):
  moved = shutil.copytree(ioi_workdir, tmp_path / "w")
  path = moved / "target" / "reference.json"
  reference = json.loads(path.read_text())
  path.write_text(json.dumps(reference | {"path": str(tmp_path / "gone")}))
  with pytest.raises(
    InversionViewError, match=f"is not at {re.escape(str(tmp_path / 'gone'))} any more; give its path with --target"
  ):
    reader.load_reader(moved)
  assert reader.load_reader(moved, ioi_folder).target.fingerprint == reference["fingerprint"]
  view = [
    "view",
    "Then, Mary and John",
    "--reader",
    str(moved),
    "--site",
    "a0.0",
    "--position",
    "-1",
    "--method",
    "decoder",
    "--num-samples",
    "4",
  ]
  assert "give its path with --target" in refused(capsys, *view)
  assert main([*view, "--target", str(ioi_folder)]) == 0
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
    (["--target", "FOLDER", "--config.inputs.positions=('S3',)"], "unknown value of inputs.positions: 'S3'"),
    (["--target", "addition"], "no checkpoint 'addition'"),
  ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_is_written(argv, message, ioi_folder, tmp_path, capsys):
  argv = [str(ioi_folder) if word == "FOLDER" else word for word in argv]
  assert message in refused(capsys, *TRAIN_IOI, "--workdir", str(tmp_path / "w"), *argv)
  assert not (tmp_path / "w").exists()
