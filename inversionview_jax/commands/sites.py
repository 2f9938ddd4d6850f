"""`inversionview sites`: the sites of a reader or a target and the positions of an input, with a word on each."""

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from inversionview_jax.reading import Reader
  from inversionview_jax.sites import Site
  from inversionview_jax.targets import Target
  from inversionview_jax.tasks import Task

_DESCRIPTION = """\
List the sites of a reader, or those of a target, and the positions of an input: what may be given as --site and --position, in words.

  inversionview sites --reader addition
  inversionview sites --target counting
  inversionview sites --target MODEL.gguf --text "The cat sat"
  inversionview sites --target addition --all      # also queries, keys, values, norms, and what is inside of the MLP

A site has two names, the paper's and that of TransformerLens; both are taken everywhere. A reader has been trained on some sites; without a
reader (--method monte_carlo) any site of the target can be read.
"""


def add_parser(commands: Any) -> None:
  """Adds `sites` to the commands."""
  parser = flags.add_command(commands, "sites", run, "list sites and positions, with a word on each", _DESCRIPTION)
  flags.add(parser, "reader", unset="addition, unless --target is given")
  flags.add(parser, "target")
  flags.add(parser, "family")
  flags.add(parser, "task", unset="the target's own; only without --reader")
  parser.add_argument(
    "--text", type=flags.given, help="an input of the task (default: its first), whose positions are listed"
  )
  parser.add_argument(
    "--all", action="store_true", help="of a target: every kind of site that a preimage can be read from"
  )
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints the lists."""
  del rest
  if args.json:
    check_can_hold(args.json)
  if args.reader and (args.target or args.task or args.all):
    raise InversionViewError(
      "a reader has its own target, task and sites: give --reader, or --target with --task and --all"
    )
  if args.target or args.task:
    name, target, task = _of_target(args)
    listed = _of_kinds(target, args.all)
  else:
    from inversionview_jax.reading import load_reader

    reader = load_reader(args.reader or "addition")
    name, target, task = f"reader {reader.name}", reader.target, reader.task
    listed = _of_reader(reader)
  positions = _positions(target, task, args.text)
  print_text("\n".join(_lines(name, target, task, listed, positions)))
  if args.json:
    content = {
      "format": "inversionview-sites",
      "format_version": 1,
      "target": target.describe(),
      "task": task.name if task else None,
      "sites": listed,
      "positions": positions,
    }
    write_whole(args.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
  return 0


def _of_target(args: argparse.Namespace) -> "tuple[str, Target, Task | None]":
  """What is listed, the target and its task, where it has one."""
  from inversionview_jax.targets import load_target, task_and_target

  if args.task:
    task, target = task_and_target(args.task, args.target, family=args.family)
    return f"target {target.name}", target, task
  target = load_target(args.target, family=args.family)
  return f"target {target.name}", target, target.resolve_task()


def _described(sites: "list[Site]", width: int | None) -> dict[str, Any]:
  """One row: the first and the last of several sites of a kind, in both notations."""
  first, last = sites[0], sites[-1]
  short, hook = (f"{getattr(first, name)}" for name in ("short", "hook"))
  if len(sites) > 1:
    short = f"{short} ... {last.short}"
    hook = f"{hook} ... {last.hook.removeprefix('blocks.')}"
  return {"site": short, "hook": hook, "count": len(sites), "width": width, "about": first.about}


def _of_reader(reader: "Reader") -> list[dict[str, Any]]:
  """A row for each site of a reader."""
  from inversionview_jax.models import site_shapes

  sites = [reader.target.site(name) for name in reader.config.sites]
  return [_described([site], site_shapes.width(reader.target.config, site)) for site in sites]


def _of_kinds(target: "Target", every: bool) -> list[dict[str, Any]]:
  """A row for each kind of site of a target: the first and the last of its layers and heads."""
  from inversionview_jax.models import site_shapes
  from inversionview_jax.sites import PAPER_KINDS, VECTOR_KINDS

  known = site_shapes.every_site(target.config, VECTOR_KINDS if every else PAPER_KINDS)
  kinds = dict.fromkeys(site.kind for site in known)
  rows = []
  for kind in kinds:
    own = [site for site in known if site.kind == kind]
    rows.append(_described(own, site_shapes.width(target.config, own[0])))
  return rows


def _positions(target: "Target", task: "Task | None", text: str | None) -> list[dict[str, Any]]:
  """A row for each token of an input: its index, its label, the token and what stands there."""
  import numpy as np

  from inversionview_jax.tasks.tokenizer_base import encode_with_bos

  tokenizer = task.tokenizer if task else target.tokenizer
  if tokenizer is None:
    return []
  if text is not None:
    ids = list(encode_with_bos(tokenizer, text))
  elif task is not None:
    ids = [
      int(token) for token in task.tokens(np.zeros(1, np.int64))[0] if token not in (tokenizer.pad_id, tokenizer.eos_id)
    ]
  else:
    return []
  labels = task.labels(ids) if task else [""] * len(ids)
  return [
    {"index": i, "label": label, "token": token, "about": task.about_position(label) if task and label else ""}
    for i, (label, token) in enumerate(zip(labels, tokenizer.strings(ids), strict=True))
  ]


def _lines(
  name: str, target: "Target", task: "Task | None", listed: list[dict[str, Any]], positions: list[dict[str, Any]]
) -> Iterator[str]:
  """What is printed."""
  config = target.config
  yield f"{name}: {config.n_layers} layers, {config.n_heads} heads, width {config.d_model}" + (
    f"; task {task.name}" if task else ""
  )
  yield ""
  yield from _columns(
    ("site", "or", "width", "what it is"), [(r["site"], r["hook"], str(r["width"]), r["about"]) for r in listed]
  )
  if not positions:
    yield "\npositions: an index from 0 (BOS), or from -1 (the last token); --text shows those of an input"
    return
  yield "\nposition: an index (negative ones count from the end), or a label where there is one"
  rows: list[tuple[str, ...]] = [(str(r["index"]), r["label"], repr(r["token"]), r["about"]) for r in positions]
  yield from _columns(("index", "label", "token", "what stands there"), rows)
  if task is not None and task.feature_names:
    yield "\nfeatures of an input, which an activation may encode"
    yield from _columns((), list(task.feature_names.items()))


def _columns(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
  """Rows in columns, under their headers where there are any."""
  table = [head, *rows] if head else rows
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for row in table:
    yield ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
