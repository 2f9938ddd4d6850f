"""Answers of a language model behind an OpenAI-compatible endpoint: concurrent requests, retries, and a cache on disk.

Each answer is written to a file named by its prompt's hash as soon as it arrives; the same prompt is not sent again. Needs no JAX.
"""

import concurrent.futures
import dataclasses
import importlib
import json
import math
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import bounds, values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, parse_json, read_json, read_lines, write_whole

if TYPE_CHECKING:
  import openai
  from openai.types.chat import ChatCompletion

FORMAT_VERSION = 1
MOST_BYTES = 10_000_000  # of an answer
_LONGEST_PAUSE = 60.0  # seconds between two attempts, where the endpoint names one


@dataclasses.dataclass(frozen=True)
class Answer:
  """The answer to a prompt, or the error in place of one.

  Attributes:
    text: the answer; "" after an error.
    error: one line; "" for an answer.
    prompt_tokens, answer_tokens: as the endpoint counts them; None where it does not.
    cached: whether it was read from a file.
  """

  text: str = ""
  error: str = ""
  prompt_tokens: int | None = None
  answer_tokens: int | None = None
  cached: bool = False


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """A language model at an endpoint, and the settings of a request.

  Attributes:
    model: name of the model at the endpoint.
    base_url: of the endpoint; None for OPENAI_BASE_URL, or OpenAI's own.
    temperature: None for the endpoint's default.
    max_tokens: of an answer.
    timeout: seconds for one attempt, from the request to the last byte of the answer.
    retries: attempts after a failed one that may succeed later: no connection, timeout, too many requests, a server error.
  """

  model: str
  base_url: str | None = None
  temperature: float | None = None
  max_tokens: int = 2048
  timeout: float = 120.0
  retries: int = 4

  def __post_init__(self):
    bounds.check(max_tokens=self.max_tokens, retries=self.retries)
    values.number("timeout", self.timeout, *bounds.NUMBERS["timeout"])

  @property
  def longest(self) -> float:
    """Seconds that all attempts take at most, with the pauses between them."""
    return (self.retries + 1) * self.timeout + self.retries * _LONGEST_PAUSE + 1.0

  def settings(self) -> dict[str, float | int | None]:
    """The settings on which an answer depends, besides model and prompt; they are part of its hash."""
    return {"temperature": self.temperature, "max_tokens": self.max_tokens}

  def client(self) -> "openai.OpenAI":
    """A client of the endpoint.

    Raises:
      InversionViewError: the client is not installed, or an endpoint needs a key and there is none.
    """
    try:
      import openai
    except ImportError:
      raise InversionViewError(
        "requests to a language model need openai: pip install 'inversionview_jax[interpret]'; or give answers with --replay"
      ) from None
    base_url, key = self.base_url or os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not key and not base_url:
      raise InversionViewError(
        "no endpoint: set OPENAI_API_KEY, or give --base-url (or OPENAI_BASE_URL) for a server of your own, "
        "such as http://127.0.0.1:8080/v1"
      )
    try:
      # A local server often needs no key; the client refuses an empty one.
      return openai.OpenAI(
        base_url=base_url,
        api_key=key or "none",
        timeout=self.timeout,
        max_retries=self.retries,
        default_headers={"Accept-Encoding": "identity"},  # so that the size of an answer is that of its bytes
        http_client=openai.DefaultHttpxClient(event_hooks=_Bounds(self.timeout).hooks()),
      )
    except (openai.OpenAIError, ValueError, TypeError) as error:
      raise InversionViewError(f"--base-url {base_url!r} cannot be used: {error}") from None


class _TooLong(Exception):
  """An answer of more than `MOST_BYTES`."""


class _Bounds:
  """Ends an attempt whose answer is not whole after so many seconds, or is too long.

  The client's own timeout is one of every read: an answer that comes a byte at a time would never end.
  """

  def __init__(self, seconds: float):
    self._seconds = seconds
    self._started = threading.local()  # the requests of a client run in several threads

  def hooks(self) -> dict[str, list[Callable[[Any], None]]]:
    """The event hooks of the HTTP client."""
    return {"request": [self._start], "response": [self._bound]}

  def _start(self, request: Any) -> None:
    del request
    self._started.at = time.monotonic()

  def _bound(self, response: Any) -> None:
    """Puts a bounded stream in place of the response's; its body has not been read."""
    library: Any = importlib.import_module(type(response).__module__.partition(".")[0])  # httpx, or its successor
    stream, end = response.stream, self._started.at + self._seconds
    if response.headers.get("content-encoding", "identity") != "identity":
      raise _TooLong("it is compressed, which the request does not accept")

    class Bounded(library.SyncByteStream):  # type: ignore[misc, name-defined]
      def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in stream:
          size += len(chunk)
          if size > MOST_BYTES:
            raise _TooLong(f"it is longer than {MOST_BYTES // 10**6} MB")
          if time.monotonic() > end:
            raise library.ReadTimeout("the answer is not whole")
          yield chunk

      def close(self) -> None:
        stream.close()

    response.stream = Bounded()


