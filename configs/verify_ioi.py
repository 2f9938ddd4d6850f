"""Causal experiments on indirect object identification, in any GPT-2 or Llama-family checkpoint.

    inversionview patch --config verify_ioi:names --target CHECKPOINT --out W    # which heads write the names (paper, 4.3)
    inversionview patch --config verify_ioi:S2 --target CHECKPOINT --out W       # every head at END, patched by itself

CHECKPOINT is a Hugging Face folder or a .gguf file. The result for SmolLM2-135M is in configs/README.md.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("all", "names", "S2")


def get_config(variant: str = "all") -> ConfigDict:
  """All experiments, or the one of this name."""
  blocks.check_variant(variant, VARIANTS, __file__, "experiment")
  config = blocks.experiments("ioi", pairs=1_000, batch_size=32)
  config.target = blocks.language_target()
  # The names are ranked among all tokens, so the target keeps its whole vocabulary.
  config.inputs = ConfigDict({"vocabulary": "all", "positions": ()})
  experiments = config.experiments
  if variant in ("all", "names"):
    experiments.names = ConfigDict(
      {
        "kind": "attribute",
        "about": "direct logit attribution of heads at END: are the names among the tokens raised or lowered most?",
        "position": "END",
        "roles": ("IO", "S1"),
        "components": (),  # none: every head
        "top": 30,
      }
    )
  if variant in ("all", "S2"):
    experiments.S2 = ConfigDict(
      {
        "kind": "patch",
        "about": "the other name is named a second time: every head at END, one by one",
        "contrast": {"kind": "S2", "where": ""},
        "addresses": (),
        "position": "END",
        "orders": ("each",),
      }
    )
  return config
