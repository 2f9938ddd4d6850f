"""`inversionview plan`: memory, time and traffic of a config on devices that are not here."""

import argparse
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema
from inversionview_jax.commands import flags
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.progress import counted, following
from inversionview_jax.terminal import print_message, print_text

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from inversionview_jax.devices.chips import Topology
  from inversionview_jax.planning.scenario import Scenario

_DESCRIPTION = """\
Compile the training step, the sampler and the sweeps of Monte Carlo ahead of time for a TPU slice, or for simulated CPU devices, and print what
they take per device.

  inversionview plan --config plan_gpt2_xl --topology v5e:16x16
  inversionview plan --config plan_llama_8b --topology v6e:8x8 --config.mesh.model=4 --program train
  inversionview plan --config addition --topology cpu:8
  inversionview plan --config addition --topology v5e:2x4 --program monte_carlo --particles 128
  inversionview plan --config addition --topology v5e:2x4 --topology v5e:16x16 --program train --batch-per-device 64

Several topologies give a table, a line each: with --batch-per-device it shows weak scaling, without it strong scaling. No TPU is needed, and no
weights. For TPUs it needs the extra `plan` (libtpu). Exit code 1: a program does not fit.

Monte Carlo needs no decoder; its figures are those of one sweep, in which every particle (an example) is moved once. Particles are a task's inputs;
of a config with plan.target they are texts with the target itself as the prior, of which a sweep computes half of the tokens anew, on average.
"""
_PROGRAMS = ("train", "sample", "monte_carlo")


