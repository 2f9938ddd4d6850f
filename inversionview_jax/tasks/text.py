"""The user's own texts as a task: inputs "BOS text EOS PAD" of a fixed length from files on disk, each line equally probable; or, without files,
texts that the target writes (`sampling.written`).

Shapes: N texts, B batch, T tokens.
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from inversionview_jax import config_schema
from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import sources
from inversionview_jax.tasks.base import Array, shift_left
from inversionview_jax.tasks.language import LanguageTask, base_of
from inversionview_jax.tasks.tokenizers import PartTokenizer, Tokenizer
from inversionview_jax.terminal import print_message

_CHUNK = 1024  # texts tokenized at a time
_DEFAULTS = {
  "files": (),
  "field": "text",
  "split": "train",
  "data_dir": "",
  "length": 32,
  "vocabulary": "all",
  "long": "cut",
  "empty": "refuse",
  "positions": (),
  "count": 8192,
}


class Text(LanguageTask):
  """Texts from files, or those that the target writes; END is the last token of each.

  Args:
    tokenizer: of the model; or a reader's `PartTokenizer`, whose tokens the task then has, and no file is opened before an input is read.
    settings: "files", "field", "split", "data_dir", "empty": see `sources.texts`; "length": T, with BOS and EOS; "vocabulary": "all", or
      "data" for the tokens that occur in these texts (of files) only; "long": a text of more tokens is "cut" into windows of T - 2 or "left" out;
      "positions": () for queries at every token, or ("END",); "count": texts that the target writes where there are no files.

  Raises:
    InversionViewError: unknown settings, or (when they are read) files that are not there or not readable.
  """

  name = "text"
  enumerable = True
  writer: Callable[[np.ndarray], np.ndarray] | None = None

  def __init__(self, tokenizer: Tokenizer | None = None, settings: Mapping | None = None):
    base = base_of(tokenizer, self.name)
    self.settings = _checked(settings or {})
    self.length = self.settings["length"]
    self._base = base
    if isinstance(tokenizer, PartTokenizer):
      self.tokenizer = tokenizer
    else:
      kept = None
      if self.settings["vocabulary"] == "data":
        if not self.settings["files"]:
          raise InversionViewError(
            "no files to read texts from: set inputs.files (.txt, .jsonl, a dataset folder or tfds:NAME); or inputs.vocabulary=all, and the "
            "texts are those that the target writes"
          )
        kept = tuple(np.union1d(np.concatenate(self._read[0]), [base.bos_id]).tolist())
      self.tokenizer = PartTokenizer(base, kept)

  @functools.cached_property
  def _read(self) -> tuple[list[np.ndarray], np.ndarray]:
    """Windows of the texts (ids of the model's tokenizer without BOS and EOS), and int64[N], the text of each; prints what was left out."""
    s, room = self.settings, self.length - 2
    windows, document, count, long = [], [], 0, 0
    for ids in _encoded(self._base, sources.texts(s["files"], s["field"], s["split"], s["data_dir"], s["empty"])):
      if len(ids) > room:
        long += 1
      if len(ids) <= room or s["long"] == "cut":
        windows += [ids[start : start + room] for start in range(0, len(ids), room)]
        document += [count] * -(-len(ids) // room)
      count += 1
    what = f"{long:,} of {count:,} texts are longer than {room} tokens and were "
    if long:
      print_message(
        what + (f"cut: {len(windows):,} inputs" if s["long"] == "cut" else f"left out: {len(windows):,} inputs")
      )
    if not windows:
      raise InversionViewError(f"no text is left: all {count:,} are longer than {room} tokens; raise inputs.length")
    return windows, np.array(document)

  @functools.cached_property
  def _rows(self) -> np.ndarray:
    return rows_of(self.tokenizer, self._read[0], self.length)

  def be_written(self, writer: Callable[[np.ndarray], np.ndarray]) -> None:
    """Takes int64[B] -> int32[B, T], a pure function of the index, for the inputs of a task without files; their prior is not known here."""
    self.writer, self.enumerable = writer, False

  @property
  def num_inputs(self) -> int:  # type: ignore[override]
    return self.settings["count"] if self.writer is not None else len(self._read[0])

  def split(self, name: str, seed: int = 0) -> np.ndarray:
    """Like `Task.split`, except that the windows of one text are all in the same split, if there are several texts."""
    if self.writer is not None:
      return super().split(name, seed)
    document = self._read[1]
    if name not in ("train", "test") or len(document) == document[-1] + 1 or not document[-1]:
      return super().split(name, seed)
    order = np.random.default_rng(seed).permutation(document[-1] + 1)
    chosen = np.isin(document, order[: int(0.75 * len(order))])
    return np.random.default_rng([seed, 1]).permutation(np.flatnonzero(chosen if name == "train" else ~chosen))

  def tokens(self, index: np.ndarray) -> np.ndarray:
    if self.writer is not None:
      return self.writer(np.asarray(index, np.int64))
    return self._rows[np.asarray(index, np.int64)]

  def labels(self, tokens: Sequence[int]) -> list[str]:
    labels, t = [""] * len(tokens), self.tokenizer
    used = [i for i, token in enumerate(tokens) if token not in (t.bos_id, t.eos_id, t.pad_id)]
    if used:
      labels[used[-1]] = "END"
    return labels

  def default_sites(self, n_layers: int, n_heads: int) -> tuple[str, ...]:
    """The residual stream at five depths."""
    depths = sorted({round(part * (n_layers - 1) / 4) for part in (1, 2, 3, 4)})
    return ("x0.pre", *(f"x{layer}.post" for layer in depths))

  def query_mask(self, tokens: Array) -> Array:
    every = super().query_mask(tokens)
    return every & ~shift_left(every, False) if self.settings["positions"] else every


def _checked(settings: Mapping) -> dict:
  config_schema.check_inputs("text", settings)
  made = _DEFAULTS | {name: value for name, value in settings.items() if value is not None}
  if made["files"] and made["count"] != _DEFAULTS["count"]:
    raise InversionViewError(
      f"inputs.count is {made['count']:,}, but there are inputs.files: it is the number of texts that a target writes where there are none"
    )
  return {**made, "files": sources.absolute(made["files"]), "positions": list(made["positions"])}


def _encoded(base, texts):
  """Yields the token ids of each (where, text); raises `InversionViewError` for a text that spells out BOS or EOS."""
  chunk = []
  for pair in texts:
    chunk.append(pair)
    if len(chunk) == _CHUNK:
      yield from _encode(base, chunk)
      chunk = []
  yield from _encode(base, chunk)


def _encode(base, chunk):
  for (where, _), ids in zip(chunk, base.encode_many([text for _, text in chunk]), strict=True):
    ids = np.array(ids, np.int64)
    if not len(ids):
      raise InversionViewError(f"{where}: the text has no tokens; remove it")
    if (ids == base.bos_id).any() or (ids == base.eos_id).any():
      raise InversionViewError(f"{where} spells out a special token of the tokenizer; remove it from the text")
    yield ids


def rows_of(tokenizer: PartTokenizer, texts: Sequence, length: int) -> np.ndarray:
  """Texts in ids of the model's tokenizer -> int32[N, T] in ids of its part: BOS, the text, EOS, PAD.

  Raises:
    InversionViewError: a token outside the part.
  """
  rows = np.full((len(texts), length), tokenizer.pad_id, np.int32)
  rows[:, 0] = tokenizer.bos_id
  kept = tokenizer.base_ids
  for row, ids in zip(rows, texts, strict=True):
    numbers = np.minimum(np.searchsorted(kept, ids), len(kept) - 1)
    if (wrong := kept[numbers] != ids).any():
      tokenizer.number(int(np.asarray(ids)[wrong][0]))  # raises, naming the token
    row[1 : len(ids) + 1] = numbers
    row[len(ids) + 1] = tokenizer.eos_id
  return rows
