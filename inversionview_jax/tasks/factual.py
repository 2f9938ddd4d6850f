"""Factual recall (paper, section 4.4): ``The capital of France is Paris``, and sentences in which the same heads may be at work.

Positions: SUBJ is the last token of the subject, END the last one before the answer. A head is read where it attends to BOS little: of the
positions asked for the one that attends to BOS least, and only where that is below 0.6 (`collect.attentive`).

Shapes: N texts, B batch, T tokens, V vocabulary.
"""

import functools
import itertools

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks import fact_files, hashing, sources
from inversionview_jax.tasks.base import Mixture
from inversionview_jax.tasks.contrast import Pairs, redraw
from inversionview_jax.tasks.language import LanguageTask, base_of
from inversionview_jax.tasks.text import check_choice, check_length, rows_of, say
from inversionview_jax.tasks.tokenizers import PartTokenizer

SOURCES = ("bundled", "counterfact", "bear", "minipile", "files")
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
_CHUNK = 1024


class Factual(LanguageTask):
  """Inputs "BOS prompt answer EOS PAD", or a sentence instead of prompt and answer.

  Args:
    tokenizer: of the model; or that of a reader, over whose tokens it is then, and nothing is read until an input is asked for.
    settings: "sources": some of `SOURCES`; "files": of the source "files", .jsonl with "prompt", "subject" and "answer" ("prompt" may have {}
      for the subject), or "text"; "length": T; "vocabulary": "all", or "data" for the tokens that occur; "positions": of a fact, "END" and
      "SUBJ" (of a sentence it is any); "bos_attention": the attention to BOS from which on a head is not read, 1 for always; "rare": a token is
      rare if its share of all tokens is smaller; "limit": of texts of each source, 0 for all; "data_dir", "manual_dir": see
      `fact_builders.prepare`; "common": ids of tokens that are not rare, which a reader knows without the data.

  Raises:
    InversionViewError: unknown settings, or (when they are read) files that are not there or not of the published format.
  """

  name = "factual"
  epsilon = 0.25
  mixtures = {
    # The paper's: 64 for each of the four cosines, four times; what is rare and comes again and again is suppressed.
    "paper": Mixture(_DIRECTIONS, num_samples=1024, directions=True, rounds=4, repeats=5),
    "noisy": Mixture(((1.0, 0.0), (1.0, 0.1), (1.0, 0.2), (1.0, 0.3)), stratified=True),
  }

  def __init__(self, tokenizer=None, settings=None):
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
  def settings(self):
    """What was set, and which tokens are common, so that a reader needs no data to tell the rare ones."""
    return {**self._settings, "common": self._common}

  @functools.cached_property
  def _read(self) -> tuple[list[np.ndarray], np.ndarray, list[dict]]:
    """Token ids of every text (of the model's tokenizer), int64[N, 2] positions SUBJ and END in them (-1: a sentence), and the facts."""
    texts, places, facts = [], [], []
    for source in self._settings["sources"]:
      found, long = self._records(source), 0
      if self._settings["limit"]:
        found = itertools.islice(found, self._settings["limit"])
      for some in _chunks(found):
        for record, ids, place in _encoded(self._base, some):
          if len(ids) > self.length - 2:
            long += 1
            continue
          texts.append(ids)
          places.append(place)
          facts += [record] if place[1] >= 0 else []
      if long:
        say(f"{source}: {long:,} texts are longer than {self.length - 2} tokens and were left out")
    if not texts:
      raise InversionViewError(
        f"no text of {', '.join(self._settings['sources'])} has at most {self.length - 2} tokens"
      )
    return texts, np.array(places), facts

  def _records(self, source: str):
    s = self._settings
    if source == "bundled":
      yield from fact_files.bundled()
    elif source == "files":
      for where, record in sources.records(s["files"]):
        yield _own(where, record)
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
  def num_inputs(self):
    return len(self._read[0])

  def tokens(self, index):
    return self._rows[np.asarray(index, np.int64)]

  @functools.cached_property
  def _common(self) -> list[int]:
    if self._settings["common"] is not None:
      return self._settings["common"]
    t = self.tokenizer
    counts = np.bincount(self._rows.ravel(), minlength=t.vocab_size)
    counts[[t.bos_id, t.eos_id, t.pad_id]] = 0
    return np.flatnonzero(counts >= self._settings["rare"] * counts.sum()).tolist()

  @functools.cached_property
  def rare(self):
    rare = np.ones(self.tokenizer.vocab_size, bool)
    rare[[*self._common, self.tokenizer.bos_id, self.tokenizer.eos_id, self.tokenizer.pad_id]] = False
    return rare

  @functools.cached_property
  def _known(self) -> dict[tuple, tuple[int, int]]:
    """Token ids of each prompt, with BOS -> positions SUBJ and END."""
    try:
      texts, places, _ = self._read
    except InversionViewError:  # a reader without the files: its labels are those of any text
      return {}
    t, known = self.tokenizer, {}
    for ids, (subject, end) in zip(texts, places.tolist(), strict=True):
      if end >= 0:
        known[(t.bos_id, *rows_of(t, [ids[:end]], end + 2)[0, 1:-1].tolist())] = subject, end
    return known

  def default_sites(self, n_layers, n_heads):
    raise InversionViewError(
      "which heads recall facts differs between models: find them with `inversionview heads --task factual --known`, and set sites"
    )

  def labels(self, tokens):
    """SUBJ, END and "answer" of a fact that is known; of any other text its last token is END."""
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
  def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every fact two hashes of its row, uint32[F] each, sorted by the first, and the columns that are asked, int32[F, K]."""
    rows, places = self._rows, self._read[1]
    which = np.flatnonzero(places[:, 1] >= 0)
    one, two = _hashes(rows[which])
    order = np.argsort(one, kind="stable")
    columns = places[which][:, [("SUBJ", "END").index(label) for label in self._settings["positions"]]]
    return one[order], two[order], columns[order].astype(np.int32)

  @functools.cached_property
  def _groups(self) -> tuple[np.ndarray, list[np.ndarray]]:
    """int64[N]: to which group of facts with the same relation and wording a text belongs (-1: a sentence), and the members of each."""
    which, members = {}, []
    of = np.full(self.num_inputs, -1)
    for number, fact in zip(np.flatnonzero(self._read[1][:, 1] >= 0), self.facts, strict=True):
      key = fact["relation"], fact["prompt"].replace(fact["subject"], "{}")
      if key not in which:
        which[key] = len(members)
        members.append([])
      members[which[key]].append(int(number))
      of[number] = which[key]
    return of, [np.array(group) for group in members]

  def contrast(self, index, seed=0, *, where=""):
    """Facts, each beside one of the same relation in the same words whose answer begins with another token; others are left out.

    Args:
      index: int64[B].
      seed: what is drawn is a function of it and of the index.
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

    def propose(some, attempt):
      drawn = hashing.uniform(sizes[some], seed, index[some], attempt)
      return flat[starts[of[index[some]]] + drawn] if len(some) else np.zeros(0, np.int64)

    other, made = redraw(len(index), propose, lambda some, drawn: answer[drawn] != answer[index[some]])
    index, other = index[made], other[made]
    return Pairs(index, rows[index], rows[other], end[index].astype(np.int32), end[other].astype(np.int32))

  def query_mask(self, tokens):
    """Of a fact the positions that are asked for; of a sentence all."""
    xp = tokens.__array_namespace__()
    every = super().query_mask(tokens)
    first, second, columns = self._places
    if not len(first):
      return every
    one, two = _hashes(tokens)
    # Facts whose first hashes are equal stand side by side: more than two of 2^32 would be a wonder.
    at = xp.searchsorted(xp.asarray(first), one)
    asked, known = every, xp.zeros(one.shape, bool)
    for step in (0, 1):
      place = xp.minimum(at + step, len(first) - 1)
      hit = (xp.asarray(first)[place] == one) & (xp.asarray(second)[place] == two) & ~known
      here = (xp.arange(tokens.shape[1])[None, :, None] == xp.asarray(columns)[place][:, None, :]).any(axis=2)
      asked, known = xp.where(hit[:, None], here, asked), known | hit
    return asked


