"""Direct logit attribution as an experiment of a config: do heads raise or lower the names that a prompt is about? (paper, section 4.3)

Shapes: N inputs, C components, R roles.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal import attribution
from inversionview_jax.causal.estimates import estimate
from inversionview_jax.causal.experiments import result_of
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.targets import Target
from inversionview_jax.tasks.base import Task

_NEEDS = ("about", "position", "roles", "components", "top")


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """Such an experiment whose settings have been checked, ready to run.

  Attributes:
    name: of the experiment.
    settings: as in the config.
    tokens: int32[N, T].
    at: int32[N], where the logits are read.
    role_tokens: int32[N, R], the token of each role.
    components: C names.
  """

  name: str
  settings: Mapping
  tokens: np.ndarray
  at: np.ndarray
  role_tokens: np.ndarray
  components: tuple[str, ...]


def prepare(target: Target, task: Task, name: str, settings: Mapping, config: Mapping) -> Prepared:
  """Draws the inputs.

  Args:
    target: the whole model.
    task: whose inputs.
    name: of the experiment.
    settings: "position" (a label), "roles" (labels of the positions whose tokens are looked for, the first two make a logit difference),
      "components" (names such as "a9.6"; none: every head), "top" (how many tokens count as the most raised or lowered).
    config: "pairs" (how many inputs), "seed", "split".

  Raises:
    InversionViewError: a setting that is missing or out of range.
  """
  if missing := [key for key in _NEEDS if key not in settings]:
    raise InversionViewError(f"the experiment {name} lacks {missing[0]!r}; it needs {', '.join(_NEEDS)}")
  if len(settings["roles"]) < 2:
    raise InversionViewError(
      f"the experiment {name} needs two roles or more, such as ('IO', 'S1'); got {settings['roles']!r}"
    )
  bounds.check(pairs=config["pairs"], top=settings["top"])
  index = np.random.default_rng(config["seed"]).permutation(task.split(config["split"]))[: config["pairs"]]
  tokens = task.tokens(index)
  known = [part for part in attribution.components_of(target.config) if part != "bias"]
  components = tuple(settings["components"]) or tuple(part for part in known if part[0] == "a")
  if unknown := [part for part in components if part not in known]:
    raise one_of("component", unknown[0], known)
  rows = np.arange(len(tokens))
  role_tokens = np.stack([tokens[rows, task.positions(tokens, role)] for role in settings["roles"]], axis=1)
  return Prepared(name, settings, tokens, task.positions(tokens, settings["position"]), role_tokens, components)


def run(target: Target, prepared: Prepared, *, batch_size: int, task: Task) -> dict:
  """Runs it.

  Returns:
    Plain data as of `experiments.run`: "results" holds one table with a row for each component, those that move the logit difference most
    first: "logit_difference" (its contribution to the first role's logit less that to the second's), and "top" and "bottom" with the share of
    the inputs in which each role's token is among the `top` most raised, or most lowered, of the whole vocabulary.
  """
  settings = prepared.settings

  def ranks(rows):
    out = attribution.ranks(target, *rows, prepared.components)
    return out.values, out.above, out.below

  rows = prepared.tokens, prepared.at, prepared.role_tokens
  values, above, below = parallel.in_chunks(ranks, rows, min(batch_size, len(prepared.tokens)))  # [N, C, R]
  difference = values[..., 0].astype(np.float64) - values[..., 1]
  table = []
  for c in np.argsort(-np.abs(difference.mean(axis=0)), kind="stable"):
    row = {"name": prepared.components[c], "logit_difference": estimate(difference[:, c]).to_data()}
    for key, rank in (("top", above), ("bottom", below)):
      hits = rank[:, c] < settings["top"]
      row[key] = {role: estimate(hits[:, r]).to_data() for r, role in enumerate(settings["roles"])}
    table.append(row)
  return result_of(target, prepared.name, settings) | {
    "example": task.tokenizer.text(prepared.tokens[0]),
    "pairs": len(prepared.tokens),
    "results": [{"order": "components", "rows": table}],
  }
