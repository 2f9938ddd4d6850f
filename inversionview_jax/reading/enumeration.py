"""The exact preimage as a `Preimage`: the target on every input of a task that can enumerate them; no decoder is involved.

Shapes: M members, T tokens, D width of the activation.
"""

import math

import numpy as np

from inversionview_jax import bounds
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.reading import answers
from inversionview_jax.reading.requests import Request, resolve
from inversionview_jax.sampling import exact
from inversionview_jax.sampling.candidates import Candidates, Queries, Rows
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task

_MEMBERS = 16_384  # that a `Preimage` holds; a larger one takes seconds to build and to show
_OUTSIDE = 256  # inputs nearest to epsilon outside of it


def exact_preimage(
  target: Target,
  text: str,
  site: str,
  position: int | str,
  *,
  task: Task,
  epsilon: float | None = None,
  metric: str | None = None,
  match: str = "anywhere",
  seed: int = 0,
  name: str = "",
) -> Preimage:
  """All inputs of the task within epsilon of one activation, and the nearest outside (paper, equation 1).

  Args:
    target: the model that is read.
    text, site, position, epsilon, metric, match: as for `Reader.preimage`; any site of the target.
    task: its inputs, which can be enumerated.
    seed: of the members that are taken where there are more than 16,384.
    name: shown with the preimage; "": the name of the target.

  Returns:
    The preimage; `bits` are log2 of the task's inputs over the members, without error.

  Raises:
    InversionViewError: a text, site, position or number that cannot be used, a task whose inputs cannot be enumerated, or a text whose
      own activation is not within epsilon of any of them.
  """
  index, resolved_site = exact.every_input(task), target.site(site)
  seed = bounds.whole("seed", seed, "own_seed")
  request = resolve(Request(text, site, position, epsilon, metric, match), 0, task)
  pattern = [f"p{resolved_site.layer}"] if resolved_site.kind == "head" else []
  run = target.run(request.tokens[None], [resolved_site, *pattern])
  activation, attention = np.asarray(run[resolved_site][0, request.position], np.float32), None
  if pattern:
    attention = np.asarray(run[pattern[0]][0, resolved_site.head, request.position, : request.position + 1])
  query = answers.query_of(request, task, resolved_site, activation, attention)
  queries = Queries.of(activation[None], 0, request.metric, request.compared_position)
  distances = exact.distances(target, task, (resolved_site,), queries, index)
  distance, order = distances.distance[0], np.argsort(distances.distance[0], kind="stable")
  size = int((distance <= np.float32(request.epsilon)).sum())
  if not size:
    raise InversionViewError(
      f"no input of the task {task.name!r} lies within epsilon = {request.epsilon:g} of this activation; the nearest is at {distance[order[0]]:.4g}"
    )
  members = np.arange(size)
  if size > _MEMBERS:
    members = np.sort(np.random.default_rng(seed).choice(size, _MEMBERS, replace=False))
  chosen = order[np.concatenate([members, np.arange(size, min(size + _OUTSIDE, len(order)))])]
  candidates = Candidates(task.tokens(distances.index[chosen]), distance[chosen], distances.position[0][chosen], None)
  count = len(chosen)
  rows = Rows(np.zeros(count, np.int32), np.arange(count), np.ones(count, np.float32), np.zeros(count, np.float32))
  return answers.preimage_of(
    query,
    answers.samples_of(candidates, rows, request.epsilon, task),
    request,
    seed=seed,
    reader=name or target.name,
    task=task.name,
    convention=target.convention,
    method="exact",
    target_runs=len(index),
    bits=math.log2(len(index) / size),
  )
