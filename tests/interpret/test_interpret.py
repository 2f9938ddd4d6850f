"""A language model's readings: prompts, a real HTTP server on loopback, kept and replayed answers, and the test of what is said."""

import collections
import contextlib
import http.server
import json
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from inversionview_jax import Preimage, Query, Sample, cli, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.interpret import hypotheses, language_model
from inversionview_jax.interpret.language_model import Answer, Endpoint
from inversionview_jax.tasks import grammar

pytest.importorskip("openai", reason="asking a language model needs the extra 'interpret'")
TASK = tasks.get("addition")
T = TASK.tokenizer


def preimage_of(first, second, rng, n=60, site="a0.3"):
  """Of an activation that says F1 + S1, and nothing else: members have the same sum."""
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


@pytest.fixture(scope="module")
def preimages():
  rng = np.random.default_rng(0)
  return [preimage_of(a, b, rng) for a, b in PAIRS]


@pytest.fixture
def folder(preimages, tmp_path):
  (tmp_path / "P" / "deep").mkdir(parents=True)
  for i, preimage in enumerate(preimages):
    preimage.to_json(tmp_path / "P" / ("deep" if i % 2 else ".") / f"{i}.json")
  (tmp_path / "P" / "other.json").write_text('{"format": "something else"}')
  return tmp_path / "P"


def completion(text, usage=True):
  said = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
  said["choices"] = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]
  return said | ({"usage": {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}} if usage else {})


GOOD = 'They agree in a sum.\n{"reading": "The hundreds add up to the same.", "features": ["F1 + S1", "F2", "F1 ** 2"]}'


@contextlib.contextmanager
def served(*steps, usage=True):
  """A server whose n-th request is answered by the n-th step (the last one from then on): text, (status, body), or seconds to wait."""
  asked, lock, busy = [], threading.Lock(), collections.Counter()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      with lock:
        step = steps[min(len(asked), len(steps) - 1)]
        asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, said))
        busy["now"] += 1
        busy["most"] = max(busy["most"], busy["now"])
      if isinstance(step, float):
        time.sleep(step)
        step = GOOD
      time.sleep(0.05)
      with lock:
        busy["now"] -= 1
      status, body = step if isinstance(step, tuple) else (200, json.dumps(completion(step, usage)))
      with contextlib.suppress(OSError):  # who asked has gone
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
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked, busy
  finally:
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
  for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    monkeypatch.delenv(name, raising=False)


def run(*argv):
  return cli.main(["interpret", *map(str, argv)])


# --- prompts ----------------------------------------------------------------------------------------------------------------------


def test_a_prompt_shows_queries_samples_on_both_sides_and_the_names_of_parts(preimages):
  (place,) = hypotheses.places(preimages)
  assert (place.site, place.place, len(place.preimages)) == ("a0.3", "=", 8)
  text = hypotheses.prompt(place, queries=5, samples=20)
  assert text == hypotheses.prompt(place, queries=5, samples=20)
  assert text.count("QUERY ") == 5 and "615+861[=]1476   (F1 = 6, F2 = 1" in text
  inside = text.split("INSIDE (distance at most 0.1):\n")[1].split("OUTSIDE")[0].strip().splitlines()
  assert len(inside) == 20 and all("[=]" in line and "distance 0.050" in line for line in inside)
  assert all(f"  {name}: {what}" in text for name, what in TASK.feature_names.items())
  assert set(TASK.feature_names) == set(TASK.features(TASK.tokens(np.arange(1))))


def test_places_and_texts_are_told_apart(preimages):
  other = preimage_of(615, 861, np.random.default_rng(1), site="a0.1")
  found = hypotheses.places([preimages[0], other, preimages[1], preimages[0]])
  assert [(place.site, len(place.preimages)) for place in found] == [("a0.3", 2), ("a0.1", 1)]


