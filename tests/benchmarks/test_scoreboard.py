"""The scoreboard: what programs say of their own parts, the naming rule, its baselines, circuits, and the command."""

import dataclasses
import json

import numpy as np
import pytest

pytest.importorskip("tracr", reason="pip install '.[tracr]'")

import inversionview_jax as iv
from inversionview_jax import cli
from inversionview_jax.benchmarks.scoreboard import circuits, naming, partitions, probes, reading, scoreboard, trained
from inversionview_jax.benchmarks.scoreboard.answers import Answers, Component, load
from inversionview_jax.errors import InversionViewError
from inversionview_jax.reading.source import Source

PROGRAMS = ("frac_prevs,vocab=abc,max_seq_len=3", "count,vocab=ab,max_seq_len=3")


@pytest.fixture(scope="module")
def fractions():
  """Share of a's so far: layer 0's MLP writes which symbols are one, head 0 of layer 1 the share; nothing else writes."""
  return load(PROGRAMS[0], 100)


@pytest.fixture(scope="module")
def board():
  return scoreboard(PROGRAMS)


@pytest.fixture
def inversionview(capsys):
  """A function (arguments) -> (exit code, stdout, stderr)."""

  def run(*argv):
    code = cli.main([str(argument) for argument in argv])
    return code, *capsys.readouterr()

  return run


def read(answers, most=24):
  task = answers.task
  how = {"epsilon": task.epsilon, "metric": task.metric, "seed": 0}
  return dict(zip(answers.components, reading.read_exactly(answers, answers.components, most=most, **how), strict=True))


def test_a_program_says_what_its_parts_write_and_read(fractions):
  mlp, head, empty = Component(0, -1, 1), Component(1, 0, 1), Component(0, 0, 1)
  assert fractions.expressions(mlp) == ("map_3",) and fractions.expressions(head) == ("frac_prevs_1",)
  assert fractions.written(mlp) == ("map_3_at_1",) and fractions.written(head) == ("frac_prevs_1_at_1",)
  assert fractions.expressions(empty) == fractions.written(empty) == ()
  # The share so far looks at this symbol and those before it.
  nodes, edges = fractions.circuit(1)
  assert nodes == {head, mlp, Component(0, -1, 0)}
  assert edges == {(mlp, head), (Component(0, -1, 0), head)}


def test_what_no_input_changes_is_a_constant():
  answers = load("length,vocab=ab,max_seq_len=3", 100)
  found = read(answers)
  # Whoever has a third symbol has three.
  for site in (Component(0, 0, 2), Component(0, -1, 2)):
    assert answers.expressions(site) == ("length_1",) and answers.written(site) == ()
    assert found[site].constant and found[site].variables == ()
  assert found[Component(0, -1, 0)].variables == ("length_1_at_0",)


def test_preimages_name_what_is_written_and_baselines_do_not(board):
  assert all(answer.is_right for one in board.programs for answer in one.answers)
  scores = board.variables
  assert scores["preimages"].f1 == 1.0 and scores["preimages"].true == 12
  assert scores["probes"].recall > 0.9 and scores["probes"].f1 < 1.0
  assert scores["text"].f1 < 0.5
  assert [one.method for one in board.programs] == ["exact", "exact"]


def test_circuits_are_the_programs_own_graph(board):
  for one in board.programs:
    assert one.nodes.auroc == one.edges.auroc == 1.0
    assert one.nodes.right == one.nodes.found == one.nodes.true > 0
    assert one.edges.right == one.edges.found == one.edges.true > 0
  # What is patched counts, not what differs: tokens differ everywhere, and so does what is computed from those that come later.
  assert board.changes.right < board.changes.found


def test_the_graph_leaves_out_what_a_selector_never_looks_at():
  """Sorted by frequency, equals in their order: of three symbols out of two letters the last is never put first."""
  answers = load("sort_freq,vocab=ab,max_seq_len=3", 100)
  reads = answers.circuit(0)[0]
  assert Component(4, 0, 0) in reads and Component(3, -1, 0) in reads
  assert Component(3, -1, 2) not in reads and Component(3, -1, 2) in answers.circuit(2)[0]


