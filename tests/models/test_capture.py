"""What a capture keeps in memory besides what it returns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import sites, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.sampling import collect

pytestmark = pytest.mark.optimized

TASK = tasks.get("addition")
SITES = sites.enumerate_sites(2, 2)


@pytest.mark.parametrize("each", [1, 2])
def test_one_position_of_each_site_is_what_a_whole_capture_has_there(small_target, each):
  tokens = TASK.tokens(np.arange(5))
  at = np.random.default_rng(0).integers(0, 10, (5, each * len(SITES))).astype(np.int32)
  activations = collect.activations_each(small_target.module, small_target.params, tokens, at, SITES)
  run = small_target.run(tokens, SITES)
  for column in range(at.shape[1]):
    expected = np.asarray(run[SITES[column % len(SITES)]])[np.arange(5), at[:, column]]
    np.testing.assert_allclose(activations[:, column], expected, atol=1e-5)


@pytest.mark.parametrize(
  "layers, width, length, piece",
  [(4, 192, 8, 2**20), pytest.param(12, 768, 24, collect._PIECE, marks=pytest.mark.slow)],
)
def test_capturing_all_sites_takes_no_more_than_twice_what_it_returns(layers, width, length, piece, monkeypatch):
  """All sites (157 in GPT-2 small) at a position of its own each, for 256 texts, what is returned included; and one site of them per text.

  Only compiled, so the size costs nothing.
  """
  monkeypatch.setattr(collect, "_PIECE", piece)  # the small one would go in one piece
  config = TransformerConfig(vocab_size=50257, n_ctx=1024, n_layers=layers, n_heads=12, d_model=width, d_mlp=4 * width)
  module = Transformer(config)
  listed = tuple(map(sites.parse, tasks.IOI.default_sites(None, layers, 12)))
  assert len(listed) == 1 + 13 * layers
  params = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32)))["params"]
  rows, at = jax.ShapeDtypeStruct((256, length), jnp.int32), jax.ShapeDtypeStruct((256, len(listed)), jnp.int32)

  def taken(run, *arguments):
    program = parallel.jit(run)
    return program.lower(params, *arguments).compile().memory_analysis()

  vectors = len(listed) * 256 * width * 4
  each = taken(lambda params, rows, at: collect.activations_each(module, params, rows, at, listed), rows, at)
  assert each.output_size_in_bytes == vectors
  assert each.temp_size_in_bytes + each.output_size_in_bytes <= 2 * vectors
  one = jax.ShapeDtypeStruct((256, 1), jnp.int32)
  chosen = taken(lambda *args: collect.activations_at(module, *args, listed), rows, one, one)
  assert chosen.temp_size_in_bytes <= 2 * vectors


@pytest.mark.parametrize("piece, pieces", [(2**30, 1), (8100, 2), (1, 6)])
def test_texts_taken_in_pieces_give_what_all_at_once_do(small_target, monkeypatch, piece, pieces):
  monkeypatch.setattr(collect, "_PIECE", piece)
  tokens, calls = TASK.tokens(np.arange(6)), []

  def run(tokens, more):
    calls.append(len(tokens))
    return tokens + more[:, None], more

  sums, more = collect.in_pieces(small_target, run, tokens, np.arange(6))
  assert calls == [6 // pieces]
  np.testing.assert_array_equal(sums, tokens + np.arange(6)[:, None])
  np.testing.assert_array_equal(more, np.arange(6))
