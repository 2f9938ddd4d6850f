"""`inversionview export`: preimages in the files of other programs."""

import argparse

from inversionview_jax.commands import at_least
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import make_folder

FORMATS = ("inversionview-json",)

_ABOUT = """\
Write preimages as the files that the paper's own viewer loads: a folder for each text, a file for each site, position and metric.

  inversionview export "615+861=1476" --out cached_addition_generation --position + --position = --position A1 --position A2 --position A3
  inversionview export --texts inputs.txt --reader W --site a0.0 --site a1.1 --position = --out D

The viewer's page for addition expects the positions +, =, A1, A2 and A3 of each text; for counting |, query and ":". Those are the
default. `inversionview import` reads such a directory back.
"""
_POSITIONS = {"addition": ("+", "=", "A1", "A2", "A3"), "counting": ("|", "query", ":")}


def add_parser(commands) -> None:
  """Adds `export` to the commands."""
  parser = commands.add_parser(
    "export",
    help="write preimages as files of the paper's viewer",
    description=_ABOUT,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("text", nargs="*", help="inputs of the task")
  parser.add_argument("--texts", metavar="FILE", help="inputs of the task, one on each line")
  parser.add_argument("--format", default=FORMATS[0], help=f"one of: {', '.join(FORMATS)}")
  parser.add_argument("--reader", default="addition", help="a shipped reader or a workdir (default: addition)")
  parser.add_argument("--site", action="append", help="may be repeated (default: all sites of the reader)")
  parser.add_argument("--position", action="append", help="may be repeated (default: those that the viewer expects)")
  parser.add_argument("--mixture", help="how candidates are drawn (default: the task's; the viewer's own is \"paper\")")
  parser.add_argument("--num-samples", type=int, help="candidates per query (default: the mixture's, 1024)")
  parser.add_argument(
    "--shown", type=int, default=100, help="samples in each file (default: 100, as the viewer expects)"
  )
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", required=True, metavar="DIR", help="the directory; made if it is not there")
  parser.set_defaults(run=run)


def run(args, rest) -> int:
  """Draws the preimages and writes the files."""
  del rest
  if args.format not in FORMATS:
    raise one_of("format", args.format, FORMATS)
  at_least(args, shown=1)
  from inversionview_jax.commands.measure import texts_of

  texts = texts_of(args)
  if not texts:
    raise InversionViewError("no inputs to export: give texts, or --texts FILE")
  from inversionview_jax.reading.reader import Request, load_reader
  from inversionview_jax.show import paper_viewer

  reader = load_reader(args.reader)
  positions = args.position or _POSITIONS.get(reader.task.name)
  if not positions:
    raise InversionViewError(f"give --position: the viewer has no page for the task {reader.task.name!r}")
  wanted = args.site or reader.config.sites
  asks = [Request(text, site, place) for text in texts for site in wanted for place in positions]
  folder = make_folder(args.out)
  count = 0
  for ask in asks:
    preimage = reader.preimages([ask], mixture=args.mixture, num_samples=args.num_samples, seed=args.seed)[0]
    count += len(paper_viewer.write(folder, pages(reader, preimage, args.shown)))
  print(f"{count} files of {len(texts)} {'text' if len(texts) == 1 else 'texts'} written to {folder}")
  return 0


def pages(reader, preimage, shown: int = 100) -> list:
  """Both files of one query, from the same candidates: the target is run on them again for the values at every position."""
  import dataclasses

  import numpy as np

  from inversionview_jax import distance
  from inversionview_jax.measures.consistency import Members
  from inversionview_jax.show import paper_viewer

  tokens = Members.of(preimage, reader.task).tokens
  site = reader.target.site(preimage.query.site)
  held, made = reader.target.run(tokens, [site])[site], []
  z = np.array(preimage.query.activation, np.float32)
  counted = np.asarray(reader.task.counted_mask(tokens))
  for kind, metric in paper_viewer.METRICS.items():
    each = np.where(counted, np.asarray(distance.distance(metric, held, z)), np.nan)
    best = np.nanargmin(each, axis=1)
    samples = [
      dataclasses.replace(sample, distance=float(row[place]), position=int(place))
      for sample, row, place in zip(preimage.samples, each, best, strict=True)
    ]
    own = dataclasses.replace(preimage, samples=samples, metric=metric, epsilon=preimage.epsilon)
    order = np.argsort([sample.distance for sample in samples], kind="stable")
    made.append(paper_viewer.page_of(own, each[order], kind, shown))
  return made
