"""Three-digit addition: a target of 2 layers, 4 heads, d=32, and a reader of its 13 sites.

    inversionview train-target --config configs/addition.py --workdir W
    inversionview train        --config configs/addition.py --workdir W

Measured on CPUs of 2.1 GHz, always with other work beside, so that alone it is faster:

    train-target   4 min on two cores   accuracy of whole answers 1.00000 on all 202,500 held-out inputs, also where the tens digits sum to 9
    train         47 min on ONE core    3.84 million pairs; in-epsilon rate 0.933, mean over 13 sites (lowest: x1.post, 0.815)

    pairs (thousands)   384    768   1152   1536   1920   2304   2688   3072   3456   3840
    minutes             4.7    9.4   14.1   18.8   23.5   28.2   32.9   37.6   42.3   47.0
    rate               0.77   0.82   0.83   0.86   0.86   0.89   0.90   0.92   0.92   0.933

(94 ms a step; the run was stopped now and then, so the minutes are not of its log.) The reader before it, without site_inputs, had 1.28 million
pairs: 0.885 (lowest: x1.post, 0.655), 37 minutes of one core with Muon's products in float32.

The rate is the share of temperature-1 samples within epsilon 0.1, no noise, minimum over positions, one sample for each of 64 (at the end
200) held-out queries per site. Random inputs of the task score 0.46 on this target, and 0.27 on the paper's own.

On the paper's own target (`--target FOLDER`), where random inputs score 0.27, on two idle cores with AMX (`layers.shortens`), runs planned for
so many steps, 200 queries per site; seeds 0, 1 and 2 where there are three figures:

    steps                                  480     860-900               1,900     5,300
    training                               32 s    56-67 s               2.0 min   5.9 min
    rate, site_inputs (now this config)            0.603  0.608  0.603   0.681     0.787   (lowest: a1.0, 0.535)
    rate without                           0.470   0.590  0.585  0.593

About a minute of training there, when Muon's products were in float32 and two thirds of a step, all without site_inputs:

                                     steps   seconds   rate
    the config of then                 480     60      0.467  0.468  0.474
    average 0.99                       480     62      0.460  0.462  0.468
    noise 0.1                          480     62      0.459  0.456  0.462
    whiten                             480     64      0.417  0.408  0.406
    AdamW, lr 3e-3                   1,450     64      0.421  0.448  0.443   (after 480 steps, 21 s: 0.301  0.304  0.333)

What was tried (one seed each; 192 thousand pairs, schedule to zero, one core, other work beside; 200 queries per site):

    encoder of the paper (6 blocks as wide as the activation), 1 slot, lr 3e-3, 1 pair per text, batch 128   0.685   (not timed)
    3 blocks of width 128, 8 slots, otherwise the same                                                       0.718   6.6 min
    3 blocks of width 256, 8 slots, lr 6e-3 (adam_lr 3e-3), 2 pairs per text, 64 texts                       0.742   6.3 min

    with 1.28 million pairs: the first of these 0.850 (0.824 on 2,600 other queries), the last 0.885
    after 800 steps of the first: "standard" normalization 0.61, "whiten" 0.53

How candidates are drawn, on 50 held-out queries against exact preimages, 1,024 candidates (`inversionview evaluate --mixture`):

    mixture   (temperature, noise)                          precision   coverage   features   distinct members
    wide      (1, 0) (1.5, .05) (2, .1) (2, .3), stratified   0.798      0.823      0.986       796   the default
    noisy     (1, 0) (1, .1) (1, .2) (1, .3), stratified      0.762      0.791      0.990       773
    warm      (1, 0) (1.5, 0) (1.5, .1) (2, .1), stratified   0.856      0.749      0.988       852
    paper     (.5, 0) (1, 0) (2, 0) (2, .1), independent      0.892      0.687      0.981       863

The default was chosen on 50 other queries, of all mixtures of four from 24 settings (temperature 1 to 2, noise 0 to 0.5): there it has precision
0.746 and coverage 0.786 (6 draws), "noisy" 0.708 and 0.740. On 50 others again (`evaluate --seed 7`) it has precision 0.874 and coverage
0.866, and the rate is 0.935 (0.925 with seed 0).

The more a reader has learned the less it spreads: with the first reader (rate 0.82) the paper's mixture covered 0.84, with the second (0.867)
0.70. Noise brings it back, and heat, which costs this reader little: without noise 0.88 of the candidates lie inside at temperature 2, and 0.93
at 1. Strata give a little more of what there is (13 members of a preimage of 181 instead of 9). Coverage takes the mean over 8 draws of the
noise; over 64 that of "noisy" is 0.03 higher (25 of the queries), so the true one is above these.

Variants: `configs/addition.py:tiny` (a couple of minutes for both commands) and `configs/addition.py:paper` (the paper's decoder:
d=256, AdamW 1e-4, 100 million pairs; days on a CPU).
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "tiny", "paper")


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant; keys outside `target` are the decoder's."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r} of configs/addition.py; known: {', '.join(VARIANTS)}")
  config = ConfigDict()
  config.task = "addition"
  config.seed = 0
  config.data = ConfigDict(
    {"config": "full", "dir": ""}
  )  # the TFDS config; dir: where datasets are kept, "" for TFDS's default

  # Where and how both models are computed.
  config.mesh = ConfigDict(
    {"model": 1, "shard_optimizer": False}
  )  # devices that share parameters; optimizer state over all (ZeRO-1)
  config.compute = ConfigDict(
    {
      # Of what is trained: "float32", "bfloat16" (parameters stay float32); "": as its model says, and a decoder's products
      # have bfloat16 factors where a CPU is quicker at that (`layers.shortens`).
      "dtype": "",
      "target_dtype": "",  # of the frozen target, its parameters included; "": float32
      "accumulate": 1,  # pieces of a device's batch that go through the loss one after the other
      "remat": False,  # gradients run each layer again instead of keeping what is inside: less memory, more work
      "donate": True,  # a step takes over the buffers of the one before
    }
  )
  config.keep_every = 0  # also keep a checkpoint in every so many steps; 0: only the newest `keep`
  config.skip_nonfinite = 0  # steps in a row, with a loss or gradient that is not finite, to leave out before stopping
  config.profile = ""  # "100:110" writes an XLA trace of these steps to profile/

  # The target: `inversionview train-target`.
  config.target = target = ConfigDict()
  target.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 32, "d_mlp": 128})
  target.optimizer = ConfigDict(
    {
      "name": "muon",  # on matrices; Adam elsewhere
      "lr": 5e-3,
      "adam_lr": 0.0,  # of what Adam trains; 0: lr
      "schedule": "cosine",
      "warmup_steps": 300,
      "weight_decay": 0.01,
      "clip": 1.0,  # global norm of the gradient
      "b2": 0.99,
    }
  )
  target.batch_size = 512
  target.steps = 5_000
  target.steps_per_call = 20  # steps inside one jitted program
  # From a finished target instead of random parameters: `restart.parameters` says what these do.
  target.start = ConfigDict({"target": "", "renew": "", "stir": 0.0})
  target.average = 0.0  # decay of the moving average of the parameters; 0: none
  target.eval_examples = 10_240  # held-out inputs each time; all of them at the end
  target.log_every, target.eval_every, target.save_every, target.keep = 100, 1_000, 1_000, 2

  # The decoder: `inversionview train`.
  config.sites = ()  # empty: the paper's 13
  config.init_from = ""  # a finished reader to go on from
  config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 128, "d_mlp": 512})
  config.encoder_blocks, config.encoder_width, config.n_slots = 3, 256, 8  # the paper: 6, 0 (the activation's own), 1
  config.site_inputs = True  # each site has a matrix of its own into the encoder, beside the one that all share
  config.normalize = "standard"  # per site: "none" (paper), "standard", "whiten"
  config.pairs_per_text = 2  # (site, position) pairs per forward pass of the target
  config.bos_rate = 0.01  # share of pairs at BOS, the activation that says nothing
  config.reweight = (
    0.0  # sites are drawn with exp(reweight * (mean rate - rate)); the paper's formula has 6; 0: uniformly
  )
  config.noise = 0.0  # most Gaussian noise (eta) added to activations in training
  config.optimizer = ConfigDict(
    {
      "name": "muon",
      "lr": 6e-3,
      "adam_lr": 3e-3,  # of what Adam trains; 0: lr
      "schedule": "cosine",
      "warmup_steps": 100,
      "weight_decay": 0.01,
      "clip": 1.0,
      "b2": 0.99,
    }
  )
  config.batch_size = 64  # texts
  config.steps = 30_000
  config.steps_per_call = 10
  config.average = 0.0
  config.eval_queries, config.final_queries = 64, 200  # per site, held out, one temperature-1 sample each
  config.log_every, config.eval_every, config.save_every, config.keep = 100, 1_000, 1_000, 2

  if variant == "tiny":
    config.data.config = "tiny"
    target.steps, target.batch_size, target.eval_examples = 1_000, 256, 2_048
    config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 64, "d_mlp": 256})
    config.encoder_width = 64
    config.batch_size, config.steps, config.eval_every = 32, 1_000, 500
    config.final_queries = 64
  if variant == "paper":
    config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 256, "d_mlp": 1024})
    config.model.update({"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_resid": 0.1})
    config.encoder_blocks, config.encoder_width, config.n_slots, config.pairs_per_text = 6, 0, 1, 1
    config.normalize, config.reweight, config.site_inputs = "none", 0.0, False
    config.optimizer = ConfigDict(
      {
        "name": "adamw",
        "lr": 1e-4,
        "adam_lr": 0.0,
        "schedule": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.01,
        "clip": 1.0,
        "b2": 0.999,
      }
    )
    config.batch_size, config.steps = 256, 390_700
  return config


def get_hyper(hyper):
  """A sweep over what matters most; run by the launch scripts."""
  return hyper.product([hyper.sweep("config.optimizer.lr", (1e-3, 3e-3, 1e-2)), hyper.sweep("config.seed", (0, 1, 2))])
