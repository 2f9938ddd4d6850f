"""Factual recall: a study of any language model without a decoder, and the paper's reader of GPT-2 XL.

    inversionview study --config factual:smollm2 --workdir W      # also :gemma3, :gpt2, :gpt2_xl; see inversionview_jax/studies

The paper's reader reads 25 heads of the upper half, and its decoder starts from GPT-2 medium:

    inversionview heads --config configs/factual.py --target GPT2_XL --known --first-layer 24 --json heads.json
    inversionview train --config configs/factual.py --target GPT2_XL --config.init_from=GPT2_MEDIUM --workdir W --config.sites="('a24.3','a24.5')"

The first command finds the sites for the second. Not run at this size: 32 million pairs through 1.5 and 0.4 billion parameters need several
accelerators. Data and procedure: configs/README.md. `:bundled` takes this package's own 534 prompts and needs no download; `:tiny` also a small decoder.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "bundled", "tiny", *blocks.MODELS)


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("factual")
  config.target = blocks.language_target()
  config.inputs = ConfigDict(
    {
      "sources": ("counterfact", "bear", "minipile"),  # also "bundled", and "files" with .jsonl files of your own
      "files": (),
      "length": 40,
      "vocabulary": "all",  # "data": the tokens that occur
      "positions": ("END",),  # of facts; also "SUBJ"
      "bos_attention": 0.6,  # heads are read where their attention to BOS is below
      "rare": 2e-5,  # tokens with a smaller share of all are rare
      "limit": 0,  # texts of each source; 0: all
      "data_dir": "",  # where TFDS keeps datasets
      "manual_dir": "",  # where downloaded files lie
    }
  )
  config.sites = ()  # must be set, see above
  config.init_from = "gpt2-medium"  # a folder
  # The rest of the shape is GPT-2 medium's.
  config.model = ConfigDict({"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_resid": 0.1})
  blocks.schedule(config, batch_size=128, steps=250_000, eval_every=10_000)  # 160 x 200,000 pairs
  config.eval_queries, config.final_queries = 32, 200  # per site
  if variant != "full":
    config.inputs.sources = ("bundled",)
  config.study = ConfigDict(
    {
      "heads": 12,  # that write most at END
      "by_effect": 6,  # with the largest direct effect on the answer, besides
      "by_patching": 10,  # of all layers, from whose patching most is expected, besides
      "first_layer": -1,  # of them; -1: the upper half
      "known": 96,  # facts that the model knows
      "tried": 700,  # prompts that are tried for them
      "only_known": True,  # False: facts that it does not know, too
      "queries": 24,  # whose preimages are found
      "pairs": 16,  # of patching
      "pool": 0,  # inputs among which preimages are sought; 0: all
      "shown": 2,  # preimages of each head on the page
      "seed": 0,
    }
  )
  if variant in blocks.MODELS:
    config.target = blocks.language_target(blocks.model_path(variant))
    config.inputs.sources, config.inputs.length = ("composed",), 30
  if variant == "tiny":
    blocks.tiny_language_reader(config)
    config.inputs.vocabulary = "data"
    config.sites = ("a0.0", "a1.1")
    config.init_from = ""
    config.pairs_per_text = 2
  return config
