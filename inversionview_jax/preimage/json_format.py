"""The JSON of a preimage: written, and read with every part checked.

Version 1 has no `count` of samples; version 2 has, and no method with its results; version 3 has both, and several activations together. Samples are stored by column, which is a third of the size of a list of objects.
"""

import functools
import json
import math
import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import parse_json, read_json
from inversionview_jax.preimage import schema

FORMAT, FORMAT_VERSION = "inversionview-preimage", 3
PREIMAGE_KEYS = ("epsilon", "metric", "match", "seed", "reader", "task", "convention", "version")
RESULT_KEYS = (
  "target_runs",
  "bits",
  "bits_error",
  "converged",
  "problem",
  "levels",
  "sampled_epsilon",
)  # since version 3
COMPARISON_KEYS = ("method", "others", "directions")  # since version 3
LEVEL_KEYS = ("epsilon", "survivors", "acceptance", "distinct", "moved", "sweeps")
QUERY_KEYS = ("text", "tokens", "token_strings", "position", "label", "site", "hook", "activation", "attention")
SAMPLE_KEYS = (
  "tokens",
  "token_strings",
  "text",
  "distance",
  "position",
  "effect",
  "temperature",
  "noise",
  "ended",
  "count",
)
_REMEDY = "give a file that Preimage.to_json wrote"


def dumps(fields: Mapping[str, Any], query: Mapping[str, Any], samples: Mapping[str, Sequence[Any]]) -> str:
  """Strict JSON of a preimage; an infinite distance is null.

  Args:
    fields: values of `PREIMAGE_KEYS`, `COMPARISON_KEYS` ("others" as values of `QUERY_KEYS`) and `RESULT_KEYS`.
    query: values of `QUERY_KEYS`.
    samples: the columns `SAMPLE_KEYS`.
  """
  samples = dict(samples)
  samples["distance"] = [shortest(d) if math.isfinite(d) else None for d in samples["distance"]]
  levels = [
    level | {"epsilon": level["epsilon"] if math.isfinite(level["epsilon"]) else None} for level in fields["levels"]
  ]
  table = {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    **fields,
    "others": [_short(other) for other in fields["others"]],
    "levels": levels,
    "query": _short(query),
    "samples": samples,
  }
  return json.dumps(table, allow_nan=False, separators=(",", ":"))


def _short(query: Mapping[str, Any]) -> dict[str, Any]:
  """A query whose numbers have few digits."""
  numbers = {name: query[name] and [shortest(v) for v in query[name]] for name in ("activation", "attention")}
  return {**query, **numbers}  # attention may be None


def loads(path_or_text: "str | os.PathLike") -> dict[str, Any]:
  """The JSON object in a file, or in the text itself (which starts with "{").

  Raises:
    InversionViewError: no such file, or not JSON.
  """
  if is_text(path_or_text):
    return parse_json(os.fspath(path_or_text), source_name(path_or_text), _REMEDY)
  return read_json(path_or_text, _REMEDY)


def is_text(path_or_text: "str | os.PathLike") -> bool:
  """Whether this is JSON, as opposed to the path of a file."""
  return isinstance(path_or_text, str) and path_or_text.lstrip().startswith("{")


def source_name(path_or_text: "str | os.PathLike") -> str:
  """What an error message calls the source."""
  return "this text" if is_text(path_or_text) else os.fspath(path_or_text)


def parse(table: Any) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
  """Checks the object of a preimage, of any version, and takes it apart.

  Returns:
    The fields of `Preimage` without query and samples ("others" as the fields of each `Query`), those of `Query`, and those of each `Sample`.

  Raises:
    InversionViewError: another format, a newer version of it, or a part that is missing or malformed.
  """
  name, version = _take(table, ("format", "format_version"), "the file")
  if name != FORMAT:
    raise InversionViewError(f"its format is {name!r}, not {FORMAT!r}; {_REMEDY}")
  if type(version) is not int or version < 1:
    raise InversionViewError(f"format_version {version!r} is not a version; {_REMEDY}")
  if version > FORMAT_VERSION:
    raise InversionViewError(
      f"format_version {version} is newer than the {FORMAT_VERSION} this package reads; upgrade inversionview_jax"
    )
  names = PREIMAGE_KEYS if version < 3 else (*PREIMAGE_KEYS, *COMPARISON_KEYS, *RESULT_KEYS)
  *values, query, samples = _take(table, (*names, "query", "samples"), "the file")
  fields = dict(zip(names, values))
  schema.check_fields(fields, schema.PREIMAGE)
  if isinstance(fields.get("levels"), list):
    fields["levels"] = [_read_level(level) for level in fields["levels"]]
  others = fields.get("others", [])
  if not isinstance(others, list):
    raise InversionViewError("others is not a list")
  fields["others"] = [dict(zip(QUERY_KEYS, _take(other, QUERY_KEYS, f"others[{i}]"))) for i, other in enumerate(others)]
  for i, other in enumerate(fields["others"]):
    schema.check_fields(other, schema.QUERY, f"others[{i}].")
  query = dict(zip(QUERY_KEYS, _take(query, QUERY_KEYS, "query")))
  schema.check_fields(query, schema.QUERY, "query.")
  keys = SAMPLE_KEYS if version > 1 else SAMPLE_KEYS[:-1]
  columns = dict(zip(keys, _take(samples, keys, "samples")))
  schema.check_columns(columns)
  check_lengths("samples", columns["tokens"], **columns)
  columns["distance"] = [math.inf if d is None else d for d in columns["distance"]]
  rows = [dict(zip(columns, row)) for row in zip(*columns.values())]
  return fields, query, rows


