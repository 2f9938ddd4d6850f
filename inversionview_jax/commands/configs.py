"""Config files as flags: `--config FILE[:VARIANT]` and `--config.key=value`."""

import difflib
import pathlib
import sys

from inversionview_jax.errors import InversionViewError


def load_config(path: str, overrides: list[str]):
  """A config file with its variant and overrides, as the flags `--config` and `--config.key=value` give them.

  Raises:
    InversionViewError: no such file or variant, an unknown key (the closest are named), or a value of another type.
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
  sys.modules.pop("config_config", None)  # a config that was read before, whose names would be found again
  try:
    left = values(argv)
    config = values.config
  except (AttributeError, KeyError) as error:
    asked = [
      argument.split("=")[0].removeprefix("--config.") for argument in overrides if argument.startswith("--config.")
    ]
    known = config_flags_defaults(path) if asked else []
    if not (unknown := [key for key in asked if key not in known]):
      raise InversionViewError(f"config {path}: {' '.join(str(error).split())}") from None
    near = difflib.get_close_matches(unknown[0], known, n=3, cutoff=0.5) or sorted(known)[:12]
    raise InversionViewError(f"unknown config key {unknown[0]!r} in {path}; closest: {', '.join(near)}") from None
  except (flags.Error, ValueError, TypeError, OSError, SyntaxError) as error:
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    raise InversionViewError(f"config {path}: {lines[-1].strip() if 'Traceback' in str(error) else lines[0]}") from None
  if not isinstance(config, ConfigDict):
    raise InversionViewError(f"config {path}: it has no get_config that returns a ConfigDict")
  if left[1:]:
    raise InversionViewError(f"unknown argument {left[1]!r}; settings look like --config.steps=1000")
  return config


def config_flags_defaults(path: str) -> list[str]:
  """Every key of a config, dotted."""
  from ml_collections import ConfigDict

  def keys(config, prefix=""):
    for name, value in config.items():
      yield prefix + name
      if isinstance(value, ConfigDict):
        yield from keys(value, f"{prefix}{name}.")

  return list(keys(load_config(path, [])))
