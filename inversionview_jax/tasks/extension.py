"""Objects of a user's own module, named as "package.module:Name": tasks, mixtures and the like, without a fork of this package."""

import importlib
import os
import sys

from inversionview_jax.errors import InversionViewError, one_of


def is_named(name: str) -> bool:
  """Whether a name is of the form "package.module:Name"."""
  module, colon, attribute = name.partition(":")
  return bool(colon) and attribute.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_named(name: str, kind: type, what: str) -> object:
  """The object that "package.module:Name" names; the working directory is searched after the installed packages.

  Args:
    name: of the object.
    kind: what it must be: an instance or, where `kind` is `type`, a class.
    what: a word for it in error messages, such as "mixture".

  Raises:
    InversionViewError: a name of another form, a module that cannot be imported, a name that it does not have, or another kind of object.
  """
  if not is_named(name):
    raise InversionViewError(f"{what} {name!r} is not of the form package.module:Name")
  module_name, _, attribute = name.partition(":")
  if not {"", os.getcwd()} & set(sys.path):  # a console script's path starts with its own folder
    sys.path.append(os.getcwd())
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # the module is the user's: whatever it raises is an error in what was given
    line = (str(error).splitlines() or [""])[0]
    raise InversionViewError(f"{what} {name!r}: cannot import {module_name}: {type(error).__name__}: {line}") from error
  if not hasattr(module, attribute):
    public = [other for other, value in vars(module).items() if isinstance(value, kind)]
    raise one_of(f"{what} of {module_name}:", attribute, public)
  found = getattr(module, attribute)
  if not isinstance(found, kind):
    raise InversionViewError(f"{what} {name!r} is a {type(found).__name__}, not a {kind.__name__}")
  return found
