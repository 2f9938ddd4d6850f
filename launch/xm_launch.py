"""Launches a config, and the sweep of its `get_hyper`, on this machine, SLURM, TPU slices or GKE.

    python launch/xm_launch.py --config=addition:tiny --workdir=runs/{xid}/{wid} --dry_run
    python launch/xm_launch.py --config=addition:tiny --workdir=runs/{xid}/{wid} --only=1,2 --config.steps=200
    python launch/xm_launch.py --config=addition --workdir=/shared/{xid}/{wid} --platform=slurm -- --partition=gpu --nodes=2

Settings of the config (`--config.optimizer.lr=1e-3`) apply to every work unit. Arguments after `--` go to the launcher of the platform. Every command
is parsed by the real flag parser before the first one starts.
"""

import asyncio
import collections
import concurrent.futures
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable

from absl import app, flags
from units import COMMANDS, Unit, work_units

from inversionview_jax.errors import InversionViewError, one_of

PLATFORMS = {
  "local": "this machine: xm_local where the extra `launch` is installed, plain processes where it is not",
  "xm_local": "this machine, through XManager",
  "processes": "this machine, without XManager",
  "slurm": "one sbatch each (launch/slurm.sbatch)",
  "tpu_vm": "one Cloud TPU slice each (launch/tpu_vm.sh)",
  "gke": "one JobSet each (launch/gke.py)",
}
_HERE = pathlib.Path(__file__).resolve().parent

CONFIG = flags.DEFINE_string("config", None, "a config by name or file, and a variant, such as addition:tiny")
WORKDIR = flags.DEFINE_string("workdir", None, "where a unit works; {xid} is the experiment, {wid} the work unit")
COMMAND = flags.DEFINE_string("command", "train", f"of inversionview: {' or '.join(COMMANDS)}")
PLATFORM = flags.DEFINE_string("platform", "local", "; ".join(f"{name}: {what}" for name, what in PLATFORMS.items()))
TAGS = flags.DEFINE_list("tags", [], "words that name the experiment in its records")
SWEEP = flags.DEFINE_bool("sweep", True, "run the sweep of the config's get_hyper; --nosweep: the config as it is")
ONLY = flags.DEFINE_string("only", "", "some of the work units, such as 1,4-6")
PARALLEL = flags.DEFINE_integer("parallel", 1, "work units at a time, on this machine", lower_bound=1)
XID = flags.DEFINE_string("xid", "", "continue the experiment of this id instead of beginning a new one")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the commands and start nothing")


def command_line(unit: Unit, platform: str, name: str, extra: list[str]) -> list[str]:
  """The command that starts a work unit on a platform.

  Args:
    unit: the work unit.
    platform: one of `PLATFORMS`.
    name: of the job, where the platform needs one: lower-case letters, digits and dashes.
    extra: arguments of the platform's launcher.
  """
  if platform == "slurm":
    return ["sbatch", f"--job-name={name}", *extra, str(_HERE / "slurm.sbatch"), *unit.arguments]
  if platform == "tpu_vm":
    return ["bash", str(_HERE / "tpu_vm.sh"), "all", f"--name={name}", *extra, "--", *unit.arguments]
  if platform == "gke":
    return [sys.executable, str(_HERE / "gke.py"), f"--name={name}", *extra, "--", *unit.arguments]
  if extra:
    raise InversionViewError(f"--platform={platform} takes no arguments after --, such as {extra[0]!r}")
  return ["bash", str(_HERE / "again.sh"), sys.executable, "-m", "inversionview_jax.cli", *unit.arguments]


def run_processes(commands: dict[int, list[str]], parallel: int) -> dict[int, int]:
  """Runs commands as plain processes.

  Args:
    commands: of each work unit.
    parallel: number of processes at a time.

  Returns:
    The exit code of each work unit.

  Raises:
    InversionViewError: the program of a command is not installed.
  """

  def one(wid):
    try:
      return wid, subprocess.run(commands[wid], check=False).returncode
    except FileNotFoundError:
      raise InversionViewError(
        f"there is no {commands[wid][0]} on this machine; --dry_run prints the commands"
      ) from None

  with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
    return dict(pool.map(one, commands))


