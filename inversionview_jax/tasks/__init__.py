"""The tasks a reader can be trained on; `get` finds one by name."""

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.addition import Addition
from inversionview_jax.tasks.base import Mixture, Task
from inversionview_jax.tasks.counting import Counting
from inversionview_jax.tasks.factual import Factual
from inversionview_jax.tasks.ioi import IOI
from inversionview_jax.tasks.language import LanguageTask
from inversionview_jax.tasks.text import Text

__all__ = [
  "IOI",
  "Addition",
  "Counting",
  "Factual",
  "LanguageTask",
  "Mixture",
  "Task",
  "Text",
  "get",
  "is_language",
  "names",
]

_TASKS = {task.name: task for task in (Addition, Counting, IOI, Factual, Text)}


def get(name: str, tokenizer=None, settings: dict | None = None) -> Task:
  """The task called `name`.

  Args:
    name: one of `names()`.
    tokenizer: that of the model, for tasks over the texts of a language model; the others have their own.
    settings: of the task, for those that have some.

  Raises:
    InversionViewError: an unknown name (says which are known) or setting, or no tokenizer for a task that needs one.
  """
  if name not in _TASKS:
    raise one_of("task", name, _TASKS)
  if is_language(name):
    return _TASKS[name](tokenizer, settings)
  if settings:
    raise InversionViewError(f"the task {name} has no settings; got {', '.join(sorted(settings))}")
  return _TASKS[name]()


def is_language(name: str) -> bool:
  """Whether a task is over the texts of a language model, whose tokenizer it takes."""
  return name in _TASKS and issubclass(_TASKS[name], LanguageTask)


def names() -> tuple[str, ...]:
  return tuple(_TASKS)
