"""Work units of a sweep: a config, its `get_hyper` and a workdir -> the commands to run, each parsed by the real flag parser first."""

import dataclasses
import re
from collections.abc import Sequence

import hyper

from inversionview_jax import cli
from inversionview_jax.commands import configs, train
from inversionview_jax.errors import InversionViewError, one_of

COMMANDS = ("train", "train-target")


@dataclasses.dataclass(frozen=True)
class Unit:
  """One work unit.

  Attributes:
    wid: its number in the sweep, from 1.
    hyper: the flags that the sweep sets, with their values.
    workdir: with `{xid}` and `{wid}` filled in.
    arguments: of `inversionview`, the command first.
  """

  wid: int
  hyper: dict[str, object]
  workdir: str
  arguments: tuple[str, ...]


def work_units(
  config: str, command: str, workdir: str, overrides: Sequence[str], xid: str, swept: bool = True, only: str = ""
) -> list[Unit]:
  """All work units of a sweep, checked.

  Args:
    config: a config by name or file, and a variant, such as addition:tiny.
    command: of `inversionview`: "train" or "train-target".
    workdir: may contain `{xid}` (the experiment) and `{wid}` (the work unit).
    overrides: `--config.key=value`, the same in every unit.
    xid: the experiment's id.
    swept: whether to run the sweep of the config's `get_hyper`; if not, or without `get_hyper`, there is a single unit.
    only: which units to keep, such as "1,4-6"; "": all.

  Raises:
    InversionViewError: an unknown config, key, value, workdir or unit, units that would share a workdir, or an override of a key that the sweep
      sets.
  """
  if command not in COMMANDS:
    raise one_of("command", command, COMMANDS)
  for name in re.findall(r"{(.*?)}", workdir):
    if name not in ("xid", "wid"):
      raise InversionViewError(f"--workdir {workdir}: {{{name}}} is unknown; there are {{xid}} and {{wid}}")
  if "://" in workdir:
    raise InversionViewError(f"--workdir {workdir}: mount the bucket and give its path")
  configs.load_config(config, list(overrides))  # errors of the config itself come first
  sweep = _sweep(config) if swept else [{}]
  if len(sweep) > 1 and "{wid}" not in workdir:
    raise InversionViewError(
      f"--workdir {workdir} would be shared by {len(sweep)} work units; put {{wid}} into it, or add --nosweep"
    )
  given = {argument.split("=")[0].removeprefix("--") for argument in overrides}
  units = []
  for wid, setting in enumerate(sweep, start=1):
    if both := given & setting.keys():
      raise InversionViewError(f"--{min(both)} is set by the sweep of {config}; leave it out, or add --nosweep")
    folder = workdir.replace("{xid}", xid).replace("{wid}", str(wid))
    flags = [f"--{name}={value}" for name, value in setting.items()]
    unit = Unit(wid, setting, folder, (command, f"--config={config}", f"--workdir={folder}", *overrides, *flags))
    _check(unit)
    units.append(unit)
  return _kept(units, only)


def _sweep(config: str) -> hyper.Hyper:
  """The sweep of the config file's `get_hyper`; [{}] if it has none."""
  path, module = configs.config_file(config), configs.run_config_file(config)
  if not hasattr(module, "get_hyper"):
    return [{}]
  try:
    sweep = module.get_hyper(hyper)
  except (ValueError, TypeError) as error:
    raise InversionViewError(f"get_hyper of {path}: {error}") from None
  if not isinstance(sweep, list) or not sweep or not all(isinstance(unit, dict) for unit in sweep):
    raise InversionViewError(f"get_hyper of {path} gave {sweep!r}; it must give a list of work units, each a dict")
  return sweep


def _check(unit: Unit) -> None:
  """Raises `InversionViewError` unless `inversionview` parses the unit's command to the values of its sweep."""
  args, rest = cli._parser().parse_known_args(list(unit.arguments))
  config = configs.load_config(args.config, rest)
  swept = [name.removeprefix("config.") for name in unit.hyper]
  if unit.arguments[0] == "train-target" and (idle := [name for name in swept if not train.is_of_target(name)]):
    raise InversionViewError(
      f"the sweep sets {', '.join(idle)}, which changes nothing of a target (config.target.* does): add --nosweep"
    )
  for name, value in unit.hyper.items():
    parsed = config
    for key in name.split(".")[1:]:
      parsed = parsed[key]
    if parsed != value:
      raise InversionViewError(
        f"work unit {unit.wid}: --{name}={value} is read as {parsed!r}; write the value as the config has it"
      )


def _kept(units: list[Unit], only: str) -> list[Unit]:
  if not only:
    return units
  kept = set()
  for part in only.split(","):
    if not (match := re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())):
      raise InversionViewError(f"--only {only}: {part!r} is not a work unit; write 1,4-6")
    first, last = int(match[1]), int(match[2] or match[1])
    if not 1 <= first <= last <= len(units):
      raise InversionViewError(f"--only {only}: there is no work unit {part.strip()}; there are 1-{len(units)}")
    kept |= set(range(first, last + 1))
  return [unit for unit in units if unit.wid in kept]
