"""`inversionview interpret`: a language model reads saved preimages, and its answers are tested."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from inversionview_jax import terminal
from inversionview_jax.commands import flags, source
from inversionview_jax.commands.inputs import texts_of
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_make, files_together, output_folder, path_of, write_whole
from inversionview_jax.progress import bar_of, bars

if TYPE_CHECKING:
  from inversionview_jax.interpret import Answer, PreimageGroup, Score
  from inversionview_jax.preimage import Preimage

_COLORS = {"confirmed": "green", "refuted": "red", "not testable": "yellow"}
_DESCRIPTION = """\
Ask a language model what an activation encodes, from saved preimages of several queries of one site and position, and test its answer: it
is also given as an expression over the task's features, which is measured on the preimages and reported as confirmed, refuted or not testable.

  inversionview interpret --target addition --site a1.1 --position = --inputs 8 --model MODEL --out I     (draws them itself)
  inversionview view "615+861=1476" --site a0.0 --position = --json P/1.json        (and some more)
  OPENAI_API_KEY=... inversionview interpret P --model MODEL --out I
  inversionview interpret P --model local --base-url http://127.0.0.1:8080/v1 --out I     (llama.cpp, vLLM, ...)
  inversionview interpret P --model MODEL --out I --prompts-only                          (then answer them yourself)
  inversionview interpret P --model MODEL --out I --replay answers.jsonl

Answers are kept in OUT/answers by the hash of their prompt; the same command again sends only the prompts that have none. Writes
OUT/interpretations.json. Without saved preimages, those of --texts or of held-out inputs are drawn and kept in OUT/preimages.
"""
_OF_DRAWING = (  # flags that mean something only where preimages are drawn
  "reader", "target", "task", "method", "site", "position", "texts", "inputs", "particles", "budget", "num_samples", "mixture", "seed",
)  # fmt: skip


def add_parser(commands: Any) -> None:
  """Adds `interpret` to the commands."""
  parser = flags.add_command(
    commands, "interpret", run, "let a language model read preimages, and test what it says", _DESCRIPTION
  )
  parser.add_argument(
    "preimages", nargs="*", help="files that `view --json` wrote, or folders of them (default: they are drawn)"
  )
  source.add_flags(parser)
  flags.add(parser, "site", unset="none; needed without saved preimages")
  flags.add(parser, "position", unset="none; needed without saved preimages")
  flags.add(parser, "texts")
  parser.add_argument(
    "--inputs", type=flags.count("count"), help="without --texts: so many held-out inputs (default: 8)"
  )
  flags.add(parser, "seed", unset="0")
  parser.add_argument("--model", type=flags.given, required=True, help="name of the language model at the endpoint")
  flags.add(parser, "out", required=True)
  parser.add_argument("--base-url", help="of the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
  parser.add_argument(
    "--replay", metavar="FILE", help='take answers from lines {"hash": ..., "text": ...}; no request is sent'
  )
  parser.add_argument("--prompts-only", action="store_true", help="write OUT/prompts.jsonl and send no request")
  parser.add_argument("--queries", type=flags.Whole(1, 10_000), default=5, help="queries in a prompt (default: 5)")
  parser.add_argument(
    "--samples",
    type=flags.Whole(1, 10_000),
    default=20,
    help="samples in a prompt: so many inside and so many outside (default: 20)",
  )
  parser.add_argument(
    "--temperature",
    type=flags.number("temperature"),
    dest="sampling_temperature",  # the name "temperature" is that of the decoder's
    help="of the language model (default: the endpoint's)",
  )
  parser.add_argument(
    "--max-tokens", type=flags.count("max_tokens"), default=2048, help="tokens of an answer at most (default: 2048)"
  )
  parser.add_argument(
    "--timeout",
    type=flags.number("timeout", above=True),
    default=120.0,
    help="seconds for one attempt, the whole answer included (default: 120)",
  )
  parser.add_argument("--retries", type=flags.count("retries"), default=4, help="after a failed attempt (default: 4)")
  parser.add_argument(
    "--at-once", type=flags.count("at_once"), default=4, help="requests in flight at most (default: 4)"
  )
  parser.add_argument(
    "--prices", metavar="IN,OUT", help="price of a million tokens of prompts and of answers, to show the cost"
  )


@dataclasses.dataclass(frozen=True)
class _Interpretation:
  """A group of preimages with the hash of its prompt, the answer, its reading in words, and the test of each expression."""

  group: "PreimageGroup"
  name: str
  answer: "Answer"
  reading: str
  scores: "list[Score]"

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return {
      "site": self.group.site,
      "position": self.group.position,
      "queries": [preimage.query.text for preimage in self.group.preimages],
      "method": self.group.preimages[0].method,
      "bits": [preimage.bits for preimage in self.group.preimages],
      "converged": [preimage.converged for preimage in self.group.preimages],
      "hash": self.name,
      "reading": self.reading,
      "features": [score.to_dict() for score in self.scores],
      "error": self.answer.error,
      "answer": self.answer.text,
      "prompt_tokens": self.answer.prompt_tokens,
      "answer_tokens": self.answer.answer_tokens,
    }


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Sends the prompts, tests the answers and prints both; 2 if a prompt stays without an answer."""
  del rest
  prices = _prices(args.prices)
  _check(args)
  from inversionview_jax.interpret import hypotheses, language_model

  preimages = hypotheses.load(args.preimages) if args.preimages else []
  endpoint = language_model.Endpoint(
    args.model, args.base_url, args.sampling_temperature, args.max_tokens, args.timeout, args.retries
  )
  # A file or an endpoint that cannot be used is refused before preimages are drawn; answers that are kept need neither.
  if args.replay:
    language_model.read_answers(args.replay)
  elif not args.prompts_only and not (path_of(args.out) / "answers").is_dir():
    endpoint.client()
  groups = hypotheses.group_preimages(preimages or _draw(args))
  prompts = [hypotheses.prompt(group, args.queries, args.samples) for group in groups]
  hashes = [hypotheses.prompt_hash(args.model, text, endpoint.settings()) for text in prompts]
  by_hash = dict(zip(hashes, prompts, strict=True))
  with output_folder(args.out) as folder:
    if args.prompts_only:
      lines = [json.dumps({"hash": name, "prompt": text}, ensure_ascii=False) for name, text in by_hash.items()]
      write_whole(folder / "prompts.jsonl", "\n".join(lines) + "\n")
      terminal.print_text(f"{len(lines)} prompts written to {folder / 'prompts.jsonl'}")
      return 0
    if args.replay:
      answers = language_model.replayed(by_hash, args.replay)
    else:
      with _ProgressBar(len(by_hash), prices) as progress:
        answers = language_model.ask(by_hash, folder / "answers", endpoint, args.at_once, progress)
    results = [_interpret(group, name, answers[name], args.queries) for group, name in zip(groups, hashes, strict=True)]
    write_whole(
      folder / "interpretations.json", json.dumps(_table(args.model, results), indent=1, ensure_ascii=False) + "\n"
    )
  _print(results, list(answers.values()), prices)
  terminal.print_text(f"written to {folder}: interpretations.json")
  return _report_failures(results, bool(args.replay))


