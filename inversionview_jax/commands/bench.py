"""`inversionview bench`: times training, queries, Monte Carlo, capture and enumeration on this machine; `--device`: checks its devices."""

import argparse
import json
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.terminal import print_text

_DESCRIPTION = """\
Time training, queries, Monte Carlo, capture and exact enumeration: medians of several runs, alternating with PyTorch where torch and transformers are
installed, each with its share of the float32 matrix-product peak measured in the same run.

  inversionview bench
  inversionview bench --size small --repeats 2 --json bench.json
  inversionview bench --only train query --scaling --devices

Let nothing else run meanwhile; the load of the machine is printed with the figures.

With --device: whether this package gives the right numbers on the devices of this machine, against numbers made on a CPU, and how fast it is
there; in at most 8 minutes. Exits with 1 if a number is wrong. launch/README.md explains the tables.

  inversionview bench --device --out check
  inversionview bench --device --small --only parity parity_search
"""
_TIMING_FLAGS = ("size", "repeats", "seconds", "scaling", "devices", "no_torch", "json")
_DEVICE_FLAGS = ("small", "out", "golden", "time_limit")


def add_parser(commands: Any) -> None:
  """Adds `bench` to the commands."""
  parser = flags.add_command(commands, "bench", run, "time this machine", _DESCRIPTION)
  parser.add_argument("--size", help='"full" (the paper\'s decoder) or "small" (default: full)')
  parser.add_argument(
    "--only",
    nargs="+",
    metavar="NAME",
    help="some of train, query, shipped, effects, queries, monte_carlo, capture, train_target, enumerate; with --device some of its parts, as its "
    "tables name them (default: all)",
  )
  parser.add_argument("--repeats", type=flags.Whole(1, 1000), help="timed runs of each implementation (default: 5)")
  parser.add_argument("--seconds", type=flags.Number(0, 3600), help="shortest duration of a timed run (default: 1)")
  parser.add_argument("--scaling", action="store_true", help="also time against samples, sites and length")
  parser.add_argument(
    "--devices", action="store_true", help="also time training and a query on 1, 2, 4, 8 simulated devices"
  )
  parser.add_argument("--no-torch", action="store_true", help="time this package alone, without PyTorch beside it")
  flags.add(parser, "json")
  checking = parser.add_argument_group("checking devices")
  checking.add_argument("--device", action="store_true", help="check the devices of this machine instead")
  checking.add_argument("--small", action="store_true", help="tiny sizes, for a CPU")
  flags.add(checking, "out", unset="device-check")
  checking.add_argument(
    "--time-limit",
    type=flags.Number(0, 86_400, above=True),
    metavar="SECONDS",
    help="for everything, on a slow machine more (default: 480)",
  )
  checking.add_argument("--golden", metavar="FILE", help="the numbers to compare with (default: this package's)")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Times the cases, and prints each as it is done; or checks the devices."""
  del rest
  wrong = _TIMING_FLAGS if args.device else _DEVICE_FLAGS
  for name in wrong:
    if getattr(args, name) not in (None, False):
      flag = name.replace("_", "-")
      raise InversionViewError(f"--{flag} has no effect {'with' if args.device else 'without'} --device: leave it out")
  if args.device:
    from inversionview_jax.benchmarks.device import check

    limit = check.BUDGET if args.time_limit is None else args.time_limit
    return check.check(args.out or "device-check", small=args.small, golden=args.golden, only=args.only, budget=limit)
  args.size = args.size or "full"
  args.repeats = 5 if args.repeats is None else args.repeats
  args.seconds = 1.0 if args.seconds is None else args.seconds
  if args.json:
    check_can_hold(args.json)
  from inversionview_jax.benchmarks import bench, bench_torch, timing
  from inversionview_jax.errors import one_of

  if args.size not in bench.SIZES:
    raise one_of("size", args.size, bench.SIZES)
  for name in args.only or ():
    if name not in bench.CASES:
      raise one_of("benchmark", name, bench.CASES)
  torch = bench_torch if bench_torch.available() and not args.no_torch else None
  table = {"format": "inversionview-bench", "format_version": 1, "size": args.size} | _machine(torch)
  if not torch and not args.no_torch:
    print_text("torch and transformers are not installed, so there is no comparison (the extra `parity` has them)\n")
  jobs, peak = bench.Jobs(bench.SIZES[args.size], torch), max(table["matmul_gflops"].values())
  cases: list[dict[str, Any]] = []
  for name in args.only or bench.CASES:
    cases.append(timing.measured(bench.case(jobs, name), args.repeats, args.seconds))
    _print_case(cases[-1], peak)
  table["cases"] = cases
  if args.scaling:
    table["scaling"] = bench.scaling(jobs, args.repeats)
    for row in table["scaling"]:
      print_text(f"{row['what']:36} {row['seconds']:9.3f} s   ({row['low']:.3f} - {row['high']:.3f})")
    print_text("")
  if args.devices:
    table["devices"] = bench.simulated_devices(args.size)
    for row in table["devices"]:
      print_text(", ".join(f"{name} {_number(value)}" for name, value in row.items()))
  if args.json:
    write_whole(args.json, json.dumps(table, indent=1, allow_nan=False) + "\n")
  return 0


def _machine(torch: Any) -> dict[str, Any]:
  """Prints the machine, the versions and the matrix-product peaks, and returns them as data.

  Args:
    torch: `bench_torch`, or None without PyTorch.
  """
  from inversionview_jax.benchmarks import timing

  machine = timing.machine() | (torch.versions() if torch else {})
  peaks = {"inversionview_jax": timing.matmul_peak()} | ({"torch": torch.matmul_peak()} if torch else {})
  bf16 = timing.matmul_peak(bf16=True)
  for name, value in machine.items():
    print_text(f"{name:16} {_number(value)}")
  print_text(f"{'matmul peak':16} " + ", ".join(f"{name} {value:.0f} GFLOP/s" for name, value in peaks.items()))
  if bf16:
    print_text(
      f"{'':16} {bf16:.0f} GFLOP/s with bfloat16 inputs, which decoders use here; shares are of the float32 peak"
    )
  print_text("")
  return {"machine": machine, "matmul_gflops": peaks, "matmul_gflops_bfloat16": bf16}


def _number(value: object) -> str:
  return f"{value:.2f}" if isinstance(value, float) else str(value)


def _print_case(case: dict[str, Any], peak: float) -> None:
  """Prints one case, a line for each implementation."""
  print_text(
    f"{case['case']}: {case['about']}; {case['unit']} per second, median of {case['repeats']} (lowest - highest)"
  )
  for side in case["sides"]:
    share = f"{side['gflops'] / peak:6.1%} of peak" if side["gflops"] else ""
    faster = f"   ours is {side['ours_is_faster_by']:.2f}x" if "ours_is_faster_by" in side else ""
    print_text(
      f"  {side['name']:36} {side['median']:12,.2f}   ({side['low']:,.2f} - {side['high']:,.2f})   {share}{faster}"
    )
  print_text("")
