"""Measures of readers and readings: rates, coverage of exact preimages, feature consistency, information in bits, evaluation."""

import importlib
from typing import TYPE_CHECKING

from inversionview_jax.measures.consistency import (
  ActivationReading,
  FeatureConsistency,
  Members,
  activation_reading,
)
from inversionview_jax.measures.rates import Rate

if TYPE_CHECKING:
  from inversionview_jax.measures.coverage import Completeness, ExactComparison, compare_with_exact, completeness
  from inversionview_jax.measures.evaluation import Evaluation, evaluate
  from inversionview_jax.measures.held_out import HeldOutQueries, held_out_queries, held_out_requests
  from inversionview_jax.measures.information import Information, InformationResult
  from inversionview_jax.measures.methods import MethodComparison, MethodResult, compare_methods
  from inversionview_jax.measures.readings import Readings, read

# Saved preimages are read without JAX: modules that need it are imported when one of these names is first used.
_LAZY = {
  "Completeness": "coverage",
  "Evaluation": "evaluation",
  "ExactComparison": "coverage",
  "HeldOutQueries": "held_out",
  "Information": "information",
  "InformationResult": "information",
  "MethodComparison": "methods",
  "MethodResult": "methods",
  "Readings": "readings",
  "compare_methods": "methods",
  "compare_with_exact": "coverage",
  "completeness": "coverage",
  "evaluate": "evaluation",
  "held_out_queries": "held_out",
  "held_out_requests": "held_out",
  "read": "readings",
}
__all__ = [
  "ActivationReading",
  "Completeness",
  "Evaluation",
  "ExactComparison",
  "FeatureConsistency",
  "HeldOutQueries",
  "Information",
  "InformationResult",
  "Members",
  "MethodComparison",
  "MethodResult",
  "Rate",
  "Readings",
  "activation_reading",
  "compare_methods",
  "compare_with_exact",
  "completeness",
  "evaluate",
  "held_out_queries",
  "held_out_requests",
  "read",
]


def __getattr__(name: str) -> object:
  if name in _LAZY:
    return getattr(importlib.import_module(f"inversionview_jax.measures.{_LAZY[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
