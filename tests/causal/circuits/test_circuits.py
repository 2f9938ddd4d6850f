"""Circuits: ablation against edits by hand, path patching against edits by hand, the search, its files, and what is refused."""

import dataclasses
import json
import re

import numpy as np
import pytest

import inversionview_jax as iv
from inversionview_jax import cli, tasks
from inversionview_jax.causal import experiments
from inversionview_jax.causal.circuits import Circuit, circuit, search
from inversionview_jax.causal.circuits.ablation import Ablation
from inversionview_jax.causal.circuits.edges import find_edges
from inversionview_jax.causal.circuits.nodes import Grid
from inversionview_jax.causal.estimates import Estimate
from inversionview_jax.errors import InversionViewError

TASK = tasks.get("addition")


def drawn(count, seed=0):
  def draw(index):
    return TASK.contrast_aligned(index, seed, predict="A1")

  return experiments.collect_pairs(TASK, draw, count, split="test", seed=seed)


@pytest.fixture(scope="module")
def pairs():
  return drawn(12)


@pytest.fixture(scope="module")
def ablation(small_target, pairs, meshes):
  return Ablation(small_target, Grid.of(small_target, TASK, pairs), meshes(1))


def logit_difference(pairs, logits):
  rows = np.arange(len(pairs))
  at = np.asarray(logits)[rows, pairs.clean_at]
  return at[rows, pairs.answer] - at[rows, pairs.foil]


def corrupted_at(target, pairs, site, position):
  """What is put there: the activation of the corrupted input at this label."""
  run = target.run(pairs.corrupted, capture=[site])
  return np.asarray(run[site])[np.arange(len(pairs)), TASK.positions(pairs.corrupted, position)]


def test_nodes_are_all_parts_at_all_labels_that_reach_the_answer(ablation):
  grid = ablation.grid
  assert grid.labels == ("<BOS>", "F1", "F2", "F3", "+", "S1", "S2", "S3", "=")
  assert len(grid.nodes) == 9 * 3 + 3  # two heads and an MLP at nine labels, and the last layer at "=" only
  assert grid.named("a0.1@F2").index == (0, 1, 2) and grid.named("m1@=").site == "m1"
  with pytest.raises(InversionViewError, match="unknown node 'a1.0@F1'"):
    grid.named("a1.0@F1")


def test_what_is_not_kept_has_the_activations_of_the_corrupted_input(small_target, ablation, pairs):
  grid = ablation.grid
  gone = ("a0.1@=", "m0@S1", "a1.0@=")
  edits = [
    iv.Edit(site, position=label, value=corrupted_at(small_target, pairs, site, label))
    for site, label in (name.split("@") for name in gone)
  ]
  expected = logit_difference(pairs, small_target.run(pairs.clean, edits=edits).logits)
  found = ablation.logit_difference([[n for n in grid.nodes if n.name not in gone], grid.nodes])
  np.testing.assert_allclose(found[0], expected, atol=2e-5)
  whole = logit_difference(pairs, small_target.run(pairs.clean).logits)
  np.testing.assert_allclose(found[1], whole, atol=2e-5)
  assert np.abs(expected - whole).max() > 0.1


def test_with_everything_ablated_only_the_embeddings_are_those_of_the_clean_input(small_target, ablation, pairs):
  z = [f"z{layer}" for layer in (0, 1)]
  run = small_target.run(pairs.corrupted, capture=[*z, "m0", "m1"])
  edits = [iv.Edit(site, position=None, value=run[site]) for site in (*z, "m0", "m1")]
  expected = logit_difference(pairs, small_target.run(pairs.clean, edits=edits).logits)
  np.testing.assert_allclose(ablation.whole()[1], expected, atol=2e-5)


def test_attributions_add_up_to_the_whole_difference(ablation):
  clean, corrupted = ablation.whole().mean(axis=1)
  assert ablation.attribution(steps=32).sum() == pytest.approx(clean - corrupted, rel=0.02)
  some = [ablation.grid.named(name) for name in ("m1@=", "a0.1@=")]
  alone = ablation.attribution(some, steps=32)
  assert alone.sum() == pytest.approx(ablation.logit_difference([some]).mean() - corrupted, rel=0.02)
  assert np.count_nonzero(alone) == 2


def test_sets_and_attributions_do_not_depend_on_devices_or_batches(ablation, meshes):
  sets = [ablation.grid.nodes[::2], ablation.grid.nodes[::3]]
  other = dataclasses.replace(ablation, mesh=meshes(8))
  np.testing.assert_allclose(other.logit_difference(sets), ablation.logit_difference(sets), atol=1e-5)
  np.testing.assert_allclose(other.attribution(steps=2), ablation.attribution(steps=2), atol=1e-5)
  other._rows = 1  # one pair of each device at a time
  np.testing.assert_allclose(other.logit_difference(sets), ablation.logit_difference(sets), atol=1e-5)
  np.testing.assert_allclose(other.attribution(steps=2), ablation.attribution(steps=2), atol=1e-5)


