"""A study's result as plain data, and as a table for the terminal. Needs no JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from inversionview_jax._version import __version__
from inversionview_jax.studies.places import PlaceStudy

FORMAT, FORMAT_VERSION = "inversionview-study", 1


def result(
  task: str,
  target: Mapping[str, Any],
  command: str,
  settings: Mapping[str, Any],
  places: Sequence[PlaceStudy],
  **more: Any,
) -> dict[str, Any]:
  """Everything but the preimages.

  Args:
    task: name of the task.
    target: `Target.describe()`.
    command: by which it was made.
    settings: of the study and of the inputs.
    places: that were read.
    **more: of the task's own.
  """
  return {
    "format": FORMAT,
    "format_version": FORMAT_VERSION,
    "version": __version__,
    "task": task,
    "target": dict(target),
    "command": command,
    "settings": dict(settings),
    **more,
    "places": [place.to_data() for place in places],
  }


def best(place: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
  """The reading and its feature that the row of a place's data shows; None where nothing could be read.

  The first that is named and verified, of the reading with the largest epsilon; or the first that is named; or, at the task's epsilon, that
  with the highest rate above its base.
  """
  pairs = [(reading, one) for reading in place["readings"] for one in reading["features"]]
  if not pairs:
    return None
  named = [pair for pair in pairs if pair[1]["named"]]
  verified = [pair for pair in named if pair[1]["feature"] in place["verified"]]
  coarsest = [pair for pair in pairs if pair[0] is pairs[0][0]]
  above = sorted(coarsest, key=lambda pair: pair[1]["base"] - pair[1]["rate"]["value"])
  return (verified or named or above)[0]


def patch_of(place: Mapping[str, Any], feature: str) -> Mapping[str, Any] | None:
  """The patch of a place's data that tests a feature."""
  return next((one for one in place["patches"] if one["feature"] == feature), None)


HEADINGS = (
  "site",
  "at",
  "epsilon",
  "members",
  "feature",
  "rate",
  "base",
  "control",
  "direct effect",
  "rank",
  "patch",
  "same value",
  "verdict",
)


ROLE_HEADINGS = ("role", "heads here", "GPT-2 small (Wang et al., 2022)")
NODE_HEADINGS = ("node of the circuit", "its ablation takes", "role", "reading")


def role_row(role: Mapping[str, str]) -> tuple[str, ...]:
  """A role's row under `ROLE_HEADINGS`."""
  return role["role"], role["heads"] or "none", role["published"]


def node_row(node: Mapping[str, str]) -> tuple[str, ...]:
  """The row of a circuit's node under `NODE_HEADINGS`."""
  return node["node"], node["effect"], node["role"], node["reading"]


def row(place: Mapping[str, Any]) -> tuple[str, ...]:
  """A place's row under `HEADINGS`."""
  found, direct = best(place), place["direct"]
  read, patch = ("-",) * 6, None
  if found is not None:
    reading, one = found
    patch = patch_of(place, one["feature"])
    control = "-" if one["control"] is None else f"{one['control']:.2f}"
    rates = (one["feature"], f"{one['rate']['value']:.2f}", f"{one['base']:.2f}", control)
    read = (f"{reading['epsilon']:g}", f"{reading['members']:.0f}", *rates)
  return (
    place["site"],
    place["position"],
    *read,
    "-" if direct is None else with_error(direct["difference"]),
    "-" if direct is None else f"{direct['rank']:.0f}",
    "-" if patch is None else with_error(patch["only"]),
    "-" if patch is None else with_error(patch["rest"]),
    place["verdict"],
  )


def with_error(value: Mapping[str, Any]) -> str:
  """An estimate with its standard error, to two digits."""
  return f"{value['mean']:.2f}" + ("" if value["se"] is None else f" ± {value['se']:.2f}")


def markdown(study: Mapping[str, Any]) -> str:
  """The study's summary, its roles where it has some, and its table of places, under the command that made it."""
  lines = ["```bash", study["command"], "```", "", *(f"{line}." for line in study["summary"]), ""]
  if roles := study.get("roles"):
    lines += [*_markdown_table(ROLE_HEADINGS, list(map(role_row, roles))), ""]
  if nodes := study.get("circuit"):
    lines += [*_markdown_table(NODE_HEADINGS, list(map(node_row, nodes))), ""]
  lines += _markdown_table(HEADINGS, [row(place) for place in study["places"]])
  return "\n".join(lines) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