def add_parser(commands: Any) -> None:
  """Adds `plan` to the commands."""
  parser = flags.add_command(
    commands, "plan", run, "what a config would take on a TPU slice", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "config", required=True)
  parser.add_argument(
    "--topology", required=True, action="append", help="v5e:16x16, v5p:4x4x8, v6e:8x8, cpu:8, ...; may be repeated"
  )
  parser.add_argument(
    "--program",
    action="append",
    help="train, sample or monte_carlo; may be repeated (default: all; monte_carlo for tasks with a prior and moves only)",
  )
  rows, particles = flags.count("rows"), flags.count("particles")
  parser.add_argument("--rows", type=rows, default=64, help="candidates per data-parallel device (default: 64)")
  parser.add_argument(
    "--particles", type=particles, default=128, help="of Monte Carlo, per data-parallel device; even (default: 128)"
  )
  parser.add_argument(
    "--batch-per-device",
    type=flags.count("batch_per_device"),
    help="texts per data-parallel device (default: the config's batch over the devices)",
  )
  flags.add(parser, "json")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prints the plan; returns 0, or 1 if a program does not fit."""
  from inversionview_jax.commands.configs import load_config
  from inversionview_jax.errors import InversionViewError, one_of

  for name in args.program or ():
    if name not in _PROGRAMS:
      raise one_of("--program", name, _PROGRAMS)
  if args.particles % 2:
    raise InversionViewError(f"--particles {args.particles} must be even: particles are two populations")
  if args.json:
    check_can_hold(args.json)
  from inversionview_jax.devices import chips

  topologies = [chips.topology(name) for name in args.topology]
  config = load_config(args.config, overrides)
  config_schema.check(config, config_schema.PLAN)
  if args.batch_per_device:
    config.unlock()
    config.batch_per_device = args.batch_per_device
  plans = _plans(config, topologies, args)
  if args.json:
    content = {"format_version": 1, "config": args.config, "overrides": list(overrides), "plans": plans}
    write_whole(args.json, json.dumps(content, indent=1) + "\n")
  if len(topologies) == 1:
    print_text("\n".join(_lines(args.config, plans[0], topologies[0])))
  return 0 if all(program["fits"] for plan in plans for program in plan["programs"].values()) else 1


def _plans(config: "ConfigDict", topologies: "list[Topology]", args: argparse.Namespace) -> list[dict[str, Any]]:
  """The plan of each topology as data; of several, a row of the table is printed as soon as it is known."""
  from inversionview_jax.planning import planning, report
  from inversionview_jax.planning.scenario import scenario_of
  from inversionview_jax.planning.topologies import simulate_devices

  plan = scenario_of(config)
  simulate_devices(max((t.devices for t in topologies if t.chip is None), default=1))
  for topology in topologies:  # all of them, before the first is compiled
    planning.check(plan, topology)
  names = _names(args, plan, topologies)
  plans: list[dict[str, Any]] = []
  compiled: dict[str, Callable[[Topology], Any]] = {
    "train": lambda topology: planning.training_step(plan, topology),
    "sample": lambda topology: planning.sampler(plan, topology, args.rows),
    "monte_carlo": lambda topology: planning.monte_carlo(plan, topology, args.particles),
  }
  with following("compiling"):
    for topology in counted(topologies):
      programs = [compiled[name](topology) for name in counted([name for name in compiled if name in names])]
      plans.append(report.plan_data(plan, topology, programs))
      if len(topologies) > 1:
        print_text("\n".join(_rows(plans[-1], header=len(plans) == 1)), flush=True)
  return plans


def _names(args: argparse.Namespace, plan: "Scenario", topologies: "list[Topology]") -> list[str]:
  """The programs that are compiled: those given, or all that the scenario has."""
  from inversionview_jax.errors import InversionViewError
  from inversionview_jax.planning import planning

  given = args.program
  names = given or list(_PROGRAMS)
  if "monte_carlo" in names:
    try:
      for topology in topologies:
        planning.check_monte_carlo(plan, topology, args.particles)
    except InversionViewError as error:
      if given:
        raise InversionViewError(f"--program monte_carlo: {error}") from None
      names.remove("monte_carlo")
      if plan.texts:
        print_message(f"monte_carlo is left out: {error}")
  return names


_COLUMNS = "{:12} {:13} {:>8} {:>10} {:>11} {:>14} {:>14} {:>17} {:>16} {:>9}"


def _rows(plan: dict[str, Any], header: bool) -> Iterator[str]:
  """The lines of one topology in the table of several, below the column names where it is the first."""
  if header:
    columns = ("topology", "program", "devices", "per device", "memory GiB", "FLOPs/example", "bytes/example")
    yield _COLUMNS.format(*columns, "collective bytes", "ms per step", "of peak")
  for name, p in plan["programs"].items():
    each = p["examples"] / plan["mesh"]["data"]
    sent = sum(kind["bytes"] for kind in p["collectives"].values())
    ideal = f"{p['utilisation'][0]:.0%} - {p['utilisation'][1]:.0%}" if "utilisation" in p else "-"
    time = _range(p, "step_seconds", 1e3, ".3g").replace(" ... ", " - ") if "step_seconds" in p else "-"
    yield _COLUMNS.format(
      plan["topology"],
      name,
      plan["devices"],
      f"{each:g}",
      f"{p['total'] / 2**30:.3f}" + ("" if p["fits"] else "!"),
      f"{p['flops'] / each:.4g}",
      f"{p['bytes'] / each:.4g}",
      f"{sent:.4g}",
      time,
      ideal,
    )


def _line(label: str, *cells: str) -> str:
  return f"{label:34}" + "".join(f"{cell:>20}" for cell in cells)


def _lines(name: str, plan: dict[str, Any], topology: "Topology") -> Iterator[str]:
  """The plan of one topology, a column for each program."""
  mesh, programs = plan["mesh"], plan["programs"]
  columns = list(programs.values())
  yield f"{name} on {topology.name}: {topology.devices} devices, mesh data {mesh['data']} x model {mesh['model']}"
  yield f"target {plan['target_parameters']:,} parameters, decoder {plan['decoder_parameters']:,}"
  yield ""
  yield _line("per device", *programs)
  yield _line("examples", *(f"{p['examples'] / mesh['data']:g}" for p in columns))
  for label, key in (("arguments", "arguments"), ("temporaries", "temporaries"), ("memory in all", "total")):
    yield _line(label, *(_memory(p[key]) for p in columns))
  if plan["memory"]:
    yield _line("  of the chip's", *(f"{_memory(plan['memory'])}, {p['total'] / plan['memory']:.0%}" for p in columns))
  yield _line("FLOPs of matrix products", *(f"{p['flops']:.4g}" for p in columns))
  yield _line("bytes read and written", *(f"{p['bytes']:.4g}" for p in columns))
  for kind in sorted({kind for p in columns for kind in p["collectives"]}):
    cells = [p["collectives"].get(kind) for p in columns]
    yield _line(f"{kind}, bytes (times)", *(f"{c['bytes']:.4g} ({c['count']:g})" if c else "-" for c in cells))
  if topology.chip:
    yield from _time_lines(columns)
  yield _line("seconds to compile, here", *(f"{p['seconds']:.0f}" for p in columns))
  yield ""
  for label, p in programs.items():
    if p["fits"]:
      yield f"{label}: fits" + (f"; {_memory(plan['memory'] - p['total'])} are left" if plan["memory"] else "")
      continue
    yield f"{label}: does NOT fit" + (f": {p['refused']}" if p["refused"] else "")
    yield from (f"  try {remedy}" for remedy in p["remedies"])


def _time_lines(columns: list[dict[str, Any]]) -> Iterator[str]:
  """The times that the chip's peaks allow."""
  for label, key in (("compute", "compute"), ("memory", "memory"), ("links", "links")):
    cells = (f"{1e3 * p['seconds_by'][key]:.3g}" if "seconds_by" in p else "?" for p in columns)
    yield _line(f"  ms at the peak of {label}", *cells)
  yield _line("ms, all of it overlapped ... none", *(_range(p, "step_seconds", 1e3, ".3g") for p in columns))
  best = (f"{p['utilisation'][1]:.0%}" if "utilisation" in p else "?" for p in columns)
  yield _line("share of peak arithmetic, at best", *best)


def _memory(size: float) -> str:
  return f"{size / 2**30:.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:.2f} MiB"


def _range(p: dict[str, Any], key: str, factor: float, style: str) -> str:
  return " ... ".join(f"{factor * value:{style}}" for value in p[key]) if key in p else "?"
