"""The web server of the page: who may talk to it, and with which of Streamlit's settings it runs.

A page on the web can send requests to this machine: from the reader's browser under another origin, or under a name of its own that it has
pointed at this machine (DNS rebinding). Both are refused here, before Streamlit sees them.
"""

import html
import ipaddress
import pathlib
import socket
import sys
import threading
import urllib.parse
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SWITCH = 5e-4  # seconds; Python's own is ten times as long
_EVERYWHERE = ("0.0.0.0", "::")

# In the colors and at the place of the page's own heading (`app.py`).
_FIRST_SIGHT = """<style>body{margin:0;background:light-dark(#fff,#0d0f12);color-scheme:light dark}
.first-sight{padding:2.2rem clamp(.8rem,3vw,2.5rem);font:1rem/1.6 "Source Sans",sans-serif;color:light-dark(#31333f,#fafafa)}
.first-sight h1{font-size:1.5rem;font-weight:650;margin:0}.first-sight p{color:light-dark(#5d6775,#97a1af)}</style>
<main class="first-sight"><h1>What does this activation encode?</h1><p role="status">LOADING</p></main>"""

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


def host_names(address: str, more: Iterable[str] = ()) -> frozenset[str]:
  """The names under which a page that listens on `address` is reached.

  Args:
    address: that the server listens on.
    more: names that were given beside it.
  """
  names = {address, *more}
  if address in (*LOOPBACK, *_EVERYWHERE):
    names |= set(LOOPBACK)
  if address in _EVERYWHERE:
    names |= {socket.gethostname(), socket.getfqdn()}
  return frozenset(_plain(name) for name in names)


class SameOrigin:
  """An ASGI application in front of another: it passes on what is addressed to this page by a page of its own.

  Args:
    app: the application behind it.
    names: host names of the page, see `host_names`.
    any_address: whether IP addresses are taken as well, which no one can point elsewhere: for a server that listens on all of them.
  """

  def __init__(self, app: App, names: frozenset[str], any_address: bool = False):
    self._app, self._names, self._any_address = app, names, any_address

  async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
    if scope["type"] in ("http", "websocket") and (reason := self.refusal(scope["headers"])):
      if scope["type"] == "websocket":  # before it was accepted: the server answers with status 403
        await send({"type": "websocket.close", "code": 1008, "reason": reason[:100]})
        return
      headers = [(b"content-type", b"text/plain; charset=utf-8")]
      await send({"type": "http.response.start", "status": 403, "headers": headers})
      await send({"type": "http.response.body", "body": reason.encode()})
      return
    await self._app(scope, receive, send)

  def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Why a request with these headers is refused; "" where it is not."""
    values: dict[str, list[str]] = {}
    for name, value in headers:
      values.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    hosts, origins = values.get("host", []), values.get("origin", [])
    if len(hosts) != 1 or (host := _host(hosts[0])) is None or not self._is_own(host):
      return "This page does not answer to that host name; inversionview explore --host NAME adds one."
    if len(origins) > 1 or any(urllib.parse.urlsplit(origin).netloc.lower() != hosts[0].lower() for origin in origins):
      return "This page is not for other pages: the request has another origin."
    return ""

  def _is_own(self, host: str) -> bool:
    return host in self._names or (self._any_address and _is_address(host))


class FirstSight:
  """An ASGI application in front of another: its page shows a heading at once, which disappears when the page's own script has loaded.

  Args:
    app: the application behind it.
    loading: what the page loads first, for a line below the heading.
  """

  def __init__(self, app: App, loading: str):
    self._app, self._loading = app, loading

  async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
    if scope["type"] != "http" or scope["path"] != "/":
      await self._app(scope, receive, send)
      return
    start: Message = {}
    body = bytearray()

    async def collect(message: Message) -> None:
      if message["type"] == "http.response.start":
        start.update(message)
        return
      body.extend(message.get("body", b""))
      if not message.get("more_body", False):
        page = with_first_sight(bytes(body), self._loading)
        lengths = [
          (name, value) for name, value in start["headers"] if name.lower() not in (b"content-length", b"etag")
        ]
        await send({**start, "headers": [*lengths, (b"content-length", str(len(page)).encode())]})
        await send({"type": "http.response.body", "body": page})

    # Uncompressed, and whole: not "unchanged since".
    skipped = (b"accept-encoding", b"if-none-match", b"if-modified-since", b"range")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in skipped]
    await self._app({**scope, "headers": headers}, receive, collect)


def with_first_sight(page: bytes, loading: str) -> bytes:
  """Streamlit's page with a heading in the element that its script fills; unchanged where there is no such element."""
  shown = _FIRST_SIGHT.replace("LOADING", html.escape(loading)).encode()
  page = page.replace(b"<title>Streamlit</title>", b"<title>InversionView</title>")
  return page.replace(b'<div id="root"></div>', b'<div id="root">' + shown + b"</div>")


