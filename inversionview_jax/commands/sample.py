"""`inversionview sample`: the preimages of many queries, over all devices of all hosts."""

import argparse
import json
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags, source
from inversionview_jax.commands.inputs import read_requests
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_make, output_folder, read_json, write_whole
from inversionview_jax.progress import bar
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from inversionview_jax.reading.source import Source

_DESCRIPTION = """\
Draw the preimages of many queries; candidates are spread over all devices, of all hosts if there are several (run the same command on each).

  inversionview sample --reader W --requests queries.jsonl --out DIR
  inversionview sample --reader addition --requests texts.txt --site a0.0 --site x1.mid --position = --out DIR
  inversionview sample --target addition --requests queries.jsonl --out DIR               # no reader: Monte Carlo on the target

FILE has a query on each line: an object such as {"text": "615+861=1476", "site": "a0.0", "position": "="} (also epsilon, metric, match), or
a text, which is read at every --site. DIR/preimages.jsonl gets a preimage on each line, in the order of the queries (Preimage.from_json
reads a line). The same command again resumes where it was interrupted, and does nothing if it is done; one process at a time writes into DIR.
Monte Carlo runs on one host.
"""
_FILE, _DRAFT, _SETTINGS = "preimages.jsonl", "preimages.part", "sample.json"
_MODELS = "models"  # the setting that names what was read by its fingerprints; results of versions before 0.2 lack it
_IN_USE = "wait for it, stop it, or give another --out"
_CHUNK = 8  # queries of the decoder between two writes
_USES = {"decoder": ("no_effects",)}


