"""What every key of a config must be: one table, from which configs are checked before anything is made and the keys are described.

A key that a table does not have is the user's own and is left alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError

# Larger numbers are typing errors: what they size would be allocated before anything is computed.
MOST_STEPS, MOST_TEXTS, MOST_QUERIES, MOST_SEED = 2**31 - 1, 2**20, 2**20, 2**31 - 1
MOST_TEXTS_OF_A_CALL = 2**24  # batch_size times steps_per_call, all of them in memory
_DTYPES = ("", "float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a config.

  Attributes:
    check: (its dotted name, its value) -> the value; raises `InversionViewError`.
    kind: its type and range in words.
    meaning: in one line.
    optional: whether a config may lack it.
  """

  check: Callable[[str, Any], Any]
  kind: str
  meaning: str
  optional: bool = False


def _whole(low: int, high: int, meaning: str) -> Key:
  return Key(functools.partial(values.whole, low=low, high=high), f"whole, {low:,} to {high:,}", meaning)


def _number(low: float, high: float, meaning: str) -> Key:
  return Key(functools.partial(values.number, low=low, high=high), f"number, {low:g} to {high:g}", meaning)


def _share(meaning: str) -> Key:
  """A number from 0 to 1, 1 left out."""
  return Key(_below_one, "number, 0 to less than 1", meaning)


def _below_one(name: str, value: Any) -> float:
  if not values.is_number(value) or not 0 <= value < 1:
    raise InversionViewError(f"{name} = {values.brief(value)} must be a number of at least 0 and less than 1")
  return value


def _positive(high: float, meaning: str) -> Key:
  return Key(functools.partial(_above_zero, high=high), f"number, above 0 to {high:g}", meaning)


def _above_zero(name: str, value: Any, high: float) -> float:
  if not values.is_number(value) or not 0 < value <= high:
    raise InversionViewError(f"{name} = {values.brief(value)} must be a number above 0 and at most {high:g}")
  return value


def _text(meaning: str) -> Key:
  return Key(values.text, "text", meaning)


def _switch(meaning: str) -> Key:
  return Key(values.switch, "True or False", meaning)


def _choice(choices: tuple[str, ...], meaning: str) -> Key:
  shown = ", ".join(choice or '""' for choice in choices)
  return Key(functools.partial(values.choice, choices=choices), f"one of {shown}", meaning)


def _names(meaning: str) -> Key:
  return Key(_tuple_of_texts, "tuple of texts", meaning)


def _tuple_of_texts(name: str, value: Any) -> tuple[str, ...]:
  if isinstance(value, str):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a tuple of texts: write ({value!r},)")
  return values.sequence(name, value, values.text, 100_000)


def _block(name: str, value: Any) -> Any:
  if not hasattr(value, "keys"):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a block of keys")
  return value


def _label(name: str, value: Any) -> Any:
  if isinstance(value, bool) or not isinstance(value, int | str):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a label such as '=', or an index")
  return value


def _labels(name: str, value: Any) -> tuple:
  return values.sequence(name, value, _label, 100_000)


def _optional(table: Mapping[str, Key]) -> dict[str, Key]:
  return {name: dataclasses.replace(key, optional=True) for name, key in table.items()}


def _under(block: str, table: Mapping[str, Key]) -> dict[str, Key]:
  return {f"{block}.{name}": key for name, key in table.items()}


