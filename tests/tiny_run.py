"""A tiny training run in a process of its own, for tests that end it: python tiny_run.py WORKDIR '{"steps": 40, ...}'.

Prints a line when it reaches the point named by HOLD ("compile", "evaluate", "save") and waits there for some seconds, so that a test can send
a signal. With COORDINATOR, PROCESSES and PROCESS it is one of several hosts.
"""

import hashlib
import json
import os
import sys
import time

from inversionview_jax import preemption

if __name__ == "__main__":
  preemption.listen()

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import hosts, parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import storage
from inversionview_jax.training import checkpoints, loop

ADAMW = {
  "name": "adamw", "lr": 1e-2, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01, "clip": 1.0, "b2": 0.99,
}  # fmt: skip
CONFIG = {
  "batch_size": 16, "steps": 40, "steps_per_call": 4, "seed": 0, "average": 0.9, "log_every": 4, "eval_every": 8, "save_every": 8, "keep": 2,
  "optimizer": ADAMW,
}  # fmt: skip
HOLD = os.environ.get("HOLD", "")


def hold(point: str) -> None:
  """Prints `point` and waits, if HOLD names it."""
  if HOLD != point:
    return
  print(point, flush=True)
  if point == "compile":  # like a compiler, one long C call, during which Python's signal handlers do not run
    hashlib.pbkdf2_hmac("sha256", b"", b"", 60_000_000)
  else:
    time.sleep(2 if point == "save" else 8)  # an evaluation is interrupted


class Slope:
  """The objective of a linear map with noise; each evaluation changes the loss after it."""

  frozen = {"wanted": np.arange(4, dtype=np.float32)}

  def __init__(self):
    self.calls = 0

  def init(self, key):
    return {"layer": {"kernel": jax.random.normal(key, (4, 4)), "bias": jnp.zeros(4)}}, {"gain": jnp.float32(1)}

  def loss(self, params, extra, frozen, tokens, keys):
    self.calls += 1
    if self.calls == 2:  # the first call counts FLOPs
      hold("compile")
    noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    y = tokens[:, :4] / 10.0 @ params["layer"]["kernel"] + params["layer"]["bias"] + noise
    return extra["gain"] * jnp.sum(jnp.square(y - frozen["wanted"])), jnp.float32(y.size)

  def evaluate(self, params, extra, final):
    hold("evaluate")
    score = float(np.sum(parallel.fetch(params["layer"]["kernel"])))
    return {"score": score}, {"gain": jnp.float32(1 + 0.1 * abs(score))}

  def finish(self, params, metrics, folder):
    storage.save_model(folder, params, {"config": {}, "notes": metrics})


def rows() -> np.ndarray:
  task = tasks.get("addition")
  return task.tokens(task.split("train")[:320])


def main(folder: str, changes: str = "{}") -> int:
  config = ConfigDict(CONFIG | json.loads(changes))
  checkpoints.silence_orbax()
  if HOLD == "save":
    kept = checkpoints.Checkpoints.save
    checkpoints.Checkpoints.save = lambda self, *args: (
      kept(self, *args),
      hold("save"),
    )  # it is written in the background
  try:
    if "PROCESSES" in os.environ:
      timeout = float(os.environ.get("HEARTBEAT_TIMEOUT", hosts.HEARTBEAT_TIMEOUT))
      hosts.start(os.environ["COORDINATOR"], int(os.environ["PROCESSES"]), int(os.environ["PROCESS"]), timeout)
    mesh = parallel.mesh_of(config)
    loop.refuse_workdir(config, folder, mesh)
    loop.train(Slope(), rows(), config, folder, mesh)
    code = 0
  except InversionViewError as error:
    print(f"refused: {error}", file=sys.stderr)
    code = 2
  except preemption.Stopped as stopped:
    print(stopped, file=sys.stderr)
    code = preemption.EXIT_AGAIN
  hosts.shutdown(code)
  return code


if __name__ == "__main__":
  sys.exit(main(*sys.argv[1:]))
