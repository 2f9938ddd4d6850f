"""Attributes of a config.json: those that every family may have, the refusal of those that are not handled, and typed reading of the rest."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.config import MOST_CONTEXT, MOST_LAYERS
from inversionview_jax.pretrained.no_effect import has_no_effect

REQUIRED: Any = object()  # in place of a default

# Attribute -> the values under which the model is the one that is built here.
MUST_BE: dict[str, tuple] = {
  "quantization_config": (None,),
  "pruned_heads": ({}, None),
  "add_cross_attention": (False,),
  "per_layer_config": (None, {}),  # layers that differ
}


class UnhandledAttribute(InversionViewError):
  """An attribute of a config.json that this package does not know.

  Attributes:
    name: of the attribute.
  """

  def __init__(self, message: str, name: str):
    super().__init__(message)
    self.name = name


class Completed(dict):
  """Attributes of a config.json with those that it leaves out (`completion.completed`).

  Attributes:
    unchanged: names of those that have the default value of their model type. What they do there, every model of the type does.
  """

  unchanged: frozenset[str] = frozenset()


def refuse_unhandled(attributes: Mapping, where: str, handled: Set[str], must_be: Mapping[str, tuple]) -> None:
  """Refuses a config.json with an attribute that is not handled.

  Args:
    attributes: of config.json, or `Completed` ones: of these, attributes that have the default value of the model type are no matter.
    where: its name, for error messages.
    handled: names of the attributes that the family reads, or that have no effect in it. Those of `no_effect` are handled anyway, and so are
      those that are null.
    must_be: attribute -> the values that it may have; added to `MUST_BE`.

  Raises:
    InversionViewError: names the first attribute that is not handled (an `UnhandledAttribute`), or whose value is not.
  """
  must_be = {**must_be, **MUST_BE}
  refuse_values(attributes, where, must_be)
  unchanged = attributes.unchanged if isinstance(attributes, Completed) else frozenset()
  for name, value in attributes.items():
    if value is None or name in must_be or name in handled or name in unchanged or has_no_effect(name):
      continue
    raise UnhandledAttribute(
      f"{where}: attribute {name} = {values.brief(value)} is not handled; the model might compute something else without it",
      name,
    )


def refuse_values(attributes: Mapping, where: str, must_be: Mapping[str, tuple] = MUST_BE) -> None:
  """Raises `InversionViewError` naming the first attribute that has none of the values that it may have; one that is left out is fine."""
  for name, right in must_be.items():
    if name not in attributes:
      continue
    value = attributes[name]
    if not any(value == each and type(value) in (type(each), int, float) for each in right):
      raise InversionViewError(f"{where}: {name} = {values.brief(value)} is not handled, only {right[0]!r}")


def refuse_sizes(attributes: Mapping, where: str, names: Sequence[str]) -> None:
  """Raises `InversionViewError` naming the first of these attributes that is missing, or is no size: a whole number from 1 (layers: 0) on."""
  read = Attributes(attributes, where)
  for name in names:
    low, high = (0, MOST_LAYERS) if "layer" in name else (1, MOST_CONTEXT)  # a model may have no layers
    read.whole(name, low, high)


class Attributes:
  """The attributes of a config.json, each read with its type and range; a refusal names the file, the attribute and its value.

  Args:
    attributes: of config.json, or of a GGUF file's metadata.
    where: name of the file, for error messages.
  """

  def __init__(self, attributes: Mapping, where: str):
    self._attributes, self._where = attributes, where

  def whole(self, name: str, low: int, high: int, default: Any = REQUIRED, null: bool = False) -> Any:
    """A whole number from `low` to `high`.

    Args:
      name: of the attribute.
      low, high: the smallest and the largest value.
      default: where it is left out; it must be there without one.
      null: whether null means the default, too.
    """
    return self.read(name, functools.partial(values.whole, low=low, high=high), default, null)

  def number(self, name: str, low: float, high: float, default: Any = REQUIRED, null: bool = False) -> Any:
    """A finite number from `low` to `high`; arguments as for `whole`."""
    return self.read(name, functools.partial(values.number, low=low, high=high), default, null)

  def switch(self, name: str, default: Any = REQUIRED, null: bool = False) -> Any:
    """True or false; arguments as for `whole`."""
    return self.read(name, values.switch, default, null)

  def choice(self, name: str, choices: Collection[str], default: Any = REQUIRED, null: bool = False) -> Any:
    """One of a few texts; arguments as for `whole`."""
    value = self.read(name, values.text, default, null)
    if isinstance(value, str) and value not in choices:
      raise InversionViewError(
        f"{self._where}: {name} = {values.brief(value)} is not handled, only {', '.join(choices)}"
      )
    return value

  def read(self, name: str, check: Callable[[str, object], Any], default: Any = REQUIRED, null: bool = False) -> Any:
    """An attribute that `check` takes: (name, value) -> value; arguments as for `whole`."""
    if name not in self._attributes or (null and self._attributes[name] is None):
      if default is REQUIRED:
        raise InversionViewError(f"{self._where}: attribute {name} is missing")
      return default
    return check(f"{self._where}: {name}", self._attributes[name])