def ask(
  prompts: dict[str, str],
  folder: "str | os.PathLike",
  endpoint: Endpoint,
  at_once: int = 4,
  progress: Callable[[int, int, Sequence[Answer]], None] = lambda done, total, answers: None,
) -> dict[str, Answer]:
  """Sends every prompt that has no answer on disk.

  Args:
    prompts: hash -> text (`hypotheses.prompt_hash`).
    folder: of the answers, a file each; made if it does not exist.
    endpoint: the language model.
    at_once: requests in flight at most.
    progress: called after each answer with (answers so far, prompts, the answers).

  Returns:
    hash -> `Answer`; a prompt that fails has an error and does not stop the others.
  """
  bounds.check(at_once=at_once)
  folder = make_folder(folder)
  answers = {name: answer for name in prompts if (answer := _read_answer(folder / f"{name}.json"))}
  missing = [name for name in prompts if name not in answers]
  progress(len(answers), len(prompts), list(answers.values()))
  if not missing:
    return answers
  client, lock = endpoint.client(), threading.Lock()

  def request(name: str) -> None:
    answer = _within(endpoint.longest, lambda: _request(client, endpoint, prompts[name])) or _no_answer(endpoint)
    if not answer.error:
      _write_answer(folder / f"{name}.json", name, endpoint.model, prompts[name], answer)
    with lock:
      answers[name] = answer
      progress(len(answers), len(prompts), list(answers.values()))

  with concurrent.futures.ThreadPoolExecutor(max(1, min(at_once, len(missing)))) as pool:
    waiting = [pool.submit(request, name) for name in missing]
    try:
      for done in concurrent.futures.as_completed(waiting):
        done.result()
    except BaseException:  # answers that have arrived are on disk
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return answers


def _within(seconds: float, work: Callable[[], Answer]) -> Answer | None:
  """What `work` returns, or None after so many seconds: headers that come a byte at a time are beyond the reach of `_Bounds`."""
  future: concurrent.futures.Future[Answer] = concurrent.futures.Future()

  def run() -> None:
    try:
      future.set_result(work())
    except BaseException as error:
      future.set_exception(error)

  threading.Thread(target=run, daemon=True).start()  # the process does not wait for it
  try:
    return future.result(seconds)
  except concurrent.futures.TimeoutError:
    return None


def _no_answer(endpoint: Endpoint) -> Answer:
  return Answer(error=f"no answer within {endpoint.timeout:g} s, {endpoint.retries + 1} times")


def _write_answer(path: pathlib.Path, name: str, model: str, prompt: str, answer: Answer) -> None:
  """Writes an answer with its prompt; `_read_answer` reads it."""
  content = {
    "text": answer.text,
    "prompt_tokens": answer.prompt_tokens,
    "answer_tokens": answer.answer_tokens,
    "format_version": FORMAT_VERSION,
    "hash": name,
    "model": model,
    "prompt": prompt,
  }
  write_whole(path, json.dumps(content, indent=1, ensure_ascii=False))


