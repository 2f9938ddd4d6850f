"""`inversionview patch`: the patching and ablation experiments of a config."""

import argparse
import json
import pathlib
import sys
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole

_DESCRIPTION = """\
Run causal experiments: activations of one input put into another, or replaced by their mean, and what the model then says.

  inversionview patch --config configs/verify_addition.py --out W
  inversionview patch --config configs/verify_addition.py:A1_F1S1 --target T --out W --config.pairs=100000

Of each experiment, NAME.json has every number with its standard error, and NAME.png and NAME.svg the bar chart.
"""


def add_parser(commands: Any) -> None:
  """Adds `patch` to the commands."""
  parser = flags.add_command(
    commands, "patch", run, "run the patching experiments of a config", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "config", required=True)
  flags.add(parser, "target")
  flags.add(parser, "convention")
  flags.add(parser, "out", required=True)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prepares all experiments of the config before the first one runs, so that a mistake in the last is known at once."""
  from inversionview_jax.causal import experiments, logit_experiments
  from inversionview_jax.commands.configs import load_config
  from inversionview_jax.devices import parallel
  from inversionview_jax.show import charts
  from inversionview_jax.targets import task_and_target

  config = load_config(args.config, overrides)
  if "experiments" not in config:
    raise InversionViewError(f"config {args.config} has no experiments; those that have: configs/verify_addition.py")
  task, target = task_and_target(config.task, args.target, config, convention=args.convention)
  if config.batch_size < 1:
    raise InversionViewError(f"batch_size = {config.batch_size} must be at least 1")
  prepared = [
    (logit_experiments if settings.get("kind") == "attribute" else experiments).prepare(
      target, task, name, settings.to_dict(), config
    )
    for name, settings in config.experiments.items()
  ]
  folder, mesh = make_folder(args.out), parallel.make_mesh()
  for one in prepared:
    if isinstance(one, logit_experiments.Prepared):
      result = logit_experiments.run(target, one, batch_size=config.batch_size, task=task)
    else:
      result = experiments.run(target, one, batch_size=config.batch_size, mesh=mesh)
    result |= {"task": task.name, "seed": config.seed, "split": config.split, "pairs_asked": config.pairs}
    print_result(result)
    stem = pathlib.Path(folder) / one.name
    write_whole(f"{stem}.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if charts.available():
      charts.write_chart(result, stem)
  if not charts.available():
    print(f"inversionview: {charts.MISSING}", file=sys.stderr)
  print(f"results: {folder}")
  return 0


def print_result(result: dict) -> None:
  """The tables of one experiment."""
  from rich.console import Console
  from rich.markup import escape
  from rich.table import Table

  # Not wrapped where nobody reads it on a screen: a table in a file would be broken at 80 columns.
  console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
  asked = result["pairs_asked"]
  fewer = f" (of {asked:,} asked for; there are no more)" if result["pairs"] < asked else ""
  console.print(f"\n[bold]{escape(result['experiment'])}[/]  {escape(result['about'])}")
  console.print(f"{result['pairs']:,} {'pairs' if result['kind'] == 'patch' else 'inputs'}{fewer}", style="dim")
  if result["kind"] == "attribute":
    console.print(_names_table(result), f"for example: {escape(result['example'])}\n", sep="\n")
    return
  for part in result["results"]:
    patched = result["kind"] == "patch"
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in [part["order"], *(["share"] if patched else []), *_COLUMNS[result["kind"]].values()]:
      table.add_column(head, justify="left" if head == part["order"] else "right")
    for row in part["rows"]:
      name = row["name"] if patched else f"{row['name']}, read at {row['read']}"
      shares = [text_of(row["share"], 100, " %")] if patched else []
      cells = [text_of(row[key], *_SCALE.get(key, ())) for key in _COLUMNS[result["kind"]]]
      table.add_row(escape(name), *shares, *cells)
    console.print(table)
    if patched:
      console.print(
        f"logit difference of the clean run {text_of(part['original'])}; the corrupted run takes {text_of(part['total'])} from it\n"
      )


_SHOWN = 20  # components of a direct logit attribution


def _names_table(result: dict):
  """The components that move the logit difference most; all are in the JSON."""
  from rich.table import Table

  settings = result["settings"]
  roles, top = settings["roles"], settings["top"]
  table = Table(box=None, pad_edge=False, header_style="dim")
  table.add_column(f"at {settings['position']}")
  sides = [(side, role) for side in ("top", "bottom") for role in roles]
  for head in (f"logit {roles[0]} - {roles[1]}", *(f"{role} in {side} {top}" for side, role in sides)):
    table.add_column(head, justify="right")
  for row in result["results"][0]["rows"][:_SHOWN]:
    shares = (text_of(row[side][role], 100, " %") for side, role in sides)
    table.add_row(row["name"], text_of(row["logit_difference"]), *shares)
  return table


_COLUMNS = {
  "patch": {"logit_difference": "logit difference lost", "kl": "KL", "top_changed": "top token changed"},
  "ablate": {
    "kl": "KL",
    "top_logit": "fall of the top logit",
    "top_logit_share": "as a share of it",
    "top_changed": "top token changed",
  },
}
_SCALE = {"top_logit_share": (100, " %"), "top_changed": (100, " %")}


def text_of(value: dict | None, scale: float = 1, unit: str = "") -> str:
  """A mean with its standard error, for the eye."""
  if value is None:
    return "-"
  mean, error = scale * value["mean"], value["se"] and scale * value["se"]
  form = ".1f" if unit else ".3f"
  if not unit and 0 < max(abs(mean), error or 0) < 1e-3:
    form = ".2g"
  return f"{mean:{form}}" + ("" if error is None else f" ± {error:{form}}") + unit
