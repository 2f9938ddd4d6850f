"""`inversionview check`: verdicts, sentences that a language model translates, and what is refused."""

import json

import numpy as np
import pytest
from language_model_server import preimage_of, served

pytestmark = pytest.mark.usefixtures("quick_to_compile")
DRAWN = ("--text", "615+861=1476", "--target", "addition", "--site", "a1.1", "--position", "=")
SENTENCE = "The hundreds add up to fourteen."


@pytest.fixture
def saved(tmp_path):
  """A preimage that encodes F1 + S1."""
  preimage_of(615, 861, np.random.default_rng(0), n=200).to_json(tmp_path / "P.json")
  return "P.json"


def test_a_claim_about_an_activation_is_tested_and_written(inversionview, tmp_path):
  fewer = ("--particles", "256", "--controls", "1", "--others", "1")
  code, out, _ = inversionview("check", "C2 == 0 and C1 == 1", *DRAWN, *fewer, "--json", "c.json")
  assert code == 0 and "confirmed  C2 == 0 and C1 == 1" in out and "control: other texts" in out
  content = json.loads((tmp_path / "c.json").read_text())
  assert (content["format"], content["verdict"], content["counterexamples"]) == ("inversionview-claim", "confirmed", [])
  assert content["method"] == "monte_carlo" and content["claim_bits"] < content["bits"] and len(content["others"]) == 1


def test_every_verdict_is_a_success(inversionview, saved, tmp_path):
  for claim, verdict in (("F1 + S1", "confirmed"), ("F2 == 1", "refuted"), ("F1 >= 1", "not testable")):
    code, out, _ = inversionview("check", claim, "--preimage", saved, "--json", "c.json")
    assert code == 0 and f"{verdict}  {claim}: " in out
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["verdict"] == verdict and bool(content["counterexamples"]) == (verdict == "refuted")
  assert "counterexample" in inversionview("check", "F2 == 1", "--preimage", saved)[1]


def test_a_sentence_is_translated_and_the_translation_kept(inversionview, saved, tmp_path, monkeypatch):
  pytest.importorskip("openai", reason="requests to a language model need the extra 'interpret'")
  monkeypatch.delenv("OPENAI_API_KEY", raising=False)
  with served('So: {"expression": "F1 + S1 == 14"}') as (url, requests, _):
    argv = ("check", SENTENCE, "--preimage", saved, "--model", "m", "--base-url", url, "--json", "c.json")
    code, out, _ = inversionview(*argv)
  sent = requests[0][2]["messages"][0]["content"]
  assert SENTENCE in sent and "hundreds of the first number" in sent and "contains(" in sent
  assert code == 0 and "translated   F1 + S1 == 14" in out and "confirmed" in out
  content = json.loads((tmp_path / "c.json").read_text())
  assert (content["sentence"], content["claim"]) == (SENTENCE, "F1 + S1 == 14")
  assert content["translation"]["model"] == "m"
  replay = json.dumps({"hash": content["translation"]["hash"], "text": '{"expression": null, "why": "It is vague."}'})
  (tmp_path / "answers.jsonl").write_text(replay + "\n")
  argv = ("check", SENTENCE, "--preimage", saved, "--model", "m", "--replay", "answers.jsonl", "--json", "c.json")
  code, out, _ = inversionview(*argv)
  assert code == 0 and "not testable" in out and "It is vague." in out
  assert json.loads((tmp_path / "c.json").read_text())["verdict"] == "not testable"


def test_what_a_language_model_writes_is_never_run(inversionview, saved, tmp_path, monkeypatch):
  replay_of = tmp_path / "answers.jsonl"
  replay_of.write_text("")
  code, _, error = inversionview("check", SENTENCE, "--preimage", saved, "--model", "m", "--replay", "answers.jsonl")
  assert code == 2 and (name := error.split("hash ")[1].split()[0])
  replay_of.write_text(
    json.dumps({"hash": name, "text": "{\"expression\": \"__import__('os').mkdir('made')\"}"}) + "\n"
  )
  code, out, _ = inversionview("check", SENTENCE, "--preimage", saved, "--model", "m", "--replay", "answers.jsonl")
  assert code == 0 and "not testable" in out and "not understood" in out and not (tmp_path / "made").exists()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (("C2 = 0", *DRAWN), "not understood at character 4"),
    ((SENTENCE, *DRAWN), "a sentence needs --model"),
    (("C2 == 0", *DRAWN[2:]), "give --text"),
    (("C2 == 0", *DRAWN[:4]), "give --site"),
    (("token(A5) == token(A1)", *DRAWN), "unknown position 'A5'"),
    (("C2 == 0", *DRAWN, "--method", "decoder"), "needs a reader"),
    (("C2 == 0", *DRAWN, "--base-url", "http://x"), "--base-url belongs to --model"),
    (("C2 == 0", *DRAWN, "--json", "nowhere/c.json"), "does not exist"),
    (("C2 == 0", *DRAWN, "--controls", "-1"), "--controls -1 must be a whole number"),
    (("C2 == 0", "--preimage", "nowhere.json"), "nowhere.json"),
    (("C2 == 0", "--preimage", "P.json", "--site", "a0.0"), "--site has no effect on a saved preimage"),
    (("", *DRAWN), "must be something"),
  ],
)
def test_bad_input_is_one_line(refused, saved, argv, message):
  assert message in refused("check", *argv)
