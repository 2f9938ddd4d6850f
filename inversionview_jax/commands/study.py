"""`inversionview study`: which heads of a language model matter on a task, what they encode, whether patching agrees, and a page of it."""

import argparse
import dataclasses
import json
import pathlib
import shlex
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema, progress, terminal
from inversionview_jax.commands import flags
from inversionview_jax.commands.tables import make_table
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, path_of, write_whole

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage
  from inversionview_jax.studies.places import PlaceStudy
  from inversionview_jax.targets import Target
  from inversionview_jax.tasks import Task

_TITLES = {"factual": "Factual recall", "ioi": "Indirect object identification"}
_NODES = 60  # of a circuit, at most

_DESCRIPTION = """\
Study a language model on factual recall or indirect object identification: the heads that matter, what their preimages share, their direct
effect, and whether patching agrees.

  inversionview study --config factual:smollm2 --workdir W        # 30 to 60 minutes of two CPU cores
  inversionview study --config ioi:gemma3 --workdir W
  inversionview study --config factual:gpt2 --workdir W --config.study.heads=40
  inversionview study --config factual:smollm2 --workdir W2 --head a23.4
  inversionview study --config ioi:smollm2 --workdir W --circuit C       # with the circuit in C, which is found where there is none yet

W holds study.json, table.md, report.html and the preimages. The same command goes on where it was interrupted.
"""


def add_parser(commands: Any) -> None:
  """Adds `study` to the commands."""
  parser = flags.add_command(
    commands, "study", run, "find the heads that matter on a task, and what they encode", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "config", required=True)
  flags.add(parser, "target", unset="the config's")
  flags.add(parser, "family")
  flags.add(parser, "ignore-config-key", repeated=True)
  flags.add(parser, "convention")
  flags.add(parser, "workdir", required=True)
  parser.add_argument(
    "--head",
    action="append",
    type=flags.given,
    help="a head such as a23.4, in place of those that matter (may be repeated)",
  )
  parser.add_argument(
    "--circuit",
    metavar="FOLDER",
    help="of `inversionview circuit` (IOI only): its nodes are read, too; found and written there where there is none, which takes as long again",
  )


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Runs the study of the config's task, writes its files and prints the table."""
  from inversionview_jax.commands.configs import load_config

  config = load_config(args.config, rest)
  config_schema.check_study(config)
  source = args.target or config.get("target", {}).get("path")
  from inversionview_jax import config_blocks  # which imports ml_collections

  config_blocks.check_fetched(source or "")
  make_folder(args.workdir)
  folder = path_of(args.workdir)
  from inversionview_jax.studies import circuit as circuits
  from inversionview_jax.studies import data, factual, ioi
  from inversionview_jax.studies.stages import Stages
  from inversionview_jax.targets import task_and_target

  loading = {"convention": args.convention, "family": args.family, "ignore_config_keys": args.ignore_config_key or ()}
  task, target = task_and_target(config.task, source, config, **loading)
  module: Any = {"factual": factual, "ioi": ioi}[config.task]
  settings = module.Settings(**(config.get("study") or {}))
  heads = tuple(target.site(name, ("head",)).short for name in args.head or ())
  key: dict[str, Any] = {
    "task": config.task,
    "target": target.describe(),
    "inputs": config.inputs.to_dict(),
    "study": dataclasses.asdict(settings),
    "heads": heads,
  }
  started, more, circuit = time.monotonic(), {}, None
  with progress.StepBars() as report:
    if args.circuit:
      circuit = _circuit(args.circuit, config.task, target, task, report)
      more["besides"] = key["circuit"] = circuits.heads(circuit, ioi.POSITIONS)
    found = module.run(target, task, settings, Stages(folder / "steps", key), report, heads, **more)
  content = data.result(
    config.task,
    target.describe(),
    shlex.join(["inversionview", *args.argv]),
    {name: key[name] for name in ("inputs", "study", "heads")},
    _places(found),
    **module.summary(found),
    seconds=round(time.monotonic() - started),
  )
  if circuit is not None:
    content["circuit"] = circuits.table(circuit, content["places"])
    content["summary"].append(circuits.summary(circuit))
  _write(folder, content, _places(found), target.name, circuit)
  _print(content, folder)
  return 0


def _circuit(given: str, name: str, target: "Target", task: "Task", report: progress.StepBars) -> dict[str, Any]:
  """The circuit in a folder, found there first where there is none."""
  from inversionview_jax.commands import circuit as command
  from inversionview_jax.studies import circuit as circuits

  if name != "ioi":
    raise InversionViewError(
      f"--circuit is of the IOI study: inputs of the task {name!r} do not line up, and circuits need pairs that do"
    )
  folder = path_of(given)
  if (data := circuits.opened(folder, name, target.name)) is None:
    from inversionview_jax.causal.circuits import circuit

    make_folder(given)
    command.write(circuit(target, task, most=_NODES, out=folder, progress=report), folder)
    data = circuits.opened(folder, name, target.name)
  assert data is not None
  return data


def _write(
  folder: pathlib.Path,
  content: Mapping[str, Any],
  places: "Sequence[PlaceStudy]",
  target: str,
  circuit: Mapping[str, Any] | None,
) -> None:
  """Writes the preimages, the page, the table and the JSON."""
  from inversionview_jax.show.circuit_picture import circuit_svg
  from inversionview_jax.studies import data
  from inversionview_jax.studies.page import to_page

  preimages = _write_preimages(folder / "preimages", places)
  title = f"{_TITLES[content['task']]} in {target}"
  picture = "" if circuit is None else circuit_svg(circuit)
  write_whole(folder / "report.html", to_page(content, preimages, title, picture))
  write_whole(folder / "table.md", data.markdown(content))
  write_whole(folder / "study.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def _places(found: Any) -> "tuple[PlaceStudy, ...]":
  return found.heads if hasattr(found, "known") else found.places


def _write_preimages(folder: pathlib.Path, places: "Sequence[PlaceStudy]") -> "dict[str, tuple[Preimage, ...]]":
  """Writes the preimages of each place, and returns them by its name."""
  make_folder(folder)
  found = {}
  for place in places:
    name = f"{place.site}@{place.position}"
    for number, preimage in enumerate(place.preimages):
      preimage.to_json(folder / f"{name.replace('+', '_')}-{number}.json")
    found[name] = place.preimages
  return found


def _print(content: Mapping[str, Any], folder: pathlib.Path) -> None:
  from inversionview_jax.studies import data

  for line in content["summary"]:
    terminal.print_text(line)
  console = terminal.console(highlight=False)
  console.print()
  table = make_table(*data.HEADINGS, left=["site", "at", "feature", "verdict"])
  for place in content["places"]:
    table.add_row(*data.row(place))
  console.print(table)
  verified = sum(bool(place["verified"]) for place in content["places"])
  terminal.print_text(
    f"\n{verified} of {len(content['places'])} have a reading that patching confirms; {folder / 'report.html'}"
  )
