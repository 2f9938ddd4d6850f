"""A hub on loopback: the answers of the Hugging Face Hub to requests for files, over folders of this machine."""

import contextlib
import hashlib
import http.server
import pathlib
import threading
from collections.abc import Iterator


class Hub:
  """What is served, and what was asked for.

  Attributes:
    repositories: id -> revision -> (commit, folder).
    refused: id -> (status, "X-Error-Code").
    cut: name of a file -> bytes after which its download breaks off.
    requests: (method, path) of every request.
    tokens: of the "Authorization" header of every request.
    url: of the hub.
  """

  def __init__(self):
    self.repositories: dict[str, dict[str, tuple[str, pathlib.Path]]] = {}
    self.refused: dict[str, tuple[int, str]] = {}
    self.cut: dict[str, int] = {}
    self.requests: list[tuple[str, str]] = []
    self.tokens: set[str | None] = set()
    self.url = ""

  def add(self, repository: str, folder: pathlib.Path, revision: str = "main") -> str:
    """Serves a folder as a revision; returns the hash of its commit."""
    commit = hashlib.sha1(f"{repository} {revision} {folder}".encode()).hexdigest()
    self.repositories.setdefault(repository, {})[revision] = (commit, folder)
    return commit

  def files(self) -> set[str]:
    """Names of the files that were downloaded."""
    return {path.rpartition("/")[2] for method, path in self.requests if method == "GET"}


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
  """A hub that answers until the block ends."""
  hub = Hub()

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
      pass

    def answer(self, status, headers=(), body=b"", error=""):
      self.send_response(status)
      for name, value in headers:
        self.send_header(name, value)
      if error:
        self.send_header("X-Error-Code", error)
      if not any(name == "Content-Length" for name, _ in headers):
        self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(body)

    def do_GET(self):
      hub.requests.append((self.command, self.path))
      hub.tokens.add(self.headers.get("Authorization"))
      repository, found, rest = self.path.lstrip("/").partition("/resolve/")
      if not found:
        return self.answer(404)
      if repository in hub.refused:
        status, error = hub.refused[repository]
        return self.answer(status, error=error)
      if repository not in hub.repositories:
        return self.answer(401, error="RepoNotFound")
      revision, _, file = rest.partition("/")
      revisions = hub.repositories[repository]
      known = {**revisions, **{commit: (commit, folder) for commit, folder in revisions.values()}}
      if revision not in known:
        return self.answer(404, error="RevisionNotFound")
      commit, folder = known[revision]
      if not (folder / file).is_file():
        return self.answer(404, [("X-Repo-Commit", commit)], error="EntryNotFound")
      content = (folder / file).read_bytes()
      headers = [("X-Repo-Commit", commit), ("ETag", f'"{hashlib.sha1(content).hexdigest()}"')]
      headers += [("Content-Length", str(len(content))), ("Accept-Ranges", "bytes")]
      if self.command == "GET" and file in hub.cut:
        self.close_connection = True
        content = content[: hub.cut[file]]
      return self.answer(200, headers, content)

    do_HEAD = do_GET

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
  thread.start()
  hub.url = f"http://127.0.0.1:{server.server_address[1]}"
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
