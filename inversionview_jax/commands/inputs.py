"""Inputs of a command: texts from arguments and files, and files of queries."""

import argparse
import functools
from collections.abc import Sequence
from typing import Any

from inversionview_jax import values
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import parse_json, read_lines


def _index_or_label(name: str, value: object) -> int | str:
  return values.text(name, value) if isinstance(value, str) else values.whole(name, value, -(2**31), 2**31)


# Of a query in a file: field -> its type; the reader checks the values.
_FIELDS = {
  "text": values.text,
  "site": values.text,
  "position": _index_or_label,
  "epsilon": values.optional(functools.partial(values.number, low=1e-30, high=1e6)),
  "metric": values.optional(values.text),
  "match": values.text,
}


def texts_of(args: argparse.Namespace) -> list[str]:
  """The texts of the arguments and of --texts, in this order.

  Raises:
    InversionViewError: a file that cannot be read or has no texts, a text that is given twice, or texts together with --queries.
  """
  texts = list(args.text)
  if args.texts:
    texts += [line for _, line in read_lines(args.texts, "give a file with one input on each line") if line.strip()]
    if not texts:
      raise InversionViewError(f"{args.texts} has no inputs; write one on each line")
  if texts and getattr(args, "queries", None) is not None:
    raise InversionViewError(
      f"--queries {args.queries} is a number of held-out inputs; leave it out when texts are given"
    )
  if len(set(texts)) < len(texts):
    twice = next(text for text in texts if texts.count(text) > 1)
    raise InversionViewError(f"the text {twice!r} is given twice; give each once")
  return texts


def read_requests(path: str, sites: Sequence[str] = (), position: str | None = None) -> list[dict[str, Any]]:
  """The queries of a file with one on each line: an object of `Request`'s fields, or a text, which is read at each of `sites`.

  Args:
    path: of the file; empty lines are skipped.
    sites, position: of the lines that are texts.

  Returns:
    `Request`'s fields of each query, in the order of the file.

  Raises:
    InversionViewError: a file that cannot be read or has no queries, or a line that is none, named by its number.
  """
  from inversionview_jax.tasks.base import index_or_label

  requests = []
  for number, line in read_lines(path, "give a file with one query on each line"):
    if not line.strip():
      continue
    if line.lstrip().startswith("{"):
      request = parse_json(line, f"{path}, line {number}")
      if missing := {"text", "site", "position"} - set(request):
        raise InversionViewError(f"{path}, line {number} lacks {', '.join(sorted(missing))}")
      if unknown := [name for name in request if name not in _FIELDS]:
        raise one_of(f"field of a query ({path}, line {number}):", unknown[0], _FIELDS)
      for name, check in _FIELDS.items():
        if name in request:
          check(f"{path}, line {number}: {name}", request[name])
      requests.append(request)
      continue
    if not sites or position is None:
      raise InversionViewError(f"{path}, line {number} is a text: give --site and --position for it")
    requests += [{"text": line, "site": site.strip(), "position": index_or_label(position)} for site in sites]
  if not requests:
    raise InversionViewError(f"there are no queries in {path}: write one on each line")
  return requests
