"""Asking a language model behind an OpenAI-compatible endpoint: at once, again where it failed, and never twice for the same answer.

An answer is kept in a file that its prompt's hash names, as soon as it is there; asking the same again reads it. Needs no JAX.
"""

import concurrent.futures
import dataclasses
import json
import math
import os
import pathlib
import threading
from collections.abc import Callable, Sequence

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Answer:
  """What came back for a prompt.

  Attributes:
    text: the answer; "" where there is none.
    error: why there is none.
    prompt_tokens, answer_tokens: as the endpoint counts them; None where it does not say.
    cached: whether it was there before.
  """

  text: str = ""
  error: str = ""
  prompt_tokens: int | None = None
  answer_tokens: int | None = None
  cached: bool = False


@dataclasses.dataclass(frozen=True)
class Endpoint:
  """Where to ask, and how.

  Attributes:
    model: its name there.
    base_url: None for OpenAI's own, or OPENAI_BASE_URL.
    temperature: None leaves it to the endpoint.
    max_tokens: of an answer.
    timeout: seconds for one attempt.
    retries: after a failed attempt that may go better: no connection, too slow, too many requests, an error of the server.
  """

  model: str
  base_url: str | None = None
  temperature: float | None = None
  max_tokens: int = 2048
  timeout: float = 120.0
  retries: int = 4

  def settings(self) -> dict:
    """What an answer depends on besides model and prompt."""
    return {"temperature": self.temperature, "max_tokens": self.max_tokens}

  def client(self):
    """The client; raises `InversionViewError` if it is not installed, or there is no key for an endpoint that needs one."""
    try:
      import openai
    except ImportError:
      raise InversionViewError(
        "asking a language model needs openai: pip install 'inversionview_jax[interpret]'; or give answers with --replay"
      ) from None
    base_url, key = self.base_url or os.environ.get("OPENAI_BASE_URL"), os.environ.get("OPENAI_API_KEY")
    if not key and not base_url:
      raise InversionViewError(
        "no endpoint: set OPENAI_API_KEY, or give --base-url (or OPENAI_BASE_URL) for a server of your own, "
        "such as http://127.0.0.1:8080/v1"
      )
    # A server of one's own often wants no key; the client wants some.
    return openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=self.timeout, max_retries=self.retries)


def ask(
  prompts: dict[str, str],
  folder: "str | os.PathLike",
  endpoint: Endpoint,
  at_once: int = 4,
  progress: Callable[[int, int, Sequence[Answer]], None] = lambda done, of, answers: None,
) -> dict[str, Answer]:
  """Asks every prompt that has no kept answer.

  Args:
    prompts: hash -> text (`interpret.prompt_hash`).
    folder: where answers are kept, a file each; made if it is not there.
    endpoint: where to ask.
    at_once: most requests at a time.
    progress: called after each answer.

  Returns:
    hash -> `Answer`; one prompt's error does not keep the others from being answered.
  """
  folder, found = make_folder(folder), {}
  for name in prompts:
    if kept := _kept(folder / f"{name}.json"):
      found[name] = kept
  missing = [name for name in prompts if name not in found]
  progress(len(found), len(prompts), list(found.values()))
  if not missing:
    return found
  client, lock = endpoint.client(), threading.Lock()

  def one(name: str) -> None:
    answer = _asked(client, endpoint, prompts[name])
    if not answer.error:
      said = dataclasses.asdict(answer) | {"format_version": FORMAT_VERSION, "hash": name, "model": endpoint.model}
      del said["cached"], said["error"]
      write_whole(folder / f"{name}.json", json.dumps(said | {"prompt": prompts[name]}, indent=1, ensure_ascii=False))
    with lock:
      found[name] = answer
      progress(len(found), len(prompts), list(found.values()))

  with concurrent.futures.ThreadPoolExecutor(max(1, min(at_once, len(missing)))) as pool:
    waiting = [pool.submit(one, name) for name in missing]
    try:
      for done in concurrent.futures.as_completed(waiting):
        done.result()
    except BaseException:  # what has come is kept
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return found


