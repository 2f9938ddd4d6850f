"""Indirect object identification (paper, section 4.3): ``Then, Mary and John went to the store. John gave a drink to Mary``.

The templates are our own, in the orders ABBA (the indirect object is named first) and BABA (the subject is). Names, places and objects that
are not single tokens of the model's tokenizer are left out.

Shapes: B batch, T tokens, M templates.
"""

import functools
import math
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from inversionview_jax import config_schema
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import hashing
from inversionview_jax.tasks.base import Array, shift_left
from inversionview_jax.tasks.contrast import VARY, Pairs, redraw
from inversionview_jax.tasks.grammar import holds
from inversionview_jax.tasks.ioi_moves import IOIMoves
from inversionview_jax.tasks.ioi_words import NAMES, OBJECTS, PLACES, TEMPLATES
from inversionview_jax.tasks.language import LanguageTask, base_of
from inversionview_jax.tasks.moves import Move
from inversionview_jax.tasks.tokenizers import PartTokenizer, Tokenizer

NUM_INPUTS = 250_000
FEATURES = ("IO", "S", "first", "second", "place", "object", "template", "order")
_SLOTS = ("{0}", "{1}", "{2}", "{place}", "{object}")


class IOI(LanguageTask):
  """Inputs "BOS prompt IO-name EOS PAD"; positions IO, S1, S1+1 (the token after S1), S2, END (where the answer is predicted), answer.

  Args:
    tokenizer: of the model.
    settings: "vocabulary": "task" (only tokens that occur in these texts, the default) or "all"; "positions": labels of the query
      positions, such as ("S2", "END"); none (the default): every token (paper).

  Raises:
    InversionViewError: unknown settings, or a tokenizer in which fewer than two names, or no places or objects, are one token.
  """

  name = "ioi"
  num_inputs = NUM_INPUTS
  about = (
    'An input is a text such as "Then, Mary and John went to the store. John gave a drink to Mary". Two people are named, one of them (S, the '
    "subject) again as the one who gives; the other (IO, the indirect object) is the last word. IO is named first in the order ABBA, S in BABA."
  )
  feature_names = {
    "IO": "who is given something: the name that occurs once before the last word",
    "S": "who gives: the name that occurs twice",
    "first": "the name that comes first",
    "second": "the name that comes second",
    "place": "the place",
    "object": "what is given",
    "template": "the sentence around the names, place and object",
    "order": "whether IO comes first (0) or S does (1)",
  }
  position_names = {
    "IO": "the name that occurs once, the answer",
    "S1": "the name of who gives, for the first time",
    "S1+1": "the token after S1",
    "S2": "the name of who gives, again",
    "END": "the last token of the prompt, where IO is predicted",
    "answer": "the name IO, which the model is to write",
  }

  def __init__(self, tokenizer: Tokenizer | None = None, settings: Mapping | None = None):
    base = base_of(tokenizer, self.name)
    config_schema.check_inputs("ioi", settings)
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    self.settings = {"vocabulary": "task", "positions": ()} | given
    self.settings["positions"] = list(self.settings["positions"])

    def single(words):
      """Words that are one token after a space -> that token."""
      encoded = [(word, base.encode(f" {word}")) for word in words]
      return {word: ids[0] for word, ids in encoded if len(ids) == 1}

    words = [single(words) for words in (NAMES, PLACES, OBJECTS)]
    self.names, self.places, self.objects = (tuple(each) for each in words)
    if len(self.names) < 4 or not self.places or not self.objects:
      raise InversionViewError(
        f"the task ioi needs names, places and objects that are one token; this tokenizer has {len(self.names)}, {len(self.places)} and "
        f"{len(self.objects)}"
      )
    pieces = [_pieces(base, template) for template in TEMPLATES]
    kept = {
      base.bos_id,
      *(i for template in pieces for i in template if i >= 0),
      *(i for each in words for i in each.values()),
    }
    self.tokenizer = t = PartTokenizer(base, tuple(sorted(kept)) if self.settings["vocabulary"] == "task" else None)
    self._words = [np.array([t.number(i) for i in each.values()]) for each in words]  # ids of names, places, objects
    self.length = max(map(len, pieces)) + 3  # BOS, the answer, EOS
    # The token of each template at each position, or -1 - slot for a slot (the answer is slot 5); then PAD.
    self._forms = np.full((len(TEMPLATES), self.length), t.pad_id)
    for form, template in zip(self._forms, pieces, strict=True):
      inner = [t.number(i) if i >= 0 else i for i in template]
      form[: len(inner) + 3] = [t.bos_id, *inner, -6, t.eos_id]
    self._choices = IOIMoves(self._forms, self._words, t.vocab_size)

  def tokens(self, index: np.ndarray) -> np.ndarray:
    return self._written(*self._drawn(np.asarray(index, np.int64)))

  def log_prior(self, tokens: Array) -> Array:
    """Log probability float[B] under uniform choices of template, order, two different names, place and object."""
    if not self.inputs_of(IOI):
      return super().log_prior(tokens)
    xp, pad = tokens.__array_namespace__(), self.tokenizer.pad_id
    if (missing := self.length - tokens.shape[1]) > 0:
      tokens = xp.pad(tokens, ((0, 0), (0, missing)), constant_values=pad)
    ended = (tokens[:, self.length :] == pad).all(axis=1)
    return xp.where(ended, self._choices.log_prior(tokens[:, : self.length]), -math.inf)

  @property
  def has_log_prior(self) -> bool:
    return super().has_log_prior and (self.inputs_of(IOI) or type(self).log_prior is not IOI.log_prior)

  def moves(self) -> tuple[Move, ...]:
    return self._choices.all() if self.inputs_of(IOI) else super().moves()

  def _drawn(self, index):
    """The parts of the inputs with these indices: template, order (0: ABBA), indirect object, subject, place, object, int64[B] each."""
    code = _codes(self._combinations)[index]
    sizes = self._sizes
    parts = []
    for size in sizes:
      code, part = np.divmod(code, size)
      parts.append(part)
    template, order, io, s, place, thing = parts
    return template, order, io, np.where(s >= io, s + 1, s), place, thing  # two different names

  @property
  def _sizes(self):
    """The number of choices for each part."""
    names = len(self.names)
    return len(TEMPLATES), 2, names, names - 1, len(self.places), len(self.objects)

  @property
  def _combinations(self):
    return self._choices.inputs

  def _written(self, *parts, giver=None):
    """The texts with these parts, int32[B, T]; `giver` is the name that occurs twice, S by default."""
    return self._choices.texts(np.stack(parts, axis=1), giver)

  def _parsed(self, tokens):
    """Template int64[B] (-1: none), and columns and tokens of its six slots, int64[B, 6] each, of texts or beginnings of texts int[B, T]."""
    t = self.tokenizer
    tokens = np.asarray(tokens)
    rows = np.full((len(tokens), self.length), t.pad_id)
    width = min(tokens.shape[1], self.length)
    rows[:, :width] = tokens[:, :width]
    over = (rows == t.pad_id) | (rows == t.eos_id)
    end = np.where(over.any(axis=1), over.argmax(axis=1), self.length)[:, None]
    inside = np.arange(self.length) < end
    well = ((rows == t.pad_id) | (np.arange(self.length) <= end)).all(axis=1)
    well &= (tokens[:, width:] == t.pad_id).all(axis=1)
    template = np.full(len(rows), -1)
    for number, form in reversed(list(enumerate(self._forms))):
      agrees = np.ones(rows.shape, bool)
      for column, piece in enumerate(form):
        if piece >= 0:
          agrees[:, column] = rows[:, column] == piece
        else:
          agrees[:, column] = np.isin(rows[:, column], self._words[(0, 0, 0, 1, 2, 0)[-1 - piece]])
      template[well & (agrees | ~inside).all(axis=1)] = number
    columns = np.argmax(self._forms[template][:, None] == -1 - np.arange(6)[:, None], axis=2)
    held = np.where(columns < end, np.take_along_axis(rows, columns, axis=1), -1)
    return template, columns, np.where(template[:, None] >= 0, held, -1)

  def may_be_input(self, tokens: Sequence[int]) -> bool:
    if not self.inputs_of(IOI):
      return super().may_be_input(tokens)
    used = [token for token in map(int, tokens) if token not in (self.tokenizer.eos_id, self.tokenizer.pad_id)]
    template, _, held = self._parsed(np.array([used]))
    first, second, giver, _, _, answer = held[0].tolist()  # -1: not there yet
    if len(used) >= self.length or template[0] < 0 or first == second >= 0:
      return False
    return giver in (-1, first, second) and answer in (-1, second if giver == first else first)

  def labels(self, tokens: Sequence[int]) -> list[str]:
    template, columns, held = (x[0] for x in self._parsed(np.asarray(tokens)[None]))
    labels = [""] * len(tokens)
    if template < 0:
      return labels
    one, other, giver = held[:3]
    columns = columns.tolist()

    def put(column, name):
      if column < len(labels):
        labels[column] = labels[column] or name

    if giver in (one, other) and giver >= 0 and one != other:
      first = 0 if giver == one else 1
      put(columns[first], "S1")
      put(columns[1 - first], "IO")
      put(columns[2], "S2")
      put(columns[first] + 1, "S1+1")
    if held[4] >= 0:  # long enough that only one template matches
      put(columns[5] - 1, "END")
      put(columns[5], "answer")
    return labels

  def query_mask(self, tokens: Array) -> Array:
    if not self.settings["positions"]:
      return super().query_mask(tokens)
    xp = tokens.__array_namespace__()
    is_name = np.zeros(self.tokenizer.vocab_size, bool)
    is_name[self._words[0]] = True
    named = xp.asarray(is_name)[tokens]
    rank = xp.cumsum(named, axis=1)

    def nth(n):
      return named & (rank == n)

    one, giver = (xp.sum(xp.where(nth(n), tokens, 0), axis=1, keepdims=True) for n in (1, 3))
    s1 = xp.where(one == giver, nth(1), nth(2))
    where = {
      "S1": s1,
      "S1+1": xp.concatenate([xp.zeros_like(s1[:, :1]), s1[:, :-1]], axis=1),
      "IO": xp.where(one == giver, nth(2), nth(1)),
      "S2": nth(3),
      "END": shift_left(nth(4), False),
    }
    return functools.reduce(operator.or_, (where[label] for label in self.settings["positions"]))

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """The features of IOI, as indices into `names`, `places`, `objects` and `TEMPLATES`: "IO" and "S" (named once and twice before the last word),
    "first" and "second" name, "place", "object", "template" (-1 while several match) and "order" (0: ABBA, 1: BABA).
    """
    template, _, held = self._parsed(tokens)
    name, place, thing = (np.full(self.tokenizer.vocab_size + 1, -1) for _ in range(3))
    for table, ids in zip((name, place, thing), self._words, strict=True):
      table[ids] = np.arange(len(ids))  # and table[-1] stays -1
    first, second, giver = name[held[:, 0]], name[held[:, 1]], name[held[:, 2]]
    known = (giver >= 0) & (first != second) & ((giver == first) | (giver == second))
    values = {
      "IO": np.where(known, np.where(giver == first, second, first), -1),
      "S": np.where(known, giver, -1),
      "first": first,
      "second": second,
      "place": place[held[:, 3]],
      "object": thing[held[:, 4]],
      "template": np.where(held[:, 4] >= 0, template, -1),
      "order": np.where(known, giver == first, -1),
    }
    return {key: value.astype(np.int32) for key, value in values.items()}

  def value_name(self, feature: str, value: int) -> str:
    """The word for a value of a feature: "Mary", "store", "ABBA"; "?" for -1."""
    if value < 0:
      return "?"
    words = {"place": self.places, "object": self.objects, "template": TEMPLATES, "order": ("ABBA", "BABA")}
    return words.get(feature, self.names)[value]

  def contrast(self, index: np.ndarray, seed: int = 0, *, kind: str = "S2", where: str = "") -> Pairs:  # type: ignore[override]
    """Pairs with another answer (paper, section 4.3; Wang et al., 2022).

    Args:
      index: int64[B].
      seed: of the draws, which are functions of it and of the index.
      kind: "S2": the other of the two names occurs twice, so that the answer is the other one; "names": the two names are exchanged everywhere,
        so that the positions keep their roles; "others": two other names.
      where: a condition on the features of the clean input.
    """
    kinds = ("S2", "names", "others")
    if kind not in kinds:
      raise one_of("kind of contrast", kind, kinds)
    index, parts = self._where(index, where)
    template, order, io, s, place, thing = parts
    clean = self._written(*parts)
    if kind == "S2":
      corrupted = self._written(template, order, io, s, place, thing, giver=io)
    elif kind == "names":
      corrupted = self._written(template, order, s, io, place, thing)
    else:
      new_io, new_s = self._other_names(seed, index, io, s)
      corrupted = self._written(template, order, new_io, new_s, place, thing)
    return self._pairs(index, clean, corrupted)

  def contrast_aligned(self, index: np.ndarray, seed: int = 0, *, predict: str = "") -> Pairs:
    """Pairs in which the other name occurs twice; see `Task.contrast_aligned`."""
    if predict not in ("", "answer"):
      raise InversionViewError(f"cannot predict {predict!r} of ioi; the answer is: answer")
    return self.contrast(index, seed, kind="S2")

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str = "answer", where: str = ""
  ) -> Pairs:
    """Pairs that differ in one feature, or in all but it; see `Task.contrast_in`.

    "only" IO, S: another name in that role (S: twice); "only" order: the first two names are exchanged; "only" place, object, template: that
    alone. "rest": a text of another template with other names, place and object, except for the feature. For "first" and "second", where
    name and role are inseparable, use IO or S with a `where` such as "order == 0".
    """
    if vary not in VARY:
      raise one_of("kind of pairs", vary, VARY)
    known = tuple(name for name in FEATURES if name not in ("first", "second"))
    if feature not in known:
      raise one_of("feature to vary:", feature, known)
    if predict != "answer":
      raise InversionViewError(f"cannot predict {predict!r} of ioi; the answer is: answer")
    index, parts = self._where(index, where)
    values = dict(zip(("template", "order", "IO", "S", "place", "object"), parts, strict=True))
    sizes = dict(zip(values, self._sizes, strict=True)) | {"S": len(self.names)}
    changed = {name for name in values if (name == feature) == (vary == "only")}

    def propose(rows, attempt):
      drawn = []
      for salt, (name, value) in enumerate(values.items()):
        new = hashing.uniform(sizes[name], seed, index[rows], attempt, salt)
        drawn.append(new if name in changed else value[rows])
      return np.stack(drawn, axis=1)

    def accept(rows, drawn):
      differs = np.stack([drawn[:, i] != value[rows] for i, value in enumerate(values.values())], axis=1)
      wanted = np.array([name in changed for name in values])
      # No name of the clean text in another role.
      apart = np.ones(len(rows), bool)
      for i, name in ((2, "IO"), (3, "S")):
        if name in changed:
          apart &= (drawn[:, i] != values["IO"][rows]) & (drawn[:, i] != values["S"][rows])
      return (differs == wanted).all(axis=1) & (drawn[:, 2] != drawn[:, 3]) & apart

    drawn, made = redraw(len(index), propose, accept)
    corrupted = self._written(*drawn.T)
    return self._pairs(index[made], self._written(*parts)[made], corrupted[made])

  def behaviour(self, position: int | str) -> str:
    del position  # there is one answer
    return "answer"

  def _where(self, index, where):
    index = np.asarray(index, np.int64)
    if where.strip():
      index = index[holds(where, self.features(self.tokens(index)), len(index))]
    return index, self._drawn(index)

  def _other_names(self, seed, index, io, s):
    """Two different names for each input, int64[2, B], neither of them its own."""

    def propose(rows, attempt):
      return np.stack([hashing.uniform(len(self.names), seed, index[rows], attempt, salt) for salt in (0, 1)], axis=1)

    def accept(rows, drawn):
      own = np.stack([io[rows], s[rows]], axis=1)
      return (drawn[:, 0] != drawn[:, 1]) & (drawn[:, :, None] != own[:, None, :]).all(axis=(1, 2))

    return redraw(len(index), propose, accept)[0].T

  def _pairs(self, index, clean, corrupted) -> Pairs:
    at = [np.argmax(tokens == self.tokenizer.eos_id, axis=1).astype(np.int32) - 2 for tokens in (clean, corrupted)]
    return Pairs(index, clean, corrupted, *at)


