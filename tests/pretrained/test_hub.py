"""Models by their id: from a cache laid out as `huggingface_hub` lays it out, or downloaded from a hub on loopback."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import hub_server
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from checkpoints import GOLDEN, tensors_of
from huggingface_hub import constants
from small_models import gpt2_folder

from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained import hub as hub_module
from inversionview_jax.targets import load_target, task_and_target, write_reference
from inversionview_jax.targets.loading import locate
from inversionview_jax.targets.reference import load_reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tokenizer_json(path):
  """A tokenizer of as many tokens as the golden models have rows."""
  rows = json.loads((path / "config.json").read_text())["vocab_size"]
  vocabulary = {"<|endoftext|>": 0, **{chr(ord("a") + i): i + 1 for i in range(rows - 1)}}
  made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "<|endoftext|>"))
  made.add_special_tokens(["<|endoftext|>"])
  made.save(str(path / "tokenizer.json"))
  (path / "tokenizer_config.json").write_text(
    '{"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}'
  )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A model as a repository has it: with pickled weights and other formats beside the safetensors."""
  folder = shutil.copytree(GOLDEN / "default", tmp_path_factory.mktemp("hub") / "model")
  tokenizer_json(folder)
  for name in ("pytorch_model.bin", "tf_model.h5", "rust_model.ot", "README.md"):
    (folder / name).write_bytes(b"never")
  return folder


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """HF_HOME, empty."""
  monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
  for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  # The library reads its environment when it is imported, which another test may have changed for itself.
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  return tmp_path / "home" / "hub"


@pytest.fixture
def hub(cache, monkeypatch):
  with hub_server.serve() as served:
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    yield served


def lay_out(cache, repository, model, ref="main", leave_out=()):
  """A cache as the library lays it out: blobs, links to them in snapshots/COMMIT, and refs."""
  own = cache / f"models--{repository.replace('/', '--')}"
  snapshot = own / "snapshots" / COMMIT
  snapshot.mkdir(parents=True)
  (own / "blobs").mkdir()
  (own / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
  (own / "refs" / ref).write_text(COMMIT)
  for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
    if name not in leave_out:
      shutil.copy(model / name, own / "blobs" / f"blob_{name}")
      (snapshot / name).symlink_to(pathlib.Path("../../blobs") / f"blob_{name}")
  return snapshot


def refused(name):
  with pytest.raises(InversionViewError) as caught:
    locate(name)
  message = str(caught.value)
  assert "\n" not in message and len(message) < 900
  return message


@pytest.mark.parametrize(
  "laid_out, ref, name",
  [
    ("openai-community/gpt2", "main", "gpt2"),
    ("gpt2", "main", "openai-community/gpt2"),
    ("a-lab/tiny.model", "main", "a-lab/tiny.model"),
    ("a-lab/tiny", "step1000", "a-lab/tiny@step1000"),
    ("a-lab/tiny", "refs/pr/1", "a-lab/tiny@refs/pr/1"),
    ("a-lab/tiny", "main", f"a-lab/tiny@{COMMIT}"),
  ],
)
def test_a_model_in_the_cache_needs_no_network(cache, model, laid_out, ref, name):
  """HF_ENDPOINT of the tests leads nowhere."""
  snapshot = lay_out(cache, laid_out, model, ref)
  found = locate(name)
  assert found.path == snapshot and found.source == f"{laid_out}@{COMMIT}"
  assert found.name == laid_out.rpartition("/")[2]


def test_a_downloaded_model_is_the_one_that_is_served(hub, cache, model, capfd):
  commit = hub.add("a-lab/tiny", model)
  target = load_target("a-lab/tiny")
  assert target.fingerprint == load_target(model).fingerprint and target.tokenizer == load_target(model).tokenizer
  assert (target.name, target.source) == ("tiny", f"a-lab/tiny@{commit}")
  assert target.describe()["source"] == f"a-lab/tiny@{commit}" and commit in str(target)
  assert hub.files() == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
  err = capfd.readouterr().err
  assert err.count("\n") == 1 and f"downloading a-lab/tiny@{commit} from {hub.url} into {cache}" in err
  hub.requests.clear()
  assert load_target("a-lab/tiny").source == target.source and not hub.requests


def test_the_revision_is_downloaded_and_the_main_one_is_another(hub, cache, model, tmp_path):
  other = shutil.copytree(model, tmp_path / "other")
  weights = {name: value + np.float32(1) for name, value in tensors_of(model).items()}
  safetensors.numpy.save_file(weights, other / "model.safetensors")
  commits = hub.add("a-lab/tiny", model), hub.add("a-lab/tiny", other, "step1000")
  targets = load_target("a-lab/tiny"), load_target("a-lab/tiny@step1000")
  assert [target.source for target in targets] == [f"a-lab/tiny@{commit}" for commit in commits]
  assert targets[0].fingerprint != targets[1].fingerprint
  assert locate(targets[1].source).path == locate("a-lab/tiny@step1000").path
  assert "no revision 'step7'" in refused("a-lab/tiny@step7")


def test_a_reader_keeps_the_commit_and_loads_it_again(hub, cache, tmp_path):
  first, later = (gpt2_folder(tmp_path / name, layers=1, seed=seed) for seed, name in enumerate("ab"))
  commit = hub.add("a-lab/tiny", first)
  task, target = task_and_target("ioi", "a-lab/tiny", sites=("a0.0",))
  write_reference(tmp_path / "target", "a-lab/tiny", target)
  stored = json.loads((tmp_path / "target" / "reference.json").read_text())
  assert stored["path"] == target.source == f"a-lab/tiny@{commit}"
  hub.repositories["a-lab/tiny"] = {"old": (commit, first)}
  hub.add("a-lab/tiny", later)
  shutil.rmtree(cache)
  again = load_reference(tmp_path / "target", task)
  assert (again.source, again.fingerprint) == (target.source, target.fingerprint)
  assert task_and_target("ioi", "a-lab/tiny", sites=("a0.0",))[1].fingerprint != target.fingerprint
  assert task_and_target("ioi", tmp_path / "target", sites=("a0.0",))[1].source == target.source


def test_shards_are_downloaded_by_their_index_and_a_canonical_name_under_either_id(hub, cache, model, tmp_path):
  sharded = shutil.copytree(model, tmp_path / "sharded")
  tensors = tensors_of(model)
  halves = sorted(tensors)[::2], sorted(tensors)[1::2]
  (sharded / "model.safetensors").unlink()
  table = {}
  for number, names in enumerate(halves):
    safetensors.numpy.save_file({name: tensors[name] for name in names}, sharded / f"model-{number}.safetensors")
    table |= {name: f"model-{number}.safetensors" for name in names}
  (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))
  hub.add("gpt2", sharded)
  assert load_target("gpt2").fingerprint == load_target(model).fingerprint
  assert {"model-0.safetensors", "model-1.safetensors"} <= hub.files()


