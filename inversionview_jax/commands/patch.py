"""`inversionview patch`: the patching and ablation experiments of a config."""

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema, terminal, values
from inversionview_jax.commands import flags
from inversionview_jax.commands.tables import estimate_text, make_table
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_make, output_folder, write_whole
from inversionview_jax.progress import counted, following

if TYPE_CHECKING:
  from rich.table import Table

_DESCRIPTION = """\
Run causal experiments: activations of one input are put into another, or replaced by their mean, and the change of the logits is measured.

  inversionview patch --config verify_addition --out W
  inversionview patch --config verify_addition:A1_F1S1 --target T --out W --config.pairs=100000

Of each experiment, NAME.json holds every number with its standard error, and NAME.png and NAME.svg the bar chart.
"""
_COMPONENTS_SHOWN = 20  # of a direct logit attribution
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


def add_parser(commands: Any) -> None:
  """Adds `patch` to the commands."""
  parser = flags.add_command(
    commands, "patch", run, "run the patching experiments of a config", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "config", required=True)
  flags.add(parser, "target")
  flags.add(parser, "family")
  flags.add(parser, "ignore-config-key", repeated=True)
  flags.add(parser, "convention")
  flags.add(parser, "out", required=True)


def run(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prepares all experiments of the config before the first one runs, so that a mistake in the last is reported at once."""
  from inversionview_jax.causal import experiments, logit_experiments
  from inversionview_jax.commands.configs import load_config
  from inversionview_jax.devices import parallel
  from inversionview_jax.show import charts
  from inversionview_jax.targets import task_and_target

  config = load_config(args.config, overrides)
  if not hasattr(config.get("experiments"), "keys") or not config.experiments:
    raise InversionViewError(f"config {args.config} has no experiments; --config verify_addition is one that has")
  config_schema.check(config, config_schema.EXPERIMENTS)
  config_schema.check_inputs(config.task, config.get("inputs"))
  check_can_make(args.out)
  loading = {"convention": args.convention, "family": args.family, "ignore_config_keys": args.ignore_config_key or ()}
  task, target = task_and_target(config.task, args.target, config, **loading)
  for name, settings in config.experiments.items():
    _check_experiment(name, settings)
  prepared = [
    (logit_experiments if settings.get("kind") == "attribute" else experiments).prepare(
      target, task, name, settings.to_dict(), config
    )
    for name, settings in config.experiments.items()
  ]
  mesh = parallel.make_mesh()
  with output_folder(args.out) as folder, following("experiments"):
    for experiment in counted(prepared):
      if isinstance(experiment, logit_experiments.Prepared):
        result = logit_experiments.run(target, experiment, batch_size=config.batch_size, task=task)
      else:
        result = experiments.run(target, experiment, batch_size=config.batch_size, mesh=mesh)
      result |= {"task": task.name, "seed": config.seed, "split": config.split, "pairs_asked": config.pairs}
      print_result(result)
      stem = folder / experiment.name
      write_whole(f"{stem}.json", json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
      if charts.available():
        charts.write_chart(result, stem)
  if not charts.available():
    terminal.print_message(charts.MISSING)
  terminal.print_text(f"results: {folder}")
  return 0


def _check_experiment(name: str, settings: Any) -> None:
  """Raises `InversionViewError` for a name that no file can have, or settings of another type."""
  if not re.fullmatch(r"[^/\x00]{1,200}", name) or name in (".", ".."):
    raise InversionViewError(f"the experiment {name[:80]!r} cannot name its files: take a name without '/'")
  if not hasattr(settings, "keys"):
    raise InversionViewError(f"experiments.{name} = {values.brief(settings)} must be a block of keys, such as kind")
  config_schema.check(settings, config_schema.EXPERIMENT, f"experiments.{name}.")


def print_result(result: dict[str, Any]) -> None:
  """Prints the tables of one experiment."""
  from rich.markup import escape

  # Not wrapped where it goes to a file: its tables would be broken at 80 columns.
  console = terminal.console(highlight=False) if sys.stdout.isatty() else terminal.console(highlight=False, width=160)
  requested = result["pairs_asked"]
  fewer = f" (of {requested:,} requested; there are no more)" if result["pairs"] < requested else ""
  console.print(f"\n[bold]{escape(result['experiment'])}[/]  {escape(result['about'])}")
  console.print(f"{result['pairs']:,} {'pairs' if result['kind'] == 'patch' else 'inputs'}{fewer}", style="dim")
  if result["kind"] == "attribute":
    console.print(_attribution_table(result), f"for example: {escape(result['example'])}\n", sep="\n")
    return
  for part in result["results"]:
    console.print(_effects_table(part, result["kind"]))
    if result["kind"] == "patch":
      original, total = (estimate_text(part[key]) for key in ("original", "total"))
      console.print(f"logit difference of the clean run {original}; the corrupted run takes {total} from it\n")


def _effects_table(part: dict[str, Any], kind: str) -> "Table":
  """A row for each patch or ablation of one order, a column for each metric."""
  patched = kind == "patch"
  columns = _COLUMNS[kind]
  table = make_table(part["order"], *(["share"] if patched else []), *columns.values(), left=[part["order"]])
  for row in part["rows"]:
    name = row["name"] if patched else f"{row['name']}, read at {row['read']}"
    shares = [estimate_text(row["share"], 100, " %")] if patched else []
    table.add_row(name, *shares, *(estimate_text(row[key], *_SCALE.get(key, ())) for key in columns))
  return table


def _attribution_table(result: dict[str, Any]) -> "Table":
  """The components that contribute most to the logit difference; all of them are in the JSON."""
  settings = result["settings"]
  roles, top = settings["roles"], settings["top"]
  sides = [(side, role) for side in ("top", "bottom") for role in roles]
  first = f"at {settings['position']}"
  columns = (f"logit {roles[0]} - {roles[1]}", *(f"{role} in {side} {top}" for side, role in sides))
  table = make_table(first, *columns, left=[first])
  for row in result["results"][0]["rows"][:_COMPONENTS_SHOWN]:
    shares = (estimate_text(row[side][role], 100, " %") for side, role in sides)
    table.add_row(row["name"], estimate_text(row["logit_difference"]), *shares)
  return table
