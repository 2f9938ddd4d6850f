"""Indirect object identification in GPT-2 small, as in the paper: 157 sites (x0.pre, 144 heads, 12 MLPs), every position.

    inversionview train --config configs/ioi.py --target GPT2_FOLDER --workdir W

GPT2_FOLDER is a Hugging Face folder with config.json, model.safetensors and tokenizer.json. The decoder has two layers over the whole
vocabulary of GPT-2 and is trained on 100 times 200,000 pairs: hours on an accelerator, not for a CPU (`configs/ioi_smollm2.py` is). Not run at
this size. Variant `:tiny` runs in tests, on a random GPT-2 of two layers.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "tiny")


def get_config(variant: str = "full") -> ConfigDict:
  """The paper's settings, or the smallest that run."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("ioi")
  config.target = blocks.language_target()
  config.inputs = ConfigDict({"vocabulary": "all", "positions": ()})  # any token, at every position
  blocks.schedule(config, batch_size=128, steps=156_250, eval_every=10_000)  # 100 x 200,000 pairs
  config.eval_queries, config.final_queries = 8, 200  # per site
  if variant == "tiny":
    blocks.tiny_language_reader(config, queries=2)
    config.inputs.vocabulary = "task"
  return config
