"""Tokenizers of characters and of a part of a model's vocabulary, and any tokenizer from its description.

The rest of the package uses `Tokenizer` only.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.tokenizer_base import BOS, EOS, PAD, Batches, Tokenizer

# Embeddings are padded to a round number of rows, by less than this many (Phi-2's by 905).
_UNUSED_ROWS, _ROUND = 1024, 64


@dataclasses.dataclass(frozen=True)
class CharTokenizer(Batches):
  """One token per character, with BOS, EOS and PAD at the ids the vocabulary gives them.

  Attributes:
    vocabulary: the token string of every id; contains "<BOS>", "<EOS>" and "<PAD>" once each. Where another one is longer than a character,
      tokens are separated by spaces in texts.
    longest: the most tokens of a text, besides BOS and EOS; 0: any number.
  """

  vocabulary: tuple[str, ...]
  longest: int = 0

  def __post_init__(self):
    if len(set(self.vocabulary)) != len(self.vocabulary) or not {BOS, EOS, PAD} <= set(self.vocabulary):
      raise InversionViewError("a character vocabulary needs distinct tokens with <BOS>, <EOS> and <PAD> among them")

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    """Token string -> id."""
    return {token: i for i, token in enumerate(self.vocabulary)}

  @functools.cached_property
  def spaced(self) -> bool:
    """Whether tokens are separated by spaces in texts."""
    return any(len(token) > 1 for token in self.vocabulary if token not in (BOS, EOS, PAD))

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
    """Token ids of `text` without BOS and EOS; raises `InversionViewError` for a character outside the vocabulary, or too many."""
    parts: Sequence[str] = text.split() if self.spaced else text
    if self.longest and len(parts) > self.longest:
      raise InversionViewError(f"{text!r} has {len(parts)} symbols; this vocabulary is for {self.longest} at most")
    if self.spaced:
      return self._encode_spaced(parts, text)
    for column, character in enumerate(text):
      if character not in self._ids:
        known = "".join(t for t in self.vocabulary if len(t) == 1)
        raise InversionViewError(
          f"character {character!r} (at {column} of {text!r}) is outside the vocabulary; known characters: {known}"
        )
    return [self._ids[character] for character in text]

  def _encode_spaced(self, parts: Sequence[str], text: str) -> list[int]:
    known = [token for token in self.vocabulary if token not in (BOS, EOS, PAD)]
    if unknown := [part for part in parts if part not in known]:
      raise InversionViewError(
        f"{unknown[0]!r} (in {text!r}) is outside the vocabulary; known symbols, separated by spaces: {' '.join(known)}"
      )
    return [self._ids[part] for part in parts]

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The token string of each id, specials as "<BOS>", "<EOS>", "<PAD>"."""
    return [self.vocabulary[int(i)] for i in ids]

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    between = " " if self.spaced else ""
    return between.join(t for t in self.strings(ids) if t not in (BOS, EOS, PAD))

  def describe(self) -> dict:
    """Plain data that names this tokenizer in a model's JSON; two tokenizers are the same iff these are equal."""
    longest = {"longest": self.longest} if self.longest else {}
    return {"kind": "characters", "vocabulary": list(self.vocabulary)} | longest


@dataclasses.dataclass(frozen=True)
class PartTokenizer(Batches):
  """Some tokens of a model's tokenizer, renumbered from 0, with an EOS and a PAD of their own after them.

  The vocabulary of decoders for language models: a task whose texts need 200 tokens does not pay for 50,000, and texts can end and be
  padded where the model's tokenizer has no token for that (GPT-2) or one with several meanings. `Target.restrict_to` renumbers a model's
  tokens in the same way.

  Attributes:
    base: the model's tokenizer.
    kept: ids of `base`, increasing, its BOS among them; token i here is token kept[i] there. None keeps all.

  Raises:
    InversionViewError: `kept` holds other ids, or not BOS.
  """

  base: HuggingFaceTokenizer
  kept: tuple[int, ...] | None = None

  def __post_init__(self):
    if self.kept is None:
      return
    object.__setattr__(self, "kept", tuple(int(i) for i in self.kept))
    if (
      list(self.kept) != sorted(set(self.kept) & set(range(self.base.vocab_size))) or self.base.bos_id not in self.kept
    ):
      raise InversionViewError(
        f"a part of a vocabulary needs increasing token ids from 0 to {self.base.vocab_size - 1} with BOS ({self.base.bos_id}) among them"
      )

  @functools.cached_property
  def base_ids(self) -> np.ndarray:
    """int64[vocab_size - 2]: the id in `base` of every token but EOS and PAD."""
    return np.arange(self.base.vocab_size) if self.kept is None else np.array(self.kept)

  @functools.cached_property
  def _numbers(self) -> dict[int, int]:
    """Id in `base` -> id here."""
    return {int(token): i for i, token in enumerate(self.base_ids)}

  @property
  def vocab_size(self) -> int:
    return len(self.base_ids) + 2

  @functools.cached_property
  def bos_id(self) -> int:
    return self._numbers[self.base.bos_id]

  @property
  def eos_id(self) -> int:
    return len(self.base_ids)

  @property
  def pad_id(self) -> int:
    return len(self.base_ids) + 1

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS and EOS; raises `InversionViewError` for a token outside the part that is kept."""
    ids = self.base.encode(text)
    for token in ids:
      if token not in self._numbers:
        raise InversionViewError(
          f"{self.base.strings([token])[0]!r} (in {text!r}) is not among the {len(self.base_ids):,} tokens of this task; other texts can be "
          "read of the model alone, without a reader: --target MODEL --prior model, or --texts FILE"
        )
    return [self._numbers[token] for token in ids]

  def number(self, base_id: int) -> int:
    """The id here of a token of `base`; raises `InversionViewError` if it is not kept."""
    if base_id not in self._numbers:
      raise InversionViewError(
        f"token {base_id} ({self.base.strings([base_id])[0]!r}) is not among the tokens of this task"
      )
    return self._numbers[base_id]

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """Ids here that no ordinary text has: EOS, PAD, and the special ones of `base`."""
    kept = {self._numbers[number] for number in self.base.special_ids if number in self._numbers}
    return frozenset(kept | {self.eos_id, self.pad_id})

  def to_base(self, ids: npt.ArrayLike) -> np.ndarray:
    """int[...] here -> int64[...] in `base`; EOS and PAD become its EOS."""
    return np.append(self.base_ids, [self.base.eos_id, self.base.eos_id])[np.asarray(ids)]

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, specials as "<BOS>", "<EOS>", "<PAD>"."""
    names = {self.bos_id: BOS, self.eos_id: EOS, self.pad_id: PAD}
    return [names[i] if i in names else self.base.piece(int(self.base_ids[i])) for i in map(int, ids)]

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    specials = (self.bos_id, self.eos_id, self.pad_id)
    return self.base.text([int(self.base_ids[i]) for i in map(int, ids) if i not in specials])

  def describe(self) -> dict:
    """Plain data that names this tokenizer in a model's JSON; two tokenizers are the same iff these are equal."""
    return {"kind": "part", "base": self.base.describe(), "kept": None if self.kept is None else list(self.kept)}


