"""`inversionview sample`: the preimages of many queries, over all devices of all hosts."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.commands.inputs import read_requests
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole
from inversionview_jax.progress import bar

if TYPE_CHECKING:
  from inversionview_jax.reading import Reader

_DESCRIPTION = """\
Draw the preimages of many queries; candidates are spread over all devices, of all hosts if there are several (run the same command on each).

  inversionview sample --reader W --requests queries.jsonl --out DIR
  inversionview sample --reader addition --requests texts.txt --site a0.0 --site x1.mid --position = --out DIR

FILE has a query on each line: an object such as {"text": "615+861=1476", "site": "a0.0", "position": "="} (also epsilon, metric, match), or
a text, which is read at every --site. DIR/preimages.jsonl gets a preimage on each line, in the order of the queries (Preimage.from_json
reads a line). The same command again resumes where it was interrupted, and does nothing if it is done.
"""
_FILE, _DRAFT, _SETTINGS = "preimages.jsonl", "preimages.part", "sample.json"
_CHUNK = 8  # queries between two writes


def add_parser(commands: Any) -> None:
  """Adds `sample` to the commands."""
  parser = flags.add_command(commands, "sample", run, "the preimages of many queries, on all devices", _DESCRIPTION)
  flags.add(parser, "reader", default="addition")
  parser.add_argument("--requests", required=True, metavar="FILE", help="a file with a query on each line")
  flags.add(parser, "site", repeated=True, unset="none; needed for lines that are texts")
  flags.add(parser, "position", unset="none; needed for lines that are texts")
  flags.add(parser, "out", required=True)
  flags.add(parser, "num-samples")
  flags.add(parser, "mixture")
  parser.add_argument("--no-effects", action="store_true", help="leave out the effect of each token, for less work")
  flags.add(parser, "seed", default=0)
  parser.add_argument(
    "--mesh-model", type=int, default=1, help="devices over which parameters are sharded (default: 1)"
  )
  flags.add_hosts(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Writes the preimages."""
  del rest
  requests = read_requests(args.requests, args.site or (), args.position)
  from ml_collections import ConfigDict

  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.reading import load_reader

  hosts.start(*flags.hosts_of(args))
  settings = {name: getattr(args, name) for name in ("reader", "num_samples", "mixture", "no_effects", "seed")}
  settings["queries"] = requests
  hosts.require_same("queries", settings)
  hosts.print_on_first_host_only()
  mesh = parallel.mesh_of(ConfigDict({"mesh": {"model": args.mesh_model}}))
  folder = make_folder(args.out)
  done = _count_done(folder, settings)
  if hosts.all_true(done == len(requests) and (not hosts.is_writer() or (folder / _FILE).exists())):
    print(f"{folder / _FILE}: all {len(requests):,} preimages are there")
    return 0
  reader = load_reader(args.reader, mesh=mesh)
  for start in range(0, len(requests), _CHUNK):  # a query that is refused is reported before any work
    reader.check(requests[start : start + _CHUNK])
  hosts.all_true(True)  # every host has checked before one writes
  if hosts.is_writer():
    write_whole(folder / _SETTINGS, json.dumps(settings) + "\n")
  rate = _draw(reader, requests, args, folder, done)
  if hosts.is_writer():
    (folder / _DRAFT).replace(folder / _FILE)
  share = f"; of the candidates {rate:.1%} are inside epsilon" if done < len(requests) else ""
  print(f"{len(requests):,} preimages in {folder / _FILE}{share}")
  return 0


def _draw(
  reader: "Reader", requests: list[dict[str, Any]], args: argparse.Namespace, folder: pathlib.Path, done: int
) -> float:
  """Draws the preimages from query number `done` on and appends them to the draft; returns their mean in-epsilon rate."""
  from inversionview_jax.devices import hosts

  total = 0.0
  with bar("sampling", len(requests), hosts.is_writer(), done) as advance:
    for start in range(done, len(requests), _CHUNK):
      preimages = reader.preimages(
        requests[start : start + _CHUNK],
        num_samples=args.num_samples,
        mixture=args.mixture,
        effects=not args.no_effects,
        seed=args.seed,
        chunk=_CHUNK,
      )
      total += sum(preimage.rate for preimage in preimages)
      if hosts.is_writer():
        _append(folder / _DRAFT, [preimage.to_json() for preimage in preimages])
      advance(len(preimages))
  return total / max(len(requests) - done, 1)


def _count_done(folder: pathlib.Path, settings: dict[str, Any]) -> int:
  """How many preimages an earlier run of the same command has written, as the writing host finds them; an unfinished chunk is removed.

  Raises:
    InversionViewError: the folder holds preimages of other queries or settings.
  """
  from inversionview_jax.devices import hosts

  done, refusal = 0, ""
  if hosts.is_writer() and (folder / _SETTINGS).exists():
    try:
      same = json.loads((folder / _SETTINGS).read_text()) == json.loads(json.dumps(settings))
    except ValueError:
      same = False
    if not same:
      refusal = f"{folder} holds the preimages of other queries or settings; give another --out"
    elif (folder / _FILE).exists():
      done = len(settings["queries"])
    elif (folder / _DRAFT).exists():
      lines = (folder / _DRAFT).read_bytes().splitlines(keepends=True)
      whole = [line for line in lines if line.endswith(b"\n")]
      done = len(whole) // _CHUNK * _CHUNK
      write_whole(folder / _DRAFT, b"".join(whole[:done]))
  done, refusal = json.loads(hosts.exchange(json.dumps([done, refusal]))[0])
  if refusal:
    raise InversionViewError(refusal)
  return done


def _append(path: pathlib.Path, lines: list[str]) -> None:
  try:
    with path.open("a", encoding="utf-8") as file:
      file.write("".join(f"{line}\n" for line in lines))
  except OSError as error:
    raise InversionViewError(f"cannot write {path}: {error.strerror}; the same command resumes from there") from None
