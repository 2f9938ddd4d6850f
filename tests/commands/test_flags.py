"""The flags that commands share: one spelling and one help text each; renamed flags; help without JAX."""

import argparse
import subprocess
import sys

import pytest

from inversionview_jax import cli
from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError


def commands() -> dict[str, argparse.ArgumentParser]:
  """The parser of each command."""
  parser = cli._parser()
  (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
  return dict(action.choices)


def test_shared_flags_have_one_help_text():
  """A flag that two commands have under one name is one of the shared ones, or is listed here with its own meaning in each."""
  own_meaning = {
    "--help",
    "--queries",  # held-out inputs to evaluate or measure; queries in a prompt
    "--count",  # prompts at most, or texts
    "--inputs",  # random inputs for completeness, or for the bits
    "--temperature",  # of the decoder, or of a language model
    "--feature",  # one of the task's, or an expression
    "--out",  # of `report`: a file
    "--particles",  # of `plan`: per device
    "--method",  # of `scoreboard`: one of two
    "--pairs",  # to search with, or of each kind
    "--circuit",  # of `study`: a folder where one may be found first
    "--budget",  # of `circuit`: runs of a search, without Monte Carlo
  }
  texts: dict[str, set[str]] = {}
  for parser in commands().values():
    for action in parser._actions:
      for option in action.option_strings:
        if option.startswith("--"):
          texts.setdefault(option, set()).add((action.help or "").split(" (")[0])
  for option, helps in texts.items():
    if option[2:] in flags.FLAGS:
      helps -= {flags.FLAGS[option[2:]].help.split(" (")[0]}
      assert not helps or option in own_meaning, (option, helps)
    else:
      assert len(helps) == 1 or option in own_meaning, (option, helps)


def test_every_flag_is_spelled_with_hyphens_and_has_a_help_text():
  for parser in commands().values():
    for action in parser._actions:
      assert action.help
      assert all("_" not in option for option in action.option_strings)


def test_defaults_are_in_the_help_text(capsys):
  with pytest.raises(SystemExit):
    cli.main(["view", "--help"])
  printed = " ".join(capsys.readouterr().out.split())
  assert "workdir of a trained one (default: addition)" in printed and "(default: anywhere)" in printed
  assert "threshold on the distance (default: the task's)" in printed


@pytest.mark.parametrize(
  ("argv", "new"),
  [
    (["train", "--config=c.py", "--workdir=w", "--num_processes=2"], "--num-processes"),
    (["sample", "--out", "o", "--requests", "q", "--process_id", "1"], "--process-id"),
    (["sample", "--out", "o", "--queries", "q.jsonl"], "--requests"),
    (["sample", "--out", "o", "--requests", "q", "--sites=a0.0,a0.1"], "--site (once for each site)"),
    (["evaluate", "--out", "o", "--draws", "500"], "--noise-draws"),
    (["bench", "--no-rivals"], "--no-torch"),
  ],
)
def test_a_renamed_flag_is_refused_with_its_new_name(capsys, argv, new):
  assert cli.main(argv) == 2
  error = capsys.readouterr().err
  assert f"is now called {new}" in error and error.count("\n") == 1


def test_a_flag_is_renamed_in_its_own_commands_only(capsys):
  flags.refuse_renamed(["measure", "--queries", "20", "--draws", "768"])
  flags.refuse_renamed([])


@pytest.mark.parametrize("argv", [["--help"], ["view", "--help"], ["train", "--help"], ["--version"]])
def test_help_does_not_import_jax(argv):
  code = (
    "import sys\n"
    "from inversionview_jax import cli\n"
    "try:\n  cli.main(sys.argv[1:])\nexcept SystemExit:\n  pass\n"
    "sys.exit(bool({'jax', 'flax', 'ml_collections', 'rich'} & set(sys.modules)))"
  )
  assert subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, check=False).returncode == 0


NUMERIC = [
  (command, action)
  for command, parser in commands().items()
  for action in parser._actions
  if isinstance(action.type, flags.Whole | flags.Number)
]


def test_every_flag_with_a_number_has_a_range():
  for parser in commands().values():
    for action in parser._actions:
      assert action.type in (None, flags.given) or isinstance(action.type, flags.Whole | flags.Number), (
        action.option_strings
      )
  assert len(NUMERIC) > 70


