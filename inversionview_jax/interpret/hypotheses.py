"""Prompts in which a language model reads saved preimages, and the test of its answers.

A prompt shows several queries of one site and position with samples inside and outside epsilon, and asks for a reading in words and for the
same as an expression over the task's features and tokens (`tasks.grammar`). The expression is then tested as any claim is (`measures.claim_check`):
confirmed, refuted, or not testable. Needs no JAX; the `openai` client only where answers are not replayed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inversionview_jax import tasks
from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file, path_of
from inversionview_jax.measures.claims import judge
from inversionview_jax.measures.consistency import Members
from inversionview_jax.measures.properties import evaluate as evaluated
from inversionview_jax.measures.properties import expression_at_random
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import FORMAT, Preimage
from inversionview_jax.tasks import Task

Evaluate = Callable[
  [np.ndarray], tuple[np.ndarray, np.ndarray]
]  # tokens int32[N, T] -> values int[N], whether they are known bool[N]

# In a prompt; of the samples so many inside and so many outside (paper, appendix on automated reading).
_PROMPT_QUERIES, _PROMPT_SAMPLES = 5, 20
_MAX_FEATURES = 3  # expressions of an answer

_PROMPT = """\
You interpret what an activation inside a neural network encodes about its input. The inputs that the activation could have come from are \
those listed as INSIDE: on them the network computes nearly the same activation. Those listed as OUTSIDE have a different one. What all \
inputs inside share with their query, and those outside do not, is what the activation encodes; what varies among them it does not encode. \
Brackets mark the position at which an input's activation is nearest to the query's.

The task: {about}
Features that have names:
{features}

All queries are of one activation in the network: {site} at position {position}. For each query the inputs inside must be explained by what \
they share with that query.

{queries}

