"""Command lines that cannot be: each is one line on stderr with exit code 2, and leaves nothing behind."""

import json
import os
import pathlib
import shutil

import pytest
from refusals import refusal

from inversionview_jax import cli, locks

ROOT = pathlib.Path(__file__).parent.parent.parent
ADDITION = f"{ROOT}/configs/addition.py:tiny"
SAVED = ROOT / "tests" / "preimage" / "saved" / "version_2.json"
LONG = "n" * 300


@pytest.fixture
def files(tmp_path):
  """Files that no command can use, in the current folder."""
  (tmp_path / "loop").symlink_to(tmp_path / "loop")
  os.mkfifo(tmp_path / "pipe")
  os.mkfifo(tmp_path / "pipe.py")
  (tmp_path / "folder.py").mkdir()
  (tmp_path / "deep.json").write_text("[" * 100_000)
  (tmp_path / "deep.jsonl").write_text('{"a":' * 100_000 + "\n")
  (tmp_path / "empty").mkdir()
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "a.json").write_text("[" * 100_000)
  (tmp_path / "P").mkdir()
  shutil.copy(SAVED, tmp_path / "P")
  (tmp_path / "W" / "model").mkdir(parents=True)
  (tmp_path / "W" / "decoder").mkdir()
  (tmp_path / "W" / "decoder" / "model.json").write_text("[" * 100_000)
  (tmp_path / "H").mkdir()
  (tmp_path / "H" / "config.json").write_text("[" * 100_000)
  (tmp_path / "texts").write_text("100+200=\n")
  (tmp_path / "bad_texts").write_text("100+200=300\nnot a sum\n")
  (tmp_path / "queries").write_text('{"text": "100+200=", "site": "a0.0", "position": "="}\n')
  (tmp_path / "a_file").write_text("")
  return tmp_path


CONFIG = {
  "raises": ("\n\ndef get_config():\n  return 1 / 0\n", "line 4: ZeroDivisionError"),
  "exits": ("import sys\ndef get_config():\n  sys.exit(3)\n", "line 3: it ends the program"),
  "exits_at_once": ("raise SystemExit\n", "line 1: it ends the program"),
  "asserts": ("def get_config():\n  assert False\n", "line 2: AssertionError"),
  "imports": ("import no_such_module_anywhere\n", "line 1: ModuleNotFoundError"),
  "opens": ("open('/no/such/file')\n", "line 1: FileNotFoundError"),
  "recurses": ("def get_config():\n  return get_config()\n", "RecursionError"),
  "syntax": ("def get_config(:\n", "line 1: invalid syntax"),
  "bytes": ("\x00", "null bytes"),
  "nothing": ("", "no get_config"),
  "none": ("def get_config(): pass\n", "returned no ConfigDict"),
  "argument": ("def get_config(variant): pass\n", "missing 1 required positional argument"),
  "base": ("class Odd(BaseException):\n  def __str__(self): raise ValueError\nraise Odd\n", "line 3: Odd"),
}
COMMANDS = [
  ("train", "--workdir=out"), ("train-target", "--workdir=out"), ("patch", "--out=out"), ("heads",), ("plan", "--topology=cpu:2"),
  ("report", "--out=out.html"),
]  # fmt: skip


@pytest.mark.parametrize("name", CONFIG)
def test_a_config_that_fails_is_one_line_with_its_place(refused, tmp_path, name):
  content, named = CONFIG[name]
  (tmp_path / "c.py").write_text(content)
  for command, *more in COMMANDS if name in ("raises", "exits") else COMMANDS[:1]:
    message = refused(command, "--config", "c.py", *more)
    assert "config c.py" in message and named in message, message


@pytest.mark.parametrize("name", ["raises", "base"])
def test_with_debug_the_traceback_of_a_config_is_shown_before_the_line(inversionview, tmp_path, name):
  content, named = CONFIG[name]
  (tmp_path / "c.py").write_text(content)
  code, out, error = inversionview("train", "--debug", "--config", "c.py", "--workdir", "out")
  assert (code, out) == (2, "") and not (tmp_path / "out").exists()
  *above, line = error.splitlines()
  assert line.startswith("inversionview: config c.py, ") and named in line
  assert above[0] == "Traceback (most recent call last):" and any('File "c.py", line' in shown for shown in above)


