"""`inversionview heads`: which heads write most of the residual update at a position."""

import argparse
import dataclasses
import json
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole

_DESCRIPTION = """\
Rank heads by their share of the residual update (L1 proximity) over a list of prompts: on how many it exceeds a threshold.

  inversionview heads --target gpt2-xl --task factual --first-layer 24 --known --top 25     (as in the paper, on this package's facts)
  inversionview heads --target MODEL.gguf --prompts prompts.txt
  inversionview heads --task addition --position =

A file of prompts is a .txt with one on each line, or a .jsonl with "prompt" or "text", and for --known "answer".
"""


def add_parser(commands: Any) -> None:
  """Adds `heads` to the commands."""
  parser = flags.add_command(
    commands, "heads", run, "find the heads that write most at a position", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "target", unset="the config's, or the one that ships for the task")
  flags.add(parser, "convention")
  inputs = parser.add_mutually_exclusive_group(required=True)
  inputs.add_argument("--prompts", metavar="FILE", help="a file of prompts")
  flags.add(inputs, "task")
  flags.add(inputs, "config")
  flags.add(parser, "position", unset="END, or the last token of a prompt")
  parser.add_argument("--known", action="store_true", help="only prompts whose next token the target predicts")
  parser.add_argument("--count", type=int, default=1000, help="prompts that are counted at most (default: 1000)")
  parser.add_argument("--first-layer", type=int, default=0, help="heads of this layer and the later ones (default: 0)")
  parser.add_argument("--last-layer", type=int, help="heads up to this layer (default: the last)")
  parser.add_argument("--threshold", type=float, default=0.02, help="on the share (default: 0.02)")
  parser.add_argument("--top", type=int, default=25, help="heads in the printed table (default: 25)")
  parser.add_argument("--batch-size", type=int, default=16, help="prompts in one run of the target (default: 16)")
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints the table and writes the JSON."""
  from inversionview_jax.commands.configs import load_config

  flags.check_at_least(args, count=1, top=1, batch_size=1, seed=0)
  if args.json:
    check_can_hold(args.json)
  import numpy as np

  from inversionview_jax.causal import head_importance
  from inversionview_jax.devices import parallel

  config = load_config(args.config, rest) if args.config else None
  if rest and not config:
    raise InversionViewError(f"unknown argument {rest[0]!r}; see inversionview heads --help")
  target, task, tokens, at, answers = _prompts(args, config)
  head_importance.ranked(np.zeros((1, target.config.n_layers, 1)), args.threshold, args.first_layer, args.last_layer)
  if args.known and answers is None:
    raise InversionViewError(f'--known needs answers: give {args.prompts} as .jsonl with "prompt" and "answer"')
  if args.known:
    target.require_logits()
  shares, known, looked = [], 0, 0
  for start in range(0, len(tokens), args.batch_size):
    part = slice(start, start + args.batch_size)
    found, predicted = head_importance.head_shares(
      target, *(parallel.pad_rows(x[part], args.batch_size) for x in (tokens, at)), args.batch_size
    )
    some = len(tokens[part])
    right = np.ones(some, bool) if answers is None or predicted is None else predicted[:some] == answers[part]
    shares.append(found[:some][right] if args.known else found[:some])
    known, looked = known + int(right.sum()), looked + some
    if sum(map(len, shares)) >= args.count:
      break
  shares = np.concatenate(shares)[: args.count]
  if not len(shares):
    raise InversionViewError(f"of {looked:,} prompts the target predicts none; leave out --known")
  heads = head_importance.ranked(shares, args.threshold, args.first_layer, args.last_layer)
  _print(args, target, shares, heads, known if answers is not None and target.has_logits else None, looked)
  if args.json:
    data = {
      "format": "inversionview-heads",
      "format_version": 1,
      "target": target.describe(),
      "task": task,
      "prompts": len(shares),
      "looked_at": looked,
      "known": bool(args.known),
      "threshold": args.threshold,
      "seed": args.seed,
      "heads": [dataclasses.asdict(head) for head in heads],
    }
    write_whole(args.json, json.dumps(data, indent=1, allow_nan=False) + "\n")
  return 0


def _prompts(args, config):
  """-> target, the task's name, int32[N, T], int32[N] positions, int32[N] tokens that follow them (or None)."""
  import numpy as np

  from inversionview_jax import tasks
  from inversionview_jax.targets import load_target, task_and_target
  from inversionview_jax.tasks.base import index_or_label

  source = args.target or (config and config.get("target") and config.target.get("path"))
  if args.prompts:
    if not source:
      raise InversionViewError("prompts of your own need a --target: a checkpoint, or one of this package's")
    return _from_file(args, load_target(source, args.convention))
  name = config.task if config else args.task
  task, target = task_and_target(name, source, config, convention=args.convention)
  if not args.position and not tasks.is_language(name):
    raise InversionViewError(f"say with --position where to look at inputs of {name}")
  order = np.random.default_rng(args.seed).permutation(task.num_inputs)
  tokens = task.tokens(order[: args.count if not args.known else 20 * args.count])
  where = args.position or "END"
  if where == "END" and name == "factual":  # sentences have no answer
    tokens = tokens[["answer" in task.labels(row) for row in tokens]]
    if not len(tokens):
      raise InversionViewError("there are no facts among the inputs; add some to inputs.sources")
  at = task.positions(tokens, index_or_label(where))
  following = np.take_along_axis(tokens, np.minimum(at + 1, tokens.shape[1] - 1)[:, None], axis=1)[:, 0]
  return target, name, tokens, at, following


