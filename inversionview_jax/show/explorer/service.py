"""Readers and what they have drawn, kept between the clicks of all sessions of one page."""

import collections
import dataclasses
import functools
import pathlib
import random
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.preimage import Preimage
from inversionview_jax.show.explorer.state import View
from inversionview_jax.tasks.extension import is_named

if TYPE_CHECKING:  # JAX takes seconds to import, and what only looks at the settings does without
  from inversionview_jax.measures.consistency import ActivationReading
  from inversionview_jax.measures.information import InformationResult, Information
  from inversionview_jax.reading import Reader

_KEPT = 200  # preimages; 2 MB each
SKETCH = 256  # candidates of each panel where many places are shown at once
# What a page opens with. Other tasks open with an input of their test split.
_STARTS = {
  "addition": {"text": "615+861=1476", "site": "a0.0", "position": "="},
  "counting": {"text": "vvzccvczvvvzvcvc|v:8", "site": "a0.0", "position": ":"},
}


class Service:
  """The readers a page can show, each loaded when it is first asked for.

  Args:
    readers: shipped names and folders; a page opens nothing else, whatever its address says.
  """

  def __init__(self, readers: Sequence[str]):
    self.names = {_label(name): name for name in readers}
    if len(self.names) < len(set(readers)):
      raise InversionViewError(f"two readers have the same name: {', '.join(readers)}; rename a folder")
    self._readers: dict[str, Reader] = {}
    self._drawn: collections.OrderedDict[tuple, Preimage] = collections.OrderedDict()
    self._seen: collections.OrderedDict[tuple, Input] = collections.OrderedDict()
    self._said: collections.OrderedDict[tuple, ActivationReading] = collections.OrderedDict()
    self._bits: collections.OrderedDict[tuple, InformationResult] = collections.OrderedDict()
    self._lock = threading.Lock()  # of what is kept
    self._work = threading.RLock()  # one thing is computed at a time: two would take longer, each

  def reader(self, name: str) -> "Reader":
    """Raises `InversionViewError` for a name that was not given, and for a reader that cannot be loaded."""
    if name not in self.names:
      raise one_of("reader", name, self.names)
    with self._work:
      if name not in self._readers:
        from inversionview_jax.reading import load_reader

        self._readers[name] = load_reader(self.names[name])
      return self._readers[name]

  def warm(self) -> threading.Thread:
    """Loads the first reader and draws what a page opens with, beside whatever else starts meanwhile."""
    name = next(iter(self.names))

    def draw() -> None:
      try:
        view = View(reader=name, **self.start(name))
        self.input(name, view.text)
        self.preimage(view)
      except InversionViewError:
        pass  # the page says so

    thread = threading.Thread(target=draw, name="warm", daemon=True)
    thread.start()
    return thread

  def start(self, name: str) -> dict[str, str]:
    """What a page opens with: text, site and position."""
    reader = self.reader(name)
    said = _STARTS.get(reader.task.name)
    if said and said["site"] in reader.config.sites:
      return dict(said)
    text = self.random_text(name, 0)
    return {"text": text, "site": reader.config.sites[0], "position": self.input(name, text).asked[-1]}

  def random_text(self, name: str, seed: int | None = None) -> str:
    """An input of the task's test split."""
    task = self.reader(name).task
    index = _test_split(task)
    return task.tokenizer.text(task.tokens(index[random.Random(seed).randrange(len(index))][None])[0])

  def input(self, name: str, text: str) -> "Input":
    """What the target makes of a text; raises `InversionViewError` for one that the task cannot encode."""
    key = (name, text)
    with self._lock:
      if key in self._seen:
        self._seen.move_to_end(key)
        return self._seen[key]
    with self._work:
      made = _look_at(self.reader(name), text)
    self._keep(self._seen, key, made)
    return made

  def preimage(
    self, view: View, samples: int | None = None, progress: Callable[[int, int], object] | None = None
  ) -> Preimage:
    """What `view` looks at, at its epsilon. Another epsilon, or a look back, draws nothing.

    Args:
      samples: candidates; None: as many as the view says.
      progress: called with (candidates drawn, all of them) while they are drawn.
    """
    key = self._key(view, samples)
    found = self._get(key)
    if found is None:
      reader = self.reader(view.reader)
      if is_named(view.mixture):
        # Elsewhere a mixture may be named as package.module:NAME; the address of a page must not choose a module to import.
        raise one_of(f"mixture of task {reader.task.name!r}:", view.mixture, reader.task.mixtures)
      with self._work:
        found = self._get(key)  # another session may have asked for it meanwhile
        if found is None:
          found = reader.preimage(
            view.text,
            view.site,
            view.position,
            metric=view.metric or None,
            match=view.match,
            temperatures=view.temperatures or None,
            noise=view.noise or None,
            num_samples=samples or view.samples,
            mixture=view.mixture or None,
            seed=view.seed,
            progress=progress or (lambda done, total: None),
          )
      self._keep(self._drawn, key, found)
    return found if view.epsilon is None else found.at(view.epsilon)

  def known(self, view: View, samples: int | None = None) -> Preimage | None:
    """The same, if it has been drawn before."""
    found = self._get(self._key(view, samples))
    return found if found is None or view.epsilon is None else found.at(view.epsilon)

  def saying(self, view: View, preimage: Preimage) -> "ActivationReading":
    """What the activation says at this epsilon: of its candidates as they were drawn or, once the bits were measured, of inputs weighted as they
    occur."""
    key = (self._key(view, None), preimage.epsilon)
    found = self._bits.get(key)
    if (saying := self._said.get((key, found is None))) is None:
      from inversionview_jax.measures import consistency

      task = self.reader(view.reader).task
      saying = consistency.activation_reading(preimage, task, found and found.members)
      self._keep(self._said, (key, found is None), saying)
    return saying

  def information(self, view: View, preimage: Preimage, measure: bool = False) -> "Information | None":
    """The information in bits at this epsilon; measured if asked for, which takes a second or more, else None unless it is known."""
    key = (self._key(view, None), preimage.epsilon)
    if measure and key not in self._bits:
      from inversionview_jax.measures import information

      settings = {"epsilon": preimage.epsilon, "metric": preimage.metric, "match": preimage.match, "seed": view.seed}
      with self._work:
        found = information.measure(self.reader(view.reader), [preimage.query], **settings)[0]
      self._keep(self._bits, key, found)
    found = self._bits.get(key)
    return found and found.information

  def _keep(self, where: collections.OrderedDict, key, value) -> None:
    with self._lock:
      where[key] = value
      while len(where) > _KEPT:
        where.popitem(last=False)

  def _get(self, key) -> Preimage | None:
    with self._lock:
      if key in self._drawn:
        self._drawn.move_to_end(key)
        return self._drawn[key]
    return None

  def _key(self, view: View, samples: int | None) -> tuple:
    settings = (
      view.metric,
      view.match,
      view.mixture,
      view.temperatures,
      view.noise,
      samples or view.samples,
      view.seed,
    )
    return (*dataclasses.astuple(view.here), *settings)


