"""Factual recall (paper, section 4.4): ``The capital of France is Paris``, and sentences in which the same heads may be active.

Positions: SUBJ is the last token of the subject, END the last one before the answer. A head is read where it attends little to BOS: of the
positions in `settings`, at the one with the least attention to BOS, if that is below 0.6 (`collect.attentive`).

Shapes: N texts, B batch, T tokens, V vocabulary.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from inversionview_jax import config_schema
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import fact_files, hashing, sources
from inversionview_jax.tasks.base import Array, Mixture
from inversionview_jax.tasks.contrast import Pairs, redraw
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
  def _known(self) -> dict[tuple, tuple[int, int]]:
    """Token ids of each prompt with BOS -> its positions SUBJ and END."""
    try:
      texts, positions, _ = self._read
    except InversionViewError:  # a reader on a machine without the files: every text has the labels of a sentence
      return {}
    t, known = self.tokenizer, {}
    for ids, (subject, end) in zip(texts, positions.tolist(), strict=True):
      if end >= 0:
        known[(t.bos_id, *rows_of(t, [ids[:end]], end + 2)[0, 1:-1].tolist())] = subject, end
    return known

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    raise InversionViewError(
      "which heads recall facts differs between models: rank them with `inversionview heads --task factual --known`, and set sites"
    )

  def labels(self, tokens: Sequence[int]) -> list[str]:
    """SUBJ, END and "answer" of a known fact; the last token of any other text is END."""
    t, labels = self.tokenizer, [""] * len(tokens)
    used = tuple(int(x) for x in tokens if x not in (t.eos_id, t.pad_id))
    for length in range(len(used), 1, -1):
      if used[:length] in self._known:
        subject, end = self._known[used[:length]]
        labels[subject], labels[end] = "SUBJ", "END"
        if end + 1 < len(used):
          labels[end + 1] = "answer"
        return labels
    if len(used) > 1:
      labels[len(used) - 1] = "END"
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

  def contrast(self, index: np.ndarray, seed: int = 0, *, where: str = "") -> Pairs:  # type: ignore[override]
    """Pairs of facts with the same relation and wording whose answers begin with different tokens; facts without such a pair are left out.

    Args:
      index: int64[B].
      seed: of the draws, which are functions of it and of the index.
      where: must be "": facts have no features.
    """
    if where:
      raise InversionViewError(f"facts have no features for the condition {where!r}")
    of, members = self._groups
    index = np.asarray(index, np.int64)
    index = index[of[index] >= 0]
    rows, end = self._rows, self._read[1][:, 1]
    answer = rows[np.arange(len(rows)), end + 1]
    sizes = np.array([len(group) for group in members] or [1])[of[index]]
    starts = np.concatenate([[0], np.cumsum([len(group) for group in members])])
    flat = np.concatenate([*members, np.zeros(0, int)]).astype(np.int64)

    def propose(chosen, attempt):
      drawn = hashing.uniform(sizes[chosen], seed, index[chosen], attempt)
      return flat[starts[of[index[chosen]]] + drawn] if len(chosen) else np.zeros(0, np.int64)

    other, made = redraw(len(index), propose, lambda chosen, drawn: answer[drawn] != answer[index[chosen]])
    index, other = index[made], other[made]
    return Pairs(index, rows[index], rows[other], end[index].astype(np.int32), end[other].astype(np.int32))

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
