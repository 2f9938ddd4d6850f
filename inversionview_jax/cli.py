"""The command line, `inversionview COMMAND ...`; `inversionview --help` lists the commands.

Imports no JAX: commands import what they need when they run, so that help and errors come at once.
"""

import argparse
import os
import sys

from inversionview_jax import progress
from inversionview_jax._version import __version__
from inversionview_jax.commands import (
  bench,
  check,
  circuit,
  doctor,
  evaluate,
  explore,
  export,
  flags,
  heads,
  import_,
  interpret,
  measure,
  patch,
  plan,
  report,
  sample,
  scoreboard,
  sites,
  study,
  texts,
  train,
  verify,
  view,
)
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preemption import EXIT_AGAIN, Stopped, listen
from inversionview_jax.terminal import print_message, print_traceback

# In the order in which --help lists them.
_COMMANDS = (
  view,
  sites,
  train,
  texts,
  sample,
  explore,
  report,
  evaluate,
  measure,
  check,
  circuit,
  interpret,
  heads,
  study,
  patch,
  verify,
  export,
  import_,
  plan,
  bench,
  scoreboard,
  doctor,
)


def main(argv: list[str] | None = None) -> int:
  """Runs a command.

  Args:
    argv: the command and its arguments; None: those of this process.

  Returns:
    The exit code: 0; 1 if a plan does not fit; 2 for bad input (one line on stderr, with `--debug` behind the traceback); 75 if the run
    was interrupted and can be resumed; 130 after Ctrl-C.
  """
  own_process = argv is None
  argv = sys.argv[1:] if argv is None else argv
  if own_process and argv[:1] in (["train"], ["train-target"]):
    listen()  # before anything that takes time
  debug = "--debug" in argv  # until they are parsed
  try:
    flags.refuse_renamed(argv)
    args, rest = _parse(argv)
    debug = args.debug
    progress.hide(args.quiet)
    return _exit_code(args.run(args, rest))
  except InversionViewError as error:
    if debug:
      print_traceback(error)
    print_message(str(error))
    return _exit_code(2)
  except Stopped as stopped:
    print_message(f"{stopped}; the same command resumes from there")
    return _exit_code(EXIT_AGAIN)
  except KeyboardInterrupt:
    print_message("interrupted; the same command resumes from the newest checkpoint")
    return 130
  except BrokenPipeError:  # | head
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _exit_code(code: int) -> int:
  """Returns `code` once the other hosts have it, if there are any."""
  if hosts := sys.modules.get("inversionview_jax.devices.hosts"):
    hosts.shutdown(code)
  return code


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
  """The parsed arguments, and those that are settings of a config (--config.KEY=VALUE)."""
  parser = _parser()
  args, rest = parser.parse_known_args(argv)
  args.argv = argv  # a report names the command that made it
  if rest and not args.overrides:
    raise InversionViewError(f"unknown argument {rest[0]!r}; see inversionview {args.command} --help")
  return args, rest


def _parser() -> argparse.ArgumentParser:
  parser = flags.Parser(
    prog="inversionview",
    description="Read what a neural activation encodes.",
    epilog="inversionview COMMAND --help lists the flags of a command, with examples.",
  )
  parser.add_argument("--version", action="version", version=f"inversionview_jax {__version__}")
  commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

  for module in _COMMANDS:
    module.add_parser(commands)
  return parser


if __name__ == "__main__":
  sys.exit(main())
