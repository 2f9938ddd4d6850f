"""The reader: queries in, preimages out; what it accepts, and what it refuses in one line."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from inversionview_jax import cli, tasks
from inversionview_jax._version import __version__
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Request, load_reader

TASK = tasks.get("addition")
TEXT = "615+861=1476"
TOKENS = TASK.tokenizer.encode_batch([TEXT], TASK.length, eos=True)
N = 40  # another number of candidates would be another program

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def folder(save_small, tmp_path_factory):
  return save_small(tmp_path_factory.mktemp("reader"))


@pytest.fixture(scope="module")
def reader(folder):
  return load_reader(folder)


@pytest.fixture(scope="module")
def preimage(reader):
  """A function (site, position, ...) -> the preimage of TEXT."""
  return lambda site="a0.1", position="=", text=TEXT, **kwargs: reader.preimage(
    text, site, position, **({"num_samples": N} | kwargs)
  )


@pytest.fixture(scope="module")
def first(preimage):
  return preimage()


def texts(one: Preimage) -> list[str]:
  return sorted(sample.text for sample in one.samples)


def refusal(function, *args, **kwargs) -> str:
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)


# What a preimage holds.


def test_preimage_describes_the_query_and_how_it_was_read(first, reader):
  query = first.query
  assert (query.text, query.position, query.label) == (TEXT, 8, "=")
  assert (query.site, query.hook) == ("a0.1", "blocks.0.attn.hook_result.1")
  assert "".join(query.token_strings) == f"<BOS>{TEXT}<EOS>"
  assert list(query.tokens) == TOKENS[0].tolist()
  np.testing.assert_allclose(query.activation, reader.target.run(TOKENS, ["a0.1"])["a0.1"][0, 8], rtol=1e-6)
  assert (first.epsilon, first.metric, first.match, first.seed) == (0.1, "euclidean", "anywhere", 0)
  assert (first.reader, first.task, first.convention, first.version) == ("addition", "addition", "raw", __version__)


def test_candidates_are_sorted_and_have_the_targets_distances(first, reader):
  assert len(first.samples) == N
  distances = [sample.distance for sample in first.samples]
  assert distances == sorted(distances)
  assert any(sample.ended for sample in first.samples) and not all(sample.ended for sample in first.samples)
  for sample in first.samples:
    assert len(sample.effect) == len(sample.tokens) == len(sample.token_strings)
    assert sample.text == "".join(sample.token_strings) and not {"<BOS>", "<EOS>", "<PAD>"} & set(sample.token_strings)
    assert sample.ended == (len(sample.tokens) < TASK.length - 1)
    assert 0 <= sample.position <= len(sample.tokens)
    assert sample.inside == (sample.distance <= np.float32(0.1))
    ids = np.array([[TASK.tokenizer.bos_id, *sample.tokens]])
    activations = np.asarray(reader.target.run(np.pad(ids, ((0, 0), (0, 14 - ids.shape[1]))), ["a0.1"])["a0.1"])[0]
    z = np.array(first.query.activation)
    far = np.linalg.norm(activations[: ids.shape[1]] - z, axis=1) / np.linalg.norm(z)
    assert sample.distance == pytest.approx(far.min(), rel=1e-4) and sample.position == far.argmin()
  assert max(abs(effect) for sample in first.samples for effect in sample.effect) > 0.05


def test_effects_belong_to_their_tokens(first, reader):
  sample = next(sample for sample in first.samples if len(sample.tokens) > 5)
  row = np.array([TASK.tokenizer.bos_id, *sample.tokens])
  prefixes = np.full((len(row), TASK.length), TASK.tokenizer.pad_id)
  for t in range(len(row)):
    prefixes[t, : t + 1] = row[: t + 1]
  p = []
  for z in (np.array(first.query.activation), reader.target.run(row[None, :1], ["a0.1"])["a0.1"][0, 0]):
    p.append(np.exp(np.diff(reader.log_prob(prefixes, z, "a0.1"))))  # of each token after those before it
  np.testing.assert_allclose(sample.effect, p[0] - p[1], atol=1e-4)
  assert np.abs(sample.effect).max() > 0.01


def test_default_is_the_tasks_mixture(reader, monkeypatch):
  assert reader.task.mixture.num_samples == 1024
  few = {"few": dataclasses.replace(reader.task.mixture, num_samples=N)}
  monkeypatch.setattr(reader.task, "mixtures", few)
  settings = [(sample.temperature, sample.noise) for sample in reader.preimage(TEXT, "x0.pre", 3).samples]
  assert {setting: settings.count(setting) for setting in settings} == {
    (1.0, 0.0): N // 4, (1.5, 0.05): N // 4, (2.0, 0.1): N // 4, (2.0, 0.3): N // 4,
  }  # fmt: skip


@pytest.mark.parametrize("position", [0, 4, 8])
def test_heads_come_with_their_attention_and_other_sites_without(preimage, reader, position):
  attention = preimage("a1.1", position).query.attention
  assert len(attention) == position + 1 and sum(attention) == pytest.approx(1, abs=1e-6)
  np.testing.assert_allclose(
    attention, reader.target.run(TOKENS, ["p1"])["p1"][0, 1, position, : position + 1], rtol=1e-6
  )
  assert preimage("x1.post", position).query.attention is None


def test_saved_preimage_equals_the_first(preimage, tmp_path):
  for saved in (
    preimage("x1.post", "A1", match="position"),
    preimage("a0.0", 2, metric="cosine", temperatures=[0.3, 3], noise=[0.2, 0.7]),
  ):
    saved.to_json(tmp_path / "preimage.json")
    assert Preimage.from_json(tmp_path / "preimage.json") == saved == Preimage.from_json(saved.to_json())
  json.loads(saved.to_json(), parse_constant=pytest.fail)  # strict: no NaN, no Infinity


# What can be preimage.


@pytest.mark.parametrize(
  "position, index, label",
  [
    ("=", 8, "="), (8, 8, "="), ("8", 8, "="), (np.int64(8), 8, "="), ("+", 4, "+"), ("S2", 6, "S2"), ("A4", 12, "A4"),
    (-1, 12, "A4"), ("-1", 12, "A4"), (-13, 0, "<BOS>"), (0, 0, "<BOS>"),
  ],
)  # fmt: skip
def test_position_is_an_index_from_either_end_or_a_label(preimage, reader, position, index, label):
  query = preimage("x1.post", position).query
  assert (query.position, query.label) == (index, label)
  np.testing.assert_allclose(query.activation, reader.target.run(TOKENS, ["x1.post"])["x1.post"][0, index], rtol=1e-6)


def test_beginning_of_a_text_has_the_activations_of_the_whole(preimage, first):
  beginning = preimage(text="615+861=")
  assert (beginning.query.text, beginning.query.position, beginning.query.label) == ("615+861=", 8, "=")
  np.testing.assert_allclose(beginning.query.activation, first.query.activation, rtol=1e-5, atol=1e-6)
  assert preimage(position=-1, text="615+861=").query.position == 8
  assert "A1" not in refusal(preimage, position="A1", text="615+861=").split("has the positions", 1)[1]


def test_site_can_be_written_either_way(preimage, first):
  assert preimage("blocks.0.attn.hook_result.1") == first


def test_epsilon_draws_the_line_elsewhere_and_moves_nothing_else(preimage, first):
  middle = first.samples[N // 2].distance
  larger = preimage(epsilon=middle)
  assert larger.epsilon == middle and len(larger.inside) >= N // 2 > len(first.inside)
  assert larger.at(0.1) == first


def test_metric_and_match_measure_the_same_candidates_otherwise(preimage, first):
  cosine, fixed = preimage(metric="cosine"), preimage(match="position")
  assert texts(cosine) == texts(fixed) == texts(first)
  assert cosine.metric == "cosine" and max(sample.distance for sample in cosine.samples) <= 2
  assert [s.distance for s in cosine.samples] != [s.distance for s in first.samples]
  assert fixed.match == "position" and {sample.position for sample in fixed.samples} == {8, -1}
  for sample in fixed.samples:
    assert (sample.position == -1) == (len(sample.tokens) < 8) == (sample.distance == np.inf)


def test_temperatures_and_noise_make_the_mixture(preimage, first):
  def settings(**kwargs):
    return {(sample.temperature, sample.noise) for sample in preimage(**kwargs).samples}

  assert settings(temperatures=[0.3, 1.7]) == {(0.3, 0.0), (1.7, 0.0)}
  assert settings(temperatures=1.7, noise=0.25) == {(1.7, 0.25)}
  assert settings(temperatures=[0, 1.7], noise=[0.1, 0.25]) == {(0, 0.1), (1.7, 0.25)}
  assert settings(noise=0.25) == {(1.0, 0.25)}
  assert len(set(texts(preimage(temperatures=0)))) == 1 < len(set(texts(first)))
  assert len(set(texts(preimage(temperatures=0, noise=2)))) > 1


def test_mixture_is_taken_by_name_and_an_unknown_one_is_named(preimage, reader):
  paper = preimage(mixture="paper")
  assert {(s.temperature, s.noise) for s in paper.samples} == {(0.5, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 0.1)}
  with pytest.raises(InversionViewError, match="did you mean paper"):
    preimage(mixture="papr")


def test_without_effects_the_samples_are_the_same(preimage, first):
  bare = preimage(effects=False)
  assert [(s.text, s.distance) for s in bare.samples] == [(s.text, s.distance) for s in first.samples]
  assert all(s.effect == () for s in bare.samples)


def test_seed_decides_what_is_drawn(preimage, first):
  assert preimage(seed=0) == first
  others = [preimage(seed=seed) for seed in (1, 2**32 - 1)]
  assert [other.seed for other in others] == [1, 2**32 - 1]
  assert len({tuple(texts(one)) for one in (first, *others)}) == 3


def test_another_query_compiles_nothing(preimage, reader, first):
  before = reader.sampler.compiled()
  preimage(
    "x0.pre",
    5,
    "999+100=1099",
    epsilon=0.3,
    metric="cosine",
    match="position",
    temperatures=[1, 2, 3],
    noise=0.1,
    seed=5,
  )
  assert reader.sampler.compiled() == before


def test_many_queries_have_the_preimages_of_each(reader, preimage):
  requests = [
    ("615+861=1476", "a0.1", "="), Request("123+456=579", "x1.post", 2, epsilon=0.5, metric="cosine"),
    Request("999+100=1099", "x0.mid", -1, match="position"),
  ]  # fmt: skip
  requests += [("615+861=", "x0.pre", position) for position in range(6)]  # nine: more than one program call
  for request, got in zip(requests, reader.preimages(requests, num_samples=N, seed=3), strict=True):
    request = request if isinstance(request, Request) else Request(*request)
    alone = preimage(
      request.site,
      request.position,
      request.text,
      epsilon=request.epsilon,
      metric=request.metric,
      match=request.match,
      seed=3,
    )
    np.testing.assert_allclose(got.query.activation, alone.query.activation, rtol=1e-5, atol=1e-6)
    assert dataclasses.replace(got, query=alone.query, samples=()) == dataclasses.replace(alone, samples=())
    assert texts(got) == texts(alone)
    np.testing.assert_allclose(
      [s.distance for s in got.samples], [s.distance for s in alone.samples], rtol=1e-4, atol=1e-6
    )
  assert reader.preimages([]) == []


def test_query_can_be_a_tuple_a_dict_or_that_of_another_preimage(reader, first):
  requests = [
    (TEXT, "a0.1", "="),
    {"text": TEXT, "site": "a0.1", "position": 8, "epsilon": 0.1},
    first.query,
    Request(TEXT, "a0.1", "="),
  ]
  first, *others = reader.preimages(requests, num_samples=N)
  assert texts(first) == texts(first) and all(other == first for other in others)
  for wrong in ((TEXT,), {"text": TEXT, "place": 8}, 5):
    assert "(text, site, position)" in refusal(reader.preimages, [wrong])


def test_log_prob_is_the_decoders_for_one_activation_or_one_per_text(reader):
  tokens = TASK.tokens_of([615, 100, 999], [861, 200, 1])
  activation = np.random.default_rng(0).normal(size=(3, reader.config.d_activation)).astype(np.float32)
  got = reader.log_prob(tokens, activation, "blocks.1.attn.hook_result.1")
  site = np.full(3, reader.config.sites.index("a1.1"))
  score = parallel.jit(decoder.log_prob, static_argnums=(0, 5))
  by_hand = score(Decoder(reader.config), reader.variables, tokens, activation, site, TASK.tokenizer.pad_id)
  np.testing.assert_allclose(got, by_hand, rtol=1e-5)
  assert got.shape == (3,) and (got < 0).all()
  np.testing.assert_allclose(reader.log_prob(tokens, activation[1], "a1.1")[1], got[1], rtol=1e-5)
  assert "a1.0" in refusal(reader.log_prob, tokens, activation, "a1.0")
  assert "99" in refusal(reader.log_prob, np.full((3, 14), 99), activation, "a1.1")


# What is refused.


@pytest.mark.parametrize(
  "wrong, named",
  [
    ({"text": "615*861=1476"}, "'*'"), ({"text": "615+861=14\n76"}, r"'\n'"), ({"text": ""}, "empty"),
    ({"text": "1615+861=24761"}, "at most 12"), ({"site": "a0.7"}, "a0.1"), ({"site": "a1.0"}, "a1.1"),
    ({"site": "p0"}, "p0"), ({"site": "nonsense"}, "'nonsense'"), ({"position": 13}, "0 (BOS) to 12"),
    ({"position": -14}, "0 (BOS) to 12"), ({"position": "A5"}, "A1, A2, A3, A4"), ({"position": ""}, "A1"),
    ({"position": 8.5}, "8.5"), ({"position": None}, "None"),
    ({"epsilon": 0}, "0"), ({"epsilon": -0.1}, "-0.1"), ({"epsilon": np.nan}, "nan"), ({"epsilon": np.inf}, "inf"),
    ({"epsilon": "wide"}, "'wide'"), ({"metric": "cosin"}, "cosine"), ({"match": "everywhere"}, "anywhere"),
    ({"temperatures": -1}, "-1"), ({"temperatures": [1, np.nan]}, "nan"), ({"temperatures": np.inf}, "inf"),
    ({"temperatures": []}, "temperature"), ({"temperatures": "hot"}, "'hot'"), ({"noise": -0.1}, "-0.1"),
    ({"temperatures": [1, 2], "noise": [0, 1, 2]}, "3 values of noise for 2 temperatures"), ({"num_samples": 0}, "0"),
    ({"num_samples": 2.5}, "2.5"), ({"seed": -1}, "-1"), ({"seed": 2**32}, str(2**32)), ({"seed": 1.5}, "1.5"),
  ],
  ids=str,
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_line_that_names_it(preimage, wrong, named):
  assert named in refusal(preimage, **wrong)


MINE = """
from inversionview_jax.tasks import Mixture

