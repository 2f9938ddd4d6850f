"""`inversionview explore`: the interactive page."""

import argparse
import errno
import importlib.util
import pathlib
import socket
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError, one_of

_DESCRIPTION = """\
Open a page on which activations are read: type an input, click a token and a site, and the preimage is drawn.

  inversionview explore
  inversionview explore --reader W --port 8600 --no-browser
  inversionview explore --target addition                  # no reader: Monte Carlo on the target

The page listens on 127.0.0.1 only, unless --address is given; whoever can reach it can run the readers it was started with. It sends no
request to any other machine. The method is chosen on the page; Monte Carlo from the decoder's candidates where the task has moves, without a
reader Monte Carlo from the prior.
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
    "--address", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
  )
  parser.add_argument("--port", type=int, help="port to listen on (default: 8501, or the next that is free)")
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
  from inversionview_jax.show.explorer import service

  names = args.reader or ([] if args.target else _shipped())
  readers = service.configure(names, args.target or (), args.task, args.method)
  for path in names:
    check_exists(path)
  for path in args.target or ():
    check_target(path)
  readers.preload()  # while Streamlit is imported and a browser opens
  from streamlit.web import bootstrap

  disable_ip_lookup()
  options = settings(args.address, port, args.no_browser)
  bootstrap.load_config_options(options)
  script = pathlib.Path(service.__file__).parent / "app.py"
  print(f"the explorer is at {_url(args.address, port)} (Ctrl-C ends it)", flush=True)
  bootstrap.run(str(script), False, [], options)
  return 0


def disable_ip_lookup() -> None:
  """Keeps Streamlit from sending a request to another machine for this one's address, which it does to check the origin of an unknown page."""
  from streamlit import net_util

  net_util.get_external_ip = lambda: None


def settings(address: str, port: int, no_browser: bool) -> dict:
  """Streamlit's settings, as its own flags name them; they take precedence over its configuration files."""
  return {
    "server_address": address,
    "server_port": port,
    "server_headless": no_browser,
    "server_fileWatcherType": "none",
    "server_runOnSave": False,
    "browser_gatherUsageStats": False,  # nothing is sent anywhere
    "browser_serverAddress": "localhost" if address in ("127.0.0.1", "0.0.0.0", "::", "::1") else address,
    "logger_hideWelcomeMessage": True,  # its message looks up this machine's address on another one
    "client_toolbarMode": "minimal",
    "global_developmentMode": False,
    "theme_light_primaryColor": "#3f72cf",
    "theme_dark_primaryColor": "#6d9bea",
    "theme_dark_backgroundColor": "#0d0f12",
    "theme_dark_secondaryBackgroundColor": "#15181d",
    "theme_light_secondaryBackgroundColor": "#f4f6f8",
    "theme_font": "sans-serif",
  }


def _shipped() -> list[str]:
  from inversionview_jax.reading import shipped_readers

  return shipped_readers()


def _url(address: str, port: int) -> str:
  host = "localhost" if address in ("0.0.0.0", "::") else address
  return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _port(address: str, requested: int | None) -> int:
  """The port to listen on; raises `InversionViewError` if nothing can listen there."""
  if requested is not None and not 1 <= requested <= 65535:
    raise InversionViewError(f"--port {requested} must be from 1 to 65535")
  for port in [requested] if requested is not None else range(8501, 8601):
    try:
      family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
      with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((address, port))
      return port
    except socket.gaierror:
      raise InversionViewError(f"--address {address!r} is no address of this machine; use 127.0.0.1") from None
    except OSError as error:
      if error.errno != errno.EADDRINUSE:
        raise InversionViewError(f"cannot listen on {address}, port {port}: {error.strerror}") from None
  taken = f"--port {requested} is taken" if requested is not None else "the ports 8501 to 8600 are taken"
  raise InversionViewError(f"{taken} at {address}: give another with --port")


def check_exists(path: str) -> None:
  """Raises `InversionViewError` for a reader that is neither shipped nor a folder; the page shows what is wrong inside of one."""
  from inversionview_jax.reading import shipped_readers

  if path not in shipped_readers() and not (pathlib.Path(path) / "decoder" / "model.json").exists():
    raise InversionViewError(
      f"no reader in {path}: it has no decoder/model.json; shipped readers: {', '.join(shipped_readers())}"
    )


def check_target(path: str) -> None:
  """Raises `InversionViewError` for a target that is neither shipped nor a folder or file; the page shows what is wrong inside of one."""
  from inversionview_jax.targets import shipped_names

  if path not in shipped_names() and not pathlib.Path(path).expanduser().exists():
    raise InversionViewError(
      f"no target {path!r}: not a folder or file, and shipped are only: {', '.join(shipped_names())}"
    )
