"""What every field of a saved preimage must be: type and range, checked before an object is made of it.

Messages name the field by its path in the file, such as ``samples.tokens[3][0]``; whoever reads the file puts its name in front.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from inversionview_jax import values
from inversionview_jax.distance import MATCHES, METRICS
from inversionview_jax.preimage.methods import METHODS

Check = Callable[[str, Any], Any]

_LONGEST = 1_000_000  # tokens of a text, candidates of a preimage, dimensions of an activation
_ROUNDING = 1e-3  # shares and cosine distances were computed in float32 or bfloat16
_MOST = 3e38  # activations and distances are float32 values


def _list_of(check: Check) -> Check:
  return functools.partial(values.sequence, check=check, most=_LONGEST)


def _or_none(check: Check) -> Check:
  return lambda name, value: None if value is None else check(name, value)


def _number(low: float, high: float) -> Check:
  return functools.partial(values.number, low=low, high=high)


_token = functools.partial(values.whole, low=0, high=2**31 - 1)
_position = functools.partial(values.whole, low=-1, high=_LONGEST)
_share = _number(-_ROUNDING, 1 + _ROUNDING)
_distance = _or_none(_number(-_ROUNDING, _MOST))  # null: infinite, there was no position to compare

QUERY: dict[str, Check] = {
  "text": values.text,
  "tokens": _list_of(_token),
  "token_strings": _list_of(values.text),
  "position": _position,
  "label": values.text,
  "site": values.text,
  "hook": values.text,
  "activation": _list_of(_number(-_MOST, _MOST)),
  "attention": _or_none(_list_of(_share)),
}
SAMPLE: dict[str, Check] = {
  "tokens": _list_of(_token),
  "token_strings": _list_of(values.text),
  "text": values.text,
  "distance": _distance,
  "position": _position,
  "effect": _list_of(_number(-1 - _ROUNDING, 1 + _ROUNDING)),
  "temperature": _number(0, _MOST),
  "noise": _number(0, _MOST),
  "ended": values.switch,
  "count": functools.partial(values.whole, low=1, high=2**31 - 1),
}
PREIMAGE: dict[str, Check] = {
  "epsilon": _number(1e-30, _MOST),
  "metric": functools.partial(values.choice, choices=tuple(METRICS)),
  "match": functools.partial(values.choice, choices=tuple(MATCHES)),
  "seed": functools.partial(values.whole, low=-(2**63), high=2**63 - 1),
  "reader": values.text,
  "task": values.text,
  "convention": values.text,
  "version": values.text,
  "method": functools.partial(values.choice, choices=tuple(METHODS)),
  "directions": values.text,
  "problem": values.text,
}


def check_fields(table: Mapping[str, Any], schema: Mapping[str, Check], prefix: str = "") -> None:
  """Raises `InversionViewError` for the first field of a table that is of another type or out of its range.

  Args:
    table: as it was read; a field that the schema does not have is left alone.
    schema: `PREIMAGE` or `QUERY`.
    prefix: of the fields' names, such as "query.".
  """
  for name, check in schema.items():
    if name in table:
      check(prefix + name, table[name])


# Of the columns with an entry per token, tens of thousands of a preimage: the same as in `SAMPLE`, without the name of each entry.
_QUICK: dict[str, Callable[[Any], bool]] = {
  "tokens": lambda x: type(x) is int and 0 <= x < 2**31,
  "token_strings": lambda x: type(x) is str,
  "effect": lambda x: type(x) in (float, int) and -1 - _ROUNDING <= x <= 1 + _ROUNDING,
}


def _all_right(column: Any, right: Callable[[Any], bool]) -> bool:
  """Whether a column is a list of lists whose entries are all right."""
  return type(column) is list and all(
    type(row) is list and len(row) <= _LONGEST and all(map(right, row)) for row in column
  )


def check_columns(columns: Mapping[str, Any]) -> None:
  """Raises `InversionViewError` for the first entry of the samples' columns that is of another type or out of its range."""
  for name, column in columns.items():
    if name in _QUICK and _all_right(column, _QUICK[name]):
      continue
    values.sequence(f"samples.{name}", column, SAMPLE[name], _LONGEST)
