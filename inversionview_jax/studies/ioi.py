"""Indirect object identification as a study (paper, section 4.3; Wang et al., 2022): heads by effect, what they encode, and their roles.

Every head's direct effect at END, on the logit of IO less that of S; where it attends to from S1+1, S2 and END; and what patching it there from
the prompt in which the other name is repeated would take, to first order. Those that matter are read at the position where they do.

Shapes: L layers, H heads of a layer, M pairs, T tokens.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from inversionview_jax.causal.estimates import Estimate, estimate
from inversionview_jax.devices import parallel
from inversionview_jax.sites import Site
from inversionview_jax.studies import effects, ioi_twins
from inversionview_jax.studies.places import Place, PlaceStudy, Progress, Questions, study
from inversionview_jax.studies.stages import Stages
from inversionview_jax.targets import Target
from inversionview_jax.tasks.contrast import Pairs
from inversionview_jax.tasks.ioi import FEATURES, IOI

POSITIONS = ("S1+1", "S2", "END")
# Role -> position, where the head attends to from there, what is published of GPT-2 small (Wang et al., 2022).
ROLES = {
  "name mover": ("END", "IO", "9.9, 9.6, 10.0"),
  "negative name mover": ("END", "IO", "10.7, 11.10"),
  "S-inhibition": ("END", "S2", "7.3, 7.9, 8.6, 8.10"),
  "S mover": ("END", "S1", "none"),
  "duplicate token": ("S2", "S1", "0.1, 3.0, (0.10)"),
  "induction": ("S2", "S1+1", "5.5, 6.9, (5.8, 5.9)"),
  "previous token": ("S1+1", "S1", "2.2, 4.11"),
}
_LOOKS = ("BOS", "IO", "S1", "S1+1", "S2", "END")
_TAKEN = ("S2", "END")  # where patching is attributed
_ATTENDS = 0.2  # mean attention from which on a head attends to a position


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a study is made.

  Attributes:
    prompts: on which direct effects and attention of all heads are measured.
    names: of which the prompts of preimages have two; 0: all. With a hundred names two prompts in ten thousand share both.
    pairs: of patching, at most.
    end_direct, end_patched: heads at END with the largest direct effect, and with the largest effect of patching besides.
    s2_patched: heads at S2 with the largest effect of patching.
    s1_attending: heads at S1+1 that attend most to S1.
    queries: of each place.
    pool: inputs among which preimages are sought.
    shown: preimages of each place that are kept.
    seed: of everything that is drawn.
  """

  prompts: int = 32
  names: int = 8
  pairs: int = 12
  end_direct: int = 8
  end_patched: int = 4
  s2_patched: int = 6
  s1_attending: int = 4
  queries: int = 12
  pool: int = 2048
  shown: int = 2
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Head:
  """What is measured of every head.

  Attributes:
    site: its short name.
    direct: contribution to the logit of IO less that of S at END.
    patched: position -> what patching it there would take from that difference (from the prompt in which the other name is repeated), to
      first order.
    attention: position -> {where: mean attention}.
  """

  site: str
  direct: Estimate
  patched: dict[str, Estimate]
  attention: dict[str, dict[str, float]]

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
      "site": self.site,
      "direct": self.direct.to_data(),
      "patched": {name: value.to_data() for name, value in self.patched.items()},
      "attention": self.attention,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class IOIStudy:
  """The result.

  Attributes:
    heads: all of the model's, by the size of their direct effect.
    places: those that were read.
    right: share of the prompts in which IO has a larger logit than S.
    difference: mean logit of IO less that of S.
    pool: inputs among which preimages were sought.
    names: that these have.
  """

  heads: tuple[Head, ...]
  places: tuple[PlaceStudy, ...]
  right: float
  difference: float
  pool: int
  names: int


