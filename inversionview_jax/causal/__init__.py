"""Causal checks: patching, ablation, direct logit attribution, verification of hypotheses, and the importance of heads."""

from inversionview_jax.causal.attribution import Attribution, Ranks, attribute, ranks
from inversionview_jax.causal.estimates import Estimate
from inversionview_jax.causal.head_importance import Head, head_shares
from inversionview_jax.causal.interventions import Effects, ablate, patch
from inversionview_jax.causal.verification import Side, Verdict, verify

__all__ = [
  "Attribution",
  "Effects",
  "Estimate",
  "Head",
  "Ranks",
  "Side",
  "Verdict",
  "ablate",
  "attribute",
  "head_shares",
  "patch",
  "ranks",
  "verify",
]
