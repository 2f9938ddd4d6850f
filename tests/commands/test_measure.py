"""`inversionview measure`: its table, its JSON, and what it refuses in one line."""

import json

import pytest

from inversionview_jax import cli

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_the_command_prints_the_table(capsys, tmp_path):
  path = tmp_path / "m.json"
  argv = [
    "measure",
    "615+861=1476",
    "--site",
    "a0.0",
    "--position",
    "=",
    "--controls",
    "3",
    "--particles",
    "256",
  ]
  assert cli.main([*argv, "--json", str(path)]) == 0
  out = capsys.readouterr().out
  assert (
    "C2" in out
    and "encodes: C2 = 0" in out
    and "the control (3 other activations for each query) encodes none of them" in out
  )
  written = json.loads(path.read_text())
  assert written["rows"][0]["feature"] == "C2" and written["method"] == "monte_carlo"
  # Of 810,000 inputs 411,045 lie inside: 0.98 bits (`view --method exact`).
  assert abs(written["bits"]["mean"] - 0.98) < 4 * written["bits"]["error"] + 0.05


@pytest.mark.slow
def test_what_the_decoder_drew_is_not_called_encoded(capsys):
  argv = ["measure", "615+861=1476", "--site", "a0.0", "--position", "=", "--controls", "2", "--no-bits"]
  assert cli.main([*argv, "--method", "decoder", "--num-samples", "64"]) == 0
  out = capsys.readouterr().out
  assert "the decoder's candidates, as it draws them, share: C2 = 0" in out and "encode" not in out


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (
      ["615+861=1476", "--queries", "3"],
      "--queries 3 is a number of held-out inputs; leave it out when texts are given",
    ),
    (["615+861=1476", "615+861=1476"], "given twice"),
    (["--texts", "nowhere.txt"], "cannot read 'nowhere.txt'"),
    (["--queries", "1"], "--queries 1 must be a whole number from 2"),
    (["615+861=1476", "--json", "nowhere/m.json"], "does not exist"),
    (["6x5", "--controls", "2"], "character 'x'"),
    (["--feature", "F1 **"], "is not understood"),
    (["--feature", "F9 > 1"], "unknown feature in the condition 'F9 > 1'"),
  ],
)
def test_bad_input_is_one_line(argv, message, capsys):
  assert cli.main(["measure", *argv, "--site", "a0.0", "--position", "="]) == 2
  err = capsys.readouterr().err
  assert message in err and err.count("\n") == 1
