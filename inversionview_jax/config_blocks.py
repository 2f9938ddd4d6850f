"""Blocks that config files share; every function returns new objects.

They live in the package and not in `configs/`, since a config file is loaded by its path: one that was copied into another folder, or that a
user wrote beside an installed package, finds them too.
"""

import os
import pathlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from inversionview_jax.errors import InversionViewError


def check_variant(variant: str, known: Sequence[str], file: str, kind: str = "variant") -> None:
  """Raises `ValueError`, with the known ones, unless `variant` is one of a config file's variants."""
  if variant not in known:
    path = pathlib.Path(file)
    raise ValueError(f"unknown {kind} {variant!r} of {path.parent.name}/{path.name}; known: {', '.join(known)}")


def adamw(lr: float = 1e-4, schedule: str = "constant", warmup_steps: int = 0, b2: float = 0.999) -> ConfigDict:
  """AdamW; the defaults are the paper's."""
  return _optimizer("adamw", lr, 0.0, schedule, warmup_steps, b2)


def muon(lr: float, adam_lr: float = 0.0, schedule: str = "cosine", warmup_steps: int = 100) -> ConfigDict:
  """Muon on matrices and Adam elsewhere.

  Args:
    lr: learning rate of Muon.
    adam_lr: learning rate of Adam; 0: lr.
    schedule: "constant", "cosine" or "trapezoid", which can be made longer or shorter until the rate falls, over the last fifth.
    warmup_steps: steps over which the rate rises from 0.
  """
  return _optimizer("muon", lr, adam_lr, schedule, warmup_steps, 0.99)


def _optimizer(name: str, lr: float, adam_lr: float, schedule: str, warmup_steps: int, b2: float) -> ConfigDict:
  return ConfigDict(
    {
      "name": name,
      "lr": lr,
      "adam_lr": adam_lr,  # of the parameters that Adam trains beside Muon; 0: lr
      "schedule": schedule,
      "warmup_steps": warmup_steps,
      "weight_decay": 0.01,
      "clip": 1.0,  # global norm of the gradient
      "b2": b2,
    }
  )


def transformer(
  d_model: int, n_layers: int = 2, n_heads: int = 4, d_mlp: int = 0, dropout: float = 0.0, **more: float
) -> ConfigDict:
  """The shape of a transformer.

  Args:
    d_model: width of the residual stream.
    n_layers: number of layers.
    n_heads: heads of a layer.
    d_mlp: hidden units of an MLP; 0: 4 * d_model.
    dropout: rate on the embedding, the attention and what is added to the residual stream; 0 leaves the keys out.
    **more: further fields of `TransformerConfig`.
  """
  shape = ConfigDict({"n_layers": n_layers, "n_heads": n_heads, "d_model": d_model, "d_mlp": d_mlp or 4 * d_model})
  if dropout:
    shape.update({"dropout_embed": dropout, "dropout_attn": dropout, "dropout_resid": dropout})
  shape.update(more)
  return shape


def mesh(model: int = 1, shard_optimizer: bool = False) -> ConfigDict:
  """Devices that share one copy of the parameters, and whether the optimizer's state is sharded over all of them (ZeRO-1)."""
  return ConfigDict({"model": model, "shard_optimizer": shard_optimizer})


def compute(dtype: str = "", remat: bool = False) -> ConfigDict:
  """How a training step is computed.

  Args:
    dtype: of what is trained, "float32" or "bfloat16" (parameters stay float32); "": as its model has it, and a decoder's matmuls take bfloat16
      inputs where a CPU has tiles for that (AMX).
    remat: whether gradients run each layer again instead of keeping its activations: less memory, more FLOPs.
  """
  return ConfigDict(
    {
      "dtype": dtype,
      "remat": remat,
      "accumulate": 1,  # pieces of a device's batch that go through the loss one after the other
      "donate": True,  # a step reuses the buffers of the one before
    }
  )


def devices(config: ConfigDict) -> None:
  """Sets where and how both models of a task are computed, and what a long run keeps."""
  config.mesh = mesh()
  config.compute = compute()
  config.compute.target_dtype = ""  # of the frozen target, its parameters included; "": float32
  config.keep_every = 0  # also keep every checkpoint at a multiple of so many steps; 0: only the newest `keep`
  config.skip_nonfinite = 0  # consecutive steps with a loss or gradient that is not finite to skip before stopping
  config.profile = ""  # "100:110" writes an XLA trace of these steps to profile/


def start_of_target() -> ConfigDict:
  """A warm start from a finished target instead of random parameters; `inversionview_jax.training.target_start` has the meaning."""
  return ConfigDict({"target": "", "reinit_tokens": "", "qk_noise_std": 0.0})


