"""Where a run's numbers are shown besides its own metrics.jsonl: TensorBoard events, and Weights & Biases where the config asks for it."""

import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from inversionview_jax.errors import InversionViewError

LOGS = ("tensorboard", "wandb")  # values of the config key `log`
_PROJECT = "inversionview"  # of Weights & Biases, unless WANDB_PROJECT names another


def check(config: ConfigDict) -> None:
  """Raises `InversionViewError` for a config that logs to a service whose package is not installed."""
  if config.get("log") == "wandb" and importlib.util.find_spec("wandb") is None:
    raise InversionViewError(
      "log = 'wandb' needs the package wandb: pip install 'inversionview_jax[wandb]'; metrics.jsonl and TensorBoard have the same numbers"
    )


class Boards:
  """The boards of one run; opened on the first host only.

  Args:
    folder: of the run: gets `tensorboard/`, and `wandb/`.
    config: of the run; its `log` chooses the boards.
    done: the step that is resumed from.

  Attributes:
    missing: a message where tensorboardX is not installed; "" otherwise.
  """

  def __init__(self, folder: pathlib.Path, config: ConfigDict, done: int):
    self.missing = ""
    self._board: Any = None
    self._run: Any = None
    try:
      import tensorboardX

      self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
    except ImportError:
      self.missing = "tensorboardX is not installed: no TensorBoard events, metrics.jsonl has all of it"
    if config.get("log") == "wandb":
      self._run = _wandb_run(folder, config)

  def add(self, step: int, values: Mapping[str, Any]) -> None:
    """Adds the numbers of one step."""
    numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
    if self._board is not None:
      for name, value in numbers.items():
        self._board.add_scalar(name, value, step)
      self._board.flush()
    if self._run is not None:
      self._run.log(numbers, step=step)

  def close(self) -> None:
    """Sends what is not sent yet."""
    if self._board is not None:
      self._board.close()
    if self._run is not None:
      self._run.finish()


def _wandb_run(folder: pathlib.Path, config: ConfigDict) -> Any:
  """The run of this folder at Weights & Biases: the same one when the training is resumed."""
  import wandb

  path = os.path.realpath(folder)
  return wandb.init(
    project=os.environ.get("WANDB_PROJECT") or _PROJECT,
    name=os.path.join(*pathlib.Path(path).parts[-2:]),  # W/decoder
    id=hashlib.sha256(path.encode()).hexdigest()[:16],
    resume="allow",
    dir=str(folder),
    config=json.loads(config.to_json_best_effort()),
  )
