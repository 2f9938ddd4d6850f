"""What every key of a config must be: one table, from which configs are checked before anything is made and the keys are described.

A key that a table does not have is the user's own and is left alone.
"""

from typing import Any

from inversionview_jax import config_keys
from inversionview_jax.config_keys import Key, optional, under
from inversionview_jax.config_keys import check as check
from inversionview_jax.config_keys import described as described
from inversionview_jax.config_keys import listed as listed
from inversionview_jax.errors import InversionViewError, one_of

# Larger numbers are typing errors: what they size would be allocated before anything is computed.
MOST_STEPS, MOST_TEXTS, MOST_QUERIES, MOST_SEED = 2**31 - 1, 2**20, 2**20, 2**31 - 1  # seed + 1 has 32 bits
MOST_TEXTS_OF_A_CALL = 2**24  # batch_size times steps_per_call, all of them in memory
_DTYPES = ("", "float32", "bfloat16")


OPTIMIZER = {
  "name": config_keys.choice(("adamw", "muon"), "muon: Muon on the matrices between hidden layers, Adam elsewhere"),
  "lr": config_keys.positive(1e3, "learning rate"),
  "adam_lr": config_keys.number(0, 1e3, "with muon, the rate of what Adam trains; 0: lr"),
  "schedule": config_keys.choice(("constant", "cosine", "trapezoid"), "cosine falls to 0 at the last step, trapezoid over the last fifth"),
  "warmup_steps": config_keys.whole(0, MOST_STEPS, "steps over which the rate rises from 0"),
  "weight_decay": config_keys.number(0, 1e3, "of matrices"),
  "clip": config_keys.number(0, 1e9, "largest global norm of the gradient; 0: not clipped"),
  "b2": config_keys.share("decay of Adam's second moment"),
}  # fmt: skip
COMPUTE = {
  "dtype": config_keys.choice(_DTYPES, "of what is trained; parameters stay float32"),
  "target_dtype": config_keys.choice(_DTYPES, "of the frozen target, its parameters included"),
  "remat": config_keys.switch("whether gradients run each layer again: less memory, more FLOPs"),
  "accumulate": config_keys.whole(
    1, MOST_TEXTS, "pieces of a device's batch that go through the loss one after the other"
  ),
  "donate": config_keys.switch("whether a step reuses the buffers of the one before"),
}
MESH = {
  "model": config_keys.whole(1, 100_000, "devices that share one copy of the parameters"),
  "shard_optimizer": config_keys.switch("whether the optimizer's state is sharded over all devices (ZeRO-1)"),
}
# Of every training step: `training.loop.check`.
STEP = {
  "seed": config_keys.whole(0, MOST_SEED, "of everything that is drawn"),
  "batch_size": config_keys.whole(1, MOST_TEXTS, "texts of a step"),
  "steps": config_keys.whole(1, MOST_STEPS, "optimizer steps of the whole run"),
  "steps_per_call": config_keys.whole(1, 1_000_000, "steps inside one jitted program"),
  "average": config_keys.share("decay of the moving average of the parameters; 0: none"),
  **under("optimizer", OPTIMIZER),
  **optional(under("mesh", MESH)),
  **optional(under("compute", COMPUTE)),
}
# Of every training: `training.loop.train`.
TRAINING = {
  **STEP,
  "log_every": config_keys.whole(0, MOST_STEPS, "steps between two lines of the metrics log; 0: none"),
  "eval_every": config_keys.whole(0, MOST_STEPS, "steps between two evaluations; 0: at the end only"),
  "save_every": config_keys.whole(0, MOST_STEPS, "steps between two checkpoints; 0: at the end only"),
  "keep": config_keys.whole(1, 1_000_000, "newest checkpoints that are kept"),
  **optional(
    {
      "keep_every": config_keys.whole(
        0, MOST_STEPS, "also keep every checkpoint at a multiple of so many steps; 0: none"
      ),
      "skip_nonfinite": config_keys.whole(
        0, MOST_STEPS, "steps in a row, not finite, that are left out before the run ends"
      ),
      "profile": config_keys.text('"100:110" writes an XLA trace of these steps'),
      "phases": Key(
        config_keys.are_phases,
        "tuple of dicts",
        "settings of runs one after the other, each from the model of the one before",
      ),
      "about": config_keys.text("what kind of run it is, printed first"),
      "log": config_keys.choice(("tensorboard", "wandb"), "wandb: to Weights & Biases as well (extra `wandb`)"),
    }
  ),
}
# Keys of `models.config.TransformerConfig`, which checks the others that it has.
MODEL = {
  "n_layers": config_keys.whole(1, 1_000, "layers"),
  "n_heads": config_keys.whole(1, 2**20, "heads of a layer"),
  "d_model": config_keys.whole(1, 2**20, "width of the residual stream"),
  "d_mlp": config_keys.whole(1, 2**24, "hidden units of an MLP"),
}
DROPOUT = {f"dropout_{name}": config_keys.share("rate, in training") for name in ("embed", "attn", "resid")}
MODEL_BLOCK = {**under("model", MODEL), **optional(under("model", DROPOUT))}
# Of a decoder's training, besides: `training.decoder_objective`.
DECODER = {
  "encoder_blocks": config_keys.whole(0, 1024, "residual blocks between the activation and the transformer"),
  "encoder_width": config_keys.whole(0, 2**20, "of their residual stream; 0: the activation's own"),
  "n_slots": config_keys.whole(1, 1024, "projections of the encoding that join each layer's keys and values"),
  "normalize": config_keys.choice(("none", "standard", "whiten"), "of activations, per site"),
  "sites": config_keys.names("short names; (): the task's"),
  "pairs_per_text": config_keys.whole(0, 100_000, "pairs (site, position) for each run of the target; 0 with a token_count_loss only"),
  "bos_rate": config_keys.number(0, 1, "share of pairs at BOS"),
  "reweight": config_keys.number(0, 1e6, "sites are drawn with exp(reweight * (mean rate - rate)); 0: uniformly"),
  "noise": config_keys.number(0, 1e6, "largest standard deviation of the noise added to activations"),
  "eval_queries": config_keys.whole(1, MOST_QUERIES, "per site, in evaluations during the training"),
  "final_queries": config_keys.whole(1, MOST_QUERIES, "per site, in the last evaluation"),
  **optional(under("model", MODEL | DROPOUT)),  # a language model that it starts from has its own shape
  **optional(
    {
      "encoder_inner": config_keys.whole(0, 2**20, "hidden units of the encoder's blocks; 0: encoder_width"),
      "site_inputs": config_keys.switch("whether each site has a matrix of its own into the encoder"),
      "token_count_loss": config_keys.number(0, 1e6, "weight of an auxiliary loss: counts of each token, from the encoding"),
      "init_from": config_keys.text("a finished reader, or a language model, to start from"),
    }
  ),
}  # fmt: skip
# Of a target's training, besides: `training.target_objective`.
TARGET = {
  **MODEL_BLOCK,
  "eval_examples": config_keys.whole(1, 10**9, "held-out inputs of each evaluation; all of them at the end"),
  **optional(
    under(
      "start",
      {
        "target": config_keys.text("a finished target to start from"),
        "reinit_tokens": config_keys.text("tokens that get a new embedding"),
        "qk_noise_std": config_keys.number(0, 1e3, "of the noise added to W_Q and W_K"),
      },
    )
  ),
}
LANGUAGE_TARGET = {
  "path": config_keys.text("a Hugging Face folder or .gguf file; --target sets it"),
  **optional(
    {
      "convention": config_keys.choice(("", "centered", "raw"), 'how weights are processed; "": as its family is'),
      "dtype": config_keys.choice(_DTYPES, "of its parameters and of what is computed with them"),
      "family": config_keys.text("of the user: package.module:NAME"),
    }
  ),
}
# Of the inputs of a task over the texts of a language model, in the block `inputs`; the tasks check their settings by these, too.
FACT_SOURCES = ("bundled", "composed", "counterfact", "bear", "minipile", "files")
IOI_POSITIONS = ("IO", "S1", "S1+1", "S2", "END")
_LENGTH = config_keys.whole(3, 2**20, "tokens of a text, with BOS and EOS")
INPUTS: dict[str, dict[str, Key]] = {
  "text": optional(
    {
      "files": config_keys.paths("paths, patterns such as data/*.txt, or tfds:NAME"),
      "field": config_keys.text("of .jsonl files and datasets, which has the text"),
      "split": config_keys.text("of datasets"),
      "data_dir": config_keys.text('of TensorFlow Datasets; "": its default'),
      "length": _LENGTH,
      "vocabulary": config_keys.choice(("all", "data"), "tokens that a decoder writes; data: those that occur in the texts"),
      "long": config_keys.choice(("cut", "left"), "texts of more tokens: cut into windows, or left out"),
      "empty": config_keys.choice(("refuse", "skip"), "empty lines"),
      "positions": config_keys.names("where queries are taken; (): everywhere", ("END",)),
      "count": config_keys.whole(4, 2**31 - 1, "texts that the target writes; only without files"),
    }
  ),
  "factual": optional(
    {
      "sources": config_keys.names("where facts and sentences are from", FACT_SOURCES, least=1),
      "files": config_keys.paths('of the source "files"'),
      "length": _LENGTH,
      "vocabulary": config_keys.choice(("all", "data"), "tokens that a decoder writes; data: those that occur in the texts"),
      "positions": config_keys.names("of facts, where queries are taken", ("END", "SUBJ"), least=1),
      "bos_attention": config_keys.positive(1, "heads are read where their attention to BOS is below; 1: everywhere"),
      "rare": config_keys.number(0, 1, "tokens with a smaller share of all are rare"),
      "limit": config_keys.whole(0, MOST_STEPS, "texts of each source; 0: all"),
      "data_dir": config_keys.text('of TensorFlow Datasets; "": its default'),
      "manual_dir": config_keys.text("where downloaded files lie"),
      "common": Key(config_keys.are_ids, "tuple of whole", "ids of the tokens that are not rare; a finished reader has them"),
    }
  ),
  "ioi": optional(
    {
      "vocabulary": config_keys.choice(("task", "all"), "tokens that a decoder writes; task: those of these prompts"),
      "positions": config_keys.names("where queries are taken; (): everywhere", IOI_POSITIONS),
    }
  ),
}  # fmt: skip
# Of a study, in the block `study`: task -> its keys.
_STUDY = {
  "queries": config_keys.whole(2, 1_000, "whose preimages are found, of each place"),
  "pairs": config_keys.whole(2, 10_000, "of patching and direct effects, at most"),
  "shown": config_keys.whole(0, 100, "preimages of each place on the page"),
  "seed": config_keys.whole(0, MOST_SEED, "of everything that is drawn"),
}
STUDY: dict[str, dict[str, Key]] = {
  "factual": optional(
    {
      **_STUDY,
      "heads": config_keys.whole(1, 10_000, "that write most at END"),
      "by_effect": config_keys.whole(0, 10_000, "with the largest direct effect, besides"),
      "by_patching": config_keys.whole(0, 10_000, "from whose patching most is expected, besides"),
      "first_layer": config_keys.whole(-1, 1_000, "of the heads; -1: the upper half"),
      "threshold": config_keys.number(0, 1, "on a head's share of the residual update"),
      "known": config_keys.whole(1, 1_000_000, "facts that the model knows, at most"),
      "tried": config_keys.whole(1, 10_000_000, "prompts that are tried for them, at most"),
      "only_known": config_keys.switch("whether facts that the model does not know are left out"),
      "pool": config_keys.whole(0, 10_000_000, "inputs among which preimages are sought; 0: all"),
    }
  ),
  "ioi": optional(
    {
      **_STUDY,
      "prompts": config_keys.whole(2, 100_000, "on which all heads are measured"),
      "names": config_keys.whole(0, 10_000, "of which the prompts of preimages have two; 0: all"),
      "end_direct": config_keys.whole(1, 10_000, "heads at END with the largest direct effect"),
      "end_patched": config_keys.whole(0, 10_000, "heads at END with the largest effect of patching, besides"),
      "s2_patched": config_keys.whole(0, 10_000, "heads at S2 with the largest effect of patching"),
      "s1_attending": config_keys.whole(0, 10_000, "heads at S1+1 that attend most to S1"),
      "pool": config_keys.whole(1, 250_000, "inputs among which preimages are sought"),
    }
  ),
}  # fmt: skip
DATA = {
  "task": config_keys.text("name, or package.module:NAME"),
  "data.config": config_keys.text("of TensorFlow Datasets: full or tiny"),
  "data.dir": config_keys.text("of TensorFlow Datasets"),
}
EXPERIMENTS = {
  "task": config_keys.text("name, or package.module:NAME"),
  "seed": config_keys.whole(0, MOST_SEED, "of the pairs"),
  "split": config_keys.choice(("test", "train"), "of the task's inputs"),
  "pairs": config_keys.whole(1, 100_000_000, "of an experiment, at most"),
  "batch_size": config_keys.whole(1, MOST_TEXTS, "pairs in one jitted program"),
}
EXPERIMENT = optional(
  {
    "kind": config_keys.text("patch, ablate or attribute"),
    "about": config_keys.text("in words"),
    "addresses": config_keys.names("a step each, such as a0.0@=; (): every head"),
    "orders": config_keys.names("forward, backward or together"),
    "to": config_keys.text("of an ablation: mean or zero"),
    "contrast": Key(config_keys.is_block, "block of keys", "of a patch: what changes"),
    "position": Key(config_keys.is_label, "text or whole", "where heads are patched"),
    "read": Key(config_keys.are_labels, "tuple of texts", "of an ablation: where predictions are compared"),
    "roles": config_keys.names("of an attribution: the tokens whose logits are compared"),
    "top": config_keys.whole(1, 1_000_000, "of an attribution: tokens at each end"),
  }
)
_SETTINGS_OF_A_REPORT = {
  "title": config_keys.text("of the page"),
  "seed": config_keys.whole(0, MOST_SEED, "of the samples"),
  "num_samples": config_keys.whole(1, 1_000_000, "candidates of a query"),
  "particles": config_keys.whole(2, 1_000_000, "of Monte Carlo"),
  "budget": config_keys.whole(1, 10**12, "of Monte Carlo: runs of the target"),
  "shown": config_keys.whole(1, 1_000_000, "samples of a preimage, at most"),
  "mixture": config_keys.text("of the decoder's candidates"),
  "method": config_keys.text("how preimages are found"),
  "epsilon": config_keys.positive(1e6, "threshold on the distance"),
  "metric": config_keys.text("euclidean or cosine"),
  "match": config_keys.text("anywhere or position"),
}
PLAN = {
  **{
    name: DECODER[name]
    for name in ("encoder_blocks", "encoder_width", "n_slots", "normalize", "sites", "pairs_per_text")
  },
  **{name: DECODER[name] for name in ("bos_rate", "noise", "encoder_inner", "site_inputs")},
  **{
    name: key for name, key in TRAINING.items() if name.split(".")[0] in ("seed", "steps", "steps_per_call", "average")
  },
  **{name: key for name, key in TRAINING.items() if name.split(".")[0] in ("optimizer", "mesh", "compute")},
  **optional(
    {
      "batch_size": TRAINING["batch_size"],
      "batch_per_device": config_keys.whole(1, MOST_TEXTS, "texts of a data-parallel device"),
      "plan.target": config_keys.text("an architecture"),
      "plan.decoder": config_keys.text("an architecture"),
      "plan.length": config_keys.whole(2, 2**20, "tokens of a text"),
      "plan.dtype": config_keys.choice(_DTYPES[1:], "of the target"),
    }
  ),
}
REPORT = optional(_SETTINGS_OF_A_REPORT)
QUERIES = {
  "queries": Key(config_keys.are_queries, "tuple of (reader, text, site, position)", "the activations that are read, in the order of the page")
}  # fmt: skip
HEADS = {"task": DATA["task"], **optional({"target.path": LANGUAGE_TARGET["path"]})}
# Command -> the keys of its configs, as --help-config lists them.
OF_COMMAND: dict[str, dict[str, Key]] = {
  "train": {**DATA, **TRAINING, **DECODER, **optional(under("target", LANGUAGE_TARGET))},
  "train-target": {
    **DATA,
    "seed": STEP["seed"],
    **under("target", {name: key for name, key in {**TRAINING, **TARGET}.items() if name != "seed"}),
  },
  "patch": {**EXPERIMENTS, **under("experiments.NAME", EXPERIMENT)},
  "plan": PLAN,
  "report": {**QUERIES, **REPORT},
  "heads": HEADS,
  "study": {**HEADS, **under("study", STUDY["ioi"] | STUDY["factual"])},
}
# The commands whose configs have a block `inputs`, where the task is one over the texts of a language model.
WITH_INPUTS = ("train", "patch", "heads", "study")


