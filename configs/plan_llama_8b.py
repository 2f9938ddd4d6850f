"""A target of eight billion parameters as a plan: Llama 3 8B, sharded over "model", read by a decoder of the shape of Llama 3.2 1B.

    inversionview plan --config plan_llama_8b --topology v5e:16x16
    inversionview plan --config plan_llama_8b --topology v6e:8x8

Shapes only, no weights are loaded. The sites are 16 heads and 8 residual streams, up to layer 31. The results are in launch/README.md.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks


def get_config() -> ConfigDict:
  """Settings of the training whose program is planned."""
  config = ConfigDict()
  config.plan = ConfigDict({"target": "llama-3-8b", "decoder": "llama-3.2-1b", "length": 64, "dtype": "bfloat16"})
  config.seed = 0
  config.sites = (*(f"a{2 * i + 1}.{2 * i}" for i in range(16)), *(f"x{4 * i + 3}.post" for i in range(8)))
  config.encoder_blocks, config.encoder_width, config.n_slots = 3, 2048, 4
  config.normalize = "standard"
  config.pairs_per_text, config.bos_rate, config.noise = 1, 0.01, 0.0
  config.optimizer = blocks.adamw(schedule="cosine", warmup_steps=1000, b2=0.99)
  config.batch_per_device = 32  # texts per index of the data axis
  config.steps, config.steps_per_call = 100_000, 1
  config.average = 0.0
  config.mesh = blocks.mesh(model=8, shard_optimizer=True)
  config.compute = blocks.compute("bfloat16", remat=True)
  return config