def add_parser(commands: Any) -> None:
  """Adds `sample` to the commands."""
  parser = flags.add_command(commands, "sample", run, "the preimages of many queries, on all devices", _DESCRIPTION)
  source.add_flags(parser, default="decoder; without a reader monte_carlo")
  parser.add_argument("--requests", required=True, metavar="FILE", help="a file with a query on each line")
  flags.add(parser, "site", repeated=True, unset="none; needed for lines that are texts")
  flags.add(parser, "position", unset="none; needed for lines that are texts")
  flags.add(parser, "out", required=True)
  parser.add_argument("--no-effects", action="store_true", help="leave out the effect of each token, for less work")
  flags.add(parser, "seed", default=0)
  parser.add_argument(
    "--mesh-model",
    type=flags.Whole(1, 100_000),
    default=1,
    help="devices over which parameters are sharded (default: 1)",
  )
  flags.add_hosts(parser)


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Writes the preimages."""
  del rest
  requests = read_requests(args.requests, args.site or (), args.position)
  method = source.check(args, "decoder", **_USES)
  if args.mesh_model != 1 and method != "decoder":
    raise InversionViewError(f"--mesh-model has no effect with --method {method}: leave it out, or use decoder")
  from ml_collections import ConfigDict

  from inversionview_jax.devices import hosts, parallel

  hosts.start(*flags.hosts_of(args))
  if method != "decoder" and hosts.is_multihost():
    raise InversionViewError(f"--method {method} runs on one host: divide the requests, or use --method decoder")
  settings = {name: getattr(args, name) for name in ("reader", "num_samples", "mixture", "no_effects", "seed")}
  settings["reader"] = args.reader or (None if args.target else "addition")
  others = {"target": args.target, "task": args.task, "particles": args.particles, "budget": args.budget}
  others["method"] = None if method == "decoder" else method
  settings |= {
    name: value for name, value in others.items() if value is not None
  }  # as version 0.1 wrote them otherwise
  settings["queries"] = requests
  hosts.require_same("queries", settings)
  hosts.print_on_first_host_only()
  mesh = parallel.mesh_of(ConfigDict({"mesh": {"model": args.mesh_model}}))
  check_can_make(args.out)
  drawn_from = source.source_of(args, "decoder", mesh=mesh, **_USES)
  for start in range(0, len(requests), _CHUNK):  # a query that is refused is reported before any work
    drawn_from.check(requests[start : start + _CHUNK])
  settings[_MODELS] = _models(drawn_from)
  hosts.require_same("models", settings[_MODELS])
  hosts.all_true(True)  # every host has checked before one writes
  with output_folder(args.out) as folder, hosts.exclusive(folder, _IN_USE):
    done = _count_done(folder, settings, _CHUNK if method == "decoder" else 1)
    if hosts.all_true(done == len(requests) and (not hosts.is_writer() or (folder / _FILE).exists())):
      print_text(f"{folder / _FILE}: all {len(requests):,} preimages are there")
      return 0
    if hosts.is_writer():
      write_whole(folder / _SETTINGS, json.dumps(settings) + "\n")
    rate = _draw(drawn_from, requests, args, folder, done)
    if hosts.is_writer():
      (folder / _DRAFT).replace(folder / _FILE)
  kind = "candidates" if drawn_from.method == "decoder" else "inputs" if drawn_from.method == "exact" else "particles"
  share = f"; of the {kind} {rate:.1%} are inside epsilon" if done < len(requests) else ""
  print_text(f"{len(requests):,} preimages in {folder / _FILE}{share}")
  return 0


def _models(drawn_from: "Source") -> dict[str, Any]:
  """What the preimages are of, whatever its name or folder: fingerprints of the target and the decoder, and the task."""
  reader, target, task = drawn_from.reader, drawn_from.target, drawn_from.task
  return {
    "target": target.fingerprint,
    "convention": target.convention,
    "decoder": reader.fingerprint if reader is not None else None,
    "task": task.name,
    "task_settings": task.settings,
  }


def _draw(
  drawn_from: "Source", requests: list[dict[str, Any]], args: argparse.Namespace, folder: pathlib.Path, done: int
) -> float:
  """Draws the preimages from query number `done` on and appends them to the draft; returns their mean in-epsilon rate."""
  from inversionview_jax.devices import hosts

  total, unconverged = 0.0, 0
  size = drawn_from.at_once
  with bar("sampling", len(requests), hosts.is_writer(), done) as advance:
    for start in range(done, len(requests), size):
      preimages = drawn_from.preimages(
        requests[start : start + size], effects=not args.no_effects, seed=args.seed, chunk=_CHUNK
      )
      total += sum(preimage.rate for preimage in preimages)
      unconverged += sum(preimage.converged is False for preimage in preimages)
      if hosts.is_writer():
        _append(folder / _DRAFT, [preimage.to_json() for preimage in preimages])
      advance(len(preimages))
  if unconverged:
    print_text(f'{unconverged:,} of {len(requests) - done:,} have not converged; each has its "problem"')
  return total / max(len(requests) - done, 1)


def _count_done(folder: pathlib.Path, settings: dict[str, Any], chunk: int) -> int:
  """How many preimages an earlier run of the same command has written, as the writing host finds them; an unfinished chunk is removed.

  Args:
    folder: of the results.
    settings: those of this run.
    chunk: preimages that are written together.

  Raises:
    InversionViewError: the folder holds preimages of other queries or settings.
  """
  from inversionview_jax.devices import hosts

  done, refusal = 0, ""
  if hosts.is_writer():
    try:
      done = _found(folder, json.loads(json.dumps(settings)), chunk)
    except InversionViewError as error:
      refusal = str(error)
  done, refusal = json.loads(hosts.exchange(json.dumps([done, refusal]))[0])
  if refusal:
    raise InversionViewError(refusal)
  return done


def _found(folder: pathlib.Path, settings: dict[str, Any], chunk: int) -> int:
  """`_count_done` on the host that writes."""
  if not (folder / _SETTINGS).exists():
    if stray := [name for name in (_FILE, _DRAFT) if (folder / name).exists()]:
      raise InversionViewError(f"{folder / stray[0]} is there without its {_SETTINGS}: move it, or give another --out")
    return 0
  other = f"{folder} holds the preimages of other queries or settings; give another --out"
  try:
    stored = read_json(folder / _SETTINGS)
  except InversionViewError:
    raise InversionViewError(other) from None
  if (
    not isinstance(stored, dict)
    or not isinstance(stored.get(_MODELS, {}), dict)
    or {**stored, _MODELS: None} != {**settings, _MODELS: None}
  ):
    raise InversionViewError(other)
  if stored.get(_MODELS, settings[_MODELS]) != settings[_MODELS]:
    changed = [name for name, value in settings[_MODELS].items() if stored[_MODELS].get(name) != value]
    raise InversionViewError(
      f"{folder} holds preimages of another model under the same name (its {changed[0]} is another one now); give another --out"
    )
  total = len(settings["queries"])
  if (folder / _FILE).exists():
    if (lines := len(_whole_lines(folder / _FILE))) != total:
      raise InversionViewError(f"{folder / _FILE} holds {lines:,} of {total:,} preimages: remove it to draw them again")
    return total
  if not (folder / _DRAFT).exists():
    return 0
  whole = _whole_lines(folder / _DRAFT)
  done = min(len(whole), total) // chunk * chunk
  write_whole(folder / _DRAFT, b"".join(whole[:done]))
  return done


def _whole_lines(path: pathlib.Path) -> list[bytes]:
  """The lines of a file that have an end."""
  return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _append(path: pathlib.Path, lines: list[str]) -> None:
  try:
    with path.open("a", encoding="utf-8") as file:
      file.write("".join(f"{line}\n" for line in lines))
  except OSError as error:
    raise InversionViewError(f"cannot write {path}: {error.strerror}; the same command resumes from there") from None
