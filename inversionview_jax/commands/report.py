"""`inversionview report`: many preimages in one self-contained page."""

import argparse
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema, terminal
from inversionview_jax.commands import flags, source
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, check_can_make, files_together, write_whole
from inversionview_jax.progress import bar_of

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage

_DESCRIPTION = f"""\
Write one static page of many preimages: an index by site and position, what each activation encodes, plots, samples.

  inversionview report P --out report.html                          from saved preimages (view --json) in the folder P
  inversionview report --text "615+861=1476" --position = --out report.html             of every site of the addition reader
  inversionview report --target addition --text "615+861=1476" --site a1.1 --position = --position A1 --out report.html
  inversionview report --config gallery --out gallery.html --save P
  inversionview report --config gallery:counting --out counting.html --config.seed=1

The page needs no network and runs no script; it can be sent as a file.

{source.METHODS_HELP}"""
# Flags that go with --text alone, and those that go with --config, too, and have precedence over its own settings.
_OF_TEXT = (
  "reader",
  "target",
  "task",
  "site",
  "position",
  "epsilon",
  "metric",
  "match",
  "seed",
  "num_samples",
  "mixture",
)
_OF_BOTH = ("method", "particles", "budget", "save")


def add_parser(commands: Any) -> None:
  """Adds `report` to the commands."""
  parser = flags.add_command(commands, "report", run, "write a page of many preimages", _DESCRIPTION, overrides=True)
  parser.add_argument("folder", nargs="?", help="a folder with saved preimages; or none and --config or --text")
  flags.add(parser, "config")
  parser.add_argument("--out", required=True, metavar="FILE", help="the page to write")
  parser.add_argument("--text", action="append", help="an input of the task (may be repeated)")
  flags.add(parser, "site", repeated=True, unset="with --text, all sites of the reader")
  flags.add(parser, "position", repeated=True, unset="none; needed with --text")
  flags.add(parser, "epsilon")
  flags.add(parser, "metric")
  flags.add(parser, "match", unset="anywhere")
  flags.add(parser, "seed", unset="0")
  source.add_flags(parser)
  parser.add_argument("--save", metavar="DIR", help="also save the preimages that are drawn there")
  parser.add_argument("--title", help="of the page (default: the config's, or the folder's name)")
  flags.add(parser, "shown", unset="the config's, else 30")
  flags.add(parser, "no-color")


def run(args: argparse.Namespace, overrides: list[str]) -> int:
  """Reads or draws the preimages and writes the page."""
  _check(args, overrides)
  from inversionview_jax.show import report

  title, shown = args.title, args.shown
  left_out: list[str] = []
  if args.folder is not None:
    preimages, left_out = report.read_folder(args.folder)
    title = title or f"Preimages in {pathlib.Path(args.folder).resolve().name}"
  elif args.text:
    preimages = _of_texts(args)
  else:
    from inversionview_jax.commands.configs import load_config

    config = load_config(args.config, overrides)
    preimages = _of_config(config, args)
    title, shown = title or config.get("title"), shown or config.get("shown")
  if args.save:
    _save(preimages, args.save)
  for line in left_out:
    terminal.print_text(f"inversionview: left out {line}", error=True)
  page = report.to_report(
    preimages,
    title=title or "What these activations encode",
    command=shlex.join(["inversionview", *args.argv]),
    shown=shown or 30,
    left_out=left_out,
    colors=not args.no_color,
  )
  write_whole(args.out, page)
  terminal.print_text(f"{len(preimages)} preimages, {len(page.encode()) / 1e6:.2f} MB: {args.out}")
  return 0


def _check(args: argparse.Namespace, overrides: list[str]) -> None:
  """Raises `InversionViewError` for arguments that do not go together, and for a page that cannot be written."""
  if sum(given is not None for given in (args.folder, args.config, args.text)) != 1:
    raise InversionViewError(
      "report takes a folder of saved preimages, --config with a config, or --text with inputs: give one of the three"
    )
  if args.config is None and overrides:
    raise InversionViewError(f"unknown argument {overrides[0]!r}; see inversionview report --help")
  for name in (*_OF_TEXT, *_OF_BOTH):
    if getattr(args, name) is None or args.text or (args.config is not None and name in _OF_BOTH):
      continue
    goes = "--text" if name in _OF_TEXT else "--text or --config"
    raise InversionViewError(
      f"--{name.replace('_', '-')} goes with {goes}; "
      + ("preimages from a folder are drawn and saved already" if args.folder else "a config has its own setting")
    )
  if args.text:
    source.check(args)
    if not args.position:
      raise InversionViewError('--text needs --position, such as "=" or -1')
  check_can_hold(args.out)
  if args.save:
    check_can_make(args.save)


def _save(preimages: Sequence["Preimage"], path: str) -> None:
  """Writes each preimage as a file, numbered in the order of the page."""
  with files_together(path) as folder:
    for number, p in enumerate(preimages):
      p.to_json(folder / f"{number:03d}-{_plain(p.reader)}-{_plain(p.query.site)}-{p.query.position}.json")


def _plain(name: str) -> str:
  return re.sub(r"[^A-Za-z0-9.]+", "_", name)


def _of_texts(args: argparse.Namespace) -> list["Preimage"]:
  """The preimages of every text at every site and position."""
  from inversionview_jax.reading import Request

  drawn_from = source.source_of(args)
  threshold = {"epsilon": args.epsilon, "metric": args.metric, "match": args.match or "anywhere"}
  requests = [
    Request(text, site, position, **threshold)
    for text in args.text
    for site in args.site or drawn_from.sites
    for position in args.position
  ]
  drawn_from.check(requests)  # before the work
  source.note_decoder(args, drawn_from)
  with bar_of("preimages") as progress:
    return drawn_from.preimages(requests, seed=args.seed or 0, progress=progress)


def _queries(config: Any, path: str) -> list[tuple[str, str, str, "int | str"]]:
  """The queries of a config as (reader, text, site, position); raises `InversionViewError` for one that is none."""
  if not config.get("queries"):
    raise InversionViewError(f"config {path}: it has no queries; each is (reader, text, site, position)")
  config_schema.check(config, config_schema.OF_COMMAND["report"])
  return [tuple(query) for query in config.queries]


def _of_config(config: Any, args: argparse.Namespace) -> list["Preimage"]:
  """The preimages of a config's queries, in their order; each reader is loaded once."""
  from inversionview_jax.reading import Request, load_reader
  from inversionview_jax.reading.source import Source

  queries = _queries(config, args.config)
  settings = {key: config.get(key) for key in ("num_samples", "mixture", "particles", "budget")}
  settings |= {key: value for key in ("particles", "budget") if (value := getattr(args, key)) is not None}
  threshold = {
    "epsilon": config.get("epsilon"),
    "metric": config.get("metric"),
    "match": config.get("match", "anywhere"),
  }
  method = args.method or config.get("method")
  preimages: dict[int, Preimage] = {}
  for name in dict.fromkeys(query[0] for query in queries):
    drawn_from = Source.of(load_reader(name), method, **settings)
    numbers = [k for k, query in enumerate(queries) if query[0] == name]
    requests = [Request(*queries[k][1:], **threshold) for k in numbers]
    drawn_from.check(requests)  # before the work
    if method is None:
      source.note_decoder(args, drawn_from)
    with bar_of(name) as progress:
      drawn = drawn_from.preimages(requests, seed=config.get("seed", 0), progress=progress)
    preimages |= dict(zip(numbers, drawn, strict=True))
  return [preimages[k] for k in range(len(queries))]