def test_every_command_has_debug(inversionview):
  """What cannot be parsed is shown with its traceback, too, and control characters of a message stay visible."""
  for command in cli._COMMANDS:
    name = command.__name__.rsplit(".", 1)[1].strip("_")
    code, out, error = inversionview(name, "--debug", "--no\x1bsuch")
    assert (code, out) == (2, "") and "\x1b" not in error
    assert error.startswith("Traceback") and error.splitlines()[-1].startswith("inversionview: ")


REFUSED = [
  # config files and settings
  ("train --config loop --workdir out", "no config file|symbolic links"),
  ("train --config pipe.py --workdir out", "no config file"),
  ("train --config folder.py --workdir out", "no config file"),
  (f"train --config {LONG} --workdir out", "too long"),
  ("train --config ~nosuchuser/x.py --workdir out", "no home folder"),
  (f"train --config {ADDITION} --workdir out --flagfile=queries", "unknown argument"),
  (f"train --config {ADDITION} --workdir out --config.steps", "steps"),
  (f"train --config {ADDITION} --workdir out --config.steps=10 extra", "unknown argument 'extra'"),
  # what train is given
  (f"train --config {ADDITION} --workdir out --config.average=2.0", "average = 2.0"),
  (f"train --config {ADDITION} --workdir out --config.bos_rate=nan", "bos_rate = nan"),
  (f"train --config {ADDITION} --workdir out --config.optimizer.b2=2.0", "optimizer.b2 = 2.0"),
  (f"train --config {ADDITION} --workdir out --config.encoder_blocks=-1", "encoder_blocks = -1"),
  (f"train --config {ADDITION} --workdir out --config.n_slots=0", "n_slots = 0"),
  (f"train --config {ADDITION} --workdir out --config.encoder_width=-1", "encoder_width = -1"),
  (f"train --config {ADDITION} --workdir out --config.sites=5", "sites"),
  (f"train --config {ADDITION} --workdir out --config.batch_size=1000000000000", "batch_size = 1000000000000"),
  (f"train --config {ADDITION} --workdir out --config.task=ioi", "target.path"),
  (f"train --config {ADDITION} --workdir out --config.task=nosuch", "nosuch"),
  (f"train --config {ADDITION} --workdir out --config.sites=('a9.9',)", "a9.9"),
  (f"train --config {ADDITION} --workdir out --config.model.n_heads=3", "n_heads"),
  (f"train --config {ADDITION} --workdir out --config.data.config=nosuch", "nosuch"),
  (f"train --config {ADDITION} --workdir out --config.data.dir=~nosuchuser/x", "no home folder"),
  (f"train --config {ADDITION} --workdir out --config.optimizer.lr=1e400", "optimizer.lr = inf"),
  (f"train --config {ADDITION} --workdir out --config.init_from=nosuch", "init_from = 'nosuch'"),
  (f"train --config {ADDITION} --workdir out --config.init_from=~nosuchuser/x", "no home folder"),
  (f"train --config {ADDITION} --workdir out --config.profile=5:1", "profile"),
  (f"train --config {ADDITION} --workdir out --target nosuch", "nosuch"),
  (f"train --config {ADDITION} --workdir out --target {LONG}", "too long"),
  (f"train --config {ADDITION} --workdir a_file/out", "a_file"),
  (f"train --config {ADDITION} --workdir loop", "symbolic links"),
  (f"train --config {ADDITION} --workdir ~nosuchuser/out", "no home folder"),
  (f"train --config {ROOT}/configs/ioi.py:tiny --workdir out --config.target.convention=odd", "target.convention = 'odd'"),
  (f"train --config {ROOT}/configs/ioi.py:tiny --workdir out", "--target"),
  (f"train --config {ROOT}/configs/ioi.py:tiny --workdir out --target H", "nested too deep"),
  (f"train-target --config {ADDITION} --workdir out --config.target.steps=0", "target.steps = 0"),
  (f"train-target --config {ADDITION} --workdir out --config.target.average=1.0", "target.average = 1.0"),
  (f"train-target --config {ADDITION} --workdir out --config.target.eval_examples=0", "target.eval_examples = 0"),
  (f"train-target --config {ADDITION} --workdir out --config.target.start.target=nosuch", "nosuch"),
  (f"train-target --config {ROOT}/configs/ioi.py:tiny --workdir out", "language model"),
  # sample
  ("sample --requests queries --out out --mixture nosuch", "nosuch"),
  ("sample --requests pipe --out out", "pipe"),
  ("sample --requests empty --out out", "a folder"),
  ("sample --requests deep.jsonl --out out", "nested too deep"),
  ("sample --requests queries --out a_file", "a_file"),
  ("sample --requests queries --out out --reader W", "nested too deep"),
  (f"sample --requests queries --out out --reader {LONG}", "too long"),
  ("sample --requests texts --out out --site a0.0 --position 99", "99"),
  # export
  ("export 100+200=300 100/200 --out out --site a0.0 --position =", "100/200|'/'"),
  ("export --texts bad_texts --out out --site a0.0 --position =", "not a sum|'n'"),
  ("export 100+200=300 --out out --site a9.9 --position =", "a9.9"),
  ("export 100+200=300 --out out --site a0.0 --position 99", "99"),
  ("export 100+200=300 --out a_file --site a0.0 --position =", "a_file"),
  ("export 100+200=300 --out out --mixture nosuch --site a0.0 --position =", "nosuch"),
  # report and interpret
  ("report full --out out.html", "nested too deep"),
  ("report loop --out out.html", "symbolic links|no folder"),
  (f"report {LONG} --out out.html", "too long"),
  ("report P --out folder.py", "a folder"),
  ("report P --out pipe", "not a file"),
  ("report P --out nosuch/out.html", "nosuch"),
  ("report P --out ~nosuchuser/out.html", "no home folder"),
  ("report --text 100+200= --position = --site a9.9 --out out.html --save saved", "a9.9"),
  ("interpret full --model m --out out", "no preimages|nested too deep"),
  ("interpret pipe --model m --out out", "pipe"),
  ("interpret loop --model m --out out", "symbolic links"),
  ("interpret deep.json --model m --out out", "nested too deep"),
  ("interpret --target addition --site a0.0 --position = --inputs 2 --model m --out out --replay nosuch.jsonl", "nosuch.jsonl"),
  ("interpret --target addition --site a0.0 --position = --inputs 2 --model m --out out --replay deep.jsonl", "line 1"),
  ("interpret --target addition --site a0.0 --position = --inputs 2 --model m --out out --replay texts", "line 1"),
  ("interpret --target addition --site a0.0 --position = --inputs 2 --model m --out out --replay empty", "a folder"),
  # import
  ("import P --task addition --out out", "P"),
  ("import empty --task addition --out out", "empty"),
  ("import empty --task addition --out a_file/x", "a_file"),
  # patch, heads and plan
  (f"patch --config {ROOT}/configs/verify_addition.py:A1_F1S1 --out a_file", "a_file"),
  (f"patch --config {ROOT}/configs/verify_addition.py:A1_F1S1 --out out --config.pairs=0", "pairs = 0"),
  (f"patch --config {ROOT}/configs/verify_addition.py:A1_F1S1 --out out --config.batch_size=-1", "batch_size = -1"),
  (f"patch --config {ROOT}/configs/verify_addition.py:A1_F1S1 --out out --config.split=odd", "split = 'odd'"),
  (f"patch --config {ADDITION} --out out", "no experiments"),
  ("heads --prompts pipe --target addition", "pipe|kind"),
  ("heads --prompts deep.jsonl --target addition", "nested too deep"),
  ("heads --task addition --position = --json empty", "a folder"),
  ("heads --task addition --position = --target H", "nested too deep"),
  (f"plan --config {ADDITION} --topology cpu:2 --json empty", "a folder"),
  (f"plan --config {ADDITION} --topology cpu:2 --config.n_slots=0", "n_slots = 0"),
  (f"plan --config {ROOT}/configs/plan_gpt2_xl.py --topology cpu:2 --config.plan.length=1", "plan.length = 1"),
  (f"plan --config {ROOT}/configs/gallery.py --topology cpu:2", "encoder_blocks"),
]  # fmt: skip