def run(
  target: Target,
  task: IOI,
  settings: Settings,
  stages: Stages,
  progress: Progress,
  sites: Sequence[str] = (),
  besides: Sequence[tuple[str, str]] = (),
) -> IOIStudy:
  """Measures all heads and reads those that matter, or those of `sites` at all three positions; and sites at positions `besides`."""
  target.require_logits()
  index = np.random.default_rng(settings.seed).permutation(task.num_inputs)
  prompts, rest = index[: settings.prompts], _of_few_names(task, index[settings.prompts :], settings.names)
  queries, some = rest[: settings.queries], np.sort(rest[settings.queries :][: settings.pool])
  names = [f"a{layer}.{head}" for layer in range(target.config.n_layers) for head in range(target.config.n_heads)]
  every = [target.site(name) for name in names]
  pairs = task.contrast(prompts, settings.seed, kind="S2")
  progress("all heads", 0, 3)
  direct = stages.arrays("direct-all", lambda: effects.direct_values(target, pairs, pairs.foil, every))
  progress("all heads", 1, 3)
  looks = stages.arrays("attention", lambda: _attention(target, task, every, prompts))
  progress("all heads", 2, 3)
  taken = stages.arrays("attributed", lambda: _attributed(target, task, pairs[slice(0, settings.pairs)]))
  progress("all heads", 3, 3)
  heads = [
    Head(
      names[h],
      estimate(direct["difference"][h]),
      {name: estimate(taken["lost"][site.layer, site.head, i]) for i, name in enumerate(_TAKEN)},
      {name: dict(zip(_LOOKS, looks[name][h].tolist(), strict=True)) for name in POSITIONS},
    )
    for h, site in enumerate(every)
  ]
  places = _chosen(target, heads, settings, sites)
  places = list(dict.fromkeys([*places, *(Place(target.site(name), position) for name, position in besides)]))
  found = {name: ioi_twins.twins(task, name, prompts, settings.pairs, settings.seed) for name in ioi_twins.VERIFIED}
  twins = {name: pairs for name, pairs in found.items() if pairs is not None}
  questions = Questions(
    queries=queries,
    index=np.concatenate([some, queries]),
    features=FEATURES,
    apart="template",
    twins=twins,
    compared={name: ioi_twins.compared(task, name, pairs.only) for name, pairs in twins.items()},
    direct="IO",
    foil=ioi_twins.subjects(task, twins["IO"].only.clean),
  )
  by_name = {head.site: head for head in heads}
  measures = [_measures(by_name[place.site.short], place.position) for place in places]
  roles = [role_of(by_name[place.site.short], place.position) for place in places]
  studied = study(
    target,
    task,
    places,
    questions,
    stages,
    progress,
    measures=measures,
    roles=roles,
    shown=settings.shown,
    seed=settings.seed,
  )
  order = sorted(heads, key=lambda head: -abs(head.direct.mean))
  difference = taken["clean"]
  return IOIStudy(
    tuple(order),
    tuple(studied),
    float((difference > 0).mean()),
    float(difference.mean()),
    len(questions.index),
    min(settings.names or len(task.names), len(task.names)),
  )


def _of_few_names(task: IOI, index: np.ndarray, count: int) -> np.ndarray:
  """Of inputs int64[N], those with two of the first so many names: a narrower prior, in which a name has more than a handful of prompts."""
  if not 0 < count < len(task.names):
    return index
  features = task.features(task.tokens(index))
  return index[(features["IO"] < count) & (features["S"] < count)]


def role_of(head: Head, position: str) -> str:
  """The role of a head at a position by where it attends most and the sign of its direct effect; "" where it attends mainly elsewhere."""
  seen = {where: share for where, share in head.attention[position].items() if where not in ("BOS", position)}
  most = max(seen, key=lambda where: seen[where])
  if seen[most] < _ATTENDS:
    return ""
  for role, (where_from, where_to, _) in ROLES.items():
    if (where_from, where_to) != (position, most):
      continue
    if most == "IO" and (head.direct.mean < 0) != role.startswith("negative"):
      continue
    return role
  return ""


def _measures(head: Head, position: str) -> dict[str, float]:
  """Attention and effects of a head, for its row."""
  seen = {f"to {where}": share for where, share in head.attention[position].items() if where not in ("BOS", position)}
  patched = {"S2 exchanged": head.patched[position].mean} if position in head.patched else {}
  return seen | patched


def _attention(target: Target, task: IOI, sites: Sequence[Site], index: np.ndarray) -> dict[str, np.ndarray]:
  """position -> float32[heads, places]: the mean attention from there to each of `_LOOKS`, places behind it excluded."""
  rows = task.tokens(index)
  to = {name: np.zeros(len(rows), np.int64) if name == "BOS" else task.positions(rows, name) for name in _LOOKS}
  # Patterns of all layers at once are one program.
  firsts = [site for site in sites if site.head == 0]
  found = {}
  for name in POSITIONS:
    seen = _patterns(target, firsts, rows, to[name])  # [L, H, N, T]
    each = [np.where(to[name] >= at, seen[:, :, np.arange(len(rows)), at], 0.0).mean(axis=-1) for at in to.values()]
    found[name] = np.stack(each, axis=-1).reshape(len(sites), len(_LOOKS)).astype(np.float32)
  return found


