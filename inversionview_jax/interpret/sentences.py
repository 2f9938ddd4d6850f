"""Sentences about an activation as expressions that can be tested: a language model translates, `tasks.grammar` checks what it wrote.

Needs no JAX; the `openai` client only where answers are not replayed.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.interpret import language_model
from inversionview_jax.interpret.hypotheses import feature_names, feature_values, prompt_hash
from inversionview_jax.interpret.language_model import Endpoint
from inversionview_jax.measures.claims import check_claim
from inversionview_jax.tasks import Task
from inversionview_jax.tasks.grammar import FUNCTIONS

LONGEST = 2000  # characters of a sentence
_PROMPT = """\
Translate a statement about a text into one expression that a program evaluates on texts.

The texts: {about}
The statement was made about an activation inside a neural network that read this text: {text!r}
Features of a text, with names and the values of this text where they are known:
{features}
Positions with names: {labels}
Functions of tokens:
{functions}

An expression is a condition (comparisons joined by and, or, not, such as F1 + S1 >= 10), true of the texts that agree with the statement; or, \
where the statement says that a quantity is known without saying what it is, that quantity: a feature, or a sum, difference, product or \
remainder of features and whole numbers. Nothing else is allowed. Do not judge whether the statement is right.

The statement: {sentence}

End your answer with one JSON object, and nothing after it:
{{"expression": "<expression>"}}
or, where no expression says what the statement says, {{"expression": null, "why": "<one sentence>"}}\
"""


@dataclasses.dataclass(frozen=True)
class Translation:
  """A sentence as an expression.

  Attributes:
    sentence: as it was given.
    expression: of the same meaning, as the language model sees it; "" where there is none.
    why: the reason where there is none.
    model: that translated it.
    hash: of the prompt.
    answer: the model's, whole.
  """

  sentence: str
  expression: str
  why: str
  model: str
  hash: str
  answer: str

  def to_dict(self) -> dict[str, Any]:
    """Plain data for JSON."""
    return dataclasses.asdict(self)


def prompt(sentence: str, task: Task, text: str, tokens: Sequence[int]) -> str:
  """The prompt for a sentence; the same sentence and text give the same prompt.

  Args:
    sentence: about an activation.
    task: of the inputs.
    text: the input that the activation is of.
    tokens: of the text, with BOS.
  """
  if len(sentence) > LONGEST:
    raise InversionViewError(f"the sentence has {len(sentence):,} characters; it can have at most {LONGEST:,}")
  known = feature_values(task, text)
  features = "\n".join(f"  {name}: {what}" for name, what in feature_names(task).items())
  return _PROMPT.format(
    about=task.about or f"inputs of the task {task.name!r}",
    text=text,
    features=(features or "  none") + (f"\nOf this text: {known}" if known else ""),
    labels=", ".join(dict.fromkeys(label for label in task.labels(tokens) if label))
    or "none; indices count from 0, the beginning",
    functions="\n".join(f"  {line}" for line in FUNCTIONS.values()),
    sentence=sentence,
  )


def translate(
  sentence: str,
  task: Task,
  text: str,
  tokens: Sequence[int],
  endpoint: Endpoint,
  *,
  replay: "str | os.PathLike | None" = None,
) -> Translation:
  """The expression of a sentence, checked: an answer that is none is no translation.

  Args:
    sentence, task, text, tokens: as for `prompt`.
    endpoint: the language model.
    replay: a file of answers in place of a request (`language_model.replayed`).

  Raises:
    InversionViewError: no answer, or a sentence that is too long.
  """
  content = prompt(sentence, task, text, tokens)
  name = prompt_hash(endpoint.model, content, endpoint.settings())
  if replay is not None:
    answer = language_model.replayed({name: content}, replay)[name]
  else:
    with tempfile.TemporaryDirectory() as folder:
      answer = language_model.ask({name: content}, folder, endpoint)[name]
  if answer.error:
    raise InversionViewError(f"the sentence could not be translated: {answer.error}")
  expression, why = _read(answer.text)
  if expression:
    try:
      check_claim(task, expression, tokens)
    except InversionViewError as error:
      expression, why = "", f"the language model wrote {expression[:100]!r}: {error}"
  return Translation(sentence, expression, why, endpoint.model, name, answer.text)


def _read(answer: str) -> tuple[str, str]:
  """The expression of an answer's last JSON object that has one, and the reason where there is none."""
  for start in reversed([i for i, character in enumerate(answer) if character == "{"]):
    try:
      record, _ = json.JSONDecoder().raw_decode(answer[start:])
    except (ValueError, RecursionError):
      continue
    if isinstance(record, dict) and "expression" in record:
      expression = record["expression"]
      if isinstance(expression, str) and expression.strip():
        return expression.strip(), ""
      return "", str(record.get("why") or "the language model found no expression for it")
  return "", "the language model's answer has no expression"