def test_a_part_that_writes_something_else_is_not_named_as_the_program_has_it(fractions):
  """The score follows the model's activations: a head whose output is zero writes a constant, whatever its program says."""
  params = dict(fractions.target.params)
  block = dict(params["blocks_1"])
  block["attn"] = block["attn"] | {"o": {"kernel": 0 * block["attn"]["o"]["kernel"]}}
  target = dataclasses.replace(fractions.target, params=params | {"blocks_1": block})
  broken = Answers.of(target, 100)
  found = read(broken)
  head = Component(1, 0, 1)
  assert broken.written(head) == ("frac_prevs_1_at_1",)
  assert found[head].constant and found[head].variables == ()
  assert found[Component(0, -1, 1)].variables == ("map_3_at_1",)
  assert circuits.of_nodes(broken, circuits.find(broken).nodes).right == 0


def test_members_are_those_of_the_exact_preimage(fractions):
  component = Component(1, 0, 2)
  activations = fractions.activations(component)
  having = fractions.having(2)
  text = fractions.task.tokenizer.text(fractions.tokens[having][0])
  source = Source.of(fractions.target, "exact")
  preimage = source.preimage((text, "a1.0", "i2", None, None, "position"))
  inside = np.linalg.norm(activations - activations[0], axis=1) <= fractions.task.epsilon * np.linalg.norm(
    activations[0]
  )
  assert sum(sample.distance <= preimage.epsilon for sample in preimage.samples) == inside.sum() > 0


@pytest.mark.slow
def test_monte_carlo_names_the_same(fractions):
  components = [Component(0, -1, 1), Component(1, 0, 1), Component(0, 0, 1)]
  task = fractions.task
  how = {"most": 3, "epsilon": task.epsilon, "metric": task.metric, "seed": 0}
  sampled = reading.read_by_sampling(fractions, components, particles=64, **how)
  exact = reading.read_exactly(fractions, components, **how)
  assert [one.variables for one in sampled] == [one.variables for one in exact]


def evidence(values, code):
  """Evidence from exact preimages: int[N, V] variables, and int[N], inputs of one number share an activation."""
  _, rows = np.unique(code, return_index=True)
  members = code[None] == code[rows][:, None]
  random = values[None] == values[rows][:, None]
  inside = [same[member] for same, member in zip(random, members, strict=True)]
  names = tuple(f"v{i}" for i in range(values.shape[1]))
  return naming.Evidence(names, -np.log2(members.mean(axis=1)), inside, random)


@pytest.fixture(scope="module")
def variables():
  """Two variables of 4 and 3 values, whether the first is above 1, and one that has nothing to do with them; all combinations."""
  a, b, c = (x.reshape(-1) for x in np.meshgrid(range(4), range(3), range(5), indexing="ij"))
  return np.stack([a, b, (a > 1).astype(int), c], axis=1)


def test_the_variable_is_named_and_not_what_follows_from_it(variables):
  assert naming.name(evidence(variables, variables[:, 0])).variables == ("v0",)
  assert naming.name(evidence(variables, variables[:, 2])).variables == ("v2",)
  both = naming.name(evidence(variables, 10 * variables[:, 0] + variables[:, 1]))
  assert set(both.variables) == {"v0", "v1"} and both.overlap == pytest.approx(1)
  assert both.bits == pytest.approx(np.log2(12))


def test_a_constant_and_what_is_none_of_the_variables_are_told_apart(variables):
  constant = naming.name(evidence(variables, np.zeros(len(variables), int)))
  assert constant.constant and constant.variables == () and constant.bits == 0
  other = np.random.default_rng(0).integers(2, size=len(variables))
  nothing = naming.name(evidence(variables, other))
  assert not nothing.constant and nothing.variables == ()


def test_variables_that_split_the_inputs_alike_are_one_answer():
  tokens = np.array([0, 1, 2, 0, 1, 2])
  values = {"token": tokens, "open": tokens == 0, "close": tokens == 1, "again": 2 - tokens, "half": np.arange(6) > 2}
  parts = {name: partitions.partition(value) for name, value in values.items()}
  assert partitions.matched(["again"], ["token"], parts) == ({"again"}, {"token"})
  assert partitions.matched(["token"], ["open", "close"], parts) == ({"token"}, {"open", "close"})
  assert partitions.matched(["open"], ["token"], parts) == (set(), set())
  assert partitions.matched(["token", "half"], ["token"], parts) == ({"token"}, {"token"})
  assert partitions.matched(["token", "half"], ["half", "open", "close"], parts)[1] == {"half", "open", "close"}
  assert partitions.matched(["half"], [], parts) == (set(), set())


