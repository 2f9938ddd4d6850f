"""The paper's largest setting as a plan: GPT-2 XL read at 25 heads of layers 24-42 by a decoder that starts as GPT-2 medium (factual recall).

    inversionview plan --config plan_gpt2_xl --topology v5e:16x16

Shapes only, no weights are loaded. The cost does not depend on which heads of a layer are read, so they are spread over the layers here. The
result is in launch/README.md.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks


def get_config() -> ConfigDict:
  """Settings of the training whose program is planned."""
  config = ConfigDict()
  config.plan = ConfigDict({"target": "gpt2-xl", "decoder": "gpt2-medium", "length": 41, "dtype": "bfloat16"})
  config.seed = 0
  config.sites = tuple(f"a{24 + i % 19}.{i}" for i in range(25))  # every layer from 24 to 42
  config.encoder_blocks, config.encoder_width, config.n_slots = 6, 0, 1
  config.normalize = "none"
  config.pairs_per_text, config.bos_rate, config.noise = 1, 0.01, 0.0
  config.optimizer = blocks.adamw()
  config.batch_per_device = 32
  config.steps, config.steps_per_call = 250_000, 1
  config.average = 0.0
  config.mesh = blocks.mesh()
  config.compute = blocks.compute("bfloat16")
  return config
