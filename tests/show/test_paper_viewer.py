"""The files of the paper's viewer: what it expects to find, and both ways without loss."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from inversionview_jax import Preimage, cli, distance, tasks
from inversionview_jax.commands import export
from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading import Reader
from inversionview_jax.show import paper_viewer

TASK = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def reader(small_target, small_decoder):
  return Reader(small_target, TASK, *small_decoder, "small")


@pytest.fixture(scope="module")
def preimage(reader):
  return reader.preimage("615+861=1476", "a0.1", "=", num_samples=200)


@pytest.fixture(scope="module")
def pages(reader, preimage):
  return export.pages(reader, preimage)


def test_a_file_has_what_the_viewer_takes_from_it(pages, preimage):
  dist, sim = pages
  for page, metric in ((dist, "dist"), (sim, "sim")):
    content = json.loads(page.to_json())
    keys = ["query_input", "query_position", "probed_act", "attn_weights", "temperature", "metric", "generation"]
    assert list(content) == keys and content["metric"] == metric
    assert "".join(content["query_input"]) == "[BOS]615+861=1476" and content["query_input"][0] == "[BOS]"
    assert (content["query_position"], content["probed_act"]) == (8, "blocks.0.attn.hook_result.1")
    # one weight for each token of the query: the viewer pairs them
    assert len(content["attn_weights"]) == len(content["query_input"])
    assert sum(content["attn_weights"]) == pytest.approx(1, abs=0.01) and content["attn_weights"][9:] == [0.0] * 4
    assert len(content["generation"]) == 100
    best = [row[-1] for row in content["generation"]]
    assert best == sorted(best, reverse=metric == "sim")
    for tokens, effect, values, index, value in content["generation"]:
      assert tokens[0] == "[BOS]" and "<PAD>" not in tokens and len(tokens) == len(effect) == len(values)
      assert values[index] == value and value == (min if metric == "dist" else max)(values)
      if tokens[-1] == "[EOS]":
        assert values[-1] == (1000.0 if metric == "dist" else -1.0) and effect[-1] == 0.0


def test_names_are_taken_apart_as_the_viewer_does(pages):
  for page in pages:
    folder, name = page.path.split("/")
    assert folder == "[BOS]615+861=1476"
    site, position, temperature, metric = name.rstrip(".json").split("-")
    assert (site, position, temperature, metric) == ("blocks.0.attn.hook_result.1", "8", "Auto", page.metric)


def test_values_are_the_targets(reader, pages):
  z = np.asarray(reader.target.run(TASK.tokenizer.encode_batch(["615+861=1476"], 14, eos=True), ["a0.1"])["a0.1"])[0, 8]
  for page in pages:
    tokens, _, values, _, _ = page.generation[3]
    text = "".join(tokens[1:]).removesuffix("[EOS]")
    row = TASK.tokenizer.encode_batch([text], length=14, eos=tokens[-1] == "[EOS]")
    held = np.asarray(reader.target.run(row, ["a0.1"])["a0.1"])[0]
    far = np.asarray(distance.distance(paper_viewer.METRICS[page.metric], held, z))
    own = (far if page.metric == "dist" else 1 - far)[: 1 + len(text)]
    np.testing.assert_allclose(values[: 1 + len(text)], own, atol=6e-4)


def test_a_site_that_is_no_head_has_no_attention(reader):
  own = reader.preimage("615+861=1476", "x0.mid", "+", num_samples=8)
  assert export.pages(reader, own)[0].attn_weights == ()


def test_a_directory_comes_back_as_it_was_written(pages, tmp_path):
  written = paper_viewer.write(tmp_path / "D", pages)
  found = paper_viewer.read(tmp_path / "D")
  assert sorted(page.path for page in found) == sorted(written) == sorted(page.path for page in pages)
  again = paper_viewer.write(tmp_path / "again", found)
  for path in again:
    assert (tmp_path / "again" / path).read_bytes() == (tmp_path / "D" / path).read_bytes()


def test_a_preimage_comes_back_to_three_decimals(pages, preimage, tmp_path):
  for page in pages:
    back = paper_viewer.preimage_of(page, TASK)
    assert Preimage.from_json(back.to_json()) == back
    assert (back.query.tokens, back.query.position, back.query.label) == (preimage.query.tokens[:-1], 8, "=")
    assert (back.query.site, back.metric, back.epsilon) == ("a0.1", paper_viewer.METRICS[page.metric], 0.1)
    np.testing.assert_allclose(back.query.attention, preimage.query.attention, atol=6e-4)
    by_text = {(sample.tokens, sample.ended): sample for sample in preimage.samples}
    assert len(back.samples) == 100
    for sample in back.samples:
      own = by_text[sample.tokens, sample.ended]
      assert sample.token_strings == own.token_strings
      np.testing.assert_allclose(sample.effect, own.effect, atol=6e-4)
      if page.metric == "dist":
        assert (sample.distance, sample.position) == (pytest.approx(own.distance, abs=6e-4), own.position)


def test_other_spellings_of_special_tokens_are_read(pages):
  page = pages[0]
  rows = [(["<s>", *tokens[1:-1], "</s>"], *rest) for tokens, *rest in page.generation if tokens[-1] == "[EOS]"]
  assert rows
  query = ("<s>", *page.query_input[1:])
  other = paper_viewer.Page(query, 8, page.probed_act, page.attn_weights, 0.0, "dist", tuple(rows))
  kept = [row for row in page.generation if row[0][-1] == "[EOS]"]
  mine = paper_viewer.Page(page.query_input, 8, page.probed_act, page.attn_weights, 0.0, "dist", tuple(kept))
  assert paper_viewer.preimage_of(other, TASK) == paper_viewer.preimage_of(mine, TASK)


@pytest.mark.slow
def test_the_commands_go_both_ways(save_small, tmp_path, capsys):
  small = str(save_small(tmp_path / "W"))
  argv = ["export", "615+861=1476", "222+111=333", "--reader", small, "--site", "a0.0", "--site", "x0.mid"]
  argv += ["--position", "=", "--position", "A1", "--num-samples", "32", "--out", str(tmp_path / "D")]
  assert cli.main([*argv, "--format", "inversionview-json"]) == 0
  assert "16 files of 2 texts written" in capsys.readouterr().out
  assert cli.main(["import", str(tmp_path / "D"), "--task", "addition", "--out", str(tmp_path / "P")]) == 0
  files = sorted(path.relative_to(tmp_path / "P").as_posix() for path in (tmp_path / "P").rglob("*.json"))
  assert len(files) == 16 and "[BOS]222+111=333/blocks.0.attn.hook_result.0-8-Auto-sim.json" in files
  back = Preimage.from_json(tmp_path / "P" / "[BOS]222+111=333/blocks.0.attn.hook_result.0-8-Auto-sim.json")
  assert (back.metric, back.query.text, len(back.samples)) == ("cosine", "222+111=333", 32)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda t: t.pop("metric"), "lacks metric"),
    (lambda t: t.update(metric="l2"), "neither dist nor sim"),
    (lambda t: t.update(query_position=40), "query_position 40"),
    (lambda t: t.update(probed_act="nowhere"), "unknown site"),
    (lambda t: t["generation"][0][1].pop(), "effects and"),
    (lambda t: t["generation"][0].pop(), "not enough values"),
    (lambda t: t["generation"][0].__setitem__(3, 99), "no position 99"),
    (lambda t: t["generation"][0].__setitem__(4, math.inf), "no number"),
    (lambda t: t.update(probed_act="a0.3"), "named for another site"),
  ],
)
def test_a_damaged_file_is_named_and_nothing_is_written(pages, tmp_path, capsys, change, message):
  (path, *_) = paper_viewer.write(tmp_path / "D", pages)
  table = json.loads((tmp_path / "D" / path).read_text())
  change(table)
  (tmp_path / "D" / path).write_text(json.dumps(table))
  assert cli.main(["import", str(tmp_path / "D"), "--task", "addition", "--out", str(tmp_path / "P")]) == 2
  err = capsys.readouterr().err
  assert message in err and path.split("/")[1] in err and err.count("\n") == 1 and not (tmp_path / "P").exists()


@pytest.mark.parametrize(
  ("argv", "message"),
  [
    (["export", "--out", "D"], "no inputs to export"),
    (["export", "6+1", "--out", "D", "--format", "csv"], "unknown format 'csv'"),
    (["export", "6+1", "--out", "D", "--shown", "0"], "--shown 0"),
    (["import", "nowhere", "--task", "addition", "--out", "D"], "no folder 'nowhere'"),
    (["import", ".", "--task", "addition", "--out", "D"], "holds no files of the paper's viewer"),
    (["import", ".", "--task", "adition", "--out", "D"], "did you mean addition"),
  ],
)
def test_bad_input_is_one_line(argv, message, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  assert cli.main(argv) == 2
  err = capsys.readouterr().err
  assert message in err and err.count("\n") == 1 and not (tmp_path / "D").exists()


def test_files_of_another_task_are_refused(pages, tmp_path, capsys):
  paper_viewer.write(tmp_path / "D", pages)
  assert cli.main(["import", str(tmp_path / "D"), "--task", "counting", "--out", str(tmp_path / "P")]) == 2
  assert "'counting' has no token" in capsys.readouterr().err


def test_a_text_that_cannot_name_a_folder_is_refused_before_anything_is_written(pages, tmp_path):
  page = pages[0]
  wrong = paper_viewer.Page(("[BOS]", "1", "/", "2"), 1, page.probed_act, (), 0.0, "dist", ())
  with pytest.raises(InversionViewError, match="cannot name a folder"):
    paper_viewer.write(tmp_path / "D", [page, wrong])
  assert not list((tmp_path / "D").iterdir())


def test_effects_are_needed(reader):
  plain = reader.preimages([("615+861=1476", "a0.1", "=")], num_samples=8, effects=False)[0]
  with pytest.raises(InversionViewError, match="no effects"):
    export.pages(reader, plain)


def test_needs_no_jax():
  code = "import sys; from inversionview_jax.show import paper_viewer; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_of_infinite_distance_cannot_be():
  with pytest.raises(InversionViewError, match="no number"):
    paper_viewer._row([["[BOS]"], [0.0], [math.nan], 0, 0.5])
