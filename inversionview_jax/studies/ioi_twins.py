"""Partners of IOI prompts for patching: another name in a role or in a place, and the tokens whose logits tell whether it was patched.

Shapes: N inputs, M pairs, T tokens.
"""

import numpy as np

from inversionview_jax.studies.effects import Twins
from inversionview_jax.tasks.contrast import Pairs, joined
from inversionview_jax.tasks.ioi import IOI

VERIFIED = ("IO", "S", "order", "first", "second")
_ROLES = {"first": ("IO", "S"), "second": ("S", "IO")}  # of the name in that place, in the order ABBA and in BABA
_CANDIDATES = 20_000


def twins(task: IOI, feature: str, index: np.ndarray, count: int, seed: int) -> Twins | None:
  """Twins of at most `count` of the inputs, int64[N]; None where none has both partners."""
  if feature not in _ROLES:
    return Twins.of(task, feature, index, count, seed)
  order = task.features(task.tokens(index))["order"]
  parts = [task.contrast_in(role, "only", index[order == value], seed) for value, role in enumerate(_ROLES[feature])]
  only = joined([part for part in parts if len(part)])
  if not len(only):
    return None
  only = only[np.random.default_rng(seed).permutation(len(only))]
  partner = _partners(task, feature, only.clean, seed)
  kept = np.flatnonzero(partner >= 0)[:count]
  if not len(kept):
    return None
  rows = task.tokens(partner[kept])
  only = only[kept]
  rest = Pairs(only.index, only.clean, rows, only.clean_at, task.positions(rows, "END"))
  return Twins(feature, only, rest)


def _partners(task: IOI, feature: str, clean: np.ndarray, seed: int) -> np.ndarray:
  """int64[M]: for each prompt an input with the same name in this place, another one in the other place, and another sentence; -1: none found."""
  index = np.random.default_rng(seed + 1).permutation(task.num_inputs)[:_CANDIDATES]
  theirs, own = task.features(task.tokens(index)), task.features(clean)
  other = "second" if feature == "first" else "first"
  found = np.full(len(clean), -1)
  for m in range(len(clean)):
    same = theirs[feature] == own[feature][m]
    for name in (other, "template", "place", "object"):
      same &= theirs[name] != own[name][m]
    same &= theirs[other] != own[feature][m]
    if same.any():
      found[m] = index[np.flatnonzero(same)[0]]
  return found


def subjects(task: IOI, rows: np.ndarray) -> np.ndarray:
  """int32[M]: the token of S."""
  return rows[np.arange(len(rows)), task.positions(rows, "S2")]


def compared(task: IOI, feature: str, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
  """The tokens whose logits are compared: the old name and the new one; of "order", which has none, IO and S.

  Args:
    task: of the prompts.
    feature: that differs.
    pairs: that differ in it only.
  """
  if feature == "order":
    return pairs.answer, subjects(task, pairs.clean)
  return _name(task, feature, pairs.clean), _name(task, feature, pairs.corrupted)


def _name(task: IOI, feature: str, rows: np.ndarray) -> np.ndarray:
  """int32[M]: the token of the name in a role or place."""
  by_role = {
    role: rows[np.arange(len(rows)), task.positions(rows, label)] for role, label in (("IO", "IO"), ("S", "S1"))
  }
  if feature in by_role:
    return by_role[feature]
  ordinary, swapped = _ROLES[feature]
  return np.where(task.features(rows)["order"] == 0, by_role[ordinary], by_role[swapped])