def from_description(description: dict) -> Tokenizer:
  """The tokenizer that a `describe` describes; raises `InversionViewError` for a kind this version does not know."""
  where = "the description of the tokenizer"
  kind = values.mapping(where, description).get("kind")
  if kind == "characters":
    values.fields(where, description, {"vocabulary": functools.partial(values.sequence, check=values.text, most=2**24)})
    longest = values.whole(f"longest of {where}", description.get("longest", 0), low=0, high=2**31)
    return CharTokenizer(tuple(description["vocabulary"]), longest)
  token = functools.partial(values.whole, low=0, high=2**31)
  if kind == "huggingface":
    values.fields(where, description, {"content": values.text, "bos": token, "eos": token, "pad": token})
    ids = description["bos"], description["eos"], description["pad"]
    split = values.switch(f"split_special_tokens of {where}", description.get("split_special_tokens", False))
    prepends = values.switch(f"prepends_bos of {where}", description.get("prepends_bos", True))
    return HuggingFaceTokenizer(description["content"], *ids, split, prepends_bos=prepends)
  if kind == "part":

    def kept(name, value):  # None: all of the base's
      return None if value is None else values.sequence(name, value, token, most=2**24)

    values.fields(where, description, {"base": values.mapping, "kept": kept})
    base = from_description(description["base"])
    if not isinstance(base, HuggingFaceTokenizer):
      raise InversionViewError("the description of the tokenizer is damaged: only a Hugging Face tokenizer has parts")
    return PartTokenizer(base, description["kept"])
  if kind == "python":  # of transformers, written in Python
    raise InversionViewError(
      f"the tokenizer {description.get('class')} cannot be stored; load the checkpoint with tokenizer=..."
    )
  raise InversionViewError(f"unknown kind of tokenizer {kind!r}; this version knows: characters, huggingface, part")


def check_fits(tokenizer: Tokenizer, rows: int, own: bool = False) -> None:
  """Raises `InversionViewError` if the size of a tokenizer's vocabulary is not that of a model's embedding, in rows.

  A language model may have rows without a token, since embeddings are padded to a round number, and added tokens without a row.

  Args:
    tokenizer: to be used with the model.
    rows: of the model's embedding.
    own: whether it came with the model: then up to half of the rows may be left over. Otherwise 2 %. In either case as many as padding to a
      multiple of 64 explains.
  """
  tokens, surplus = tokenizer.vocab_size, rows - tokenizer.vocab_size
  fits = surplus == 0
  if (model_size := getattr(tokenizer, "model_size", None)) is not None:
    padded = surplus <= (0.5 if own else 0.02) * rows or (surplus < _UNUSED_ROWS and rows % _ROUND == 0)
    fits = model_size <= rows and padded
    specials = (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
    fits = fits and max(specials) < rows
  if not fits:
    raise InversionViewError(
      f"the tokenizer has {tokens} tokens but the model {rows}; give the tokenizer that the model was trained with"
    )


def brief(description: dict | None) -> str:
  """A description of `Tokenizer.describe`, short enough for an error message."""
  if not description:
    return "none"
  if description.get("kind") == "huggingface":
    return f"huggingface {hashlib.sha256(str(description.get('content')).encode()).hexdigest()[:8]}"
  if description.get("kind") == "part":
    kept = description.get("kept")
    return f"{'all' if kept is None else len(kept)} tokens of {brief(description.get('base'))}"
  tokens = description.get("vocabulary", ())
  return f"{description.get('kind')} {''.join(t for t in tokens if len(t) == 1)}" + (
    f", {description['longest']} at most" if description.get("longest") else ""
  )
