"""What the README shows must run as it stands."""

import pathlib
import re
import shlex

import pytest

import inversionview_jax as iv
from inversionview_jax import cli, tasks
from inversionview_jax.commands import configs

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
  line.split("   #")[0].strip()
  for language, block in BLOCKS
  if language == "bash"
  for line in block.splitlines()
  if line.startswith("inversionview ")
]


def test_python_block_runs(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (code,) = [block for language, block in BLOCKS if language == "python"]
  names = {}
  exec(compile(code, "README.md", "exec"), names)  # the README is ours
  assert names["pre"].query.site == "a0.0"
  assert iv.Preimage.from_json(tmp_path / "preimage.json") == names["pre"]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines_are_understood(command, monkeypatch):
  monkeypatch.chdir(ROOT)
  args, rest = cli._parser().parse_known_args(shlex.split(command)[1:])
  if not getattr(args, "config", None):
    assert not rest
  else:
    config = configs.load_config(args.config, rest) if args.config else {"task": "addition"}
    assert "plan" in config or config.get("task", "addition") in tasks.names()


def test_there_are_commands_to_check():
  assert len(COMMANDS) >= 5


def test_every_module_it_names_is_there():
  table = re.search(r"^\| module \| what \|$.*?^$", README, re.MULTILINE | re.DOTALL).group()
  for name in re.findall(r"`([\w/]+(?:\.py|/))`", table):
    assert (ROOT / "inversionview_jax" / name).exists(), name
