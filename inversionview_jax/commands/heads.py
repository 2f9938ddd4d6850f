"""`inversionview heads`: ranks heads by their share of the residual update at a position."""

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema, terminal
from inversionview_jax.commands import flags
from inversionview_jax.commands.tables import make_table
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.progress import bar

if TYPE_CHECKING:
  import numpy as np

  from inversionview_jax.causal.head_importance import Head
  from inversionview_jax.targets import Target

_DESCRIPTION = """\
Rank heads by their share of the residual update (L1 proximity) over a list of prompts: on how many it exceeds a threshold.

  inversionview heads --target gpt2-xl --task factual --first-layer 24 --known --top 25     (as in the paper, on this package's facts)
  inversionview heads --target MODEL.gguf --prompts prompts.txt
  inversionview heads --task addition --position =

A file of prompts is a .txt with one on each line, or a .jsonl with "prompt" or "text", and, for --known, "answer".
"""


def add_parser(commands: Any) -> None:
  """Adds `heads` to the commands."""
  parser = flags.add_command(
    commands, "heads", run, "find the heads that write most at a position", _DESCRIPTION, overrides=True
  )
  flags.add(parser, "target", unset="the config's, or the one that ships for the task")
  flags.add(parser, "family")
  flags.add(parser, "ignore-config-key", repeated=True)
  flags.add(parser, "convention")
  inputs = parser.add_mutually_exclusive_group(required=True)
  inputs.add_argument("--prompts", metavar="FILE", help="a file of prompts")
  flags.add(inputs, "task")
  flags.add(inputs, "config")
  flags.add(parser, "position", unset="END, or the last token of a prompt")
  parser.add_argument("--known", action="store_true", help="only prompts whose next token the target predicts")
  parser.add_argument(
    "--count", type=flags.count("count"), default=1000, help="prompts that are counted at most (default: 1000)"
  )
  parser.add_argument(
    "--first-layer", type=flags.Whole(0, 10_000), default=0, help="heads of this layer and the later ones (default: 0)"
  )
  parser.add_argument("--last-layer", type=flags.Whole(0, 10_000), help="heads up to this layer (default: the last)")
  parser.add_argument("--threshold", type=flags.Number(0, 1), default=0.02, help="on the share (default: 0.02)")
  parser.add_argument("--top", type=flags.count("top"), default=25, help="heads in the printed table (default: 25)")
  parser.add_argument(
    "--batch-size", type=flags.count("batch_size"), default=16, help="prompts in one run of the target (default: 16)"
  )
  flags.add(parser, "seed", default=0)
  flags.add(parser, "json")


@dataclasses.dataclass(frozen=True)
class _Prompts:
  """What the heads are ranked over, in random order.

  Attributes:
    target: the model.
    task: name of the task the prompts are of; None for a file of prompts.
    tokens: int32[N, T].
    positions: int32[N], where the heads write.
    answers: int32[N], the tokens that follow; None where they are not known.
  """

  target: "Target"
  task: str | None
  tokens: "np.ndarray"
  positions: "np.ndarray"
  answers: "np.ndarray | None"


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints the table and writes the JSON."""
  from inversionview_jax.commands.configs import load_config

  if args.json:
    check_can_hold(args.json)
  import numpy as np

  from inversionview_jax.causal import head_importance

  config = load_config(args.config, rest) if args.config else None
  if config is not None:
    config_schema.check(config, config_schema.HEADS)
    config_schema.check_inputs(config.task, config.get("inputs"))
  if rest and not config:
    raise InversionViewError(f"unknown argument {rest[0]!r}; see inversionview heads --help")
  prompts = _file_prompts(args, config) if args.prompts else _task_prompts(args, config)
  target = prompts.target
  layers = (args.threshold, args.first_layer, args.last_layer)
  head_importance.ranked(
    np.zeros((1, target.config.n_layers, 1)), *layers
  )  # refuses what is out of range, before the work
  if args.known and prompts.answers is None:
    raise InversionViewError(f'--known needs answers: give {args.prompts} as .jsonl with "prompt" and "answer"')
  if args.known:
    target.require_logits()
  with bar("prompts", min(args.count, len(prompts.tokens))) as advance:
    shares, known, tried = _shares(prompts, args, advance)
  if not len(shares):
    raise InversionViewError(f"of {tried:,} prompts the target predicts none; leave out --known")
  heads = head_importance.ranked(shares, *layers)
  predicted = (
    "" if prompts.answers is None or not target.has_logits else f"; of {tried:,} the target predicts {known:,}"
  )
  _print(args, f"target {target.name}, {target.convention}; {len(shares):,} prompts{predicted}\n", heads, len(shares))
  if args.json:
    data = {
      "format": "inversionview-heads",
      "format_version": 1,
      "target": target.describe(),
      "task": prompts.task,
      "prompts": len(shares),
      "looked_at": tried,
      "known": bool(args.known),
      "threshold": args.threshold,
      "seed": args.seed,
      "heads": [dataclasses.asdict(head) for head in heads],
    }
    write_whole(args.json, json.dumps(data, indent=1, allow_nan=False) + "\n")
  return 0


def _shares(
  prompts: _Prompts, args: argparse.Namespace, advance: Callable[[int], None]
) -> tuple["np.ndarray", int, int]:
  """The shares of all heads on --count prompts, batch by batch until there are enough.

  Returns:
    float32[N, L, H]; how many of the prompts that were tried the target predicts; how many were tried.
  """
  import numpy as np

  from inversionview_jax.causal import head_importance
  from inversionview_jax.devices import parallel

  size, answers = args.batch_size, prompts.answers
  shares, known, tried = [], 0, 0
  for start in range(0, len(prompts.tokens), size):
    part = slice(start, start + size)
    rows = len(prompts.tokens[part])
    # Every batch has the same shape, so that one program serves them all.
    tokens, positions = (parallel.pad_rows(x[part], size) for x in (prompts.tokens, prompts.positions))
    values, predicted = head_importance.head_shares(prompts.target, tokens, positions, size)
    right = np.ones(rows, bool) if answers is None or predicted is None else predicted[:rows] == answers[part]
    shares.append(values[:rows][right] if args.known else values[:rows])
    known, tried = known + int(right.sum()), tried + rows
    advance(len(shares[-1]))
    if sum(map(len, shares)) >= args.count:
      break
  return np.concatenate(shares)[: args.count], known, tried


def _task_prompts(args: argparse.Namespace, config: Any) -> _Prompts:
  """Inputs of a task, or of a config's."""
  import numpy as np

  from inversionview_jax import tasks
  from inversionview_jax.targets import task_and_target
  from inversionview_jax.tasks.base import index_or_label

  name = config.task if config else args.task
  task, target = task_and_target(name, _source(args, config), config, **_loading(args))
  if not args.position and not tasks.is_language(name):
    raise InversionViewError(f"give --position: inputs of {name} have no END at which heads are ranked by default")
  order = np.random.default_rng(args.seed).permutation(task.num_inputs)
  tokens = task.tokens(order[: args.count if not args.known else 20 * args.count])
  position = args.position or "END"
  if position == "END" and name == "factual":  # plain sentences among the inputs have no answer
    tokens = tokens[["answer" in task.labels(row) for row in tokens]]
    if not len(tokens):
      raise InversionViewError("there are no facts among the inputs; add some to inputs.sources")
  positions = task.positions(tokens, index_or_label(position))
  following = np.minimum(positions + 1, tokens.shape[1] - 1)
  answers = np.take_along_axis(tokens, following[:, None], axis=1)[:, 0]
  return _Prompts(target, name, tokens, positions, answers)


