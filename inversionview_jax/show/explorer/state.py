"""The view of the page as plain data, and its form in the address bar, so that a view can be shared and survives a reload."""

import dataclasses
import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inversionview_jax import values
from inversionview_jax.distance import MATCHES, METRICS
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.preimage.methods import SETTINGS

PANELS = {
  "reading": "Reading",
  "sites": "All sites",
  "positions": "All positions",
  "attention": "Attention",
  "pinned": "Pinned",
  "circuit": "Circuit",
}
SAMPLES = (256, 512, 1024, 2048, 4096)
BUDGETS = (20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
MOST_PINS, MOST_SHOWN, MOST_CHARACTERS = 6, 500, 4000


@dataclasses.dataclass(frozen=True)
class Pin:
  """A query whose reading is pinned, for comparison with others."""

  reader: str
  site: str
  position: str
  text: str

  def __str__(self) -> str:
    return "|".join(dataclasses.astuple(self))

  @classmethod
  def parse(cls, text: str) -> "Pin":
    """Reads "reader|site|position|text"."""
    parts = text.split("|", 3)  # the text may contain "|", the others do not
    if len(parts) < 4 or not all(parts):
      raise InversionViewError(f"pin {values.brief(text)} is not reader|site|position|text")
    return cls(*parts)


@dataclasses.dataclass(frozen=True)
class View:
  """The whole state of the page: what it shows depends on this and on the readers only.

  Attributes:
    reader: one of the readers and targets the page was started with.
    text, site, position: the query; `position` is a label of the task or an index.
    epsilon: the threshold; None: the task's.
    metric, match: as for `Reader.preimage`; "" is the task's metric.
    mixture: name of a sampling mixture; "" is the task's own, unless `temperatures` or `noise` are given.
    temperatures, noise: as for `Reader.preimage`; () when not given.
    samples: candidates that the decoder draws.
    shown: samples that are shown at most.
    seed: of the candidates.
    colors, notes: whether tokens are colored, and whether descriptions are shown.
    panel: a key of `PANELS`.
    head: "layer.head" whose attention is shown; "" is that of the site, else the first.
    pins: pinned queries.
    method: by which preimages are found; "" is the default of `reading.source.Source`.
    particles, budget: of Monte Carlo.
    node: of the circuit, whose properties are shown; "" shows the whole circuit.
  """

  reader: str = ""
  text: str = ""
  site: str = ""
  position: str = ""
  epsilon: float | None = None
  metric: str = ""
  match: str = "anywhere"
  mixture: str = ""
  temperatures: tuple[float, ...] = ()
  noise: tuple[float, ...] = ()
  samples: int = 1024
  shown: int = 50
  seed: int = 0
  colors: bool = True
  notes: bool = True
  panel: str = "reading"
  head: str = ""
  pins: tuple[Pin, ...] = ()
  method: str = ""
  particles: int = 1024
  budget: int = 200_000
  node: str = ""

  @property
  def here(self) -> Pin:
    """The query that is shown."""
    return Pin(self.reader, self.site, self.position, self.text)

  def at(self, pin: Pin) -> "View":
    """The same settings with another query."""
    return dataclasses.replace(self, **dataclasses.asdict(pin))

  def to_params(self) -> dict[str, str | list[str]]:
    """The query string of the address, as a mapping; fields with their default values are left out."""
    params: dict[str, str | list[str]] = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name == "pins":
        if value:
          params["pin"] = [str(pin) for pin in value]
      elif value != field.default:
        params[field.name] = _to_string(value)
    return params

  def to_query(self, **changes: Any) -> str:
    """The query string of this view with some fields changed."""
    return urllib.parse.urlencode(dataclasses.replace(self, **changes).to_params(), doseq=True)

  def read(self, params: Mapping[str, Sequence[str]]) -> tuple["View", list[str]]:
    """This view with the fields of an address.

    Args:
      params: the query string as a mapping from names to values.

    Returns:
      The view, and an error message for each part of the address that could not be used.
    """
    changes: dict[str, Any] = {}
    errors: list[str] = []
    for name, given in params.items():
      try:
        if (longest := max(map(len, given), default=0)) > MOST_CHARACTERS:
          raise InversionViewError(f"{name[:40]} has {longest:,} characters; a setting has at most {MOST_CHARACTERS:,}")
        if name == "pin":
          changes["pins"] = _pins(given)
        elif name in _PARSERS:
          changes[name] = _PARSERS[name](name, given[-1])
        else:
          raise one_of("setting", name, (*_PARSERS, "pin"))
      except InversionViewError as error:
        errors.append(str(error))
    return dataclasses.replace(self, **changes), errors

  def after_click(self, action: str) -> "View":
    """This view after a click on an element with this action: a query string, "pin", or "unpin=" and a number."""
    if action == "pin":
      if self.here in self.pins:
        return self
      if len(self.pins) >= MOST_PINS:
        raise InversionViewError(f"{MOST_PINS} readings are pinned already: unpin one first")
      return dataclasses.replace(self, pins=(*self.pins, self.here))
    try:
      params = urllib.parse.parse_qs(action, keep_blank_values=True, strict_parsing=True)
    except ValueError:
      params = {}
    if not params:
      raise InversionViewError(f"{values.brief(action)} is not the action of a click")
    if unpinned := params.pop("unpin", None):
      return dataclasses.replace(self, pins=tuple(pin for k, pin in enumerate(self.pins) if str(k) != unpinned[-1]))
    view, errors = self.read(params)
    if errors:
      raise InversionViewError(errors[0])
    return view


def numbers(name: str, text: str) -> tuple[float, ...]:
  """Numbers of 0 or more, separated by commas: "0.5, 1" -> (0.5, 1.0); "" -> ().

  Raises:
    InversionViewError: naming `name`, for anything else.
  """
  return tuple(_number(name, part) for part in text.replace(";", ",").split(",") if part.strip())


def _pins(given: Sequence[str]) -> tuple[Pin, ...]:
  if len(given) > MOST_PINS:
    raise InversionViewError(f"{len(given)} pins are more than the {MOST_PINS} that fit on the page")
  return tuple(dict.fromkeys(map(Pin.parse, given)))


def _to_string(value: object) -> str:
  if isinstance(value, bool):
    return "1" if value else "0"
  if isinstance(value, tuple):
    return ",".join(f"{v:g}" for v in value)
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(name: str, text: str) -> float:
  try:
    value = float(text) if text.isascii() else math.nan
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value >= 0):
    raise InversionViewError(f"{name} {values.brief(text.strip())} is not a number of 0 or more")
  return value


