"""Readers and targets, and the preimages that were drawn from them, kept between the clicks of all sessions of one page."""

import collections
import dataclasses
import functools
import pathlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.methods import SETTINGS
from inversionview_jax.show.explorer.state import View
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.extension import is_named

if TYPE_CHECKING:  # JAX takes seconds to import, and tests of the settings do without it
  from inversionview_jax.measures.consistency import ActivationReading
  from inversionview_jax.measures.information import Information, InformationResult
  from inversionview_jax.reading.source import Source

_CACHE_SIZE = 200  # preimages, of 2 MB each
SKETCH_SAMPLES = 256  # candidates or particles of each panel where many sites or positions are shown
# The query a page opens with. Other tasks open with an input of their test split.
_FIRST_QUERIES = {
  "addition": {"text": "615+861=1476", "site": "a0.0", "position": "="},
  "counting": {"text": "vvzccvczvvvzvcvc|v:8", "site": "a0.0", "position": ":"},
}


class Service:
  """The readers and targets of a page, each loaded when it is first needed.

  Args:
    readers: shipped names and folders; a page opens no others, whatever its address names.
    targets: shipped names, folders and checkpoints that are read without a decoder; shown as "NAME (target)".
    task: of the targets; None: their own.
    method: of a view that names none; None: the default of `Source.of`.
  """

  def __init__(
    self, readers: Sequence[str], targets: Sequence[str] = (), task: str | None = None, method: str | None = None
  ):
    self.names = {_label(name): name for name in readers}
    self._targets = {f"{_label(name)} (target)": name for name in targets}
    if len(self.names) < len(set(readers)) or len(self._targets) < len(set(targets)):
      raise InversionViewError(
        f"two readers or targets have the same name: {', '.join([*readers, *targets])}; rename a folder"
      )
    self.names |= self._targets
    self._task, self._method = task, method
    self._sources: dict[str, Source] = {}
    self._drawn: collections.OrderedDict[tuple, Preimage] = collections.OrderedDict()
    self._inputs: collections.OrderedDict[tuple, Input] = collections.OrderedDict()
    self._readings: collections.OrderedDict[tuple, ActivationReading] = collections.OrderedDict()
    self._bits: collections.OrderedDict[tuple, InformationResult] = collections.OrderedDict()
    self._lock = threading.Lock()  # of the caches
    self._work = threading.RLock()  # one computation at a time: two at once would take longer each

  def source(self, name: str) -> "Source":
    """The reader or target of this name with its default method.

    Raises:
      InversionViewError: a name that is not the page's, or a reader or target that cannot be loaded, or has no method to be read by.
    """
    if name not in self.names:
      raise one_of("reader", name, self.names)
    with self._work:
      if name not in self._sources:
        self._sources[name] = self._load(name)
      return self._sources[name]

  def _load(self, name: str) -> "Source":
    from inversionview_jax.reading import load_reader
    from inversionview_jax.reading.source import Source
    from inversionview_jax.targets import load_target, task_and_target

    if name not in self._targets:
      return Source.of(load_reader(self.names[name]), self._method)
    if self._task is None:
      return Source.of(load_target(self.names[name]), self._method)
    task, target = task_and_target(self._task, self.names[name])
    return Source.of(target, self._method, task=task)

  @property
  def has_targets(self) -> bool:
    """Whether some are read without a decoder."""
    return bool(self._targets)

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
    name = next(iter(self.names))

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
    """The query a page opens with: text, site and position."""
    source = self.source(name)
    query = _FIRST_QUERIES.get(source.task.name)
    if query and query["site"] in source.sites:
      return dict(query)
    text = self.random_text(name, 0)
    return {"text": text, "site": source.sites[0], "position": self.input(name, text).query_positions[-1]}

  def random_text(self, name: str, seed: int | None = None) -> str:
    """An input of the task's test split."""
    task = self.source(name).task
    index = _test_split(task)
    return task.tokenizer.text(task.tokens(index[random.Random(seed).randrange(len(index))][None])[0])

  def input(self, name: str, text: str) -> "Input":
    """A text's tokens, positions and attention; raises `InversionViewError` for one that the task cannot encode."""
    key = (name, text)
    with self._lock:
      if key in self._inputs:
        self._inputs.move_to_end(key)
        return self._inputs[key]
    with self._work:
      encoded = _encode(self.source(name), text)
    self._keep(self._inputs, key, encoded)
    return encoded

  def preimage(
    self, view: View, samples: int | None = None, progress: Callable[[int, int], object] | None = None
  ) -> Preimage:
    """The preimage of `view` at its epsilon; nothing is drawn again for a view that was shown before.

    Candidates of the decoder do not depend on epsilon, so that they are not drawn again for another; of other methods they are.

    Args:
      view: the query and the settings.
      samples: candidates or particles; None for the view's number.
      progress: called with (done, all of it) while they are drawn; its attribute `level`, if it has one, with each level of Monte Carlo.
    """
    key = self._key(view, samples)
    preimage = self._get(key)
    if preimage is None:
      from inversionview_jax.reading import Request

      source = self.source_of(view, samples)
      epsilon = None if source.method == "decoder" else view.epsilon
      request = Request(view.text, view.site, view.position, epsilon, view.metric or None, view.match)
      with self._work:
        preimage = self._get(key)  # another session may have drawn it meanwhile
        if preimage is None:
          preimage = source.preimage(request, seed=view.seed, progress=progress or (lambda done, total: None))
      self._keep(self._drawn, key, preimage)
    return self._at(view, preimage)

  def known(self, view: View, samples: int | None = None) -> Preimage | None:
    """What `preimage` returns, if it has been drawn before."""
    preimage = self._get(self._key(view, samples))
    return None if preimage is None else self._at(view, preimage)

  def _at(self, view: View, preimage: Preimage) -> Preimage:
    return preimage if view.epsilon is None or preimage.method != "decoder" else preimage.at(view.epsilon)

  def reading(self, view: View, preimage: Preimage) -> "ActivationReading":
    """The properties that the activation encodes at this epsilon.

    Taken from particles and exact members as they are; from a decoder's candidates as they were drawn or, once the bits were measured, from
    inputs weighted as they occur.
    """
    key = (self._key(view, None), preimage.epsilon)
    measured = self._bits.get(key) if preimage.method == "decoder" else None
    if (reading := self._readings.get((key, measured is None))) is None:
      from inversionview_jax.measures import consistency

      task = self.source(view.reader).task
      reading = consistency.activation_reading(preimage, task, None if measured is None else measured.members)
      self._keep(self._readings, (key, measured is None), reading)
    return reading

  def information(self, view: View, preimage: Preimage, measure: bool = False) -> "Information | None":
    """The information in bits at this epsilon: the preimage's own or, where it starts from a decoder, an estimate once it was measured.

    Args:
      view: the query and the settings.
      preimage: of the view.
      measure: whether to measure it now where the preimage has none, which takes a second or more.
    """
    from inversionview_jax.measures.information import Information

    if (own := Information.of(preimage)) is not None:
      return own
    key, reader = (self._key(view, None), preimage.epsilon), self.source(view.reader).reader
    if measure and reader is not None and key not in self._bits:
      from inversionview_jax.measures import information

      with self._work:
        measured = information.measure(
          reader,
          [preimage.query],
          epsilon=preimage.epsilon,
          metric=preimage.metric,
          match=preimage.match,
          seed=view.seed,
        )[0]
      self._keep(self._bits, key, measured)
    return self._bits[key].information if key in self._bits else None

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


