"""The readers and targets that a page has, by their names on it, and how another target is opened."""

import dataclasses
import hashlib
import itertools
import pathlib
import tempfile
from collections.abc import Container, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from inversionview_jax import tasks
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import write_whole

if TYPE_CHECKING:  # JAX takes seconds to import, and tests of the settings do without it
  from inversionview_jax.reading.source import Source


@dataclasses.dataclass(frozen=True)
class _OpenedTarget:
  """A target that is read alone: its name or path, its task (None: its own) and the task's settings."""

  name: str
  task: str | None = None
  settings: dict | None = None


class Sources:
  """The readers and targets of a page, each loaded when it is first needed.

  Args:
    readers, targets, task, method, may_open: see `Service`.
    work: held while a target that the user chose is loaded.

  Attributes:
    names: name on the page -> shipped name, folder, file, or id on the Hub.
    may_open: whether targets can be chosen on the page.
  """

  def __init__(
    self,
    readers: Sequence[str],
    targets: Sequence[str],
    task: str | None,
    method: str | None,
    may_open: bool,
    work: AbstractContextManager,
  ):
    self.names = {_label(name): name for name in readers}
    self._targets = {f"{_label(name)} (target)": _OpenedTarget(name, task) for name in targets}
    if len(self.names) < len(set(readers)) or len(self._targets) < len(set(targets)):
      raise InversionViewError(
        f"two readers or targets have the same name: {', '.join([*readers, *targets])}; rename a folder"
      )
    self.names |= {label: opened.name for label, opened in self._targets.items()}
    self.may_open = may_open
    self._method, self._work = method, work
    self._loaded: dict[str, Source] = {}
    self._texts: tempfile.TemporaryDirectory | None = None  # of own texts

  def loaded(self, name: str) -> "Source | None":
    """The reader or target of this name if it was loaded before; raises `InversionViewError` for a name that is not the page's."""
    if name not in self.names:
      raise one_of("reader", name, self.names)
    return self._loaded.get(name)

  def load(self, name: str) -> "Source":
    """The reader or target of this name, with its default method.

    Raises:
      InversionViewError: one that cannot be loaded, or has no method to be read by.
    """
    return self._loaded.setdefault(name, self._make(name))

  def _make(self, name: str) -> "Source":
    from inversionview_jax.reading import load_reader
    from inversionview_jax.reading.source import Source, monte_carlo_by_default

    if name not in self._targets:
      reader = load_reader(self.names[name])
      by_default = "monte_carlo" if monte_carlo_by_default(reader.task) else None
      return Source.of(reader, self._method or by_default)
    return self._load_target(self._targets[name])

  def _load_target(self, opened: "_OpenedTarget") -> "Source":
    from inversionview_jax.reading.source import Source
    from inversionview_jax.targets import load_target, task_and_target

    if opened.task is None:
      return Source.of(load_target(opened.name), self._method)
    task, target = task_and_target(opened.task, opened.name, settings=opened.settings)
    return Source.of(target, self._method, task=task)

  def add_target(self, name: str, task: str) -> None:
    """Adds a target that is read alone with a task's inputs, unless the page has it; it is loaded when it is first needed."""
    if name not in [opened.name for opened in self._targets.values()]:
      label = _unused(f"{_label(name)} (target)", self.names)
      self._targets[label], self.names[label] = _OpenedTarget(name, task), name

  def open_target(self, name: str, task: str = "", texts: str = "") -> str:
    """Loads a target that the user chose on the page, and keeps it under a name of its own.

    Args:
      name: of a shipped target, a folder or file, or an id on the Hub, which is downloaded where it is not in the cache.
      task: of its inputs; "" for its own.
      texts: the user's own texts, one on each line, in place of a task's inputs.

    Returns:
      The name under which it is kept.

    Raises:
      InversionViewError: a page that opens none, a target that cannot be loaded, an unknown task, or both a task and texts.
    """
    if not self.may_open:
      raise InversionViewError("this page opens no other targets: start it on this machine's own address")
    name, lines = name.strip(), [line.strip() for line in texts.splitlines() if line.strip()]
    if not name:
      raise InversionViewError(
        "no target was named: give a shipped name, a folder, or an id on the Hub such as OWNER/NAME"
      )
    if task and lines:
      raise InversionViewError("a target is read with a task's inputs or with your own texts: leave one of them out")
    if task and task not in tasks.names():  # a module of the user's own is named on the command line, not on a page
      raise one_of("task", task, tasks.names())
    settings = {"files": (self._write_texts(lines),)} if lines else None
    opened = _OpenedTarget(name, "text" if lines else task or None, settings)
    label = _label(name) + (f" ({len(lines)} texts)" if lines else f" ({task})" if task else " (target)")
    if self._targets.get(label) != opened:
      label = _unused(label, self.names)
      with self._work:
        source = self._load_target(opened)  # before the name is kept: one that cannot be loaded leaves nothing behind
        self._targets[label], self.names[label], self._loaded[label] = opened, name, source
    return label

  def _write_texts(self, lines: Sequence[str]) -> str:
    """A file with these lines, which lasts as long as the page."""
    if self._texts is None:
      self._texts = tempfile.TemporaryDirectory(prefix="inversionview_")
    content = "\n".join(lines) + "\n"
    path = pathlib.Path(self._texts.name) / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.txt"
    write_whole(path, content)
    return str(path)

  def reader_of(self, target: str) -> str:
    """The name of what reads a target of this name: the target alone, of which every site can be read, else a reader; "" if there is none."""
    label = _label(target)
    for name in (f"{label} (target)", *self._targets, *self.names):
      if name in self.names and self.names[name] in (target, label):
        return name
    return ""

  @property
  def has_targets(self) -> bool:
    """Whether some are read without a decoder."""
    return bool(self._targets)


def _label(name: str) -> str:
  """The name of a reader or target on the page: its own if it is shipped, else that of its folder."""
  return name if "/" not in name and not pathlib.Path(name).is_dir() else pathlib.Path(name).resolve().name


def _unused(label: str, names: Container[str]) -> str:
  """A name that no other has: "x", "x 2", "x 3"."""
  return next(name for k in itertools.count(1) if (name := label if k == 1 else f"{label} {k}") not in names)
