"""Preimages of a language model among the texts that it writes itself: what they hold, that the target confirms them, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import refusal
from small_models import gpt2_folder

import inversionview_jax as iv
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import Reader, text_prior
from inversionview_jax.reading.requests import Request, resolve
from inversionview_jax.targets import load_target, task_and_target

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


@pytest.fixture(scope="module")
def reader(folder, random_variables):
  """A reader with a random decoder of the same model, over its own texts of at most ten tokens."""
  task, target = task_and_target("text", folder, settings={"length": 12})
  t, shape = task.tokenizer, {"n_ctx": 12, "n_layers": 1, "n_heads": 2, "d_model": 16, "d_mlp": 32}
  config = DecoderConfig(
    TransformerConfig(vocab_size=t.vocab_size, **shape),
    ("x0.mid", "a1.0"),
    target.config.d_model,
    encoder_blocks=1,
    encoder_width=20,
    n_slots=2,
    forbidden=(t.bos_id, t.pad_id),
  )
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.d_activation)), jnp.zeros(1, jnp.int32)
  params = random_variables(0.1, 0, Decoder(config), *blank)["params"]
  activations, site = np.random.default_rng(0).normal(size=(64, config.d_activation)), np.arange(64) % 2
  stats = {"encoder": decoder.statistics(activations, site, 2, config.normalize)}
  return Reader(target, task, config, jax.tree.map(jnp.asarray, {"params": params, "stats": stats}), "random")


def test_a_decoder_writes_the_texts_to_begin_with(target, reader):
  few = {**FEW, "epsilon": 0.6, "growth": 2}
  preimage = iv.preimage(target, TEXT, "x0.mid", "END", start=reader, **few)
  assert preimage.method == "decoder+monte_carlo" and preimage.bits is None
  assert preimage.rate == 1 and len(preimage.particles) == N
  assert preimage.target_runs >= text_prior.CANDIDATES * N
  z = np.array(preimage.query.activation)
  for sample in preimage.samples:
    here = np.asarray(target.run(np.array([[preimage.query.tokens[0], *sample.tokens]]), ["x0.mid"])["x0.mid"])[
      0, sample.position
    ]
    assert sample.distance == pytest.approx(1 - here @ z / np.linalg.norm(here) / np.linalg.norm(z), abs=1e-5)


def test_texts_to_begin_with_are_the_query_and_others_of_allowed_lengths_by_distance(target, reader):
  prior = text_prior.text_prior(target, TEXT, "model", 1, reader)
  t, request = prior.task.tokenizer, resolve(Request(TEXT, "x0.mid", "END", 0.6), 0, prior.task)
  z = np.asarray(target.run([TEXT], ["x0.mid"])["x0.mid"])[0, request.position]
  rows = text_prior.written_for(reader, z, prior, target.site("x0.mid"), request, 64, 0)
  lengths = (rows == t.eos_id).argmax(axis=1) - 1
  assert t.text(rows[0].tolist()) == TEXT and len(rows) > 10
  assert set(lengths) <= set(range(prior.lengths[0], prior.lengths[1] + 1))
  distances = []
  for row, length in zip(rows[1:], lengths[1:], strict=True):
    here = np.asarray(target.run(row[None, : length + 1], ["x0.mid"])["x0.mid"])[0, 1:]
    distances.append((1 - here @ z / np.linalg.norm(here, axis=-1) / np.linalg.norm(z)).min())
  assert (np.diff(distances) > -1e-5).all() and distances[0] < distances[-1]


def test_a_reader_of_another_model_or_for_several_activations_is_refused(target, reader, small_target, small_decoder):
  other = Reader(small_target, small_target.resolve_task(), *small_decoder, "other")
  assert "is of another model, with another tokenizer" in refusal(
    iv.preimage, target, TEXT, "x0.mid", "END", start=other, **FEW
  )
  several = refusal(iv.preimage, target, TEXT, ["x0.mid", "a1.0"], "END", start=reader, **FEW)
  assert "writes for one whole activation" in several


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