def _check(args: argparse.Namespace) -> None:
  """Raises `InversionViewError` for flags that do not go together, and for a folder that cannot be made."""
  check_can_make(args.out)
  if args.preimages:
    for name in _OF_DRAWING:
      if getattr(args, name) is not None:
        raise InversionViewError(
          f"--{name.replace('_', '-')} has no effect on saved preimages: leave it out, or leave out {args.preimages[0]!r}"
        )
    return
  if args.site is None or args.position is None:
    raise InversionViewError("give saved preimages, or --site and --position of those that are to be drawn")
  if args.texts and args.inputs is not None:
    raise InversionViewError(f"--inputs {args.inputs} is a number of held-out inputs; leave it out with --texts")
  source.check(args)


def _draw(args: argparse.Namespace) -> "list[Preimage]":
  """Draws the preimages of one site and position, and writes them to OUT/preimages."""
  texts = texts_of(argparse.Namespace(text=(), texts=args.texts))
  from inversionview_jax.measures.held_out import held_out_requests
  from inversionview_jax.reading import Request

  drawn_from = source.source_of(args)
  drawn_from.check_site(args.site)
  requests = [Request(text, args.site, args.position) for text in texts]
  requests = requests or held_out_requests(drawn_from, args.site, args.position, args.inputs or 8, args.seed or 0)
  drawn_from.check(requests)  # before the work
  source.note_decoder(args, drawn_from)
  with bar_of("preimages") as progress:
    preimages = drawn_from.preimages(requests, effects=False, seed=args.seed or 0, progress=progress)
  with files_together(path_of(args.out) / "preimages") as folder:
    for number, preimage in enumerate(preimages):
      preimage.to_json(folder / f"{number:03d}.json")
  return preimages


