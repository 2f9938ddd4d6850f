"""What can be requested of a reader, and its validation before anything runs.

Shapes: T tokens.
"""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax import bounds, distance
from inversionview_jax.distance import MATCHES
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.preimage import Query
from inversionview_jax.sampling.candidates import ANYWHERE
from inversionview_jax.tasks import Mixture, Task


@dataclasses.dataclass(frozen=True)
class Request:
  """One query of `Reader.preimages`; the fields are arguments of `Reader.preimage`."""

  text: str
  site: str
  position: int | str
  epsilon: float | None = None
  metric: str | None = None
  match: str = "anywhere"

  @classmethod
  def of(cls, request: "Request | tuple | Mapping[str, Any] | Query") -> "Request":
    """A request from a tuple (text, site, position), a dict of the fields, or the query of another preimage.

    Raises:
      InversionViewError: none of these.
    """
    if isinstance(request, Request):
      return request
    if isinstance(request, Query):
      return cls(request.text, request.site, request.position)
    try:
      return cls(**request) if isinstance(request, Mapping) else cls(*tuple(request))
    except TypeError:
      fields = ", ".join(field.name for field in dataclasses.fields(cls))
      raise InversionViewError(f"a query is (text, site, position) or a dict of {fields}; got {request!r}") from None


@dataclasses.dataclass(frozen=True)
class ResolvedRequest:
  """A valid request, with the task's defaults filled in.

  Attributes:
    text: as it was given.
    tokens: int32[T], with BOS, EOS and PAD.
    site: index into the reader's sites.
    position: index into the tokens.
    epsilon, metric, match: of the preimage.
  """

  text: str
  tokens: np.ndarray
  site: int
  position: int
  epsilon: float
  metric: str
  match: str

  @property
  def compared_position(self) -> int:
    """The position at which candidates are compared; -1 for the nearest one."""
    return self.position if self.match == "position" else ANYWHERE


def resolve(request: Request, site: int, task: Task) -> ResolvedRequest:
  """The request as a `ResolvedRequest`.

  Args:
    request: as a person typed it.
    site: index of its site among the reader's.
    task: of its text.

  Raises:
    InversionViewError: a text, position or number that cannot be used.
  """
  epsilon = task.epsilon if request.epsilon is None else request.epsilon
  most = bounds.NUMBERS["epsilon"][1]
  if not (isinstance(epsilon, numbers.Real) and 0 < epsilon <= most):
    raise InversionViewError(
      f"epsilon = {epsilon!r} must be a number above 0, at most {most:g}; this task's is {task.epsilon}"
    )
  metric = task.metric if request.metric is None else request.metric
  if metric not in distance.METRICS:
    raise one_of("metric", metric, distance.METRICS)
  if request.match not in MATCHES:
    raise one_of("match", request.match, MATCHES)
  if not request.text:
    raise InversionViewError("the text is empty: give an input of the task, such as one from its data")
  tokens = task.tokenizer.encode_batch([request.text], length=task.length, eos=True)[0]
  position = task.position(tokens, request.position)
  return ResolvedRequest(request.text, tokens, site, position, float(epsilon), metric, request.match)


def resolve_mixture(
  task: Task,
  name: str | None = None,
  temperatures: Sequence[float] | float | None = None,
  noise: Sequence[float] | float | None = None,
  num_samples: int | None = None,
) -> Mixture:
  """The mixture that these arguments of `Reader.preimage` describe.

  Raises:
    InversionViewError: an unknown mixture, numbers that cannot be used, or lists of different lengths.
  """
  mixture = task.mixture if name is None else task.mixture_named(name)
  if num_samples is not None:
    mixture = dataclasses.replace(mixture, num_samples=bounds.whole("num_samples", num_samples))
  if temperatures is None and noise is None:
    return mixture
  hot = nonnegative_numbers("temperature", 1.0 if temperatures is None else temperatures)
  eta = nonnegative_numbers("noise", 0.0 if noise is None else noise)
  if len(eta) not in (1, len(hot)):
    raise InversionViewError(f"{len(eta)} values of noise for {len(hot)} temperatures: give one, or one for each")
  # float64 from here on: a saved preimage has eta as it was typed
  settings = tuple(zip(hot.tolist(), np.broadcast_to(eta, len(hot)).tolist(), strict=True))
  return dataclasses.replace(mixture, settings=settings, directions=False)


def nonnegative_numbers(name: str, values: Sequence[float] | float) -> np.ndarray:
  """One number or several of `bounds.NUMBERS`, as float64[N]; raises `InversionViewError` for one out of range."""
  high = bounds.NUMBERS[name][1]
  try:
    array = np.atleast_1d(values).astype(float)
  except (TypeError, ValueError):
    raise InversionViewError(f"{name} {values!r} must be a number from 0 up, or a list of them") from None
  if array.ndim != 1 or not len(array):
    raise InversionViewError(f"{name} {values!r} must be a number from 0 up, or a list of at least one")
  for value in array:
    if not 0 <= value <= high:
      raise InversionViewError(f"{name} {value:g} must be a number from 0 up, at most {high:g}")
  return array
