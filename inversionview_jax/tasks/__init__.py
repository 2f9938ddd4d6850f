"""Tasks: what an input is, from index to tokens, labels, features and contrast pairs; `get` makes one by name."""

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.tasks.addition import Addition
from inversionview_jax.tasks.base import Mixture, Task
from inversionview_jax.tasks.counting import Counting
from inversionview_jax.tasks.extension import is_named, load_class
from inversionview_jax.tasks.factual import Factual
from inversionview_jax.tasks.huggingface_tokenizer import HuggingFaceTokenizer
from inversionview_jax.tasks.ioi import IOI
from inversionview_jax.tasks.language import LanguageTask
from inversionview_jax.tasks.program_task import ProgramTask, program_task
from inversionview_jax.tasks.programs import Program, is_program
from inversionview_jax.tasks.text import Text
from inversionview_jax.tasks.tokenizers import CharTokenizer, PartTokenizer, Tokenizer

__all__ = [
  "IOI",
  "Addition",
  "CharTokenizer",
  "Counting",
  "Factual",
  "HuggingFaceTokenizer",
  "LanguageTask",
  "Mixture",
  "PartTokenizer",
  "Program",
  "ProgramTask",
  "Task",
  "Text",
  "Tokenizer",
  "get",
  "is_language",
  "known",
  "names",
]

_TASKS = {task.name: task for task in (Addition, Counting, IOI, Factual, Text)}
_NEEDED = ("tokenizer", "length", "num_inputs")  # attributes without a default


def get(name: str, tokenizer: Tokenizer | None = None, settings: dict | None = None) -> Task:
  """The task of this name.

  Args:
    name: one of `names()`, a `Task` in the user's own module as ``package.module:Name``, or a compiled program such as "tracr:hist".
    tokenizer: of the model, for tasks over the texts of a language model; the others have their own.
    settings: of a task over the texts of a language model; the others have none.

  Raises:
    InversionViewError: an unknown name (lists the known ones) or setting, no tokenizer for a task that needs one, or a module or class of the
      user that cannot be used.
  """
  task_class = _class(name)
  if issubclass(task_class, LanguageTask):
    return _made(name, task_class, tokenizer, settings)
  if settings:
    raise InversionViewError(f"the task {name} has no settings; got {', '.join(sorted(settings))}")
  return program_task(name) if is_program(name) else _made(name, task_class)


def is_language(name: str) -> bool:
  """Whether a task is over the texts of a language model, whose tokenizer it takes; False for a name that no task has."""
  return (is_named(name) or name in _TASKS) and issubclass(_class(name), LanguageTask)


def names() -> tuple[str, ...]:
  """Names of this package's own tasks."""
  return tuple(_TASKS)


def known(name: str) -> Task | None:
  """The task of this name if the name is enough to make it; None for a name unknown here, and for tasks that need a model's tokenizer."""
  try:
    return None if is_language(name) else get(name)
  except InversionViewError:
    return None


def _class(name: str) -> type[Task]:
  if is_program(name):
    return ProgramTask
  if is_named(name):
    return load_class(name, Task, "task")  # type: ignore[type-abstract]
  if name not in _TASKS:
    raise one_of("task", name, _TASKS)
  return _TASKS[name]


def _made(name: str, task_class: type[Task], *args) -> Task:
  """The task, which has its name from where it is; one line for a class of the user that lacks something."""
  if not is_named(name):
    return task_class(*args)
  if task_class.__abstractmethods__:
    raise InversionViewError(f"task {name!r} lacks {', '.join(sorted(task_class.__abstractmethods__))}")
  task = task_class(*args)
  if missing := [attribute for attribute in _NEEDED if not hasattr(task, attribute)]:
    raise InversionViewError(f"task {name!r} lacks {', '.join(missing)}")
  task.name = name
  return task
