"""Monte Carlo over texts with a language model as the prior: its law against enumeration, on any devices, and what a pass computes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from inversionview_jax import sites
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.models.transformer import Transformer
from inversionview_jax.sampling import text_moves
from inversionview_jax.sampling.candidates import Queries
from inversionview_jax.sampling.language_prior import LanguagePrior, inverse_cdf
from inversionview_jax.sampling.monte_carlo import MonteCarlo
from inversionview_jax.sampling.particles import Settings
from inversionview_jax.sampling.text_sweeps import TextSettings, TextSweeps
from inversionview_jax.targets import Target

pytestmark = pytest.mark.usefixtures("quick_to_compile")

WORDS, N = 5, 2048  # tokens 0 to 4 may be in a text; 5 is BOS, 6 another special one, 7 a row without a token
SITES = (sites.parse("a1.0"),)
LENGTHS = {"gpt2": (3, 3), "llama": (1, 3)}


class Tokens:
  bos_id, eos_id, pad_id, vocab_size = 5, 8, 9, 10


class Texts:
  """A task of up to three tokens."""

  tokenizer, name = Tokens(), "few"

  def __init__(self, longest=3):
    self.length = longest + 2


@pytest.fixture(scope="module", params=[pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def target(request, random_variables):
  shape = {"vocab_size": 8, "n_ctx": 8, "n_layers": 2, "n_heads": 2, "d_model": 8, "d_mlp": 16}
  llama = {"rotary": (1.0, 0.1), "norm": "rms", "gated": True, "activation": "silu", "n_kv_heads": 1, "biases": ()}
  config = TransformerConfig(**shape, **(llama if request.param == "llama" else {}))
  params = random_variables(0.35, 3, Transformer(config), jnp.zeros((1, 1), jnp.int32))["params"]
  return Target.from_raw(params, config, None, "raw", name=request.param)


def every_text(target, lengths):
  """All texts, rows int32[M, T], their log probabilities under the law, and z at the site, by running the target on each."""
  longest = lengths[1]
  rows, log_p, z = [], [], []
  for length in range(lengths[0], longest + 1):
    texts = np.array(list(itertools.product(range(WORDS), repeat=length)))
    tokens = np.concatenate([np.full((len(texts), 1), 5), texts], axis=1).astype(np.int32)
    run = target.run(tokens, SITES)
    log = jax.nn.log_softmax(np.asarray(run.logits, np.float64)[:, :-1, :WORDS], axis=-1)
    log_p.append(np.take_along_axis(np.asarray(log), texts[..., None], axis=-1)[..., 0].sum(axis=1))
    activations = np.asarray(run[SITES[0]])
    z.append(np.pad(activations, ((0, 0), (0, longest - length), (0, 0)), constant_values=np.nan))
    ends = np.full((len(texts), longest + 1 - length), 9)
    ends[:, 0] = 8
    rows.append(np.concatenate([tokens, ends], axis=1).astype(np.int32))
  log_p = np.concatenate(log_p) - np.log(lengths[1] - lengths[0] + 1)
  assert abs(np.exp(log_p).sum() - 1) < 1e-5
  return np.concatenate(rows), log_p, np.concatenate(z)


def programs(target, lengths, mesh, heating=0):
  prior = LanguagePrior(target, SITES, np.arange(8) < WORDS)
  return TextSweeps(prior, Texts(lengths[1]), mesh, TextSettings(lengths, heating))


def test_marginals_that_so_few_particles_cannot_tell_are_a_problem(target, meshes):
  program, rng = programs(target, (3, 3), meshes(1)), np.random.default_rng(0)
  island = np.arange(60) % 2
  few, many = (np.pad(1 + rng.integers(n, size=(60, 3)), ((0, 0), (1, 1)), constant_values=8) for n in (2, 8))
  assert program.problem(few, island) == ""
  few[:, 1:4] += 4 * island[:, None]
  assert "differ by 1.00" in program.problem(few, island)
  assert "more particles" in TextSweeps(
    program.prior, Texts(3), meshes(1), TextSettings((3, 3), variation=0.1)
  ).problem(many, island)


def query_of(z, position=-1):
  return Queries.of(z[None], 0, "euclidean", position)


def numbers(rows, tokens):
  """int[N]: which of the rows each text is."""
  number = {row.tobytes(): i for i, row in enumerate(rows)}
  return np.array([number[row.tobytes()] for row in np.ascontiguousarray(tokens, np.int32)])


def fits(tokens, rows, p):
  """p-value of a chi-square test that texts follow p; texts that are expected less than 5 times are taken together."""
  counts, expected = np.bincount(numbers(rows, tokens), minlength=len(rows)), p * len(tokens)
  few = expected < 5
  assert (counts[p == 0] == 0).all()
  groups = [(counts[~few], expected[~few])] + (
    [([counts[few].sum()], [expected[few].sum()])] if expected[few].sum() >= 5 else []
  )
  found, wanted = (np.concatenate(x) for x in zip(*groups, strict=True))
  return stats.chi2.sf(((found - wanted) ** 2 / wanted).sum(), len(found) - 1)


@pytest.fixture(scope="module")
def space(target, meshes):
  """(lengths, program, rows, log p, distances of every text, the query)."""
  lengths = LENGTHS[target.name]
  rows, log_p, z = every_text(target, lengths)
  query = z[len(z) // 2, lengths[0]]
  far = np.nanmin(np.linalg.norm(z - query, axis=-1) / np.linalg.norm(query), axis=1)
  return lengths, programs(target, lengths, meshes(1)), rows, log_p, far, query_of(query)


def test_texts_that_the_model_writes_follow_its_law(space):
  _, program, rows, log_p, far, query = space
  state = program.begin(query, None, np.random.default_rng(1), None, N)
  assert fits(state["tokens"], rows, np.exp(log_p)) > 1e-3
  number = numbers(rows, state["tokens"])
  np.testing.assert_allclose(state["distance"], far[number], atol=2e-5)
  assert len(np.unique(number)) > 60


@pytest.mark.parametrize("start", ["the law", "one text"])
def test_sweeps_keep_the_law_inside_a_threshold_and_find_it(space, start):
  """From independent draws of the restricted law the particles stay such; from copies of one text they become such."""
  lengths, program, rows, log_p, far, query = space
  epsilon = np.float32(np.sort(far)[len(far) // 2] + 1e-4)
  inside = np.exp(log_p) * (far <= epsilon)
  inside /= inside.sum()
  rng = np.random.default_rng(2)
  if start == "the law":
    tokens, sweeps = rows[rng.choice(len(rows), N, p=inside)], 6
  else:
    tokens, sweeps = rows[[np.argmax(inside)]], 60
  state = program.begin(query, None, rng, tokens, N)
  state.pop("target_runs")
  state, proposed, accepted, done = program.sweep(
    query, None, jax.random.key(5), (epsilon, epsilon), (np.inf, sweeps), state
  )
  assert done == sweeps and len(proposed) == len(program.kinds) == (3 if lengths == (3, 3) else 5)
  assert (accepted > 0).all() and (accepted < proposed).all()
  assert (state["distance"] <= epsilon).all()
  number = numbers(rows, state["tokens"])
  np.testing.assert_allclose(state["distance"], far[number], atol=2e-5)
  law = log_p[number] + np.log(lengths[1] - lengths[0] + 1)
  np.testing.assert_allclose(state["prior"], law, atol=2e-4)
  assert fits(state["tokens"], rows, inside) > 1e-3
  outside = state["rejected_distance"][np.isfinite(state["rejected_distance"])]
  assert len(outside) and (outside > epsilon).all()


@pytest.mark.parametrize("kind", text_moves.KINDS[1:])
def test_each_move_alone_keeps_the_law(space, kind):
  lengths, program, rows, log_p, far, query = space
  number = text_moves.KINDS.index(kind)
  if number >= text_moves.INSERT and lengths == (3, 3):
    pytest.skip("texts of one length are neither longer nor shorter")
  epsilon = np.float32(np.sort(far)[2 * len(far) // 3] + 1e-4)
  inside = np.exp(log_p) * (far <= epsilon)
  inside /= inside.sum()
  rng = np.random.default_rng(3)
  state = program.begin(query, None, rng, rows[rng.choice(len(rows), N, p=inside)], N)
  state.pop("target_runs")
  # An insertion keeps the law only together with the deletion that undoes it.
  allowed = {number} if number < text_moves.INSERT else {text_moves.INSERT, text_moves.DELETE}
  weights = np.cumsum([k in allowed for k in range(len(text_moves.KINDS))]).astype(np.float32) / len(allowed)
  before = state["tokens"]
  state, *_ = program._run(query, None, jax.random.key(6), (epsilon, epsilon), (np.inf, 4), state, weights)
  assert (state["tokens"] != before).any(axis=1).mean() > 0.1
  assert fits(state["tokens"], rows, inside) > 1e-3


def test_a_run_gives_the_law_and_bits_on_one_and_on_eight_devices(space, target, meshes):
  lengths, program, rows, log_p, far, query = space
  epsilon = float(np.quantile(far, 0.2))
  inside = np.exp(log_p) * (far <= np.float32(epsilon))
  truth = -np.log2(inside.sum())
  settings = Settings(particles=512, moves=1.0, final_moves=8.0, sweeps=30)
  found = [
    MonteCarlo(target, Texts(lengths[1]), SITES, meshes(n), settings, program=one).run(query, epsilon, seed=4)
    for n, one in ((1, program), (8, programs(target, lengths, meshes(8))))
  ]
  first = found[0]
  assert first.converged and abs(first.bits - truth) < 4 * first.bits_error + 0.1
  assert fits(first.tokens, rows, inside / inside.sum()) > 1e-4
  # Texts that begin alike lie at one distance; their order among each other is not the same.
  for name in ("tokens", "rejected_tokens"):
    of = [np.unique(getattr(population, name), axis=0, return_counts=True) for population in found]
    np.testing.assert_array_equal(*(rows for rows, _ in of), err_msg=name)
    np.testing.assert_array_equal(*(counts for _, counts in of), err_msg=name)
  np.testing.assert_allclose(first.distance, found[1].distance, atol=2e-6)
  assert (first.bits, first.target_runs) == (found[1].bits, found[1].target_runs)


def test_copies_of_a_query_are_changed_at_any_distance_first(target, meshes):
  program = programs(target, (3, 3), meshes(1), heating=8)
  rows, _, z = every_text(target, (3, 3))
  state = program.begin(query_of(z[7, 3], 3), None, np.random.default_rng(0), rows[[7]], 64)
  assert state["target_runs"] == 64 * 9 and (state["moves"] == 0).all()
  same = (state["tokens"] == rows[7])[:, 1:4]
  assert (same.mean(axis=0) < 0.95).all() and len(np.unique(state["tokens"], axis=0)) > 10
  # The first of each island are not changed at all.
  assert same[[*range(3), *range(32, 35)]].all() and not same[[*range(24, 32), *range(56, 64)]].all(axis=1).any()


def test_an_inverse_cdf_draws_in_proportion_to_the_weights_and_never_a_token_without():
  rng = np.random.default_rng(0)
  p = np.where(rng.random(700) < 0.5, 0.0, rng.random(700) ** 4).astype(np.float32)
  uniform = (np.arange(50_000) + 0.5).astype(np.float32) / 50_000
  # The weights are an argument: as a constant, the compiler would compute 35 million numbers from them.
  drawn = np.asarray(jax.jit(lambda p, u: inverse_cdf(jnp.broadcast_to(p, (len(u), 700)), u))(p, uniform))
  np.testing.assert_allclose(np.bincount(drawn, minlength=700) / 50_000, p / p.sum(), atol=1e-4)
  ends = np.float32([0, np.nextafter(np.float32(1), np.float32(0))])
  assert (p[np.asarray(inverse_cdf(jnp.asarray(np.stack([p, p])), ends))] > 0).all()
