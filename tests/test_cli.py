"""The command line: what it prints and writes, its exit codes, and training from nothing to a reader."""

import contextlib
import functools
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import compilation
import numpy as np
import pytest

from inversionview_jax import __version__, cli, tasks
from inversionview_jax import reading as reader_module
from inversionview_jax.preimage import Preimage
from inversionview_jax.targets import save_target, shipped_folder
from inversionview_jax.tasks.tokenizers import CharTokenizer

TASK = tasks.get("addition")
ROOT = pathlib.Path(__file__).parent.parent
TEXT = "615+861=1476"

pytestmark = pytest.mark.usefixtures("quick_to_compile")
load_reader = functools.cache(reader_module.load_reader)  # so that the shipped one is read once


@pytest.fixture
def inversionview(monkeypatch, capsys, tmp_path):
  """A function (arguments) -> (exit code, stdout, stderr), in the folder `tmp_path`."""
  monkeypatch.setattr(reader_module, "load_reader", load_reader)
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    code = cli.main([str(argument) for argument in argv])
    return code, *capsys.readouterr()

  return run


def view(text=TEXT, **options):
  """The arguments of `view`; an option None is left out."""
  options = {"reader": "addition", "site": "a0.0", "position": "=", "method": "decoder", "num-samples": 40} | options
  return ["view", text, *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def refused(inversionview, folder, *argv) -> str:
  """The one line on stderr of a command that fails, writing nothing into `folder`."""
  before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
  code, out, error = inversionview(*argv)
  assert (code, out) == (2, "")
  assert error.startswith("inversionview: ") and error.endswith("\n") and error.count("\n") == 1
  assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
  return error


# view.


def test_view_prints_the_preimage_and_writes_page_and_data(inversionview, tmp_path):
  code, out, error = inversionview(*view(html="page.html", json="data.json", shown=12, seed=3))
  assert (code, error) == (0, "")
  preimage = Preimage.from_json(tmp_path / "data.json")
  assert len(preimage.samples) == 40 and (preimage.seed, preimage.reader, preimage.query.site) == (
    3,
    "addition",
    "a0.0",
  )
  assert preimage == load_reader("addition").preimage(TEXT, "a0.0", "=", num_samples=40, seed=3)
  page = (tmp_path / "page.html").read_text()
  assert page.lstrip().lower().startswith("<!doctype html")
  shown = preimage.shown(12)
  assert len(shown) == 12
  printed = out.replace("[", "").replace("]", "")  # around the nearest token
  for sample in preimage.samples:
    assert (sample.text in printed) == any(sample.text in one.text for one in (*shown, preimage.query))
  assert "a0.0" in out and "12 shown" in out
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data.json", "page.html"]


def test_shipped_reader_finds_inputs_inside_epsilon(inversionview, tmp_path):
  inversionview(*view(json="data.json", site="blocks.0.hook_resid_pre", position="S2"))
  preimage = Preimage.from_json(tmp_path / "data.json")
  assert preimage.query.site == "x0.pre" and preimage.rate > 0.5
  for (
    sample
  ) in preimage.inside:  # the digit and that it is the tens', of either operand: this target tells them hardly apart
    assert sample.position in (2, 6) and sample.text[sample.position - 1] == "6"


def test_view_takes_every_option(inversionview, tmp_path):
  argv = view(
    "615+861=",
    position=-1,
    epsilon=0.3,
    metric="cosine",
    match="position",
    seed=1,
    json="data.json",
    temperature=None,
    noise=None,
  )
  code, _, _ = inversionview(*argv, "--temperature=0.5", "--temperature=1.5", "--noise=0.1", "--noise=0.2")
  preimage = Preimage.from_json(tmp_path / "data.json")
  assert code == 0 and preimage.query.text == "615+861=" and preimage.query.position == 8
  assert (preimage.epsilon, preimage.metric, preimage.match) == (0.3, "cosine", "position")
  assert {(sample.temperature, sample.noise) for sample in preimage.samples} == {(0.5, 0.1), (1.5, 0.2)}


def test_view_merges_equal_candidates(inversionview, tmp_path):
  options = {"temperature": 0.01, "json": tmp_path / "p.json"}
  for flags in ((), ("--merge",)):
    code, _, error = inversionview(*view(**options), *flags)
    assert (code, error) == (0, "")
    samples = Preimage.from_json(tmp_path / "p.json").samples
    texts = [s.text for s in samples]
    assert sum(s.count for s in samples) == 40
    assert (len(texts) == 40) != bool(flags) and (len(set(texts)) == len(texts)) == bool(flags)


def test_no_color_prints_no_color(inversionview, monkeypatch):
  monkeypatch.setenv("FORCE_COLOR", "1")
  (_, colored, _), (_, plain, _) = inversionview(*view()), inversionview(*view(), "--no-color")
  color = re.compile(r"\x1b\[(\d+;)*([34][0-8]|9[0-7]|10[0-7])[;m]")  # what is dim or bold may stay
  assert color.search(colored) and not color.search(plain)
  words = [re.sub(r"\x1b\[[\d;]*m", "", out) for out in (colored, plain)]
  assert TEXT in words[0] and TEXT in words[1] and "[=]" in words[1]


def test_version_and_help_name_the_program(capsys):
  for argv, expected in (
    (["--version"], __version__),
    (["view", "--help"], "--site"),
    (["train", "--help"], "--config.optimizer.lr"),
  ):
    with pytest.raises(SystemExit) as caught:
      cli.main(argv)
    assert caught.value.code == 0 and expected in capsys.readouterr().out


# What is refused.


@pytest.mark.parametrize(
  "wrong, named",
  [
    ({"text": "615*861=1476"}, "'*'"),
    ({"text": "615+861=14761476"}, "at most 12"),
    ({"text": ""}, "empty"),
    ({"position": 13}, "0 (BOS) to 12"),
    ({"position": -14}, "0 (BOS) to 12"),
    ({"position": "A5"}, "A1, A2, A3, A4"),
    ({"site": "a0.9"}, "a0.0"),
    ({"site": "m0"}, "m0"),
    ({"site": "nonsense"}, "'nonsense'"),
    ({"reader": "subtraction"}, "addition"),
    ({"epsilon": 0}, "epsilon"),
    ({"epsilon": -0.1}, "epsilon"),
    ({"epsilon": "nan"}, "epsilon"),
    ({"metric": "manhattan"}, "euclidean, cosine"),
    ({"match": "nearby"}, "anywhere, position"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": "inf"}, "temperature"),
    ({"noise": "nan"}, "noise"),
    ({"num-samples": 0}, "--num-samples 0"),
    ({"shown": 0}, "--shown"),
    ({"seed": -1}, "seed"),
    ({"html": "missing/page.html"}, "missing"),
    ({"json": "missing/data.json"}, "missing"),
    ({"html": "."}, "folder"),
  ],
  ids=str,
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(inversionview, tmp_path, wrong, named):
  options = {"html": "page.html", "json": "data.json"} | wrong
  assert named in refused(inversionview, tmp_path, *view(**options))


@pytest.mark.parametrize(
  "argv",
  [
    [], ["veiw"], ["view"], view(site=None), view(position=None), view(epsilon="wide"), view(seed=1.5),
    [*view(), "--colour"], ["train"], ["train", "--workdir", "w"],
  ],
  ids=lambda argv: " ".join(argv[:1] + argv[-1:]),
)  # fmt: skip
def test_command_that_cannot_be_parsed_is_refused_in_one_line(inversionview, tmp_path, argv):
  assert "--help" in refused(inversionview, tmp_path, *argv)


@pytest.fixture
def copied(tmp_path):
  """A copy of the shipped reader that may be damaged."""
  return pathlib.Path(shutil.copytree(shipped_folder("addition"), tmp_path / "copied"))


@pytest.mark.parametrize("part", ["decoder", "target"])
@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
@pytest.mark.parametrize("size", [None, 0, 1000])
def test_damaged_reader_is_refused(inversionview, tmp_path, copied, part, file, size):
  path = copied / part / file
  content = path.read_bytes()
  path.unlink()
  if size is not None:
    path.write_bytes(content[:size] if size < len(content) else content[:-20])
  message = refused(inversionview, tmp_path, *view(reader=copied, html=tmp_path / "page.html"))
  assert file in message or part in message


def test_reader_whose_decoder_names_another_target_is_refused(inversionview, tmp_path, copied):
  path = copied / "decoder" / "model.json"
  metadata = json.loads(path.read_text())
  metadata["target"] |= {"name": "multiplication", "fingerprint": "0123456789abcdef"}
  path.write_text(json.dumps(metadata))
  message = refused(inversionview, tmp_path, *view(reader=copied))
  assert "multiplication" in message and "0123456789abcdef" in message


def test_path_below_a_file_is_refused(inversionview, tmp_path):
  (tmp_path / "file").write_text("")
  assert "file/below" in refused(inversionview, tmp_path, *view(reader="file/below"))
  for command in ("train", "train-target"):
    config = f"--config={ROOT / 'configs' / 'addition.py'}:tiny"
    assert "file/below" in refused(inversionview, tmp_path, command, config, "--workdir=file/below")


def test_training_names_settings_that_do_not_exist(inversionview, tmp_path):
  config = f"--config={ROOT / 'configs' / 'addition.py'}:tiny"
  assert "'stepps'" in refused(inversionview, tmp_path, "train", config, "--workdir=w", "--config.stepps=3")
  assert "'--colour'" in refused(inversionview, tmp_path, "train-target", config, "--workdir=w", "--colour")


def test_decoder_is_not_trained_on_a_target_that_its_reader_could_not_use(inversionview, tmp_path, make_target):
  config = f"--config={ROOT / 'configs' / 'addition.py'}:tiny"
  vocabulary = list(TASK.tokenizer.vocabulary)
  for name, seed, tokenizer in (
    ("own/target", 0, TASK.tokenizer),
    ("other", 1, TASK.tokenizer),
    ("swapped", 0, CharTokenizer(vocabulary[::-1])),
  ):
    target = make_target(seed)
    save_target(tmp_path / name, target.params, target.config, tokenizer, target.name, target.task)
  message = refused(inversionview, tmp_path, "train", config, "--workdir=own", "--target=other")
  assert "another target than other" in message
  message = refused(inversionview, tmp_path, "train", config, "--workdir=own", "--target=swapped")
  assert "0123456789+=" in message and "=+9876543210" in message


# From nothing to a reader.


def of_the_target(arguments):
  """Without the settings of the reader, which `train-target` refuses."""
  return [a for a in arguments if a.startswith(("--config=", "--workdir=", "--config.target.", "--config.data."))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """The folder that `train-target` and `train` leave: (folder, common arguments)."""
  folder = tmp_path_factory.mktemp("trained")
  model = {"n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}
  settings = [f"--config.{part}model.{key}={value}" for part in ("", "target.") for key, value in model.items()]
  settings += [
    f"--config.{part}{key}={value}" for part in ("", "target.") for key, value in (("steps", 20), ("batch_size", 16))
  ]
  settings += [
    f"--config.data.dir={folder / 'data'}",
    "--config.eval_queries=4",
    "--config.final_queries=8",
    "--config.encoder_blocks=0",
    "--config.optimizer.name=adamw",  # which compiles faster
    "--config.target.optimizer.name=adamw",
  ]
  common = [f"--config={ROOT / 'configs' / 'addition.py'}:tiny", f"--workdir={folder / 'work'}", *settings]
  # The target in a process of its own, as a user's shell starts it; the reader in this one.
  environment = os.environ | {"XLA_FLAGS": compilation.flags(), "PYTHONPATH": str(ROOT)}
  argv = [sys.executable, "-m", "inversionview_jax.cli", "train-target", *of_the_target(common)]
  done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert "Traceback" not in done.stderr and str(folder / "work") in done.stdout
  with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as out:
    assert cli.main(["train", *common]) == 0
  assert str(folder / "work") in out.getvalue()
  return folder / "work", common


def test_training_leaves_a_reader(inversionview, trained, tmp_path):
  work, _ = trained
  code, out, _ = inversionview(*view(reader=work, site="a0.1", json="data.json"))
  assert code == 0 and TEXT in out
  preimage = Preimage.from_json(tmp_path / "data.json")
  assert preimage.convention == "centered" and len(preimage.samples) == 40
  assert np.isfinite([sample.distance for sample in preimage.samples if sample.position >= 0]).all()
  for part in ("target", "decoder"):
    assert json.loads((work / part / "config.json").read_text())["steps"] == 20
    steps = [json.loads(line)["step"] for line in (work / part / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 20


def test_training_again_trains_nothing_and_ends_well(inversionview, trained):
  work, common = trained
  before = {path: path.read_bytes() for path in work.glob("*/m*")}
  assert {path.name for path in before} == {"metrics.jsonl", "model.json", "model.safetensors"} and len(before) == 6
  for command in ("train-target", "train"):
    code, out, error = inversionview(command, *(common if command == "train" else of_the_target(common)))
    assert code == 0 and str(work) in out and "step 20 of 20" in error
  assert {path: path.read_bytes() for path in work.glob("*/m*")} == before