def _host(header: str) -> str | None:
  """The host name in a header "name:port"; None for anything else."""
  try:
    parts = urllib.parse.urlsplit(f"//{header}")
    _ = parts.port  # raises for one that is no number
  except ValueError:
    return None
  if parts.hostname is None or parts.username is not None or parts.path or parts.query or parts.fragment:
    return None
  return _plain(parts.hostname)


def _plain(name: str) -> str:
  return name.strip("[]").rstrip(".").lower()


def _is_address(host: str) -> bool:
  try:
    ipaddress.ip_address(host)
  except ValueError:
    return False
  return True


def settings(address: str, port: int) -> dict[str, Any]:
  """Streamlit's settings of the page; they take precedence over its configuration files."""
  return {
    "server.address": address,
    "server.port": port,
    "server.headless": True,
    "server.baseUrlPath": "",
    "server.fileWatcherType": "none",
    "server.runOnSave": False,
    "server.enableCORS": True,
    "server.corsAllowedOrigins": [],
    "server.enableXsrfProtection": True,
    "server.enableStaticServing": False,
    "browser.gatherUsageStats": False,  # nothing is sent anywhere
    "browser.serverAddress": "localhost" if address in (*LOOPBACK, *_EVERYWHERE) else address,
    "client.showErrorDetails": "none",
    "logger.hideWelcomeMessage": True,  # its message looks up this machine's address on another one
    "client.toolbarMode": "minimal",
    "global.developmentMode": False,
    "theme.light.primaryColor": "#2f62c2",
    "theme.dark.primaryColor": "#6d9bea",
    "theme.dark.backgroundColor": "#0d0f12",
    "theme.dark.secondaryBackgroundColor": "#15181d",
    "theme.light.secondaryBackgroundColor": "#f4f6f8",
    "theme.font": "sans-serif",
  }


def serve(
  address: str,
  port: int,
  names: frozenset[str],
  url: str,
  browser: bool,
  ready: Callable[[], object] | None = None,
  loading: str = "",
) -> None:
  """Runs the page until it is interrupted.

  Args:
    address, port: to listen on.
    names: host names that it answers to.
    url: of the page.
    browser: whether it is opened in a browser.
    ready: called once the server answers: what takes long and is needed soon, but not for the first sight of the page.
    loading: what that is, for the first sight of the page.
  """
  import streamlit as st
  from starlette.middleware import Middleware

  ignore_folder_settings()
  disable_ip_lookup()
  guard = Middleware(SameOrigin, names=names, any_address=address in _EVERYWHERE)
  first = Middleware(FirstSight, loading=loading)
  app = st.App(
    pathlib.Path(__file__).parent / "app.py",
    middleware=[guard, first],
    lifespan=_started(url if browser else "", ready),
  )
  # The page's many small files are sent while another thread imports JAX: each time it waits for that thread, for so long at most.
  sys.setswitchinterval(_SWITCH)
  app.run(config=settings(address, port))


def _started(url: str, ready: Callable[[], object] | None) -> Callable[[Any], Any]:
  """What Streamlit runs around the life of the server: opens the page in a browser, unless `url` is "", and calls `ready`."""
  import contextlib

  @contextlib.asynccontextmanager
  async def lifespan(app: Any) -> AsyncIterator[None]:
    del app
    if url:
      threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
    if ready is not None:
      ready()
    yield None

  return lifespan


def ignore_folder_settings() -> None:
  """Keeps Streamlit from reading .streamlit/config.toml and secrets.toml of the current folder, which came with somebody's files."""
  from streamlit import config, file_util

  def of_the_home(file_name: str) -> list[str]:
    return [file_util.get_streamlit_file_path(file_name)]

  config.get_config_files = of_the_home


def disable_ip_lookup() -> None:
  """Keeps Streamlit from sending a request to another machine for this one's address, which it does to check the origin of an unknown page."""
  from streamlit import net_util

  net_util.get_external_ip = lambda: None
