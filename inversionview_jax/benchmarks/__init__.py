"""Benchmarks: what training, queries, capture and enumeration cost on this machine, beside PyTorch; and whether a device gives the right numbers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from inversionview_jax.benchmarks.jobs import SIZES, Jobs, Size
  from inversionview_jax.benchmarks.timing import Case, Side, machine, matmul_peak, measured

# `device.check` starts a process for each of its parts and must not hold a device itself, so nothing here imports JAX before it is used.
_LAZY = {name: "jobs" for name in ("SIZES", "Jobs", "Size")} | {
  name: "timing" for name in ("Case", "Side", "machine", "matmul_peak", "measured")
}
__all__ = ["SIZES", "Case", "Jobs", "Side", "Size", "machine", "matmul_peak", "measured"]


def __getattr__(name: str) -> object:
  if name in _LAZY:
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
