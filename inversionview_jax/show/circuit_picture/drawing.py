"""The picture of a circuit as SVG: nodes by layer and position, edges by strength; light and dark, nothing loaded, no script."""

import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.show.circuit_picture import contents, layout
from inversionview_jax.show.circuit_picture.contents import LOGITS, Circuit, Encoded, Estimate, Node
from inversionview_jax.show.circuit_picture.layout import WIDE, Box, Layout, Sizes
from inversionview_jax.show.circuit_picture.style import EDGES, PICTURE_STYLE

Link = Callable[[Node], str]  # the attributes of the SVG element "a" around a node; "" for none
_CHARACTER = 6.3  # width of one at 11 px, of a wide font


def circuit_svg(data: Mapping[str, Any]) -> str:
  """The picture of a circuit as an SVG document with a legend, for a file of its own.

  Nodes lie in rows by layer (embeddings at the bottom, logits on top; layers without a node have no row) and in columns by position. Each has
  its name, the share of the answer's change that it brings when it alone is patched, and up to two properties that it encodes. Edges are the
  wider, the stronger they are (as the square root), dashed where they are negative, and colored by what they go through.

  Args:
    data: the content of a circuit.json.

  Returns:
    The SVG; it follows the color scheme of whoever looks at it.

  Raises:
    InversionViewError: another format, a newer version of it, or a part that is missing or malformed.
  """
  return picture(contents.read(data), WIDE, legend=True)


def picture(circuit: Circuit, sizes: Sizes = WIDE, legend: bool = False, link: Link = lambda node: "") -> str:
  """The picture as an SVG element.

  Args:
    circuit: any.
    sizes: `WIDE`; or `NARROW`, for a phone: cards have a name and a share only.
    legend: whether the picture explains itself and carries its style; else the page around it does both.
    link: node -> attributes of its link, such as 'href="#node-1"'.
  """
  drawn = layout.arrange(circuit, sizes)
  names = {node.name: f"cp-from-{k} " for k, node in enumerate(circuit.nodes)}
  into = {node.name: f"cp-to-{k} " for k, node in enumerate(circuit.nodes)}
  most = max((abs(route.edge.effect.mean) for route in drawn.routes), default=0.0) or 1.0
  body = _bands(drawn, sizes) + _columns(drawn, sizes)
  for route in drawn.routes:
    edge = route.edge
    # The square root, because one edge to the logits is often ten times as strong as all others.
    strength = math.sqrt(abs(edge.effect.mean) / most)
    thickest = 7 if sizes is WIDE else 4
    minus = "cp-minus " if edge.effect.mean < 0 else ""
    body += (
      f'<path class="cp-edge cp-{edge.through} {minus}{names.get(edge.source, "")}{into.get(edge.target, "")}" d="{route.path}" '
      f'stroke-width="{0.8 + thickest * strength:.1f}" stroke-opacity="{0.3 + 0.6 * strength:.2f}">'
      f"<title>{escape(edge_text(edge.source, edge.target, edge.through, edge.effect))}</title></path>"
    )
  body += "".join(_input(name, box, circuit.inputs[name], sizes) for name, box in drawn.inputs.items())
  body += _bar(drawn.logits, f"logits{f' of {circuit.answer}' if circuit.answer else ''}", "cp-logits")
  for k, node in enumerate(circuit.nodes):
    body += _node(k, node, drawn.cards[node.name], sizes, link(node))
  height, width = drawn.height, drawn.width
  if legend:
    width = max(width, 560)
    body, height = body + _legend(drawn, width, height), height + 64
  label = f"{circuit.title}: {len(circuit.nodes)} nodes, {len(circuit.edges)} edges, faithfulness {circuit.faithfulness.percent()}"
  style = f"<style>svg.cp{{color-scheme:light dark}}{PICTURE_STYLE}</style>" if legend else ""
  role = 'role="img"' if legend else 'role="group"'
  return (
    f'<svg xmlns="http://www.w3.org/2000/svg" class="cp" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
    f'{role} aria-label="{escape(label)}">{style}'
    f'<rect class="cp-ground" width="{width:.0f}" height="{height:.0f}"/>{body}</svg>\n'
  )


def left_out(circuit: Circuit) -> int:
  """How many edges are too weak to be drawn."""
  return max(len(circuit.edges) - layout.MOST_EDGES, 0)


def edge_text(source: str, target: str, through: str, effect: Estimate) -> str:
  """An edge as a line of text."""
  way = "" if target == LOGITS else f" through {EDGES[through][0]}"
  return f"{source} → {target}{way}: {effect.percent()}"


def carries(encoded: Encoded) -> str:
  """A property with the share of inputs inside epsilon that have it."""
  return f"{encoded.name} · {100 * encoded.rate:.0f} %"


def _bands(drawn: Layout, sizes: Sizes) -> str:
  """A band and a label for each layer."""
  bands = ""
  half = sizes.channel * 0.25
  for layer, top, bottom in drawn.layers:
    middle = (top + bottom) / 2 + 4
    name = f"layer {layer}" if sizes is WIDE else f"{layer}"
    bands += (
      f'<rect class="cp-band" x="0" y="{top - half:.1f}" width="{drawn.width:.0f}" height="{bottom - top + 2 * half:.1f}" rx="6"/>'
      f'<text class="cp-dim" x="8" y="{middle:.1f}">{name}</text>'
    )
  return bands


def _columns(drawn: Layout, sizes: Sizes) -> str:
  """The labels of positions, below the embeddings."""
  room = 14 if sizes is WIDE else 6
  return "".join(
    f'<text class="cp-pos" x="{middle:.1f}" y="{drawn.height - 8:.1f}" text-anchor="middle">{escape(_cut(position, room))}'
    f"<title>{escape(position)}</title></text>"
    for position, middle in drawn.columns
  )


