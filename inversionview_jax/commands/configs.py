"""Configs as flags: `--config NAME[:VARIANT]` or `--config FILE[:VARIANT]`, and `--config.KEY=VALUE`."""

import contextlib
import difflib
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file, path_of

if TYPE_CHECKING:
  from ml_collections import ConfigDict

# The project's own configs: inside of the package where a wheel was installed, beside it in a checkout.
_FOLDERS = (pathlib.Path(__file__).parents[1] / "configs", pathlib.Path(__file__).parents[2] / "configs")
_MODULE = "inversionview_config"  # name under which a config file is run
_LONGEST_REASON = 300  # characters


def load_config(path: str, overrides: Sequence[str]) -> "ConfigDict":
  """A config with its variant and overrides, as the flags `--config` and `--config.KEY=VALUE` give them.

  Args:
    path: FILE or FILE:VARIANT, where FILE is a path, or the name of one of the project's own configs, such as "addition".
    overrides: arguments such as "--config.steps=1000".

  Raises:
    InversionViewError: no such file or variant, a file that raises (by its line), an unknown key (the closest are named), a key that was
      renamed, or a value of another type.
  """
  from absl import flags
  from ml_collections import config_flags

  config = _run(path)
  _refuse_other_arguments(overrides)
  argv = ["inversionview", *overrides]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    remaining = values(argv)
  except (AttributeError, KeyError) as error:
    raise _unknown_key(path, overrides, error) from None
  except Exception as error:  # of the many kinds of absl and of Python, for a value that a key cannot have
    raise InversionViewError(f"config {path}: {_reason(error)}") from None
  if remaining[1:]:
    raise InversionViewError(f"unknown argument {remaining[1]!r}; settings look like --config.steps=1000")
  return values.config


def own_configs() -> dict[str, pathlib.Path]:
  """The project's own configs: name -> file, in alphabetical order. Empty where neither a checkout nor a wheel has them."""
  folder = next((folder for folder in _FOLDERS if (folder / "addition.py").is_file()), None)
  files = sorted(folder.glob("*.py")) if folder else ()
  return {file.stem: file for file in files if not file.stem.startswith("_")}


def config_file(path: str) -> pathlib.Path:
  """The file of a config.

  Args:
    path: a file, or the name of one of the project's own configs; a variant behind a colon is left out. A file of that name in the current
      folder goes first.

  Raises:
    InversionViewError: neither a file nor one of these names, which the message lists.
  """
  name, colon, variant = path.partition(":")
  file = path_of(name) if name else pathlib.Path(name)
  if name and file.is_file():
    return file
  own = own_configs()
  if name in own:
    return own[name]
  stem = file.name.removesuffix(".py")
  if stem in own:  # configs/addition.py, outside of a checkout
    raise InversionViewError(
      f"no config file {file}; the one of this project is found by its name: --config {stem}{colon}{variant}"
    )
  near = difflib.get_close_matches(stem, own, n=3)
  known = f"closest: {', '.join(near)}" if near else f"there are {', '.join(own)}"
  raise InversionViewError(
    f"no config file {name!r}; give a path, or the name of a config of this project, such as addition:tiny; {known}"
  )


def run_config_file(path: str) -> types.ModuleType:
  """The module of a config file, run anew; raises `InversionViewError` whatever happens in it, by its line."""
  file = config_file(path)
  with _running(path, file) as module:
    return module


@contextlib.contextmanager
def _running(path: str, file: pathlib.Path) -> Iterator[types.ModuleType]:
  """The module of a file while its functions are called; every exception from them is an `InversionViewError`."""
  module = types.ModuleType(_MODULE)
  module.__file__ = str(file)
  before = sys.modules.get(_MODULE)
  sys.modules[_MODULE] = module  # where dataclasses of the file look for their module
  try:
    with open_file(file) as source:
      exec(compile(source.read(), str(file), "exec"), module.__dict__)  # leaves no __pycache__ beside the file
    yield module
  except KeyboardInterrupt:
    raise
  except BaseException as error:  # SystemExit, too: a config is not to end the program
    raise InversionViewError(f"config {path}{_line_of(error, str(file))}: {_reason(error)}") from None
  finally:
    sys.modules.pop(_MODULE)
    if before is not None:
      sys.modules[_MODULE] = before


def _run(path: str) -> "ConfigDict":
  """What the file's `get_config` returns, locked; raises `InversionViewError` whatever happens in it."""
  from ml_collections import ConfigDict

  colon, variant = path.partition(":")[1:]
  with _running(path, config_file(path)) as module:
    if not callable(get_config := getattr(module, "get_config", None)):
      raise InversionViewError("it has no get_config that returns a ConfigDict")
    config = get_config(*([variant] if colon else []))
    if not isinstance(config, ConfigDict):
      raise InversionViewError(f"its get_config returned no ConfigDict, but {type(config).__name__}")
    config.lock()
    config.to_dict()  # whatever is computed when it is read
    return config