@dataclasses.dataclass(frozen=True)
class Input:
  """A text's tokens, positions and attention.

  Attributes:
    strings: its T tokens, BOS first.
    labels: the task's name of each position; "" where it has none.
    query_positions: names of the positions where the task takes queries, which a reader was trained to read.
    patterns: float32[L, H, T, T], attention of every head.
  """

  strings: tuple[str, ...]
  labels: tuple[str, ...]
  query_positions: tuple[str, ...]
  patterns: np.ndarray

  def name(self, position: int) -> str:
    """A position's label if no other has it, else its index."""
    label = self.labels[position]
    return label if label and self.labels.count(label) == 1 else str(position)


def _encode(source: "Source", text: str) -> Input:
  task, tokenizer = source.task, source.task.tokenizer
  if not text:
    raise InversionViewError("the text is empty: type an input of the task, or take a random one")
  row = tokenizer.encode_batch([text], length=task.length, eos=True)[0]
  ids = [int(token) for token in row if token != tokenizer.pad_id]
  queries = np.flatnonzero(np.asarray(task.query_mask(row[None]))[0])
  patterns = source.attention(row[None])[0][:, :, : len(ids), : len(ids)]
  encoded = Input(tuple(tokenizer.strings(ids)), tuple(task.labels(ids)), (), patterns)
  return dataclasses.replace(encoded, query_positions=tuple(encoded.name(int(k)) for k in queries))


@functools.lru_cache(maxsize=8)
def _test_split(task: Task) -> np.ndarray:
  return task.split("test")


def _label(name: str) -> str:
  """The name of a reader or target on the page: its own if it is shipped, else that of its folder."""
  return name if "/" not in name and not pathlib.Path(name).is_dir() else pathlib.Path(name).resolve().name


_current: Service | None = None


def configure(
  readers: Sequence[str], targets: Sequence[str] = (), task: str | None = None, method: str | None = None
) -> Service:
  """Sets the readers and targets of the pages of this process; the command calls this before it starts the server."""
  global _current
  _current = Service(readers, targets, task, method)
  return _current


def current() -> Service:
  """The service of this process; that of the shipped readers unless `configure` was called."""
  if _current is not None:
    return _current
  from inversionview_jax.reading import shipped_readers

  return configure(shipped_readers())
