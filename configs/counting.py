"""Character counting: a target of 2 layers, 1 head, d=64, and a reader of its 9 sites.

    inversionview train-target --config configs/counting.py --workdir W
    inversionview train        --config configs/counting.py --workdir W

The shipped target (0.99298 of 390,000 held-out counts right; the paper's has 0.99532 after 117 million examples, here 5.2 million) took
three runs of `train-target`, on two CPU cores (2.1 GHz) with other work beside:

    1. --workdir W1                                                                              30,000 steps, 33 min   0.98426
    2. --workdir W2 --config.target.start.target=W1 --config.target.start.renew=vta --config.target.start.stir=0.08 --config.target.steps=6000 R
                                                                                                  6,000 steps,  7 min   0.98969
    3. --workdir W3 --config.target.start.target=W2/target --config.target.start.renew=ta --config.target.steps=5000 R
                                                                                                  5,000 steps,  6 min   0.99298
    R: --config.target.optimizer.lr=0.005 --config.target.optimizer.adam_lr=0.001 --config.target.optimizer.weight_decay=0.0

Letters are told apart one after the other, and some never are: after the first run v r, t d and a s had one embedding each, and what
attention compares had 8 of 64 directions left, into which weight decay had pressed 26 letters. `start` gives letters a new embedding and
attention new directions (`restart.parameters`). The letters to renew were picked by hand from confusions on 40,000 of the held-out inputs. After the second run t r and a j were confused, after the third only v t, three times in four.
Tried in one run and short of it: weight_decay 0 (0.980 after 23,000 of 24,000 steps), lr 5e-3 with adam_lr 1e-3 (0.895 after 22,000 of
36,000), adam_lr 1e-3 (0.42 after 8,000), adam_lr 5e-4 (0.978), AdamW 2e-3 (0.58 after 10,000), initial matrices of std 0.125 with
weight_decay 0 (0.35 after 7,000), an embedding of its own for the output with embed_std 1 (0.21 after 4,000).

The shipped reader took ten runs of `train`: the encoder alone, all of it, both again after each site had been given a matrix of its own
into the encoder, all of it once more, the three of these once more, and two of them again (two cores; other work beside, some of the time; a CPU
with AMX, whose tiles runs 7 and 8 used, and for Muon's products too 9 and 10, on ONE core each):

    1. --workdir W1 --config.pairs_per_text=0 --config.batch_size=128 --config.optimizer.lr=0.004 --config.steps=13000 --config.eval_every=100000 S
                                                    15.0 million activations, 39 min
    2. --workdir W2 --config.init_from=W1/decoder --config.steps=10000 --config.reweight=1 S
                                                    1.28 million pairs, 41 min          0.743 (evaluate: 0.731)
    3. --workdir W3 --config.init_from=W2/decoder --config.pairs_per_text=0 --config.batch_size=128 --config.optimizer.lr=0.008
       --config.optimizer.schedule=cosine --config.eval_every=100000
                                                    13.8 million activations, 34 min
    4. --workdir W4 --config.init_from=W3/decoder   1.54 million pairs, 53 min          0.827
    5. --workdir W5 --config.init_from=W4/decoder --config.steps=4200 --config.optimizer.lr=0.002 --config.optimizer.schedule=cosine
                                                    0.54 million pairs, 17 min          0.850 (evaluate --queries 1000: 0.841)
    6. as 3, from W5/decoder, --config.steps=10000  11.5 million activations, 19 min
    7. --workdir W7 --config.init_from=W6/decoder --config.steps=13000 --config.optimizer.schedule=cosine
                                                    1.66 million pairs, 40 min          0.884 (evaluate --queries 1000: 0.872)
    8. --workdir W8 --config.init_from=W7/decoder --config.steps=6000 --config.optimizer.lr=0.002 --config.optimizer.schedule=cosine
                                                    0.77 million pairs, 18 min          0.893 (evaluate --queries 1000: 0.875)
    9. as 3, from W8/decoder, --config.steps=8000   9.2 million activations, 14 min
   10. --workdir W10 --config.init_from=W9/decoder --config.steps=11000 --config.optimizer.lr=0.003 --config.optimizer.schedule=cosine
                                                    1.41 million pairs, 34 min          0.895 (evaluate --queries 1000: 0.883)
    S: --config.site_inputs=False

(In-epsilon rate, mean over 9 sites, 200 held-out queries each; `evaluate` asks other queries, the same texts for all sites.) By site, from
`evaluate --queries 1000` (random inputs 0.105 at x0.pre, 0.000 elsewhere; mean 0.877-0.889 with 95 %), and from `evaluate` by position:

              x0.pre  a0.0  x0.mid   m0   x0.post  a1.0  x1.mid   m1   x1.post
    rate       .995   .967   .975   .947   .947    .954   .872   .697   .590
    query       99     95     96     92     91      97     88     73     78     (%, at the letter asked for)
    :          100     99     99     97     98      94     87     66     41     (%, at ":")

    pairs (thousands)   128    256    384    512    640    768    896   1024   1152   1280   1408   1536   1664
    rate, run 2        0.20   0.29   0.37   0.41   0.47   0.45   0.48   0.54   0.69   0.74
    rate, run 4        0.51   0.59   0.56   0.63   0.64   0.63   0.67   0.64   0.67   0.69   0.75   0.83
    rate, run 7        0.66   0.67   0.69   0.72   0.72   0.77   0.82   0.82   0.87   0.86   0.87   0.89   0.88
    rate, run 10       0.66   0.68   0.70   0.75   0.77   0.82   0.85   0.88   0.90   0.89   0.90

Most of what is won is won while the learning rate falls, over the last fifth of runs 1, 2 and 4, and all along the others. Runs 2 to 5 each began
with a new head for `bag`, whose first gradients undid much of the encoder: the loss was 10.9 over the first 100 steps of run 5, and 1.4 at the
end of run 4. The head stays with a reader since, so a run goes on where the one before it ended: the encoder's loss fell from 3.63 nats
to 3.36 in run 6, where run 3 had ended at 3.50. Run 9 brought it to 3.34 only: of the encoder alone little more is to be had this way.

What an activation says of a text here is which three letters and how many of each, hardly their order: a text in another order is at distance
0.003 to 0.024, one letter more at 0.06 to 0.91 (medians). Given these numbers themselves a decoder of this shape wrote 43 of 100 texts
with every count right after 64 thousand pairs, and 87 after 128 thousand. So reading them off the activation is what takes long, and of that
most pairs are a waste: one costs 33 tokens of the decoder, of which no more than the order is learned that no activation says. The first and
the third run read 9 activations of each text for less than the decoder's part of one. What was tried for the encoder, trained to tell the
counts of 26 letters and the letter asked for, on 1.0 million activations (loss in nats, of 27 answers):

    blocks x width (inside)   3x128    3x128    3x512    12x128   6x256    6x128 (512)   6x128 (336)       6x128 (512)
                              whiten   standard standard standard standard whiten        whiten, SwiGLU    whiten, GELU
    loss                      8.7      8.2      7.2      6.4      5.9      5.7           5.6               5.5

Depth does most, then width inside. (GELU and SwiGLU are not settings.) Then, of 6x128 (512), whitened, from random parameters on 1.0 million
activations (loss of 30 answers, of which 1.9 nats cannot be known: x0.pre says only the letter and where it is; one core, 110 s):

    site_inputs      no      yes     yes     yes     yes     yes, and a slot of width 32 for each letter
    lr               0.004   0.004   0.008   0.016   0.030   0.004            0.012
    loss             8.5     7.9     7.15    6.9     7.0     6.6 (190 s)      6.1 (190 s)

With twice the steps at lr 0.016: 5.50; falling over nine tenths of them 5.44; 12 blocks with 256 inside 5.40 (215 s). Slots for letters learn
more from each activation and less in the same time. Three times the weight on m1 and x1.post moves them by -0.7, and the six others by +0.8 on average.
From random parameters run 3's settings at lr 0.016 would be the better first run; that was not tried to the end.

Variants: `configs/counting.py:tiny` (a couple of minutes for both commands; the target does not learn to count well in that time) and
`configs/counting.py:paper` (the paper's decoder: d=256, AdamW 1e-4, 100 million pairs; days on a CPU).
"""

