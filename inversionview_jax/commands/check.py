"""`inversionview check`: tests a claim about an activation."""

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from inversionview_jax import tasks, terminal
from inversionview_jax.commands import flags, source
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.progress import bar_of

if TYPE_CHECKING:
  from inversionview_jax.interpret.sentences import Translation
  from inversionview_jax.measures.claim_check import ClaimCheck
  from inversionview_jax.preimage import Preimage
  from inversionview_jax.tasks import Task

_COLORS = {"confirmed": "green", "refuted": "red", "not testable": "yellow"}
_DESCRIPTION = f"""\
Test a claim about an activation on the inputs that put nearly the same activation there: confirmed, refuted with counterexamples, or not testable.

  inversionview check "C2 == 0" --text "615+861=1476" --target addition --site a1.1 --position =
  inversionview check "F1 + S1" --text "615+861=1476" --site x1.post --position = --json claim.json
  inversionview check 'contains("John") and token(S2) != token(IO)' --preimage P.json
  inversionview check "The tens do not carry." --text "615+861=1476" --site a1.1 --position = --model MODEL

A condition claims that it holds for every input inside epsilon; a value, such as F1 + S1, that it is that of the query for all of them.
Functions of tokens: token(POSITION) at a label or an index, compared by == or !=; contains("..."), count("..."), regex("..."), length.
With --model, a claim that is no expression is a sentence, which a language model turns into one; it is printed and kept in --json.

{source.METHODS_HELP}
The default is monte_carlo, from the prior, whose particles follow the task's inputs inside epsilon. Without --budget the activation itself has
800,000 target runs, where it needs them, and those that it is compared with the default.
"""
_OF_DRAWING = (  # flags that mean something only where preimages are drawn
  "reader", "target", "task", "method", "text", "site", "position", "particles", "budget", "num_samples", "mixture", "seed", "metric", "match",
  "controls", "others",
)  # fmt: skip
_OF_MODEL = ("base_url", "replay")