def checked_results(values: Mapping[str, Any]) -> dict[str, Any]:
  """The values of `RESULT_KEYS` as plain data: ints, floats, a tuple of dicts.

  Raises:
    InversionViewError: one that is of another kind, or out of range; names it.
  """
  runs, bits, error, converged, problem, levels, sampled = (values[name] for name in RESULT_KEYS)
  if error is not None and bits is None:
    raise InversionViewError(f"bits_error = {error!r} needs bits, which are None")
  if not (converged is None or isinstance(converged, bool)):
    raise InversionViewError(f"converged = {converged!r} must be true, false or None")
  if not isinstance(problem, str) or (problem and converged is not False):
    raise InversionViewError(f"problem = {problem!r} must be text, and empty unless converged is false")
  if not isinstance(levels, list | tuple):
    raise InversionViewError(f"levels = {levels!r} must be a list")
  return {
    "target_runs": None if runs is None else _number("target_runs", runs, whole=True),
    "bits": None if bits is None else _number("bits", bits),
    "bits_error": None if error is None else _number("bits_error", error),
    "converged": converged,
    "problem": problem,
    "levels": tuple(_checked_level(f"levels[{i}]", level) for i, level in enumerate(levels)),
    "sampled_epsilon": None if sampled is None else _number("sampled_epsilon", sampled),
  }


def _checked_level(name: str, level: Any) -> dict[str, Any]:
  epsilon, survivors, acceptance, distinct, moved, sweeps = _take(level, LEVEL_KEYS, name)
  if not isinstance(acceptance, Mapping) or not all(isinstance(kind, str) for kind in acceptance):
    raise InversionViewError(f"{name}.acceptance is not an object of shares; {_REMEDY}")
  return {
    "epsilon": epsilon if epsilon == math.inf else _number(f"{name}.epsilon", epsilon),
    "survivors": _number(f"{name}.survivors", survivors, 1),
    "acceptance": {kind: _number(f"{name}.acceptance[{kind!r}]", share, 1) for kind, share in acceptance.items()},
    "distinct": _number(f"{name}.distinct", distinct, whole=True),
    "moved": _number(f"{name}.moved", moved, 1),
    "sweeps": _number(f"{name}.sweeps", sweeps, whole=True),
  }


def _read_level(level: Any) -> Any:
  """A level as it is in a file, where an infinite threshold is null."""
  return level | {"epsilon": math.inf} if isinstance(level, dict) and level.get("epsilon", 0) is None else level


def _number(name: str, value: Any, high: float = math.inf, whole: bool = False) -> Any:
  """A finite number from 0 to `high`, as an int or a float; raises `InversionViewError` for anything else."""
  try:
    number = operator.index(value) if whole else float(value)
  except (TypeError, ValueError):
    number = math.nan
  if isinstance(value, bool | str) or not (0 <= number <= high and number < math.inf):
    kind = "a whole number" if whole else "a number"
    raise InversionViewError(
      f"{name} = {value!r} must be {kind} " + ("of at least 0" if high == math.inf else f"from 0 to {high}")
    )
  return number


@functools.lru_cache(256)  # the temperatures and noises of a mixture are few
def shortest(value: float) -> float:
  """The double with the fewest digits that has the same float32 value: exact when it is read again, and half as long in a file."""
  return float(str(np.float32(value)))


def check_lengths(what: str, tokens: Sequence[Any], /, **columns: Sequence[Any]) -> None:
  """Raises `InversionViewError` for the first column that is not as long as `tokens`."""
  for name, column in columns.items():
    if len(column) != len(tokens):
      raise InversionViewError(
        f"{what}: {name} has length {len(column)} and tokens has length {len(tokens)}; they must agree"
      )


def _take(table: Any, keys: Sequence[str], name: str) -> list[Any]:
  """The values of these keys; raises `InversionViewError` where one is missing."""
  if not isinstance(table, dict):
    raise InversionViewError(f"{name} is not a JSON object; {_REMEDY}")
  if missing := [key for key in keys if key not in table]:
    raise InversionViewError(f"{name} lacks {', '.join(map(repr, missing))}; {_REMEDY}")
  return [table[key] for key in keys]