OPTIMIZER = {
  "name": _choice(("adamw", "muon"), "muon: Muon on the matrices between hidden layers, Adam elsewhere"),
  "lr": _positive(1e3, "learning rate"),
  "adam_lr": _number(0, 1e3, "with muon, the rate of what Adam trains; 0: lr"),
  "schedule": _choice(("constant", "cosine", "trapezoid"), "cosine falls to 0 at the last step, trapezoid over the last fifth"),
  "warmup_steps": _whole(0, MOST_STEPS, "steps over which the rate rises from 0"),
  "weight_decay": _number(0, 1e3, "of matrices"),
  "clip": _number(0, 1e9, "largest global norm of the gradient; 0: not clipped"),
  "b2": _share("decay of Adam's second moment"),
}  # fmt: skip
COMPUTE = {
  "dtype": _choice(_DTYPES, "of what is trained; parameters stay float32"),
  "target_dtype": _choice(_DTYPES, "of the frozen target, its parameters included"),
  "remat": _switch("whether gradients run each layer again: less memory, more FLOPs"),
  "accumulate": _whole(1, MOST_TEXTS, "pieces of a device's batch that go through the loss one after the other"),
  "donate": _switch("whether a step reuses the buffers of the one before"),
}
MESH = {
  "model": _whole(1, 100_000, "devices that share one copy of the parameters"),
  "shard_optimizer": _switch("whether the optimizer's state is sharded over all devices (ZeRO-1)"),
}
# Of every training step: `training.loop.check`.
STEP = {
  "seed": _whole(0, MOST_SEED, "of everything that is drawn"),
  "batch_size": _whole(1, MOST_TEXTS, "texts of a step"),
  "steps": _whole(1, MOST_STEPS, "optimizer steps of the whole run"),
  "steps_per_call": _whole(1, 1_000_000, "steps inside one jitted program"),
  "average": _share("decay of the moving average of the parameters; 0: none"),
  **_under("optimizer", OPTIMIZER),
  **_optional(_under("mesh", MESH)),
  **_optional(_under("compute", COMPUTE)),
}
# Of every training: `training.loop.train`.
TRAINING = {
  **STEP,
  "log_every": _whole(0, MOST_STEPS, "steps between two lines of the metrics log; 0: none"),
  "eval_every": _whole(0, MOST_STEPS, "steps between two evaluations; 0: at the end only"),
  "save_every": _whole(0, MOST_STEPS, "steps between two checkpoints; 0: at the end only"),
  "keep": _whole(1, 1_000_000, "newest checkpoints that are kept"),
  **_optional(
    {
      "keep_every": _whole(0, MOST_STEPS, "also keep every checkpoint at a multiple of so many steps; 0: none"),
      "skip_nonfinite": _whole(0, MOST_STEPS, "steps in a row, not finite, that are left out before the run ends"),
      "profile": _text('"100:110" writes an XLA trace of these steps'),
    }
  ),
}
# Keys of `models.config.TransformerConfig`, which checks the others that it has.
MODEL = {
  "n_layers": _whole(1, 1_000, "layers"),
  "n_heads": _whole(1, 2**20, "heads of a layer"),
  "d_model": _whole(1, 2**20, "width of the residual stream"),
  "d_mlp": _whole(1, 2**24, "hidden units of an MLP"),
}
DROPOUT = {f"dropout_{name}": _share("rate, in training") for name in ("embed", "attn", "resid")}
MODEL_BLOCK = {**_under("model", MODEL), **_optional(_under("model", DROPOUT))}
# Of a decoder's training, besides: `training.decoder_objective`.
DECODER = {
  "encoder_blocks": _whole(0, 1024, "residual blocks between the activation and the transformer"),
  "encoder_width": _whole(0, 2**20, "of their residual stream; 0: the activation's own"),
  "n_slots": _whole(1, 1024, "projections of the encoding that join each layer's keys and values"),
  "normalize": _choice(("none", "standard", "whiten"), "of activations, per site"),
  "sites": _names("short names; (): the task's"),
  "pairs_per_text": _whole(0, 100_000, "pairs (site, position) for each run of the target; 0 with a token_count_loss only"),
  "bos_rate": _number(0, 1, "share of pairs at BOS"),
  "reweight": _number(0, 1e6, "sites are drawn with exp(reweight * (mean rate - rate)); 0: uniformly"),
  "noise": _number(0, 1e6, "largest standard deviation of the noise added to activations"),
  "eval_queries": _whole(1, MOST_QUERIES, "per site, in evaluations during the training"),
  "final_queries": _whole(1, MOST_QUERIES, "per site, in the last evaluation"),
  **_optional(_under("model", MODEL | DROPOUT)),  # a language model that it starts from has its own shape
  **_optional(
    {
      "encoder_inner": _whole(0, 2**20, "hidden units of the encoder's blocks; 0: encoder_width"),
      "site_inputs": _switch("whether each site has a matrix of its own into the encoder"),
      "token_count_loss": _number(0, 1e6, "weight of an auxiliary loss: counts of each token, from the encoding"),
      "init_from": _text("a finished reader, or a language model, to start from"),
    }
  ),
}  # fmt: skip
# Of a target's training, besides: `training.target_objective`.
TARGET = {
  **MODEL_BLOCK,
  "eval_examples": _whole(1, 10**9, "held-out inputs of each evaluation; all of them at the end"),
  **_optional(
    _under(
      "start",
      {
        "target": _text("a finished target to start from"),
        "reinit_tokens": _text("tokens that get a new embedding"),
        "qk_noise_std": _number(0, 1e3, "of the noise added to W_Q and W_K"),
      },
    )
  ),
}
LANGUAGE_TARGET = {
  "path": _text("a Hugging Face folder or .gguf file; --target sets it"),
  **_optional(
    {
      "convention": _choice(("", "centered", "raw"), 'how weights are processed; "": as its family is'),
      "dtype": _choice(_DTYPES, "of its parameters and of what is computed with them"),
      "family": _text("of the user: package.module:NAME"),
    }
  ),
}
DATA = {
  "task": _text("name, or package.module:NAME"),
  "data.config": _text("of TensorFlow Datasets: full or tiny"),
  "data.dir": _text("of TensorFlow Datasets"),
}
EXPERIMENTS = {
  "task": _text("name, or package.module:NAME"),
  "seed": _whole(0, MOST_SEED, "of the pairs"),
  "split": _choice(("test", "train"), "of the task's inputs"),
  "pairs": _whole(1, 100_000_000, "of an experiment, at most"),
  "batch_size": _whole(1, MOST_TEXTS, "pairs in one jitted program"),
}
EXPERIMENT = _optional(
  {
    "kind": _text("patch, ablate or attribute"),
    "about": _text("in words"),
    "addresses": _names("a step each, such as a0.0@=; (): every head"),
    "orders": _names("forward, backward or together"),
    "to": _text("of an ablation: mean or zero"),
    "contrast": Key(_block, "block of keys", "of a patch: what changes"),
    "position": Key(_label, "text or whole", "where heads are patched"),
    "read": Key(_labels, "tuple of texts", "of an ablation: where predictions are compared"),
    "roles": _names("of an attribution: the tokens whose logits are compared"),
    "top": _whole(1, 1_000_000, "of an attribution: tokens at each end"),
  }
)
_SETTINGS_OF_A_REPORT = {
  "title": _text("of the page"),
  "seed": _whole(0, MOST_SEED, "of the samples"),
  "num_samples": _whole(1, 1_000_000, "candidates of a query"),
  "particles": _whole(2, 1_000_000, "of Monte Carlo"),
  "budget": _whole(1, 10**12, "of Monte Carlo: runs of the target"),
  "shown": _whole(1, 1_000_000, "samples of a preimage, at most"),
  "mixture": _text("of the decoder's candidates"),
  "method": _text("how preimages are found"),
  "epsilon": _positive(1e6, "threshold on the distance"),
  "metric": _text("euclidean or cosine"),
  "match": _text("anywhere or position"),
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
  **_optional(
    {
      "batch_size": TRAINING["batch_size"],
      "batch_per_device": _whole(1, MOST_TEXTS, "texts of a data-parallel device"),
      "plan.target": _text("an architecture"),
      "plan.decoder": _text("an architecture"),
      "plan.length": _whole(2, 2**20, "tokens of a text"),
      "plan.dtype": _choice(_DTYPES[1:], "of the target"),
    }
  ),
}
REPORT = _optional(_SETTINGS_OF_A_REPORT)
# Command -> the keys of its configs, as --help-config lists them.
OF_COMMAND: dict[str, dict[str, Key]] = {
  "train": {**DATA, **TRAINING, **DECODER, **_optional(_under("target", LANGUAGE_TARGET))},
  "train-target": {
    **DATA,
    "seed": STEP["seed"],
    **_under("target", {name: key for name, key in {**TRAINING, **TARGET}.items() if name != "seed"}),
  },
  "patch": {**EXPERIMENTS, **_under("experiments.NAME", EXPERIMENT)},
  "plan": PLAN,
}