@dataclasses.dataclass(frozen=True)
class Input:
  """A text as the target sees it.

  Attributes:
    strings: its T tokens, BOS first.
    labels: the task's name of each position; "" where it has none.
    asked: how each position where the reader takes queries is called: its label if that is its alone, else its index.
    patterns: float32[L, H, T, T], attention of every head.
  """

  strings: tuple[str, ...]
  labels: tuple[str, ...]
  asked: tuple[str, ...]
  patterns: np.ndarray

  def name(self, position: int) -> str:
    """How a position is called."""
    label = self.labels[position]
    return label if label and self.labels.count(label) == 1 else str(position)


def _look_at(reader: "Reader", text: str) -> Input:
  task, tokenizer = reader.task, reader.task.tokenizer
  if not text:
    raise InversionViewError("the text is empty: type an input of the task, or take a random one")
  row = tokenizer.encode_batch([text], length=task.length, eos=True)[0]
  used = [int(token) for token in row if token != tokenizer.pad_id]
  labels = tuple(task.labels(used))
  asked = np.flatnonzero(np.asarray(task.query_mask(row[None]))[0])
  made = Input(
    tuple(tokenizer.strings(used)), labels, (), reader.attention(row[None])[0][:, :, : len(used), : len(used)]
  )
  return dataclasses.replace(made, asked=tuple(made.name(int(k)) for k in asked))


@functools.lru_cache(maxsize=8)
def _test_split(task) -> np.ndarray:
  return task.split("test")


def _label(name: str) -> str:
  return name if "/" not in name and not pathlib.Path(name).is_dir() else pathlib.Path(name).resolve().name


_current: Service | None = None


def configure(readers: Sequence[str]) -> Service:
  """Sets what the pages of this process show; the command does so before it starts the server."""
  global _current
  _current = Service(readers)
  return _current


def current() -> Service:
  """The service of this process; that of the shipped readers if nobody said otherwise."""
  if _current is None:
    from inversionview_jax.reading import shipped_readers

    configure(shipped_readers())
  return _current
