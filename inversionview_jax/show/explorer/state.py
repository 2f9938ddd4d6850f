"""What is looked at: plain data, and its form in the address bar, so that a view can be shared and come back after a reload."""

import dataclasses
import math
import urllib.parse
from collections.abc import Callable, Mapping, Sequence

from inversionview_jax.distance import MATCHES, METRICS
from inversionview_jax.errors import InversionViewError, one_of

PANELS = {
  "reading": "Reading",
  "sites": "All sites",
  "positions": "All positions",
  "attention": "Attention",
  "pinned": "Pinned",
}
SAMPLES = (256, 512, 1024, 2048, 4096)
MOST_PINS, MOST_SHOWN = 6, 500


@dataclasses.dataclass(frozen=True)
class Pin:
  """A reading that was put aside, to be compared with others."""

  reader: str
  site: str
  position: str
  text: str

  def __str__(self) -> str:
    return "|".join(dataclasses.astuple(self))

  @classmethod
  def parse(cls, said: str) -> "Pin":
    parts = said.split("|", 3)  # a text may hold the sign, the others do not
    if len(parts) < 4 or not all(parts):
      raise InversionViewError(f"pin {said!r} is not reader|site|position|text")
    return cls(*parts)


@dataclasses.dataclass(frozen=True)
class View:
  """Everything that the page shows follows from this, from the readers, and from nothing else.

  Attributes:
    reader: one of the readers the page was started with.
    text, site, position: the query; `position` is a label of the task or an index.
    epsilon: the threshold; None: the task's.
    metric, match: as for `Reader.preimage`; "" is the task's metric.
    mixture: name of a sampling mixture; "" is the task's own, unless `temperatures` or `noise` are given.
    temperatures, noise: as for `Reader.preimage`; () when not given.
    samples: candidates that are drawn.
    shown: of these, at most so many are shown.
    seed: of the candidates.
    colors, notes: whether tokens are coloured, and whether descriptions are shown.
    panel: a key of `PANELS`.
    head: "layer.head" whose attention is shown; "" is that of the site, else the first.
    pins: readings that were put aside.
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

  @property
  def here(self) -> Pin:
    return Pin(self.reader, self.site, self.position, self.text)

  def at(self, pin: Pin) -> "View":
    """The same settings, looking at another reading."""
    return dataclasses.replace(self, **dataclasses.asdict(pin))

  def to_params(self) -> dict[str, str | list[str]]:
    """The query string of the address, as a mapping; what is as it would be anyway is left out."""
    params = {}
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.name == "pins":
        if value:
          params["pin"] = [str(pin) for pin in value]
      elif value != field.default:
        params[field.name] = _write(value)
    return params

  def to_query(self, **changes) -> str:
    """The query string of this view with some things changed."""
    return urllib.parse.urlencode(dataclasses.replace(self, **changes).to_params(), doseq=True)

  def read(self, params: Mapping[str, Sequence[str]]) -> tuple["View", list[str]]:
    """This view with what an address says.

    Returns:
      The view, and what of the address could not be used, in words: nothing is passed over in silence.
    """
    changes, complaints = {}, []
    for name, values in params.items():
      try:
        if name == "pin":
          changes["pins"] = _pins(values)
        elif name in _READ:
          changes[name] = _READ[name](name, values[-1])
        else:
          raise one_of("setting", name, (*_READ, "pin"))
      except InversionViewError as error:
        complaints.append(str(error))
    return dataclasses.replace(self, **changes), complaints

  def picked(self, said: str) -> "View":
    """This view after a click on something of the page that says `said`: a query string, or "pin", or "unpin=" and a number."""
    if said == "pin":
      if self.here in self.pins:
        return self
      if len(self.pins) >= MOST_PINS:
        raise InversionViewError(f"{MOST_PINS} readings are pinned already: take one away first")
      return dataclasses.replace(self, pins=(*self.pins, self.here))
    try:
      params = urllib.parse.parse_qs(said, keep_blank_values=True, strict_parsing=True)
    except ValueError:
      params = {}
    if not params:
      raise InversionViewError(f"{said!r} is not something to click at")
    if gone := params.pop("unpin", None):
      return dataclasses.replace(self, pins=tuple(pin for k, pin in enumerate(self.pins) if str(k) != gone[-1]))
    view, complaints = self.read(params)
    if complaints:
      raise InversionViewError(complaints[0])
    return view


def numbers(name: str, said: str) -> tuple[float, ...]:
  """ "0.5, 1" -> (0.5, 1.0); "" -> ()."""
  return tuple(_number(name, part) for part in said.replace(";", ",").split(",") if part.strip())


def _pins(values: Sequence[str]) -> tuple[Pin, ...]:
  if len(values) > MOST_PINS:
    raise InversionViewError(f"{len(values)} pins are more than the {MOST_PINS} that fit beside each other")
  return tuple(dict.fromkeys(map(Pin.parse, values)))


def _write(value) -> str:
  if isinstance(value, bool):
    return "1" if value else "0"
  if isinstance(value, tuple):
    return ",".join(f"{v:g}" for v in value)
  return f"{value:.6g}" if isinstance(value, float) else str(value)


def _number(name: str, said: str) -> float:
  try:
    value = float(said)
  except ValueError:
    value = math.nan
  if not (math.isfinite(value) and value >= 0):
    raise InversionViewError(f"{name} {said.strip()!r} is not a number of 0 or more")
  return value


def _epsilon(name: str, said: str) -> float:
  if (value := _number(name, said)) <= 0:
    raise InversionViewError(f"{name} {said!r} must be above 0")
  return value


def _whole(low: int, high: int) -> Callable[[str, str], int]:
  def read(name: str, said: str) -> int:
    if not (said.isascii() and said.isdigit() and low <= int(said) <= high):
      raise InversionViewError(f"{name} {said!r} must be a whole number from {low} to {high}")
    return int(said)

  return read


def _among(choices) -> Callable[[str, str], str]:
  def read(name: str, said: str) -> str:
    if said not in choices:
      raise one_of(name, said, choices)
    return said

  return read


def _yes(name: str, said: str) -> bool:
  return _among(("0", "1"))(name, said) == "1"


def _samples(name: str, said: str) -> int:
  return int(_among(tuple(map(str, SAMPLES)))(name, said))


def _any(name: str, said: str) -> str:
  del name
  return said


_READ: dict[str, Callable] = {
  "reader": _any,
  "text": _any,
  "site": _any,
  "position": _any,
  "epsilon": _epsilon,
  "metric": _among(METRICS),
  "match": _among(MATCHES),
  "mixture": _any,
  "temperatures": numbers,
  "noise": numbers,
  "samples": _samples,
  "shown": _whole(1, MOST_SHOWN),
  "seed": _whole(0, 2**32 - 1),
  "colors": _yes,
  "notes": _yes,
  "panel": _among(PANELS),
  "head": _any,
}
