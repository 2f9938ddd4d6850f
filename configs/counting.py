"""Character counting: a target of 2 layers, 1 head, d=64, and a reader of its 9 sites (`:tiny` is a smoke test).

    inversionview train-target --config counting --workdir W    # 33 minutes on two CPU cores
    inversionview train        --config counting --workdir W    # 53 minutes

The shipped target (0.99298 of 390,000 held-out counts right) took three runs, the shipped reader (in-epsilon rate 0.883, mean over 9 sites;
random inputs: 0.012) ten, each from the model of the one before. `:shipped` has them as phases, so that the same two commands make both in five
and a half hours. What was measured and what was tried: configs/README.md.

Variants: `:shipped`, `:tiny` (a couple of minutes for both commands: no target learns to count in that time, and its reader has nothing to
read), `:paper` (the paper's decoder: d=256, AdamW 1e-4, 100 million pairs; days on a CPU).
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "tiny", "paper", "shipped")
_ENCODER = {"pairs_per_text": 0, "batch_size": 128, "eval_every": 100_000}  # alone: the token-count loss only
_COSINE = {"optimizer.schedule": "cosine"}
READER_PHASES = (
  {**_ENCODER, "optimizer.lr": 0.004, "steps": 13_000, "site_inputs": False},
  {"steps": 10_000, "reweight": 1.0, "site_inputs": False},
  {**_ENCODER, **_COSINE, "optimizer.lr": 0.008},
  {},
  {**_COSINE, "optimizer.lr": 0.002, "steps": 4_200},
  {**_ENCODER, **_COSINE, "optimizer.lr": 0.008, "steps": 10_000},
  {**_COSINE, "steps": 13_000},
  {**_COSINE, "optimizer.lr": 0.002, "steps": 6_000},
  {**_ENCODER, **_COSINE, "optimizer.lr": 0.008, "steps": 8_000},
  {**_COSINE, "optimizer.lr": 0.003, "steps": 11_000},
)
_ANEW = {"optimizer.lr": 0.005, "optimizer.adam_lr": 0.001, "optimizer.weight_decay": 0.0}
TARGET_PHASES = (
  {},
  # Letters that the run before confuses get a new embedding.
  {**_ANEW, "start.reinit_tokens": "vta", "start.qk_noise_std": 0.08, "steps": 6_000},
  {**_ANEW, "start.reinit_tokens": "ta", "steps": 5_000},
)


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant; keys outside `target` are the decoder's."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("counting")
  blocks.devices(config)

  # The target: `inversionview train-target`. Its loss is on the count alone.
  config.target = target = ConfigDict()
  target.model = blocks.transformer(64, n_heads=1, embed_std=0.2)
  target.optimizer = blocks.muon(1e-2, adam_lr=2e-3, warmup_steps=300)
  target.start = blocks.start_of_target()
  target.average = 0.0
  blocks.schedule(
    target, batch_size=128, steps=30_000, steps_per_call=20, log_every=200, eval_every=2_000, save_every=2_000
  )
  target.eval_examples = 5_120  # held-out inputs each time; all of them at the end

  # The decoder: `inversionview train`. Queries are the queried letter and ":".
  config.encoder_inner = 0  # hidden units of the encoder's blocks; 0: encoder_width
  config.site_inputs = False  # whether each site has a matrix of its own into the encoder, beside the shared one
  config.token_count_loss = (
    0.0  # weight of an auxiliary loss: counts of each token, predicted from the encoder's output
  )
  blocks.schedule(config, batch_size=256, steps=390_700)
  config.eval_queries, config.final_queries = 64, 200  # per site, held out, one temperature-1 sample each
  if variant == "paper":
    return config
  config.model = blocks.transformer(128)
  config.encoder_blocks, config.encoder_width, config.n_slots = 6, 128, 8
  config.encoder_inner = 512
  config.site_inputs = True
  config.token_count_loss = 1.0
  config.normalize = "whiten"
  config.pairs_per_text = 2
  config.reweight = 2.0
  config.optimizer = blocks.muon(3e-3, schedule="trapezoid")
  config.batch_size, config.steps = 64, 12_000

  if variant == "shipped":
    config.phases, target.phases = READER_PHASES, TARGET_PHASES
  if variant == "tiny":
    config.data.config = "tiny"
    target.steps, target.eval_examples = 500, 2_048
    config.model = blocks.transformer(64)
    config.encoder_blocks, config.encoder_inner, config.reweight = 3, 128, 0.0
    config.batch_size, config.steps, config.eval_every = 32, 400, 200
    config.final_queries = 64
    blocks.smoke_test(
      config,
      "no target learns to count in so few steps (`counting` takes half an hour), and its reader has nothing to read",
    )
  return config


def get_hyper(hyper):
  """A sweep over learning rates and seeds, for the launch scripts."""
  return hyper.product([hyper.sweep("config.optimizer.lr", (1e-3, 3e-3, 1e-2)), hyper.sweep("config.seed", (0, 1, 2))])
