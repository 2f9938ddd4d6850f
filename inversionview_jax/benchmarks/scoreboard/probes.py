"""Linear probes, the usual baseline: which variables can be decoded from an activation.

The probe is the linear discriminant (Fisher, 1936; classes of one covariance): linear in the activation, as multinomial logistic regression is, but in
closed form, so that every variable of a program can be tried on every component. Accuracy is that of cross-validation.

Shapes: N inputs, D width of the activation, K values of a variable.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from inversionview_jax.measures.consistency import ENCODES, certainty_of

_FOLDS = 4
_MOST = 768  # inputs: enough for a rate that is known to 0.03
_RIDGE = 1e-4  # of the mean variance, added to that within the classes, which is 0 for an activation that is a function of the variable


def decoded(
  activations: np.ndarray, parts: Mapping[str, np.ndarray], names: Sequence[str], seed: int = 0
) -> dict[str, float]:
  """The variables that a linear probe decodes: name -> bits, its accuracy above chance as a share of the variable's entropy.

  A variable counts as decoded by the rule for a reader's verdict "encodes": the accuracy, corrected for that of the most frequent value.

  Args:
    activations: float[N, D].
    parts: name -> int[N], values from 0.
    names: the variables that are tried.
    seed: of the folds.
  """
  rng = np.random.default_rng(seed)
  rows = rng.permutation(len(activations))[:_MOST]
  x = np.asarray(activations, np.float64)[rows]
  x = x[:, np.ptp(x, axis=0) > 0]
  found: dict[str, float] = {}
  if not x.shape[1]:
    return found
  x = (x - x.mean(axis=0)) / x.std(axis=0)
  fold = np.arange(len(x)) % _FOLDS
  for name in names:
    _, y = np.unique(parts[name][rows], return_inverse=True)
    counts = np.bincount(y)
    if len(counts) < 2:
      continue
    hits = sum(_hits(x, y, fold == k, len(counts)) for k in range(_FOLDS))
    chance = counts.max() / len(y)
    certainty = certainty_of(hits / len(y), chance)
    if certainty > ENCODES:
      share = counts / len(y)
      found[name] = certainty * float(-(share[share > 0] * np.log2(share[share > 0])).sum())
  return found


def _hits(x: np.ndarray, y: np.ndarray, held_out: np.ndarray, classes: int) -> int:
  """How many of the held-out inputs the discriminant of the others classifies rightly."""
  train, values = x[~held_out], y[~held_out]
  one_hot = np.eye(classes)[values]
  counts = one_hot.sum(axis=0)
  means = one_hot.T @ train / np.maximum(counts, 1)[:, None]
  within = train - means[values]
  covariance = within.T @ within / len(train) + _RIDGE * np.eye(x.shape[1])
  weights = np.linalg.solve(covariance, means.T)  # [D, K]
  bias = -0.5 * (means * weights.T).sum(axis=1) + np.log(np.maximum(counts, 1e-300) / len(train))
  scores = x[held_out] @ weights + bias
  return int((scores.argmax(axis=1) == y[held_out]).sum())
