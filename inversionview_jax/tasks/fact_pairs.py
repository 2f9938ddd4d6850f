"""Pairs of facts that differ in one feature, or agree in it alone.

Shapes: N texts, B pairs, T tokens.
"""

from collections.abc import Mapping

import numpy as np

from inversionview_jax.tasks import hashing
from inversionview_jax.tasks.contrast import Pairs, redraw

# (feature, kind of pairs) -> what a pair has in common, and what must differ; "token": the first token of the answer.
_CONTRASTS = {
  ("subject", "only"): (("relation", "wording", "opening"), ("subject", "token")),
  ("subject", "rest"): (("subject",), ("relation", "wording", "opening")),
  ("relation", "only"): (("subject", "opening"), ("relation", "token")),
  ("relation", "rest"): (("relation",), ("subject", "answer", "wording", "opening")),
  ("answer", "only"): (("relation", "wording", "opening"), ("answer", "token")),
  ("answer", "rest"): (("answer",), ("wording", "opening")),
  ("kind", "only"): (("subject", "opening"), ("kind", "token")),
  ("kind", "rest"): (("kind",), ("subject", "answer", "wording", "opening")),
  ("language", "only"): (("relation", "wording", "opening"), ("language", "token")),
  ("language", "rest"): (("language",), ("subject", "wording", "opening")),
  ("wording", "only"): (("subject", "relation", "opening"), ("wording",)),
  ("wording", "rest"): (("wording",), ("subject", "opening")),
  ("opening", "only"): (("subject", "relation", "wording"), ("opening",)),
  ("opening", "rest"): (("opening",), ("subject", "relation", "wording")),
}


def draw(
  feature: str,
  vary: str,
  index: np.ndarray,
  seed: int,
  *,
  rows: np.ndarray,
  end: np.ndarray,
  values: Mapping[str, np.ndarray],
) -> Pairs:
  """Pairs whose clean inputs are those of `index` that have such a pair; see `Factual.contrast_in`.

  Args:
    feature, vary: one of `factual.FEATURES`, and one of `contrast.VARY`.
    index: int64[B], of the clean inputs.
    seed: of the draws, which are functions of it and of the index.
    rows: int32[N, T], the tokens of all inputs.
    end: int64[N], the position from which the answer is predicted; -1: a sentence.
    values: of each feature, int32[N]; -1: none.
  """
  token = np.where(end >= 0, rows[np.arange(len(rows)), np.minimum(end + 1, rows.shape[1] - 1)], -1)
  values = {**values, "token": token}
  same, differ = _CONTRASTS[feature, vary]
  # What is equal in all inputs, as in files that have one wording of each relation, cannot differ.
  differ = tuple(name for name in differ if name == feature or len(np.unique(values[name][end >= 0])) > 1)
  usable = (end >= 0) & np.all([values[name] >= 0 for name in {*same, *differ}], axis=0)
  numbers, index = np.flatnonzero(usable), index[usable[index]]
  group = np.full(len(rows), -1)
  if len(numbers):
    keys = np.stack([values[name][numbers] for name in same], axis=1)
    group[numbers] = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
  members = numbers[np.argsort(group[numbers], kind="stable")]
  sizes = np.bincount(group[numbers], minlength=1)
  starts = np.cumsum(sizes) - sizes

  def propose(chosen, attempt):
    of = group[index[chosen]]
    drawn = hashing.uniform(sizes[of], seed, index[chosen], attempt)
    return members[starts[of] + drawn] if len(chosen) else np.zeros(0, np.int64)

  def accept(chosen, drawn):
    return np.all([values[name][drawn] != values[name][index[chosen]] for name in differ], axis=0)

  other, made = redraw(len(index), propose, accept)
  index, other = index[made], other[made]
  return Pairs(index, rows[index], rows[other], end[index].astype(np.int32), end[other].astype(np.int32))
