"""Keys of configs: what a key must be (`Key`), the kinds of keys, and how a config is checked against a table of them."""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError, one_of


@dataclasses.dataclass(frozen=True)
class Key:
  """One key of a config.

  Attributes:
    check: (its dotted name, its value) -> the value; raises `InversionViewError`.
    kind: its type and range in words.
    meaning: in one line.
    optional: whether a config may lack it.
  """

  check: Callable[[str, Any], Any]
  kind: str
  meaning: str
  optional: bool = False


def whole(low: int, high: int, meaning: str) -> Key:
  return Key(functools.partial(values.whole, low=low, high=high), f"whole, {low:,} to {high:,}", meaning)


def number(low: float, high: float, meaning: str) -> Key:
  return Key(functools.partial(values.number, low=low, high=high), f"number, {low:g} to {high:g}", meaning)


def share(meaning: str) -> Key:
  """A number from 0 to 1, 1 left out."""
  return Key(_below_one, "number, 0 to less than 1", meaning)


def _below_one(name: str, value: Any) -> float:
  if not values.is_number(value) or not 0 <= value < 1:
    raise InversionViewError(f"{name} = {values.brief(value)} must be a number of at least 0 and less than 1")
  return value


def positive(high: float, meaning: str) -> Key:
  return Key(functools.partial(_above_zero, high=high), f"number, above 0 to {high:g}", meaning)


def _above_zero(name: str, value: Any, high: float) -> float:
  if not values.is_number(value) or not 0 < value <= high:
    raise InversionViewError(f"{name} = {values.brief(value)} must be a number above 0 and at most {high:g}")
  return value


def text(meaning: str) -> Key:
  return Key(values.text, "text", meaning)


def switch(meaning: str) -> Key:
  return Key(values.switch, "True or False", meaning)


def choice(choices: tuple[str, ...], meaning: str) -> Key:
  shown = ", ".join(choice or '""' for choice in choices)
  return Key(functools.partial(values.choice, choices=choices), f"one of {shown}", meaning)


def names(meaning: str, known: tuple[str, ...] = (), least: int = 0) -> Key:
  """A tuple of at least so many texts, any or known ones."""
  kind = f"tuple of {', '.join(known)}" if known else "tuple of texts"
  return Key(functools.partial(_tuple_of_texts, known=known, least=least), kind, meaning)


def _tuple_of_texts(name: str, value: Any, known: tuple[str, ...], least: int) -> tuple[str, ...]:
  if isinstance(value, str):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a tuple of texts: write ({value!r},)")
  texts = values.sequence(name, value, values.text, 100_000)
  if len(texts) < least:
    raise InversionViewError(f"{name} is empty: give some of {', '.join(known)}")
  for each in texts:
    if known and each not in known:
      raise one_of(f"value of {name}:", each, known)
  return texts


def paths(meaning: str) -> Key:
  return Key(_one_or_several_paths, "text, or tuple of texts", meaning)


def _one_or_several_paths(name: str, value: Any) -> Any:
  if isinstance(value, str | os.PathLike):
    return value
  return values.sequence(
    name, value, lambda n, each: values.text(n, os.fspath(each) if isinstance(each, os.PathLike) else each), 100_000
  )


def is_block(name: str, value: Any) -> Any:
  if not hasattr(value, "keys"):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a block of keys")
  return value


def is_label(name: str, value: Any) -> Any:
  if isinstance(value, bool) or not isinstance(value, int | str):
    raise InversionViewError(f"{name} = {values.brief(value)} must be a label such as '=', or an index")
  return value


def are_labels(name: str, value: Any) -> tuple:
  return values.sequence(name, value, is_label, 100_000)


def are_ids(name: str, value: Any) -> tuple:
  return values.sequence(name, value, functools.partial(values.whole, low=0, high=2**31 - 1), 2**24)


def are_phases(name: str, value: Any) -> tuple:
  """Settings of runs one after the other: dicts of dotted keys."""
  return values.sequence(name, value, _is_phase, 1_000)


def _is_phase(name: str, value: Any) -> Mapping:
  if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
    raise InversionViewError(
      f"{name} = {values.brief(value)} must be a dict of settings, such as {{'optimizer.lr': 0.003}}"
    )
  return value


def are_queries(name: str, value: Any) -> tuple:
  """(reader, text, site, position) each, at least one."""
  queries = values.sequence(name, value, _is_query, 1_000_000)
  if not queries:
    raise InversionViewError(f"{name} is empty; each is (reader, text, site, position)")
  return queries


def _is_query(name: str, value: Any) -> tuple:
  if not isinstance(value, list | tuple) or len(value) != 4 or not all(isinstance(part, str) for part in value[:3]):
    raise InversionViewError(f"{name} = {values.brief(value)} is not (reader, text, site, position)")
  is_label(name, value[3])
  return tuple(value)


def optional(table: Mapping[str, Key]) -> dict[str, Key]:
  return {name: dataclasses.replace(key, optional=True) for name, key in table.items()}


def under(block: str, table: Mapping[str, Key]) -> dict[str, Key]:
  return {f"{block}.{name}": key for name, key in table.items()}


def check_block(name: str, block: Any, table: Mapping[str, Key], known_as: str) -> None:
  """Checks a block of which every key is in the table; None is one without keys.

  Args:
    name: of the block, in messages.
    block: a `ConfigDict` or dict.
    table: key -> what it must be.
    known_as: what its keys are, in the message about one that the table does not have.

  Raises:
    InversionViewError: no block, a key that the table does not have, or one of another type or out of its range.
  """
  if block is None:
    return
  for key in is_block(name, block):
    if key not in table:
      raise one_of(f"{known_as}:", key, table)
  check(block, table, f"{name}.")


def check(config: Any, table: Mapping[str, Key], prefix: str = "") -> None:
  """Checks a config against a table.

  Args:
    config: a `ConfigDict` or nested dicts.
    table: dotted key -> what it must be.
    prefix: of the keys' names in messages, "target." for a block of a config.

  Raises:
    InversionViewError: the first key that is missing, of another type or out of its range; names it and its value.
  """
  for name, key in table.items():
    found, value = _look_up(config, name, prefix)
    if found and not (key.optional and value is None):
      key.check(prefix + name, value)
    elif not found and not key.optional:
      raise InversionViewError(f"the config has no key {prefix}{name} ({key.kind}: {key.meaning}); add it")


def described(table: Mapping[str, Key]) -> str:
  """A table in Markdown, a row for each key."""
  rows = (f"| `{name}` | {key.kind} | {key.meaning} |" for name, key in table.items())
  return "\n".join(("| key | value | meaning |", "|---|---|---|", *rows))


def listed(table: Mapping[str, Key]) -> str:
  """A table in columns, a line for each key."""
  names, kinds = max(map(len, table)), max(len(key.kind) for key in table.values())
  return "\n".join(
    f"{name:{names}}  {key.kind:{kinds}}  {key.meaning}{' (may be left out)' if key.optional else ''}"
    for name, key in table.items()
  )


def _look_up(config: Any, name: str, prefix: str) -> tuple[bool, Any]:
  """Whether a config has a dotted key, and its value."""
  node, trail = config, ""
  for part in name.split("."):
    if not hasattr(node, "keys"):
      raise InversionViewError(
        f"{prefix}{trail} = {values.brief(node)} must be a block of keys, such as {prefix}{name}"
      )
    if part not in node:
      return False, None
    node, trail = node[part], f"{trail}.{part}" if trail else part
    if node is None and trail != name:
      return False, None
  return True, node