def _patterns(target: Target, firsts: Sequence[Site], rows: np.ndarray, at: np.ndarray) -> np.ndarray:
  """float32[L, H, N, T]: where every head attends to from one position of each row."""
  patterns = [target.site(f"p{site.layer}", ("pattern",)) for site in firsts]

  def program(chunk):
    part, where = chunk
    out = target.captured(part, patterns)
    return np.stack([np.asarray(out[p], np.float32)[np.arange(len(part)), :, where] for p in patterns], axis=1)

  return np.moveaxis(parallel.in_chunks(program, (rows, at), min(16, len(rows))), 0, 2)


def _attributed(target: Target, task: IOI, pairs: Pairs) -> dict[str, np.ndarray]:
  """ "lost" float64[L, H, positions, M], and the clean logit difference, float[M]."""
  clean_at, corrupted_at = (
    np.stack([task.positions(rows, name) for name in _TAKEN], axis=1) for rows in (pairs.clean, pairs.corrupted)
  )
  lost = effects.attributed_effects(target, pairs, pairs.foil, (clean_at, corrupted_at))
  site, width = [target.site("a0.0")], int(max(pairs.clean_at.max(), pairs.corrupted_at.max())) + 1
  at, compared = (pairs.clean_at, pairs.corrupted_at), (pairs.answer, pairs.foil)
  clean = effects.patched_once(target, pairs, site, at, compared, width)["clean"]
  return {"lost": lost, "clean": clean}


def _chosen(target: Target, heads: Sequence[Head], settings: Settings, sites: Sequence[str]) -> list[Place]:
  """The places that are read."""
  if sites:
    return [Place(target.site(name, ("head",)), position) for position in POSITIONS for name in sites]

  def top(count, key, besides=()):
    ranked = sorted((head for head in heads if head.site not in besides), key=key, reverse=True)
    return [head.site for head in ranked[:count]]

  end = top(settings.end_direct, lambda head: abs(head.direct.mean))
  end += top(settings.end_patched, lambda head: abs(head.patched["END"].mean), end)
  at = {
    "END": end,
    "S2": top(settings.s2_patched, lambda head: abs(head.patched["S2"].mean)),
    "S1+1": top(settings.s1_attending, lambda head: head.attention["S1+1"]["S1"]),
  }
  return [Place(target.site(name), position) for position in at for name in at[position]]


def summary(found: IOIStudy) -> dict[str, Any]:
  """What the page and the JSON have besides the places."""
  five = [head.site for head in found.heads[:5]]
  read = [name for name in five if any(p.site == name and p.position == "END" and p.verified for p in found.places)]
  return {
    "right": found.right,
    "logit_difference": found.difference,
    "pool": found.pool,
    "heads": [head.to_data() for head in found.heads],
    "roles": roles_table(found),
    "summary": [
      f"logit of IO above that of S in {100 * found.right:.0f} % of the prompts, by {found.difference:.2f} on average; preimages among "
      f"{found.pool:,} random prompts of {found.names} names",
      f"the five largest direct effects: {', '.join(five)}; verified readings: {', '.join(read) or 'none'}",
    ],
  }


def roles_table(found: IOIStudy) -> list[dict[str, str]]:
  """A row for each role: the heads that have it here, those of GPT-2 small, and by what a head is given it."""
  rows = []
  for role, (position, where, published) in ROLES.items():
    own = [place for place in found.places if place.role == role]
    own.sort(key=lambda place: -place.measures.get(f"to {where}", 0.0))
    named = [f"{place.site[1:]}" + (f" ({', '.join(place.verified)})" if place.verified else "") for place in own]
    sign = {"name mover": ", raises IO", "negative name mover": ", lowers IO"}.get(role, "")
    evidence = f"attends from {position} mostly to {where}, at least {_ATTENDS:g}{sign}; in brackets: what its reading names and patching confirms"
    rows.append({"role": role, "heads": ", ".join(named), "published": published, "evidence": evidence})
  return rows
