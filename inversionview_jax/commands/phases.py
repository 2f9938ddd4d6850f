"""Training in phases: `phases` of a config is a tuple of settings, each of which holds for one run that starts from the model of the run before."""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_keys
from inversionview_jax.errors import InversionViewError
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from ml_collections import ConfigDict

FOLDER = "phases"  # of the workdir: models of all phases but the last, which is the run's own model


@dataclasses.dataclass(frozen=True)
class Phase:
  """One run of several.

  Attributes:
    config: of the run, without `phases`.
    folder: of its model.
    title: what is printed first; "" of a config without phases.
    finished: whether its model is there and need not be trained.
  """

  config: "ConfigDict"
  folder: pathlib.Path
  title: str = ""
  finished: bool = False


def of(
  config: "ConfigDict", workdir: pathlib.Path, name: str, start: str, overrides: Sequence[str] = (), block: str = ""
) -> list[Phase]:
  """The runs of a config, one if it has no phases.

  Args:
    config: of the training; `phases` is a tuple of {dotted key: value}.
    workdir: of the command.
    name: of the model's folder in it, "decoder" or "target".
    start: dotted key of the folder that a run starts from.
    overrides: arguments such as "--config.steps=100".
    block: of the config that these settings are, "target." or all of it.

  Raises:
    InversionViewError: a phase that is no block of settings, with a key that the config does not have; or an override that each phase
      overrides again.
  """
  settings, folder = config_keys.are_phases("phases", config.get("phases") or ()), workdir / name
  if not settings:
    return [Phase(_changed(config, {}), folder)]
  given = {one.split("=")[0].removeprefix(f"--config.{block}") for one in overrides}
  both = sorted(given & {key for changes in settings for key in changes})
  if both:
    raise InversionViewError(
      f"--config.{block}{both[0]} changes nothing, because phases of the config set it: change {block}phases in a copy of its file, or give "
      f"--config.{block}phases='()'"
    )
  found: list[Phase] = []
  for number, changes in enumerate(settings, 1):
    last = number == len(settings)
    own = folder if last else workdir / FOLDER / f"{name}-{number:02d}"
    changes = dict(changes) | ({start: str(found[-1].folder)} if found else {})
    shown = ", ".join(f"{key} = {value}" for key, value in changes.items()) or "the config's settings"
    title = f"phase {number} of {len(settings)}: {shown}"
    found.append(Phase(_changed(config, changes, number), own, title, not last and (own / "model.json").exists()))
  return found


def to_do(phases: Sequence[Phase]) -> Iterator[Phase]:
  """The runs that are not finished, each announced by its title."""
  for phase in phases:
    if phase.title:
      print_text(f"{phase.title}{' (finished before)' if phase.finished else ''}")
    if not phase.finished:
      yield phase


def _changed(config: "ConfigDict", changes: Mapping[str, Any], number: int = 0) -> "ConfigDict":
  """A copy of a config without phases and with some settings changed."""
  from ml_collections import ConfigDict

  made = ConfigDict(config).copy_and_resolve_references()
  with made.unlocked():
    if "phases" in made:
      del made.phases
  for key, value in changes.items():
    try:
      made.update_from_flattened_dict({key: value})
    except KeyError:
      raise InversionViewError(f"phase {number} sets {key}, which the config does not have") from None
    except (TypeError, ValueError) as error:
      raise InversionViewError(f"phase {number} sets {key} = {value!r}: {' '.join(str(error).split())}") from None
  return made
