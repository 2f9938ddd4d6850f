"""The epsilon-preimage of an activation as plain data, and its display in a terminal, a notebook and a page; needs no JAX."""

from inversionview_jax.preimage.data import Preimage, Query, Sample
from inversionview_jax.preimage.json_format import FORMAT

__all__ = ["FORMAT", "Preimage", "Query", "Sample"]
