"""`inversionview interpret`: prompts, answers of a server on loopback, replayed answers, and what is refused."""

import json
import socket

import pytest
from language_model_server import GOOD, served, sum_preimages

from inversionview_jax import cli

pytest.importorskip("openai", reason="requests to a language model need the extra 'interpret'")


@pytest.fixture(scope="module")
def preimages():
  return sum_preimages()


@pytest.fixture
def folder(preimages, tmp_path):
  (tmp_path / "P" / "deep").mkdir(parents=True)
  for i, preimage in enumerate(preimages):
    preimage.to_json(tmp_path / "P" / ("deep" if i % 2 else ".") / f"{i}.json")
  (tmp_path / "P" / "other.json").write_text('{"format": "something else"}')
  return tmp_path / "P"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
  for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    monkeypatch.delenv(name, raising=False)


def run(*argv):
  return cli.main(["interpret", *map(str, argv)])


def test_a_prompt_is_sent_once_and_its_answer_kept_and_tested(folder, tmp_path, capsys):
  out = tmp_path / "I"
  with served(GOOD) as (url, requests, _):
    argv = (folder, "--model", "m", "--out", out, "--base-url", url, "--prices", "2,10")
    assert run(*argv) == 0
    first = capsys.readouterr().out
    assert run(*argv) == 0
    second = capsys.readouterr().out
  assert len(requests) == 1
  path, headers, content = requests[0]
  assert path == "/v1/chat/completions" and content["model"] == "m" and "QUERY 1" in content["messages"][0]["content"]
  assert "confirmed  F1 + S1" in first and "refuted  F2" in first and "not testable  F1 ** 2" in first
  assert "1,000 tokens sent, 50 tokens received; cost 0.0025" in first
  assert "1 answers from files; 0 tokens sent" in second and "cost 0.0000" in second
  table = json.loads((out / "interpretations.json").read_text())
  (group,) = table["places"]
  assert [one["verdict"] for one in group["features"]] == ["confirmed", "refuted", "not testable"]
  assert group["reading"] == "The hundreds add up to the same." and len(list((out / "answers").iterdir())) == 1


def test_another_model_or_temperature_is_another_request(folder, tmp_path):
  with served(GOOD) as (url, requests, _):
    rest = (folder, "--out", tmp_path / "I", "--base-url", url)
    assert run(*rest, "--model", "m") == run(*rest, "--model", "other") == 0
    assert run(*rest, "--model", "m", "--temperature", "0.5") == 0
  assert len(requests) == 3 and requests[2][2]["temperature"] == 0.5 and "temperature" not in requests[0][2]


def test_the_key_goes_to_the_endpoint_and_nowhere_else(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", "made-up-key")
  with served(GOOD) as (url, requests, _):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    assert run(folder, "--model", "m", "--out", tmp_path / "I") == 0
  assert requests[0][1]["authorization"] == "Bearer made-up-key"
  assert all("made-up-key" not in path.read_text() for path in (tmp_path / "I").rglob("*.json"))


@pytest.mark.parametrize(
  ("step", "message"),
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
def test_a_wrong_or_late_answer_is_reported_and_not_kept(folder, tmp_path, capsys, step, message):
  out = tmp_path / "I"
  with served(step) as (url, _, _):
    argv = (folder, "--model", "m", "--out", out, "--base-url", url, "--retries", "0", "--timeout", "0.3")
    assert run(*argv) == 2
  captured = capsys.readouterr()
  assert message in captured.err and "1 of 1 prompts have no answer" in captured.err and captured.err.count("\n") == 1
  assert json.loads((out / "interpretations.json").read_text())["places"][0]["error"]
  assert not list((out / "answers").iterdir())
  with served(GOOD) as (url, _, _):  # the same again, when it is well
    assert run(folder, "--model", "m", "--out", out, "--base-url", url) == 0


def test_an_endpoint_that_is_down_is_reported(folder, tmp_path, capsys):
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
  assert run(folder, "--model", "m", "--out", tmp_path / "I", "--base-url", url, "--retries", "0") == 2
  err = capsys.readouterr().err
  assert "no connection to " in err and err.count("\n") == 1


def test_answers_can_be_replayed_from_a_file(folder, tmp_path, capsys):
  out = tmp_path / "I"
  assert run(folder, "--model", "m", "--out", out, "--prompts-only") == 0
  (line,) = (out / "prompts.jsonl").read_text().splitlines()
  record = json.loads(line)
  assert "QUERY 1" in record["prompt"]
  replay = tmp_path / "answers.jsonl"
  replay.write_text(json.dumps({"hash": record["hash"], "text": GOOD}) + "\n\n")
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 0
  assert "confirmed  F1 + S1" in capsys.readouterr().out
  replay.write_text('{"hash": "another", "text": "x"}\n')
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 2
  assert f"has no answer of hash {record['hash']}" in capsys.readouterr().err
  replay.write_text('{"text": "x"}\n')
  assert run(folder, "--model", "m", "--out", out, "--replay", replay) == 2
  assert "line 1" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["nowhere.json"], "cannot read 'nowhere.json'"),
    (["--prices", "cheap"], "--prices 'cheap' must be two numbers"),
    (["--queries", "0"], "--queries 0 must be a whole number"),
    (["--timeout", "0"], "--timeout 0 must be a number above 0"),
    ([], "no endpoint: set OPENAI_API_KEY, or give --base-url"),
  ],
)
def test_bad_input_is_one_line(folder, tmp_path, capsys, argv, message):
  first = argv[:1] if argv and not argv[0].startswith("--") else [folder]
  rest = argv if argv and argv[0].startswith("--") else []
  assert run(*first, "--model", "m", "--out", tmp_path / "I", *rest) == 2
  err = capsys.readouterr().err
  assert message in err and err.count("\n") == 1


def test_an_empty_folder_and_a_newer_file_are_refused(tmp_path, preimages, capsys):
  (tmp_path / "P").mkdir()
  assert run(tmp_path / "P", "--model", "m", "--out", tmp_path / "I") == 2
  assert "no preimages in" in capsys.readouterr().err
  newer = preimages[0].to_json().replace('"format_version":3', '"format_version":99')
  (tmp_path / "P" / "a.json").write_text(newer)
  assert run(tmp_path / "P", "--model", "m", "--out", tmp_path / "I") == 2
  assert "99 is newer" in capsys.readouterr().err


def test_control_characters_of_an_answer_do_not_reach_the_terminal(folder, tmp_path, capsys):
  assert run(folder, "--model", "m", "--out", tmp_path / "I", "--prompts-only") == 0
  hashes = [json.loads(line)["hash"] for line in (tmp_path / "I" / "prompts.jsonl").read_text().splitlines()]
  answer = json.dumps(
    {"reading": "\x1b]0;title\x07\x1b[31mred\u202e \ud800 [bold]b[/]\r", "features": ["\x1b[2J F1", "\x9b31m"]}
  )
  (tmp_path / "a.jsonl").write_text("".join(json.dumps({"hash": name, "text": answer}) + "\n" for name in hashes))
  assert run(folder, "--model", "m", "--out", tmp_path / "I", "--replay", tmp_path / "a.jsonl") == 0
  printed = capsys.readouterr().out
  assert "␛[31mred" in printed and "[bold]b[/]" in printed and "␛[2J F1" in printed
  assert all(c.isprintable() or c == "\n" for c in printed)
  assert run("\x1b[31mP\x07", "--model", "m", "--out", tmp_path / "I") == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1 and all(c.isprintable() or c == "\n" for c in error)
