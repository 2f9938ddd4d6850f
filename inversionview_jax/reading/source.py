"""`Source`: where preimages come from, a reader or a target alone, and by which method; the one way for commands, measures and pages.

Shapes: T tokens, L layers, H heads.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax import bounds, sites
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import site_shapes
from inversionview_jax.preimage import Preimage, Query
from inversionview_jax.preimage.methods import SETTINGS
from inversionview_jax.reading.enumeration import exact_preimage
from inversionview_jax.reading.monte_carlo import preimage as monte_carlo_preimage
from inversionview_jax.reading.reader import Reader
from inversionview_jax.reading.requests import Request, ResolvedRequest, resolve, resolve_mixture
from inversionview_jax.sampling import exact
from inversionview_jax.targets import Target
from inversionview_jax.targets.loading import check_tokenizer
from inversionview_jax.tasks import LanguageTask, Task

_AT_ONCE = 8  # queries whose candidates the decoder draws in one program


def has_moves(task: Task) -> bool:
  """Whether Monte Carlo can sample the task's inputs."""
  try:
    task.moves()
  except InversionViewError:
    return False
  return True


def monte_carlo_by_default(task: Task) -> bool:
  """Whether Monte Carlo is used where no method is given: not for language models, one run of which takes as long as thousands of a small
  target's."""
  return not isinstance(task, LanguageTask) and has_moves(task)


