"""Facts and sentences in their published formats: COUNTERFACT, BEAR-big, MiniPile, and this package's own facts.

A fact is {"prompt", "subject", "answer", "relation"}: the answer follows the prompt after a space.
"""

import functools
import importlib.resources
import json
import pathlib
import re
from collections.abc import Iterator

from inversionview_jax.errors import InversionViewError
from inversionview_jax.tasks import sources

SENTENCE = 100  # characters of the longest sentence of MiniPile that is used (paper)
_SHORTEST = 10  # characters of the shortest, about two words
# The files of each source, in the folder for files that are downloaded by hand.
WHERE = {
  "counterfact": "counterfact.json (Meng et al., 2022; https://rome.baulab.info/data/dsets/counterfact.json)",
  "bear": "a folder BEAR-big with metadata_relations.json and a .jsonl for each relation (Wiland et al., 2024; "
  "https://github.com/lm-pub-quiz/BEAR)",
  "minipile": "a folder minipile with the .parquet files (or .jsonl, .txt) of https://huggingface.co/datasets/JeanKaddour/minipile",
}


@functools.cache
def bundled() -> tuple[dict, ...]:
  """Facts that come with this package: capitals, inventors, ... each with two or three prompts."""
  relations = json.loads((importlib.resources.files("inversionview_jax") / "tasks" / "facts.json").read_text("utf-8"))
  return tuple(
    {"prompt": prompt.format(subject), "subject": subject, "answer": answer, "relation": relation}
    for relation, part in relations.items()
    for subject, answer in part["facts"]
    for prompt in part["prompts"]
  )


def counterfact(folder: pathlib.Path) -> Iterator[dict]:
  """Yields the facts of COUNTERFACT: each record's requested rewrite, its prompt with the true target."""
  path = folder / "counterfact.json"
  _needed(path, folder, "counterfact")
  for where, record in sources.records(str(path)):
    try:
      rewrite = record["requested_rewrite"]
      template, subject, answer = rewrite["prompt"], rewrite["subject"], rewrite["target_true"]["str"]
      prompt = template.replace("{}", subject)
    except (KeyError, TypeError, AttributeError) as error:
      raise InversionViewError(f"{where} is no record of COUNTERFACT: {error!r}") from None
    if "{}" not in template:
      raise InversionViewError(
        f"{where} is no record of COUNTERFACT: its prompt {template!r} has no place for the subject"
      )
    yield {"prompt": prompt, "subject": subject, "answer": answer, "relation": str(rewrite.get("relation_id", ""))}


def bear(folder: pathlib.Path) -> Iterator[dict]:
  """Yields the facts of BEAR-big: every template with the subject before the object, cut before the object; others do not predict it."""
  where = folder / "BEAR-big"
  _needed(where / "metadata_relations.json", folder, "bear")
  described = sources.read_json(
    where, (where / "metadata_relations.json").read_bytes(), str(where / "metadata_relations.json")
  )
  for relation, part in described.items():
    path = where / f"{relation}.jsonl"
    if not path.exists():
      raise InversionViewError(f"{where} is not whole: {path.name} is missing")
    templates = [t for t in part.get("templates", ()) if -1 < t.find("[X]") < t.find("[Y]")]
    for line, record in sources.records(str(path)):
      if not {"sub_label", "obj_label"} <= set(record):
        raise InversionViewError(f"{line} is no record of BEAR: it needs sub_label and obj_label")
      for template in templates:
        prompt = template[: template.find("[Y]")].replace("[X]", record["sub_label"]).rstrip()
        yield {"prompt": prompt, "subject": record["sub_label"], "answer": record["obj_label"], "relation": relation}


def minipile(folder: pathlib.Path) -> Iterator[str]:
  """Yields the sentences of MiniPile of at most 100 characters."""
  where = folder / "minipile"
  files = [p for kind in ("parquet", "jsonl", "txt") for p in sorted(where.rglob(f"*.{kind}"))]
  _needed(files[0] if files else where / "*.parquet", folder, "minipile")
  for _, text in sources.texts([str(p) for p in files], empty="skip"):
    for line in text.splitlines():
      for sentence in re.split(r"(?<=[.!?])\s+", line.strip()):
        if _SHORTEST <= len(sentence) <= SENTENCE:
          yield sentence


def own_record(where: str, record: object) -> dict:
  """The fact or sentence in a line of the user's own file; raises `InversionViewError` naming `where` for one that is neither."""
  if not isinstance(record, dict) or not ({"prompt", "subject", "answer"} <= set(record) or "text" in record):
    raise InversionViewError(f'{where}: a fact needs "prompt", "subject" and "answer", and a sentence "text"')
  needed = ("text",) if "prompt" not in record else ("prompt", "subject", "answer")
  if wrong := [name for name in needed if not (isinstance(record[name], str) and record[name].strip())]:
    raise InversionViewError(f"{where}: {wrong[0]!r} is no text")
  if needed == ("text",):
    return {"text": record["text"]}
  prompt = record["prompt"].replace("{}", record["subject"])
  if record["subject"] not in prompt:
    raise InversionViewError(f"{where}: the prompt {prompt!r} does not name its subject {record['subject']!r}")
  return {
    "prompt": prompt,
    "subject": record["subject"],
    "answer": record["answer"],
    "relation": record.get("relation", ""),
  }


def _needed(path: pathlib.Path, folder: pathlib.Path, name: str) -> None:
  """Raises `InversionViewError` if a file is missing, with what to download."""
  if not path.exists():
    raise InversionViewError(f"{path} is missing: download it and put into {folder}: {WHERE[name]}")