def _asked(client, endpoint: Endpoint, prompt: str) -> Answer:
  import openai

  extra = {} if endpoint.temperature is None else {"temperature": endpoint.temperature}
  try:
    said = _create(client, endpoint, prompt, extra)
    text = said.choices[0].message.content
    if not isinstance(text, str) or not text.strip():
      return Answer(error="the answer is empty")
    used = said.usage
    return Answer(text, "", *(_count(getattr(used, name, None)) for name in ("prompt_tokens", "completion_tokens")))
  except openai.APITimeoutError:
    return Answer(error=f"no answer within {endpoint.timeout:g} s, {endpoint.retries + 1} times")
  except openai.APIConnectionError as error:
    return Answer(error=f"no connection to {client.base_url}: {error.__cause__ or error}")
  except openai.APIStatusError as error:
    return Answer(
      error=f"the endpoint refused with status {error.status_code}: {' '.join(str(error.message).split())[:200]}"
    )
  except openai.OpenAIError as error:
    return Answer(error=f"the endpoint answered something else than a completion: {' '.join(str(error).split())[:200]}")
  except (AttributeError, TypeError, IndexError, KeyError, ValueError) as error:
    return Answer(error=f"the endpoint answered something else than a completion ({type(error).__name__})")


def _create(client, endpoint: Endpoint, prompt: str, extra: dict):
  """OpenAI's newer models refuse `max_tokens` and want `max_completion_tokens`, which many other servers do not know."""
  import openai

  messages = [{"role": "user", "content": prompt}]
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


def _count(value) -> int | None:
  return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _kept(path: pathlib.Path) -> Answer | None:
  """A kept answer; None where there is none, or a damaged one, which is asked again."""
  try:
    said = json.loads(path.read_text(encoding="utf-8"))
    if said["format_version"] != FORMAT_VERSION or not isinstance(said["text"], str):
      return None
    return Answer(said["text"], "", _count(said.get("prompt_tokens")), _count(said.get("answer_tokens")), cached=True)
  except (OSError, ValueError, KeyError, TypeError):
    return None


def replayed(prompts: dict[str, str], path: "str | os.PathLike") -> dict[str, Answer]:
  """Answers from a file of JSON lines {"hash": ..., "text": ...}, in place of asking; prompts that it lacks have an error.

  Raises:
    InversionViewError: a file that cannot be read, or a line that is not of this form.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InversionViewError(f"cannot read {os.fspath(path)!r}: {error}") from None
  found = {}
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    try:
      said = json.loads(line)
      name, text = said["hash"], said["text"]
      if not isinstance(name, str) or not isinstance(text, str):
        raise TypeError("hash and text must be strings")
    except (ValueError, KeyError, TypeError) as error:
      raise InversionViewError(
        f'{os.fspath(path)!r}, line {number}: {error}; lines look like {{"hash": "...", "text": "..."}}'
      ) from None
    found[name] = Answer(text, "", cached=True)
  return {name: found.get(name, Answer(error=f"{os.fspath(path)} has no answer of hash {name}")) for name in prompts}


def cost(answers: Sequence[Answer], prices: tuple[float, float] | None) -> tuple[int, int, float | None]:
  """Tokens of the prompts and of the answers that were asked for now, and what they cost.

  Args:
    prices: for a million tokens of prompts and of answers; None: unknown.
  """
  fresh = [answer for answer in answers if not answer.cached and not answer.error]
  told, said = (sum(getattr(answer, name) or 0 for answer in fresh) for name in ("prompt_tokens", "answer_tokens"))
  if prices is None or any(answer.prompt_tokens is None or answer.answer_tokens is None for answer in fresh):
    return told, said, None if prices is None or fresh else 0.0
  return told, said, math.fsum((told * prices[0] / 1e6, said * prices[1] / 1e6))