What does this activation encode? First think about which features agree inside and which vary. Then end your answer with one JSON object, \
and nothing after it:
{{"reading": "<one or two sentences>", "features": ["<expression>"]}}
Each expression is over the names above, so that the inputs inside have the same value as their query: a feature (F1), a sum, difference, \
product or remainder (such as (F2 + S2) % 10), or comparisons joined by and, or, not (such as F1 + S1 >= 10); or over tokens: token(3) or \
token(LABEL), contains("text"), count("text"), length. At most {most} \
expressions, the most certain first; an empty list if there is no such expression.\
"""


@dataclasses.dataclass(frozen=True)
class PreimageGroup:
  """Saved preimages of one site and position, which one prompt interprets.

  Attributes:
    site: short name of the site.
    position: label of the position; its index where it has none.
    preimages: at least one; of different texts.
  """

  site: str
  position: str
  preimages: tuple[Preimage, ...]

  @property
  def task(self) -> Task:
    """The task of the preimages."""
    return tasks.get(self.preimages[0].task)


@dataclasses.dataclass(frozen=True)
class Score:
  """The test of an expression.

  Attributes:
    feature: the expression.
    verdict: one of `VERDICTS`.
    why: the reason for the verdict, one line.
    rate: share of the members inside that have the query's value, mean over queries; None where it is not testable.
    base: share of random inputs that have it.
    outside: share of the samples outside that have it; None without any.
    control: share of the members of other queries that have it; None for a single query.
    queries: how many queries it was measured on.
    unseen: whether none of them was in the prompt.
  """

  feature: str
  verdict: str
  why: str
  rate: Rate | None = None
  base: float | None = None
  outside: float | None = None
  control: float | None = None
  queries: int = 0
  unseen: bool = False

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    in_sample = bool(self.queries) and not self.unseen
    return dataclasses.asdict(self) | {"rate": self.rate and self.rate.to_dict(), "in_sample": in_sample}


def load(paths: Sequence["str | os.PathLike"]) -> list[Preimage]:
  """Reads saved preimages.

  Args:
    paths: files, and folders that are searched for them; other JSON files in a folder are skipped.

  Raises:
    InversionViewError: nothing there, a file that cannot be read, or no preimages at all.
  """
  preimages = []
  for path in map(path_of, paths):
    if path.is_dir():
      preimages += [Preimage.from_json(file) for file in sorted(path.rglob("*.json")) if _is_preimage(file)]
    else:
      preimages.append(Preimage.from_json(path))
  if not preimages:
    raise InversionViewError(
      f"no preimages in {', '.join(map(str, paths))}; `inversionview view --json FILE` writes one"
    )
  return preimages


def _is_preimage(path: pathlib.Path) -> bool:
  """Whether a file names the format at its start; a preimage of another version does, too, and is refused when it is read."""
  try:
    with open_file(path) as file:
      return FORMAT.encode() in file.read(200)
  except OSError:  # a folder or a pipe of this name, or a file that is another user's
    return False


def group_preimages(preimages: Sequence[Preimage]) -> list[PreimageGroup]:
  """Preimages by site and position, in the order of the first of each; of several preimages of one text the first is kept.

  Those found by different methods, or compared in another way, are in different groups.
  """
  groups: dict[tuple, dict[str, Preimage]] = {}
  for p in preimages:
    position = p.query.label or str(p.query.position)
    together = tuple((other.site, other.label or str(other.position)) for other in p.others)
    key = p.query.site, position, p.task, p.reader, p.metric, p.epsilon, p.method, together, p.directions
    groups.setdefault(key, {}).setdefault(p.query.text, p)
  return [PreimageGroup(key[0], key[1], tuple(by_text.values())) for key, by_text in groups.items()]


def prompt(group: PreimageGroup, queries: int = _PROMPT_QUERIES, samples: int = _PROMPT_SAMPLES) -> str:
  """The prompt for a group of preimages; the same preimages give the same prompt.

  Args:
    group: of one site and position.
    queries: so many of its queries are shown.
    samples: so many samples of each query inside epsilon, and so many outside.
  """
  task, shown = group.task, []
  for number, preimage in enumerate(group.preimages[:queries], 1):
    query = preimage.query
    rng = np.random.default_rng(number)
    strings = [s for s in query.token_strings if s not in ("<BOS>", "<EOS>")]
    lines = [f"QUERY {number}: {_marked(strings, query.position)}   ({feature_values(task, query.text)})"]
    for name, side in (("INSIDE", preimage.inside), ("OUTSIDE", preimage.outside)):
      distinct = list({sample.text: sample for sample in side}.values())
      chosen = [distinct[i] for i in sorted(rng.permutation(len(distinct))[:samples])]
      lines.append(f"{name} (distance {'at most' if name == 'INSIDE' else 'above'} {preimage.epsilon:g}):")
      lines += [f"  {_marked(s.token_strings, s.position)}   distance {s.distance:.3f}" for s in chosen] or ["  none"]
    shown.append("\n".join(lines))
  return _PROMPT.format(
    about=task.about or f"inputs of the task {task.name!r}",
    features="\n".join(f"  {name}: {description}" for name, description in feature_names(task).items()),
    site=group.site,
    position=repr(group.position),
    queries=f"Distance: {METRICS[group.preimages[0].metric]}.\n\n" + "\n\n".join(shown),
    most=_MAX_FEATURES,
  )


def feature_names(task: Task) -> dict[str, str]:
  """The task's features, each with its description, or its name where it has none."""
  features = task.features(task.tokens(np.arange(1)))
  return {name: task.feature_names.get(name, name) for name in features}


def _marked(strings: Sequence[str], position: int) -> str:
  """Tokens without BOS, the one at `position` (which counts it) in brackets."""
  return "".join(f"[{s}]" if index == position else s for index, s in enumerate(strings, 1))


def feature_values(task: Task, text: str) -> str:
  """The values of a text's features as "F1 = 6, F2 = 1"; those that are not known are left out."""
  features = task.features(task.tokenizer.encode_batch([text], length=task.length, eos=True))
  return ", ".join(f"{name} = {values[0]}" for name, values in features.items() if values[0] >= 0)


def prompt_hash(model: str, text: str, settings: dict[str, Any]) -> str:
  """The name of an answer: 24 hex digits of a SHA-256 over the model, the prompt and the settings of the request."""
  key = json.dumps({"model": model, "prompt": text, **settings}, sort_keys=True)
  return hashlib.sha256(key.encode()).hexdigest()[:24]


