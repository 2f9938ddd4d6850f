"""`inversionview report`: many preimages in one self-contained page."""

import argparse
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, make_folder, write_whole

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage

_DESCRIPTION = """\
Write one static page of many preimages: an index by site and position, what each activation encodes, plots, samples.

  inversionview report P --out report.html                          from saved preimages (view --json) in the folder P
  inversionview report --config configs/gallery.py --out gallery.html --save P
  inversionview report --config configs/gallery.py:counting --out counting.html --config.seed=1

The page needs no network and runs no script; it can be sent as a file.
"""


def add_parser(commands: Any) -> None:
  """Adds `report` to the commands."""
  parser = flags.add_command(commands, "report", run, "write a page of many preimages", _DESCRIPTION, overrides=True)
  parser.add_argument("folder", nargs="?", help="a folder with saved preimages; or none and --config")
  flags.add(parser, "config")
  parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
  parser.add_argument("--save", metavar="DIR", help="with --config: also save the preimages there")
  parser.add_argument("--title", help="of the page (default: the config's, or the folder's name)")
  flags.add(parser, "shown", unset="the config's, else 30")
  flags.add(parser, "no-color")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
  """Reads or draws the preimages and writes the page."""
  _check(args, overrides)
  from inversionview_jax.show import report

  title, shown = args.title, args.shown
  left_out: list[str] = []
  if args.config is None:
    preimages, left_out = report.read_folder(args.folder)
    title = title or f"Preimages in {pathlib.Path(args.folder).resolve().name}"
  else:
    from inversionview_jax.commands.configs import load_config

    config = load_config(args.config, overrides)
    preimages = _draw(config, args.config)
    title, shown = title or config.get("title"), shown or config.get("shown")
    if args.save:
      _save(preimages, args.save)
  for line in left_out:
    print(f"inversionview: left out {line}", file=sys.stderr)
  page = report.to_report(
    preimages,
    title=title or "What these activations encode",
    command=shlex.join(["inversionview", *args.argv]),
    shown=shown or 30,
    left_out=left_out,
    colors=not args.no_color,
  )
  write_whole(args.out, page)
  print(f"{len(preimages)} preimages, {len(page.encode()) / 1e6:.2f} MB: {args.out}")
  return 0


def _check(args: argparse.Namespace, overrides: list[str]) -> None:
  """Raises `InversionViewError` for arguments that do not go together, and for a page that cannot be written."""
  if (args.folder is None) == (args.config is None):
    raise InversionViewError("report takes a folder of saved preimages, or --config with a config: give one of the two")
  if args.config is None and overrides:
    raise InversionViewError(f"unknown argument {overrides[0]!r}; see inversionview report --help")
  if args.save and args.config is None:
    raise InversionViewError("--save goes with --config; preimages from a folder are saved already")
  flags.check_at_least(args, shown=1)
  check_can_hold(args.out)
  if pathlib.Path(args.out).is_dir():
    raise InversionViewError(f"cannot write {args.out}: it is a folder; give the name of a file")


def _save(preimages: Sequence["Preimage"], path: str) -> None:
  """Writes each preimage as a file, numbered in the order of the page."""
  folder = make_folder(path)
  for number, p in enumerate(preimages):
    p.to_json(folder / f"{number:03d}-{_plain(p.reader)}-{_plain(p.query.site)}-{p.query.position}.json")


def _plain(name: str) -> str:
  return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _draw(config: Any, path: str) -> list["Preimage"]:
  """The preimages of a config's queries, in their order; each reader is loaded once."""
  from inversionview_jax.reading import Request, load_reader

  queries = config.get("queries")
  if not queries:
    raise InversionViewError(f"config {path}: it has no queries; each is (reader, text, site, position)")
  for query in queries:
    if len(query) != 4:
      raise InversionViewError(f"config {path}: query {tuple(query)!r} is not (reader, text, site, position)")
  settings = {key: config.get(key) for key in ("num_samples", "mixture") if config.get(key) is not None}
  threshold = {
    "epsilon": config.get("epsilon"),
    "metric": config.get("metric"),
    "match": config.get("match", "anywhere"),
  }
  preimages: dict[int, Preimage] = {}
  for name in dict.fromkeys(query[0] for query in queries):
    reader = load_reader(name)
    numbers = [k for k, query in enumerate(queries) if query[0] == name]
    requests = [Request(*queries[k][1:], **threshold) for k in numbers]
    drawn = reader.preimages(requests, seed=config.get("seed", 0), **settings)
    preimages |= dict(zip(numbers, drawn, strict=True))
  return [preimages[k] for k in range(len(queries))]
