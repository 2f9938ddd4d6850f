"""A text as the page shows it: tokens, labels of positions, and attention."""

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from inversionview_jax.errors import InversionViewError

if TYPE_CHECKING:  # JAX takes seconds to import
  from inversionview_jax.reading.source import Source


@dataclasses.dataclass(frozen=True)
class Input:
  """A text's tokens, positions and attention.

  Attributes:
    strings: its T tokens, BOS first.
    labels: the task's name of each position; "" where it has none.
    query_positions: names of the positions where the task takes queries, which a reader was trained to read.
    patterns: float32[L, H, T, T], attention of every head.
    about: what the task says of each label; "" where it says nothing.
  """

  strings: tuple[str, ...]
  labels: tuple[str, ...]
  query_positions: tuple[str, ...]
  patterns: np.ndarray
  about: tuple[str, ...] = ()

  def name(self, position: int) -> str:
    """A position's label if no other has it, else its index."""
    label = self.labels[position]
    return label if label and self.labels.count(label) == 1 else str(position)

  def about_position(self, position: int) -> str:
    """What the task says of a position's label; "" where it says nothing."""
    return self.about[position] if self.about else ""


def encode(source: "Source", text: str) -> Input:
  """The text as an input of a source's task; raises `InversionViewError` for one that the task cannot encode."""
  task, tokenizer = source.task, source.task.tokenizer
  if not text:
    raise InversionViewError("the text is empty: type an input of the task, or take a random one")
  row = tokenizer.encode_batch([text], length=task.length, eos=True)[0]
  ids = [int(token) for token in row if token != tokenizer.pad_id]
  queries = np.flatnonzero(np.asarray(task.query_mask(row[None]))[0])
  patterns = source.attention(row[None])[0][:, :, : len(ids), : len(ids)]
  labels = tuple(task.labels(ids))
  encoded = Input(tuple(tokenizer.strings(ids)), labels, (), patterns, tuple(map(task.about_position, labels)))
  return dataclasses.replace(encoded, query_positions=tuple(encoded.name(int(k)) for k in queries))