@pytest.mark.parametrize(
  ("answer", "expected"),
  [
    (GOOD, ("The hundreds add up to the same.", ["F1 + S1", "F2", "F1 ** 2"])),
    ('{"reading": "a", "features": "F1"}', ("a", ["F1"])),
    (
      'first {"reading": "old", "features": []} then ```json\n{"reading": "new {x}", "features": ["F2"]}\n```',
      ("new {x}", ["F2"]),
    ),
    ("I cannot tell.", ("I cannot tell.", [])),
    ('{"reading": "a", "features": [1, null, "F1", " ", "F2", "F3", "S1"]}', ("a", ["F1", "F2", "F3"])),
    ('{"reading": "cut off', ('{"reading": "cut off', [])),
    ('{"reading": "a", "features": 7}', ("a", [])),
  ],
)
def test_answers_are_taken_apart(answer, expected):
  assert hypotheses.parse(answer) == expected


# --- expressions ------------------------------------------------------------------------------------------------------------------


def test_expressions_have_values_and_know_what_they_do_not_know():
  found = {"F1": np.array([6, 1, -1]), "S1": np.array([8, 2, 3])}
  values, known = grammar.expression("(F1 + S1) % 10", found, 3)
  assert values[:2].tolist() == [4, 3] and known.tolist() == [True, True, False]
  assert grammar.expression("F1 + S1 >= 10", found, 3)[0][:2].tolist() == [1, 0]
  assert grammar.expression("not F1 == 6", found, 3)[0][:2].tolist() == [0, 1]


@pytest.mark.parametrize(
  "text",
  [
    "__import__('os').system('true')",
    "F1.__class__",
    "F1 ** 9",
    "F1 << 9",
    "[F1]",
    "F1 if S1 else 2",
    "lambda: F1",
    "F1 / 2",
    "F1 % S1",
    "F1 % 0",
    "F1 := 3",
    "'a' * 10",
    "True",
    "1.5",
    "F1 * F1 * F1 * F1",
    "99999999999999999999",
    "(" * 200 + "F1" + ")" * 200,
    "-" * 400 + "F1",
    "F1; S1",
    "",
    "F9",
    "print(F1)",
  ],
)
def test_nothing_else_is_understood(text):
  with pytest.raises(InversionViewError):
    grammar.expression(text, {"F1": np.array([1]), "S1": np.array([2])}, 1)


# --- the test of what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("feature", "verdict"),
  [
    ("F1 + S1", "confirmed"),
    ("F1 + S1 >= 10", "confirmed"),
    ("F1 + S1 == 14 or F1 + S1 == 5", "confirmed"),
    ("F2", "refuted"),
    ("F1", "refuted"),
    ("C2", "refuted"),
    ("F1 + 2 * S1", "refuted"),
    ("F1 >= 1", "not testable"),
    ("F1 +", "not testable"),
    ("F9", "not testable"),
    ("3 > 2", "not testable"),
  ],
)
def test_what_is_true_is_confirmed_and_what_is_not_is_refuted(preimages, feature, verdict):
  place = hypotheses.places(preimages)[0]
  found = hypotheses.score(place, feature, seen=5)
  assert found.verdict == verdict, found
  if verdict == "confirmed":
    assert found.rate.value == 1.0 and found.outside < 0.9
    assert (found.control < 0.1) == (feature == "F1 + S1")  # the three queries agree in the others
  if found.queries:
    assert (found.queries, found.unseen) == (3, True)  # of eight, those that the prompt did not show
  assert hypotheses.score(place, feature, seen=7).unseen is False
  json.dumps(found.to_dict(), allow_nan=False)


def test_a_claim_without_members_is_not_testable(preimages):
  far = [preimage.at(0.01) for preimage in preimages]
  found = hypotheses.score(hypotheses.places(far)[0], "F1 + S1")
  assert (found.verdict, found.rate) == ("not testable", None) and "members inside" in found.why


# --- the endpoint -----------------------------------------------------------------------------------------------------------------


