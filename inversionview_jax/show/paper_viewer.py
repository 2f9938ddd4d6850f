"""Files of the paper's own viewer: preimages written as such files, and read from them.

A folder for each query text holds a file for each site, position and metric. A file has the query, its attention where the site is a head,
and a list of samples: tokens, effect and metric of each token, index and value of the best one. Numbers are rounded to three decimals,
"sim" files hold the cosine similarity, largest first, "dist" files the normalized Euclidean distance, smallest first.

Such a file has neither the activation nor the seed nor epsilon; a preimage that is read from one has an empty activation and the
epsilon of its task. Needs no JAX.

Shapes: N samples, T tokens.
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from inversionview_jax import sites
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, path_of, read_json, write_whole
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.tasks import Task

# The viewer writes tokens into a page without escaping, where "<BOS>" would be markup.
BOS, EOS = "[BOS]", "[EOS]"
METRICS = {"dist": "euclidean", "sim": "cosine"}
_KEYS = ("query_input", "query_position", "probed_act", "attn_weights", "temperature", "metric", "generation")
_NAME = re.compile(r"(?P<site>[^-]+)-(?P<position>\d+)-(?P<temperature>[^-]+)-(?P<metric>dist|sim)\.json")
_NOT_COMPARED = {"dist": 1000.0, "sim": -1.0}  # the value of a token that was not compared


@dataclasses.dataclass(frozen=True)
class Page:
  """One file of the viewer.

  Attributes:
    query_input: tokens of the query, with BOS and without EOS.
    query_position: counts BOS as 0.
    probed_act: TransformerLens' name of the site.
    attn_weights: of a head, from the position to every token of the query; else ().
    temperature: 0.0 for the mixture, which the viewer calls "Auto".
    metric: "dist" or "sim".
    generation: (tokens, effect per token, metric per token, index of the best, its value) of each sample, best first.
  """

  query_input: tuple[str, ...]
  query_position: int
  probed_act: str
  attn_weights: tuple[float, ...]
  temperature: float
  metric: str
  generation: tuple[tuple, ...]

  @property
  def path(self) -> str:
    """Its path inside the viewer's folder: the joined tokens of the query, and the file's name."""
    folder = "".join(self.query_input)
    if "/" in folder or "\0" in folder or len(folder.encode()) > 255:
      raise InversionViewError(
        f"the query {folder[:80]!r} cannot name a folder: the viewer's layout needs texts without '/' of at most 255 bytes"
      )
    kind = "Auto" if self.temperature == 0 else f"{self.temperature:g}"
    return f"{folder}/{self.probed_act}-{self.query_position}-{kind}-{self.metric}.json"

  def to_json(self) -> str:
    """The content of the file."""
    return json.dumps({name: getattr(self, name) for name in _KEYS}, allow_nan=False)

  @classmethod
  def read(cls, path: "str | os.PathLike") -> "Page":
    """Reads a file; raises `InversionViewError` naming it and what is wrong with it."""
    try:
      content = read_json(path)
      if not isinstance(content, dict):
        raise InversionViewError("it is no JSON object")
      if missing := [key for key in _KEYS if key not in content]:
        raise InversionViewError(f"it lacks {', '.join(missing)}")
      fields = {name: content[name] for name in _KEYS}
      for name in ("query_input", "attn_weights"):
        fields[name] = tuple(fields[name])
      fields["generation"] = tuple(_row(row) for row in fields["generation"])
      page = cls(**fields)
      page._check()
      return page
    except OSError as error:
      raise InversionViewError(f"cannot read {os.fspath(path)!r}: {error.strerror}") from None
    except (ValueError, TypeError, RecursionError) as error:
      raise InversionViewError(f"{os.fspath(path)!r} is no file of the paper's viewer: {error}") from None

  def _check(self) -> None:
    if self.metric not in METRICS:
      raise InversionViewError(f"its metric is {self.metric!r}, neither dist nor sim")
    if not (isinstance(self.query_position, int) and 0 <= self.query_position < len(self.query_input)):
      raise InversionViewError(f"query_position {self.query_position!r} is not among {len(self.query_input)} tokens")
    if self.attn_weights and len(self.attn_weights) != len(self.query_input):
      raise InversionViewError(f"attn_weights has {len(self.attn_weights)} values for {len(self.query_input)} tokens")
    sites.parse(self.probed_act)


def _row(row: Sequence[Any]) -> tuple:
  """Checks one sample of a file: (tokens, effects, values, index of the best, its value)."""
  tokens, effect, values, best, value = row
  if not len(tokens) == len(effect) == len(values):
    raise InversionViewError(f"sample {''.join(map(str, tokens))!r} has {len(effect)} effects and {len(values)} values")
  if not all(isinstance(token, str) for token in tokens):
    raise InversionViewError(f"a sample has a token that is no string: {tokens!r}")
  if not (isinstance(best, int) and 0 <= best < len(tokens)):
    raise InversionViewError(f"sample {''.join(tokens)!r} has no position {best!r}")
  if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in (*effect, *values, value)):
    raise InversionViewError(f"sample {''.join(tokens)!r} has a value that is no number")
  return list(tokens), list(effect), list(values), best, value


def page_of(preimage: Preimage, values: np.ndarray, metric: str, shown: int = 100) -> Page:
  """The file of a preimage.

  Args:
    preimage: of this metric, with effects.
    values: float[N, T], at each position of each of `preimage.samples` its distance (not similarity) to the query; NaN where nothing was
      compared.
    metric: "dist" or "sim".
    shown: most samples; picked as `Preimage.shown` does.

  Raises:
    InversionViewError: a preimage without effects, or of another metric.
  """
  if METRICS[metric] != preimage.metric:
    raise InversionViewError(f"a {metric} file needs the {METRICS[metric]} metric, not {preimage.metric}")
  rows_of = {id(sample): row for row, sample in enumerate(preimage.samples)}
  rows = []
  for sample in preimage.shown(shown):
    if len(sample.effect) != len(sample.tokens):
      raise InversionViewError(
        "the candidates have no effects, by which the viewer colors tokens: draw them with effects"
      )
    if sample.position < 0:  # nothing to compare, so nothing to show
      continue
    length = 1 + len(sample.tokens)
    own = np.asarray(values[rows_of[id(sample)]][:length], np.float64)
    own = np.where(np.isnan(own), _NOT_COMPARED[metric], own if metric == "dist" else 1.0 - own)
    ends = ([EOS], [0.0], [_NOT_COMPARED[metric]]) if sample.ended else ([], [], [])
    effect = [0.0, *sample.effect] + ends[1]
    rows.append(
      (
        [BOS, *sample.token_strings] + ends[0],
        [round(float(x), 3) for x in effect],
        [round(float(x), 3) for x in own] + ends[2],
        sample.position,
        round(float(sample.distance if metric == "dist" else 1.0 - sample.distance), 3),
      )
    )
  rows.sort(key=lambda row: row[-1] if metric == "dist" else -row[-1])
  query = preimage.query
  tokens = list(query.token_strings)
  if tokens and tokens[-1] == "<EOS>":
    tokens.pop()
  attention = () if query.attention is None else tuple(round(float(x), 3) for x in query.attention)
  attention += (0.0,) * (len(tokens) - len(attention)) if attention else ()
  return Page((BOS, *tokens[1:]), query.position, query.hook, attention[: len(tokens)], 0.0, metric, tuple(rows))


def preimage_of(page: Page, task: Task, epsilon: float | None = None, reader: str = "imported") -> Preimage:
  """The preimage in a file, with rounded numbers and no activation.

  Args:
    page: the file.
    task: of the texts.
    epsilon: None for the task's; the file has none.
    reader: name of the reader; the file has none.

  Raises:
    InversionViewError: a token that the task does not have.
  """
  t, site = task.tokenizer, sites.parse(page.probed_act)
  ids = [t.bos_id, *_ids(page.query_input[1:], task)]
  samples = []
  for tokens, effect, _, best, value in page.generation:
    ended = len(tokens) > 1 and not _known(tokens[-1], task)  # EOS, however it is spelled
    text = tokens[1:-1] if ended else tokens[1:]
    own = _ids(text, task)
    distance = value if page.metric == "dist" else 1.0 - value
    samples.append(
      Sample(
        tokens=tuple(own),
        token_strings=tuple(t.strings(own)),
        text=t.text(own),
        distance=distance,
        position=min(best, len(own)),
        effect=tuple(effect[1 : 1 + len(own)]),
        temperature=page.temperature,
        ended=ended,
      )
    )
  query = Query(
    text=t.text(ids),
    tokens=tuple(ids),
    token_strings=tuple(t.strings(ids)),
    position=page.query_position,
    label=task.labels(ids)[page.query_position],
    site=site.short,
    hook=site.hook,
    activation=(),
    attention=page.attn_weights[: page.query_position + 1] if page.attn_weights else None,
  )
  from inversionview_jax._version import __version__

  return Preimage(
    query,
    tuple(samples),
    epsilon=task.epsilon if epsilon is None else epsilon,
    metric=METRICS[page.metric],
    match="anywhere",
    seed=0,
    reader=reader,
    task=task.name,
    convention="centered",
    version=__version__,
  )


def _known(token: str, task: Task) -> bool:
  """Whether this is one token of the task."""
  try:
    return len(task.tokenizer.encode(token)) == 1
  except InversionViewError:
    return False


def _ids(tokens: Sequence[str], task: Task) -> list[int]:
  """Token ids; raises `InversionViewError` for a token that the task does not have."""
  ids: list[int] = []
  for token in tokens:
    if not _known(token, task):
      raise InversionViewError(f"the task {task.name!r} has no token {token!r}: give the task that these files are of")
    ids += task.tokenizer.encode(token)
  return ids


def write(folder: "str | os.PathLike", pages: Iterable[Page]) -> list[str]:
  """Writes the files; returns their paths inside the folder."""
  folder, written, pages = make_folder(folder), [], list(pages)
  paths = [page.path for page in pages]  # raises for a page that cannot be named, before the first is written
  for path, page in zip(paths, pages, strict=True):
    make_folder(folder / path.split("/")[0])
    write_whole(folder / path, page.to_json())
    written.append(path)
  return written


def read(folder: "str | os.PathLike") -> list[Page]:
  """All files of such a directory, in the order of their paths; raises `InversionViewError` if there are none or one is damaged."""
  folder = path_of(folder)
  if not folder.is_dir():
    raise InversionViewError(f"no folder {os.fspath(folder)!r}")
  names = {path: name for path in sorted(folder.glob("*/*.json")) if (name := _NAME.fullmatch(path.name))}
  if not names:
    raise InversionViewError(
      f"{os.fspath(folder)!r} holds no files of the paper's viewer: it needs a folder for each query with files "
      "SITE-POSITION-Auto-dist.json and -sim.json"
    )
  pages = []
  for path, name in names.items():
    page = Page.read(path)
    if (page.probed_act, str(page.query_position), page.metric) != (name["site"], name["position"], name["metric"]):
      raise InversionViewError(f"{os.fspath(path)!r} is named for another site, position or metric than it holds")
    pages.append(page)
  return pages
