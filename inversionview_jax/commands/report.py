"""`inversionview report`: many preimages in one self-contained page."""

import argparse
import pathlib
import re
import shlex
import sys

from inversionview_jax.commands import at_least
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, make_folder, write_whole

_ABOUT = """\
Write one static page of many preimages: index by site and position, what each activation says, plots, samples.

  inversionview report P --out report.html                          from saved preimages (view --json) in the folder P
  inversionview report --config configs/gallery.py --out gallery.html --save P
  inversionview report --config configs/gallery.py:counting --out counting.html --config.seed=1

The page needs no network and runs nothing; it can be sent as a file.
"""


def add_parser(commands) -> None:
  """Adds `report` to the commands."""
  parser = commands.add_parser(
    "report",
    help="write a page of many preimages",
    description=_ABOUT,
    allow_abbrev=False,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("folder", nargs="?", help="a folder with saved preimages; or none and --config")
  parser.add_argument("--config", help="a config that names readers and queries, such as configs/gallery.py")
  parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
  parser.add_argument("--save", metavar="DIR", help="with --config: also save the preimages there")
  parser.add_argument("--title", help="of the page (default: the config's, or the folder's name)")
  parser.add_argument("--shown", type=int, help="samples of each preimage at most (default: the config's, else 30)")
  parser.add_argument("--no-color", action="store_true", help="no colours")
  parser.set_defaults(run=run)


def run(args, rest) -> int:
  """Reads or makes the preimages and writes the page."""
  if (args.folder is None) == (args.config is None):
    raise InversionViewError("report takes a folder of saved preimages, or --config with a config: give one of the two")
  if args.config is None and rest:
    raise InversionViewError(f"unknown argument {rest[0]!r}; see inversionview report --help")
  if args.save and args.config is None:
    raise InversionViewError("--save goes with --config; preimages from a folder are saved already")
  at_least(args, shown=1)
  check_can_hold(args.out)
  if pathlib.Path(args.out).is_dir():
    raise InversionViewError(f"cannot write {args.out}: it is a folder; give the name of a file")
  from inversionview_jax.show import report

  title, shown, left_out = args.title, args.shown, []
  if args.config is None:
    preimages, left_out = report.read_folder(args.folder)
    title = title or f"Preimages in {pathlib.Path(args.folder).resolve().name}"
  else:
    from inversionview_jax.commands.configs import load_config

    config = load_config(args.config, rest)
    preimages = _drawn(config, args.config)
    title, shown = title or config.get("title"), shown or config.get("shown")
    if args.save:
      folder = make_folder(args.save)
      for k, p in enumerate(preimages):
        p.to_json(folder / f"{k:03d}-{_plain(p.reader)}-{_plain(p.query.site)}-{p.query.position}.json")
  for line in left_out:
    print(f"inversionview: left out {line}", file=sys.stderr)
  page = report.to_report(
    preimages,
    title=title or "What these activations say",
    command=shlex.join(["inversionview", *args.argv]),
    shown=shown or 30,
    left_out=left_out,
    colors=not args.no_color,
  )
  write_whole(args.out, page)
  print(f"{len(preimages)} preimages, {len(page.encode()) / 1e6:.2f} MB: {args.out}")
  return 0


def _plain(name: str) -> str:
  return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _drawn(config, path: str):
  """The preimages that a config asks for, reader by reader."""
  from inversionview_jax.reading.reader import Request, load_reader

  queries = config.get("queries")
  if not queries:
    raise InversionViewError(f"config {path}: it has no queries; each is (reader, text, site, position)")
  for query in queries:
    if len(query) != 4:
      raise InversionViewError(f"config {path}: query {tuple(query)!r} is not (reader, text, site, position)")
  found = {}
  for name in dict.fromkeys(query[0] for query in queries):
    reader = load_reader(name)
    which = [k for k, query in enumerate(queries) if query[0] == name]
    settings = {key: config.get(key) for key in ("num_samples", "mixture") if config.get(key) is not None}
    asks = [
      Request(
        *queries[k][1:],
        epsilon=config.get("epsilon"),
        metric=config.get("metric"),
        match=config.get("match", "anywhere"),
      )
      for k in which
    ]
    found |= dict(zip(which, reader.preimages(asks, seed=config.get("seed", 0), **settings), strict=True))
  return [found[k] for k in range(len(queries))]
