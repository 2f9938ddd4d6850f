"""Which heads of a language model move an answer: activation patching over pairs of texts from a file.

    inversionview patch --config verify_text --target CHECKPOINT --out W --config.experiments.heads.contrast.file=pairs.jsonl

Every line of the file is a pair: {"clean": "The capital of France is", "corrupted": "The capital of Italy is", "answer": "Paris", "foil":
"Rome"}. The outcome is the logit of the answer minus that of the foil at the last token (their first tokens, after a space). Sites and positions
are written as in configs/verify_addition.py; END or -1 is the last token; an index needs texts of the same length.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("heads", "residual")


def get_config(variant: str = "heads") -> ConfigDict:
  """Every head by itself at the last token; or, as "residual", the residual stream between layers there."""
  blocks.check_variant(variant, VARIANTS, __file__, "experiment")
  config = blocks.experiments(
    "text", pairs=1_000, batch_size=32
  )  # `split` has no effect: the pairs are those of the file
  config.target = blocks.language_target()
  config.inputs = ConfigDict({})
  config.experiments[variant] = ConfigDict(
    {
      "kind": "patch",
      "about": "activations of the corrupted text put into the clean one, at the last token",
      "contrast": {"file": "pairs.jsonl"},
      "addresses": () if variant == "heads" else ("x0.post@END",),
      "position": "END",
      "orders": ("each",),
    }
  )
  return config
