"""Direct logit attribution as an experiment of a config: do heads raise or lower the names that a prompt is about? (paper, section 4.3)

Shapes: N inputs, C components, R roles.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from inversionview_jax.causal import attribution, interventions
from inversionview_jax.causal.experiments import FORMAT_VERSION, as_data, describe, plain
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.base import Task

_NEEDS = ("about", "position", "roles", "components", "top")


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Such an experiment whose input has been checked.

  Attributes:
    tokens: int32[N, T].
    at: int32[N], where the logits are read.
    of: int32[N, R], the token of each role.
    components: C names.
  """

  name: str
  settings: Mapping
  tokens: np.ndarray
  at: np.ndarray
  of: np.ndarray
  components: tuple[str, ...]


def prepare(target, task: Task, name: str, settings: Mapping, config: Mapping) -> Prepared:
  """Draws the inputs.

  Args:
    target: the whole model.
    task: whose inputs.
    name: of the experiment.
    settings: "position" (a label), "roles" (labels of the positions whose tokens are looked for, the first two make a logit difference),
      "components" (names such as "a9.6"; none: every head), "top" (how many tokens count as the most raised or lowered).
    config: "pairs" (how many inputs), "seed", "split".

  Raises:
    InversionViewError: what is wrong with them.
  """
  if missing := [key for key in _NEEDS if key not in settings]:
    raise InversionViewError(f"the experiment {name} does not say {missing[0]!r}; it needs {', '.join(_NEEDS)}")
  if len(settings["roles"]) < 2:
    raise InversionViewError(
      f"the experiment {name} needs two roles or more, such as ('IO', 'S1'); got {settings['roles']!r}"
    )
  if config["pairs"] < 1 or settings["top"] < 1:
    which, value = ("pairs", config["pairs"]) if config["pairs"] < 1 else ("top", settings["top"])
    raise InversionViewError(f"{which} = {value} must be at least 1")
  index = np.random.default_rng(config["seed"]).permutation(task.split(config["split"]))[: config["pairs"]]
  tokens = task.tokens(index)
  known = [part for part in attribution.components_of(target.config) if part != "bias"]
  components = tuple(settings["components"]) or tuple(part for part in known if part[0] == "a")
  if wrong := [part for part in components if part not in known]:
    raise one_of("component", wrong[0], known)
  rows = np.arange(len(tokens))
  of = np.stack([tokens[rows, task.positions(tokens, role)] for role in settings["roles"]], axis=1)
  return Prepared(name, settings, tokens, task.positions(tokens, settings["position"]), of, components)


def run(target, prepared: Prepared, *, batch_size: int, task: Task) -> dict:
  """Runs it.

  Returns:
    Plain data as of `experiments.run`: "results" holds one table with a row for each component, those that move the logit difference most
    first: "logit_difference" (its contribution to the first role's logit less that to the second's), and "top" and "bottom" with the share of
    the inputs in which each role's token is among the `top` most raised, or most lowered, of the whole vocabulary.
  """
  settings, size = prepared.settings, min(batch_size, len(prepared.tokens))
  parts = []
  for start in range(0, len(prepared.tokens), size):
    which = np.minimum(np.arange(start, start + size), len(prepared.tokens) - 1)
    found = attribution.ranks(
      target, prepared.tokens[which], prepared.at[which], prepared.of[which], prepared.components
    )
    kept = slice(0, len(prepared.tokens) - start)
    parts.append((found.values[kept], found.above[kept], found.below[kept]))
  values, above, below = (np.concatenate(each) for each in zip(*parts, strict=True))  # [N, C, R]
  moved = values[..., 0].astype(np.float64) - values[..., 1]
  rows = []
  for i in np.argsort(-np.abs(moved.mean(axis=0)), kind="stable"):
    row = {"name": prepared.components[i], "logit_difference": as_data(interventions.estimate(moved[:, i]))}
    for key, rank in (("top", above), ("bottom", below)):
      hits = rank[:, i] < settings["top"]
      row[key] = {role: as_data(interventions.estimate(hits[:, r])) for r, role in enumerate(settings["roles"])}
    rows.append(row)
  return {
    "format_version": FORMAT_VERSION,
    "experiment": prepared.name,
    "kind": "attribute",
    "about": settings["about"],
    "target": describe(target),
    "settings": {key: plain(value) for key, value in settings.items()},
    "example": task.tokenizer.text(prepared.tokens[0]),
    "pairs": len(prepared.tokens),
    "results": [{"order": "components", "rows": rows}],
  }
