"""Frequencies of rotary embeddings, plain and under the published ways to extend a model's context.

In float32 and in the order of operations of the training code: at position 100,000 the last bit of a frequency changes the angle.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")
_KEYS = {
  "default": set(),
  "linear": {"factor"},
  "dynamic": {"factor"},
  "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
  "divided": {"divisors"},  # llama3 in a GGUF file, which stores the divisor of each frequency
  "yarn": {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"},
  "longrope": {"factor", "attention_factor", "short_factor", "long_factor"},
}
# Keys of other programs' yarn, which transformers leaves unread.
_UNREAD = {"yarn": {"attn_factor", "extrapolation_factor", "finetuned"}}
_ALWAYS = {"rope_theta", "rope_type", "type", "original_max_position_embeddings", "partial_rotary_factor"}


def _number(name: str, value: object) -> object:
  """A number of 0 or more; null stands for one that is left out."""
  return value if value is None else values.number(name, value, 0, 1e30)


_numbers = functools.partial(values.sequence, check=_number, most=2**20)
_CHECKS: dict[str, Callable[[str, object], object]] = {
  "rope_type": values.text,
  "type": values.text,
  "truncate": values.switch,
  "divisors": _numbers,
  "short_factor": _numbers,
  "long_factor": _numbers,
}


@dataclasses.dataclass(frozen=True)
class Rotary:
  """A rotary embedding.

  Attributes:
    frequencies: of each pair of dimensions that is turned: its angle per position.
    gain: the factor by which cos and sin are multiplied.
    long: frequencies of texts longer than `long_from` tokens; () where they are the same.
    long_from: see `long`.
  """

  frequencies: tuple[float, ...]
  gain: float
  long: tuple[float, ...] = ()
  long_from: int = 0


def frequencies(rope: Mapping, width: int, n_ctx: int, where: str) -> tuple[tuple[float, ...], float]:
  """`read` of a rotary embedding that turns whole heads, alike in texts of any length: its frequencies, and the factor on cos and sin."""
  found = read(rope, width, n_ctx, where)
  return found.frequencies, found.gain


def read(rope: Mapping, width: int, n_ctx: int, where: str, partial: bool = False) -> Rotary:
  """The rotary embedding that a configuration describes.

  Args:
    rope: "rope_theta", "rope_type" and the parameters of that type, as in "rope_parameters" of a Hugging Face config.json.
    width: K, dimensions of a head; what is turned of it is even.
    n_ctx: length of the context.
    where: name of the file, for error messages.
    partial: whether "partial_rotary_factor" may be less than 1: the part of a head that is turned.

  Raises:
    InversionViewError: an unknown type or attribute (named), an attribute missing or of no use.

  Sources: linear, Chen et al. 2023 (arXiv 2306.15595); dynamic, r/LocalLLaMA 2023; yarn, Peng et al. 2023 (arXiv 2309.00071); longrope, Ding
  et al. 2024 (arXiv 2402.13753); llama3, the Llama 3.1 release. "dynamic" changes nothing within the context the model states, which is as
  far as this package runs it.
  """
  kind = values.text(f"{where}: rope_type", rope.get("rope_type", rope.get("type", "default")))
  if kind not in _KEYS:
    raise InversionViewError(f"{where}: rope_type {kind!r} is not handled; this version reads {', '.join(KINDS)}")
  for name, value in rope.items():
    if name in _UNREAD.get(kind, ()):
      continue
    if name not in _ALWAYS | _KEYS[kind]:
      raise InversionViewError(
        f"{where}: attribute {name} = {values.brief(value)} of rope_type {kind!r} is not handled"
      )
    _CHECKS.get(name, _number)(f"{where}: {name} of the rotary embedding", value)
  part = rope.get("partial_rotary_factor")
  if part not in (None, 1.0):
    if not partial:
      raise InversionViewError(f"{where}: partial_rotary_factor = {part!r} is not handled, only 1.0")
    if not 1 <= int(width * part) <= width:
      raise InversionViewError(
        f"{where}: partial_rotary_factor = {part!r} turns no part of a head of {width} dimensions"
      )
    width = 2 * math.ceil(int(width * part) / 2) if int(width * part) < width else width
  if width % 2:
    raise InversionViewError(f"{where}: heads of {width} dimensions cannot be rotated in pairs")
  try:
    with np.errstate(all="ignore"):  # what is not finite is refused below
      found = _computed(kind, rope, width, n_ctx)
  except KeyError as error:
    raise InversionViewError(f"{where}: rope_type {kind!r} needs {error.args[0]}, which is missing") from None
  except (TypeError, ValueError, ZeroDivisionError) as error:
    raise InversionViewError(f"{where}: rope_type {kind!r} cannot be computed: {error}") from None
  if not (np.isfinite((*found.frequencies, *found.long)).all() and math.isfinite(found.gain)):
    raise InversionViewError(f"{where}: rope_type {kind!r} gives frequencies that are not finite")
  return found


def _computed(kind: str, rope: Mapping, width: int, n_ctx: int) -> Rotary:
  """The rotary embedding of so many dimensions."""
  theta = float(rope["rope_theta"])
  # The power in double precision: NumPy's in float32 depends on the processor, and with it would the model's fingerprint.
  exponent = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
  powers = (float(np.float32(theta)) ** exponent.astype(np.float64)).astype(np.float32)
  plain: np.ndarray = np.float32(1) / powers
  scaled, gain = plain, 1.0
  if kind == "linear":
    scaled = plain / np.float32(rope["factor"])
  elif kind == "divided":
    scaled = plain / np.asarray(rope["divisors"], np.float32)
  elif kind == "llama3":
    scaled = _llama3(plain, rope, n_ctx)
  elif kind == "yarn":
    scaled, gain = _yarn(plain, theta, rope, width, n_ctx)
  elif kind == "longrope":
    return _longrope(powers, rope, n_ctx)
  return Rotary(tuple(map(float, scaled)), gain)


def _longrope(powers: np.ndarray, rope: Mapping, n_ctx: int) -> Rotary:
  """Each frequency divided by a factor of its own: one in texts of up to the trained length, another in longer ones."""
  trained = int(rope.get("original_max_position_embeddings") or n_ctx)
  factor = n_ctx / trained if rope.get("factor") is None else float(rope["factor"])
  gain = rope.get("attention_factor")
  if gain is None:
    gain = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))

  def divided(name):
    factors = np.asarray(rope[name], np.float32)
    if factors.shape != powers.shape:
      raise ValueError(f"{name} has {len(factors)} entries for {len(powers)} frequencies")
    return tuple(map(float, np.float32(1) / (factors * powers)))

  return Rotary(divided("short_factor"), float(gain), divided("long_factor") if n_ctx > trained else (), trained)


def _llama3(plain: np.ndarray, rope: Mapping, n_ctx: int) -> np.ndarray:
  """float32[K / 2]: slow frequencies divided by the factor, fast ones kept, those between interpolated by their wavelength."""
  low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
  trained = rope.get("original_max_position_embeddings") or n_ctx
  turns = trained / (2 * np.pi / plain)  # in the trained context
  kept = np.clip((turns - low) / (high - low), 0, 1)
  return ((1 - kept) * plain / float(rope["factor"]) + kept * plain).astype(np.float32)


def _yarn(plain: np.ndarray, theta: float, rope: Mapping, width: int, n_ctx: int) -> tuple[np.ndarray, float]:
  """Frequencies float32[K / 2] and the factor on cos and sin.

  Dimensions with many turns in the trained context are kept, those with less than one are divided by the factor.
  """
  trained = rope.get("original_max_position_embeddings") or n_ctx
  factor = n_ctx / trained if rope["factor"] is None else float(rope["factor"])

  def dimension(turns):  # the one with so many turns in the trained context
    return width * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

  first, last = dimension(rope.get("beta_fast") or 32), dimension(rope.get("beta_slow") or 1)
  if rope.get("truncate", True):
    first, last = math.floor(first), math.ceil(last)
  first, last = max(first, 0), min(last, width - 1)
  last += 0.001 if first == last else 0
  divided = np.clip((np.arange(width // 2, dtype=np.float32) - first) / (last - first), 0, 1)
  scaled = plain / factor * divided + plain * (1 - divided)

  def gain(of=1.0):
    return 1.0 if factor <= 1 else 0.1 * of * math.log(factor) + 1.0

  stated, one, all_ = rope.get("attention_factor"), rope.get("mscale"), rope.get("mscale_all_dim")
  if stated is None:
    stated = gain(one) / gain(all_) if one and all_ else gain()
  return scaled.astype(np.float32), float(stated)
