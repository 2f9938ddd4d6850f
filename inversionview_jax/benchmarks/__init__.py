"""Benchmarks: what training, queries, capture and enumeration cost on this machine, beside PyTorch."""

from inversionview_jax.benchmarks.jobs import SIZES, Jobs, Size
from inversionview_jax.benchmarks.timing import Case, Side, machine, matmul_peak, measured

__all__ = ["SIZES", "Case", "Jobs", "Side", "Size", "machine", "matmul_peak", "measured"]