def methods(task: Task, decoder: bool) -> tuple[str, ...]:
  """The methods that a task's preimages can be found by, the default first; () if there is none.

  Args:
    task: of the preimages.
    decoder: whether there is a reader.
  """
  moves = has_moves(task)
  usable = {
    "decoder+monte_carlo": decoder and moves,
    "monte_carlo": moves,
    "decoder": decoder,
    "exact": task.enumerable,
  }
  names = [name for name, there in usable.items() if there]
  if not monte_carlo_by_default(task):
    names.sort(key=lambda name: name != "decoder")
  return tuple(names)


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
  """What preimages are drawn from, and how.

  Attributes:
    target, task: what is read, and its inputs.
    method: a key of `preimage.methods.SETTINGS`.
    reader: whose decoder is used; None: there is none.
    settings: of the method, arguments of `Reader.preimage`; what is not given has its default.
  """

  target: Target
  task: Task
  method: str
  reader: Reader | None = None
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(
    cls, read: Reader | Target, method: str | None = None, *, task: Task | None = None, **settings: Any
  ) -> "Source":
    """A source of preimages, checked before anything is drawn.

    Args:
      read: a reader, or a target alone.
      method: "decoder", "monte_carlo", "decoder+monte_carlo" or "exact". None: of a reader "decoder+monte_carlo", or "decoder" where its task
        has no moves or is of a language model; of a target alone "monte_carlo".
      task: of a target alone; None: its own.
      **settings: of the method: "temperatures", "noise", "num_samples", "mixture", "particles", "budget"; those that are None are left out.

    Raises:
      InversionViewError: an unknown method or one that cannot be used here, or a setting that means nothing with it.
    """
    reader = read if isinstance(read, Reader) else None
    target = read.target if isinstance(read, Reader) else read
    used = reader.task if reader is not None else _task_of(target, task)
    if method is None:
      method = next(iter(methods(used, reader is not None)), "monte_carlo")
      method = "monte_carlo" if method == "exact" else method  # whose refusal names what the task lacks
    _check_method(method, used, reader is not None)
    given = {name: value for name, value in settings.items() if value is not None}
    for name in given:
      if name not in SETTINGS[method]:
        those = " or ".join(other for other, names in SETTINGS.items() if name in names)
        raise InversionViewError(f"{name} has no effect with method {method!r}: leave it out, or use {those}")
    bounds.check(**{name: value for name, value in given.items() if name in bounds.COUNTS})
    if "decoder" in method:
      resolve_mixture(used, *(given.get(name) for name in ("mixture", "temperatures", "noise", "num_samples")))
    return cls(target, used, method, reader, given)

  def by(self, method: str | None = None, **settings: Any) -> "Source":
    """The same reader or target with another method and other settings; see `of`."""
    return Source.of(self.reader or self.target, method, task=self.task, **settings)

  @property
  def name(self) -> str:
    """Of the reader, or of the target."""
    return self.target.name if self.reader is None else self.reader.name

  @property
  def sites(self) -> tuple[str, ...]:
    """Short names of the reader's sites; of a target alone, the task's default ones: any other site of it can be read, too."""
    if self.reader is not None:
      return tuple(self.reader.config.sites)
    return self._default_sites

  @functools.cached_property
  def _default_sites(self) -> tuple[str, ...]:
    config = self.target.config
    names = self.task.default_sites(config.n_layers, config.n_heads)
    parsed = [sites.parse(name) for name in names]
    return tuple(self.target.site(site).short for site in parsed if not site_shapes.missing(config, site))

  @property
  def at_once(self) -> int:
    """How many requests `preimages` takes together."""
    return _AT_ONCE if self.method == "decoder" else 1

  def check_site(self, site: str) -> None:
    """Raises `InversionViewError` for a site that cannot be read."""
    if self.reader is not None and self.method != "exact":
      self.reader.site_index(site)
    else:
      self.target.site(site)

  def check(self, requests: Iterable[Request | tuple | Mapping | Query]) -> list[ResolvedRequest]:
    """The requests with the task's defaults filled in; raises `InversionViewError` for the first one that is not valid."""
    if self.reader is not None and self.method != "exact":
      return self.reader.check(requests)
    checked = []
    for request in map(Request.of, requests):
      self.target.site(request.site)
      checked.append(resolve(request, 0, self.task))
    return checked

  def preimage(
    self,
    request: Request | tuple | Mapping | Query,
    *,
    effects: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], object] | None = None,
  ) -> Preimage:
    """The preimage of one activation.

    Args:
      request: see `Request.of`.
      effects: of the decoder, whether to compute each token's effect.
      seed: the samples are a function of it.
      progress: as for `Reader.preimage`; the exact preimage calls it when it is done.
    """
    r = Request.of(request)
    query: dict[str, Any] = {"epsilon": r.epsilon, "metric": r.metric, "match": r.match}
    if self.method == "exact":
      name = "" if self.reader is None else self.reader.name
      found = exact_preimage(self.target, r.text, r.site, r.position, task=self.task, seed=seed, name=name, **query)
      if progress is not None:
        progress(1, 1)
      return found
    how: dict[str, Any] = {**query, **self.settings, "seed": seed, "progress": progress}
    if self.reader is not None:
      return self.reader.preimage(r.text, r.site, r.position, method=self.method, effects=effects, **how)
    return monte_carlo_preimage(self.target, r.text, r.site, r.position, task=self.task, **how)

  def preimages(
    self,
    requests: Sequence[Request | tuple | Mapping | Query],
    *,
    effects: bool = True,
    seed: int = 0,
    chunk: int = 0,
    progress: Callable[[int, int], object] | None = None,
  ) -> list[Preimage]:
    """The preimages of several activations, in their order.

    Args:
      requests, effects, seed: as for `preimage`.
      chunk: of the decoder, queries of one program; see `Reader.preimages`.
      progress: called with the requests that are done, and all of them. The share of a single one that is done counts in thousandths: both
        are in units of a thousandth of a request.
    """
    found: list[Preimage] = []
    total = 1000 * len(requests)
    for start in range(0, len(requests), self.at_once):
      part = requests[start : start + self.at_once]
      if self.method == "decoder" and self.reader is not None:
        found += self.reader.preimages(part, effects=effects, seed=seed, chunk=chunk, **self.settings)
      else:
        found.append(self.preimage(part[0], effects=effects, seed=seed, progress=_share_of(progress, start, total)))
      if progress is not None:
        progress(1000 * len(found), total)
    return found

  def attention(self, tokens: np.ndarray) -> np.ndarray:
    """The attention pattern of every head of the target: int[B, T] -> float32[B, L, H, T, T]."""
    if self.reader is not None:
      return self.reader.attention(tokens)
    patterns = [f"p{layer}" for layer in range(self.target.config.n_layers)]
    run: Any = self.target.run(np.asarray(tokens), patterns)
    return np.stack([np.asarray(run[name], np.float32) for name in patterns], axis=1)


def _share_of(
  progress: Callable[[int, int], object] | None, done: int, total: int
) -> Callable[[int, int], object] | None:
  """The progress of one request as that of all of them, in thousandths."""
  if progress is None:
    return None
  return lambda part, whole: progress(1000 * done + 1000 * part // max(whole, 1), total)


def _task_of(target: Target, task: Task | None) -> Task:
  """The task of a target alone; raises `InversionViewError` where it has none, or another tokenizer."""
  own = target.resolve_task() if task is None else task
  if own is None:
    raise InversionViewError(f"the target {target.name!r} belongs to no task: give the name of a task")
  check_tokenizer(target, own, target.name)
  return own


def _check_method(method: str, task: Task, decoder: bool) -> None:
  """Raises `InversionViewError` for a method that there is not, or that lacks a decoder, moves, or inputs that can be enumerated."""
  if method not in SETTINGS:
    raise one_of("method", method, tuple(SETTINGS))
  if "decoder" in method and not decoder:
    raise InversionViewError(
      f"method {method} needs a reader, which has the decoder: give a reader, or use monte_carlo"
    )
  if "monte_carlo" in method:
    task.moves()
  if method == "exact":
    exact.every_input(task)
