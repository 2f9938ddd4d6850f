"""What a reader shows of itself: its target, task, sites, positions and decoder."""

from typing import TYPE_CHECKING

import jax
import numpy as np

from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tables import Table
from inversionview_jax.tasks import Task

if TYPE_CHECKING:
  from inversionview_jax.reading.reader import Reader


def table_of(reader: "Reader") -> Table:
  """A reader in eight lines."""
  task, decoder, target = reader.task, reader.config.transformer, reader.target.config
  parameters = sum(x.size for x in jax.tree.leaves(reader.variables.get("params", reader.variables)))
  default, *others = task.mixtures
  first = _first_input(task)
  example = f"such as {task.tokenizer.text(first)!r}" if first else ""
  rows = [
    (
      "target",
      f"{reader.target.name}: {target.n_layers} layers, {target.n_heads} heads, width {target.d_model}, {reader.target.convention}",
    ),
    ("task", " · ".join(filter(None, (task.name, example)))),
    ("sites", " ".join(reader.config.sites)),
    ("positions", " ".join(filter(None, task.labels(first))) if first else ""),
    ("epsilon", f"{task.epsilon:g}, {METRICS[task.metric]}"),
    ("mixture", f"{default} ({task.mixture.num_samples:,} candidates)" + "".join(f", or {other}" for other in others)),
    (
      "decoder",
      f"{parameters / 1e6:.2f} M parameters: {reader.config.encoder_blocks} encoder blocks, then {decoder.n_layers} layers, "
      f"{decoder.n_heads} heads, width {decoder.d_model}",
    ),
  ]
  return Table(f"Reader {reader.name!r}", (), tuple(row for row in rows if row[1]))


def _first_input(task: Task) -> list[int]:
  """Tokens of one input without padding, as an example; [] where the task's data cannot be read."""
  try:
    row = task.tokens(np.zeros(1, np.int64))[0]
  except (InversionViewError, OSError):
    return []
  return [int(token) for token in row if token != task.tokenizer.pad_id]