@pytest.mark.parametrize("line, named", REFUSED, ids=lambda part: part.replace(str(ROOT), "")[:70])
def test_a_bad_command_line_is_one_line_and_leaves_nothing(refused, files, line, named):
  message = refused(*line.split())
  assert any(part in message for part in named.split("|")), message
  assert len(message) < 700


@pytest.mark.parametrize(
  "queries, named",
  [
    ("(('addition', '100+200=', 'a0.0'),)", "is not (reader, text, site, position)"),
    ("(('addition', 5, 'a0.0', '='),)", "is not (reader, text, site, position)"),
    ("5", "queries = 5 must be a list"),
    ("(('nosuch', '100+200=', 'a0.0', '='),)", "nosuch"),
  ],
)
def test_queries_of_a_report_that_are_none_are_refused(refused, tmp_path, queries, named):
  (tmp_path / "c.py").write_text(
    f"from ml_collections import ConfigDict\ndef get_config():\n  return ConfigDict({{'queries': {queries}}})\n"
  )
  assert named in refused("report", "--config", "c.py", "--out", "out.html")


@pytest.mark.parametrize(
  "experiments, named",
  [
    ("5", "no experiments"), ("{}", "no experiments"), ("{'a': 5}", "experiments.a = 5"), ("{'a': {'kind': 3}}", "experiments.a.kind = 3"),
    ("{'a': {'kind': 'patch', 'addresses': 'a0.0@='}}", "experiments.a.addresses"),
    ("{'a/b': {'kind': 'patch'}}", "cannot name its files"), ("{'a': {'kind': 'patch'}}", "lacks"),
  ],
)  # fmt: skip
def test_experiments_that_are_none_are_refused(refused, tmp_path, experiments, named):
  (tmp_path / "c.py").write_text(
    "from ml_collections import ConfigDict\nfrom inversionview_jax import config_blocks\ndef get_config():\n"
    f"  config = ConfigDict(config_blocks.experiments('addition', 8, 8).to_dict() | {{'experiments': {experiments}}})\n  return config\n"
  )
  assert named in refused("patch", "--config", "c.py", "--out", "out")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_pipe_among_the_files_of_a_model_is_refused(refused, tmp_path, name):
  """Without a check, reading it would wait for ever."""
  shutil.copytree(ROOT / "inversionview_jax" / "shipped" / "addition" / "target", tmp_path / "T")
  (tmp_path / "T" / name).unlink()
  os.mkfifo(tmp_path / "T" / name)
  assert "pipe" in refused("heads", "--target", "T", "--task", "addition", "--position", "=")


