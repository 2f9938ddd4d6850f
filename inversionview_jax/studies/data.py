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


def best(place: Mapping[str, Any]) -> Mapping[str, Any] | None:
  """The feature of a place's data that its row shows: the first that is named and verified, or named, or the one with the highest rate above its base."""
  features = place["reading"]["features"]
  if not features:
    return None
  named = [one for one in features if one["named"]]
  verified = [one for one in named if one["feature"] in place["verified"]]
  above = sorted(features, key=lambda one: one["base"] - one["rate"]["value"])
  return (verified or named or above)[0]


def patch_of(place: Mapping[str, Any], feature: str) -> Mapping[str, Any] | None:
  """The patch of a place's data that tests a feature."""
  return next((one for one in place["patches"] if one["feature"] == feature), None)


HEADINGS = (
  "site",
  "at",
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


def row(place: Mapping[str, Any]) -> tuple[str, ...]:
  """A place's row under `HEADINGS`."""
  one, direct, reading = best(place), place["direct"], place["reading"]
  patch = None if one is None else patch_of(place, one["feature"])
  rates = ("-", "-", "-", "-")
  if one is not None:
    control = "-" if one["control"] is None else f"{one['control']:.2f}"
    rates = (one["feature"], f"{one['rate']['value']:.2f}", f"{one['base']:.2f}", control)
  return (
    place["site"],
    place["position"],
    f"{reading['members']:.0f}",
    *rates,
    "-" if direct is None else _with_error(direct["difference"]),
    "-" if direct is None else f"{direct['rank']:.0f}",
    "-" if patch is None else _with_error(patch["only"]),
    "-" if patch is None else _with_error(patch["rest"]),
    place["verdict"],
  )


def _with_error(value: Mapping[str, Any]) -> str:
  return f"{value['mean']:.2f}" + ("" if value["se"] is None else f" ± {value['se']:.2f}")


def markdown(study: Mapping[str, Any]) -> str:
  """The study's summary, its roles where it has some, and its table of places, under the command that made it."""
  lines = ["```bash", study["command"], "```", "", *(f"{line}." for line in study["summary"]), ""]
  if roles := study.get("roles"):
    lines += _markdown_table(
      ("role", "heads here", "GPT-2 small (Wang et al., 2022)"),
      [(one["role"], one["heads"] or "none", one["published"]) for one in roles],
    )
    lines.append("")
  lines += _markdown_table(HEADINGS, [row(place) for place in study["places"]])
  return "\n".join(lines) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  return [f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *rows)]
