"""Preimages by Monte Carlo: of a target without a reader, and of a reader; what they hold, and what is refused in one line."""

import dataclasses

import jax
import numpy as np
import pytest
from refusals import refusal

import inversionview_jax as iv
from inversionview_jax import tasks
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import load_reader, monte_carlo

TEXT = "615+861=1476"
TOKENS = tasks.get("addition").tokenizer.encode_batch([TEXT], 14, eos=True)
N, BUDGET = 64, 4_000

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def reader(save_small, tmp_path_factory):
  return load_reader(save_small(tmp_path_factory.mktemp("reader")))


@pytest.fixture(scope="module")
def of_target(small_target):
  """A function (site, position, ...) -> the preimage of TEXT without a reader."""
  return lambda site="a0.1", position="=", text=TEXT, **kwargs: iv.preimage(
    small_target, text, site, position, **({"particles": N, "budget": BUDGET} | kwargs)
  )


@pytest.fixture(scope="module")
def first(of_target):
  return of_target(epsilon=0.3)


def test_a_target_alone_gives_a_preimage(first, small_target):
  query = first.query
  assert (query.text, query.position, query.label, query.site) == (TEXT, 8, "=", "a0.1")
  assert list(query.tokens) == TOKENS[0].tolist() and len(query.attention) == 9
  np.testing.assert_allclose(query.activation, small_target.run(TOKENS, ["a0.1"])["a0.1"][0, 8], rtol=1e-6)
  assert (first.reader, first.task, first.method, first.epsilon) == (small_target.name, "addition", "monte_carlo", 0.3)
  assert len(first.particles) == N and first.rate == 1 and all(sample.inside for sample in first.particles)
  assert all(not sample.inside for sample in first.samples[N:]) and len(first.samples) > N
  assert first.target_runs == N * (1 + sum(level["sweeps"] for level in first.levels)) <= BUDGET
  assert first.bits > 0 and first.bits_error > 0 and first.levels[-1]["epsilon"] == np.float32(0.3)
  assert Preimage.from_json(first.to_json()) == first


def test_samples_are_inputs_with_the_targets_distances(first, small_target):
  texts = [sample.text for sample in first.samples]
  tokens = tasks.get("addition").tokenizer.encode_batch(texts, 14, eos=True)
  assert (tasks.get("addition").index(tokens) >= 0).all() and all(sample.ended for sample in first.samples)
  z = np.asarray(small_target.run(tokens, ["a0.1"])["a0.1"])
  query = np.array(first.query.activation)
  at = [sample.position for sample in first.samples]
  distance = np.linalg.norm(z[np.arange(len(z)), at] - query, axis=1) / np.linalg.norm(query)
  np.testing.assert_allclose(distance, [sample.distance for sample in first.samples], atol=2e-6)


def test_another_query_compiles_nothing_and_the_same_one_gives_the_same(of_target, first, caplog):
  with jax.log_compiles():
    again = of_target(epsilon=0.3)
    other = of_target("x1.post", "A1", text="123+456=579", epsilon=0.4, seed=1)
  assert not [record for record in caplog.records if "Compiling" in record.getMessage()]
  assert again == first and other.query.site == "x1.post"


def test_a_small_budget_is_an_answer(of_target):
  preimage = of_target("x1.post", "=", epsilon=1e-4, budget=1)
  assert preimage.converged is False and "epsilon was not reached" in preimage.problem and preimage.bits is None
  assert f"0 of {N} particles inside" in str(preimage) or f"1 of {N} particles inside" in str(preimage)
  assert "not converged: epsilon was not reached" in str(preimage)


def test_progress_counts_target_runs(of_target):
  seen = []
  of_target(epsilon=0.3, progress=lambda done, total: seen.append((done, total)))
  assert seen[0] == (0, BUDGET) and seen[-1] == (BUDGET, BUDGET) and seen == sorted(seen)

  class Stop(Exception):
    pass

  def stop(done, total):
    raise Stop

  with pytest.raises(Stop):
    of_target(epsilon=0.3, progress=stop)


def test_a_reader_samples_from_the_prior_and_from_its_candidates(reader):
  settings = {"epsilon": 0.3, "particles": N, "budget": BUDGET}
  prior = reader.preimage(TEXT, "a0.1", "=", method="monte_carlo", **settings)
  assert (prior.method, prior.reader) == ("monte_carlo", reader.target.name) and prior.bits is not None
  both = reader.preimage(TEXT, "a0.1", "=", method="decoder+monte_carlo", num_samples=40, **settings)
  assert (both.method, both.reader, both.bits) == ("decoder+monte_carlo", reader.name, None)
  assert len(both.particles) == N and both.query == prior.query
  assert reader.preimage(TEXT, "a0.1", "=", num_samples=40).method == "decoder"


def test_bad_input_is_one_line_that_names_it(of_target, reader, small_target):
  assert "monte_carlo" in refusal(reader.preimage, TEXT, "a0.1", "=", method="mcmc")
  assert "temperatures belongs to the decoder" in refusal(
    reader.preimage, TEXT, "a0.1", "=", method="monte_carlo", temperatures=2.0
  )
  assert "use a multiple of 16" in refusal(of_target, particles=24)
  assert "particles = 1 " in refusal(of_target, particles=1)
  assert "budget = 0 " in refusal(of_target, budget=0)
  assert "seed = -1 " in refusal(of_target, seed=-1)
  assert "epsilon" in refusal(of_target, epsilon=0)
  assert "unknown position" in refusal(of_target, "a0.1", "Q9")
  assert "a9.0" in refusal(of_target, "a9.0")
  assert "another tokenizer" in refusal(of_target, task="counting")
  orphan = dataclasses.replace(small_target, task="", _task=None)
  assert "belongs to no task" in refusal(iv.preimage, orphan, TEXT, "a0.1", "=")

  class Still(type(tasks.get("addition"))):
    enumerable = False
    moves, log_prior = tasks.Task.moves, tasks.Task.log_prior

  assert "has no moves and no log_prior" in refusal(of_target, task=Still())


def test_few_sites_share_a_program_and_others_have_their_own(small_target):
  task, site = tasks.get("addition"), small_target.site
  assert monte_carlo._sites(small_target, task, site("a0.1")) == tuple(map(site, task.default_sites(2, 2)))
  assert monte_carlo._sites(small_target, task, site("m1")) == (site("m1"),)


def test_the_front_door_has_the_function_and_the_folder_keeps_its_name():
  from inversionview_jax.preimage import FORMAT

  assert iv.preimage is monte_carlo.preimage and FORMAT == "inversionview-preimage"
