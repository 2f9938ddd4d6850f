"""The circuit panel: the picture of a circuit.json, and what the clicked node carries, with the preimages that lie beside the file."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import parse_json, path_of, read_json
from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.show.circuit_picture import contents, details, drawing, page
from inversionview_jax.show.circuit_picture.contents import Circuit, Node
from inversionview_jax.show.circuit_picture.layout import NARROW, WIDE
from inversionview_jax.show.circuit_picture.style import highlight
from inversionview_jax.show.explorer.panels import action, card, pick

_REMEDY = "give a circuit.json, or the folder that `inversionview circuit --out` wrote"
MOST_BYTES = 20 * 2**20  # of a file that is picked in the browser


@dataclasses.dataclass(frozen=True)
class OpenedCircuit:
  """A circuit and the folder of its files; None of one that was picked in the browser."""

  circuit: Circuit
  folder: pathlib.Path | None = None

  @classmethod
  def of_path(cls, path: "str | os.PathLike") -> "OpenedCircuit":
    """Reads a circuit.json, or that of a folder.

    Raises:
      InversionViewError: no such file, or one that is not a circuit's.
    """
    given = path_of(path)
    file = given / "circuit.json" if given.is_dir() else given
    return cls(contents.read(read_json(file, _REMEDY)), file.parent)

  @classmethod
  def of_text(cls, text: str, name: str) -> "OpenedCircuit":
    """Reads the content of a circuit.json; raises `InversionViewError` for another."""
    return cls(contents.read(parse_json(text, name, _REMEDY)))

  def node(self, name: str) -> Node | None:
    """The node of this name."""
    return next((node for node in self.circuit.nodes if node.name == name), None)

  def preimages(self, node: Node) -> list[Preimage]:
    """Those of a node that lie beside the circuit; files elsewhere are not opened, whatever the circuit names.

    Raises:
      InversionViewError: a file that is damaged.
    """
    if self.folder is None:
      return []
    root, found = self.folder.resolve(), []
    for query in node.queries:
      path = (root / query.file).resolve()
      if query.file and path.is_relative_to(root) and path.is_file():
        found.append(Preimage.from_json(path))
    return found


def query_of(circuit: Circuit, node: Node) -> dict[str, str]:
  """The fields of a view that shows a node's preimage: text, site and position.

  Raises:
    InversionViewError: of a node that stands for several positions and was read at none.
  """
  read = node.query
  if node.position != "rest":
    position = node.position
  elif read is not None and read.position is not None:
    position = str(read.position)
  else:
    raise InversionViewError(f"the node {node.name!r} stands for all positions without a label and was read at none")
  return {"text": read.text if read is not None else circuit.clean, "site": node.site, "position": position}


def overview(opened: OpenedCircuit) -> str:
  """The whole picture with its faithfulness; a click on a node chooses it."""
  circuit = opened.circuit
  return card(
    f"{_head(circuit)}{_pictures(circuit, None)}{page.legend(circuit)}{page.faithfulness(circuit)}", "", "ex-circuit"
  )


def node_panel(opened: OpenedCircuit, node: Node, preimages: Sequence[Preimage], reader: str) -> str:
  """The picture in small, and beside it all of the chosen node.

  Args:
    opened: the circuit.
    node: that was clicked.
    preimages: of the node, as they were saved.
    reader: name of the reader or target from which the node's preimage can be drawn here; "" for none.
  """
  circuit = opened.circuit
  opens = ""
  if reader:
    try:
      query = query_of(circuit, node)
      opens = f'{pick("draw its preimage", reader=reader, panel="reading", **query)} class="ex-chip">draw its preimage</button> '
    except InversionViewError as error:
      opens = f"<small>{escape(str(error))}</small> "
  else:
    opens = f"<small>No reader or target named {escape(circuit.target)} is open here, from which its preimage could be drawn.</small> "
  close = f'{pick("back to the whole circuit", node="")} class="ex-chip">whole circuit</button>'
  inside = details.inside(circuit, node, preimages, lambda name: _link(name), files=False)
  beside = (
    f'<section class="cp-detail"><h2><code>{escape(node.site)}</code> at <code>{escape(node.position)}</code></h2>'
    f'<p class="ex-chips">{opens}{close}</p>{inside}</section>'
  )
  style = f"<style>{highlight(circuit.nodes.index(node))}</style>"
  body = f'{style}{_head(circuit)}<div class="ex-node"><div class="ex-small-picture">{_pictures(circuit, node)}</div>{beside}</div>'
  return card(body, "", "ex-circuit")


def _head(circuit: Circuit) -> str:
  return f"<h2>{escape(circuit.title)}<small> · {circuit.size} of {circuit.total_nodes:,} nodes, faithfulness {circuit.faithfulness.percent()}</small></h2>"


def _pictures(circuit: Circuit, chosen: Node | None) -> str:
  """The picture for a wide window and for a phone; of a chosen node the latter alone."""

  def link(node: Node) -> str:
    return _link(node.name, str(node is chosen).lower())

  narrow = f'<div class="cp-narrow">{drawing.picture(circuit, NARROW, link=link)}</div>'
  if chosen is not None:
    return narrow
  return f'<div class="cp-wide">{drawing.picture(circuit, WIDE, link=link)}</div>{narrow}'


def _link(name: str, pressed: str = "false") -> str:
  """Attributes of an element that chooses a node."""
  return f'role="button" tabindex="0" aria-pressed="{pressed}" data-pick="{action(node=name)}"'
