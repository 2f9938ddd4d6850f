"""Information in bits, against enumeration; and what a place says over a set of queries, with its control."""

import json
import math

import numpy as np
import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures import information, readings
from inversionview_jax.reading.reader import Request, Reader, load_reader
from inversionview_jax.sampling import exact, sampler

FULL = tasks.get("addition")

pytestmark = pytest.mark.usefixtures("quick_to_compile")


class Ones(type(FULL)):
  """The 8,100 inputs of addition whose numbers both end in 5."""

  num_inputs = 90 * 90

  def tokens(self, index):
    index = np.asarray(index)
    return FULL.tokens_of(105 + 10 * (index // 90), 105 + 10 * (index % 90))

  def index(self, tokens):
    found = FULL.index(tokens)
    first, second = found // 900, found % 900
    return np.where((found >= 0) & (first % 10 == 5) & (second % 10 == 5), first // 10 * 90 + second // 10, -1)


@pytest.fixture(scope="module")
def reader():
  """The shipped reader on fewer inputs, which can be enumerated at once."""
  shipped = load_reader("addition")
  return Reader(shipped.target, Ones(), shipped.config, shipped.variables, "ones")


@pytest.fixture(scope="module")
def queries(reader):
  asks = [Request("615+865=1480", site, at) for site, at in (("a0.0", "="), ("x0.pre", "F2"), ("x0.pre", "S3"))]
  return [pre.query for pre in reader.preimages(asks, effects=False, num_samples=8)]


def shares(reader, queries):
  """The exact ones."""
  asked = information._queries(reader, queries, "euclidean", "anywhere")
  found = exact.distances(reader.target, reader.task, reader.sites, asked, exact.every_input(reader.task))
  return [len(found.members(q, 0.1)) / reader.task.num_inputs for q in range(len(queries))]


def test_random_inputs_and_the_decoder_together_find_the_share(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 10**9)  # the decoder has its part in each
  for share, found in zip(
    shares(reader, queries), information.measure(reader, queries, inputs=1024, draws=480), strict=True
  ):
    told = found.information
    assert told.draws == 480
    assert told.found > (10 if share == 1 else 0)
    assert abs(told.bits + math.log2(share)) < max(4 * told.error, 0.02)
    assert told.error < 0.3 and told.low <= told.bits <= told.high
    inside = found.members.within(0.1)
    assert (reader.task.index(inside.tokens) >= 0).all()  # no text that is no input
    assert (inside.weight <= (1024 + 480) / 1024 + 1e-9).all()


def test_members_stand_for_the_whole_preimage(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 10**9)
  found = information.measure(reader, queries[:1], inputs=1024, draws=480)[0]
  asked = information._queries(reader, queries[:1], "euclidean", "anywhere")
  every = exact.distances(reader.target, reader.task, reader.sites, asked, exact.every_input(reader.task))
  true = FULL.features(reader.task.tokens(every.members(0, 0.1)))
  inside = found.members.within(0.1)
  own = FULL.features(inside.tokens)
  for name in ("F1", "F2", "S2", "C2", "A1"):
    for value in np.unique(true[name]):
      estimate = inside.weight[own[name] == value].sum() / inside.weight.sum()
      assert estimate == pytest.approx(np.mean(true[name] == value), abs=0.08), (name, value)


def test_a_decoder_that_knows_nothing_misleads_nobody(small_target, small_decoder, monkeypatch):
  reader = Reader(small_target, Ones(), *small_decoder, "small")
  query = reader.preimage("615+865=1480", "x0.pre", "F1", effects=False, num_samples=8).query
  monkeypatch.setattr(information, "_ENOUGH", 10**9)
  told = information.measure(reader, [query], inputs=1024, draws=48)[0].information
  share = shares(reader, [query])[0]
  assert told.found <= 2 and abs(told.bits + math.log2(share)) < max(4 * told.error, 0.02)


def test_where_random_inputs_are_enough_the_decoder_is_not_asked(reader, queries, monkeypatch):
  monkeypatch.setattr(information, "_ENOUGH", 50)
  monkeypatch.setattr(Reader, "draw", lambda *a, **k: pytest.fail("asked"))
  told = information.measure(reader, queries[:1], inputs=1024)[0].information
  assert told.draws == 0 and told.bits == pytest.approx(-math.log2(shares(reader, queries[:1])[0]), abs=0.2)
  assert told.warning == ""


def test_says_when_it_cannot_be_relied_on():
  def told(**over):
    usual = {"bits": 3.0, "error": 0.05, "share": 0.125, "effective": 400.0}
    rest = {"inputs": 1000, "met": 100, "draws": 10, "found": 5, "heaviest": 0.01}
    return information.Information(**(usual | rest | over))

  assert told().warning == ""
  assert "uncertain" in told(error=0.4).warning and "uncertain" in told(effective=10.0).warning
  assert told(met=2).warning.startswith("at most")
  nothing = told(bits=None, error=math.inf, share=0.0)
  assert "more than 8.4 bits" in nothing.warning and nothing.low is None
  json.dumps(nothing.to_dict(), allow_nan=False)


def test_the_prior_of_counting_is_that_of_its_inputs():
  task = tasks.get("counting")
  tokens = task.tokens(np.random.default_rng(0).integers(task.num_inputs, size=4000))
  said = task.log_prior(tokens)
  assert np.isfinite(said).all()
  # All orders of 1 + 1 + 1 letters together have 3! texts for each triple and question.
  shortest = task.tokenizer.encode_batch(["abc|a:1"], length=task.length, eos=True)
  assert math.exp(task.log_prior(shortest)[0]) == pytest.approx(1 / (2600 * 729 * 3 * 6))
  # E[1 / p] under p is the number of texts: those of a length, from the sample and from counting them
  of_length = task.features(tokens)["length"] == 4
  there = 2600 * 3 * 3 * math.factorial(4) / 2
  assert np.exp(-said[of_length]).sum() / len(said) == pytest.approx(there, rel=1.0)
  wrong = ["aab|a:1", "aabc|d:1", "aabc|a:", "aabc", "abcd|a:1", "ab|a:1"]
  assert np.isinf(task.log_prior(task.tokenizer.encode_batch(wrong, length=task.length, eos=True))).all()


def test_the_decoder_can_be_told_another_activation_than_distances_are_taken_to(reader, queries):
  z = np.array([query.activation for query in queries[:1]], np.float32)
  fields = np.zeros(1, np.int32) + reader.site_index("a0.0"), np.full(1, -1, np.int32), np.zeros(1, np.int32)
  rows = candidates.mixture_rows(((1.0, 0.0),), 32)
  plain = reader.draw(candidates.Queries(z, *fields), rows, 0)
  told = reader.draw(candidates.Queries(z, *fields, told=z), rows, 0)
  np.testing.assert_array_equal(plain.tokens, told.tokens)
  elsewhere = reader.draw(candidates.Queries(-z, *fields, told=z), rows, 0)
  np.testing.assert_array_equal(elsewhere.tokens, told.tokens)
  assert not np.allclose(elsewhere.distance, told.distance)


def test_a_place_says_what_all_its_queries_say_and_the_control_nothing(reader):
  asks = readings.held_out(reader, "x0.pre", "F2", 16)
  assert len({ask.text for ask in asks}) == 16
  found = readings.read(reader, asks, with_information=False, num_samples=64)
  rows = {row.feature: row for row in found.rows}
  assert {row.feature for row in found.encoded} == {"F2", "matched token"}
  assert rows["F2"].queries == 16 and rows["F2"].control.value == pytest.approx(rows["F2"].base, abs=0.15)
  assert found.control_encoded == [] and found.bits() is None and found.donors == 15
  only = readings.read(reader, asks, with_information=False, num_samples=64, tokens=False)
  assert [row.feature for row in only.encoded] == ["F2"]


def test_information_of_several_queries_is_their_mean(reader):
  found = readings.read(
    reader, [Request("615+865=1480", "a0.0", "="), Request("125+345=470", "a0.0", "=")], num_samples=8, inputs=256, draws=12
  )
  bits, error = found.bits()
  own = [one.bits for one in found.information]
  assert bits == pytest.approx(np.mean(own)) and error >= abs(own[0] - own[1]) / 2 - 1e-9
  table = json.loads(found.to_json())
  assert [one["information"]["bits"] for one in table["queries"]] == own and table["bits"]["mean"] == bits


def test_queries_that_share_a_feature_need_other_donors(reader):
  asks = [Request(f"6{x}5+865={int(f'6{x}5') + 865}", "x0.pre", "F1") for x in range(3)]
  donors = readings.held_out(reader, "x0.pre", "F1", 6)
  found = readings.read(reader, asks, donors=donors, with_information=False, num_samples=64)
  rows = {row.feature: row for row in found.rows}
  assert rows["F1"].control.value < 0.5 and found.donors == 6 and found.information is None
  with pytest.raises(InversionViewError, match="several epsilons"):
    readings.read(reader, [asks[0], Request("615+865=1480", "a0.0", "=", epsilon=0.2)])
  with pytest.raises(InversionViewError, match="no queries"):
    readings.read(reader, [])


@pytest.mark.slow
def test_bits_of_ten_addition_queries_are_within_three_tenths_of_enumeration():
  from inversionview_jax.measures import held_out

  reader = load_reader("addition")
  asked = held_out.held_out(reader, 10, seed=3, every_site=False)
  found = exact.distances(reader.target, reader.task, reader.sites, asked.queries, exact.every_input(reader.task))
  for q in range(10):
    site = reader.config.sites[asked.queries.site[q]]
    ask = Request(reader.task.tokenizer.text(asked.tokens[q]), site, int(asked.at[q]))
    query = reader.preimages([ask], num_samples=8, effects=False)[0].query
    told = information.measure(reader, [query])[0].information
    truth = math.log2(reader.task.num_inputs / len(found.members(q, 0.1)))
    assert told.bits == pytest.approx(truth, abs=0.3), (site, ask.text, asked.at[q])


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
    "--no-bits",
    "--num-samples",
    "128",
  ]
  assert cli.main([*argv, "--json", str(path)]) == 0
  out = capsys.readouterr().out
  assert (
    "C2" in out and "says: C2 = 0" in out and "the control (3 other activations for each query) says: nothing" in out
  )
  assert json.loads(path.read_text())["rows"][0]["feature"] == "C2"


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (["615+861=1476", "--queries", "3"], "--queries 3 asks held-out inputs; leave it out when texts are given"),
    (["615+861=1476", "615+861=1476"], "given twice"),
    (["--texts", "nowhere.txt"], "cannot read nowhere.txt"),
    (["--queries", "1"], "--queries 1 must be at least 2"),
    (["615+861=1476", "--json", "nowhere/m.json"], "does not exist"),
    (["6x5", "--controls", "2"], "character 'x'"),
    (["--feature", "F1 **"], "is not understood"),
    (["--feature", "F9 > 1"], "unknown feature in the condition 'F9 > 1'"),
  ],
)
def test_bad_input_is_one_line(argv, said, capsys):
  assert cli.main(["measure", *argv, "--site", "a0.0", "--position", "="]) == 2
  err = capsys.readouterr().err
  assert said in err and err.count("\n") == 1