def by_hand(target, pairs, source, receiver, way):
  """The logit difference with one path patched, by edits of one activation at a time."""

  def at(run, site, label):
    return np.asarray(run[site])[np.arange(len(pairs)), TASK.positions(pairs.clean, label)]

  (from_site, label), (to_site, to_label) = source.split("@"), receiver.split("@")
  sent = ("embed", "pos_embed") if from_site == "embed" else (from_site,)
  change = sum(corrupted_at(target, pairs, s, label) - at(target.run(pairs.clean, [s]), s, label) for s in sent)
  layer = int(to_site[1:].split(".")[0])
  stream = f"x{layer}.mid" if way == "in" else f"x{layer}.pre"
  moved = iv.Edit(stream, position=label, value=change, mode="add")
  if way == "in":
    value = at(target.run(pairs.clean, [to_site], edits=[moved]), to_site, to_label)
    patched = iv.Edit(to_site, position=to_label, value=value)
  else:
    head = to_site.split(".")[1]
    one, z = f"{way}{layer}.{head}", f"z{layer}.{head}"
    changed = iv.Edit(one, position=label, value=at(target.run(pairs.clean, [one], edits=[moved]), one, label))
    value = at(target.run(pairs.clean, [z], edits=[changed]), z, to_label)
    patched = iv.Edit(z, position=to_label, value=value)
  return logit_difference(pairs, target.run(pairs.clean, edits=[patched]).logits)


PATHS = (
  ("a0.1@=", "m1@=", "in"),
  ("a0.0@=", "a1.1@=", "q"),
  ("m0@S1", "a1.1@=", "k"),
  ("m0@S1", "a1.1@=", "v"),
  ("embed@F1", "a1.1@=", "v"),
  ("embed@=", "m0@=", "in"),
)


def test_edges_are_those_of_edits_by_hand(small_target, ablation, pairs):
  grid = ablation.grid
  nodes = [grid.named(name) for name in ("a0.0@=", "a0.1@=", "m0@=", "m0@S1", "a1.1@=", "m1@=")]
  found = {(e.source, e.target, e.through): e.effect.mean for e in find_edges(ablation, nodes, least=0.0)}
  clean, corrupted = ablation.whole()
  for path in PATHS[:5]:
    expected = (clean - by_hand(small_target, pairs, *path)).sum() / (clean - corrupted).sum()
    assert found[path] == pytest.approx(expected, abs=1e-4), path
  assert PATHS[5] not in found  # "=" is in both inputs
  final = np.array(small_target.run(pairs.clean, ["x1.post"])["x1.post"])
  final[np.arange(len(pairs)), pairs.clean_at] += (
    corrupted_at(small_target, pairs, "m0", "=")
    - np.asarray(small_target.run(pairs.clean, ["m0"])["m0"])[np.arange(len(pairs)), pairs.clean_at]
  )
  direct = logit_difference(pairs, small_target.run(pairs.clean, edits=[iv.Edit("x1.post", None, final)]).logits)
  assert found["m0@=", "logits", "out"] == pytest.approx((clean - direct).sum() / (clean - corrupted).sum(), abs=1e-4)
  few = find_edges(ablation, nodes, most=8, least=0.0)
  assert len([e for e in few if e.target != "logits"]) == 8  # chosen by the linear estimate, measured alike
  assert all(found[e.source, e.target, e.through] == pytest.approx(e.effect.mean, abs=1e-5) for e in few)


def test_elimination_keeps_what_keeps_the_answer(ablation):
  by_removal = search.eliminate(ablation)
  assert sorted(by_removal.order) == sorted(ablation.grid.nodes)
  total = np.subtract(*ablation.whole().mean(axis=1))
  kept = ablation.logit_difference([by_removal.set_of(10), by_removal.order[-10:]]).mean(axis=1)
  best, worst = (kept - ablation.whole()[1].mean()) / total
  assert best > 0.8 and worst < 0.5
  attributed = search.eliminate(ablation, few=12)
  assert sorted(attributed.order) == sorted(ablation.grid.nodes)


def test_the_objective_cmd_stays_nearer_to_the_whole_model(ablation):
  """Counted over all sizes; where nothing works against the answer, both come to the same."""
  sizes = range(1, len(ablation.grid.nodes))
  distance = {
    objective: search.curve(ablation, search.eliminate(ablation, objective=objective), sizes, random_sets=0).distance()
    for objective in search.OBJECTIVES
  }
  assert distance["cmd"] < 0.9 * distance["faithfulness"]


