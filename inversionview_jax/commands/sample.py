"""`inversionview sample`: the preimages of many queries, over all devices of all hosts."""

import argparse
import json
import pathlib

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole
from inversionview_jax.progress import bar

_ABOUT = """\
Ask many queries; candidates are spread over all devices, of all hosts if there are several (run the same command on each).

  inversionview sample --reader W --queries queries.jsonl --out DIR
  inversionview sample --reader addition --queries texts.txt --sites a0.0,x1.mid --position = --out DIR

FILE has a query on each line: an object such as {"text": "615+861=1476", "site": "a0.0", "position": "="} (also epsilon, metric, match), or
a text, which is asked at every one of --sites. DIR/preimages.jsonl gets a preimage on each line, in the order of the queries
(Preimage.from_json reads a line). The same command again goes on where it was stopped, and does nothing if it is done.
"""
_FILE, _DRAFT, _SETTINGS = "preimages.jsonl", "preimages.part", "sample.json"
_AT_ONCE = 8  # queries between two writes


def add_parser(commands) -> None:
  """Adds `sample` to the commands."""
  parser = commands.add_parser(
    "sample",
    help="the preimages of many queries, on all devices",
    description=_ABOUT,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--reader", default="addition", help="a shipped reader or a workdir (default: addition)")
  parser.add_argument("--queries", required=True, metavar="FILE", help="a query on each line")
  parser.add_argument("--sites", default="", help="for lines that are texts: sites, separated by commas")
  parser.add_argument("--position", default="", help='for lines that are texts: an index or a label such as "="')
  parser.add_argument("--out", required=True, metavar="DIR", help="a folder, on storage that all hosts share")
  parser.add_argument("--num-samples", type=int, help="candidates for each query (default: the mixture's)")
  parser.add_argument("--mixture", help='how candidates are drawn, such as "paper"')
  parser.add_argument("--no-effects", action="store_true", help="leave out the effect of each token, for less work")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--mesh-model", type=int, default=1, help="devices over which parameters are sharded (default: 1)"
  )
  parser.add_argument("--coordinator", default="", metavar="HOST:PORT", help="the first process, as all can reach it")
  parser.add_argument("--num_processes", type=int, default=0, help="how many processes there are")
  parser.add_argument("--process_id", type=int, default=-1, help="which of them this is, from 0")
  parser.set_defaults(run=run)


def run(args, rest) -> int:
  """Writes the preimages."""
  del rest
  asks = read_queries(args.queries, args.sites, args.position)
  from ml_collections import ConfigDict

  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.reading.reader import load_reader

  hosts.start(args.coordinator, args.num_processes, args.process_id)
  settings = {name: getattr(args, name) for name in ("reader", "num_samples", "mixture", "no_effects", "seed")}
  settings["queries"] = asks
  hosts.require_same("queries", settings)
  hosts.print_on_first_host_only()
  mesh = parallel.mesh_of(ConfigDict({"mesh": {"model": args.mesh_model}}))
  folder = make_folder(args.out)
  done = _done_before(folder, settings)
  if hosts.all_true(done == len(asks) and (not hosts.is_writer() or (folder / _FILE).exists())):
    print(f"{folder / _FILE}: all {len(asks):,} preimages are there")
    return 0
  reader = load_reader(args.reader, mesh=mesh)
  for start in range(0, len(asks), _AT_ONCE):  # before any work: a query that cannot be asked is known now
    reader.check(asks[start : start + _AT_ONCE])
  hosts.all_true(True)  # all have looked before one writes
  if hosts.is_writer():
    write_whole(folder / _SETTINGS, json.dumps(settings) + "\n")
  inside = 0
  with bar("sampling", len(asks), hosts.is_writer(), done) as advance:
    for start in range(done, len(asks), _AT_ONCE):
      found = reader.preimages(
        asks[start : start + _AT_ONCE],
        num_samples=args.num_samples,
        mixture=args.mixture,
        effects=not args.no_effects,
        seed=args.seed,
        chunk=_AT_ONCE,
      )
      inside += sum(preimage.rate for preimage in found)
      if hosts.is_writer():
        _append(folder / _DRAFT, [preimage.to_json() for preimage in found])
      advance(len(found))
  if hosts.is_writer():
    (folder / _DRAFT).replace(folder / _FILE)
  rate = f"; of the candidates {inside / (len(asks) - done):.1%} are inside epsilon" if done < len(asks) else ""
  print(f"{len(asks):,} preimages in {folder / _FILE}{rate}")
  return 0


def read_queries(path: str, sites: str, position: str) -> list[dict]:
  """The queries of a file, as dicts of `Request`'s fields; raises `InversionViewError` naming the line that is none."""
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise InversionViewError(f"cannot read the queries in {path}: {getattr(error, 'strerror', '') or error}") from None
  from inversionview_jax.tasks.base import index_or_label

  asks = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    if line.lstrip().startswith("{"):
      try:
        ask = json.loads(line)
      except ValueError as error:
        raise InversionViewError(f"{path}, line {number} is not JSON ({error})") from None
      if missing := {"text", "site", "position"} - set(ask):
        raise InversionViewError(f"{path}, line {number} does not say {', '.join(sorted(missing))}")
      asks.append(ask)
      continue
    if not sites or position == "":
      raise InversionViewError(f"{path}, line {number} is a text: give --sites and --position for it")
    asks += [{"text": line, "site": site.strip(), "position": index_or_label(position)} for site in sites.split(",")]
  if not asks:
    raise InversionViewError(f"there are no queries in {path}: write one on each line")
  return asks


def _done_before(folder: pathlib.Path, settings: dict) -> int:
  """How many preimages an earlier run of the same command has written, as the writing host sees it; what it wrote half goes."""
  from inversionview_jax.devices import hosts

  done, wrong = 0, ""
  if hosts.is_writer() and (folder / _SETTINGS).exists():
    try:
      same = json.loads((folder / _SETTINGS).read_text()) == json.loads(json.dumps(settings))
    except ValueError:
      same = False
    if not same:
      wrong = f"{folder} holds the preimages of other queries or settings; give another --out"
    elif (folder / _FILE).exists():
      done = len(settings["queries"])
    elif (folder / _DRAFT).exists():
      lines = (folder / _DRAFT).read_bytes().splitlines(keepends=True)
      whole = [line for line in lines if line.endswith(b"\n")]
      done = len(whole) // _AT_ONCE * _AT_ONCE
      write_whole(folder / _DRAFT, b"".join(whole[:done]))
  done, wrong = json.loads(hosts.exchange(json.dumps([done, wrong]))[0])
  if wrong:
    raise InversionViewError(wrong)
  return done


def _append(path: pathlib.Path, lines: list[str]) -> None:
  try:
    with path.open("a", encoding="utf-8") as file:
      file.write("".join(f"{line}\n" for line in lines))
  except OSError as error:
    raise InversionViewError(f"cannot write {path}: {error.strerror}; the same command goes on from there") from None
