"""Ways to a preimage: candidates of a decoder, exact enumeration; and the activations a decoder is trained on."""

from inversionview_jax.sampling.candidates import Candidates, Queries, Rows, mixture_rows, one_row_per_query
from inversionview_jax.sampling.collect import Pairs
from inversionview_jax.sampling.exact import Distances, ExactPreimage, every_input
from inversionview_jax.sampling.generation import generate
from inversionview_jax.sampling.mixtures import add_noise, draw_mixture
from inversionview_jax.sampling.sampler import Sampler, bos_activations

__all__ = [
  "Candidates",
  "Distances",
  "ExactPreimage",
  "Pairs",
  "Queries",
  "Rows",
  "Sampler",
  "add_noise",
  "bos_activations",
  "draw_mixture",
  "every_input",
  "generate",
  "mixture_rows",
  "one_row_per_query",
]