def _pieces(base, template: str) -> list[int]:
  """Token ids of a template; -1 - slot where a name, the place or the object goes."""
  out, rest = [], template
  while rest:
    slots = [(rest.find(slot), number) for number, slot in enumerate(_SLOTS) if slot in rest]
    at, number = min(slots, default=(len(rest), None))
    fixed = rest[:at]
    if number is None:
      out += base.encode(fixed)
      break
    if fixed:
      assert fixed.endswith(" "), template
      out += base.encode(fixed[:-1]) if len(fixed) > 1 else []
    out.append(-1 - number)
    rest = rest[at + len(_SLOTS[number]) :]
  return out


@functools.lru_cache(maxsize=4)
def _codes(combinations: int) -> np.ndarray:
  """int64[250,000]: a different combination of template, pattern, names, place and object for each index, in random order."""
  drawn = hashing.split_mix(np.arange(int(1.2 * NUM_INPUTS))) % np.uint64(combinations)
  _, first = np.unique(drawn, return_index=True)
  kept = drawn[np.sort(first)].astype(np.int64)
  if len(kept) < NUM_INPUTS:  # there are fewer texts: too few words are one token
    rest = np.setdiff1d(np.arange(min(combinations, 4 * NUM_INPUTS)), kept)
    kept = np.concatenate([kept, np.random.default_rng(0).permutation(rest)])
    kept = np.resize(kept, NUM_INPUTS)
  return kept[:NUM_INPUTS]
