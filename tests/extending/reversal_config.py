"""Trains a target and a reader of `Reversal`, tiny.

inversionview train-target --config reversal_config.py --workdir W
inversionview train        --config reversal_config.py --workdir W
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks


def get_config(variant: str = "") -> ConfigDict:
  """The settings; there are no variants."""
  del variant
  config = blocks.reader("extending.reversal_task:Reversal")
  blocks.devices(config)
  config.target = ConfigDict(
    {
      "model": blocks.transformer(16, n_layers=1, n_heads=2),
      "optimizer": blocks.muon(5e-3),
      "average": 0.0,
      "eval_examples": 64,
    }
  )
  config.target.start = blocks.start_of_target()
  blocks.schedule(config.target, batch_size=32, steps=10, steps_per_call=5, log_every=5, eval_every=10, save_every=10)
  config.site_inputs = True
  blocks.schedule(config, batch_size=16, steps=10, steps_per_call=5, log_every=5, eval_every=10, save_every=10)
  config.model = blocks.transformer(16, n_layers=1, n_heads=2)
  config.encoder_blocks, config.encoder_width, config.n_slots = 1, 16, 2
  config.eval_queries, config.final_queries = 4, 4
  return config
