"""What the tests of commands share."""

from collections.abc import Callable

import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.targets import save_target


@pytest.fixture(autouse=True)
def _loaded_once(loaded_once):
  """Most of the time would go into compiling the same programs for equal targets."""


@pytest.fixture
def inversionview(capsys, tmp_path, monkeypatch) -> Callable[..., tuple[int, str, str]]:
  """A function (arguments) -> (exit code, stdout, stderr), in the folder `tmp_path`."""
  monkeypatch.chdir(tmp_path)

  def run(*argv):
    code = cli.main([str(argument) for argument in argv])
    return code, *capsys.readouterr()

  return run


@pytest.fixture
def refused(inversionview, tmp_path) -> Callable[..., str]:
  """A function (arguments) -> the one line on stderr of a command that fails and writes nothing."""

  def run(*argv):
    before = {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, out, error = inversionview(*argv)
    assert (code, out) == (2, "")
    assert error.startswith("inversionview: ") and error.endswith("\n") and error.count("\n") == 1
    assert {path: path.lstat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    return error

  return run


@pytest.fixture
def saved_target(small_target, tmp_path):
  """The folder of a small target of addition."""
  t = small_target
  save_target(tmp_path / "T", t.params, t.config, tasks.get("addition").tokenizer, t.name, t.task)
  return tmp_path / "T"


@pytest.fixture
def no_moves(monkeypatch):
  """Addition without moves."""
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.moves", tasks.Task.moves)
  monkeypatch.setattr("inversionview_jax.tasks.addition.Addition.log_prior", tasks.Task.log_prior)
  monkeypatch.setattr("inversionview_jax.tasks.base.check_size", _too_many)


def _too_many(*_):
  raise InversionViewError("no list of so many")
