"""Preimages of a language model among the texts that it writes itself: what they hold, that the target confirms them, and what is refused."""

import jax
import numpy as np
import pytest
from refusals import refusal
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import text_prior
from inversionview_jax.targets import load_target

pytestmark = pytest.mark.usefixtures("quick_to_compile")

TEXT = "Mary went to the store"
N = 16
FEW = {"prior": "model", "particles": N, "budget": 40 * N}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return gpt2_folder(tmp_path_factory.mktemp("models") / "tiny-gpt2", context=24)


@pytest.fixture(scope="module")
def target(folder):
  return load_target(folder)


@pytest.fixture(scope="module")
def first(target):
  return iv.preimage(target, TEXT, "a1.0", "END", epsilon=0.4, growth=1, **FEW)


def test_particles_lie_inside_epsilon_as_the_target_itself_confirms(first, target):
  query, length = first.query, len(target.tokenizer.encode(TEXT))
  assert (query.text, query.label, query.position, query.site) == (TEXT, "END", length, "a1.0")
  assert len(query.tokens) == length + 1 and len(query.attention) == length + 1
  assert (first.method, first.task, first.reader, first.metric) == ("query+monte_carlo", "text", "tiny-gpt2", "cosine")
  assert first.rate == 1 and len(first.particles) == N and first.bits is None
  assert {len(sample.tokens) for sample in first.samples} <= {length - 1, length, length + 1}
  z = np.array(query.activation)
  for sample in first.samples:
    run = target.run(np.array([[query.tokens[0], *sample.tokens]]), ["a1.0"])
    here = np.asarray(run["a1.0"])[0, sample.position]
    assert sample.distance == pytest.approx(1 - here @ z / np.linalg.norm(here) / np.linalg.norm(z), abs=1e-5)
    assert sample.inside == (sample.distance <= np.float32(0.4)) and sample.ended
  assert {sample.text for sample in first.particles} - {TEXT}
  assert Preimage.from_json(first.to_json()) == first


def test_the_same_seed_gives_the_same_and_another_query_compiles_nothing(first, target, caplog):
  with jax.log_compiles():
    again = iv.preimage(target, TEXT, "a1.0", "END", epsilon=0.4, growth=1, **FEW)
    other = iv.preimage(target, TEXT, "a1.0", 2, epsilon=0.5, match="position", growth=1, seed=1, **FEW)
  assert again == first
  assert other.query.position == 2 and {sample.position for sample in other.samples} == {2}
  assert not [r for r in caplog.records if "Finished XLA compilation of jit(_sweeps)" in r.getMessage()]


def test_texts_that_the_model_writes_give_bits(target):
  preimage = iv.preimage(target, TEXT, "a1.0", 1, match="position", start="prior", epsilon=0.6, growth=1, **FEW)
  assert preimage.method == "monte_carlo" and preimage.bits is not None and preimage.bits_error is not None
  length = len(target.tokenizer.encode(TEXT))
  assert {len(sample.tokens) for sample in preimage.samples} <= {length - 1, length, length + 1}


@pytest.mark.slow
def test_one_token_at_several_sites(target):
  preimage = iv.preimage(target, " Mary", ["a0.0", "x1.post"], "END", epsilon=0.7, **FEW)
  assert len(preimage.query.tokens) == 2 and len(preimage.others) == 1
  assert len(preimage.particles) == N and {len(sample.tokens) for sample in preimage.samples} == {1}


def test_what_cannot_be_sampled_is_refused_in_one_line(target, folder, small_target):
  def of(read=target, text=TEXT, site="x0.mid", position="END", **kwargs):
    return refusal(iv.preimage, read, text, site, position, **({"prior": "model"} | kwargs))

  assert "load it without layers=" in of(load_target(folder, layers=1))
  assert "is for language models" in of(small_target)
  assert "longer than the model's context of 24" in of(text=" ".join(["Mary"] * 30))
  assert "or lower growth" in of(growth=20)
  assert "has no tokens" in of(text="")
  assert "special token" in of(text="Mary<|endoftext|>")
  assert "unknown position 'END2': 'Mary went to the store' has the positions END" in of(position="END2")
  assert "unknown prior 'modle': did you mean model?" in of(prior="modle")
  assert "unknown start 'decoder'" in of(start="decoder")
  assert "growth = -1 must be" in of(growth=-1)
  assert "use a multiple of 16" in of(particles=24)
  assert "give task or prior, not both" in of(task="text")
  assert "belong to prior='model'" in of(prior=None, growth=1)
  assert "x9.mid" in of(site="x9.mid")


def test_too_many_texts_for_memory_are_refused(target, monkeypatch):
  monkeypatch.setattr(text_prior, "_CACHE", 20_000)
  message = refusal(iv.preimage, target, TEXT, "x0.mid", "END", prior="model", particles=128)
  assert "GiB of keys and values" in message and "use at most" in message