def test_a_token_is_sent(hub, cache, model, monkeypatch):
  hub.add("a-lab/tiny", model)
  monkeypatch.setenv("HF_TOKEN", "hf_secret")
  locate("a-lab/tiny")
  assert hub.tokens == {"Bearer hf_secret"}


def test_what_is_wrong_with_a_download_is_one_line(hub, cache, model, tmp_path, monkeypatch):
  hub.refused |= {"a/gated": (403, "GatedRepo"), "a/closed": (403, ""), "a/down": (418, "")}
  assert "accept its terms" in refused("a/gated") and "hf auth login" in refused("a/gated")
  assert "403" in refused("a/closed") and "418" in refused("a/down")
  message = refused("a/none")
  assert "no folder and no model 'a/none'" in message and str(cache) in message and hub.url in message
  pickled = shutil.copytree(model, tmp_path / "pickled", ignore=shutil.ignore_patterns("*.safetensors"))
  hub.add("a/pickled", pickled)
  assert "a/pickled has no safetensors" in refused("a/pickled") and "pytorch_model.bin" not in hub.files()
  empty = tmp_path / "empty"
  empty.mkdir()
  hub.add("a/empty", empty)
  assert "no config.json" in refused("a/empty")
  hub.add("a/large", model)
  monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
  assert "no space for a/large" in refused("a/large") and "model.safetensors" not in hub.files()


def test_a_download_that_broke_off_goes_on(hub, cache, model, monkeypatch):
  hub.add("a-lab/tiny", model)
  hub.cut["model.safetensors"] = 100
  monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the attempts of the library
  message = refused("a-lab/tiny")
  assert "cannot download a-lab/tiny" in message and "hf download a-lab/tiny" in message
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  message = refused("a-lab/tiny")
  assert "holds only a part" in message and "model.safetensors is missing" in message
  monkeypatch.delenv("HF_HUB_OFFLINE")
  hub.cut.clear()
  assert (
    locate("a-lab/tiny").path.joinpath("model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
  )


def test_without_a_network_the_cache_and_the_command_are_named(cache, monkeypatch):
  message = refused("a-lab/tiny@v2")
  assert "cannot download a-lab/tiny from http://127.0.0.1:9" in message and str(cache) in message
  assert "hf download a-lab/tiny --revision v2" in message
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  message = refused("gpt2")
  assert f"gpt2 is not in the cache {cache}" in message and "hf download openai-community/gpt2" in message


def test_a_tokenizer_that_the_cache_lacks_is_added_where_there_is_a_network(hub, cache, model, monkeypatch):
  snapshot = lay_out(cache, "a-lab/tiny", model, leave_out=("tokenizer.json", "tokenizer_config.json"))
  hub.repositories["a-lab/tiny"] = {"main": (COMMIT, model)}
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  assert locate("a-lab/tiny").path == snapshot and not hub.requests
  monkeypatch.delenv("HF_HUB_OFFLINE")
  locate("a-lab/tiny")
  assert (snapshot / "tokenizer.json").exists() and "model.safetensors" not in hub.files()


def test_a_folder_comes_first_and_other_names_are_not_looked_up(hub, cache, model, tmp_path, monkeypatch):
  hub.add("a-lab/tiny", model)
  shutil.copytree(model, tmp_path / "a-lab" / "tiny")
  monkeypatch.chdir(tmp_path)
  assert (locate("a-lab/tiny").path, locate("a-lab/tiny").source) == (pathlib.Path("a-lab/tiny"), "")
  assert "did you mean addition?" in refused("adition") and "did you mean gpt2" in refused("gpt-2")
  for name in ("nosuch", "./a/b", "a/b/c", "a/model.gguf", "/a/b", "a/../b", "a/b@", "~/a"):
    assert "no target" in refused(name)
  assert not hub.requests


def test_the_library_reads_the_environment_of_a_process(model, tmp_path):
  """As a user sets it: before Python starts."""
  lay_out(tmp_path / "home" / "hub", "openai-community/gpt2", model)
  environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
  program = "import inversionview_jax as iv; print(iv.load_target('gpt2').source)"
  out = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
  assert out.stdout.strip() == f"openai-community/gpt2@{COMMIT}", out.stderr