def test_an_answer_is_asked_for_once_kept_and_tested(folder, tmp_path, capsys):
  out = tmp_path / "I"
  with served(GOOD) as (url, asked, _):
    argv = (folder, "--model", "m", "--out", out, "--base-url", url, "--prices", "2,10")
    assert run(*argv) == 0
    first = capsys.readouterr().out
    assert run(*argv) == 0
    second = capsys.readouterr().out
  assert len(asked) == 1
  path, headers, said = asked[0]
  assert path == "/v1/chat/completions" and said["model"] == "m" and "QUERY 1" in said["messages"][0]["content"]
  assert "confirmed  F1 + S1" in first and "refuted  F2" in first and "not testable  F1 ** 2" in first
  assert "1,000 tokens asked, 50 answered; cost 0.0025" in first
  assert "1 answers were there already; 0 tokens asked" in second and "cost 0.0000" in second
  table = json.loads((out / "interpretations.json").read_text())
  (place,) = table["places"]
  assert [one["verdict"] for one in place["features"]] == ["confirmed", "refuted", "not testable"]
  assert place["reading"] == "The hundreds add up to the same." and len(list((out / "answers").iterdir())) == 1


def test_another_model_or_temperature_is_another_question(folder, tmp_path):
  with served(GOOD) as (url, asked, _):
    rest = (folder, "--out", tmp_path / "I", "--base-url", url)
    assert run(*rest, "--model", "m") == run(*rest, "--model", "other") == 0
    assert run(*rest, "--model", "m", "--temperature", "0.5") == 0
  assert len(asked) == 3 and asked[2][2]["temperature"] == 0.5 and "temperature" not in asked[0][2]


def test_the_key_goes_to_the_endpoint_and_nowhere_else(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "made-up-key")
  with served(GOOD) as (url, asked, _):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert run(folder, "--model", "m", "--out", tmp_path / "I") == 0
  assert asked[0][1]["authorization"] == "Bearer made-up-key"
  assert all("made-up-key" not in path.read_text() for path in (tmp_path / "I").rglob("*.json"))


def test_what_failed_is_asked_again_and_what_came_is_kept(tmp_path):
  prompts = {f"h{i}": f"prompt {i}" for i in range(3)}
  with served((500, "{}"), GOOD) as (url, asked, _):
    found = language_model.ask(prompts, tmp_path, Endpoint("m", url, retries=1), at_once=1)
  assert len(asked) == 4 and all(not answer.error for answer in found.values())
  with served((400, '{"error": {"message": "no such model"}}'), GOOD) as (url, asked, _):
    more = prompts | {"h3": "prompt 3", "h4": "prompt 4"}
    found = language_model.ask(more, tmp_path, Endpoint("m", url, retries=0), at_once=1)
    assert len(asked) == 2 and "status 400" in found["h3"].error and "no such model" in found["h3"].error
    again = language_model.ask(more, tmp_path, Endpoint("m", url, retries=0))
  assert len(asked) == 3 and not again["h3"].error and sum(answer.cached for answer in again.values()) == 4


def test_requests_go_out_together_but_not_too_many(tmp_path):
  with served(GOOD) as (url, asked, busy):
    language_model.ask({f"h{i}": str(i) for i in range(8)}, tmp_path, Endpoint("m", url), at_once=3)
  assert len(asked) == 8 and 2 <= busy["most"] <= 3


def test_newer_models_want_another_name_for_the_limit(tmp_path):
  refused = (400, '{"error": {"message": "Unsupported parameter: use \'max_completion_tokens\' instead"}}')
  with served(refused, GOOD) as (url, asked, _):
    found = language_model.ask({"h": "p"}, tmp_path, Endpoint("m", url, max_tokens=77))
  assert found["h"].text == GOOD and asked[1][2]["max_completion_tokens"] == 77


