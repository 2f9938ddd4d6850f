"""Which heads of a language model bring a fact to its last token: activation patching between facts of the same relation.

    inversionview patch --config verify_factual --target CHECKPOINT --out W

"The capital of France is" runs with a head's activation at END of "The capital of Italy is"; the outcome is the logit of the answer's first token
minus that of the other answer's. Facts are this package's own unless `inputs.sources` names others (configs/factual.py). For pairs of your own
see configs/verify_text.py, and for the paper's way to find heads `inversionview heads --task factual --known`.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("heads", "residual")


def get_config(variant: str = "heads") -> ConfigDict:
  """Every head by itself at END; or, as "residual", the residual stream before the first layer, at the last token of the subject."""
  blocks.check_variant(variant, VARIANTS, __file__, "experiment")
  config = blocks.experiments("factual", pairs=100, batch_size=16)
  config.target = blocks.language_target()
  config.inputs = ConfigDict({"sources": ("bundled",), "length": 40, "data_dir": "", "manual_dir": ""})
  config.experiments[variant] = ConfigDict(
    {
      "kind": "patch",
      "about": "activations of another fact of the same relation put into this one",
      "contrast": {"where": ""},
      "addresses": () if variant == "heads" else ("x0.pre@SUBJ",),
      "position": "END",
      "orders": ("each",),
    }
  )
  return config
