"""`inversionview explore`: the interactive page."""

import argparse
import errno
import importlib.util
import pathlib
import socket
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import path_of, shipped_folder, shipped_names
from inversionview_jax.terminal import print_text

_DESCRIPTION = """\
Open a page on which activations are read: type an input, click a token and a site, and the preimage is drawn.

  inversionview explore
  inversionview explore --reader W --port 8600 --no-browser
  inversionview explore --target addition                  # no reader: Monte Carlo on the target
  inversionview explore --circuit C                        # the picture of a circuit; a click on a node opens its preimage

The page listens on 127.0.0.1 only, unless --address is given; whoever can reach it can run the readers it was started with. It answers to the
names of that address (and --host) only, and to no other page. It sends no request to any other machine, unless a target is opened by its
name on the Hub. On this machine's own address any target can be opened on the page: a shipped one, a folder, a name on the Hub. The method is
chosen on the page; Monte Carlo from the prior where the task has moves, of language models the decoder where there is one.
"""
MISSING = "no page: streamlit is not installed; pip install 'inversionview_jax[explore]'"


def add_parser(commands: Any) -> None:
  """Adds `explore` to the commands."""
  parser = flags.add_command(commands, "explore", run, "an interactive page, in a browser", _DESCRIPTION)
  flags.add(parser, "reader", repeated=True, unset="all shipped ones, unless a target is given")
  flags.add(parser, "target", repeated=True, unset="none; it is read without a reader")
  flags.add(parser, "task", unset="the targets' own")
  flags.add(parser, "method", unset="see above; the page opens with it")
  parser.add_argument(
    "--circuit",
    metavar="PATH",
    help="a circuit.json, or the folder of one, shown as a picture (default: none; one can be picked on the page)",
  )
  parser.add_argument(
    "--address", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
  )
  parser.add_argument(
    "--host",
    action="append",
    default=[],
    metavar="NAME",
    help="a host name under which the page is reached besides, as behind a proxy (may be repeated)",
  )
  parser.add_argument(
    "--port", type=flags.Whole(1, 65535), help="port to listen on (default: 8501, or the next that is free)"
  )
  parser.add_argument("--no-browser", action="store_true", help="do not open a browser")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Starts the server and stays until it is interrupted."""
  del rest
  if importlib.util.find_spec("streamlit") is None:
    raise InversionViewError(MISSING)
  if args.task and not args.target:
    raise InversionViewError("--task has no effect without --target: a reader has its task")
  if args.method is not None and args.method not in flags.METHODS:
    raise one_of("method", args.method, tuple(flags.METHODS))
  port = _port(args.address, args.port)
  from inversionview_jax.show.explorer import server, service

  for path in (*(args.reader or ()), *(args.target or ())):
    path_of(path)  # raises for one that no folder can have
  names, targets = args.reader or ([] if args.target else _shipped()), args.target or ()
  circuit = None
  if args.circuit is not None:
    from inversionview_jax.show.explorer.circuits import OpenedCircuit

    circuit = OpenedCircuit.of_path(args.circuit)
  readers = service.configure(names, targets, args.task, args.method, circuit, args.address in server.LOOPBACK)
  for path in names:
    check_exists(path)
  for path in args.target or ():
    check_target(path)
  if circuit is not None and _is_target(circuit.circuit.target):
    readers.sources.add_target(circuit.circuit.target, circuit.circuit.task)
  url = _url(args.address, port)
  print_text(f"the explorer is at {url} (Ctrl-C ends it)", flush=True)
  try:
    names_of_host = server.host_names(args.address, args.host)
    loading = f"loading {next(iter(readers.sources.names))} …"
    server.serve(args.address, port, names_of_host, url, not args.no_browser, readers.preload, loading)
  except KeyboardInterrupt:
    pass
  return 0


def _shipped() -> list[str]:
  """The readers of the package, as `reading.shipped_readers` lists them, without the second that importing JAX takes."""
  return [name for name in shipped_names() if _is_reader(shipped_folder(name))]


def _is_reader(folder: pathlib.Path | None) -> bool:
  return folder is not None and (folder / "decoder" / "model.json").exists()


def _url(address: str, port: int) -> str:
  host = "localhost" if address in ("0.0.0.0", "::") else address
  return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _port(address: str, requested: int | None) -> int:
  """The port to listen on; raises `InversionViewError` if nothing can listen there."""
  for port in [requested] if requested is not None else range(8501, 8601):
    try:
      family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
      with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
      return port
    except (socket.gaierror, UnicodeError):  # the second of a name that is too long
      raise InversionViewError(f"--address {address!r} is no address of this machine; use 127.0.0.1") from None
    except OSError as error:
      if error.errno != errno.EADDRINUSE:
        raise InversionViewError(f"cannot listen on {address}, port {port}: {error.strerror}") from None
  taken = f"--port {requested} is taken" if requested is not None else "the ports 8501 to 8600 are taken"
  raise InversionViewError(f"{taken} at {address}: give another with --port")


def check_exists(path: str) -> None:
  """Raises `InversionViewError` for a reader that is neither shipped nor a folder; the page shows what is wrong inside of one."""
  if path not in _shipped() and not _is_reader(path_of(path)):
    raise InversionViewError(
      f"no reader in {path}: it has no decoder/model.json; shipped readers: {', '.join(_shipped())}"
    )


def _is_target(path: str) -> bool:
  return path in shipped_names() or path_of(path).exists()


def check_target(path: str) -> None:
  """Raises `InversionViewError` for a target that is neither shipped nor a folder or file; the page shows what is wrong inside of one."""
  if not _is_target(path):
    raise InversionViewError(
      f"no target {path!r}: not a folder or file, and shipped are only: {', '.join(shipped_names())}"
    )