def _input(name: str, box: Box, position: str, sizes: Sizes) -> str:
  return _bar(box, "embed" if sizes is WIDE else "emb", "cp-input", f"{name}: the embedding at {position}")


def _bar(box: Box, text: str, name: str, title: str = "") -> str:
  """A rounded box with one line of text."""
  tip = f"<title>{escape(title)}</title>" if title else ""
  return (
    f'<g class="{name}">{tip}<rect class="cp-card" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{box.height / 2:.0f}"/>'
    f'<text class="cp-small" x="{box.x + box.width / 2:.1f}" y="{box.y + box.height / 2 + 4:.1f}" text-anchor="middle">{escape(text)}</text></g>'
  )


def _node(number: int, node: Node, box: Box, sizes: Sizes, link: str) -> str:
  """A card: heads have round corners, MLPs square ones; the bar along its lower edge is the share."""
  wide = sizes is WIDE
  share, edge = node.effect.mean, 9 if node.kind == "head" else 2
  x, y = box.x, box.y
  text = f'<text class="cp-name{"" if wide else " cp-small"}" x="{x + 8 if wide else x + box.width / 2:.1f}" y="{y + (17 if wide else 14):.1f}"'
  text += f' text-anchor="{"start" if wide else "middle"}">{escape(_cut(node.site, 11 if wide else 6))}</text>'
  text += (
    f'<text class="cp-share{"" if wide else " cp-small"}" x="{x + box.width - 8 if wide else x + box.width / 2:.1f}" '
    f'y="{y + (17 if wide else 26):.1f}" text-anchor="{"end" if wide else "middle"}">{node.effect.percent(error=False)}</text>'
  )
  if wide:
    lines = _lines(node, int((box.width - 16) / _CHARACTER))
    text += "".join(
      f'<text class="cp-small{dim}" x="{x + 8:.1f}" y="{y + 31 + 13 * k:.1f}">{escape(line)}</text>'
      for k, (line, dim) in enumerate(lines)
    )
  length = min(abs(share), 1.0) * (box.width - 2 * edge)
  mark = (
    f'<rect class="{"cp-bar" if share >= 0 else "cp-under"}" x="{x + edge:.1f}" y="{y + box.height - 4:.1f}" '
    f'width="{length:.1f}" height="3" rx="1.5"/>'
  )
  described = f"{node.name}: share {node.effect.percent()}"
  described += "".join(f"; {encoded.verdict} {carries(encoded)}" for encoded in node.encodes[:3])
  card = (
    f"<title>{escape(described)}</title>"
    f'<rect class="cp-card" x="{x:.1f}" y="{y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="{edge}"/>{text}{mark}'
  )
  if not link:
    return f'<g class="cp-node cp-n-{number}">{card}</g>'
  return f'<a class="cp-node cp-n-{number}" {link} aria-label="{escape(described)}">{card}</a>'


def _lines(node: Node, room: int) -> list[tuple[str, str]]:
  """Up to two lines of at most `room` characters on what a node encodes, each with the class of its text.

  A wide card has two properties with their rates; a narrow one has the first alone.
  """
  if not node.encodes:
    return [("not read" if node.problem else "no property", " cp-dim")]
  if room >= 15:
    rates = [f" · {100 * encoded.rate:.0f} %" for encoded in node.encodes[:2]]
    return [
      (_cut(encoded.name, room - len(rate)) + rate, _dim(encoded))
      for encoded, rate in zip(node.encodes[:2], rates, strict=True)
    ]
  name = node.encodes[0].name
  lines = textwrap.wrap(name, room, break_long_words=True) or [""]
  if len(lines) > 2:
    lines = [lines[0], f"{lines[1][: room - 1]}…"]
  return [(line, _dim(node.encodes[0])) for line in lines]


def _dim(encoded: Encoded) -> str:
  """The class of what is encoded in part only."""
  return "" if encoded.verdict == "encodes" else " cp-dim"


def _cut(text: str, most: int) -> str:
  return text if len(text) <= most else f"{text[: max(most - 1, 1)]}…"


def _legend(drawn: Layout, width: float, top: float) -> str:
  """The meaning of colors, widths and numbers, in two lines below the picture."""
  x, parts = 12.0, ""
  used = {route.edge.through for route in drawn.routes}
  for through, (name, _, _) in EDGES.items():
    if through in used:
      parts += f'<path class="cp-edge cp-{through}" stroke-width="4" d="M{x:.0f} {top + 16:.0f}h22"/>'
      parts += f'<text class="cp-small" x="{x + 28:.0f}" y="{top + 20:.0f}">{name}</text>'
      x += 44 + 6.3 * len(name)
  if any(route.edge.effect.mean < 0 for route in drawn.routes):
    parts += f'<path class="cp-edge cp-v cp-minus" stroke-width="3" d="M{x:.0f} {top + 16:.0f}h22"/>'
    parts += f'<text class="cp-small" x="{x + 28:.0f}" y="{top + 20:.0f}">dashed: against the answer</text>'
  more = f" {drawn.left_out} weaker edges are not drawn." if drawn.left_out else ""
  for k, line in enumerate(
    (
      "Number and bar of a node: share of the answer's change when it alone is patched. Below: properties that",
      f"it encodes, with the share of inputs inside ε that have them. Round corners: heads; square: MLPs.{more}",
    )
  ):
    parts += f'<text class="cp-small cp-dim" x="12" y="{top + 37 + 15 * k:.0f}">{line}</text>'
  return parts