@pytest.mark.parametrize(
  "value", ["nan", "inf", "-inf", "1e400", "1" + 5000 * "0", "-10000000000000", "0x10", "1_0", "", "\u0663", "1\n2"]
)
def test_numbers_out_of_range_are_refused_when_they_are_parsed(value):
  for _, action in NUMERIC:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a (whole )?number") as caught:
      action.type(value)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize(
  ("argv", "named"),
  [
    (
      ["view", "1", "--site", "a0.0", "--position", "=", "--num-samples", "1000000000"],
      "--num-samples 1000000000 must be",
    ),
    (["view", "1", "--site", "a0.0", "--position", "=", "--particles", "1000000000"], "--particles 1000000000 must be"),
    (["measure", "--site", "a0.0", "--position", "=", "--controls", "1000000000"], "--controls 1000000000 must be"),
    (["measure", "--site", "a0.0", "--position", "=", "--queries", "1000000000"], "--queries 1000000000 must be"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "C2", "--pairs", "1000000000"], "--pairs 1000000000"),
    (["bench", "--seconds", "nan"], "--seconds nan must be a number from 0 to 3600"),
    (["evaluate", "--out", "E", "--seed", str(2**40)], "--seed 1099511627776 must be a whole number from 0"),
    (["plan", "--config", "c.py", "--topology", "cpu:1000000"], "cpu:1000000"),
    (["plan", "--config", "c.py", "--topology", "v5p:64x64x64"], "v5p:64x64x64"),
    (["view", "1", "--site", "a0.0", "--position", "=", "--reader", ""], "--reader '' must be something"),
    (["veiw"], "view"),
    # an empty value is none that was left out
    (["heads", "--task", "addition", "--position", "=", "--convention", ""], "--convention '' must be something"),
    (["view", "1", "--site", "", "--position", "="], "--site '' must be something"),
    (["view", "1", "--site", "a0.0", "--position", ""], "--position '' must be something"),
    (["sample", "--requests", "q", "--out", ""], "--out '' must be something"),
    (["evaluate", "--out", "E", "--mixture", ""], "--mixture '' must be something"),
    # digits are those of ASCII: another script's would be read as a number that was not written
    (["view", "615+861=1476", "--site", "a0.0", "--position", "\u0663"], "\u0663"),
    (["view", "615+861=1476", "--site", "a0.0", "--position", "\u00b2"], "\u00b2"),
    (["view", "615+861=1476", "--site", "a\u0660.\u0663", "--position", "="], "a\u0660.\u0663"),
    (["verify", "--site", "a0.0", "--position", "\u00b2", "--feature", "F1", "--pairs", "4"], "\u00b2"),
    (["plan", "--config", "c.py", "--topology", "cpu:\u0663"], "cpu:\u0663"),
    (["interpret", "P", "--model", "m", "--out", "I", "--prices", "\u0663,1"], "--prices"),
    (["interpret", "P", "--model", "m", "--out", "I", "--prices", "1_0,1"], "--prices"),
    # an overlong value is named by its length or its beginning
    (["view", "6" * 100_000, "--site", "a0.0", "--position", "="], "tokens"),
    (["view", "615+861=1476", "--site", "a" * 100_000, "--position", "="], "site"),
    (["view", "615+861=1476", "--site", "a0.0", "--position", "x" * 100_000], "position"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F" * 100_000], "feature"),
    (["measure", "--site", "a0.0", "--position", "=", "--feature", "F1 + " * 20_000 + "F1"], "F1 + F1"),
    (["evaluate", "--out", "E", "--mixture", "m" * 100_000], "mixture"),
    (["evaluate", "--out", "E", "--reader", "r" * 100_000], "too long"),
  ],
)
def test_a_refusal_is_one_line_that_names_the_value(refused, argv, named):
  message = refused(*argv)
  assert named in message and len(message) < 1100


def test_digits_of_other_scripts_in_an_address_are_refused():
  from inversionview_jax.devices import hosts

  for port in ("\u00b2", "\u0661\u0662", "99999999999", ""):
    with pytest.raises(InversionViewError, match="HOST:PORT"):
      hosts.start(f"localhost:{port}", 2, 0)
