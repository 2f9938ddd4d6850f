"""A language model reads saved preimages, and what it says is tested.

A prompt shows several queries of one place with samples inside and outside epsilon, and asks for a reading in words and for the same as
an expression over the task's features (`tasks.grammar`). The expression is then measured on the preimages as any other feature:
confirmed, refuted, or not testable. Needs no JAX; the `openai` client only where answers are not replayed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from inversionview_jax import tasks
from inversionview_jax.distance import METRICS
from inversionview_jax.errors import InversionViewError
from inversionview_jax.measures.consistency import ENCODES, Members, certainty_of
from inversionview_jax.measures.properties import Background
from inversionview_jax.measures.rates import Rate
from inversionview_jax.preimage import FORMAT, Preimage
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.grammar import expression

VERDICTS = ("confirmed", "refuted", "not testable")
_SEEN_QUERIES, _SEEN_SAMPLES = (
  5,
  20,
)  # in a prompt; of the samples so many on each side (paper, appendix on automated reading)
_CONSTANT = 0.98  # what so many random inputs share cannot be tested
_MOST_FEATURES = 3

_ASK = """\
You interpret what an activation inside a neural network says about its input. The inputs that the activation could have come from are \
those listed as INSIDE: on them the network computes nearly the same activation. Those listed as OUTSIDE have a different one. What all \
inputs inside share with their query, and those outside do not, is what the activation says; what varies among them it does not say. \
Brackets mark the position at which an input's activation is nearest to the query's.

The task: {about}
Features that have names:
{features}

All queries are of one place in the network: {site} at position {place}. For each query the inputs inside must be explained by what \
they share with that query.

{queries}

What does this activation say? First think about which features agree inside and which vary. Then end your answer with one JSON object, and \
nothing behind it:
{{"reading": "<one or two sentences>", "features": ["<expression>"]}}
Each expression is over the names above, so that the inputs inside have the same value as their query: a feature (F1), a sum, difference, \
product or remainder (such as (F2 + S2) % 10), or comparisons joined by and, or, not (such as F1 + S1 >= 10). At most {most} \
expressions, the most certain first; an empty list if no expression says it.\
"""


@dataclasses.dataclass(frozen=True)
class Place:
  """Saved preimages of one place: what is interpreted at once.

  Attributes:
    site, place: short name of the site, and label of the position (its index where it has none).
    preimages: at least one; of different texts.
  """

  site: str
  place: str
  preimages: tuple[Preimage, ...]

  @property
  def task(self) -> Task:
    return tasks.get(self.preimages[0].task)


@dataclasses.dataclass(frozen=True)
class Score:
  """An expression, measured.

  Attributes:
    feature: the expression.
    verdict: one of `VERDICTS`.
    why: in words.
    rate: share of the members inside that have the query's value, mean over queries; None where it is not testable.
    base: share of random inputs that do.
    outside: share of the samples outside that do; None without any.
    control: the same for members of other queries; None for a single query.
    queries, unseen: how many queries it was measured on; whether none of them was in the prompt.
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

  def to_dict(self) -> dict:
    return dataclasses.asdict(self) | {"rate": self.rate and self.rate.to_dict()}


def load(paths: Sequence["str | os.PathLike"]) -> list[Preimage]:
  """Saved preimages: files, and folders that are searched for them; other JSON files in a folder are passed over.

  Raises:
    InversionViewError: nothing there, a file that cannot be read, or no preimages at all.
  """
  found = []
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      files = sorted(path.rglob("*.json"))
      found += [Preimage.from_json(file) for file in files if _looks_like_one(file)]
    else:
      found.append(Preimage.from_json(path))
  if not found:
    raise InversionViewError(
      f"no preimages in {', '.join(map(str, paths))}; `inversionview view --json FILE` writes one"
    )
  return found


def _looks_like_one(path: pathlib.Path) -> bool:
  with open(path, encoding="utf-8", errors="replace") as file:
    return FORMAT in file.read(200)


def places(preimages: Sequence[Preimage]) -> list[Place]:
  """Preimages by place, in the order of the first of each; of a text that is there twice the first is kept."""
  by_place: dict[tuple, dict[str, Preimage]] = {}
  for preimage in preimages:
    query = preimage.query
    place = query.label or str(query.position)
    key = preimage.task, preimage.reader, preimage.metric, preimage.epsilon, query.site, place
    by_place.setdefault(key, {}).setdefault(query.text, preimage)
  return [Place(key[4], key[5], tuple(own.values())) for key, own in by_place.items()]


def prompt(place: Place, queries: int = _SEEN_QUERIES, samples: int = _SEEN_SAMPLES) -> str:
  """What a language model is asked about a place; the same for the same preimages."""
  task, shown = place.task, []
  for number, preimage in enumerate(place.preimages[:queries], 1):
    query = preimage.query
    rng = np.random.default_rng(number)
    strings = [s for s in query.token_strings if s not in ("<BOS>", "<EOS>")]
    lines = [f"QUERY {number}: {_marked(strings, query.position)}   ({_features(task, query.text)})"]
    for name, side in (("INSIDE", preimage.inside), ("OUTSIDE", preimage.outside)):
      distinct = list({sample.text: sample for sample in side}.values())
      some = [distinct[i] for i in sorted(rng.permutation(len(distinct))[:samples])]
      lines.append(f"{name} (distance {'at most' if name == 'INSIDE' else 'above'} {preimage.epsilon:g}):")
      lines += [f"  {_marked(s.token_strings, s.position)}   distance {s.distance:.3f}" for s in some] or ["  none"]
    shown.append("\n".join(lines))
  return _ASK.format(
    about=task.about or f"inputs of the task {task.name!r}",
    features="\n".join(f"  {name}: {what}" for name, what in _named(task).items()),
    site=place.site,
    place=repr(place.place),
    queries=f"Distance: {METRICS[place.preimages[0].metric]}.\n\n" + "\n\n".join(shown),
    most=_MOST_FEATURES,
  )