def _interpret(group: "PreimageGroup", name: str, answer: "Answer", seen: int) -> _Interpretation:
  """Takes an answer apart and tests its expressions."""
  from inversionview_jax.interpret import hypotheses

  reading, features = ("", []) if answer.error else hypotheses.parse(answer.text)
  return _Interpretation(group, name, answer, reading, [hypotheses.score(group, feature, seen) for feature in features])


def _prices(text: str | None) -> tuple[float, float] | None:
  """The value of --prices."""
  if text is None:
    return None
  try:
    first, second = map(flags.Number(0, 1e9), text.split(","))
    return first, second
  except (ValueError, argparse.ArgumentTypeError):
    raise InversionViewError(f"--prices {text!r} must be two numbers such as 2.5,10") from None


def _table(model: str, results: Sequence[_Interpretation]) -> dict[str, Any]:
  """The content of interpretations.json."""
  from inversionview_jax._version import __version__

  return {
    "format": "inversionview-interpretations",
    "format_version": 1,
    "version": __version__,
    "model": model,
    "places": [result.to_dict() for result in results],
  }


def _print(results: Sequence[_Interpretation], answers: "list[Answer]", prices: tuple[float, float] | None) -> None:
  from rich.markup import escape

  from inversionview_jax.interpret import language_model

  console = terminal.console(highlight=False)
  for result in results:
    group = result.group
    about = f"{len(group.preimages)} queries{_results(group.preimages)}"
    console.print(escape(f'{group.site} at "{group.position}" ({about})'), style="bold")
    if result.answer.error:
      console.print(f"  no answer: {escape(result.answer.error)}")
      continue
    console.print(f"  {escape(result.reading)}")
    for score in result.scores:
      verdict = f"[{_COLORS[score.verdict]}]{score.verdict}[/]"
      console.print(f"  {verdict}  {escape(score.feature)}: {escape(score.why)}{_details(score)}")
    if not result.scores:
      console.print(f"  [{_COLORS['not testable']}]not testable[/]  the answer names no expression")
  sent, received, price = language_model.cost(answers, prices)
  cached = sum(answer.cached for answer in answers)
  cost = ""
  if prices is not None:
    cost = "; cost unknown, the endpoint does not count tokens" if price is None else f"; cost {price:.4f}"
  terminal.print_text(
    f"\n{len(answers)} prompts, {cached} answers from files; {sent:,} tokens sent, {received:,} tokens received{cost}"
  )


def _results(preimages: "Sequence[Preimage]") -> str:
  """The mean bits of some preimages, and how many have not converged, where they have these."""
  bits = [preimage.bits for preimage in preimages if preimage.bits is not None]
  unconverged = sum(preimage.converged is False for preimage in preimages)
  parts = [f"{sum(bits) / len(bits):.2f} bits"] if bits else []
  parts += [f"{unconverged} not converged"] if unconverged else []
  return "".join(f", {part}" for part in parts)


def _details(score: "Score") -> str:
  """The figures beside a verdict, in brackets."""
  details = [f"control {100 * score.control:.1f} %"] if score.control is not None else []
  details += [f"outside {100 * score.outside:.1f} %"] if score.outside is not None else []
  details += (
    [f"{score.queries} queries{', not in the prompt' if score.unseen else ', in-sample: the prompt showed them'}"]
    if score.queries
    else []
  )
  return f" ({'; '.join(details)})" if details else ""


def _report_failures(results: Sequence[_Interpretation], replay: bool) -> int:
  """The exit code; one line on stderr where a prompt has no answer."""
  errors = [result.answer.error for result in results if result.answer.error]
  if not errors:
    return 0
  remedy = "add them to the file" if replay else "the same command again sends only these"
  line = f"{len(errors)} of {len(results)} prompts have no answer ({errors[0]}); {remedy}"
  terminal.print_message(line)
  return 2


class _ProgressBar:
  """A bar on a terminal, with tokens and cost; nothing elsewhere."""

  def __init__(self, total: int, prices: tuple[float, float] | None):
    self._total, self._prices = total, prices

  def __enter__(self) -> "_ProgressBar":
    self._bar = bars()
    self._bar.__enter__()
    self._task = self._bar.add_task("asking", total=self._total)
    return self

  def __call__(self, done: int, total: int, answers: "Sequence[Answer]") -> None:
    from inversionview_jax.interpret import language_model

    sent, received, price = language_model.cost(answers, self._prices)
    cost = "" if price is None else f", cost {price:.4f}"
    self._bar.update(self._task, completed=done, description=f"asking ({sent + received:,} tokens{cost})")

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
  ) -> None:
    self._bar.__exit__(kind, error, traceback)
