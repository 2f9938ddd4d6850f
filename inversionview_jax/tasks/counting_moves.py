"""Moves over counting inputs, and their prior: letters change, or the query letter, and the count is written anew. Each changes the input, where it
can: a proposal that is the same again costs a run of the target and does nothing.

Shapes: B rows, T tokens, L = 26 letters.
"""

import math

import numpy as np

from inversionview_jax.tasks.moves import Array, Move, choice, ranks, symmetric

_LETTERS, _KINDS = 26, 3  # of the alphabet; different ones in an input


class CountingMoves:
  """Moves and log prior of counting inputs, in which three letters occur 1 to 9 times each.

  Attributes:
    ids: token ids of BOS, "|", ":", "1", EOS and PAD; letters are 0 ... 25 and digits follow "1".
    longest: most letters in front of "|".
  """

  def __init__(self, ids: tuple[int, int, int, int, int, int], longest: int):
    self.ids, self.longest = ids, longest

  def parts(self, tokens: Array) -> tuple[Array, Array, Array, Array]:
    """Number of letters int[B], bool[B, T] where they are, query letter int[B], and how often each letter occurs, int[B, L]."""
    xp = tokens.__array_namespace__()
    at = xp.argmax(tokens == self.ids[1], axis=1)
    columns = xp.arange(tokens.shape[1])[None, :]
    is_letter = (columns >= 1) & (columns < at[:, None])
    query = xp.take_along_axis(tokens, xp.minimum(at + 1, tokens.shape[1] - 1)[:, None], axis=1)[:, 0]
    counts = (is_letter[..., None] & (tokens[..., None] == xp.arange(_LETTERS))).sum(axis=1)
    return at - 1, is_letter, query, counts

  def write(self, tokens: Array, length: Array, query: Array) -> Array:
    """The input with the letters in columns 1 ... length of `tokens` and this query letter; its count is written anew."""
    xp = tokens.__array_namespace__()
    bos, bar, colon, one, eos, pad = self.ids
    columns, length, query = xp.arange(tokens.shape[1])[None, :], length[:, None], query[:, None]
    is_letter = (columns >= 1) & (columns <= length)
    count = (is_letter & (tokens == query)).sum(axis=1, keepdims=True)
    out = xp.where(is_letter, tokens, pad)
    for place, token in enumerate((bar, query, colon, one + xp.clip(count, 1, 9) - 1, eos), start=1):
      out = xp.where(columns == length + place, token, out)
    return xp.where(columns == 0, bos, out).astype(xp.int32)

  def log_prior(self, tokens: Array, log_choices: float) -> Array:
    """float[B]: three letters, their counts and the query letter, each choice uniform (`log_choices` together), in any order of letters;
    -inf for every other text."""
    xp = tokens.__array_namespace__()
    length, _, query, counts = self.parts(tokens)
    log_factorial = xp.asarray(np.cumsum(np.log(np.maximum(np.arange(self.longest + 1), 1.0))))
    right = (length >= _KINDS) & (length <= self.longest) & (query >= 0) & (query < _LETTERS)
    right = right & ((counts > 0).sum(axis=1) == _KINDS) & (counts.max(axis=1) <= 9) & (counts.sum(axis=1) == length)
    right = right & (xp.take_along_axis(counts, xp.clip(query, 0, _LETTERS - 1)[:, None], axis=1)[:, 0] > 0)
    right = right & (self.write(tokens, length, query) == tokens).all(axis=1)
    orders = log_factorial[xp.clip(length, 0, self.longest)] - log_factorial[xp.minimum(counts, self.longest)].sum(
      axis=1
    )
    return xp.where(right, -log_choices - orders, -math.inf)

  def all(self) -> tuple[Move, ...]:
    """All kinds."""
    return (
      Move("replace a letter", 2, self.replace, 2.0),
      Move("insert or delete", 3, self.insert_or_delete, 3.0),
      Move("exchange two letters", 2, self.exchange, 2.0),
      Move("shuffle", self.longest, self.shuffle, 1.0),
      Move("rename a letter", 2, self.rename, 2.0),
      Move("exchange names", 2, self.exchange_names, 1.0),
      Move("another query", 1, self.another_query, 1.0),
    )

  @staticmethod
  def _nth(marked: Array, n: Array) -> Array:
    """The n-th marked letter or place of each row: bool[B, L] or bool[B, T], int[B] -> int[B]."""
    xp = marked.__array_namespace__()
    rank = xp.cumsum(marked.astype(xp.int32), axis=1)
    return xp.argmax(marked & (rank == n[:, None] + 1), axis=1)

  def replace(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """One letter by one of the other two that occur; symmetric."""
    xp = tokens.__array_namespace__()
    length, _, query, counts = self.parts(tokens)
    at = 1 + choice(uniforms[:, 0], length)[:, None]
    other = (counts > 0) & (xp.arange(_LETTERS) != xp.take_along_axis(tokens, at, axis=1))
    letter = self._nth(other, choice(uniforms[:, 1], _KINDS - 1))
    columns = xp.arange(tokens.shape[1])[None, :]
    return self.write(xp.where(columns == at, letter[:, None], tokens), length, query), symmetric(tokens)

  def insert_or_delete(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """One of the three letters more, anywhere, or any letter less.

    Both ways go through the same places (a run of r equal letters has r + 1 places for one more, and as many to delete then), so only the
    choice of the letter is in the ratio.
    """
    xp = tokens.__array_namespace__()
    length, _, query, counts = self.parts(tokens)
    columns = xp.arange(tokens.shape[1])[None, :]
    insert, fits = uniforms[:, 0] < 0.5, length < self.longest
    before = 1 + choice(uniforms[:, 1], length + 1)[:, None]
    letter = self._nth(counts > 0, choice(uniforms[:, 2], _KINDS))[:, None]
    right = xp.concatenate([tokens[:, :1], tokens[:, :-1]], axis=1)
    inserted = xp.where(columns < before, tokens, xp.where(columns == before, letter, right))
    gone = 1 + choice(uniforms[:, 1], length)[:, None]
    left = xp.concatenate([tokens[:, 1:], tokens[:, -1:]], axis=1)
    deleted = xp.where(columns < gone, tokens, left)
    grown = insert & fits
    new = xp.where(grown[:, None], inserted, xp.where(insert[:, None], tokens, deleted))
    change = xp.where(grown, 1, xp.where(insert, 0, -1))
    ratio = (change * math.log(_KINDS)).astype(xp.float32)
    return self.write(new, length + change, query), ratio

  def exchange(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """Two different letters; symmetric, as the counts stay."""
    xp = tokens.__array_namespace__()
    length, is_letter, query, _ = self.parts(tokens)
    columns = xp.arange(tokens.shape[1])[None, :]
    one = 1 + choice(uniforms[:, 0], length)[:, None]
    at_one = xp.take_along_axis(tokens, one, axis=1)
    different = is_letter & (tokens != at_one)
    other = self._nth(different, choice(uniforms[:, 1], different.sum(axis=1)))[:, None]
    at_other = xp.take_along_axis(tokens, other, axis=1)
    new = xp.where(columns == one, at_other, xp.where(columns == other, at_one, tokens))
    return self.write(new, length, query), symmetric(tokens)

  def shuffle(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """All letters in a random order; symmetric."""
    xp = tokens.__array_namespace__()
    length, is_letter, query, _ = self.parts(tokens)
    keys = xp.where(is_letter[:, 1 : 1 + self.longest], uniforms, 2.0)
    order = 1 + ranks(keys).astype(tokens.dtype)  # the letters come first, what follows stays where it is
    shuffled = xp.take_along_axis(tokens, order, axis=1)
    new = xp.concatenate([tokens[:, :1], shuffled, tokens[:, 1 + self.longest :]], axis=1)
    return self.write(new, length, query), symmetric(tokens)

  def rename(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """One of the three letters becomes one that does not occur, everywhere; symmetric."""
    xp = tokens.__array_namespace__()
    length, is_letter, query, counts = self.parts(tokens)
    old = self._nth(counts > 0, choice(uniforms[:, 0], _KINDS))
    new = self._nth(counts == 0, choice(uniforms[:, 1], _LETTERS - _KINDS))
    renamed = xp.where(is_letter & (tokens == old[:, None]), new[:, None], tokens)
    return self.write(renamed, length, xp.where(query == old, new, query)), symmetric(tokens)

  def exchange_names(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """Two of the three letters exchange their places, and so their counts; symmetric."""
    xp = tokens.__array_namespace__()
    length, is_letter, query, counts = self.parts(tokens)
    first = choice(uniforms[:, 0], _KINDS)
    second = (first + 1 + choice(uniforms[:, 1], _KINDS - 1)) % _KINDS
    one, other = (self._nth(counts > 0, n)[:, None] for n in (first, second))
    exchanged = xp.where(is_letter & (tokens == one), other, xp.where(is_letter & (tokens == other), one, tokens))
    return self.write(exchanged, length, query), symmetric(tokens)

  def another_query(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """Another one of the three letters as the query letter; symmetric."""
    xp = tokens.__array_namespace__()
    length, _, query, counts = self.parts(tokens)
    other = (counts > 0) & (xp.arange(_LETTERS) != query[:, None])
    return self.write(tokens, length, self._nth(other, choice(uniforms[:, 0], _KINDS - 1))), symmetric(tokens)
