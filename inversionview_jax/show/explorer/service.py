"""The preimages that were drawn from the readers and targets of a page, kept between the clicks of all its sessions."""

import collections
import contextlib
import dataclasses
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.methods import SETTINGS
from inversionview_jax.show.explorer.following import Followed
from inversionview_jax.show.explorer.inputs import Input, encode
from inversionview_jax.show.explorer.sources import Sources
from inversionview_jax.show.explorer.state import View
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.extension import is_named

if TYPE_CHECKING:  # JAX takes seconds to import, and tests of the settings do without it
  from inversionview_jax.measures.consistency import ActivationReading
  from inversionview_jax.measures.information import Information
  from inversionview_jax.reading.source import Source
  from inversionview_jax.show.explorer.circuits import OpenedCircuit

_T = TypeVar("_T")
_CACHE_SIZE = 200  # preimages, of 2 MB each
_FOLLOWED_EVERY = 0.1  # seconds after which a page shows how far the drawing of another thread is
_SKETCH = 256  # candidates of each panel where many sites or positions are shown; also particles of a language model
# The most telling reading of a task's readers, with which a page opens. Other tasks open with an input of their test split.
_FIRST_QUERIES: dict[str, dict[str, Any]] = {
  "addition": {"text": "615+861=1476", "site": "a0.0", "position": "="},
  "counting": {"text": "vvzccvczvvvzvcvc|v:8", "site": "x1.mid", "position": ":"},
  "ioi": {
    "text": "Then, Mary and John went to the store. John gave a drink to Mary",
    "site": "a23.3",
    "position": "END",
  },
}
# Samples that a page draws at first, by whether the target is a language model: a run of one takes as long as thousands of a small target's.
_SIZES: dict[bool, dict[str, Any]] = {
  False: {"samples": View.samples, "particles": View.particles, "budget": View.budget},
  True: {"samples": 256, "particles": 256, "budget": 20_000},
}


