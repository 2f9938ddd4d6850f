"""A task and a model family in modules outside the package, named as package.module:Name, from the command line to a loaded reader."""

import json
import pathlib
import sys

import numpy as np
import pytest
from detailed_balance import assert_balanced, assert_same_in_jit, grid
from small_models import tokenizer_json

from inversionview_jax import cli, load_reader, load_target, preimage, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.pretrained import Family, open_checkpoint
from inversionview_jax.reading.enumeration import exact_preimage
from inversionview_jax.tasks import Task

HERE = pathlib.Path(__file__).parent
TASK, FAMILY = "extending.reversal_task:Reversal", "extending.opt_family:OPT"


# A task.


def test_a_task_of_another_module_is_named_by_where_it_is():
  task = tasks.get(TASK)
  assert task.name == TASK and isinstance(task, Task) and not tasks.is_language(TASK)
  assert type(task)().name == TASK
  assert [task.tokenizer.text(row) for row in task.tokens(np.array([0, 1, 8, 511]))] == [
    "aaa|aaa", "baa|aab", "aba|aba", "hhh|hhh",
  ]  # fmt: skip
  np.testing.assert_array_equal(task.index(task.tokens(np.arange(512))), np.arange(512))
  assert task.features(task.tokens(np.array([83])))["L2"] == [2]


def test_its_own_move_is_in_detailed_balance_and_writes_inputs():
  task = tasks.get(TASK)
  rows = task.tokens(np.arange(512))
  *default, move = task.moves()
  assert move.name == "another letter" and [m.name for m in default][0] == "redraw"
  there = assert_balanced(move, grid(3, 8), rows, task.log_prior)
  letters = rows[:, 1:4]
  np.testing.assert_array_equal(there > 0, (letters[:, None] != letters[None]).sum(axis=2) <= 1)
  assert_same_in_jit(move, rows, task.log_prior)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A target and a reader of the task, trained for a few steps by the command line."""
  folder = tmp_path_factory.mktemp("reversal") / "W"
  argv = ["--config", str(HERE / "reversal_config.py"), "--workdir", str(folder)]
  argv += ["--config.optimizer.name=adamw", "--config.target.optimizer.name=adamw"]  # which compiles faster
  assert cli.main(["train-target", *argv]) == 0
  assert cli.main(["train", *argv]) == 0
  return folder


def test_a_target_and_a_reader_of_it_are_trained_and_loaded_by_its_name(workdir):
  assert json.loads((workdir / "target" / "model.json").read_text())["task"] == TASK
  assert json.loads((workdir / "decoder" / "model.json").read_text())["task"] == TASK
  reader = load_reader(workdir)
  assert reader.task.name == TASK and reader.target.task == TASK
  pre = reader.preimage("abc|cba", site="x0.post", position="|", num_samples=16)
  assert pre.task == TASK and pre.query.label == "|" and len(pre.samples) == 16


def test_monte_carlo_reads_it_with_its_own_move(workdir):
  """Against all 512 inputs: the particles are members, and the bits are those of the exact preimage."""
  target = load_target(workdir / "target")
  exact = exact_preimage(target, "abc|cba", "x0.pre", "L2", task=tasks.get(TASK))
  pre = preimage(target, "abc|cba", "x0.pre", "L2", task=tasks.get(TASK), particles=128)
  assert pre.converged and pre.rate == 1 and "another letter" in pre.levels[-1]["acceptance"]
  members = {sample.text for sample in exact.inside}
  assert {sample.text for sample in pre.inside} <= members
  assert abs(pre.bits - exact.bits) < 4 * pre.bits_error + 0.3


@pytest.mark.slow
def test_the_command_line_reads_it(workdir, tmp_path, capsys):
  argv = ["view", "abc|cba", "--reader", str(workdir), "--site", "x0.post", "--position", "R1", "--num-samples", "16"]
  assert cli.main([*argv, "--json", str(tmp_path / "p.json")]) == 0
  assert json.loads((tmp_path / "p.json").read_text())["task"] == TASK
  assert cli.main(["heads", "--task", TASK, "--target", str(workdir), "--position", "|", "--count", "8"]) == 0
  assert "a0.0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_report_shows_which_of_its_features_are_encoded(workdir, tmp_path):
  (tmp_path / "P").mkdir()
  load_reader(workdir).preimage("abc|cba", site="x0.pre", position="L1", num_samples=64).to_json(
    tmp_path / "P" / "p.json"
  )
  assert cli.main(["report", str(tmp_path / "P"), "--out", str(tmp_path / "r.html")]) == 0
  page = (tmp_path / "r.html").read_text()
  assert "What it encodes" in page and "no candidate lies inside" not in page


MODULE = """
import inversionview_jax.tasks as tasks
class Empty(tasks.Task): pass
class Bare(tasks.Task):
  tokens = loss_mask = lambda self, x: x