def _from_file(args, target):
  import numpy as np

  from inversionview_jax.tasks import sources
  from inversionview_jax.tasks.base import index_or_label

  t, texts, answers = target.require_tokenizer(), [], []
  for where, record in sources.records(args.prompts):
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
      raise InversionViewError(f'{where} has no prompt: it needs "prompt" or "text"')
    texts.append(text)
    answer = record.get("answer")
    answers.append(t.encode(f" {answer.strip()}")[0] if isinstance(answer, str) and answer.strip() else None)
  order = np.random.default_rng(args.seed).permutation(len(texts))
  tokens = t.encode_batch([texts[i] for i in order], eos=False)
  target.check_tokens(tokens)
  lengths = np.array([1 + len(t.encode(texts[i])) for i in order])
  where = args.position or "-1"
  index = index_or_label(where)
  if isinstance(index, str):
    raise InversionViewError(
      f"position {where!r}: prompts of your own have no labels; give an index (-1: the last token)"
    )
  at = np.where(index < 0, lengths + index, index)
  if wrong := [i for i in range(len(at)) if not 0 <= at[i] < lengths[i]]:
    raise InversionViewError(
      f"position {where} is out of range: {texts[order[wrong[0]]]!r} has {lengths[wrong[0]]} tokens"
    )
  following = None if None in answers else np.array(answers)[order]
  return target, None, tokens, at.astype(np.int32), following


def _print(args, target, shares, heads, known, looked) -> None:
  from rich.console import Console
  from rich.table import Table

  console = Console(highlight=False)
  console.print(
    f"target {target.name}, {target.convention}; {len(shares):,} prompts"
    + (f"; of {looked:,} the target predicts {known:,}" if known is not None else "")
    + "\n",
    markup=False,
    soft_wrap=True,
  )
  table = Table(box=None, pad_edge=False, header_style="dim")
  table.add_column("head")
  for column in (f"share > {args.threshold:g}", "of prompts", "mean share"):
    table.add_column(column, justify="right")
  for head in heads[: args.top]:
    table.add_row(head.site, f"{head.over:,}", f"{100 * head.over / len(shares):.1f} %", f"{head.mean:.4f}")
  console.print(table)
  listed = "".join(f"'{head.site}'," for head in heads[: args.top])
  print(f'\n--config.sites="({listed})"')