class Service:
  """What a page shows of its readers and targets: inputs, preimages and readings, each made once.

  Args:
    readers: shipped names and folders; a page opens no others, whatever its address names.
    targets: shipped names, folders and checkpoints that are read without a decoder; shown as "NAME (target)".
    task: of the targets; None: their own.
    method: of a view that names none; None: Monte Carlo, or the decoder where the task has no moves or is of a language model, one run of which
      takes as long as thousands of a small target's.
    circuit: that the page shows.
    may_open: whether targets can be chosen on the page, which whoever reaches it then loads from this machine's folders and from the Hub.

  Attributes:
    sources: the readers and targets.
    circuit: as given.
  """

  def __init__(
    self,
    readers: Sequence[str],
    targets: Sequence[str] = (),
    task: str | None = None,
    method: str | None = None,
    circuit: "OpenedCircuit | None" = None,
    may_open: bool = False,
  ):
    self._work = threading.RLock()  # one computation at a time: two at once would take longer each
    self.sources = Sources(readers, targets, task, method, may_open, self._work)
    self.circuit = circuit
    self._drawn: collections.OrderedDict[tuple, Preimage] = collections.OrderedDict()
    self._inputs: collections.OrderedDict[tuple, Input] = collections.OrderedDict()
    self._readings: collections.OrderedDict[tuple, ActivationReading] = collections.OrderedDict()
    self._lock = threading.Lock()  # of the caches
    self._drawing: tuple[tuple, Followed] | None = None  # what is drawn just now, by its key

  def source(self, name: str) -> "Source":
    """The reader or target of this name with its default method.

    Raises:
      InversionViewError: a name that is not the page's, or a reader or target that cannot be loaded, or has no method to be read by.
    """
    return self._once(lambda: self.sources.loaded(name), lambda: self.sources.load(name))

  def _once(self, known: "Callable[[], _T | None]", make: "Callable[[], _T]") -> "_T":
    """What is known, or is made by one thread at a time. It is there as soon as another thread has made it: a page must not wait until that thread
    has also drawn from it."""
    while (found := known()) is None:
      if self._work.acquire(timeout=_FOLLOWED_EVERY):
        try:
          return make() if (found := known()) is None else found
        finally:
          self._work.release()
    return found

  def methods(self, name: str) -> tuple[str, ...]:
    """The methods that a reader or target can be read by, the default first."""
    from inversionview_jax.reading.source import methods

    source = self.source(name)
    usable = methods(source.task, source.reader is not None)
    return tuple(sorted(usable, key=lambda method: method != source.method))

  def method(self, view: View, samples: int | None = None) -> str:
    """The method of a view; that of a sketch, which has so many samples, is Monte Carlo from the prior in place of other starts: it gives bits."""
    method = view.method or self.source(view.reader).method
    if samples is not None and method != "decoder" and "monte_carlo" in self.methods(view.reader):
      return "monte_carlo"
    return method

  def source_of(self, view: View, samples: int | None = None) -> "Source":
    """The reader or target of a view, with its method and settings.

    Args:
      view: see `View`.
      samples: candidates or particles of a sketch; None: the view's.
    """
    source, method = self.source(view.reader), self.method(view, samples)
    if is_named(view.mixture):
      # Elsewhere a mixture may be named as package.module:NAME; the address of a page must not choose a module to import.
      raise one_of(f"mixture of task {source.task.name!r}:", view.mixture, source.task.mixtures)
    settings = {
      "temperatures": view.temperatures or None,
      "noise": view.noise or None,
      "num_samples": samples or view.samples,
      "mixture": view.mixture or None,
      "particles": samples or view.particles,
      "budget": view.budget,
    }
    return source.by(method, **{name: settings[name] for name in SETTINGS.get(method, ())})

  def preload(self) -> threading.Thread:
    """Loads the first reader and draws the first preimage in a thread, while the server starts."""
    name = next(iter(self.sources.names))

    def draw() -> None:
      try:
        view = dataclasses.replace(View(reader=name), **self.start(name))
        self.input(name, view.text)
        self.preimage(view)
      except InversionViewError:
        pass  # the page shows the error

    thread = threading.Thread(target=draw, name="preload", daemon=True)
    thread.start()
    return thread

  def start(self, name: str) -> dict[str, Any]:
    """The view a page opens with: text, site and position, and how many samples are drawn."""
    source = self.source(name)
    size = _SIZES[isinstance(source.task, tasks.LanguageTask)]
    query = _FIRST_QUERIES.get(source.task.name)
    if query and query["site"] in source.sites:
      return query | size
    text, site = self.random_text(name, 0), source.sites[len(source.sites) // 2]
    return {"text": text, "site": site, "position": self.input(name, text).query_positions[-1], **size}

  def random_text(self, name: str, seed: int | None = None) -> str:
    """An input of the task's test split."""
    task = self.source(name).task
    index = _test_split(task)
    return task.tokenizer.text(task.tokens(index[random.Random(seed).randrange(len(index))][None])[0])

  def input(self, name: str, text: str) -> "Input":
    """A text's tokens, positions and attention; raises `InversionViewError` for one that the task cannot encode."""
    key = (name, text)

    def make() -> Input:
      encoded = encode(self.source(name), text)
      self._keep(self._inputs, key, encoded)
      return encoded

    return self._once(lambda: self._known_input(key), make)

  def _known_input(self, key: tuple[str, str]) -> "Input | None":
    with self._lock:
      if key in self._inputs:
        self._inputs.move_to_end(key)
      return self._inputs.get(key)

  def preimage(
    self, view: View, samples: int | None = None, progress: Callable[[int, int], object] | None = None
  ) -> Preimage:
    """The preimage of `view` at its epsilon; nothing is drawn again for a view that was shown before.

    Candidates of the decoder do not depend on epsilon, so that they are not drawn again for another; of other methods they are.

    Args:
      view: the query and the settings.
      samples: candidates or particles; None for the view's number.
      progress: called with (done, all of it) while they are drawn; its attributes `level` and `preview`, if it has them, as those of
        `reading.monte_carlo.preimage`.
    """
    key = self._key(view, samples)
    preimage = self._get(key)
    if preimage is None:
      from inversionview_jax.reading import Request

      source = self.source_of(view, samples)
      epsilon = None if source.method == "decoder" else view.epsilon
      request = Request(view.text, view.site, view.position, epsilon, view.metric or None, view.match)
      with self._turn(key, progress):
        preimage = self._get(key)  # another session may have drawn it meanwhile
        if preimage is None:
          followed = Followed(progress)
          self._drawing = key, followed
          try:
            preimage = source.preimage(request, seed=view.seed, progress=followed)
          finally:
            self._drawing = None
          self._keep(self._drawn, key, preimage)
    return self._at(view, preimage)

  @contextlib.contextmanager
  def _turn(self, key: tuple, progress: Callable[[int, int], object] | None) -> Iterator[None]:
    """The right to compute. Meanwhile `progress` follows what another thread draws, if that is the same, and is called with (0, 1) if not: a page that
    is left or stopped ends there."""
    while not self._work.acquire(timeout=_FOLLOWED_EVERY):
      drawing = self._drawing
      if progress is not None:
        if drawing is not None and drawing[0] == key:
          drawing[1].report(progress)
        else:
          progress(0, 1)
    try:
      yield
    finally:
      self._work.release()

  def known(self, view: View, samples: int | None = None) -> Preimage | None:
    """What `preimage` returns, if it has been drawn before."""
    preimage = self._get(self._key(view, samples))
    return None if preimage is None else self._at(view, preimage)

  def _at(self, view: View, preimage: Preimage) -> Preimage:
    return preimage if view.epsilon is None or preimage.method != "decoder" else preimage.at(view.epsilon)

  def sketch(self, view: View) -> int:
    """Candidates or particles of each panel where many sites or positions are shown: particles of small targets are as many as elsewhere, for
    which Monte Carlo is compiled already."""
    return view.particles if self.method(view) != "decoder" and self.quick(view.reader) else _SKETCH

  def quick(self, name: str) -> bool:
    """Whether Monte Carlo on the target of this name takes a second or two."""
    from inversionview_jax.reading.source import monte_carlo_by_default

    return monte_carlo_by_default(self.source(name).task)

  def members_view(self, view: View) -> View | None:
    """The view whose preimage tells what the activation encodes: its members follow the task's inputs, and all count alike.

    That is the view itself unless its method is the decoder, whose candidates are no such sample; then it is the same query by Monte Carlo, or
    over every input; None where the task has neither.
    """
    if self.method(view) != "decoder":
      return view
    usable = [method for method in ("monte_carlo", "exact") if method in self.methods(view.reader)]
    return dataclasses.replace(view, method=usable[0]) if usable else None

  def reading(self, view: View, preimage: Preimage) -> "ActivationReading":
    """The properties that the activation encodes at this epsilon, from particles or exact members.

    Args:
      view: one of `members_view`.
      preimage: of that view.
    """
    key = (self._key(view, None), preimage.epsilon, len(preimage.samples))
    if (reading := self._readings.get(key)) is None:
      from inversionview_jax.measures import consistency

      reading = consistency.activation_reading(preimage, self.source(view.reader).task)
      self._keep(self._readings, key, reading)
    return reading

  def information(self, preimage: Preimage) -> "Information | None":
    """The information in bits that a preimage has by itself; None where it started from a decoder."""
    from inversionview_jax.measures.information import Information

    return Information.of(preimage)

  def about(self, name: str) -> dict[str, str]:
    """What the task says of its features and labels: name -> words."""
    task = self.source(name).task
    return {**task.position_names, **task.feature_names}

  def _keep(self, cache: collections.OrderedDict, key: tuple, value: Any) -> None:
    with self._lock:
      cache[key] = value
      while len(cache) > _CACHE_SIZE:
        cache.popitem(last=False)

  def _get(self, key: tuple) -> Preimage | None:
    with self._lock:
      if key in self._drawn:
        self._drawn.move_to_end(key)
        return self._drawn[key]
    return None

  def _key(self, view: View, samples: int | None) -> tuple:
    method = self.method(view, samples)
    settings = {
      "decoder": (view.mixture, view.temperatures, view.noise, samples or view.samples),
      "monte_carlo": (samples or view.particles, view.budget, view.epsilon),
      "exact": (view.epsilon,),
    }
    own = tuple(settings[name] for name in settings if name in method)  # of "decoder+monte_carlo" both
    return (*dataclasses.astuple(view.here), view.metric, view.match, view.seed, method, *own)


@functools.lru_cache(maxsize=8)
def _test_split(task: Task) -> np.ndarray:
  return task.split("test")


_current: Service | None = None


def configure(
  readers: Sequence[str],
  targets: Sequence[str] = (),
  task: str | None = None,
  method: str | None = None,
  circuit: "OpenedCircuit | None" = None,
  may_open: bool = False,
) -> Service:
  """Sets the readers and targets of the pages of this process, see `Service`; the command calls this before it starts the server."""
  global _current
  _current = Service(readers, targets, task, method, circuit, may_open)
  return _current


def current() -> Service:
  """The service of this process; that of the shipped readers unless `configure` was called."""
  if _current is not None:
    return _current
  from inversionview_jax.reading import shipped_readers

  return configure(shipped_readers())
