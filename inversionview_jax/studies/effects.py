"""What heads do at the answer: patching of one head at a time over pairs of inputs, and direct logit attribution.

Shapes: N pairs, T tokens, S sites.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.causal import attribution, patching
from inversionview_jax.causal.addresses import Address
from inversionview_jax.causal.estimates import Estimate, estimate, share
from inversionview_jax.causal.patching import Readout
from inversionview_jax.devices import parallel
from inversionview_jax.sites import Site
from inversionview_jax.targets import Edit, Target
from inversionview_jax.targets.edits import CAPTURABLE, resolve_edits
from inversionview_jax.targets.inputs import resolve_inputs
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.contrast import Pairs

TOGETHER = 4  # heads of one program, one after the other; the clean and the corrupted run are shared


@dataclasses.dataclass(frozen=True)
class Twins:
  """Inputs with two partners each: one that differs in a feature, and one that has the feature in common and little else.

  Attributes:
    feature: of the task.
    only: the clean inputs and the partners that differ in the feature only.
    rest: the same clean inputs and the other partners.
  """

  feature: str
  only: Pairs
  rest: Pairs

  @classmethod
  def of(cls, task: Task, feature: str, index: np.ndarray, count: int, seed: int) -> "Twins | None":
    """Twins of at most `count` of these inputs, int64[N]; None where none has both partners."""
    only = task.contrast_in(feature, "only", index, seed, predict="answer")
    rest = task.contrast_in(feature, "rest", index, seed + 1, predict="answer")
    _, first, second = np.intersect1d(only.index, rest.index, return_indices=True)
    if not len(first):
      return None
    kept = np.random.default_rng(seed).permutation(len(first))[:count]
    return cls(feature, only[first[kept]], rest[second[kept]])

  def __len__(self) -> int:
    return len(self.only)


@dataclasses.dataclass(frozen=True)
class PatchEffect:
  """The effect of one head's patch on the logit of a token that belongs to the feature less that of the partner's.

  Attributes:
    feature: in which the partner differs.
    total: what the partner's run takes from the logit difference.
    only: what the patch from that partner takes.
    share: only / total; None where the total is zero.
    rest: what the patch from the input with the same value of the feature takes from the same logit difference.
  """

  feature: str
  total: Estimate
  only: Estimate
  share: Estimate | None
  rest: Estimate

  @property
  def agrees(self) -> bool:
    """Whether the patch takes or adds something, by three standard errors, and that from the input with the same value at most half as much."""
    only = abs(self.only.mean)
    return bool(only > 3 * self.only.se and abs(self.rest.mean) <= only / 2)

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON."""
    values = {name: getattr(self, name) for name in ("total", "only", "share", "rest")}
    data: dict[str, Any] = {name: value and value.to_data() for name, value in values.items()}
    return {"feature": self.feature, **data, "agrees": self.agrees}


