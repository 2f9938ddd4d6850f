"""Studies of facts and IOI from the command line on a small model: what they write, going on, single heads, and what they refuse."""

import json

import circuit_examples
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import gpt2_folder, prompts

from inversionview_jax import distance
from inversionview_jax.cli import main
from inversionview_jax.preimage import Preimage
from inversionview_jax.studies import effects, ioi_twins, pool
from inversionview_jax.targets import Edit, task_and_target
from inversionview_jax.tasks import fact_wordings

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXTS = [f"{r['prompt']} {r['answer']}." for r in fact_wordings.composed()]
FACTS = (
  "--config.study.heads=2", "--config.study.by_effect=1", "--config.study.by_patching=1",
  "--config.study.tried=64", "--config.study.known=48", "--config.study.pairs=4",
  "--config.study.queries=6", "--config.study.pool=300", "--config.study.only_known=False", "--config.study.first_layer=0",
)  # fmt: skip
NAMES = (
  "--config.study.prompts=8", "--config.study.pairs=2", "--config.study.end_direct=2", "--config.study.end_patched=1",
  "--config.study.s2_patched=1", "--config.study.s1_attending=1", "--config.study.queries=4", "--config.study.pool=128",
  "--config.study.names=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "gpt2", texts=TEXTS[::7] + prompts())


def run(capsys, *argv):
  capsys.readouterr()
  code = main(["study", *map(str, argv)])
  output = capsys.readouterr()
  assert "Traceback" not in output.err and (code == 0 or output.err.count("\n") == 1)
  return code, output.out + output.err


def read(workdir):
  return json.loads((workdir / "study.json").read_text())


def test_facts_are_studied_and_an_interrupted_study_goes_on(folder, tmp_path, capsys):
  argv = ("--config", "configs/factual.py:smollm2", "--target", folder, "--workdir", tmp_path / "W", *FACTS)
  code, output = run(capsys, *argv)
  assert code == 0, output
  study, page = read(tmp_path / "W"), (tmp_path / "W" / "report.html").read_text()
  assert len(study["places"]) == 4 and study["pool"] == 300 and not study["whole"]
  for place in study["places"]:
    assert place["site"] in output and f'id="{place["site"]}@END"' in page and "direct" in place
    named = {feature for reading in place["readings"] for feature in reading["named"]}
    assert {patch["feature"] for patch in place["patches"]} == named & {
      "answer",
      "relation",
      "kind",
      "language",
      "subject",
    }
    assert [reading["epsilon"] for reading in place["readings"]] == [0.25, 0.125, 0.0625]
    members = [reading["members"] for reading in place["readings"] if reading["queries"] == 6]
    assert members == sorted(members, reverse=True)
  saved = sorted((tmp_path / "W" / "preimages").iterdir())
  assert saved and Preimage.from_json(saved[0]).method == "rejection"
  steps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "W" / "steps").iterdir()}
  (tmp_path / "W" / "steps" / "attributed-relation.npz").unlink()  # as if the run had ended there
  code, _ = run(capsys, *argv)
  again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "W" / "steps").iterdir()}
  changed = {name for name, time in again.items() if time != steps[name]}
  assert code == 0 and changed == {"key.json", "attributed-relation.npz"}
  assert read(tmp_path / "W")["places"] == study["places"]
  code, output = run(capsys, *argv, "--config.study.pairs=3")
  assert code == 2 and "study differ" in output


@pytest.mark.slow
def test_a_single_head_has_the_figures_that_it_has_among_others(folder, tmp_path, capsys):
  common = ("--config", "configs/factual.py:smollm2", "--target", folder, *FACTS)
  run(capsys, *common, "--workdir", tmp_path / "all")
  every = read(tmp_path / "all")["places"]
  run(capsys, *common, "--workdir", tmp_path / "one", "--head", every[1]["site"])
  (one,) = read(tmp_path / "one")["places"]
  assert one["readings"] == every[1]["readings"] and one["site"] == every[1]["site"]
  for mine, among in zip(one["patches"], every[1]["patches"], strict=True):
    assert mine["only"]["mean"] == pytest.approx(among["only"]["mean"], abs=1e-5)


def test_names_are_studied_with_the_roles_of_heads_beside_a_circuit(folder, tmp_path, capsys):
  nodes = [
    circuit_examples.node("a1.0", "END", 0.4, 1),
    circuit_examples.node("a1.1", "S1+1", 0.3, 2),
    circuit_examples.node("m0", "S2", 1.0, 3),
  ]
  circuit = circuit_examples.around(nodes, [], task="ioi", target=task_and_target("ioi", folder)[1].name)
  (tmp_path / "circuit.json").write_text(json.dumps(circuit))
  argv = ("--config", "configs/ioi.py:smollm2", "--target", folder, "--workdir", tmp_path / "W", *NAMES)
  code, output = run(capsys, *argv, "--circuit", tmp_path)
  assert code == 0, output
  study, page = read(tmp_path / "W"), (tmp_path / "W" / "report.html").read_text()
  assert len(study["heads"]) == 4 and {row["role"] for row in study["roles"]} >= {"name mover", "induction"}
  chosen = [place["position"] for place in study["places"]][:5]
  assert chosen == ["END"] * 3 + ["S2", "S1+1"]
  assert {("a1.0", "END"), ("a1.1", "S1+1")} <= {(place["site"], place["position"]) for place in study["places"]}
  assert [row["node"] for row in study["circuit"]] == ["a1.0@END", "a1.1@S1+1", "m0@S2"]
  assert [row["reading"] == "not read here" for row in study["circuit"]] == [False, False, True]
  sizes = [abs(head["direct"]["mean"]) for head in study["heads"]]
  assert sizes == sorted(sizes, reverse=True)
  assert "9.9, 9.6, 10.0" in page and "<svg" in page
  table = (tmp_path / "W" / "table.md").read_text()
  assert "inversionview study --config configs/ioi.py:smollm2" in table and "| a1.1@S1+1 | 30 % ± 1 |" in table
  (tmp_path / "circuit.json").write_text(json.dumps(circuit | {"target": "another"}))
  code, output = run(capsys, *argv, "--circuit", tmp_path)
  assert code == 2 and "a circuit of the task 'ioi' in another" in output


