"""`inversionview verify`: what it prints and writes, and what it refuses."""

import json

import pytest

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_verify_reports_how_much_each_kind_of_pair_explains(inversionview, tmp_path):
  code, out, error = inversionview(
    *("verify", "--site", "a0.0", "--position", "=", "--feature", "C2", "--pairs", 64, "--json", "verdict.json")
  )
  assert (code, error) == (0, "")
  data = json.loads((tmp_path / "verdict.json").read_text())
  assert (data["feature"], data["predict"], data["target"]["name"]) == ("C2", "A1", "addition")
  assert data["only"]["share"]["mean"] > 0.9 and abs(data["rest"]["share"]["mean"]) < 0.1
  assert "C2 only" in out and "everything but C2" in out and f"{100 * data['only']['share']['mean']:.1f}" in out
  assert "(n = 64)" in out and " / ".join(data["only"]["example"]) in out


@pytest.mark.parametrize(
  "argv, named",
  [
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F7"], "'F7'"),
    (["verify", "--site", "a0.9", "--position", "=", "--feature", "F1"], "a0.9"),
    (["verify", "--site", "a0.0", "--position", "A7", "--feature", "F1", "--pairs", "4"], "A7"),
    (["verify", "--site", "a0.0", "--position", "99", "--feature", "F1", "--pairs", "4"], "99"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--where", "F1 == 10"], "no pairs"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--task", "subtraction"], "subtraction"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--target", "counting"], "tokenizer"),
    (["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--json", "no/v.json"], "does not exist"),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(refused, tmp_path, argv, named):
  (tmp_path / "file").write_text("mine")
  assert named in refused(*argv)


@pytest.mark.parametrize(
  "argv",
  [
    ["verify", "--site", "a0.0"],
    ["verify", "--site", "a0.0", "--position", "=", "--feature", "F1", "--colour"],
  ],
)
def test_command_that_cannot_be_parsed_is_refused_in_one_line(refused, argv):
  assert "--help" in refused(*argv)