def test_a_pipe_among_the_files_of_a_hugging_face_folder_is_refused(tmp_path):
  from inversionview_jax.pretrained import tokenizer_files, weights

  for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
    folder = tmp_path / name
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    read = weights.Safetensors if "safetensors" in name else lambda folder: tokenizer_files.from_folder(folder, {})
    assert "pipe" in refusal(read, folder)


def test_a_refused_export_leaves_what_was_there(inversionview, tmp_path):
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "kept").write_text("kept")
  code, out, error = inversionview(
    "export", "100+200=300", "1*2=3", "--out", "out", "--site", "a0.0", "--position", "="
  )
  assert (code, out) == (2, "") and "'*'" in error
  assert [path.name for path in (tmp_path / "out").iterdir()] == ["kept"]


@pytest.mark.parametrize("command", ["train", "train-target"])
def test_a_workdir_that_another_run_is_using_is_refused(inversionview, tmp_path, command):
  for used in ("W", "W/decoder" if command == "train" else "W/target"):
    (tmp_path / used).mkdir(parents=True, exist_ok=True)
    with locks.exclusive(tmp_path / used, ""):
      code, out, error = inversionview(command, "--config", ADDITION, "--workdir", "W")
    assert (code, out) == (2, "") and error.count("\n") == 1
    assert (
      f"in use by process {os.getpid()} " in error and str(tmp_path / used) in error and "another --workdir" in error
    )
  assert all(path.is_dir() for path in (tmp_path / "W").rglob("*"))


def test_half_a_surrogate_pair_in_a_saved_preimage_is_shown_and_does_not_fail(inversionview, tmp_path):
  """A byte-level vocabulary has such tokens; they have no UTF-8."""
  table = json.loads(SAVED.read_text())
  for name in ("text", "label", "site"):
    table["query"][name] = "\ud800"
  table["reader"] = table["task"] = "\ud800"
  (tmp_path / "P").mkdir()
  (tmp_path / "P" / "a.json").write_text(json.dumps(table))
  code, _, error = inversionview("report", "P", "--out", "out.html")
  assert code == 0 and not error
  assert (tmp_path / "out.html").read_bytes().decode()


def test_a_command_line_that_cannot_be_parsed_is_one_line(capsys):
  for line in (["train"], ["sample", "--out", "x"], ["plan", "--config", "x"], ["nosuch"]):
    try:
      code = cli.main(line)
    except SystemExit as error:
      code = error.code
    assert code == 2 and "Traceback" not in capsys.readouterr().err


def test_settings_of_sample_are_json(tmp_path):
  """What `sample` compares to know whether it resumes the same command can be written and read again."""
  from inversionview_jax import tasks

  for name in tasks.names():
    if not tasks.is_language(name):
      settings = tasks.get(name).settings
      assert json.loads(json.dumps(settings)) == settings
