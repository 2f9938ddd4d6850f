"""Patching over pairs of texts that people wrote themselves."""

import json
import pathlib

import numpy as np
import pytest
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax.cli import main
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import fact_files, pairs_file

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_files.bundled()]
CONFIG = str(pathlib.Path(__file__).parent.parent.parent / "configs" / "verify_text.py")
CAPITALS = [("France", "Paris"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Poland", "Warsaw")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS)


@pytest.fixture(scope="module")
def target(folder):
  return iv.load_target(folder)


def written(path, pairs):
  path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
  return str(path)


def capitals():
  for (one, answer), (other, foil) in zip(CAPITALS, CAPITALS[1:] + CAPITALS[:1], strict=True):
    yield {
      "clean": f"The capital of {one} is",
      "corrupted": f"The capital of {other} is",
      "answer": answer,
      "foil": foil,
    }


@pytest.mark.slow
def test_command_gives_what_iv_patch_gives(folder, target, tmp_path, capsys):
  path = written(tmp_path / "pairs.jsonl", capitals())
  argv = ["patch", "--config", CONFIG, "--target", str(folder), "--out", str(tmp_path / "W")]
  assert main([*argv, f"--config.experiments.heads.contrast.file={path}"]) == 0
  result = json.loads((tmp_path / "W" / "heads.json").read_text())
  assert result["pairs"] == 4
  differences = {row["name"]: row["logit_difference"]["mean"] for row in result["results"][0]["rows"]}
  pairs = list(capitals())
  first = [[target.tokenizer.encode(f" {pair[name]}")[0] for pair in pairs] for name in ("answer", "foil")]
  clean, corrupted = ([pair[name] for pair in pairs] for name in ("clean", "corrupted"))
  rows = [target.tokenizer.encode_batch(texts, eos=False) for texts in (clean, corrupted)]
  effects = iv.patch(
    target, *rows, ["a0.0", "a0.1", "a1.0", "a1.1"], -1, order="each", answers=tuple(map(np.array, first))
  )
  assert len(differences) == 4
  for name, estimate in zip(effects.steps, effects.estimates, strict=True):
    assert differences[name.replace("@-1", "@END")] == pytest.approx(estimate.mean, abs=1e-4)


def test_last_tokens_and_first_tokens_of_answers_are_found(target, tmp_path):
  uneven = {"clean": "The capital of France is", "corrupted": "In Paris is", "answer": "Paris", "foil": " Rome"}
  pairs = pairs_file.read(written(tmp_path / "p.jsonl", [*capitals(), uneven]), target, 10)
  t = target.tokenizer
  assert len(pairs) == 5 and len(pairs_file.read(written(tmp_path / "p.jsonl", capitals()), target, 2)) == 2
  for row, at, ids in ((pairs.clean, pairs.clean_at, pairs.answer), (pairs.corrupted, pairs.corrupted_at, pairs.foil)):
    assert t.strings(row[np.arange(5), at]) == [" is"] * 5 and (ids > 0).all()
  with pytest.raises(
    InversionViewError,
    match=r"p.jsonl:5: clean has 5 tokens and corrupted 3, so position 2 .* count positions from the end",
  ):
    pairs_file.read(written(tmp_path / "p.jsonl", [*capitals(), uneven]), target, 10).refuse_unequal("position 2")


@pytest.mark.parametrize(
  "addresses, ok", [("a1.0@END", True), ("a1.0@-1", True), ("a1.0@2", False), ("x0.post", False)]
)
def test_pairs_of_different_length_are_refused_where_positions_must_match(folder, tmp_path, capsys, addresses, ok):
  uneven = {"clean": "The capital of France is", "corrupted": "In Paris is", "answer": "Paris", "foil": "Rome"}
  path = written(tmp_path / "p.jsonl", [uneven, *capitals()])
  argv = [
    "patch",
    "--config",
    CONFIG,
    "--target",
    str(folder),
    "--out",
    str(tmp_path / "W"),
    f"--config.experiments.heads.addresses={addresses}",
  ]
  code = main([*argv, f"--config.experiments.heads.contrast.file={path}"])
  error = capsys.readouterr().err
  assert code == (0 if ok else 2)
  if not ok:
    assert (
      "p.jsonl:1: clean has 5 tokens and corrupted 3" in error
      and error.count("\n") == 1
      and not (tmp_path / "W").exists()
    )


@pytest.mark.parametrize(
  "change, named",
  [
    ({"foil": "Rome"}, "begin with the same token"), ({"answer": ""}, "'answer' is no text"), ({"clean": 3}, "'clean' is no text"),
    ({"corrupted": "is " * 60}, "corrupted has"),
  ],
)  # fmt: skip
def test_wrong_pair_is_named_by_its_line(target, tmp_path, change, named):
  pairs = list(capitals())
  pairs[1] |= change
  with pytest.raises(InversionViewError) as caught:
    pairs_file.read(written(tmp_path / "p.jsonl", pairs), target, 10)
  assert "p.jsonl:2" in str(caught.value) and named in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file_and_other_settings_are_refused(folder, tmp_path, capsys):
  argv = ["patch", "--config", CONFIG, "--target", str(folder), "--out", str(tmp_path / "W")]
  assert main([*argv, "--config.experiments.heads.contrast.file=/no/pairs.jsonl"]) == 2
  assert "no file '/no/pairs.jsonl'" in capsys.readouterr().err
