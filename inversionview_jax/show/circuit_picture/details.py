"""What a page tells of one node: what it encodes, how sure that is, its edges, and its preimages."""

import json
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render import formatting, fragments
from inversionview_jax.preimage.render.fragments import DisplayOptions, escape
from inversionview_jax.show.circuit_picture.contents import LOGITS, Circuit, Edge, Encoded, Node
from inversionview_jax.show.circuit_picture.style import EDGES

_SAMPLES = 20  # of each preimage
_OPTIONS = DisplayOptions(_SAMPLES, notes=False, compact=True)


def parse_preimages(
  circuit: Circuit, preimages: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[Preimage]]:
  """The preimages of each node, read from plain data.

  Raises:
    InversionViewError: for one of a node that the circuit does not have, and for data that is no preimage.
  """
  known = {node.name for node in circuit.nodes}
  parsed = {}
  for name, listed in preimages.items():
    if name not in known:
      raise InversionViewError(f"preimages of {name!r}: the circuit has no such node; give those of its own nodes")
    parsed[name] = [Preimage.from_json(json.dumps(dict(table))) for table in listed]
  return parsed


def anchor(circuit: Circuit, name: str) -> str:
  """The id of a node's section."""
  return f"node-{next(k for k, node in enumerate(circuit.nodes) if node.name == name)}"


def section(circuit: Circuit, node: Node, preimages: Sequence[Preimage]) -> str:
  """All of one node, shown while the address names it."""
  body = inside(circuit, node, preimages, lambda name: f'href="#{anchor(circuit, name)}"')
  close = '<a class="cp-close" href="#picture">close</a>'
  return (
    f'<section class="inversionview cp-detail" id="{anchor(circuit, node.name)}" tabindex="-1" aria-label="{escape(node.name)}">'
    f"<h2><code>{escape(node.site)}</code> at <code>{escape(node.position)}</code>{close}</h2>{body}</section>\n"
  )


def inside(
  circuit: Circuit, node: Node, preimages: Sequence[Preimage], link: Callable[[str], str], files: bool = True
) -> str:
  """All of one node without its heading.

  Args:
    circuit, node: what is shown.
    preimages: of the node; of each, 20 samples at most are shown.
    link: name of a node -> attributes of a link to it.
    files: whether files of preimages are linked, which lie beside the page.
  """
  body = f"<p>{_figures(circuit, node)}</p>"
  if node.problem:
    body += f'<p class="cp-problem">{escape(node.problem)}</p>'
  body += properties(node) + _edges(circuit, node, link) + _read_at(node, bool(preimages), files)
  return body + "".join(_preimage(p) for p in preimages)


def _figures(circuit: Circuit, node: Node) -> str:
  parts = [f"<b>{node.effect.percent()}</b> of the answer's change when it alone is patched"]
  parts.append(f"number {node.order} of {len(circuit.nodes)} by importance")
  if node.attribution is not None:
    parts.append(f"attribution {100 * node.attribution:.0f} %")
  if node.bits is not None:
    error = "" if node.bits.se is None else f" ± {node.bits.se:.1f}"
    parts.append(f"{node.bits.mean:.1f}{error} bits")
  return " · ".join(parts)


def properties(node: Node) -> str:
  """The properties that it encodes, most certain first, with the causal test of each where it was made."""
  if not node.encodes:
    return '<p class="cp-none">It encodes none of the task\'s features for certain.</p>' if not node.problem else ""
  causal = any(encoded.only is not None or encoded.rest is not None for encoded in node.encodes)
  names = ["inside ε", "random", "control", *(["only it", "all but it"] if causal else [])]
  head = "".join(f'<th scope="col">{name}</th>' for name in ("it encodes", *names))
  rows = "".join(_property(encoded, causal) for encoded in node.encodes)
  note = (
    "inside ε, random, control: inputs that have the property, inside ε, anywhere, and inside ε of another activation"
  )
  if causal:
    note += (
      "; only it, all but it: share of the causal effect when inputs differ in the property alone, and in all but it"
    )
  return (
    f'<table class="iv-features cp-features"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    f'<p class="iv-note">{note}</p>\n'
  )


def _property(encoded: Encoded, causal: bool) -> str:
  numbers = [encoded.rate, encoded.base, encoded.control]
  if causal:
    numbers += [encoded.only, encoded.rest]
  cells = "".join(f"<td>{'' if value is None else f'{100 * value:.0f} %'}</td>" for value in numbers)
  partly = "" if encoded.verdict == "encodes" else " <small>in part</small>"
  return f'<tr><th scope="row">{escape(encoded.name)}{partly}</th>{cells}</tr>'


def _edges(circuit: Circuit, node: Node, link: Callable[[str], str]) -> str:
  """What reaches the node and where it goes, strongest first."""
  into = sorted((e for e in circuit.edges if e.target == node.name), key=lambda e: -abs(e.effect.mean))
  out = sorted((e for e in circuit.edges if e.source == node.name), key=lambda e: -abs(e.effect.mean))
  lists = ""
  for title, edges in (("from", into), ("to", out)):
    if edges:
      lines = "".join(f"<li>{_edge(circuit, edge, title == 'from', link)}</li>" for edge in edges)
      lists += f"<div><dt>{title}</dt><dd><ul>{lines}</ul></dd></div>"
  return f'<dl class="cp-edges">{lists}</dl>\n' if lists else ""


def _edge(circuit: Circuit, edge: Edge, into: bool, link: Callable[[str], str]) -> str:
  other = edge.source if into else edge.target
  name = f"<code>{escape(other)}</code>"
  if any(node.name == other for node in circuit.nodes):
    name = f"<a {link(other)}>{name}</a>"
  way = "" if edge.target == LOGITS else f" · {EDGES[edge.through][0]}"
  return f'<i class="cp-key cp-key-{edge.through}"></i>{name}{way} · {edge.effect.percent()}'


def _read_at(node: Node, embedded: bool, files: bool) -> str:
  """The queries at which it was read, with the files of their preimages."""
  lines = ""
  for query in node.queries:
    file = f' · <a href="{escape(urllib.parse.quote(query.file))}">preimage</a>' if query.file and files else ""
    lines += f"<li><code>{escape(query.text)}</code> · {query.inside:,} inside ε{file}</li>"
  if not lines:
    return ""
  fold = "details" if embedded and len(node.queries) > 1 else "details open"
  return (
    f"<{fold}><summary>Read at {len(node.queries)} input{'s' * (len(node.queries) > 1)}</summary>"
    f'<ul class="cp-read">{lines}</ul></details>\n'
  )


def _preimage(p: Preimage) -> str:
  """A preimage's query, counts and samples."""
  first = formatting.counts(p, (), 0)[0]
  return (
    f'<div class="cp-preimage"><h3>Preimage</h3>{fragments.query_line(p.query, notes=False)}'
    f'<p class="iv-count"><b>{escape(first)}</b></p>{fragments.samples(p, _OPTIONS)}</div>\n'
  )