def _epsilon(name: str, text: str) -> float:
  if (value := _number(name, text)) <= 0:
    raise InversionViewError(f"{name} {text!r} must be above 0")
  return value


def _whole(low: int, high: int) -> Callable[[str, str], int]:
  def read(name: str, text: str) -> int:
    if not (re.fullmatch("[0-9]{1,18}", text) and low <= int(text) <= high):
      raise InversionViewError(f"{name} {values.brief(text)} must be a whole number from {low} to {high}")
    return int(text)

  return read


def _one_of(choices: Iterable[str]) -> Callable[[str, str], str]:
  def read(name: str, text: str) -> str:
    if text not in choices:
      raise one_of(name, text, choices)
    return text

  return read


def _switch(name: str, text: str) -> bool:
  return _one_of(("0", "1"))(name, text) == "1"


def _number_of(choices: Sequence[int]) -> Callable[[str, str], int]:
  return lambda name, text: int(_one_of(tuple(map(str, choices)))(name, text))


def _string(name: str, text: str) -> str:
  del name
  return text


_PARSERS: dict[str, Callable[[str, str], Any]] = {
  "reader": _string,
  "text": _string,
  "site": _string,
  "position": _string,
  "epsilon": _epsilon,
  "metric": _one_of(METRICS),
  "match": _one_of(MATCHES),
  "method": _one_of(SETTINGS),
  "mixture": _string,
  "temperatures": numbers,
  "noise": numbers,
  "samples": _number_of(SAMPLES),
  "particles": _number_of(SAMPLES),
  "budget": _number_of(BUDGETS),
  "shown": _whole(1, MOST_SHOWN),
  "seed": _whole(0, 2**32 - 1),
  "colors": _switch,
  "notes": _switch,
  "panel": _one_of(PANELS),
  "head": _string,
  "node": _string,
}