def check_inputs(task: str, inputs: Any) -> None:
  """Checks the settings of a task's inputs, the block `inputs` of a config; those of a task that is not in `INPUTS` are its own.

  Raises:
    InversionViewError: no block, a setting that the task does not have, or one of another type or out of its range.
  """
  if task in INPUTS:
    config_keys.check_block("inputs", inputs, INPUTS[task], f"setting of the task {task}")
  elif inputs is not None:
    config_keys.is_block("inputs", inputs)


def check_study(config: Any) -> None:
  """Raises `InversionViewError` for a config whose task has no study, or whose settings of it or of the inputs are not known or out of range."""
  check(config, HEADS)
  if config["task"] not in STUDY:
    raise one_of("study of the task", config["task"], STUDY)
  check_inputs(config["task"], config.get("inputs"))
  config_keys.check_block(
    "study", config.get("study"), STUDY[config["task"]], f"setting of the study of {config['task']}"
  )


def check_call(config: Any, prefix: str = "") -> None:
  """Raises `InversionViewError` where the texts of one call of the training step would not fit into memory."""
  per_call = min(config["steps_per_call"], config["steps"])
  if config["batch_size"] * per_call > MOST_TEXTS_OF_A_CALL:
    raise InversionViewError(
      f"{prefix}batch_size = {config['batch_size']:,} times {prefix}steps_per_call = {per_call:,} must be at most "
      f"{MOST_TEXTS_OF_A_CALL:,} texts, which are in memory together"
    )
