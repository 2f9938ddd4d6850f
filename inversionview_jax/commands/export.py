"""`inversionview export`: writes preimages as files of the paper's own viewer."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.commands.inputs import texts_of
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import check_can_make, files_together
from inversionview_jax.progress import counted, following
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from inversionview_jax.preimage import Preimage
  from inversionview_jax.reading import Reader
  from inversionview_jax.show.paper_viewer import Page

FORMATS = ("inversionview-json",)

_DESCRIPTION = """\
Write preimages as the files that the paper's own viewer loads: a folder for each text, a file for each site, position and metric.

  inversionview export "615+861=1476" --out cached_addition_generation --position + --position = --position A1 --position A2 --position A3
  inversionview export --texts inputs.txt --reader W --site a0.0 --site a1.1 --position = --out D

The viewer's page for addition expects the positions +, =, A1, A2 and A3 of each text; for counting |, query and ":". Those are the
default. `inversionview import` reads such a directory back.
"""
_POSITIONS = {"addition": ("+", "=", "A1", "A2", "A3"), "counting": ("|", "query", ":")}


def add_parser(commands: Any) -> None:
  """Adds `export` to the commands."""
  parser = flags.add_command(commands, "export", run, "write preimages as files of the paper's viewer", _DESCRIPTION)
  parser.add_argument("text", nargs="*", help="inputs of the task")
  flags.add(parser, "texts")
  parser.add_argument("--format", default=FORMATS[0], help=f"one of: {', '.join(FORMATS)}")
  flags.add(parser, "reader", default="addition")
  flags.add(parser, "site", repeated=True, unset="all sites of the reader")
  flags.add(parser, "position", repeated=True, unset="those that the viewer expects")
  flags.add(parser, "mixture")
  flags.add(parser, "num-samples")
  flags.add(parser, "shown", default=100)
  flags.add(parser, "seed", default=0)
  flags.add(parser, "out", required=True)


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Draws the preimages and writes the files."""
  del rest
  if args.format not in FORMATS:
    raise one_of("format", args.format, FORMATS)
  texts = texts_of(args)
  if not texts:
    raise InversionViewError("no inputs to export: give texts, or --texts FILE")
  check_can_make(args.out)
  from inversionview_jax.reading import Request, load_reader
  from inversionview_jax.show import paper_viewer

  reader = load_reader(args.reader)
  positions = args.position or _POSITIONS.get(reader.task.name)
  if not positions:
    raise InversionViewError(f"give --position: the viewer has no page for the task {reader.task.name!r}")
  sites = args.site or reader.config.sites
  requests = [Request(text, site, position) for text in texts for site in sites for position in positions]
  reader.check(requests)  # all of them, before the work
  count = 0
  with files_together(args.out) as folder, following("preimages"):
    for request in counted(requests):
      preimage = reader.preimages([request], mixture=args.mixture, num_samples=args.num_samples, seed=args.seed)[0]
      count += len(paper_viewer.write(folder, pages(reader, preimage, args.shown)))
  print_text(f"{count} files of {len(texts)} {'text' if len(texts) == 1 else 'texts'} written to {args.out}")
  return 0


def pages(reader: "Reader", preimage: "Preimage", shown: int = 100) -> list["Page"]:
  """Both files of one query, distance and similarity, from the same candidates.

  The target is run on the candidates again for the values at every position, which a `Preimage` does not keep.

  Args:
    reader: of the preimage.
    preimage: with effects.
    shown: samples in each file at most.
  """
  import jax.numpy as jnp
  import numpy as np

  from inversionview_jax import distance
  from inversionview_jax.measures.consistency import Members
  from inversionview_jax.show import paper_viewer

  tokens = Members.of(preimage, reader.task).tokens
  site = reader.target.site(preimage.query.site)
  activations, files = reader.target.run(tokens, [site])[site], []
  query = jnp.asarray(preimage.query.activation, jnp.float32)
  compared = np.asarray(reader.task.counted_mask(tokens))
  for kind, metric in paper_viewer.METRICS.items():
    distances = np.where(compared, np.asarray(distance.distance(metric, activations, query)), np.nan)
    nearest = np.nanargmin(distances, axis=1)
    samples = tuple(
      dataclasses.replace(sample, distance=float(row[position]), position=int(position))
      for sample, row, position in zip(preimage.samples, distances, nearest, strict=True)
    )
    own = dataclasses.replace(preimage, samples=samples, metric=metric)
    order = np.argsort([sample.distance for sample in samples], kind="stable")
    files.append(paper_viewer.page_of(own, distances[order], kind, shown))
  return files