def test_the_areas_are_those_of_a_curve_with_known_ones():
  points = tuple(
    search.Point(size, Estimate(f, 0.0, 9), Estimate(size / 10, 0.0, 9), "") for size, f in ((0, 0), (5, 1.2), (10, 1))
  )
  curve = search.Curve(points, np.ones(3), np.zeros(3))
  assert curve.area() == pytest.approx(0.5 * 0.6 + 0.5 * 1.1) and curve.area(random=True) == pytest.approx(0.5)
  assert curve.distance() == pytest.approx(0.5 * (1 + 0.2) / 2 + 0.5 * 0.2 / 2)
  assert curve.smallest(0.9) == 5 and curve.smallest(1.5) == 5 and curve.smallest(0.9, most=6) == 5


@pytest.fixture(scope="module")
def found(small_target, meshes, tmp_path_factory):
  out = tmp_path_factory.mktemp("circuit")
  how = {"answer": "A1", "pairs": 24, "test_pairs": 24, "queries": 2, "inputs": 2000, "random_sets": 2, "most": 6}
  return circuit(small_target, TASK, out=out, mesh=meshes(1), **how), out, how


def test_a_circuit_survives_its_file_and_has_the_benchmarks_graph(found):
  one = found[0]
  again = Circuit.from_dict(json.loads(one.to_json()))
  assert again.to_dict() == one.to_dict() | {"nodes": [n | {"queries": []} for n in one.to_dict()["nodes"]]}
  assert one.size == len(one.nodes) <= 6 and one.curve[0].faithfulness.mean == 0 and one.curve[-1].size == 30
  assert [node.name for node in one.nodes] == list(one.order[: one.size])
  graph = one.to_mib()
  # Per layer: two heads with three inputs each and an MLP, of all before it; then all into the logits.
  assert len(graph["edges"]) == (6 * 1 + 3) + (6 * 4 + 6) + 7
  assert {name for name, node in graph["nodes"].items() if node["in_graph"]} >= {"input", "logits"}
  with pytest.raises(InversionViewError, match="no circuit"):
    Circuit.from_dict({"format": "else"})


def test_a_search_goes_on_where_it_was_interrupted(found, small_target, meshes, monkeypatch):
  one, out, how = found

  def never(*args, **kwargs):
    raise AssertionError("measured again")

  (out / "steps" / "edges.json").unlink()
  monkeypatch.setattr(Ablation, "attribution", never)
  again = circuit(small_target, TASK, out=out, mesh=meshes(1), **how)
  assert again.to_dict() == one.to_dict()
  # With more inputs only what the nodes carry is read again.
  more = circuit(small_target, TASK, out=out, mesh=meshes(1), **how | {"inputs": 3000})
  assert more.curve == one.curve and [n.name for n in more.nodes] == [n.name for n in one.nodes]
  assert {p.target_runs for own in more.preimages.values() for p in own} == {3000}
  with pytest.raises(AssertionError, match="measured again"):
    circuit(small_target, TASK, out=out, mesh=meshes(1), **how | {"seed": 1})


def test_the_command_writes_the_circuit_and_its_pictures(small_target, save_small, tmp_path, capsys):
  target = save_small(tmp_path) / "target"
  how = ["--pairs", "16", "--test-pairs", "16", "--queries", "1", "--inputs", "500", "--nodes", "4"]
  out = tmp_path / "C"
  assert cli.main(["circuit", "--task", "addition", "--target", str(target), "--out", str(out), *how]) == 0
  printed = capsys.readouterr().out
  data = json.loads((out / "circuit.json").read_text())
  assert "faithfulness" in printed and data["nodes"][0]["name"] in printed and data["size"] <= 4
  for name in ("circuit.html", "circuit.svg"):
    assert data["nodes"][0]["name"].split("@")[0] in (out / name).read_text()
  assert json.loads((out / "mib.json").read_text())["cfg"]["n_layers"] == 2
  assert (out / data["nodes"][0]["queries"][0]["file"]).is_file()


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["--task", "addition", "--answer", "B7"], "unknown .*'B7'"),
    (["--task", "addition", "--faithfulness", "1.5"], "faithfulness 1.5 must be a number above 0"),
    (["--task", "addition", "--pairs", "8", "--test-pairs", "8", "--budget", "100"], "budget = 100 runs"),
    (["--task", "addition", "--objective", "cpr"], "objective 'cpr'"),
    (["--task", "counting", "--answer", "A1"], "cannot predict 'A1' of counting"),
    ([], "--task is missing"),
  ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(arguments, message, tmp_path, capsys):
  assert cli.main(["circuit", "--out", str(tmp_path / "C"), *arguments]) == 2
  err = capsys.readouterr().err
  assert err.count("\n") == 1
  assert re.search(message, err), err
  assert not (tmp_path / "C" / "circuit.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ("task", "answer", "most", "least"), [("addition", "A1", 16, 0.9), ("counting", "count", 6, 0.95)]
)
def test_the_shipped_targets_have_small_faithful_circuits(task, answer, most, least):
  target = iv.load_target(task)
  one = circuit(target, task, answer=answer, faithfulness=least, most=most, queries=0)
  assert one.faithfulness.mean >= least and one.size <= most
  random = next(p.random for p in one.curve if p.size == one.size)
  assert random.mean < 0.4
