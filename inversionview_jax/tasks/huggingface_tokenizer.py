"""Text to token ids and back by the `tokenizers` library, as language models do."""

import dataclasses
import functools
import json
from collections.abc import Sequence
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks.tokenizer_base import BOS, EOS, PAD, Batches, strings_of


@dataclasses.dataclass(frozen=True)
class HuggingFaceTokenizer(Batches):
  """A tokenizer of the `tokenizers` library, with the ids that stand for BOS, EOS and PAD.

  Attributes:
    content: of its tokenizer.json.
    bos_id, eos_id, pad_id: may be the same id: GPT-2 has one special token for all three.
    split_special_tokens: whether special tokens that are spelled out in a text are taken apart like any other text.
    original: the tokenizer of `transformers` that it was made of, with its chat template; None where it was read from elsewhere.
    prepends_bos: whether texts are run behind a BOS.

  Raises:
    InversionViewError: the content is no tokenizer.
  """

  content: str = dataclasses.field(repr=False)
  bos_id: int
  eos_id: int
  pad_id: int
  split_special_tokens: bool = False
  original: Any = dataclasses.field(default=None, repr=False, compare=False)
  prepends_bos: bool = True
  _library: Any = dataclasses.field(init=False, repr=False, compare=False)
  _size: int = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    import tokenizers

    try:
      library = tokenizers.Tokenizer.from_str(self.content)
    except Exception as error:  # the library raises plain Exception
      raise InversionViewError(f"the tokenizer is damaged: {next(iter(str(error).splitlines()), '')}") from None
    library.no_truncation()  # a text that is too long is an error here, and never truncated
    library.no_padding()
    library.encode_special_tokens = self.split_special_tokens
    object.__setattr__(self, "_library", library)
    object.__setattr__(self, "_size", 1 + max(library.get_vocab(with_added_tokens=True).values(), default=-1))
    for name, token in ((BOS, self.bos_id), (EOS, self.eos_id), (PAD, self.pad_id)):
      if not 0 <= token < self._size:
        raise InversionViewError(f"{name} has the id {token}, but the tokenizer has {self._size} tokens")

  @property
  def vocab_size(self) -> int:
    return self._size

  @functools.cached_property
  def model_size(self) -> int:
    """Tokens without those that were added behind the vocabulary, for which a model may have no embedding."""
    return 1 + max(self._library.get_vocab(with_added_tokens=False).values(), default=-1)

  def is_byte(self, token: int) -> bool:
    """Whether a token stands for a byte that no other token covers ("<0x0A>")."""
    return not self._is_byte_level and _is_byte(self._library.id_to_token(token) or "")

  def spelled(self) -> dict[int, str]:
    """How the added tokens, special ones among them, are spelled: id -> text."""
    return {token: str(added.content) for token, added in self._library.get_added_tokens_decoder().items()}

  def encode(self, text: str) -> list[int]:
    """Token ids of `text` without BOS and EOS; a special token spelled out in it becomes that token."""
    return self._encoded([text])[0].ids

  def encode_many(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of each text, in parallel."""
    return [one.ids for one in self._encoded(texts)]

  def _encoded(self, texts: Sequence[str]) -> list:
    try:
      return self._library.encode_batch(list(texts), add_special_tokens=False)
    except (
      Exception
    ) as error:  # the library raises nothing narrower; such as for an unknown token that is not in the vocabulary
      raise InversionViewError(
        f"the tokenizer cannot encode the text: {error}; mend its files, or give another"
      ) from None

  def token_at(self, text: str, character: int) -> int:
    """Index of the token of ``encode(text)`` that holds a character; raises `InversionViewError` if none does."""
    index = self._encoded([text])[0].char_to_token(character)
    if index is None:
      raise InversionViewError(f"no token of {text!r} holds its character {character}")
    return index

  def strings(self, ids: Sequence[int]) -> list[str]:
    """The text of each token by itself, specials as "<BOS>", "<EOS>", "<PAD>".

    A token that holds part of a character is shown as "�". An id of more than one special token is BOS in front, EOS after that, and PAD
    after EOS at the end.
    """
    return strings_of(self, ids, self.piece)

  def text(self, ids: Sequence[int]) -> str:
    """The text of `ids`, without BOS, EOS and PAD."""
    kept = [int(i) for i in ids if int(i) not in (self.bos_id, self.eos_id, self.pad_id) and int(i) < self._size]
    return self._library.decode(kept, skip_special_tokens=False)

  def piece(self, token: int) -> str:
    """The text of one token that is not special."""
    piece = self._library.id_to_token(token) if token < self._size else None
    if piece is None:
      return f"<unused {token}>"
    if self._is_byte_level and token not in self._added:
      return self._library.decoder.decode([piece])
    if _is_byte(piece):
      return bytes([int(piece[3:5], 16)]).decode(errors="replace")
    return piece if self._is_byte_level else piece.replace("▁", " ")  # the library's decoder drops the space in front

  @functools.cached_property
  def special_ids(self) -> frozenset[int]:
    """Ids that no ordinary text has: BOS, EOS, PAD, and the tokens that the library calls special."""
    added = self._library.get_added_tokens_decoder().items()
    return frozenset({self.bos_id, self.eos_id, self.pad_id} | {number for number, token in added if token.special})

  @functools.cached_property
  def _added(self) -> frozenset[int]:
    return frozenset(self._library.get_added_tokens_decoder())

  @functools.cached_property
  def _is_byte_level(self) -> bool:
    return '"ByteLevel"' in json.dumps(json.loads(self.content).get("decoder"))

  def describe(self) -> dict:
    """Plain data that names this tokenizer in a model's JSON; two tokenizers are the same iff these are equal."""
    ids = {"kind": "huggingface", "bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id}
    ids |= {"split_special_tokens": True} if self.split_special_tokens else {}
    return ids | ({} if self.prepends_bos else {"prepends_bos": False}) | {"content": self.content}


def _is_byte(piece: str) -> bool:
  return piece.startswith("<0x") and piece.endswith(">") and len(piece) == 6