COLD = Mixture(((0.2, 0.0), (0.4, 0.1)), num_samples=12)
NOT_A_MIXTURE = (0.2, 0.0)
"""


@pytest.mark.slow
def test_mixture_of_a_users_own_module(preimage, tmp_path, monkeypatch, capsys, folder):
  (tmp_path / "my_mixtures.py").write_text(MINE)
  monkeypatch.syspath_prepend(tmp_path)
  cold = preimage(mixture="my_mixtures:COLD", num_samples=None)
  settings = [(sample.temperature, sample.noise) for sample in cold.samples]
  assert {setting: settings.count(setting) for setting in settings} == {(0.2, 0.0): 6, (0.4, 0.1): 6}
  assert len(preimage(mixture="my_mixtures:COLD").samples) == N
  argv = ["view", TEXT, "--reader", str(folder), "--site", "a0.1", "--position", "=", "--method", "decoder"]
  assert cli.main([*argv, "--mixture", "my_mixtures:COLD"]) == 0
  assert "of 12 candidates inside" in capsys.readouterr().out
  assert "did you mean COLD" in refusal(preimage, mixture="my_mixtures:COLDER")
  assert "is a tuple, not a Mixture" in refusal(preimage, mixture="my_mixtures:NOT_A_MIXTURE")
  assert "no module no_such_module" in refusal(preimage, mixture="no_such_module:COLD")


def test_renamed_mixture_is_refused_with_the_new_name(preimage):
  assert "'broad'" in refusal(preimage, mixture="wide")


def test_reader_shows_itself(reader):
  text, html = repr(reader), reader._repr_html_()
  for part in (
    "'addition'",
    "random-0",
    "a1.1",
    "F1 F2 F3 + S1 S2 S3 =",
    "0.1, normalized Euclidean distance",
    "broad (1,024",
  ):
    assert part in text, text
  assert "2 layers, 2 heads, width 16" in text and "such as '100+100=200'" in text and "M parameters" in text
  assert html.count("<tr>") == 7 and "a1.1" in html and "'" not in html.split("<table>")[0]


def test_saved_preimages_are_read_and_shown_without_jax(first, tmp_path):
  first.to_json(tmp_path / "preimage.json")
  script = (
    "import sys, inversionview_jax as iv; from inversionview_jax.preimage import render; "
    f"print(render.to_text(iv.Preimage.from_json({str(tmp_path / 'preimage.json')!r}))); "
    "print([name for name in sys.modules if name in ('jax', 'jaxlib', 'flax', 'tensorflow_datasets')])"
  )
  lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
  assert lines[-1] == "[]" and any(TEXT in line for line in lines)
