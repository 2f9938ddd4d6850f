"""A tokenizer of `transformers` that is written in Python, without a counterpart in the `tokenizers` library (ByT5's, a user's own).

Shapes: B texts, T tokens.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from inversionview_jax.tasks.tokenizer_base import Batches, strings_of


class PythonTokenizer(Batches):
  """Such a tokenizer with the ids that stand for BOS, EOS and PAD. It runs texts; it cannot be stored beside a reader.

  Attributes:
    original: the tokenizer.
    bos_id, eos_id, pad_id: may be the same id.
  """

  def __init__(self, original: Any, bos_id: int, eos_id: int, pad_id: int):
    self.original, self.bos_id, self.eos_id, self.pad_id = original, bos_id, eos_id, pad_id

  @property
  def vocab_size(self) -> int:
    return len(self.original)

  @property
  def model_size(self) -> int:
    """Tokens without those that were added behind the vocabulary."""
    return int(getattr(self.original, "vocab_size", len(self.original)))

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS and EOS."""
    return [int(i) for i in self.original.encode(text, add_special_tokens=False)]

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, specials as "<BOS>", "<EOS>", "<PAD>"."""
    return strings_of(self, ids, lambda token: str(self.original.decode([token])))

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    return str(self.original.decode([int(i) for i in ids if int(i) not in (self.bos_id, self.eos_id, self.pad_id)]))

  def describe(self) -> dict:
    """Plain data that names this tokenizer; it cannot be made again from it."""
    vocabulary = json.dumps(sorted(self.original.get_vocab().items(), key=str)).encode()
    named = {"kind": "python", "class": type(self.original).__name__, "sha256": hashlib.sha256(vocabulary).hexdigest()}
    return named | {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}

  def __eq__(self, other: object) -> bool:
    return isinstance(other, PythonTokenizer) and self.describe() == other.describe()

  def __hash__(self) -> int:
    return hash((type(self.original).__name__, self.bos_id, self.eos_id, self.pad_id))
