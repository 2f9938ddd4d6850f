"""Indirect object identification in SmolLM2-135M-Instruct: a reader of a real language model, trained on one CPU core.

    python launch/fetch_smollm2.py                                  # prints where the model is; 98 MB
    inversionview train --config ioi_smollm2 --target THAT_FILE --workdir W
    inversionview view "Then, Mary and John went to the store. John gave a drink to Mary" --reader launch/readers/ioi_smollm2 --site a23.3 --position END

Result, after 56 minutes on one core of 2.1 GHz with other work beside: in-epsilon rate 0.907, mean over 11 sites (random prompts: 0.285).
How the sites were chosen, rates by site and position, and readings that were checked: configs/README.md.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "tiny")
SITES = (
  "x0.pre", "x8.post", "x14.post", "x17.post", "x20.post", "x23.mid", "a23.0", "a23.1", "a23.2", "a23.3", "a24.4",
)  # fmt: skip


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("ioi")
  config.target = blocks.language_target()
  config.inputs = ConfigDict(
    {
      "vocabulary": "task",  # the decoder writes the tokens of these prompts only; "all": any token
      "positions": ("S1", "S1+1", "IO", "S2", "END"),  # where queries are taken; (): everywhere
    }
  )
  config.sites = SITES
  config.model = blocks.transformer(128)
  config.encoder_blocks, config.encoder_width, config.n_slots = 3, 256, 8
  config.normalize = "standard"
  config.pairs_per_text = 32  # the target is the larger part of a step, so one run of it serves many pairs
  config.reweight = 1.0
  config.optimizer = blocks.muon(4e-3, adam_lr=2e-3)
  blocks.schedule(config, batch_size=8, steps=1_900, steps_per_call=5, log_every=25, eval_every=600, save_every=200)
  config.eval_queries, config.final_queries = 32, 100
  if variant == "tiny":
    blocks.tiny_language_reader(config)
    config.sites = ("x0.pre", "a0.0", "x0.mid")
    config.encoder_width, config.n_slots, config.pairs_per_text = 32, 2, 2
    config.optimizer.warmup_steps = 1
  return config
