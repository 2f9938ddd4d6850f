"""The epsilon-preimage of an activation as plain data, and how it is shown; needs no JAX."""

from inversionview_jax.preimage.data import FORMAT, Preimage, Query, Sample

__all__ = ["FORMAT", "Preimage", "Query", "Sample"]
