"""Requests to a language model: a real HTTP server on loopback, retries, and answers on disk."""

import functools
import gzip
import itertools
import time

import pytest
from language_model_server import GOOD, served

from inversionview_jax.interpret import language_model
from inversionview_jax.interpret.language_model import Answer, Endpoint

pytest.importorskip("openai", reason="requests to a language model need the extra 'interpret'")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
  for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    monkeypatch.delenv(name, raising=False)


def test_what_failed_is_sent_again_and_answers_are_kept(tmp_path):
  prompts = {f"h{i}": f"prompt {i}" for i in range(3)}
  with served((500, "{}"), GOOD) as (url, requests, _):
    answers = language_model.ask(prompts, tmp_path, Endpoint("m", url, retries=1), at_once=1)
  assert len(requests) == 4 and all(not answer.error for answer in answers.values())
  with served((400, '{"error": {"message": "no such model"}}'), GOOD) as (url, requests, _):
    more = prompts | {"h3": "prompt 3", "h4": "prompt 4"}
    answers = language_model.ask(more, tmp_path, Endpoint("m", url, retries=0), at_once=1)
    assert len(requests) == 2 and "status 400" in answers["h3"].error and "no such model" in answers["h3"].error
    again = language_model.ask(more, tmp_path, Endpoint("m", url, retries=0))
  assert len(requests) == 3 and not again["h3"].error and sum(answer.cached for answer in again.values()) == 4


def test_requests_go_out_together_but_not_too_many(tmp_path):
  with served(GOOD) as (url, requests, busy):
    language_model.ask({f"h{i}": str(i) for i in range(8)}, tmp_path, Endpoint("m", url), at_once=3)
  assert len(requests) == 8 and 2 <= busy["most"] <= 3


def test_newer_models_have_another_name_for_the_limit(tmp_path):
  refused = (400, '{"error": {"message": "Unsupported parameter: use \'max_completion_tokens\' instead"}}')
  with served(refused, GOOD) as (url, requests, _):
    answers = language_model.ask({"h": "p"}, tmp_path, Endpoint("m", url, max_tokens=77))
  assert answers["h"].text == GOOD and requests[1][2]["max_completion_tokens"] == 77


def test_the_prompt_of_a_damaged_answer_is_sent_again(tmp_path):
  (tmp_path / "h.json").write_text('{"format_version": 1, "te')
  with served(GOOD) as (url, requests, _):
    assert language_model.ask({"h": "p"}, tmp_path, Endpoint("m", url))["h"].text == GOOD
  assert len(requests) == 1


def drip(out):
  """A whole header, then a byte now and then."""
  out.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{")
  while True:
    out.write(b" ")
    out.flush()
    time.sleep(0.02)


def drip_header(out):
  out.write(b"HTTP/1.1 200 OK\r\n")
  for number in itertools.count():
    out.write(b"X-%d: a\r\n" % number)
    out.flush()
    time.sleep(0.02)


def endless(out, status=b"200 OK"):
  out.write(b"HTTP/1.1 " + status + b"\r\nContent-Type: application/json\r\n\r\n")
  while True:
    out.write(1_000_000 * b" ")


def compressed(out):
  body = gzip.compress(1_000_000 * b" ")
  out.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


@pytest.mark.parametrize(
  "step, named",
  [
    (drip, "no answer within 0.4 s"),
    (drip_header, "no answer within 0.4 s"),
    (endless, "longer than 10 MB"),
    (functools.partial(endless, status=b"400 Bad Request"), "longer than 10 MB"),
    (compressed, "compressed"),
  ],
)
def test_an_answer_that_does_not_end_is_given_up(tmp_path, step, named):
  timeout = 30.0 if step is not drip and step is not drip_header else 0.4
  with served(step) as (url, _, _):
    answers = language_model.ask({"h": "p"}, tmp_path, Endpoint("m", url, timeout=timeout, retries=0))
  assert named in answers["h"].error and not list(tmp_path.iterdir())


def test_cost_is_of_new_answers():
  answers = [Answer("a", "", 1000, 100), Answer("b", "", 5000, 500, cached=True), Answer(error="x")]
  assert language_model.cost(answers, (2.0, 10.0)) == (1000, 100, pytest.approx(0.003))
  assert language_model.cost(answers, None)[2] is None
  assert language_model.cost([Answer("a")], (2.0, 10.0))[2] is None  # the endpoint does not count
