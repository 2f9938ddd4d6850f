"""A small objective and its runs, for the tests of training."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage

TASK = tasks.get("addition")
ROWS, HELD_OUT = TASK.tokens(TASK.split("train")[:320]), TASK.tokens(TASK.split("test")[:50])
ADAMW = {
  "name": "adamw", "lr": 1e-2, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01,
  "clip": 1.0, "b2": 0.99,
}  # fmt: skip
POISON = 99  # a token that makes the loss of `Slope` not a number


def settings(**changes):
  config = ConfigDict({
    "batch_size": 16, "steps": 20, "steps_per_call": 5, "seed": 0, "average": 0.9, "log_every": 5, "eval_every": 10,
    "save_every": 10, "keep": 2, "optimizer": ADAMW,
  })  # fmt: skip
  config.update(changes)
  return config


class Slope:
  """An objective that compiles in no time: a linear map with noise, which records its evaluations."""

  frozen = {"wanted": np.arange(4, dtype=np.float32)}
  start = {}

  def __init__(self, width=4, finite=True, evaluate=None):
    self.width, self.finite, self.evaluated, self.finished = width, finite, [], 0
    self._evaluate = evaluate or (lambda extra: extra)

  def init(self, key):
    return {"layer": {"kernel": jax.random.normal(key, (self.width, 4)), "bias": jnp.zeros(4)}}, {
      "gain": jnp.float32(1)
    }

  def loss(self, params, extra, frozen, tokens, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    y = tokens[:, : self.width] / 10.0 @ params["layer"]["kernel"] + params["layer"]["bias"] + noise
    total = extra["gain"] * jnp.sum(jnp.square(y - frozen["wanted"]))
    return total if self.finite else total * jnp.where(jnp.any(tokens == POISON), jnp.nan, 1.0), jnp.float32(y.size)

  def evaluate(self, params, extra, final):
    self.evaluated.append(final)
    return {"score": float(np.sum(params["layer"]["kernel"]))}, self._evaluate(extra)

  def finish(self, params, metrics, folder):
    self.finished += 1
    storage.save_model(folder, params, {"config": {}, "notes": metrics})


def lines(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def finished(folder) -> bytes:
  return (folder / "model.safetensors").read_bytes()


def refusal(function, *args, **kwargs) -> str:
  with pytest.raises(InversionViewError) as caught:
    function(*args, **kwargs)
  assert "\n" not in str(caught.value)
  return str(caught.value)