def language_target(path: str = "") -> ConfigDict:
  """A language model as the target; `--target` sets the path.

  "" is the family's own convention, float32, and one of this package's families; another is named as ``package.module:NAME``.
  """
  return ConfigDict({"path": path, "convention": "", "dtype": "", "family": ""})


# Variant -> the language model that it names: an id of the Hugging Face Hub, or a file that a script of `launch/` downloads.
_FETCHED = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf", "gemma3": "gemma-3-270m-q4_k_m.gguf"}
_ON_THE_HUB = {"gpt2": "gpt2", "gpt2_xl": "gpt2-xl"}
MODELS = (*_FETCHED, *_ON_THE_HUB)


def model_path(variant: str) -> str:
  """Where the language model of a variant in `MODELS` is."""
  if variant in _ON_THE_HUB:
    return _ON_THE_HUB[variant]
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  return str(pathlib.Path(home) / "inversionview_jax" / _FETCHED[variant])


def check_fetched(path: str) -> None:
  """Raises `InversionViewError` for a file that a script of `launch/` downloads and has not."""
  for variant, name in _FETCHED.items():
    if path == model_path(variant) and not os.path.exists(path):
      raise InversionViewError(f"{path} is not there yet: python launch/fetch_{variant}.py downloads {name}")


def reader(task: str) -> ConfigDict:
  """A config with every setting of a reader's training at the paper's value, but for the length of the training (`schedule`)."""
  config = ConfigDict()
  config.task = task
  config.seed = 0
  config.data = ConfigDict({"config": "full", "dir": ""})  # of TFDS; dir "": TFDS's default
  config.sites = ()  # empty: the task's
  config.init_from = ""  # a finished reader to start from
  config.model = transformer(256, dropout=0.1)
  config.encoder_blocks, config.encoder_width, config.n_slots = 6, 0, 1  # width 0: the activation's own
  config.normalize = "none"  # activations, per site: "none", "standard", "whiten"
  config.pairs_per_text = 1  # (site, position) pairs per forward pass of the target
  config.bos_rate = 0.01  # share of pairs at BOS, where the activation is the same for all texts
  config.reweight = 0.0  # sites are drawn with exp(reweight * (mean rate - rate)); 0: uniformly. Published: 6, unused in the released code
  config.noise = 0.0  # largest standard deviation (eta) of the Gaussian noise added to activations in training
  config.optimizer = adamw()
  config.average = 0.0  # decay of the moving average of the parameters; 0: none
  config.log = "tensorboard"  # "wandb": to Weights & Biases as well, which needs the extra of that name
  return config


def schedule(
  config: ConfigDict,
  batch_size: int,
  steps: int,
  *,
  steps_per_call: int = 10,
  log_every: int = 100,
  eval_every: int = 1_000,
  save_every: int = 1_000,
) -> None:
  """Sets the length of a training and what happens at which of its steps; the newest two checkpoints are kept.

  Args:
    config: of a reader's training, or its `target`.
    batch_size: texts.
    steps: optimizer steps.
    steps_per_call: steps inside one jitted program.
    log_every: steps between two lines of the metrics log.
    eval_every: steps between two evaluations.
    save_every: steps between two checkpoints.
  """
  config.batch_size, config.steps, config.steps_per_call = batch_size, steps, steps_per_call
  config.log_every, config.eval_every, config.save_every, config.keep = log_every, eval_every, save_every, 2


def smoke_test(config: ConfigDict, what: str) -> None:
  """Marks a variant that shows whether everything runs and trains nothing that is worth reading; `train` and `train-target` print it first."""
  config.about = f"a smoke test: {what}"


def tiny_language_reader(config: ConfigDict, queries: int = 4) -> None:
  """Sets the smallest sizes with which a language model's reader trains, a smoke test.

  Args:
    config: of a reader's training.
    queries: per site, in evaluations during the training.
  """
  config.data.config = "tiny"
  config.model = transformer(32, n_layers=1, n_heads=2, d_mlp=64)
  config.encoder_blocks = 1
  schedule(config, 8, 4, steps_per_call=2, log_every=2, eval_every=2, save_every=2)
  config.eval_queries, config.final_queries = queries, 4
  smoke_test(config, "its few steps show whether everything runs, and its reader proposes noise")


def experiments(task: str, pairs: int, batch_size: int) -> ConfigDict:
  """A config of causal experiments, none yet.

  Args:
    task: its name.
    pairs: per experiment, at most.
    batch_size: pairs in one jitted program.
  """
  config = ConfigDict()
  config.task = task
  config.seed = 0
  config.split = "test"  # of the task's inputs; "train" or "test"
  config.pairs, config.batch_size = pairs, batch_size
  config.experiments = ConfigDict()
  return config