def _line_of(error: BaseException, file: str) -> str:
  """Where in the file an exception came from, as ", line 3"; "" if that is not known."""
  if isinstance(error, SyntaxError) and error.filename == file and error.lineno:
    return f", line {error.lineno}"
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
  return f", line {lines[-1]}" if lines else ""


def _reason(error: BaseException) -> str:
  """An exception in one line."""
  if isinstance(error, SystemExit):
    return f"it ends the program (exit code {error.code}); let get_config return a ConfigDict"
  try:
    text = " ".join((error.msg if isinstance(error, SyntaxError) and error.msg else str(error)).split())
  except Exception:  # of a class whose message cannot be made
    text = ""
  text = text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}..."
  if isinstance(error, ValueError) and text:
    return text
  kind = "invalid syntax" if isinstance(error, SyntaxError) else type(error).__name__
  return f"{kind}: {text}" if text and text != kind else kind


def _refuse_other_arguments(overrides: Sequence[str]) -> None:
  """Raises `InversionViewError` for an argument that is no setting of the config: absl would take --flagfile and others for itself."""
  takes_value = False
  for argument in overrides:
    setting = re.match(r"--?(no)?config\.", argument)
    if not setting and not (takes_value and not argument.startswith("-")) and not _is_number(argument, takes_value):
      raise InversionViewError(f"unknown argument {argument!r}; settings look like --config.steps=1000")
    takes_value = bool(setting) and "=" not in argument


def _is_number(argument: str, takes_value: bool) -> bool:
  return takes_value and re.fullmatch(r"-[0-9.][0-9.eE+-]*", argument) is not None


def changed(path: str, config: "ConfigDict") -> dict[str, tuple[object, object]]:
  """Dotted key -> (its value, its default) of every setting in which a config differs from its file's default variant.

  Args:
    path: as for `load_config`.
    config: what was loaded from it.
  """
  try:
    default = dict(_leaves(load_config(path.partition(":")[0], [])))
  except InversionViewError:  # a file without a default variant
    default = dict(_leaves(load_config(path, [])))
  return {key: (value, default.get(key)) for key, value in _leaves(config) if value != default.get(key)}


def summary(path: str, config: "ConfigDict", saved: object, only: Callable[[str], bool] = lambda key: True) -> str:
  """The settings of a config that differ from their default, a line for each, and where the whole config is.

  Args:
    path, config: as for `changed`.
    saved: the file that has all settings.
    only: which keys are shown.
  """
  different = {
    key: values
    for key, values in changed(path, config).items()
    if only(key) and key.split(".")[-1] not in ("about", "phases")
  }
  rows = [(key, str(value), str(default)) for key, (value, default) in different.items()]
  widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]] if rows else []
  lines = [f"  {key:{widths[0]}}  {value:{widths[1]}}  (default {default})" for key, value, default in rows]
  what = "what differs from its default" if rows else "all of it the default"
  return "\n".join([f"config {path}: {what}; the whole of it is in {saved}", *lines])


def _leaves(config: "ConfigDict", prefix: str = "") -> Iterator[tuple[str, object]]:
  """(dotted key, value) of every setting that is no block."""
  from ml_collections import ConfigDict

  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{prefix}{name}.")
    else:
      yield prefix + name, value


def config_keys(path: str) -> list[str]:
  """Every key of a config, dotted, such as "optimizer.lr"."""
  return list(_keys(load_config(path, [])))


def _keys(config: "ConfigDict", prefix: str = "") -> Iterator[str]:
  from ml_collections import ConfigDict

  for name, value in config.items():
    yield prefix + name
    if isinstance(value, ConfigDict):
      yield from _keys(value, f"{prefix}{name}.")


def _unknown_key(path: str, overrides: Sequence[str], error: Exception) -> InversionViewError:
  """The error for the first override whose key the config does not have, or for `error` where all keys exist."""
  keys = [
    argument.split("=")[0].removeprefix("--config.") for argument in overrides if argument.startswith("--config.")
  ]
  known = config_keys(path) if keys else []
  unknown = [key for key in keys if key not in known]
  if not unknown:
    return InversionViewError(f"config {path}: {' '.join(str(error).split())}")
  from inversionview_jax.models import storage

  storage.refuse_renamed(unknown)
  near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5) or sorted(known)[:12]
  return InversionViewError(f"unknown config key {unknown[0]!r} in {path}; closest: {', '.join(near)}")
