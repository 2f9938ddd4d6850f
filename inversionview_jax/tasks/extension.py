"""Objects of a user's own module, named as ``package.module:Name``: tasks, model families, mixtures, without a fork of this package."""

import importlib
from typing import TypeVar

from inversionview_jax.errors import InversionViewError, one_of

T = TypeVar("T")


def is_named(name: object) -> bool:
  """Whether a name is of the form ``package.module:Name``; the package's own names have no colon."""
  module, colon, attribute = str(name).partition(":")
  return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_named(name: str, kind: type[T], what: str) -> T:
  """The object that ``package.module:Name`` names.

  The module must be importable: installed, or in a folder on PYTHONPATH. The current directory is not searched, because files of other
  people (a model.json) can hold such names too, and must not choose what is run in a folder that came with them.

  Args:
    name: of the object.
    kind: the class of which it must be an instance.
    what: a word for it in error messages, such as "mixture".

  Raises:
    InversionViewError: a name of another form, a module that cannot be imported, a name that it does not have, or another kind of object.
  """
  value = _load(name, what, lambda value: isinstance(value, kind))
  if not isinstance(value, kind):
    raise InversionViewError(f"{what} {name!r} is a {type(value).__name__}, not a {kind.__name__}")
  return value


def load_class(name: str, base: type[T], what: str) -> type[T]:
  """The class derived from `base` that ``package.module:Name`` names; otherwise like `load_named`."""
  value = _load(name, what, lambda value: isinstance(value, type) and issubclass(value, base) and value is not base)
  if not isinstance(value, type) or not issubclass(value, base):
    raise InversionViewError(f"{what} {name!r} is not a class derived from {base.__name__}")
  return value


def _load(name: str, what: str, fits) -> object:
  """The object itself; of a module without it, the error lists what `fits`."""
  if not is_named(name):
    raise InversionViewError(f"{what} {name!r} is not of the form package.module:Name")
  module_name, _, attribute = name.partition(":")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    missing = error.name or module_name
    if f"{module_name}.".startswith(f"{missing}."):
      raise InversionViewError(
        f"{what} {name!r}: there is no module {missing}; install it, or put the folder it is in on PYTHONPATH"
      ) from None
    raise InversionViewError(f"{what} {name!r}: {module_name} needs {missing}, which is not installed") from error
  except Exception as error:  # the module is the user's: whatever it raises is an error in what was given
    line = next(iter(str(error).splitlines()), "")
    raise InversionViewError(f"{what} {name!r}: cannot import {module_name}: {type(error).__name__}: {line}") from error
  if not hasattr(module, attribute):
    raise one_of(
      f"{what} of {module_name}:", attribute, [other for other, value in vars(module).items() if fits(value)]
    )
  return getattr(module, attribute)
