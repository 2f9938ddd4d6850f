"""Values that come from outside (config.json, model.json, metadata of a file), each with its type and its range.

A check here returns the value or raises `InversionViewError` that names the key and the value. `True` is no number, NaN and infinities are
none, and a text is never read as one.
"""

import math
import numbers
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from inversionview_jax.errors import InversionViewError

T = TypeVar("T")


def whole(name: str, value: object, low: int, high: int) -> int:
  """A whole number from `low` to `high`; a scalar of an array library is one, too."""
  try:
    index = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
  except TypeError:
    index = None
  if index is not None and low <= index <= high:
    return index
  _refuse(name, value, f"a whole number from {low:,} to {high:,}")


def number(name: str, value: object, low: float, high: float) -> float:
  """A finite number from `low` to `high`."""
  if is_number(value) and low <= value <= high:  # type: ignore[operator]
    return float(value)  # type: ignore[arg-type]
  _refuse(name, value, f"a number from {low:g} to {high:g}")


def switch(name: str, value: object) -> bool:
  """True or false."""
  if isinstance(value, bool):
    return value
  _refuse(name, value, "true or false")


def text(name: str, value: object) -> str:
  """A text."""
  if isinstance(value, str):
    return value
  _refuse(name, value, "a text")


def choice(name: str, value: object, choices: Collection[str]) -> str:
  """One of a few texts."""
  if isinstance(value, str) and value in choices:
    return value
  _refuse(name, value, f"one of {', '.join(choices)}")


def sequence(name: str, value: object, check: Callable[[str, object], T], most: int) -> tuple[T, ...]:
  """A list of at most `most` entries, each of which `check` takes: (name of the entry, entry) -> entry."""
  if not isinstance(value, list | tuple):
    _refuse(name, value, "a list")
  if len(value) > most:
    raise InversionViewError(f"{name} has {len(value):,} entries; there can be at most {most:,}")
  return tuple(check(f"{name}[{k}]", entry) for k, entry in enumerate(value))


def mapping(name: str, value: object) -> dict[str, Any]:
  """An object of JSON."""
  if isinstance(value, dict):
    return value
  _refuse(name, value, "an object with keys")


def fields(name: str, value: object, checks: Mapping[str, Callable[[str, object], Any]]) -> dict[str, Any]:
  """An object of JSON that has at least these keys, each with a value that its check takes: (name, value) -> value."""
  found = mapping(name, value)
  if missing := [key for key in checks if key not in found]:
    raise InversionViewError(f"{name} is damaged: {', '.join(sorted(missing))} is missing")
  for key, check in checks.items():
    check(f"{key} of {name}", found[key])
  return found


def optional(check: Callable[[str, object], T]) -> Callable[[str, object], T | None]:
  """The check of a value that may be null."""
  return lambda name, value: None if value is None else check(name, value)


def brief(value: object) -> str:
  """A value for a message; of a long one its beginning."""
  shown = repr(value) if not (isinstance(value, int) and abs(value) >= 10**30) else "a number of more than 30 digits"
  return shown if len(shown) <= 60 else f"{shown[:57]}..."


def is_number(value: object) -> bool:
  """Whether a value is a finite number."""
  try:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
  except OverflowError:  # a whole number beyond every float
    return False


def _refuse(name: str, value: object, what: str) -> NoReturn:
  raise InversionViewError(f"{name} = {brief(value)} must be {what}")
