"""The circuit of a study's task: the nodes of one that `inversionview circuit` found, beside what the study knows of them."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of, read_json
from inversionview_jax.show.circuit_picture import contents
from inversionview_jax.studies.data import with_error

FILE = "circuit.json"


def opened(folder: "str | os.PathLike", task: str, target: str) -> dict[str, Any] | None:
  """The circuit in a folder as plain data; None where there is none yet.

  Args:
    folder: of `inversionview circuit`.
    task, target: names, which must be the circuit's.

  Raises:
    InversionViewError: a damaged file, or the circuit of another task or target.
  """
  path = path_of(folder) / FILE
  if not path.exists():
    return None
  data = read_json(path)
  found = contents.read(data)
  if (found.task, found.target) != (task, target):
    raise InversionViewError(
      f"{path} is a circuit of the task {found.task!r} in {found.target}, not of {task!r} in {target}: give another folder"
    )
  return data


def heads(data: Mapping[str, Any], positions: Sequence[str]) -> list[tuple[str, str]]:
  """Site and position of the circuit's heads at some positions, in the order in which they were kept."""
  return [(n["site"], n["position"]) for n in data["nodes"] if n["kind"] == "head" and n["position"] in positions]


def table(data: Mapping[str, Any], places: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
  """A row for each node: what its ablation takes, its role, and what its reading says.

  Args:
    data: of the circuit.
    places: of the study, as plain data.
  """
  known = {(place["site"], place["position"]): place for place in places}
  rows = []
  for node in data["nodes"]:
    place, effect = known.get((node["site"], node["position"])), node["effect"]
    taken = f"{100 * effect['mean']:.0f} %" + ("" if effect["se"] is None else f" ± {100 * effect['se']:.0f}")
    role, reading = (place["role"], place["verdict"]) if place else ("", "not read here")
    rows.append(
      {"node": f"{node['site']}@{node['position']}", "effect": taken, "role": role or "-", "reading": reading}
    )
  return rows


def summary(data: Mapping[str, Any]) -> str:
  """The circuit in one line."""
  return (
    f"a circuit of {len(data['nodes'])} of {data['total_nodes']:,} nodes keeps {with_error(data['faithfulness'])} of the logit difference "
    "while all others are resample-ablated"
  )
