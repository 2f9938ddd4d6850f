"""Losses and gradients that are not finite: counts them, writes the batch of the one that ends a run, and names its sites."""

import io
import pathlib
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax.devices import hosts, parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.training.batches import Batches
from inversionview_jax.training.update import Objective

_NAMED = 12  # sites named in the error


class NonFiniteGuard:
  """Ends a run after more than `skip_nonfinite` steps in a row whose loss or gradient norm is not finite.

  Args:
    objective: its `inspect`, where it has one, names the sites of the batch.
    config: seed, and, optional, skip_nonfinite (default 0: the first one ends the run).
    folder: gets the batch, `nonfinite_STEP.npz`.
    batches: of the run.
  """

  def __init__(self, objective: Objective, config: ConfigDict, folder: pathlib.Path, batches: Batches):
    self._objective, self._config, self._folder, self._batches = objective, config, folder, batches
    self._in_a_row = 0

  def skipped(self, step: int, losses: np.ndarray, norms: np.ndarray, extra: Any) -> list[int]:
    """The steps that the update left out, of those up to `step` with these losses and norms float32[k].

    Raises:
      InversionViewError: more in a row than the config allows.
    """
    skipped = []
    for i, finite in enumerate(np.isfinite(losses) & np.isfinite(norms)):
      at = step - len(losses) + i + 1
      self._in_a_row = 0 if finite else self._in_a_row + 1
      if finite:
        continue
      if self._in_a_row > self._config.get("skip_nonfinite", 0):
        self._fail(at, extra)
      skipped.append(at)
    return skipped

  def _fail(self, step: int, extra: Any) -> NoReturn:
    tokens, choices, sites = self._batches[step - 1], {}, ""
    if hasattr(self._objective, "inspect"):
      key = jax.random.fold_in(jax.random.key(self._config.seed), step - 1)
      keys = parallel.fold_in_each(key, jnp.arange(len(tokens)))
      choices, names = self._objective.inspect(parallel.fetch(extra), tokens, keys)
      more = f" and {len(names) - _NAMED} more" if names[_NAMED:] else ""
      sites = f"; its sites: {', '.join(names[:_NAMED])}{more}"
    path = save_batch(self._folder, step, tokens, choices)
    raise InversionViewError(
      f"loss or gradient is not finite at step {step}{sites}; the batch is in {path}; lower optimizer.lr or set optimizer.clip, or let "
      "skip_nonfinite leave out so many steps"
    )


def save_batch(folder: pathlib.Path, step: int, tokens: np.ndarray, choices: dict) -> pathlib.Path:
  """Writes the batch of a step as `nonfinite_STEP.npz`; the first host alone writes.

  Args:
    folder: where.
    step: counted from 1.
    tokens: int32[B, T].
    choices: arrays, the random choices of the loss (`Objective.inspect`: sites, positions).

  Returns:
    The file's path.
  """
  buffer = io.BytesIO()
  np.savez(buffer, step=step, tokens=tokens, **jax.tree.map(np.asarray, choices))
  path = folder / f"nonfinite_{step}.npz"
  if hosts.is_writer():
    write_whole(path, buffer.getvalue())
  return path
