"""Activations that are exactly zero, of a compiled program: the same distances by every method (`distance`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("tracr", reason="pip install '.[tracr]'")

import inversionview_jax as iv
from inversionview_jax.models import decoder
from inversionview_jax.models.config import TransformerConfig
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.reading import Reader
from inversionview_jax.reading.source import Source
from inversionview_jax.show.explorer.service import Service
from inversionview_jax.show.explorer.state import View

pytestmark = pytest.mark.usefixtures("quick_to_compile")
NAME, TEXT, SITE, LABEL, COLUMN = (
  "tracr:frac_prevs",
  "bcab",
  "a1.0",
  "i1",
  2,
)  # neither of the first two is an a: a fraction of 0
METRICS = ("euclidean", "cosine")


@pytest.fixture(scope="module")
def target():
  return iv.load_target(NAME)


@pytest.fixture(scope="module")
def right(target):
  """The texts that put zero there, or what softmax leaves of it."""
  task = target.resolve_task()
  tokens = task.tokens(np.arange(task.num_inputs))
  zero = np.linalg.norm(np.asarray(target.run(tokens, [SITE])[SITE])[:, COLUMN], axis=-1) < 1e-12
  zero &= np.asarray(task.counted_mask(tokens))[:, COLUMN]
  texts = {task.tokenizer.text(row) for row in tokens[zero]}
  assert TEXT in texts and 100 < len(texts) < len(tokens) / 2
  return texts


@pytest.mark.parametrize("metric", METRICS)
def test_exact(target, right, metric):
  source = Source.of(target, "exact")
  found = source.preimage({"text": TEXT, "site": SITE, "position": LABEL, "metric": metric, "match": "position"})
  assert {sample.text for sample in found.inside} == right
  outside = np.array([sample.distance for sample in found.samples if not sample.inside])
  outside = outside[outside != np.inf]  # of texts without that position
  assert len(outside) and (outside >= 1).all() and np.isfinite(outside).all()


@pytest.mark.parametrize("metric", METRICS)
def test_monte_carlo_and_its_bits(target, right, metric):
  found = iv.preimage(target, TEXT, SITE, LABEL, metric=metric, match="position", particles=256, budget=20_000)
  texts = {sample.text for sample in found.inside}
  assert texts <= right and len(texts) > 0.6 * len(right)
  assert abs(found.bits - np.log2(target.resolve_task().num_inputs / len(right))) < 0.5


@pytest.mark.parametrize("metric", METRICS)
def test_explorer(right, metric):
  service = Service([], [NAME])
  name = next(iter(service.sources.names))
  view = View(name, TEXT, SITE, LABEL, metric=metric, match="position", particles=256, budget=20_000)
  assert {sample.text for sample in service.preimage(view).inside} <= right
  source = service.source(name)
  assert service.start(name)["site"] == "x0.post" and source.sites[-1] == "x1.post"


@pytest.mark.parametrize("metric", METRICS)
def test_candidates_of_a_decoder(target, random_variables, metric):
  task, t = target.resolve_task(), target.tokenizer
  config = DecoderConfig(
    TransformerConfig(t.vocab_size, task.length, 1, 2, 16, 32), (SITE,), target.config.d_model, encoder_blocks=1,
    encoder_width=20, n_slots=2, normalize="standard", forbidden=(t.bos_id, t.pad_id),
  )  # fmt: skip
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.d_activation)), jnp.zeros(1, jnp.int32)
  params = random_variables(0.3, 1, Decoder(config), *blank)["params"]
  stats = decoder.statistics(np.zeros((8, config.d_activation)), np.zeros(8, int), 1, "standard")  # nothing but zeros
  reader = Reader(target, task, config, jax.tree.map(jnp.asarray, {"params": params, "stats": {"encoder": stats}}))
  how = {"metric": metric, "match": "position", "method": "decoder", "num_samples": 128, "effects": False}
  found = reader.preimage(TEXT, SITE, LABEL, **how)
  assert 0 < len(found.inside) < len(found.samples)
  whole = [
    sample for sample in found.samples if sample.position == COLUMN and len(sample.tokens) <= task.program.longest
  ]
  tokens = task.tokenizer.encode_batch([sample.text for sample in whole], task.length, eos=True)
  written = np.asarray(target.run(tokens, [SITE])[SITE])[:, COLUMN]
  for sample, zero in zip(whole, np.linalg.norm(written, axis=-1) < 1e-12, strict=True):
    assert sample.inside == zero and (sample.distance == 0 if zero else sample.distance >= 1)