number = 3
"""


@pytest.mark.parametrize(
  "name, message",
  [
    ("no_such_module_here:Name", "there is no module no_such_module_here; install it, or put the folder it is in on PYTHONPATH"),
    ("users_own:Nothing", "unknown task of users_own: 'Nothing': known: Empty, Bare"),
    ("users_own:number", "is not a class derived from Task"),
    ("users_own:Empty", "lacks loss_mask, tokens"),
    ("users_own:Bare", "lacks tokenizer, length, num_inputs"),
    ("users_broken:Name", "cannot import users_broken: ZeroDivisionError: division by zero"),
    ("users_needs:Name", "users_needs needs a_missing_package, which is not installed"),
    ("users_own:", "unknown task"),
    ("users own:Name", "unknown task"),
  ],
)  # fmt: skip
def test_what_is_wrong_with_a_name_is_one_line(tmp_path, monkeypatch, name, message):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "users_own.py").write_text(MODULE)
  (tmp_path / "users_broken.py").write_text("1 / 0")
  (tmp_path / "users_needs.py").write_text("import a_missing_package")
  with pytest.raises(InversionViewError) as caught:
    tasks.get(name)
  assert message in str(caught.value) and "\n" not in str(caught.value)
  for module in ("users_own", "users_broken", "users_needs"):
    sys.modules.pop(module, None)


def test_the_current_directory_is_not_searched(tmp_path, monkeypatch):
  (tmp_path / "planted.py").write_text("raise SystemExit('imported')")
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
  with pytest.raises(InversionViewError, match="no module planted"):
    tasks.get("planted:Task")


# A model family.


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
  """A small random OPT as `save_pretrained` writes it, with a tokenizer, and the model itself."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  folder = tmp_path_factory.mktemp("opt") / "opt"
  content = tokenizer_json(["the cat sat on the mat", "a dog ran to the park"] * 20, 280)
  size = 1 + max(json.loads(content)["model"]["vocab"].values())
  torch.manual_seed(0)
  shape = {
    "hidden_size": 16,
    "word_embed_proj_dim": 16,
    "ffn_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
  }
  ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
  model = transformers.OPTForCausalLM(
    transformers.OPTConfig(vocab_size=size, max_position_embeddings=24, **shape, **ids)
  )
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn_like(parameter))
  model.eval().save_pretrained(folder)
  (folder / "tokenizer.json").write_text(content)
  return folder, model


def test_a_family_of_another_module_gives_the_logits_of_transformers(opt):
  import torch

  folder, model = opt
  target = load_target(folder, family=FAMILY)
  tokens = target.tokenizer.encode_batch(["the cat sat on the mat"])
  with torch.no_grad():
    wanted = model(torch.tensor(tokens, dtype=torch.long)).logits.numpy()
  raw = load_target(folder, "raw", family=FAMILY)
  np.testing.assert_allclose(np.asarray(raw.run(tokens).logits), wanted, atol=2e-5)
  centered = np.asarray(target.run(tokens).logits)
  np.testing.assert_allclose(
    centered - centered.mean(-1, keepdims=True), wanted - wanted.mean(-1, keepdims=True), atol=2e-5
  )
  assert target.family == FAMILY and target.convention == "centered"


def test_a_reader_of_such_a_model_finds_its_family_again(opt, tmp_path):
  folder, _ = opt
  (tmp_path / "texts.txt").write_text("the cat sat on the mat\na dog ran to the park\nthe dog sat\na cat ran\n")
  config, workdir = HERE.parent.parent / "configs" / "text.py", tmp_path / "W"
  argv = ["train", "--config", f"{config}:tiny", "--target", str(folder), "--workdir", str(workdir)]
  argv += [f"--config.inputs.files={tmp_path / 'texts.txt'}", "--config.sites=('x0.pre','x1.post')"]
  argv += ["--config.optimizer.name=adamw"]  # compiles faster
  assert cli.main([*argv, f"--config.target.family={FAMILY}"]) == 0
  assert json.loads((workdir / "target" / "reference.json").read_text())["family"] == FAMILY
  reader = load_reader(workdir)
  assert reader.target.family == FAMILY
  assert len(reader.preimage("the cat sat", site="x1.post", position="END", num_samples=8).samples) == 8
  assert cli.main(argv) == 0  # resumes, with the family of the reference


def test_what_is_wrong_with_a_family_is_one_line(opt, tmp_path):
  folder, _ = opt
  for family, message in (
    (None, "model_type 'opt' is not handled; this version reads gpt2, llama"),
    ("extending.opt_family:config", "is a function, not a Family"),
    ("extending.opt_family:Nothing", "unknown family of extending.opt_family: 'Nothing': known: OPT"),
    ("extending.no_family:OPT", "there is no module extending.no_family"),
    ("OPT", "not of the form package.module:Name"),
  ):
    with pytest.raises(InversionViewError) as caught:
      load_target(folder, family=family)
    assert message in str(caught.value) and "\n" not in str(caught.value)
  with pytest.raises(InversionViewError, match="model_type 'gpt2' is not handled; the family reads opt"):
    load_target(HERE.parent / "golden" / "default", family=FAMILY)
  changed = tmp_path / "changed"
  changed.mkdir()
  attributes = json.loads((folder / "config.json").read_text()) | {"do_layer_norm_before": False}
  (changed / "config.json").write_text(json.dumps(attributes))
  with pytest.raises(InversionViewError, match="do_layer_norm_before = False is not handled, only True"):
    open_checkpoint(changed, FAMILY)


def test_this_package_has_its_families_in_the_same_form():
  from inversionview_jax.pretrained.checkpoint import FAMILIES

  assert all(isinstance(family, Family) for family in FAMILIES)
  assert "gpt2" in FAMILIES[0].model_types and len({name for family in FAMILIES for name in family.model_types}) == 17