def run_xm_local(
  make_commands: Callable[[str], dict[int, list[str]]], title: str, xid: str, parallel: int
) -> dict[int, int]:
  """Runs commands through XManager, which keeps a record of the experiment.

  Args:
    make_commands: experiment id -> {work unit: command}.
    title: of the experiment.
    xid: id of an experiment to continue, or "" for a new one of XManager's.
    parallel: number of work units at a time.

  Returns:
    The exit code of each work unit.
  """
  from xmanager import xm, xm_local

  codes = {}

  async def launch():
    async with xm_local.create_experiment(title) as experiment:
      commands = make_commands(xid or str(experiment.experiment_id))
      binary = next(iter(commands.values()))[0]
      (executable,) = experiment.package([xm.binary(xm_local.Local.Spec(), path=_absolute(binary))])
      free = asyncio.Semaphore(parallel)

      async def one(wid):
        async with free:
          job = xm.Job(executable, xm_local.Local(), name=f"unit{wid}", args=commands[wid][1:])
          unit = await experiment.add(job)
          try:
            await unit.wait_until_complete()
            codes[wid] = 0
          except xm.ExperimentUnitError as error:
            match = re.search(r"non-zero code: (-?\d+)", str(error))
            codes[wid] = int(match[1]) if match else 1

      await asyncio.gather(*map(one, commands))

  try:
    asyncio.run(launch())
  except Exception:  # on leaving, XManager reports the units that failed once more
    if not any(codes.values()):
      raise
  return codes


def main(argv: list[str]) -> int:
  overrides, extra = argv[1:], []
  if "--" in sys.argv:
    extra = sys.argv[sys.argv.index("--") + 1 :]
    overrides = overrides[: len(overrides) - len(extra)]
  overrides = [argument for argument in overrides if argument != "--"]
  for argument in overrides:
    if not re.match(r"--config\.[^=]+=", argument):
      raise InversionViewError(f"unknown argument {argument!r}; settings look like --config.steps=1000; see --help")
  for flag in (CONFIG, WORKDIR):
    if not flag.value:
      raise InversionViewError(f"--{flag.name} is missing; see --help")
  platform = PLATFORM.value
  if platform not in PLATFORMS:
    raise one_of("platform", platform, PLATFORMS)

  def commands(xid: str) -> dict[int, list[str]]:
    name = re.sub("[^a-z0-9]+", "-", f"iv-{xid}".lower())
    return {unit.wid: command_line(unit, platform, f"{name}-{unit.wid}", extra) for unit in units(xid)}

  def units(xid: str) -> list[Unit]:
    return work_units(CONFIG.value, COMMAND.value, WORKDIR.value, overrides, xid, SWEEP.value, ONLY.value)

  xid = XID.value or ("XID" if DRY_RUN.value else "")
  first = units(xid or "XID")  # raises what is wrong before anything starts
  lines = commands(xid or "XID")
  if DRY_RUN.value:
    for unit in first:
      print(f"# work unit {unit.wid}: {' '.join(f'{k}={v}' for k, v in unit.hyper.items()) or 'the config as it is'}")
      print(shlex.join(lines[unit.wid]))
    return 0
  if platform == "local":
    platform = "xm_local" if _has_xmanager() else "processes"
    print("through " + ("XManager" if platform == "xm_local" else "plain processes: xmanager is not installed"))
  elif platform == "xm_local" and not _has_xmanager():
    raise InversionViewError(
      "--platform=xm_local needs XManager; install the extra: pip install inversionview_jax[launch]"
    )
  title = " ".join([CONFIG.value, COMMAND.value, *(f"#{tag}" for tag in TAGS.value)])
  if platform == "xm_local":
    codes = run_xm_local(lambda xid: _announced(commands(xid), xid, title), title, xid, PARALLEL.value)
  else:
    xid = xid or str(time.time_ns() // 10**6)
    codes = run_processes(_announced(commands(xid), xid, title), PARALLEL.value)
  for code, wids in sorted(_by_code(codes).items()):
    print(f"exit code {code}: work unit{'s' if len(wids) > 1 else ''} {', '.join(map(str, wids))}")
  return max((abs(code) for code in codes.values()), default=0)


def _announced(commands: dict[int, list[str]], xid: str, title: str) -> dict[int, list[str]]:
  print(f"experiment {xid}: {title}; {len(commands)} work units. --xid={xid} continues it", flush=True)
  return commands


def _by_code(codes: dict[int, int]) -> dict[int, list[int]]:
  grouped = collections.defaultdict(list)
  for wid, code in sorted(codes.items()):
    grouped[code].append(wid)
  return grouped


def _has_xmanager() -> bool:
  try:
    from xmanager import xm_local  # noqa: F401, only whether the import succeeds
  except ImportError:
    return False
  return True


def _absolute(program: str) -> str:
  import shutil

  return shutil.which(program) or program


def _parsed(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv, known_only=True)
  except flags.Error as error:
    print(f"xm_launch: {error}; see --help", file=sys.stderr)
    sys.exit(2)


def _main(argv: list[str]) -> int:
  try:
    return main(argv)
  except InversionViewError as error:
    print(f"xm_launch: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  app.run(_main, flags_parser=_parsed)
