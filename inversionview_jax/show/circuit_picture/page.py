"""A self-contained page of a circuit: picture, faithfulness curve, table of nodes, and the details of the node that the address names.

No script: a node is a link to its section, which CSS shows while it is the target of the address. So it works by mouse, by keyboard and by
touch, the browser's back button closes it, and a link to a node can be sent.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.preimage.render.pages import document
from inversionview_jax.show.circuit_picture import contents, curve, details, drawing
from inversionview_jax.show.circuit_picture.contents import Circuit, Node
from inversionview_jax.show.circuit_picture.layout import NARROW, WIDE
from inversionview_jax.show.circuit_picture.style import EDGES, NODE_STYLE, PAGE_STYLE, PICTURE_STYLE, highlight


def circuit_page(data: Mapping[str, Any], preimages: Mapping[str, Sequence[Mapping[str, Any]]] = {}) -> str:
  """A self-contained HTML page of a circuit, for a window of any width and for paper.

  Args:
    data: the content of a circuit.json.
    preimages: name of a node -> the content of its preimages' JSON files; of each, 20 samples at most are shown.

  Returns:
    The page; it loads nothing and runs no script.

  Raises:
    InversionViewError: another format, a newer version of it, a part that is missing or malformed, or preimages of no node of the circuit.
  """
  circuit = contents.read(data)
  read = details.parse_preimages(circuit, preimages)

  def link(node: Node) -> str:
    return f'href="#{details.anchor(circuit, node.name)}"'

  pictures = (
    f'<div class="cp-wide">{drawing.picture(circuit, WIDE, link=link)}</div>'
    f'<div class="cp-narrow">{drawing.picture(circuit, NARROW, link=link)}</div>'
  )
  sections = "".join(details.section(circuit, node, read.get(node.name, ())) for node in circuit.nodes)
  body = (
    f"<header>{_head(circuit)}</header>\n"
    f'<div class="cp-top"><div class="inversionview cp-picture" id="picture">{pictures}{legend(circuit)}</div>\n'
    f'<aside class="cp-side"><div class="inversionview cp-faith">{faithfulness(circuit)}</div>\n{sections}</aside></div>\n'
    f'<div class="inversionview cp-below">{_table(circuit)}{_edge_table(circuit)}{_curve_table(circuit)}{_settings(circuit)}</div>\n'
  )
  marks = "".join(highlight(k, f"body:has(#node-{k}:target)") for k in range(len(circuit.nodes)))
  return document(circuit.title, body, PICTURE_STYLE + NODE_STYLE + PAGE_STYLE + marks)


def _head(circuit: Circuit) -> str:
  parts = [f"task {escape(circuit.task)}", f"{circuit.pairs:,} pairs of inputs"]
  if circuit.clean:
    pair = f"<code>{escape(circuit.clean)}</code>"
    if circuit.corrupted:
      pair += f" against <code>{escape(circuit.corrupted)}</code>"
    parts.append(f"such as {pair}")
  if circuit.target_runs:
    parts.append(f"{circuit.target_runs:,} target runs")
  parts.append(f"inversionview_jax {escape(circuit.version)}")
  return f'<h1>{escape(circuit.title)}</h1><p class="cp-about">{" · ".join(parts)}</p>'


def faithfulness(circuit: Circuit) -> str:
  """The figures of the circuit and its curve."""
  figures = [("nodes", f"{circuit.size} of {circuit.total_nodes:,}"), ("faithfulness", circuit.faithfulness.percent())]
  if (other := circuit.random_faithfulness) is not None:
    figures.append(("random, same size", other.percent()))
  if circuit.cpr is not None:
    against = f" <small>random {circuit.random_cpr:.2f}</small>" if circuit.random_cpr is not None else ""
    figures.append(("CPR", f"{circuit.cpr:.2f}{against}"))
  if circuit.cmd is not None:
    figures.append(("CMD", f"{circuit.cmd:.3f}"))
  listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
  drawn = curve.curve(circuit)
  note = (
    "Faithfulness: the share of the answer's logit difference that stays when every node outside the circuit has its activation on the other "
    "input of the pair. CPR: area under the curve; CMD: area between it and 1. Bands: one standard error."
  )
  keys = '<span class="cp-line-ours">the circuit</span> <span class="cp-line-random">random circuits</span>'
  return f'<h2>Faithfulness</h2><dl class="cp-figures">{listed}</dl>{drawn}<p class="cp-keys">{keys if drawn else ""}</p><p class="iv-note">{note}</p>'


def legend(circuit: Circuit) -> str:
  """The meaning of colors, widths and numbers."""
  used = {edge.through for edge in circuit.edges}
  keys = "".join(
    f'<span><i class="cp-key cp-key-{through}"></i>{name}</span>'
    for through, (name, _, _) in EDGES.items()
    if through in used
  )
  if any(edge.effect.mean < 0 for edge in circuit.edges):
    keys += '<span><i class="cp-key cp-key-minus"></i>against the answer</span>'
  left_out = drawing.left_out(circuit)
  more = f" The {left_out} weakest edges are not drawn; they are in the list of edges." if left_out else ""
  return (
    f'<p class="cp-keys">{keys}</p><p class="iv-note">Edges run upwards, the wider the stronger. On a node: the share of the answer\'s change '
    "when it alone is patched, also as a bar, and what it encodes, with the share of inputs inside ε that have it (grey: encoded in part). "
    f"Round corners: heads; square: MLPs. Click a node, or choose it with Tab and Enter, for its properties and its preimage.{more}</p>"
  )


def _table(circuit: Circuit) -> str:
  """The nodes, the most important first."""
  rows = "".join(_row(circuit, node) for node in circuit.by_order)
  names = ("", "node", "share", "attribution", "bits", "encodes", "inside ε")
  head = "".join(f'<th scope="col">{name}</th>' for name in names)
  return f'<h2>Nodes</h2><table class="cp-nodes"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n'


def _row(circuit: Circuit, node: Node) -> str:
  encoded = "; ".join(
    f"{escape(drawing.carries(e))}{'' if e.verdict == 'encodes' else ' <small>in part</small>'}"
    for e in node.encodes[:3]
  )
  if not encoded:
    encoded = f"<small>{escape(node.problem) or 'none of the features'}</small>"
  bits = "" if node.bits is None else f"{node.bits.mean:.1f}"
  attribution = "" if node.attribution is None else f"{100 * node.attribution:.0f} %"
  inside = "" if node.query is None else f"{node.query.inside:,}"
  cells = [
    ("share", node.effect.percent()),
    ("attribution", attribution),
    ("bits", bits),
    ("encodes", encoded),
    ("inside ε", inside),
  ]
  body = "".join(f'<td data-name="{name}">{value}</td>' for name, value in cells)
  link = f'<a href="#{details.anchor(circuit, node.name)}">{escape(node.name)}</a>'
  return f'<tr><td class="cp-rank">{node.order}</td><th scope="row">{link}</th>{body}</tr>'


def _edge_table(circuit: Circuit) -> str:
  if not circuit.edges:
    return ""
  lines = "".join(
    f'<li><i class="cp-key cp-key-{e.through}"></i>{escape(drawing.edge_text(e.source, e.target, e.through, e.effect))}</li>'
    for e in sorted(circuit.edges, key=lambda e: -abs(e.effect.mean))
  )
  return f'<details><summary>All {len(circuit.edges)} edges, strongest first</summary><ul class="cp-list">{lines}</ul></details>\n'


def _curve_table(circuit: Circuit) -> str:
  if not circuit.curve:
    return ""
  rows = "".join(
    f"<tr><td>{p.size}</td><td>{p.faithfulness.percent()}</td><td>{'' if p.random is None else p.random.percent()}</td>"
    f"<td><code>{escape(p.node)}</code></td></tr>"
    for p in circuit.curve
  )
  head = "".join(f'<th scope="col">{name}</th>' for name in ("nodes", "faithfulness", "random", "grew by"))
  return (
    "<details><summary>The curve as numbers</summary>"
    f'<table class="cp-numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details>\n'
  )


def _settings(circuit: Circuit) -> str:
  if not circuit.settings:
    return ""
  rows = "".join(
    f"<div><dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd></div>" for name, value in circuit.settings.items()
  )
  return f'<details><summary>Settings</summary><dl class="cp-settings">{rows}</dl></details>\n'
