"""A language model for tests: an OpenAI-compatible server on loopback, and preimages for it to read."""

import collections
import contextlib
import http.server
import json
import threading
import time

import numpy as np

from inversionview_jax import Preimage, Query, Sample, tasks

TASK = tasks.get("addition")
T = TASK.tokenizer


def preimage_of(first, second, rng, n=60, site="a0.3"):
  """The preimage of an activation that encodes F1 + S1 and nothing else: members have the same sum."""
  hundreds = first // 100 + second // 100
  f1 = rng.integers(max(1, hundreds - 9), min(9, hundreds - 1) + 1, n)
  inside = TASK.tokens_of(f1 * 100 + rng.integers(0, 100, n), (hundreds - f1) * 100 + rng.integers(0, 100, n))
  outside = TASK.tokens(rng.integers(TASK.num_inputs, size=n))
  samples = []
  for row, far in [*((row, 0.05) for row in inside), *((row, 0.6) for row in outside)]:
    text = T.text(row)
    samples.append(Sample(T.encode(text), T.strings(T.encode(text)), text, far, 8))
  text = f"{first}+{second}={first + second}"
  ids = T.encode_batch([text], eos=True)[0].tolist()
  query = Query(text, ids, T.strings(ids), 8, "=", site, f"blocks.0.attn.hook_result.{site[-1]}", (1.0,))
  return Preimage(query, samples, 0.1, "euclidean", "anywhere", 0, "made up", "addition", "centered", "0")


PAIRS = [(615, 861), (123, 456), (987, 112), (350, 350), (410, 777), (222, 678), (555, 160), (801, 190)]


def sum_preimages():
  """Eight preimages of one site and position, each with its own random members."""
  rng = np.random.default_rng(0)
  return [preimage_of(a, b, rng) for a, b in PAIRS]


def completion(text, usage=True):
  """The body of a chat completion."""
  content = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
  content["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
  return content | ({"usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}} if usage else {})


GOOD = 'They agree in a sum.\n{"reading": "The hundreds add up to the same.", "features": ["F1 + S1", "F2", "F1 ** 2"]}'


@contextlib.contextmanager
def served(*steps, usage=True):
  """A server whose n-th request is answered by the n-th step (the last one from then on): text, (status, body), seconds to wait, or a
  function that writes what it likes.

  Yields:
    Its address; the requests as (path, headers, content); a counter of requests in flight, "now" and at "most".
  """
  received, lock, busy = [], threading.Lock(), collections.Counter()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      with lock:
        step = steps[min(len(received), len(steps) - 1)]
        received.append((self.path, {name.lower(): value for name, value in self.headers.items()}, request))
        busy["now"] += 1
        busy["most"] = max(busy["most"], busy["now"])
      if callable(step):
        with contextlib.suppress(OSError):  # the client has gone
          step(self.wfile)
        return
      if isinstance(step, float):
        time.sleep(step)
        step = GOOD
      time.sleep(0.05)
      with lock:
        busy["now"] -= 1
      status, body = step if isinstance(step, tuple) else (200, json.dumps(completion(step, usage)))
      with contextlib.suppress(OSError):  # the client has gone
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", received, busy
  finally:
    server.shutdown()
    server.server_close()