def _hashes(tokens):
  """int[B, T] -> two uint32[B]."""
  xp = tokens.__array_namespace__()
  out = []
  for factor, start in ((0x01000193, 0x811C9DC5), (0x9E3779B1, 0x7F4A7C15)):
    value = xp.full(tokens.shape[:1], start, dtype=xp.uint32)
    for column in range(tokens.shape[1]):
      value = (value ^ tokens[:, column].astype(xp.uint32)) * xp.uint32(factor)
      value = value ^ (value >> xp.uint32(15))
    out.append(value)
  return out


def _own(where: str, record) -> dict:
  """A line of a file of the user."""
  if not isinstance(record, dict) or not ({"prompt", "subject", "answer"} <= set(record) or "text" in record):
    raise InversionViewError(f'{where}: a fact needs "prompt", "subject" and "answer", and a sentence "text"')
  needed = ("text",) if "prompt" not in record else ("prompt", "subject", "answer")
  if wrong := [name for name in needed if not (isinstance(record[name], str) and record[name].strip())]:
    raise InversionViewError(f"{where}: {wrong[0]!r} is no text")
  if needed == ("text",):
    return {"text": record["text"]}
  prompt = record["prompt"].replace("{}", record["subject"])
  if record["subject"] not in prompt:
    raise InversionViewError(f"{where}: the prompt {prompt!r} does not name its subject {record['subject']!r}")
  return {
    "prompt": prompt,
    "subject": record["subject"],
    "answer": record["answer"],
    "relation": record.get("relation", ""),
  }


def _chunks(records):
  records = iter(records)
  while some := list(itertools.islice(records, _CHUNK)):
    yield some


def _encoded(base, records):
  """(record, token ids, (SUBJ, END) with BOS at 0 or (-1, -1)) of each."""
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


def _checked(settings: dict) -> dict:
  made = {**_DEFAULTS, **settings}
  if wrong := set(made) - set(_DEFAULTS):
    raise one_of("setting of the task factual:", sorted(wrong)[0], _DEFAULTS)
  check_choice("vocabulary", made["vocabulary"], ("all", "data"))
  check_length(made["length"])
  for name, choices in (("sources", SOURCES), ("positions", ("END", "SUBJ"))):
    if not made[name]:
      raise InversionViewError(f"inputs.{name} is empty: give some of {', '.join(choices)}")
    for value in made[name]:
      check_choice(name, value, choices)
  if not 0 < made["bos_attention"] <= 1:
    raise InversionViewError(
      f"inputs.bos_attention = {made['bos_attention']} must be above 0 and at most 1 (paper: 0.6)"
    )
  if ("files" in made["sources"]) != bool(made["files"]):
    raise InversionViewError('inputs.files and the source "files" go together: set both or none')
  made |= {name: list(made[name]) for name in ("sources", "positions")}
  return made | {"files": sources.absolute(made["files"])}
