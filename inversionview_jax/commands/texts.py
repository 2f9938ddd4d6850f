"""`inversionview texts`: texts that a language model writes, to train a reader on or to read activations of."""

import argparse
import json
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.terminal import print_text

_DESCRIPTION = """\
Let a language model write texts: drawn from its own distribution behind BOS, special tokens left out, of lengths from 4 tokens to the longest.

  inversionview texts --target MODEL.gguf --count 5
  inversionview texts --target MODEL.gguf --count 8192 --tokens 14 --out texts.jsonl
  inversionview train --config text --target MODEL.gguf --config.inputs.files=texts.jsonl --config.inputs.length=16 --workdir W

Text i is the same for every --count. `inversionview train --config text:written` needs no such file, but writes its texts anew when it is resumed.
"""


def add_parser(commands: Any) -> None:
  """Adds `texts` to the commands."""
  parser = flags.add_command(commands, "texts", run, "let a language model write texts", _DESCRIPTION)
  flags.add(parser, "target", required=True)
  flags.add(parser, "family")
  parser.add_argument("--count", type=flags.count("count"), default=10, help="texts (default: 10)")
  parser.add_argument("--tokens", type=flags.Whole(1, 100_000), default=22, help="tokens of the longest (default: 22)")
  parser.add_argument(
    "--out",
    metavar="FILE",
    help="a .jsonl file instead of printed lines, which then has an object with `text` on each line",
  )


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Writes the texts."""
  import numpy as np

  from inversionview_jax.sampling.written import written_by
  from inversionview_jax.targets import task_and_target

  del rest
  if args.out:
    if not args.out.endswith(".jsonl"):
      raise InversionViewError(
        f"--out {args.out}: texts have line breaks of their own; give a file that is called .jsonl"
      )
    check_can_hold(args.out)
  task, target = task_and_target("text", args.target, settings={"length": args.tokens + 2}, family=args.family)
  tokenizer = target.require_tokenizer()
  rows = written_by(task, target).tokens(np.arange(args.count))
  ordinary = [[int(i) for i in row if i not in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)] for row in rows]
  texts = [tokenizer.text(ids) for ids in ordinary]
  lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
  if not args.out:
    print_text("\n".join(lines))
    return 0
  write_whole(args.out, "\n".join(lines) + "\n")
  others = sum(tokenizer.encode(text) != ids for text, ids in zip(texts, ordinary, strict=True))
  print_text(f"{args.count:,} texts in {args.out}; {others:,} of them are tokenized otherwise when they are read again")
  return 0