def _named(task: Task) -> dict[str, str]:
  known = task.features(task.tokens(np.arange(1)))
  return {name: task.feature_names.get(name, name) for name in known}


def _marked(strings: Sequence[str], position: int) -> str:
  """Tokens without BOS, the one at `position` (which counts it) in brackets."""
  return "".join(f"[{s}]" if at == position else s for at, s in enumerate(strings, 1))


def _features(task: Task, text: str) -> str:
  found = task.features(task.tokenizer.encode_batch([text], length=task.length, eos=True))
  return ", ".join(f"{name} = {values[0]}" for name, values in found.items() if values[0] >= 0)


def prompt_hash(model: str, text: str, settings: dict) -> str:
  """Names an answer: the same question to the same model, asked in the same way."""
  said = json.dumps({"model": model, "prompt": text, **settings}, sort_keys=True)
  return hashlib.sha256(said.encode()).hexdigest()[:24]


def parse(answer: str) -> tuple[str, list[str]]:
  """The reading and the expressions of an answer: those of its last JSON object that has them; else the answer itself and none."""
  for start in reversed([i for i, character in enumerate(answer) if character == "{"]):
    try:
      said, _ = json.JSONDecoder().raw_decode(answer[start:])
    except (ValueError, RecursionError):
      continue
    if isinstance(said, dict) and ("reading" in said or "features" in said):
      features = said.get("features", [])
      features = [features] if isinstance(features, str) else features
      if not isinstance(features, list):
        features = []
      return str(said.get("reading", "")), [f.strip() for f in features if isinstance(f, str) and f.strip()][
        :_MOST_FEATURES
      ]
  return answer.strip(), []


def score(place: Place, feature: str, seen: int = _SEEN_QUERIES) -> Score:
  """Measures an expression on the preimages of a place: on those that the prompt did not show, where there are at least two.

  Confirmed: of what random inputs leave open, more than half is settled inside epsilon, by the lower end of the interval. Refuted: not so,
  by the upper end. Not testable: it cannot be understood, says nothing of the queries, is true of nearly all inputs, or the samples are too few.
  """
  task, unseen = place.task, len(place.preimages) >= seen + 2
  asked = place.preimages[seen:] if unseen else place.preimages

  def of(tokens):
    return expression(feature, task.features(tokens), len(tokens))

  try:
    random, random_known = of(Background.of(task).tokens)
  except InversionViewError as error:
    return Score(feature, "not testable", str(error))
  values, bases, outsides, members, inside_counts = [], [], [], [], []
  for preimage in asked:
    row = task.tokenizer.encode_batch([preimage.query.text], length=task.length, eos=True)
    own, known = of(row)
    every = Members.of(preimage, task)
    inside = every.within(preimage.epsilon)
    if not known[0] or not len(inside):
      continue
    values.append(int(own[0]))
    bases.append(float(np.mean((random == own[0]) & random_known)))
    members.append(inside)
    inside_counts.append(inside.effective)
    beyond = every.distance > np.float32(preimage.epsilon)
    if beyond.any():
      found, there = of(every.tokens[beyond])
      outsides.append(float(np.average((found == own[0]) & there, weights=every.weight[beyond])))
  if not values:
    return Score(feature, "not testable", "no query has a value of it and members inside epsilon")
  shares = np.empty((len(values), len(members)))
  for m, inside in enumerate(members):
    found, there = of(inside.tokens)
    for v, value in enumerate(values):
      shares[v, m] = np.average((found == value) & there, weights=inside.weight)
  mean, base = float(np.mean(np.diag(shares))), float(np.mean(bases))
  other = ~np.eye(len(values), dtype=bool)
  told = {
    "rate": Rate(mean * sum(inside_counts), sum(inside_counts)),
    "base": base,
    "outside": float(np.mean(outsides)) if outsides else None,
    "control": float(shares[other].mean()) if len(values) > 1 else None,
    "queries": len(values),
    "unseen": unseen,
  }
  if base > _CONSTANT:
    return Score(feature, "not testable", f"{100 * base:.1f} % of random inputs agree anyway", **told)
  certainty = [certainty_of(x, base) for x in (told["rate"].low, told["rate"].high)]
  said = f"{100 * mean:.1f} % agree inside, {100 * base:.1f} % of random inputs"
  if certainty[0] > ENCODES:
    return Score(feature, "confirmed", said, **told)
  if certainty[1] < ENCODES:
    return Score(feature, "refuted", said, **told)
  return Score(feature, "not testable", f"too few samples to decide: {said}", **told)