def patched_once(
  target: Target,
  pairs: Pairs,
  sites: Sequence[Site],
  at: tuple[np.ndarray, np.ndarray],
  compared: tuple[np.ndarray, np.ndarray],
  width: int,
  batch: int = 16,
) -> dict[str, np.ndarray]:
  """The logit of one token less that of another, with each site patched by itself.

  Args:
    target: that is patched.
    pairs: the inputs.
    sites: S of them, of one kind, at most `TOGETHER`.
    at: int32[N] each, the patched position of the clean and of the corrupted inputs.
    compared: int32[N] each, the two tokens, such as the answer and the partner's.
    width: tokens of the inputs that are run, up to the last position at which something is read.
    batch: pairs of a program; the result does not depend on it.

  Returns:
    "clean" and "corrupted" float[N], "patched" float[S, N].
  """
  full = list(sites) + [sites[0]] * (TOGETHER - len(sites))  # one program serves all parts
  rows = np.arange(-(-len(pairs) // batch) * batch) % len(pairs)  # and all numbers of pairs
  addresses = [Address(site.short, site, *(x[rows] for x in at)) for site in full]
  readout = Readout(*(x[rows, None] for x in (pairs.clean_at, pairs.corrupted_at, *compared)))
  measured = patching.measure(
    target,
    pairs.clean[rows, :width],
    addresses,
    np.eye(len(full), dtype=bool),
    readout,
    corrupted=pairs.corrupted[rows, :width],
    batch_size=batch,
  )
  assert measured.corrupted is not None
  difference = measured.steps["logit_difference"][:, : len(pairs), 0]  # [1 + S, N]
  corrupted = measured.corrupted["logit_difference"][: len(pairs), 0]
  return {"clean": difference[0], "corrupted": corrupted, "patched": difference[1 : 1 + len(sites)]}


def patched_differences(
  target: Target,
  twins: Twins,
  sites: Sequence[Site],
  at: tuple[np.ndarray, np.ndarray, np.ndarray],
  compared: tuple[np.ndarray, np.ndarray],
  width: int,
) -> dict[str, np.ndarray]:
  """The logit of one token less that of another, with each site patched by itself from both partners.

  Args:
    target, sites, compared, width: as for `patched_once`.
    twins: the inputs.
    at: int32[N] each, the patched position of the clean inputs, of `only` and of `rest`.

  Returns:
    "clean" and "corrupted" float[N] (the run of `only`), "only" and "rest" float[S, N].
  """
  only = patched_once(target, twins.only, sites, (at[0], at[1]), compared, width)
  rest = patched_once(target, twins.rest, sites, (at[0], at[2]), compared, width)
  return {"clean": only["clean"], "corrupted": only["corrupted"], "only": only["patched"], "rest": rest["patched"]}


def patch_effect(feature: str, differences: Mapping[str, np.ndarray], number: int) -> PatchEffect:
  """The effect of one site, of those in what `patched_differences` returned."""
  clean = differences["clean"]
  total, lost = clean - differences["corrupted"], clean - differences["only"][number]
  other = clean - differences["rest"][number]
  return PatchEffect(feature, estimate(total), estimate(lost), share(lost, total), estimate(other))


@dataclasses.dataclass(frozen=True)
class DirectEffect:
  """Direct logit attribution of one head at the position where the answer is predicted.

  Attributes:
    difference: its contribution to the logit of the answer less that of another answer of the same relation.
    rank: median over inputs of the answer's rank among all tokens by the head's contribution; 1: raised most.
    top: share of the inputs in which the answer is among the 30 tokens raised most (paper, section 4.3).
  """

  difference: Estimate
  rank: float
  top: float

  def to_data(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return {"difference": self.difference.to_data(), "rank": self.rank, "top30": self.top}


def direct_values(
  target: Target, pairs: Pairs, foil: np.ndarray, sites: Sequence[Site], batch: int = 16
) -> dict[str, np.ndarray]:
  """Each head's contribution at the position where the answer is predicted: "difference" float32[S, N] (answer less foil), "above" int32[S, N].

  "above" is how many tokens of the vocabulary the head raises more than the answer.
  """
  names, parts = [site.short for site in sites], []
  width = int(pairs.clean_at.max()) + 1
  for start in range(0, len(pairs), batch):
    rows = np.arange(start, start + batch) % len(pairs)
    some = pairs[rows]
    tokens = np.stack([some.answer, foil[rows]], axis=1)
    found = attribution.ranks(target, some.clean[:, :width], some.clean_at, tokens, names)
    parts.append((found.values, found.above))
  values, above = (np.concatenate(x)[: len(pairs)] for x in zip(*parts, strict=True))
  return {"difference": (values[:, :, 0] - values[:, :, 1]).T, "above": above[:, :, 0].T}


def direct_effect(values: Mapping[str, np.ndarray], number: int) -> DirectEffect:
  """The effect of one head, of those in what `direct_values` returned."""
  above = values["above"][number]
  return DirectEffect(estimate(values["difference"][number]), 1 + float(np.median(above)), float(np.mean(above < 30)))


def attributed_effects(
  target: Target, pairs: Pairs, foil: np.ndarray, at: tuple[np.ndarray, np.ndarray], batch: int = 8
) -> np.ndarray:
  """What patching each head at some positions would take from the logit difference, to first order (attribution patching: Nanda, 2023).

  One backward pass gives it for all heads and positions, where patching takes a run for each.

  Args:
    target: that is read.
    pairs, foil: as for `patched_once`.
    at: int32[N, P] each, the positions in the clean and in the corrupted inputs.
    batch: pairs of a program; the result does not depend on it.

  Returns:
    float64[L, H, P, N].
  """
  width = int(max(pairs.clean_at.max(), pairs.corrupted_at.max())) + 1
  layers = range(target.config.n_layers)
  sites = [target.site(f"z{layer}", CAPTURABLE) for layer in layers]

  @parallel.jit
  def program(params, clean, corrupted, clean_at, corrupted_at, answer_at, answer, foil):
    # As an argument, because a closed-over model would be a constant of the program, which XLA copies and folds.
    model, index = dataclasses.replace(target, params=params), jnp.arange(len(clean))

    def vectors(tokens, positions):
      out = model.captured(tokens, sites)
      return [out[site][index[:, None], positions].astype(jnp.float32) for site in sites]  # [B, P, H, K] each

    def difference(added):
      edits = [Edit(site, clean_at, value, mode="add") for site, value in zip(sites, added, strict=True)]
      inputs = resolve_inputs(model, clean)
      resolved = resolve_edits(model, edits, inputs)
      # At the answer only: logits of all positions of a vocabulary of 262,144 are 200 MB, and their gradients as many.
      logits = model.module.apply(
        {"params": params}, inputs.tokens, edits=resolved, logits_at=answer_at[:, None], exact=True
      ).logits[:, 0]
      return jnp.sum(logits[index, answer] - logits[index, foil])

    own = vectors(clean, clean_at)
    gradients = jax.grad(difference)([jnp.zeros_like(x) for x in own])
    other = vectors(corrupted, corrupted_at)
    lost = [jnp.sum((a - b) * g, axis=-1) for a, b, g in zip(own, other, gradients, strict=True)]  # [B, P, H]
    return jnp.stack(lost, axis=1)

  def one(rows):
    return program(target.params, *rows)

  rows = (
    pairs.clean[:, :width],
    pairs.corrupted[:, :width],
    np.asarray(at[0], np.int32),
    np.asarray(at[1], np.int32),
    pairs.clean_at,
    pairs.answer,
    np.asarray(foil, np.int32),
  )
  found = parallel.in_chunks(one, rows, min(batch, len(pairs)))  # [N, L, P, H]
  return np.asarray(found, np.float64).transpose(1, 3, 2, 0)