def check(config: Any, table: Mapping[str, Key], prefix: str = "") -> None:
  """Checks a config against a table.

  Args:
    config: a `ConfigDict` or nested dicts.
    table: dotted key -> what it must be.
    prefix: of the keys' names in messages, "target." for a block of a config.

  Raises:
    InversionViewError: the first key that is missing, of another type or out of its range; names it and its value.
  """
  for name, key in table.items():
    found, value = _look_up(config, name, prefix)
    if found and not (key.optional and value is None):
      key.check(prefix + name, value)
    elif not found and not key.optional:
      raise InversionViewError(f"the config has no key {prefix}{name} ({key.kind}: {key.meaning}); add it")


def check_call(config: Any, prefix: str = "") -> None:
  """Raises `InversionViewError` where the texts of one call of the training step would not fit into memory."""
  per_call = min(config["steps_per_call"], config["steps"])
  if config["batch_size"] * per_call > MOST_TEXTS_OF_A_CALL:
    raise InversionViewError(
      f"{prefix}batch_size = {config['batch_size']:,} times {prefix}steps_per_call = {per_call:,} must be at most "
      f"{MOST_TEXTS_OF_A_CALL:,} texts, which are in memory together"
    )


def described(table: Mapping[str, Key]) -> str:
  """A table in Markdown, a row for each key."""
  rows = (f"| `{name}` | {key.kind} | {key.meaning} |" for name, key in table.items())
  return "\n".join(("| key | value | meaning |", "|---|---|---|", *rows))


def listed(table: Mapping[str, Key]) -> str:
  """A table in columns, a line for each key."""
  names, kinds = max(map(len, table)), max(len(key.kind) for key in table.values())
  return "\n".join(
    f"{name:{names}}  {key.kind:{kinds}}  {key.meaning}{' (may be left out)' if key.optional else ''}"
    for name, key in table.items()
  )


def _look_up(config: Any, name: str, prefix: str) -> tuple[bool, Any]:
  """Whether a config has a dotted key, and its value."""
  node, trail = config, ""
  for part in name.split("."):
    if not hasattr(node, "keys"):
      raise InversionViewError(
        f"{prefix}{trail} = {values.brief(node)} must be a block of keys, such as {prefix}{name}"
      )
    if part not in node:
      return False, None
    node, trail = node[part], f"{trail}.{part}" if trail else part
    if node is None and trail != name:
      return False, None
  return True, node