def add_parser(commands: Any) -> None:
  """Adds `check` to the commands."""
  parser = flags.add_command(commands, "check", run, "test a claim about an activation", _DESCRIPTION)
  parser.add_argument("claim", type=flags.given, help="an expression; with --model also a sentence")
  parser.add_argument("--text", type=flags.given, help="an input of the task (needed without --preimage)")
  source.add_flags(parser, default="monte_carlo, or decoder where the task has no moves or is of a language model")
  flags.add(parser, "site", unset="none; needed without --preimage")
  flags.add(parser, "position", unset="none; needed without --preimage")
  flags.add(parser, "epsilon")
  flags.add(parser, "metric")
  flags.add(parser, "match", unset="anywhere")
  parser.add_argument(
    "--preimage",
    type=flags.given,
    metavar="FILE",
    help="test it on a preimage that `view --json` wrote; nothing is drawn",
  )
  parser.add_argument(
    "--controls",
    type=flags.count("controls", least=0),
    help="for given texts: activations of other inputs that serve as the control (default: 4)",
  )
  parser.add_argument(
    "--others",
    type=flags.count("controls", least=0),
    help="other activations of the same text, the text-only baseline (default: 3)",
  )
  flags.add(parser, "seed", unset="0")
  parser.add_argument(
    "--model", type=flags.given, help="name of the language model at the endpoint (it translates a sentence)"
  )
  parser.add_argument("--base-url", help="of the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
  parser.add_argument(
    "--replay", metavar="FILE", help='take answers from lines {"hash": ..., "text": ...}; no request is sent'
  )
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Tests the claim and prints the verdict; 0 whatever it is."""
  del rest
  _check(args)
  outcome = _of_saved(args) if args.preimage else _of_activation(args)
  if outcome is None:
    return 0
  result, translation = outcome
  if translation is not None:
    result = dataclasses.replace(result, sentence=translation.sentence)
  _print(result)
  if args.json:
    content = result.to_dict() | {"translation": translation and translation.to_dict()}
    write_whole(args.json, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
  return 0


_Outcome = tuple["ClaimCheck", "Translation | None"]  # the test, and the translation of a sentence


def _of_saved(args: argparse.Namespace) -> _Outcome | None:
  """The claim tested on the preimage of --preimage; None for a sentence without an expression, which is reported."""
  from inversionview_jax.measures import claims

  preimage = _saved(args)
  task, query = tasks.get(preimage.task), preimage.query
  claim, translation = _expression(args, task, query.text, list(query.tokens))
  return (claims.check_preimage(preimage, claim, task), translation) if claim else None


def _of_activation(args: argparse.Namespace) -> _Outcome | None:
  """The claim tested on the preimage of --text, --site and --position, as `_of_saved`."""
  from inversionview_jax.measures import claims

  drawn_from = source.source_of(args, "monte_carlo")
  drawn_from.check_site(args.site)
  request = {name: getattr(args, name) for name in ("text", "site", "position", "epsilon", "metric")}
  (resolved,) = drawn_from.check([request | {"match": args.match or "anywhere"}])
  tokens = [int(i) for i in resolved.tokens if i != drawn_from.task.tokenizer.pad_id]
  claim, translation = _expression(args, drawn_from.task, args.text, tokens)
  if not claim:
    return None
  source.note_decoder(args, drawn_from)
  source.note_other_text(drawn_from.task, args.text)
  names = ("epsilon", "metric", "match", "controls", "others", "seed")
  how: dict[str, Any] = {name: value for name in names if (value := getattr(args, name)) is not None}
  with bar_of("preimages") as progress:
    return claims.check(drawn_from, claim, args.text, args.site, args.position, progress=progress, **how), translation


def _expression(
  args: argparse.Namespace, task: "Task", text: str, tokens: list[int]
) -> "tuple[str, Translation | None]":
  """The claim as an expression, and its translation where it was a sentence; "" for a sentence without one, which is reported."""
  translation = _translated(args, task, text, tokens)
  if translation is None:
    return args.claim, None
  terminal.print_text(f"translated   {translation.expression or 'no expression'}")
  if not translation.expression:
    _write_untranslated(args, translation)
  return translation.expression, translation


def _check(args: argparse.Namespace) -> None:
  """Raises `InversionViewError` for flags that do not go together, and for a file that cannot be written."""
  if args.json:
    check_can_hold(args.json)
  if args.model is None:
    for name in _OF_MODEL:
      if getattr(args, name) is not None:
        raise InversionViewError(f"--{name.replace('_', '-')} belongs to --model: give it, or leave this out")
  if args.preimage:
    for name in _OF_DRAWING:
      if getattr(args, name) is not None:
        raise InversionViewError(
          f"--{name.replace('_', '-')} has no effect on a saved preimage: leave it out, or leave out --preimage"
        )
    return
  for name in ("text", "site", "position"):
    if getattr(args, name) is None:
      raise InversionViewError(
        f"give --{name} of the activation that the claim is about, or --preimage with its preimage"
      )
  source.check(args, "monte_carlo")


def _saved(args: argparse.Namespace) -> "Preimage":
  """The preimage of --preimage, at the epsilon of --epsilon."""
  from inversionview_jax.preimage import Preimage

  preimage = Preimage.from_json(args.preimage)
  if tasks.is_language(preimage.task):
    raise InversionViewError(
      f"{args.preimage} is of the task {preimage.task!r}, whose tokens only a target has: give --target and --text in place of --preimage"
    )
  return preimage if args.epsilon is None else preimage.at(args.epsilon)


def _translated(args: argparse.Namespace, task: "Task", text: str, tokens: list[int]) -> "Translation | None":
  """The translation of a sentence; None where the claim is an expression. Raises `InversionViewError` where it is neither."""
  from inversionview_jax.measures import claims

  try:
    claims.check_claim(task, args.claim, tokens)
    return None
  except InversionViewError as error:
    # A sentence has several words; what nearly is an expression should not become another one.
    if args.model is None or len(args.claim.split()) < 3:
      hint = "; a sentence needs --model" if args.model is None else ""
      raise InversionViewError(f"{error}{hint}") from None
  from inversionview_jax.interpret import language_model, sentences

  endpoint = language_model.Endpoint(args.model, args.base_url)
  return sentences.translate(args.claim, task, text, tokens, endpoint, replay=args.replay)


def _write_untranslated(args: argparse.Namespace, translation: "Translation") -> None:
  """Prints and writes the verdict on a sentence that has no expression."""
  from inversionview_jax.measures import claim_check

  console = terminal.console(highlight=False)
  why = f"the sentence has no expression over features and tokens: {translation.why}"
  console.print(f"[{_COLORS['not testable']}]not testable[/]  {escaped(why)}", soft_wrap=True)
  if args.json:
    content = {
      "format": claim_check.FORMAT,
      "format_version": claim_check.FORMAT_VERSION,
      "claim": "",
      "sentence": translation.sentence,
    }
    content |= {"verdict": "not testable", "why": why, "counterexamples": [], "translation": translation.to_dict()}
    write_whole(args.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def escaped(text: str) -> str:
  """Plain text for a console that reads markup."""
  from rich.markup import escape

  return escape(terminal.visible(text))


def _print(result: "ClaimCheck") -> None:
  """The verdict with its reason, the numbers and the counterexamples."""
  from inversionview_jax.preimage.methods import METHODS

  console = terminal.console(highlight=False)
  title, *lines = str(result).split("\n")
  del title
  query = result.query
  what = "reader" if "decoder" in result.method else "target"
  console.print(
    escaped(
      f'{query.site} at "{query.label or query.position}" of {query.text!r} ({what} {result.reader}, task {result.task})'
    )
  )
  console.print(escaped(f"epsilon {result.epsilon:g}; {METHODS[result.method]}"))
  color = _COLORS[result.verdict]
  console.print(
    f"\n[{color}]{result.verdict}[/]  [bold]{escaped(result.claim)}[/]: {escaped(result.why)}", soft_wrap=True
  )
  for line in lines:
    console.print(escaped(line), soft_wrap=True)
  if not result.from_prior:
    console.print(
      "[dim]the inputs are candidates as the decoder draws them: what it does not propose was not tested[/]"
    )