@pytest.mark.parametrize(
  ("step", "said"),
  [
    ((200, "<html>hello</html>"), "something else than a completion"),
    ((200, '{"choices": []}'), "something else than a completion"),
    ((200, "{}"), "something else than a completion"),
    ((200, "[1, 2"), "something else than a completion"),
    ((404, "<html>not here</html>"), "status 404"),
    ("   ", "the answer is empty"),
    (1.5, "no answer within 0.3 s"),
  ],
)
def test_an_endpoint_that_answers_nonsense_or_late_costs_nothing_but_its_answer(folder, tmp_path, capsys, step, said):
  out = tmp_path / "I"
  with served(step) as (url, _, _):
    argv = (folder, "--model", "m", "--out", out, "--base-url", url, "--retries", "0", "--timeout", "0.3")
    assert run(*argv) == 2
  captured = capsys.readouterr()
  assert said in captured.err and "1 of 1 prompts have no answer" in captured.err and captured.err.count("\n") == 1
  assert json.loads((out / "interpretations.json").read_text())["places"][0]["error"]
  assert not list((out / "answers").iterdir())
  with served(GOOD) as (url, _, _):  # the same again, when it is well
    assert run(folder, "--model", "m", "--out", out, "--base-url", url) == 0


def test_an_endpoint_that_is_down_is_said(folder, tmp_path, capsys):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
  assert run(folder, "--model", "m", "--out", tmp_path / "I", "--base-url", url, "--retries", "0") == 2
  err = capsys.readouterr().err
  assert "no connection to " in err and err.count("\n") == 1


def test_a_damaged_kept_answer_is_asked_again(tmp_path):
  (tmp_path / "h.json").write_text('{"format_version": 1, "te')
  with served(GOOD) as (url, asked, _):
    assert language_model.ask({"h": "p"}, tmp_path, Endpoint("m", url))["h"].text == GOOD
  assert len(asked) == 1


def test_answers_can_be_replayed_from_a_file(folder, tmp_path, capsys):
  out = tmp_path / "I"
  assert run(folder, "--model", "m", "--out", out, "--prompts-only") == 0
  (line,) = (out / "prompts.jsonl").read_text().splitlines()
  said = json.loads(line)
  assert "QUERY 1" in said["prompt"]
  replay = tmp_path / "answers.jsonl"
  replay.write_text(json.dumps({"hash": said["hash"], "text": GOOD}) + "\n\n")
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 0
  assert "confirmed  F1 + S1" in capsys.readouterr().out
  replay.write_text('{"hash": "another", "text": "x"}\n')
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 2
  assert f"has no answer of hash {said['hash']}" in capsys.readouterr().err
  replay.write_text('{"text": "x"}\n')
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 2
  assert "line 1" in capsys.readouterr().err


def test_cost_is_of_what_was_asked_now():
  answers = [Answer("a", "", 1000, 100), Answer("b", "", 5000, 500, cached=True), Answer(error="x")]
  assert language_model.cost(answers, (2.0, 10.0)) == (1000, 100, pytest.approx(0.003))
  assert language_model.cost(answers, None)[2] is None
  assert language_model.cost([Answer("a")], (2.0, 10.0))[2] is None  # the endpoint does not count


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["nowhere.json"], "cannot read preimage 'nowhere.json'"),
    (["--prices", "cheap"], "--prices 'cheap' must be two numbers"),
    (["--queries", "0"], "--queries 0 must be at least 1"),
    (["--timeout", "0"], "--timeout 0 must be above 0"),
    ([], "no endpoint: set OPENAI_API_KEY, or give --base-url"),
  ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, argv, said):
  first = argv[:1] if argv and not argv[0].startswith("--") else [folder]
  rest = argv if argv and argv[0].startswith("--") else []
  assert run(*first, "--model", "m", "--out", tmp_path / "I", *rest) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1


def test_an_empty_folder_and_a_newer_file_are_said(tmp_path, preimages, capsys):
  (tmp_path / "P").mkdir()
  assert run(tmp_path / "P", "--model", "m", "--out", tmp_path / "I") == 2
  assert "no preimages in" in capsys.readouterr().err
  newer = preimages[0].to_json().replace('"format_version":2', '"format_version":99')
  (tmp_path / "P" / "a.json").write_text(newer)
  assert run(tmp_path / "P", "--model", "m", "--out", tmp_path / "I") == 2
  assert "99 is newer" in capsys.readouterr().err


def test_prompts_and_scores_need_no_jax():
  code = "import sys; from inversionview_jax.interpret import hypotheses, language_model; assert 'jax' not in sys.modules and 'openai' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