def test_probes_decode_what_is_linear_in_the_activation():
  rng = np.random.default_rng(0)
  a, b = rng.integers(4, size=400), rng.integers(3, size=400)
  noise = 0.01 * rng.normal(size=(400, 2))
  x = np.concatenate([np.eye(4)[a], noise], axis=1)
  parts = {"a": a, "above": (a > 1).astype(int), "b": b, "same": np.zeros(400, int)}
  found = probes.decoded(x, parts, list(parts))
  assert set(found) == {"a", "above"} and found["a"] > found["above"]
  assert probes.decoded(np.zeros((400, 3)), parts, list(parts)) == {}


def test_the_command_prints_a_table_and_writes_strict_json(inversionview, tmp_path):
  file = tmp_path / "board.json"
  code, out, error = inversionview("scoreboard", "--programs", *PROGRAMS, "--json", file)
  assert code == 0, error
  data = json.loads(file.read_text(), parse_constant=pytest.fail)
  assert data["format"] == "inversionview-scoreboard" and data["format_version"] == 1
  assert data["variables"]["preimages"]["f1"] == data["nodes"]["f1"] == 1.0
  written = {answer["component"]: answer["written"] for answer in data["programs"][0]["components"]}
  assert written["m0@i0"] == ["map_3_at_0"] and written["a0.0@i0"] == []
  assert f"tracr:{PROGRAMS[1]}" in out and "1.000" in out


@pytest.fixture
def shipped(monkeypatch):
  """The shipped addition target, on few inputs."""
  for name, value in (("_INPUTS", 2048), ("_RUN", 512)):
    monkeypatch.setattr(trained, name, value)
  return scoreboard([], trained_targets=["addition"])


def test_parts_of_a_trained_target_are_read_as_patching_and_the_architecture_show(shipped):
  (one,) = shipped.trained
  found = {answer.component: answer for answer in one.answers}
  assert found["a0.0@="].named["preimages"] == found["a0.0@="].written == ("C2",)
  assert found["a0.0@="].shown_by == "patching" and found["x0.pre@F2"].shown_by == "architecture"
  assert found["x0.pre@F2"].named["preimages"] == found["x0.pre@F2"].named["text"] == ("F2",)
  assert found["x0.pre@="].constant and found["x0.pre@="].is_right
  # Who sees the text alone knows the digits, and nothing at "=".
  assert all(answer.named["text"] == () for name, answer in found.items() if name.endswith("="))
  assert one.variables["preimages"].f1 > one.variables["text"].f1 > one.variables["another"].f1
  assert (
    "1 trained target" in str(shipped) and shipped.variables["preimages"].true == 0
  )  # counts in no score over programs
  assert shipped.to_dict()["trained"][0]["variables"]["preimages"]["true"] == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["addition", "counting"])
def test_patching_shows_what_is_said_of_trained_parts(name):
  """Of all variables that bring a share of the change, the one that is named has by far the smallest leak."""
  target = iv.load_target(name)
  task = target.resolve_task()
  features = task.features(task.tokens(task.split("test")[:1]))
  for part in trained.answers()[name]:
    if part.shown_by != "patching":
      continue
    leaks = {}
    for feature in features:
      try:
        sides = iv.verify(target, part.site, part.symbol, feature, task=task, pairs=512)
      except InversionViewError:  # no pairs differ in it alone
        continue
      if sides.only.kl.mean >= trained.SHARE * sides.only.total_kl.mean > 1e-3:
        leaks[feature] = sides.rest.kl.mean / sides.only.kl.mean
    (variable,) = part.variables
    same = {"length"} if variable == "C1" else set()  # an answer has four digits where the hundreds carry
    assert leaks[variable] <= trained.LEAK
    assert all(leak >= 3 * leaks[variable] for feature, leak in leaks.items() if feature not in same | {variable}), (
      leaks
    )


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--programs", "hists"], "hist"),
    (["--trained", "ioi"], "trained target 'ioi'"),
    (["--programs", "hist", "sort,size=3"], "setting 'size=3'"),
    (["--programs", "hist", "--method", "decoder"], "method 'decoder'"),
    (["--programs", "hist", "--particles", 64], "--method monte_carlo"),
    (["--programs", "hist", "--json", "/no/such/folder/board.json"], "/no/such/folder"),
  ],
)
def test_what_cannot_be_scored_is_refused_before_anything_runs(inversionview, flags, message):
  code, out, error = inversionview("scoreboard", *flags)
  assert code == 2 and message in error and error.count("\n") == 1 and not out


def test_programs_without_answers_are_refused(fractions):
  target = dataclasses.replace(fractions.target, program=None)
  with pytest.raises(InversionViewError, match="say what each part writes"):
    Answers.of(target, 100)
