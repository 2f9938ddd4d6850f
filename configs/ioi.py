"""Indirect object identification: a study of any language model without a decoder, and the paper's reader of GPT-2 small.

    inversionview study --config ioi:smollm2 --workdir W      # also :gemma3, :gpt2, :gpt2_xl

measures all heads, reads those that matter at S1+1, S2 and END, and names their roles; see configs/language_models.md.

The paper's reader has 157 sites (x0.pre, 144 heads, 12 MLPs), at every position:

    inversionview train --config configs/ioi.py --target GPT2_FOLDER --workdir W

GPT2_FOLDER is a Hugging Face folder with config.json, model.safetensors and tokenizer.json. The decoder has two layers over the whole
vocabulary of GPT-2 and is trained on 100 times 200,000 pairs: hours on an accelerator, not for a CPU (`configs/ioi_smollm2.py` is). Not run at
this size. Variant `:tiny` runs in tests, on a random GPT-2 of two layers.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "tiny", *blocks.MODELS)


def get_config(variant: str = "full") -> ConfigDict:
  """The paper's settings, or the smallest that run."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("ioi")
  config.target = blocks.language_target()
  config.inputs = ConfigDict({"vocabulary": "all", "positions": ()})  # any token, at every position
  blocks.schedule(config, batch_size=128, steps=156_250, eval_every=10_000)  # 100 x 200,000 pairs
  config.eval_queries, config.final_queries = 8, 200  # per site
  config.study = ConfigDict(
    {
      "prompts": 32,  # on which all heads are measured
      "names": 8,  # of which the prompts of preimages have two
      "pairs": 12,  # of patching
      "end_direct": 8,  # heads at END with the largest direct effect
      "end_patched": 4,  # with the largest effect of patching to first order, besides
      "s2_patched": 6,  # heads at S2
      "s1_attending": 4,  # heads at S1+1 that attend most to S1
      "queries": 12,  # whose preimages are found
      "pool": 2048,  # inputs among which they are sought
      "shown": 2,  # preimages of each place on the page
      "seed": 0,
    }
  )
  if variant in blocks.MODELS:
    config.target = blocks.language_target(blocks.model_path(variant))
  if variant == "tiny":
    blocks.tiny_language_reader(config, queries=2)
    config.inputs.vocabulary = "task"
  return config
