"""Config files as flags: `--config FILE[:VARIANT]` and `--config.KEY=VALUE`."""

import difflib
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from inversionview_jax.errors import InversionViewError

if TYPE_CHECKING:
  from ml_collections import ConfigDict


def load_config(path: str, overrides: Sequence[str]) -> "ConfigDict":
  """A config with its variant and overrides, as the flags `--config` and `--config.KEY=VALUE` give them.

  Args:
    path: FILE or FILE:VARIANT.
    overrides: arguments such as "--config.steps=1000".

  Raises:
    InversionViewError: no such file or variant, an unknown key (the closest are named), a key that was renamed, or a value of another type.
  """
  from absl import flags
  from ml_collections import ConfigDict, config_flags

  argv = ["inversionview", f"--config={path}", *overrides]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, "", flag_values=values, sys_argv=argv)
  file = pathlib.Path(path.split(":")[0])
  if not file.is_file():
    raise InversionViewError(
      f"no config file {file}; configs of this project are in configs/, for example configs/addition.py:tiny"
    )
  sys.modules.pop(
    "config_config", None
  )  # config_flags loads every file under this name; the last one must not be taken for this one
  try:
    remaining = values(argv)
    config = values.config
  except (AttributeError, KeyError) as error:
    raise _unknown_key(path, overrides, error) from None
  except (flags.Error, ValueError, TypeError, OSError, SyntaxError) as error:
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    raise InversionViewError(f"config {path}: {lines[-1].strip() if 'Traceback' in str(error) else lines[0]}") from None
  if not isinstance(config, ConfigDict):
    raise InversionViewError(f"config {path}: it has no get_config that returns a ConfigDict")
  if remaining[1:]:
    raise InversionViewError(f"unknown argument {remaining[1]!r}; settings look like --config.steps=1000")
  return config


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
