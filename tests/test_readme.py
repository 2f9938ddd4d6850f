"""Every README: its commands are parsed, short ones and Python blocks run, and the files it names exist."""

import configparser
import functools
import pathlib
import re
import shlex

import pytest

import inversionview_jax as iv
from inversionview_jax import cli, tasks
from inversionview_jax.commands import configs

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "inversionview_jax"
READMES = (
  "README.md",
  "configs/README.md",
  "launch/README.md",
  "launch/readers/README.md",
  "inversionview_jax/benchmarks/README.md",
  "inversionview_jax/causal/README.md",
  "inversionview_jax/interpret/README.md",
  "inversionview_jax/measures/README.md",
  "inversionview_jax/pretrained/README.md",
  "inversionview_jax/sampling/README.md",
  "inversionview_jax/show/README.md",
  "inversionview_jax/studies/README.md",
  "inversionview_jax/targets/README.md",
)
EACH_README = pytest.mark.parametrize("readme", READMES)


@functools.cache
def blocks(readme: str) -> tuple[tuple[str, str], ...]:
  """(language, text) of every fenced block."""
  text = (ROOT / readme).read_text()
  return tuple(re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))


def commands(readme: str) -> list[list[str]]:
  """Every shell command of a README as words: the lines of bash blocks, and those behind "$" elsewhere."""
  lines = []
  for language, block in blocks(readme):
    joined = block.replace("\\\n", " ").splitlines()
    if language == "bash":
      lines += joined
    elif language != "python":
      lines += [line.removeprefix("$ ") for line in joined if line.startswith("$ ")]
  return [words for line in lines if (words := shlex.split(line, comments=True))]


def listed(program: str) -> list:
  """The commands of this program in all READMEs, as test parameters."""
  return [
    pytest.param(words, id=f"{readme.removesuffix('README.md')}: {shlex.join(words[1:])}")
    for readme in READMES
    for words in commands(readme)
    if words[0] == program
  ]


def test_every_readme_is_in_the_list():
  present = {path.relative_to(ROOT) for path in ROOT.rglob("README.md")}
  ours = {
    path for path in present if not any(part.startswith(".") or part in ("build", "shared") for part in path.parts)
  }
  assert set(map(str, ours)) == set(READMES)


@pytest.mark.parametrize("words", listed("inversionview"))
def test_command_lines_are_parsed(words, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, rest = cli._parser().parse_known_args(words[1:])
  if not getattr(args, "config", None):
    assert not rest
  else:
    config = configs.load_config(args.config, rest)
    assert "plan" in config or "queries" in config or config.get("task", "addition") in tasks.names()


# Commands that need no file or model beyond the package and take seconds; the others are parsed only. They run as they stand, on fewer samples.
FEWER = {
  "view": {"--particles": "64", "--budget": "2000"},
  "measure": {"--particles": "64", "--budget": "2000", "--controls": "2"},
  "verify": {"--pairs": "256"},
}


def short_commands() -> list:
  """One command for each set of options that the READMEs show."""
  chosen = {}
  for param in listed("inversionview"):
    (words,) = param.values
    reader = words[words.index("--reader") + 1] if "--reader" in words else "addition"
    target = words[words.index("--target") + 1] if "--target" in words else reader
    if words[1] in FEWER and {reader, target} <= set(iv.shipped_readers()) and "exact" not in words:
      options = frozenset(word for word in words if word.startswith("--")) - {"--reader", "--shown"}
      if words[1] == "measure":  # the longest of them: once with a text, once with held-out inputs
        options = frozenset({words[2].startswith("--")})
      chosen.setdefault((words[1], options), param)
  return list(chosen.values())


@pytest.mark.slow
@pytest.mark.parametrize("words", short_commands())
@pytest.mark.slow
def test_short_commands_run(words, tmp_path, monkeypatch, capsys, loaded_once):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "P").mkdir()
  held_out = words[1] == "measure" and words[2].startswith("--")  # no text is given
  fewer = FEWER[words[1]] | ({"--queries": "2"} if held_out else {})
  words = words[1:]
  if words[0] == "view" and "decoder" in words:
    fewer = {"--num-samples": "64"}
  for option, value in fewer.items():
    if option in words:
      at = words.index(option) + 1
      words = [*words[:at], value, *words[at + 1 :]]
    else:
      words = [*words, option, value]
  assert cli.main(words) == 0
  assert capsys.readouterr().out.strip()


def test_there_are_short_commands():
  assert {param.values[0][1] for param in short_commands()} == set(FEWER)


def script_commands() -> list:
  return [param for program in ("python", "bash", "sbatch") for param in listed(program)]


@pytest.mark.parametrize("words", script_commands())
def test_scripts_exist(words):
  assert any((ROOT / word).is_file() for word in words[1:])


@EACH_README
def test_extras_exist(readme):
  parser = configparser.ConfigParser()
  parser.read(ROOT / "setup.cfg")
  for names in re.findall(
    r"pip install (?:-e )?'?\"?(?:\.|inversionview_jax)\[([\w,]+)\]", (ROOT / readme).read_text()
  ):
    assert set(names.split(",")) <= set(parser["options.extras_require"])


@EACH_README
def test_links_lead_to_files(readme):
  for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (ROOT / readme).read_text()):
    if not link.startswith("http"):
      assert (ROOT / readme).parent.joinpath(link).exists(), link


@EACH_README
def test_modules_and_tests_that_are_named_exist(readme):
  """`name.py` and `folder/` in the first column of a table, and paths from the root in text."""
  text, folder = (ROOT / readme).read_text(), (ROOT / readme).parent
  for row in re.findall(r"^\| (`[^|]*)\|", text, re.MULTILINE):
    for name in re.findall(r"`([\w/]+(?:\.py|/))`", row):
      assert any((base / name).exists() for base in (folder, PACKAGE, ROOT)), name
  for name in re.findall(r"`((?:tests|configs|launch|inversionview_jax)/[\w/.]*\w)`", text):
    assert (ROOT / name).exists(), name


def test_python_block_of_the_readme_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (code,) = [block for language, block in blocks("README.md") if language == "python"]
  fewer = {'site="a1.3", position="3"': "", 'site="a0.0", position="="': "num_samples=64, "}
  for call, more in fewer.items():
    assert code.count(call) == 1
    code = code.replace(call, f"{call}, {more}particles=64, budget=2000")
  names = {}
  exec(compile(code, "README.md", "exec"), names)  # the README is ours
  assert names["pre"].query.site == "a0.0"
  assert iv.Preimage.from_json(tmp_path / "preimage.json") == names["pre"].at(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("readme", [name for name in READMES[1:] if any(kind == "python" for kind, _ in blocks(name))])
@pytest.mark.slow
def test_other_python_blocks_run(readme, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(tfds, "data_source", functools.partial(tfds.data_source, data_dir=tmp_path))
  for language, code in blocks(readme):
    if language == "python":
      exec(compile(code, readme, "exec"), {})  # the READMEs are ours


def test_there_are_commands_to_check():
  assert len(commands("README.md")) >= 5 and sum(len(commands(readme)) for readme in READMES) >= 80