def test_distances_of_the_pool_are_those_of_a_run(folder):
  task, target = task_and_target("factual", folder, settings={"sources": ("composed",), "length": 40, "limit": 400})
  sites = [target.site("a0.1"), target.site("a1.0")]
  rows, tokens = task.tokens(np.array([3, 77])), task.tokens(np.arange(0, 400, 9))
  caught = pool.captured(target, sites, rows, task.positions(rows, "END"))
  found = pool.nearest(target, task, sites, caught.activation, tokens)
  out = target.run(tokens, sites)
  for s, site in enumerate(sites):
    for q in range(2):
      each = distance.cosine(out[site], jnp.asarray(caught.activation[s, q]))
      nearest, position = distance.masked_min(each, task.counted_mask(jnp.asarray(tokens)))
      np.testing.assert_allclose(found.distance[s, q], nearest, atol=1e-5)
      where = np.asarray(each)[np.arange(len(tokens)), found.position[s, q]]
      np.testing.assert_allclose(where, nearest, atol=1e-5)
  fixed = pool.nearest(target, task, sites, caught.activation, rows, task.positions(rows, "END"))
  np.testing.assert_allclose(fixed.distance[:, [0, 1], [0, 1]], 0, atol=1e-5)
  assert (fixed.position[0, 0] == task.positions(rows, "END")).all()


@pytest.mark.parametrize(
  "change, said",
  [
    (("--config.study.heads=0",), "study.heads = 0"),
    (("--head", "a9.9"), "a9.9"),
    (("--circuit", "C"), "of the IOI study"),
    (("--config.study.only_known=True", "--config.study.tried=8"), "predicts none"),
  ],
)
def test_what_is_refused_is_said_in_one_line(folder, tmp_path, capsys, change, said):
  argv = ("--config", "configs/factual.py:smollm2", "--target", folder, "--workdir", tmp_path / "W")
  code, output = run(capsys, *argv, *FACTS, *change)
  assert code == 2 and said in output


def test_a_config_without_a_study_and_a_model_that_is_not_downloaded(tmp_path, capsys, monkeypatch):
  code, output = run(capsys, "--config", "configs/addition.py", "--workdir", tmp_path / "W")
  assert code == 2 and "study of the task" in output and "factual, ioi" in output
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  code, output = run(capsys, "--config", "configs/factual.py:gemma3", "--workdir", tmp_path / "W")
  assert code == 2 and "python launch/fetch_gemma3.py" in output


@pytest.mark.parametrize("feature", ioi_twins.VERIFIED)
def test_partners_of_names_differ_in_what_they_say(folder, feature):
  task = task_and_target("ioi", folder)[0]
  twins = ioi_twins.twins(task, feature, np.arange(40), 12, seed=0)
  clean, only, rest = (task.features(rows) for rows in (twins.only.clean, twins.only.corrupted, twins.rest.corrupted))
  assert len(twins) >= 8 and {0, 1} <= {*clean["order"].tolist()}
  assert (clean[feature] != only[feature]).all() and (clean[feature] == rest[feature]).all()
  for name in ("template", "place", "object"):
    assert (clean[name] == only[name]).all() and (clean[name] != rest[name]).all()
  old, new = ioi_twins.compared(task, feature, twins.only)
  assert (old != new).all() and all((twins.only.clean == old[:, None]).any(axis=1))
  if feature != "order":
    assert (twins.only.corrupted == new[:, None]).any(axis=1).all() and (twins.only.clean != new[:, None]).all()
    assert (twins.rest.corrupted == old[:, None]).any(axis=1).all()


def test_attributed_effects_are_the_derivative_of_patching(folder):
  task, target = task_and_target("ioi", folder)
  pairs = task.contrast(np.arange(6), kind="S2")
  at = tuple(
    np.stack([task.positions(rows, name) for name in ("S2", "END")], axis=1) for rows in (pairs.clean, pairs.corrupted)
  )
  found = effects.attributed_effects(target, pairs, pairs.foil, at, batch=4)
  assert found.shape == (2, 2, 2, 6) and np.abs(found[:, :, 1]).max() > 1e-3
  rows = np.arange(6)
  for layer, head, place in ((0, 1, 0), (1, 0, 1)):
    z = [np.asarray(target.run(x, [f"z{layer}"])[f"z{layer}"]) for x in (pairs.clean, pairs.corrupted)]
    step = 1e-2 * (z[1][rows, at[1][:, place]] - z[0][rows, at[0][:, place]])
    step[:, np.arange(2) != head] = 0
    difference = []
    for sign in (-1, 1):
      edit = Edit(f"z{layer}", at[0][:, place], sign * step, mode="add")
      logits = np.asarray(target.run(pairs.clean, edits=[edit]).logits, np.float64)[rows, pairs.clean_at]
      difference.append(logits[rows, pairs.answer] - logits[rows, pairs.foil])
    np.testing.assert_allclose(found[layer, head, place], (difference[0] - difference[1]) / 2e-2, rtol=0.05, atol=2e-3)
