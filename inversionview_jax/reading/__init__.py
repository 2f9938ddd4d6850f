"""`Reader`: a target, its task and a decoder; queries in, preimages out. `preimage`: the same of a target alone, by Monte Carlo."""

from inversionview_jax.reading.loading import load_reader, shipped_readers
from inversionview_jax.reading.log_prob import log_probs, mixture_log_prob
from inversionview_jax.reading.monte_carlo import preimage
from inversionview_jax.reading.reader import Reader
from inversionview_jax.reading.requests import Request

__all__ = ["Reader", "Request", "load_reader", "log_probs", "mixture_log_prob", "preimage", "shipped_readers"]
