"""`inversionview sites`: what can be given as --site and --position, in words."""

import json

import pytest

from inversionview_jax import sites, tasks


def test_sites_of_a_reader_are_those_it_was_trained_on(inversionview, tmp_path):
  code, out, error = inversionview("sites", "--reader", "addition", "--json", "s.json")
  assert (code, error) == (0, "")
  data = json.loads((tmp_path / "s.json").read_text())
  from inversionview_jax.reading import load_reader

  assert [row["site"] for row in data["sites"]] == list(load_reader("addition").config.sites)
  for row in data["sites"]:
    assert row["about"] and row["width"] == 32 and str(sites.parse(row["hook"])) == row["site"]
    assert any(row["site"] in line.split() and row["about"] in line for line in out.splitlines())
  labels = {row["label"]: row for row in data["positions"]}
  assert {"F1", "+", "S3", "=", "A3"} <= set(labels) and labels["="]["token"] == "="
  assert labels["F1"]["about"] == "hundreds of the first number" and "predicted" in labels["="]["about"]
  assert "carry out of the tens" in out  # what C2 is


def test_every_label_of_a_task_is_described():
  for name, text in (("addition", "615+861=1476"), ("counting", "vvzccvczvvvzvcvc|v:8")):
    task = tasks.get(name)
    t = task.tokenizer
    ids = [t.bos_id, *t.encode(text)]
    labels = [label for label in task.labels(ids) if label and label not in t.strings([t.bos_id])]
    assert len(labels) >= 4 and all(task.about_position(label) for label in labels)


def test_sites_of_a_target_by_kind(inversionview, saved_target, tmp_path):
  code, out, _ = inversionview("sites", "--target", saved_target, "--text", "12+3")
  assert code == 0 and "a0.0 ... a1.1" in out and "x0.pre ... x1.pre" in out and "q0.0" not in out
  code, every, _ = inversionview("sites", "--target", saved_target, "--all", "--json", "s.json")
  rows = json.loads((tmp_path / "s.json").read_text())["sites"]
  assert code == 0 and "q0.0 ... q1.1" in every and "ln_final" in every and len(rows) >= 20
  assert {row["width"] for row in rows if row["site"].startswith("q0")} == {8} and all(row["about"] for row in rows)


def test_what_is_listed_can_be_read(saved_target, inversionview, tmp_path):
  """The first and the last site of every row are sites of the target."""
  from inversionview_jax.targets import load_target

  target = load_target(saved_target)
  inversionview("sites", "--target", saved_target, "--all", "--json", "s.json")
  for row in json.loads((tmp_path / "s.json").read_text())["sites"]:
    for name in row["site"].split(" ... "):
      assert target.site(name).about == row["about"]


@pytest.mark.parametrize(
  ("argv", "named"),
  [
    (["--reader", "addition", "--target", "addition"], "--target"),
    (["--reader", "addition", "--all"], "--all"),
    (["--reader", "nothing"], "nothing"),
    (["--target", "no/such/model"], "no/such/model"),
    (["--target", "addition", "--text", "6*5"], "'*'"),
  ],
)
def test_sites_refuses(refused, argv, named):
  assert named in refused("sites", *argv)
