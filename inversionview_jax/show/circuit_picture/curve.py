"""Faithfulness over the size of the circuit, as SVG: its nodes in the order in which they join, and random circuits of the same sizes."""

import math
from collections.abc import Callable, Sequence

from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.show.circuit_picture.contents import Circuit, Estimate, Point

_WIDTH, _HEIGHT = 400, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40
_LINEAR = (
  40  # nodes up to which the axis is linear; beyond it is logarithmic, because what matters lies among the first
)


def curve(circuit: Circuit) -> str:
  """The curve as an SVG element; "" where there is none."""
  points = circuit.curve
  if not points:
    return ""
  x, y = _axes(points)
  ticks = _size_ticks(points[-1].size)
  body = ""
  low, high = _range(points)
  for value in _steps(low, high):
    body += f'<path class="cp-grid" d="M{_LEFT} {y(value):.1f}H{_WIDTH - _RIGHT}"/>'
    body += f'<text class="cp-dim cp-small" x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{100 * value:.0f} %</text>'
  for size in ticks:
    side = "middle" if x(size) < _WIDTH - 30 else "end"
    at = x(size) if side == "middle" else _WIDTH - 2
    body += f'<text class="cp-dim cp-small" x="{at:.1f}" y="{_HEIGHT - 24}" text-anchor="{side}">{size}</text>'
  scale = "" if points[-1].size <= _LINEAR else ", logarithmic"
  body += f'<text class="cp-dim cp-small" x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">nodes in the circuit{scale}</text>'
  random = [(x(p.size), p.random) for p in points if p.random is not None]
  ours = [(x(p.size), p.faithfulness) for p in points]
  body += _band(random, y, "cp-random-band") + _line(random, y, "cp-random")
  body += _band(ours, y, "cp-ours-band") + _line(ours, y, "cp-ours")
  at = x(circuit.size)
  body += f'<path class="cp-size" d="M{at:.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>'
  body += "".join(_dot(p, x(p.size), y, 2.5 if len(points) < 60 else 1.2) for p in points)
  chosen = f"{circuit.size} nodes: {circuit.faithfulness.percent()}"
  body += f'<circle class="cp-chosen" cx="{at:.1f}" cy="{y(circuit.faithfulness.mean):.1f}" r="5"/>'
  label = f"faithfulness over the number of nodes; {chosen}"
  if (other := circuit.random_faithfulness) is not None:
    label += f", random circuits of this size {other.percent()}"
  return (
    f'<svg class="cp cp-curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{body}</svg>\n'
  )


def _axes(points: Sequence[Point]) -> tuple[Callable[[float], float], Callable[[float], float]]:
  """Functions from a size and from a share to coordinates."""
  most = max(points[-1].size, 1)
  low, high = _range(points)

  def x(size: float) -> float:
    share = size / most if most <= _LINEAR else math.log1p(size) / math.log1p(most)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

  def y(value: float) -> float:
    inside = min(max(value, low), high)
    return _TOP + (high - inside) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

  return x, y


def _range(points: Sequence[Point]) -> tuple[float, float]:
  """From 0 to 1, and further where the curve goes further, at most from -1 to 2."""
  means = [p.faithfulness.mean for p in points] + [p.random.mean for p in points if p.random is not None]
  return max(math.floor(4 * min(0.0, *means)) / 4, -1.0), min(math.ceil(4 * max(1.0, *means)) / 4, 2.0)


def _steps(low: float, high: float) -> list[float]:
  step = 0.25 if high - low <= 1.25 else 0.5
  return [k * step for k in range(round(low / step), round(high / step) + 1)]


def _size_ticks(most: int) -> list[int]:
  if most <= _LINEAR:
    step = max(1, -(-most // 8))
    return list(range(0, most + 1, step))
  ticks = [k * 10**e for e in range(len(str(most))) for k in (1, 3) if 1 < k * 10**e < 0.7 * most]
  return [0, *ticks, most]


def _line(points: Sequence[tuple[float, Estimate]], y: Callable[[float], float], name: str) -> str:
  way = "L".join(f"{x:.1f} {y(value.mean):.1f}" for x, value in points)
  return f'<path class="{name}" d="M{way}"/>' if points else ""


def _band(points: Sequence[tuple[float, Estimate]], y: Callable[[float], float], name: str) -> str:
  """One standard error to both sides."""
  known = [(x, value.mean, value.se) for x, value in points if value.se is not None]
  if len(known) < 2:
    return ""
  above = [f"{x:.1f} {y(mean + se):.1f}" for x, mean, se in known]
  below = [f"{x:.1f} {y(mean - se):.1f}" for x, mean, se in reversed(known)]
  return f'<path class="{name}" d="M{"L".join(above + below)}Z"/>'


def _dot(point: Point, x: float, y: Callable[[float], float], radius: float) -> str:
  text = f"{point.size} nodes: {point.faithfulness.percent()}"
  text += f", with {point.node}" if point.node else ""
  text += f"; random {point.random.percent()}" if point.random is not None else ""
  return f'<circle class="cp-point" cx="{x:.1f}" cy="{y(point.faithfulness.mean):.1f}" r="{radius}"><title>{escape(text)}</title></circle>'