def _file_prompts(args: argparse.Namespace, config: Any) -> _Prompts:
  """The prompts of a file, with their answers where all have one."""
  import numpy as np

  from inversionview_jax.targets import load_target
  from inversionview_jax.tasks import sources
  from inversionview_jax.tasks.base import index_or_label
  from inversionview_jax.tasks.tokenizer_base import encode_with_bos

  source = _source(args, config)
  if not source:
    raise InversionViewError("prompts from a file need a --target: a checkpoint, or one of this package's")
  target = load_target(source, **_loading(args))
  tokenizer, texts, answers = target.require_tokenizer(), [], []
  for line, record in sources.records(args.prompts):
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str) or not text.strip():
      raise InversionViewError(f'{line} has no prompt: it needs "prompt" or "text"')
    texts.append(text)
    answer = record.get("answer")
    answer = answer.strip() if isinstance(answer, str) else ""
    answers.append(tokenizer.encode(f" {answer}")[0] if answer else None)
  order = np.random.default_rng(args.seed).permutation(len(texts))
  tokens = tokenizer.encode_batch([texts[i] for i in order], eos=False)
  target.check_tokens(tokens)
  lengths = np.array([len(encode_with_bos(tokenizer, texts[i])) for i in order])
  name = args.position or "-1"
  index = index_or_label(name)
  if isinstance(index, str):
    raise InversionViewError(
      f"position {name!r}: prompts from a file have no labels; give an index (-1: the last token)"
    )
  positions = np.where(index < 0, lengths + index, index)
  if wrong := [i for i in range(len(positions)) if not 0 <= positions[i] < lengths[i]]:
    raise InversionViewError(
      f"position {name} is out of range: {texts[order[wrong[0]]]!r} has {lengths[wrong[0]]} tokens"
    )
  known = None if None in answers else np.array(answers)[order]
  return _Prompts(target, None, tokens, positions.astype(np.int32), known)


def _loading(args: argparse.Namespace) -> dict:
  """How the target is read."""
  return {"convention": args.convention, "family": args.family, "ignore_config_keys": args.ignore_config_key or ()}


def _source(args: argparse.Namespace, config: Any) -> str | None:
  """Where the target is; None for the one that ships for the task."""
  return args.target or (config and config.get("target") and config.target.get("path"))


def _print(args: argparse.Namespace, title: str, heads: "list[Head]", prompts: int) -> None:

  console = terminal.console(highlight=False)
  console.print(title, markup=False, soft_wrap=True)
  table = make_table("head", f"share > {args.threshold:g}", "of prompts", "mean share", left=["head"])
  for head in heads[: args.top]:
    table.add_row(head.site, f"{head.over:,}", f"{100 * head.over / prompts:.1f} %", f"{head.mean:.4f}")
  console.print(table)
  listed = "".join(f"'{head.site}'," for head in heads[: args.top])
  terminal.print_text(f'\n--config.sites="({listed})"')
