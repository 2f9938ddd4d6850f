"""`inversionview interpret`: a language model reads saved preimages, and what it says is tested."""

import argparse
import json
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder, write_whole

_DESCRIPTION = """\
Ask a language model what an activation says, from saved preimages of several queries of one place, and test its answer: it is also given as
an expression over the task's features, which is measured on the preimages and reported as confirmed, refuted or not testable.

  inversionview view "615+861=1476" --site a0.0 --position = --json P/1.json        (and some more)
  OPENAI_API_KEY=... inversionview interpret P --model MODEL --out I
  inversionview interpret P --model local --base-url http://127.0.0.1:8080/v1 --out I     (llama.cpp, vLLM, ...)
  inversionview interpret P --model MODEL --out I --prompts-only                          (then answer them yourself)
  inversionview interpret P --model MODEL --out I --replay answers.jsonl

Answers are kept in OUT/answers by the hash of their prompt; the same command again asks only what is missing. Writes OUT/interpretations.json.
"""


def add_parser(commands: Any) -> None:
  """Adds `interpret` to the commands."""
  parser = flags.add_command(
    commands, "interpret", run, "let a language model read preimages, and test what it says", _DESCRIPTION
  )
  parser.add_argument("preimages", nargs="+", help="files that `view --json` wrote, or folders of them")
  parser.add_argument("--model", required=True, help="name of the language model at the endpoint")
  flags.add(parser, "out", required=True)
  parser.add_argument("--base-url", help="of the endpoint (default: OPENAI_BASE_URL, else OpenAI's)")
  parser.add_argument(
    "--replay", metavar="FILE", help='take answers from lines {"hash": ..., "text": ...}; no request is sent'
  )
  parser.add_argument("--prompts-only", action="store_true", help="write OUT/prompts.jsonl and send no request")
  parser.add_argument("--queries", type=int, default=5, help="queries in a prompt (default: 5)")
  parser.add_argument(
    "--samples", type=int, default=20, help="samples in a prompt: so many inside and so many outside (default: 20)"
  )
  parser.add_argument("--temperature", type=float, help="of the language model (default: the endpoint's)")
  parser.add_argument("--max-tokens", type=int, default=2048, help="tokens of an answer at most (default: 2048)")
  parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one attempt (default: 120)")
  parser.add_argument("--retries", type=int, default=4, help="after a failed attempt (default: 4)")
  parser.add_argument("--at-once", type=int, default=4, help="requests in flight at most (default: 4)")
  parser.add_argument(
    "--prices", metavar="IN,OUT", help="price of a million tokens of prompts and of answers, to show the cost"
  )


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Asks, tests and reports; 2 if a prompt stays without an answer."""
  del rest
  flags.check_at_least(args, queries=1, samples=1, max_tokens=1, retries=0, at_once=1)
  if not args.timeout > 0:
    raise InversionViewError(f"--timeout {args.timeout:g} must be above 0")
  prices = _prices(args.prices)
  from inversionview_jax.interpret import hypotheses, language_model

  places = hypotheses.places(hypotheses.load(args.preimages))
  endpoint = language_model.Endpoint(
    args.model, args.base_url, args.temperature, args.max_tokens, args.timeout, args.retries
  )
  prompts = [hypotheses.prompt(place, args.queries, args.samples) for place in places]
  hashes = [hypotheses.prompt_hash(args.model, text, endpoint.settings()) for text in prompts]
  by_hash = dict(zip(hashes, prompts, strict=True))
  folder = make_folder(args.out)
  if args.prompts_only:
    lines = [json.dumps({"hash": name, "prompt": text}, ensure_ascii=False) for name, text in by_hash.items()]
    write_whole(folder / "prompts.jsonl", "\n".join(lines) + "\n")
    print(f"{len(lines)} prompts written to {folder / 'prompts.jsonl'}")
    return 0
  if args.replay:
    answers = language_model.replayed(by_hash, args.replay)
  else:
    with _bar(len(by_hash), prices) as progress:
      answers = language_model.ask(by_hash, folder / "answers", endpoint, args.at_once, progress)
  results = []
  for place, name in zip(places, hashes, strict=True):
    answer = answers[name]
    reading, features = ("", []) if answer.error else hypotheses.parse(answer.text)
    scores = [hypotheses.score(place, feature, args.queries) for feature in features]
    results.append((place, name, answer, reading, scores))
  write_whole(folder / "interpretations.json", json.dumps(_table(args, results), indent=1, ensure_ascii=False) + "\n")
  _print(results, list(answers.values()), prices)
  print(f"written to {folder}: interpretations.json")
  return _failed(results, bool(args.replay))


def _prices(text: str | None) -> tuple[float, float] | None:
  if text is None:
    return None
  try:
    first, second = (float(part) for part in text.split(","))
    if not (0 <= first < 1e9 and 0 <= second < 1e9):
      raise ValueError
    return first, second
  except ValueError:
    raise InversionViewError(f"--prices {text!r} must be two numbers such as 2.5,10") from None


def _table(args, results) -> dict:
  from inversionview_jax._version import __version__

  return {
    "format": "inversionview-interpretations",
    "format_version": 1,
    "version": __version__,
    "model": args.model,
    "places": [
      {
        "site": place.site,
        "position": place.place,
        "queries": [preimage.query.text for preimage in place.preimages],
        "hash": name,
        "reading": reading,
        "features": [one.to_dict() for one in scores],
        "error": answer.error,
        "answer": answer.text,
        "prompt_tokens": answer.prompt_tokens,
        "answer_tokens": answer.answer_tokens,
      }
      for place, name, answer, reading, scores in results
    ],
  }


def _print(results, answers, prices) -> None:
  from rich.console import Console
  from rich.markup import escape

  from inversionview_jax.interpret import language_model

  console = Console(highlight=False)
  colors = {"confirmed": "green", "refuted": "red", "not testable": "yellow"}
  for place, _, answer, reading, scores in results:
    console.print(escape(f'{place.site} at "{place.place}" ({len(place.preimages)} queries)'), style="bold")
    if answer.error:
      console.print(f"  no answer: {escape(answer.error)}")
      continue
    console.print(f"  {escape(reading)}")
    for one in scores:
      console.print(
        f"  [{colors[one.verdict]}]{one.verdict}[/]  {escape(one.feature)}: {escape(one.why)}{_beside(one)}"
      )
    if not scores:
      console.print(f"  [{colors['not testable']}]not testable[/]  the answer names no expression")
  told, said, price = language_model.cost(answers, prices)
  kept = sum(answer.cached for answer in answers)
  cost = (
    ""
    if prices is None
    else "; cost unknown, the endpoint does not count tokens"
    if price is None
    else f"; cost {price:.4f}"
  )
  print(f"\n{len(answers)} prompts, {kept} answers were there already; {told:,} tokens asked, {said:,} answered{cost}")


def _beside(one) -> str:
  beside = [f"control {100 * one.control:.1f} %"] if one.control is not None else []
  beside += [f"outside {100 * one.outside:.1f} %"] if one.outside is not None else []
  beside += [f"{one.queries} queries{', not in the prompt' if one.unseen else ''}"] if one.queries else []
  return f" ({'; '.join(beside)})" if beside else ""


def _failed(results, replay: bool) -> int:
  import sys

  failed = [answer.error for _, _, answer, _, _ in results if answer.error]
  if not failed:
    return 0
  again = "add them to the file" if replay else "the same command again asks only these"
  line = f"inversionview: {len(failed)} of {len(results)} prompts have no answer ({failed[0]}); {again}"
  print(" ".join(line.split()), file=sys.stderr)
  return 2


class _bar:
  """A bar on a terminal, with tokens and cost; nothing elsewhere."""

  def __init__(self, of: int, prices):
    self._of, self._prices = of, prices

  def __enter__(self):
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    self._bar = Progress(console=console, transient=True, disable=not console.is_terminal)
    self._bar.__enter__()
    self._task = self._bar.add_task("asking", total=self._of)
    return self

  def __call__(self, done: int, of: int, answers) -> None:
    from inversionview_jax.interpret import language_model

    told, said, price = language_model.cost(answers, self._prices)
    cost = "" if price is None else f", cost {price:.4f}"
    self._bar.update(self._task, completed=done, description=f"asking ({told + said:,} tokens{cost})")

  def __exit__(self, *error):
    self._bar.__exit__(*error)
