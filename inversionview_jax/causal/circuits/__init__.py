"""Circuits: the smallest set of heads and MLPs at positions that keeps an answer, what each of them carries, and how they are connected."""

from inversionview_jax.causal.circuits.find import circuit
from inversionview_jax.causal.circuits.result import Circuit, CircuitNode

__all__ = ["Circuit", "CircuitNode", "circuit"]
