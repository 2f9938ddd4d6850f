"""Language models that read preimages, and the test of their readings; needs no JAX."""

from inversionview_jax.interpret.hypotheses import (
  PreimageGroup,
  Score,
  group_preimages,
  load,
  parse,
  prompt,
  prompt_hash,
  score,
)
from inversionview_jax.interpret.language_model import Answer, Endpoint, ask, cost, replayed

__all__ = [
  "Answer",
  "Endpoint",
  "PreimageGroup",
  "Score",
  "ask",
  "cost",
  "group_preimages",
  "load",
  "parse",
  "prompt",
  "prompt_hash",
  "replayed",
  "score",
]