def _request(client: "openai.OpenAI", endpoint: Endpoint, prompt: str) -> Answer:
  """The answer to one prompt; errors of the endpoint become `Answer.error`."""
  import openai

  extra: dict[str, Any] = {} if endpoint.temperature is None else {"temperature": endpoint.temperature}
  try:
    completion = _create(client, endpoint, prompt, extra)
    text = completion.choices[0].message.content
    if not isinstance(text, str) or not text.strip():
      return Answer(error="the answer is empty")
    usage = completion.usage
    sent, received = (_count(getattr(usage, name, None)) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, prompt_tokens=sent, answer_tokens=received)
  except openai.APITimeoutError:
    return _no_answer(endpoint)
  except openai.APIConnectionError as error:
    if isinstance(error.__cause__, _TooLong):
      return Answer(error=f"the endpoint's answer is not taken: {error.__cause__}")
    return Answer(error=f"no connection to {client.base_url}: {error.__cause__ or error}")
  except openai.APIStatusError as error:
    return Answer(
      error=f"the endpoint refused with status {error.status_code}: {' '.join(str(error.message).split())[:200]}"
    )
  except openai.OpenAIError as error:
    return Answer(error=f"the endpoint answered something else than a completion: {' '.join(str(error).split())[:200]}")
  except _TooLong as error:
    return Answer(error=f"the endpoint's answer is not taken: {error}")
  except (AttributeError, TypeError, IndexError, KeyError, ValueError, RecursionError) as error:
    return Answer(error=f"the endpoint answered something else than a completion ({type(error).__name__})")


def _create(client: "openai.OpenAI", endpoint: Endpoint, prompt: str, extra: dict[str, Any]) -> "ChatCompletion":
  """A chat completion. OpenAI's newer models require `max_completion_tokens` in place of `max_tokens`, which many other servers do not accept."""
  import openai

  messages: list[Any] = [{"role": "user", "content": prompt}]
  try:
    return client.chat.completions.create(
      model=endpoint.model, messages=messages, max_tokens=endpoint.max_tokens, **extra
    )
  except openai.BadRequestError as error:
    if "max_completion_tokens" not in str(error.message):
      raise
    return client.chat.completions.create(
      model=endpoint.model, messages=messages, max_completion_tokens=endpoint.max_tokens, **extra
    )


def _count(value: object) -> int | None:
  """A number of tokens; None for anything else."""
  return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read_answer(path: pathlib.Path) -> Answer | None:
  """An answer on disk; None where there is none, or a damaged one, whose prompt is then sent again."""
  try:
    content = read_json(path)
    if content["format_version"] != FORMAT_VERSION or not isinstance(content["text"], str):
      return None
    sent, received = (_count(content.get(name)) for name in ("prompt_tokens", "answer_tokens"))
    return Answer(content["text"], prompt_tokens=sent, answer_tokens=received, cached=True)
  except (OSError, ValueError, KeyError, TypeError):
    return None


def read_answers(path: "str | os.PathLike") -> dict[str, Answer]:
  """Answers by hash, from a file of JSON lines {"hash": ..., "text": ...}.

  Raises:
    InversionViewError: a file that cannot be read, or a line that is not of this form.
  """
  answers = {}
  for number, line in read_lines(path):
    if not line.strip():
      continue
    try:
      record = parse_json(line, f"line {number}")
      name, text = record["hash"], record["text"]
      if not isinstance(name, str) or not isinstance(text, str):
        raise TypeError("hash and text must be strings")
    except (ValueError, KeyError, TypeError) as error:
      raise InversionViewError(
        f'{os.fspath(path)!r}, line {number}: {error}; lines look like {{"hash": "...", "text": "..."}}'
      ) from None
    answers[name] = Answer(text, "", cached=True)
  return answers


def replayed(prompts: dict[str, str], path: "str | os.PathLike") -> dict[str, Answer]:
  """The answers of a file (`read_answers`) to these prompts; no request is sent.

  Args:
    prompts: hash -> text, as for `ask`.
    path: of the file.

  Returns:
    hash -> `Answer`; prompts that the file lacks have an error.
  """
  answers = read_answers(path)
  return {name: answers.get(name, Answer(error=f"{os.fspath(path)} has no answer of hash {name}")) for name in prompts}


def cost(answers: Sequence[Answer], prices: tuple[float, float] | None) -> tuple[int, int, float | None]:
  """What the answers of this run cost; those read from files are free.

  Args:
    answers: all of them.
    prices: of a million tokens of prompts and of answers; None: unknown.

  Returns:
    Tokens of the prompts, tokens of the answers, and the price, None where it is not known.
  """
  fresh = [answer for answer in answers if not answer.cached and not answer.error]
  sent, received = (sum(getattr(answer, name) or 0 for answer in fresh) for name in ("prompt_tokens", "answer_tokens"))
  if prices is None or any(answer.prompt_tokens is None or answer.answer_tokens is None for answer in fresh):
    return sent, received, None if prices is None or fresh else 0.0
  return sent, received, math.fsum((sent * prices[0] / 1e6, received * prices[1] / 1e6))
