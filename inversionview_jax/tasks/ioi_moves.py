"""Moves over IOI texts, and their prior: a name, the place, the object, the template or the order changes.

Shapes: B rows, T tokens, M templates.
"""

from collections.abc import Sequence

import numpy as np

from inversionview_jax.tasks.choice_moves import ChoiceMoves
from inversionview_jax.tasks.moves import Array, Move

_FIRST, _SECOND, _GIVER, _PLACE, _OBJECT, _ANSWER = range(6)  # the slots of a template
_KIND = np.array([0, 0, 0, 1, 2, 0])  # of the word in each slot: name, place, object


class IOIMoves(ChoiceMoves):
  """IOI texts as choices of template, order (0: ABBA), indirect object, subject (another name), place and object.

  Attributes:
    forms: int32[M, T], the tokens of each template with BOS, the answer, EOS and PAD; -1 - slot where a word goes.
    words: ids of the names, places and objects.
  """

  def __init__(self, forms: np.ndarray, words: Sequence[np.ndarray], vocabulary: int):
    self.forms, self.words = forms.astype(np.int32), [ids.astype(np.int32) for ids in words]
    self._columns = np.argmax(forms[:, None] == -1 - np.arange(len(_KIND))[:, None], axis=2)  # [M, slot]
    self._number = np.full((len(words), vocabulary), -1, np.int32)  # of each word among those of its kind
    for table, ids in zip(self._number, words, strict=True):
      table[ids] = np.arange(len(ids))
    names, places, objects = map(len, words)
    sizes = {"template": len(forms), "order": 2, "IO": names, "S": names, "place": places, "object": objects}
    inputs = len(forms) * 2 * names * (names - 1) * places * objects
    super().__init__(sizes, self._read, self.texts, lambda choices: choices[:, 2] != choices[:, 3], inputs)

  def all(self) -> tuple[Move, ...]:
    """Another value of each choice, the two names exchanged, and another text; each is symmetric."""
    return (*super().all(), Move("exchange the names", 0, self.exchange_names))

  def exchange_names(self, uniforms: Array, tokens: Array) -> tuple[Array, Array]:
    """The indirect object becomes the subject, and the subject the indirect object."""
    del uniforms
    return self.written(self._read(tokens)[:, np.array([0, 1, 3, 2, 4, 5])], tokens)

  def texts(self, choices: Array, giver: Array | None = None) -> Array:
    """The texts with these choices, int[B, 6] -> int32[B, T]; `giver`, int[B], is the name that occurs twice, the subject by default."""
    xp = choices.__array_namespace__()
    template, order, io, s, place, thing = (choices[:, i] for i in range(len(_KIND)))
    giver = s if giver is None else giver
    names, places, objects = (xp.asarray(ids) for ids in self.words)
    first, second = xp.where(order == 0, io, s), xp.where(order == 0, s, io)
    answer = xp.where(giver == s, io, s)
    fill = xp.stack([names[first], names[second], names[giver], places[place], objects[thing], names[answer]], axis=1)
    form = xp.asarray(self.forms)[template]
    return xp.where(form >= 0, form, xp.take_along_axis(fill, xp.maximum(-1 - form, 0), axis=1))

  def _read(self, tokens):
    """The choices of IOI texts, int32[B, 6]; -1 where a slot holds no word of its kind."""
    xp = tokens.__array_namespace__()
    forms = xp.asarray(self.forms)
    template = xp.argmax(((forms < 0) | (forms == tokens[:, None])).all(axis=2), axis=1).astype(xp.int32)
    held = xp.take_along_axis(tokens, xp.asarray(self._columns)[template], axis=1)
    word = xp.asarray(self._number)[_KIND, xp.clip(held, 0, self._number.shape[1] - 1)]
    first, second, giver = (word[:, slot] for slot in (_FIRST, _SECOND, _GIVER))
    order = (giver == first).astype(xp.int32)
    io = xp.where(giver == first, second, first)
    return xp.stack([template, order, io, giver, word[:, _PLACE], word[:, _OBJECT]], axis=1)
