"""The command line, `inversionview COMMAND ...`; `inversionview --help` lists the commands."""

import argparse
import os
import sys

from inversionview_jax._version import __version__
from inversionview_jax.commands import (
  bench,
  evaluate,
  explore,
  export,
  heads,
  import_,
  interpret,
  measure,
  patch,
  plan,
  report,
  sample,
  train,
  verify,
  view,
)
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preemption import EXIT_AGAIN, Stopped, listen

# In the order in which --help lists them.
_COMMANDS = (
  view,
  train,
  sample,
  explore,
  report,
  evaluate,
  measure,
  interpret,
  heads,
  patch,
  verify,
  export,
  import_,
  plan,
  bench,
)
_WITH_CONFIG = ("train-target", "train", "patch", "heads", "report", "plan")  # take settings of a config


def main(argv: list[str] | None = None) -> int:
  """Runs a command; returns the exit code: 0; 2 for bad input (one line on stderr, no traceback); 75 if it was stopped and can go on."""
  own_process = argv is None
  argv = sys.argv[1:] if argv is None else argv
  if own_process and argv[:1] in (["train"], ["train-target"]):
    listen()  # before anything that takes time
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  args.argv = argv  # for what says how it was made
  if rest and args.command not in _WITH_CONFIG:
    parser.error(f"unknown argument {rest[0]!r}; see inversionview {args.command} --help")
  try:
    return _leaving(args.run(args, rest))
  except InversionViewError as error:
    print(f"inversionview: {' '.join(str(error).split())}", file=sys.stderr)
    return _leaving(2)
  except Stopped as stopped:
    print(f"inversionview: {stopped}; the same command goes on from there", file=sys.stderr)
    return _leaving(EXIT_AGAIN)
  except KeyboardInterrupt:
    print("inversionview: interrupted; the same command goes on from the newest checkpoint", file=sys.stderr)
    return 130
  except BrokenPipeError:  # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _leaving(code: int) -> int:
  """The exit code, once the other hosts know, if there are any."""
  if hosts := sys.modules.get("inversionview_jax.devices.hosts"):
    hosts.shutdown(code)
  return code


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="inversionview",
    description="Read what a neural activation says.",
    epilog="inversionview COMMAND --help says more.",
  )
  parser.add_argument("--version", action="version", version=f"inversionview_jax {__version__}")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  for module in _COMMANDS:
    module.add_parser(commands)
  return parser


if __name__ == "__main__":
  sys.exit(main())