def parse(answer: str) -> tuple[str, list[str]]:
  """The reading and the expressions of an answer: those of its last JSON object that has them; else the answer itself and none."""
  for start in reversed([i for i, character in enumerate(answer) if character == "{"]):
    try:
      record, _ = json.JSONDecoder().raw_decode(answer[start:])
    except (ValueError, RecursionError):
      continue
    if isinstance(record, dict) and ("reading" in record or "features" in record):
      features = record.get("features", [])
      features = [features] if isinstance(features, str) else features
      if not isinstance(features, list):
        features = []
      features = [f.strip() for f in features if isinstance(f, str) and f.strip()]
      return str(record.get("reading", "")), features[:_MAX_FEATURES]
  return answer.strip(), []


def score(group: PreimageGroup, feature: str, seen: int = _PROMPT_QUERIES) -> Score:
  """Measures an expression on the preimages of a group.

  The verdict is that of `claim_check.judge` on the mean over queries. Not testable is besides what cannot be parsed, or has no value for the queries.

  Args:
    group: of one site and position.
    feature: the expression.
    seen: so many queries were in the prompt; where at least two others are there, only those are used. Else the test is in-sample: the answer
      was made to fit what it is tested on.
  """
  task, unseen = group.task, len(group.preimages) >= seen + 2

  def evaluate(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return evaluated(task, feature, tokens)

  try:
    random = expression_at_random(task, feature)
  except InversionViewError as error:
    return Score(feature, "not testable", str(error))
  measured = [_measure(p, task, evaluate, random) for p in (group.preimages[seen:] if unseen else group.preimages)]
  queries = [query for query in measured if query is not None]
  if not queries:
    return Score(feature, "not testable", "no query has a value of it and members inside epsilon")
  # Row: a query's value; column: the members of a query. The diagonal is the rate, the rest the control.
  shares = np.array([[_share(evaluate, other.inside, query.value) for other in queries] for query in queries])
  rate, base = float(np.mean(np.diag(shares))), float(np.mean([query.base for query in queries]))
  count = sum(min(query.inside.effective, len(np.unique(query.inside.tokens, axis=0))) for query in queries)
  outside = [query.outside for query in queries if query.outside is not None]
  interval = Rate(rate * count, count)
  problem = next((p.problem for p in group.preimages if p.converged is False), "")
  verdict, why = judge(interval.value, interval.low, interval.high, base, problem)
  return Score(
    feature,
    verdict,
    why,
    rate=interval,
    base=base,
    outside=float(np.mean(outside)) if outside else None,
    control=float(shares[~np.eye(len(queries), dtype=bool)].mean()) if len(queries) > 1 else None,
    queries=len(queries),
    unseen=unseen,
  )


@dataclasses.dataclass(frozen=True)
class _Measured:
  """An expression on one query: its value, the members inside, and the shares of random inputs and of samples outside that have the value."""

  value: int
  inside: Members
  base: float
  outside: float | None


def _measure(
  preimage: Preimage, task: Task, evaluate: Evaluate, random: tuple[np.ndarray, np.ndarray]
) -> _Measured | None:
  """Measures an expression on one query; None where the query has no value of it, or nothing lies inside."""
  value, known = evaluate(task.tokenizer.encode_batch([preimage.query.text], length=task.length, eos=True))
  inside = Members.of(preimage, task).within(preimage.epsilon)
  if not known[0] or not len(inside):
    return None
  outside, beyond = None, Members.of_samples(preimage.outside, task)
  if len(beyond):
    values, outside_known = evaluate(beyond.tokens)
    outside = float(np.average((values == value[0]) & outside_known, weights=beyond.weight))
  return _Measured(int(value[0]), inside, float(np.mean((random[0] == value[0]) & random[1])), outside)


def _share(evaluate: Evaluate, inside: Members, value: int) -> float:
  """The share of members that have a value of an expression, by weight."""
  values, known = evaluate(inside.tokens)
  return float(np.average((values == value) & known, weights=inside.weight))
