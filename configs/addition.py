"""Three-digit addition: a target of 2 layers, 4 heads, d=32, and a reader of its 13 sites.

    inversionview train-target --config addition --workdir W    # 4 minutes on two CPU cores
    inversionview train        --config addition --workdir W    # 47 minutes on one

Result: 1.00000 of 202,500 held-out answers right; in-epsilon rate 0.933, mean over 13 sites (random inputs: 0.46). What was measured and tried
is in configs/README.md.

Variants: `:tiny` (under three minutes of one core for both commands: a target that adds, and a reader that is worth a look), `:paper` (the paper's
decoder: d=256, AdamW 1e-4, 100 million pairs; days on a CPU).
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "tiny", "paper")


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant; keys outside `target` are the decoder's."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("addition")
  blocks.devices(config)

  # The target: `inversionview train-target`.
  config.target = target = ConfigDict()
  target.model = blocks.transformer(32)
  target.optimizer = blocks.muon(5e-3, warmup_steps=300)
  target.start = blocks.start_of_target()
  target.average = 0.0
  blocks.schedule(target, batch_size=512, steps=5_000, steps_per_call=20)
  target.eval_examples = 10_240  # held-out inputs each time; all of them at the end

  # The decoder: `inversionview train`.
  config.site_inputs = False  # whether each site has a matrix of its own into the encoder, beside the shared one
  blocks.schedule(config, batch_size=256, steps=390_700)
  config.eval_queries, config.final_queries = 64, 200  # per site, held out, one temperature-1 sample each
  if variant == "paper":
    return config
  config.model = blocks.transformer(128)
  config.encoder_blocks, config.encoder_width, config.n_slots = 3, 256, 8
  config.site_inputs = True
  config.normalize = "standard"
  config.pairs_per_text = 2
  config.optimizer = blocks.muon(6e-3, adam_lr=3e-3)
  config.batch_size, config.steps = 64, 30_000

  if variant == "tiny":
    config.data.config = "tiny"
    target.steps, target.batch_size, target.eval_examples = 800, 256, 2_048
    target.optimizer = blocks.muon(1e-2)
    config.model = blocks.transformer(64)
    config.encoder_width = 128
    config.optimizer = blocks.muon(1e-2, adam_lr=5e-3)
    config.steps, config.eval_every = 1_000, 0
    config.final_queries = 64
  return config


def get_hyper(hyper):
  """A sweep over learning rates and seeds, for the launch scripts."""
  return hyper.product([hyper.sweep("config.optimizer.lr", (1e-3, 3e-3, 1e-2)), hyper.sweep("config.seed", (0, 1, 2))])