from ml_collections import ConfigDict

VARIANTS = ("full", "tiny", "paper")


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant; keys outside `target` are the decoder's."""
  if variant not in VARIANTS:
    raise ValueError(f"unknown variant {variant!r} of configs/counting.py; known: {', '.join(VARIANTS)}")
  config = ConfigDict()
  config.task = "counting"
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

  # The target: `inversionview train-target`. Its loss is on the count alone.
  config.target = target = ConfigDict()
  target.model = ConfigDict({"n_layers": 2, "n_heads": 1, "d_model": 64, "d_mlp": 256, "embed_std": 0.2})
  target.optimizer = ConfigDict(
    {
      "name": "muon",  # on matrices; Adam elsewhere
      "lr": 1e-2,
      "adam_lr": 2e-3,  # of what Adam trains; 0: lr
      "schedule": "cosine",
      "warmup_steps": 300,
      "weight_decay": 0.01,
      "clip": 1.0,  # global norm of the gradient
      "b2": 0.99,
    }
  )
  target.batch_size = 128
  target.steps = 30_000
  target.steps_per_call = 20  # steps inside one jitted program
  # From a finished target instead of random parameters: `restart.parameters` says what these do.
  target.start = ConfigDict({"target": "", "renew": "", "stir": 0.0})
  target.average = 0.0  # decay of the moving average of the parameters; 0: none
  target.eval_examples = 5_120  # held-out inputs each time; all of them at the end
  target.log_every, target.eval_every, target.save_every, target.keep = 200, 2_000, 2_000, 2

  # The decoder: `inversionview train`. Queries are the letter asked for and ":".
  config.sites = ()  # empty: the paper's 9
  config.init_from = ""  # a finished reader to go on from
  config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 128, "d_mlp": 512})
  config.encoder_blocks, config.encoder_width, config.n_slots = 6, 128, 8  # the paper: 6, 0 (the activation's own), 1
  config.encoder_inner = 512  # width inside of the blocks; 0: encoder_width
  config.site_inputs = True  # each site has a matrix of its own into the encoder, beside the one that all share
  config.bag = (
    1.0  # weight of a loss on the encoder alone: how often does each token occur in the text? 0: none (paper)
  )
  config.normalize = "whiten"  # per site: "none" (paper), "standard", "whiten"
  config.pairs_per_text = 2  # (site, position) pairs per forward pass of the target
  config.bos_rate = 0.01  # share of pairs at BOS, the activation that says nothing
  config.reweight = (
    2.0  # sites are drawn with exp(reweight * (mean rate - rate)); the paper's formula has 6; 0: uniformly
  )
  config.noise = 0.0  # most Gaussian noise (eta) added to activations in training
  config.optimizer = ConfigDict(
    {
      "name": "muon",
      "lr": 3e-3,
      "adam_lr": 0.0,  # of what Adam trains; 0: lr
      "schedule": "trapezoid",  # can be made longer or shorter until the rate falls, over the last fifth
      "warmup_steps": 100,
      "weight_decay": 0.01,
      "clip": 1.0,
      "b2": 0.99,
    }
  )
  config.batch_size = 64  # texts
  config.steps = 12_000
  config.steps_per_call = 10
  config.average = 0.0
  config.eval_queries, config.final_queries = 64, 200  # per site, held out, one temperature-1 sample each
  config.log_every, config.eval_every, config.save_every, config.keep = 100, 1_000, 1_000, 2

  if variant == "tiny":
    config.data.config = "tiny"
    target.steps, target.eval_examples = 500, 2_048
    config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 64, "d_mlp": 256})
    config.encoder_blocks, config.encoder_inner, config.reweight = 3, 128, 0.0
    config.batch_size, config.steps, config.eval_every = 32, 400, 200
    config.final_queries = 64
  if variant == "paper":
    config.model = ConfigDict({"n_layers": 2, "n_heads": 4, "d_model": 256, "d_mlp": 1024})
    config.model.update({"dropout_embed": 0.1, "dropout_attn": 0.1, "dropout_resid": 0.1})
    config.encoder_blocks, config.encoder_width, config.encoder_inner, config.n_slots = 6, 0, 0, 1
    config.site_inputs, config.bag = False, 0.0
    config.normalize, config.reweight = "none", 0.0
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
    config.batch_size, config.pairs_per_text, config.steps = 256, 1, 390_700
  return config


def get_hyper(hyper):
  """A sweep over what matters most; run by the launch scripts."""
  return hyper.product([hyper.sweep("config.optimizer.lr", (1e-3, 3e-3, 1e-2)), hyper.sweep("config.seed", (0, 1, 2))])
