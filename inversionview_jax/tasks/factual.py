"""Factual recall (paper, section 4.4): ``The capital of France is Paris``, and sentences in which the same heads may be active.

Features of a prompt are its subject, relation, answer, kind of answer, the language of the place or person, its wording, and the sentence in
front; the last ones are known of this package's own facts in many wordings (source "composed", `fact_wordings`).

Positions: SUBJ is the last token of the subject, END the last one before the answer. A head is read where it attends little to BOS: of the
positions in `settings`, at the one with the least attention to BOS, if that is below 0.6 (`collect.attentive`).

Shapes: N texts, B batch, T tokens, V vocabulary.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from inversionview_jax import config_schema
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import fact_files, fact_pairs, fact_wordings, hashing, sources
from inversionview_jax.tasks.base import Array, Mixture
from inversionview_jax.tasks.contrast import VARY, Pairs
from inversionview_jax.tasks.grammar import holds
from inversionview_jax.tasks.language import LanguageTask, base_of
from inversionview_jax.tasks.moves import Move
from inversionview_jax.tasks.text import rows_of
from inversionview_jax.tasks.tokenizers import PartTokenizer, Tokenizer
from inversionview_jax.terminal import print_message

_DEFAULTS = {
  "sources": ("bundled",),
  "files": (),
  "length": 40,
  "vocabulary": "all",
  "positions": ("END",),
  "bos_attention": 0.6,
  "rare": 2e-5,
  "limit": 0,
  "data_dir": "",
  "manual_dir": "",
  "common": None,
}
_DIRECTIONS = ((1.0, 0.9), (1.0, 0.85), (1.0, 0.8), (1.0, 0.75))
_CHUNK = 1024  # texts tokenized at a time
FEATURES = ("subject", "relation", "answer", "kind", "language", "wording", "opening")


class Factual(LanguageTask):
  """Inputs "BOS prompt answer EOS PAD", or a sentence instead of prompt and answer.

  Args:
    tokenizer: of the model; or a reader's `PartTokenizer`, whose tokens the task then has, and no file is opened before an input is read.
    settings: "sources": some of `config_schema.FACT_SOURCES`; "files": of the source "files", .jsonl with "prompt", "subject" and "answer" ("prompt" may have {}
      for the subject), or "text"; "length": T; "vocabulary": "all", or "data" for the tokens that occur; "positions": of a fact, "END" and
      "SUBJ" (of a sentence any); "bos_attention": the attention to BOS from which on a head is not read, 1 for always; "rare": a token with a
      smaller share of all tokens is rare; "limit": number of texts of each source, 0 for all; "data_dir", "manual_dir": see
      `fact_builders.prepare`; "common": ids of the tokens that are not rare, which a reader has stored.

  Raises:
    InversionViewError: unknown settings, or (when they are read) files that are not there or not of the published format.
  """

  name = "factual"
  enumerable = True
  about = (
    'An input is the beginning of a sentence about a fact and its answer, such as "The capital of France is Paris"; a sentence may stand in '
    "front of it that has nothing to do with it."
  )
  feature_names = {
    "subject": "who or what the fact is about",
    "relation": "what is known of the subject: its capital, who wrote it",
    "answer": "what follows: the attribute",
    "kind": "the kind of the answer: a city, a language, a person",
    "language": "the language that belongs to the place or person, whatever the fact is about",
    "wording": "the sentence around the subject",
    "opening": "the sentence in front",
  }
  epsilon = 0.25
  mixtures = {
    # The paper's: 64 for each of the four cosines, four times; rare tokens that repeat are suppressed.
    "paper": Mixture(_DIRECTIONS, num_samples=1024, directions=True, rounds=4, repeats=5),
    "noisy": Mixture(((1.0, 0.0), (1.0, 0.1), (1.0, 0.2), (1.0, 0.3)), stratified=True),
  }

  def __init__(self, tokenizer: Tokenizer | None = None, settings: Mapping | None = None):
    self._base = base_of(tokenizer, self.name)
    self._settings = _checked(settings or {})
    self.length, limit = self._settings["length"], self._settings["bos_attention"]
    self.bos_attention = limit if limit < 1 else None
    if isinstance(tokenizer, PartTokenizer):
      self.tokenizer = tokenizer
    else:
      kept = None
      if self._settings["vocabulary"] == "data":
        kept = tuple(np.union1d(np.concatenate(self._read[0]), [self._base.bos_id]).tolist())
      self.tokenizer = PartTokenizer(self._base, kept)

  @property
  def settings(self) -> dict:  # type: ignore[override]
    """The settings, with the ids of the common tokens, so that a reader needs no data to distinguish the rare ones."""
    return {**self._settings, "common": self._common}

  @functools.cached_property
  def _read(self) -> tuple[list[np.ndarray], np.ndarray, list[dict]]:
    """Token ids of every text (of the model's tokenizer), its positions SUBJ and END int64[N, 2] (-1: a sentence), and the facts."""
    texts, positions, facts = [], [], []
    for source in self._settings["sources"]:
      records, long = self._records(source), 0
      if self._settings["limit"]:
        records = itertools.islice(records, self._settings["limit"])
      for chunk in _chunks(records):
        for record, ids, position in _encoded(self._base, chunk):
          if len(ids) > self.length - 2:
            long += 1
            continue
          texts.append(ids)
          positions.append(position)
          facts += [record] if position[1] >= 0 else []
      if long:
        print_message(f"{source}: {long:,} texts are longer than {self.length - 2} tokens and were left out")
    if not texts:
      raise InversionViewError(
        f"no text of {', '.join(self._settings['sources'])} has at most {self.length - 2} tokens"
      )
    return texts, np.array(positions), facts

  def _records(self, source: str):
    """Yields the facts and sentences of a source."""
    s = self._settings
    if source == "bundled":
      yield from fact_files.bundled()
    elif source == "composed":
      yield from fact_wordings.composed()
    elif source == "files":
      for where, record in sources.records(s["files"]):
        yield fact_files.own_record(where, record)
    else:
      from inversionview_jax.tasks import fact_builders

      builder = fact_builders.prepare(source, s["data_dir"], s["manual_dir"])
      data = builder.as_data_source("train")
      for number in range(len(data)):
        yield {name: value.decode() for name, value in data[number].items()}

  @functools.cached_property
  def _rows(self) -> np.ndarray:
    return rows_of(self.tokenizer, self._read[0], self.length)

  @property
  def facts(self) -> list[dict]:
    """The facts among the inputs: "prompt", "subject", "answer", "relation"."""
    return self._read[2]

  @property
  def num_inputs(self) -> int:  # type: ignore[override]
    return len(self._read[0])

  def tokens(self, index: np.ndarray) -> np.ndarray:
    return self._rows[np.asarray(index, np.int64)]

  @functools.cached_property
  def _common(self) -> list[int]:
    """Ids of the tokens that are not rare."""
    if self._settings["common"] is not None:
      return self._settings["common"]
    t = self.tokenizer
    counts = np.bincount(self._rows.ravel(), minlength=t.vocab_size)
    counts[[t.bos_id, t.eos_id, t.pad_id]] = 0
    return np.flatnonzero(counts >= self._settings["rare"] * counts.sum()).tolist()

  @functools.cached_property
  def rare(self) -> np.ndarray:  # type: ignore[override]
    rare = np.ones(self.tokenizer.vocab_size, bool)
    rare[[*self._common, self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id]] = False
    return rare

  @functools.cached_property
  def _known(self) -> dict[tuple, tuple[int, int, int]]:
    """Token ids of each prompt with BOS -> its positions SUBJ and END, and the number of the input."""
    try:
      texts, positions, _ = self._read
    except InversionViewError:  # a reader on a machine without the files: every text has the labels of a sentence
      return {}
    t, known = self.tokenizer, {}
    for number, (ids, (subject, end)) in enumerate(zip(texts, positions.tolist(), strict=True)):
      if end >= 0:
        known[(t.bos_id, *rows_of(t, [ids[:end]], end + 2)[0, 1:-1].tolist())] = subject, end, number
    return known

  def _find(self, tokens: Sequence[int]) -> tuple[int, tuple[int, int, int]] | None:
    """How many tokens a text has, and what is known of the longest prompt with which it begins; None if it begins with none."""
    t = self.tokenizer
    used = tuple(int(x) for x in tokens if x not in (t.eos_id, t.pad_id))
    for length in range(len(used), 1, -1):
      if used[:length] in self._known:
        return len(used), self._known[used[:length]]
    return None

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    raise InversionViewError(
      "which heads recall facts differs between models: rank them with `inversionview heads --task factual --known`, and set sites"
    )

  def labels(self, tokens: Sequence[int]) -> list[str]:
    """SUBJ, END and "answer" of a known fact; the last token of any other text is END."""
    t, labels = self.tokenizer, [""] * len(tokens)
    if found := self._find(tokens):
      length, (subject, end, _) = found
      labels[subject], labels[end] = "SUBJ", "END"
      if end + 1 < length:
        labels[end + 1] = "answer"
      return labels
    length = sum(int(x) not in (t.eos_id, t.pad_id) for x in tokens)
    if length > 1:
      labels[length - 1] = "END"
    return labels

  @functools.cached_property
  def _queried(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two hashes of the row of every fact, uint32[F] each, sorted by the first, and its query positions, int32[F, K]."""
    rows, positions = self._rows, self._read[1]
    which = np.flatnonzero(positions[:, 1] >= 0)
    one, two = hashing.rows(rows[which])
    order = np.argsort(one, kind="stable")
    columns = positions[which][:, [("SUBJ", "END").index(label) for label in self._settings["positions"]]]
    return one[order], two[order], columns[order].astype(np.int32)

  @functools.cached_property
  def _groups(self) -> tuple[np.ndarray, list[np.ndarray]]:
    """The group of each text, int64[N], facts of one relation and wording (-1: a sentence), and the members of each group."""
    which: dict[tuple[str, str], int] = {}
    members: list[list[int]] = []
    of = np.full(self.num_inputs, -1)
    for number, fact in zip(np.flatnonzero(self._read[1][:, 1] >= 0), self.facts, strict=True):
      key = fact["relation"], fact["prompt"].replace(fact["subject"], "{}")
      if key not in which:
        which[key] = len(members)
        members.append([])
      members[which[key]].append(int(number))
      of[number] = which[key]
    return of, [np.array(group) for group in members]

  def moves(self) -> tuple[Move, ...]:
    """Those of a list of texts, and from a fact to another one with which it has something in common."""
    facts = np.flatnonzero(self._read[1][:, 1] >= 0)

    def group(value):
      """int64[N]: facts of equal value in the same group; -1: a sentence."""
      of = np.full(self.num_inputs, -1)
      if len(facts):
        of[facts] = np.unique([repr(value(fact)) for fact in self.facts], return_inverse=True)[1]
      return of

    return self.listed.moves(
      {
        "another subject": self._groups[0],
        "another wording": group(lambda fact: (fact["relation"], fact["subject"])),
        "another relation": group(lambda fact: fact["subject"]),
        "another fact of the relation": group(lambda fact: fact["relation"]),
        "another fact with this answer": group(lambda fact: fact["answer"]),
      }
    )

  @functools.cached_property
  def _valued(self) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """The features of every input, int32[N] each (-1: none), and the names of their values."""
    numbers = np.flatnonzero(self._read[1][:, 1] >= 0)
    values, names = {}, {}
    for feature in FEATURES:
      words = [_word(fact, feature) for fact in self.facts]
      names[feature] = sorted({word for word in words if word is not None})
      number = {word: value for value, word in enumerate(names[feature])}
      values[feature] = np.full(self.num_inputs, -1, np.int32)
      values[feature][numbers] = [-1 if word is None else number[word] for word in words]
    return values, names

  def features_of(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """The features of the inputs with these indices, int[B] -> name of each -> int32[B]; as `features` of their tokens."""
    return {name: values[np.asarray(index, np.int64)] for name, values in self._valued[0].items()}

  def features(self, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """What a text that begins with a known prompt is about, as indices into the values that `value_name` names; -1 of any other text."""
    found = [self._find(row) for row in np.asarray(tokens).tolist()] if self._known else [None] * len(tokens)
    number = np.array([-1 if one is None else one[1][2] for one in found], np.int64)
    if not self._known:
      return {name: np.full(len(number), -1, np.int32) for name in FEATURES}
    return {name: np.where(number >= 0, values[number], -1) for name, values in self._valued[0].items()}

  def value_name(self, feature: str, value: int) -> str:
    """The word for a value of a feature: "France", "capital", "The capital of {} is"; "?" for -1."""
    return "?" if value < 0 else self._valued[1][feature][value] or "(none)"

  def behaviour(self, position: int | str) -> str:
    del position  # there is one answer
    return "answer"

  def contrast(self, index: np.ndarray, seed: int = 0, *, where: str = "") -> Pairs:  # type: ignore[override]
    """Pairs of facts with the same relation and wording whose answers begin with different tokens; facts without such a pair are left out.

    Args:
      index: int64[B].
      seed: of the draws, which are functions of it and of the index.
      where: a condition on the features of the clean input.
    """
    return self.contrast_in("answer", "only", index, seed, where=where)

  def contrast_in(
    self, feature: str, vary: str, index: np.ndarray, seed: int = 0, *, predict: str = "answer", where: str = ""
  ) -> Pairs:
    """Pairs of facts that differ in one feature, or in all but it; see `Task.contrast_in`.

    What goes with the feature differs, too: with another subject the answer does, with another relation the wording and the answer. "rest"
    of "answer" and "language" may keep the subject where no other has this value.
    """
    if vary not in VARY:
      raise one_of("kind of pairs", vary, VARY)
    if feature not in FEATURES:
      raise one_of("feature to vary:", feature, FEATURES)
    if predict != "answer":
      raise InversionViewError(f"cannot predict {predict!r} of a fact; the answer is: answer")
    rows, end, index = self._rows, self._read[1][:, 1], np.asarray(index, np.int64)
    if where.strip() and len(index):
      index = index[holds(where, self.features_of(index), len(index))]
    return fact_pairs.draw(feature, vary, index, seed, rows=rows, end=end, values=self._valued[0])

  def query_mask(self, tokens: Array) -> Array:
    """The positions in `settings` of a fact, all positions of a sentence."""
    xp = tokens.__array_namespace__()
    every = super().query_mask(tokens)
    first, second, columns = self._queried
    if not len(first):
      return every
    one, two = hashing.rows(tokens)
    # Facts with equal first hashes are neighbours; three of them in 2^32 values are too improbable to look for.
    at = xp.searchsorted(xp.asarray(first), one)
    mask, known = every, xp.zeros(one.shape, bool)
    for step in (0, 1):
      fact = xp.minimum(at + step, len(first) - 1)
      hit = (xp.asarray(first)[fact] == one) & (xp.asarray(second)[fact] == two) & ~known
      here = (xp.arange(tokens.shape[1])[None, :, None] == xp.asarray(columns)[fact][:, None, :]).any(axis=2)
      mask, known = xp.where(hit[:, None], here, mask), known | hit
    return mask


def _word(fact: Mapping, feature: str) -> str | None:
  """A feature of a fact as text; None for one that is not known of it."""
  if feature == "subject":
    return fact.get("entity", fact["subject"])
  if feature == "wording":
    return fact.get("wording", fact["prompt"].replace(fact["subject"], "{}"))
  if feature == "opening":
    return fact.get("opening", "")
  return fact.get(feature) or None


def _chunks(records):
  """Yields lists of `_CHUNK` records."""
  records = iter(records)
  while chunk := list(itertools.islice(records, _CHUNK)):
    yield chunk


def _encoded(base, records):
  """Yields (record, token ids, (SUBJ, END)), positions that count BOS; (-1, -1) for a sentence."""
  whole = [r["prompt"] if "prompt" in r else r["text"] for r in records]
  answers = [f" {r['answer']}" if "prompt" in r else "" for r in records]
  for record, text, prompt, answer in zip(
    records, whole, base.encode_many(whole), base.encode_many(answers), strict=True
  ):
    if "prompt" not in record:
      yield record, np.array(prompt, np.int64), (-1, -1)
      continue
    last = text.rfind(record["subject"]) + len(record["subject"].rstrip()) - 1
    yield record, np.array([*prompt, *answer], np.int64), (1 + base.token_at(text, last), len(prompt))


def _checked(settings: Mapping) -> dict:
  config_schema.check_inputs("factual", settings)
  made = _DEFAULTS | {name: value for name, value in settings.items() if value is not None}
  if ("files" in made["sources"]) != bool(made["files"]):
    raise InversionViewError('inputs.files and the source "files" go together: set both or none')
  made |= {name: list(made[name]) for name in ("sources", "positions")}
  return made | {"files": sources.absolute(made["files"])}
