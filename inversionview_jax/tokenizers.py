"""One small contract between text and token ids.

Everything else in the package needs only: ``encode``, ``encode_batch``, ``strings``, ``text``, ``bos_id``, ``eos_id``, ``pad_id``,
``vocab_size`` and ``describe`` (the plain data from which `from_description` makes the same tokenizer again).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from inversionview_jax.errors import InversionViewError

BOS, EOS, PAD = "<BOS>", "<EOS>", "<PAD>"


@dataclasses.dataclass(frozen=True)
class CharTokenizer:
  """One token per character, with BOS, EOS and PAD at the ids the vocabulary gives them.

  Attributes:
    vocabulary: the token string of every id; contains "<BOS>", "<EOS>" and "<PAD>" once each.
  """

  vocabulary: tuple[str, ...]

  def __post_init__(self):
    if len(set(self.vocabulary)) != len(self.vocabulary) or not {BOS, EOS, PAD} <= set(self.vocabulary):
      raise InversionViewError("a character vocabulary needs distinct tokens with <BOS>, <EOS> and <PAD> among them")
    object.__setattr__(self, "_ids", {token: i for i, token in enumerate(self.vocabulary)})

  @property
  def vocab_size(self) -> int:
    return len(self.vocabulary)

  @property
  def bos_id(self) -> int:
    return self._ids[BOS]

  @property
  def eos_id(self) -> int:
    return self._ids[EOS]

  @property
  def pad_id(self) -> int:
    return self._ids[PAD]

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS and EOS; raises `InversionViewError` for a character outside the vocabulary."""
    for place, character in enumerate(text):
      if character not in self._ids:
        known = "".join(t for t in self.vocabulary if len(t) == 1)
        raise InversionViewError(
          f"character {character!r} (at {place} of {text!r}) is outside the vocabulary; known characters: {known}"
        )
    return [self._ids[character] for character in text]

  def encode_batch(self, texts: Sequence[str], length: int | None = None) -> np.ndarray:
    """int32[B, T] with BOS in front, EOS behind and PAD to `length` (default: the longest text).

    Raises:
      InversionViewError: a character outside the vocabulary, or a text that does not fit into `length`.
    """
    if isinstance(texts, str):
      raise InversionViewError(f"encode_batch takes a list of texts, not one text: write [{texts!r}]")
    rows = [[self.bos_id, *self.encode(text), self.eos_id] for text in texts]
    longest = max(map(len, rows), default=0)
    length = longest if length is None else length
    if longest > length:
      text = texts[max(range(len(rows)), key=lambda i: len(rows[i]))]
      raise InversionViewError(
        f"text {text!r} has {longest - 2} tokens; the model takes at most {length - 2} (besides BOS and EOS)"
      )
    out = np.full((len(rows), length), self.pad_id, np.int32)
    for i, row in enumerate(rows):
      out[i, : len(row)] = row
    return out

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The token string of each id, specials as "<BOS>", "<EOS>", "<PAD>"."""
    return [self.vocabulary[int(i)] for i in ids]

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    return "".join(t for t in self.strings(ids) if t not in (BOS, EOS, PAD))

  def describe(self) -> dict:
    """Plain data that names this tokenizer in a model's JSON; two tokenizers are the same iff these are equal."""
    return {"kind": "characters", "vocabulary": list(self.vocabulary)}


def from_description(description: dict) -> CharTokenizer:
  """The tokenizer that `describe` described; raises `InversionViewError` for a kind this version does not know."""
  if description.get("kind") != "characters":
    raise InversionViewError(f"unknown kind of tokenizer {description.get('kind')!r}; this version knows: characters")
  return CharTokenizer(tuple(description["vocabulary"]))


def brief(description: dict | None) -> str:
  """What `describe` says, short enough for an error message."""
  if not description:
    return "none"
  tokens = description.get("vocabulary", ())
  return f"{description.get('kind')} {''.join(t for t in tokens if len(t) == 1)}"
