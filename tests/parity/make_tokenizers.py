"""Writes tests/golden/tokenizers.json: the ids that Hugging Face's transformers gives with the tokenizers of tests/tokenizer_cases.py.

  python tests/parity/make_tokenizers.py

For each case "ids", one list for each text, without special tokens around it, and "specials", the ids of BOS, EOS and PAD (null: none).
"""

import json
import pathlib
import sys
import tempfile

import transformers

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

import tokenizer_cases


def expected(folder: pathlib.Path) -> dict:
  made = transformers.AutoTokenizer.from_pretrained(folder)
  return {
    "ids": [made(text, add_special_tokens=False)["input_ids"] for text in tokenizer_cases.TEXTS],
    "specials": [made.bos_token_id, made.eos_token_id, made.pad_token_id],
  }


def main() -> None:
  with tempfile.TemporaryDirectory() as folder:
    cases = {name: expected(tokenizer_cases.write(pathlib.Path(folder) / name, name)) for name in tokenizer_cases.CASES}
  lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items())
  version = json.dumps({"transformers": transformers.__version__})[1:-1]
  (TESTS / "golden" / "tokenizers.json").write_text(f"{{{version},\n{lines}}}\n")


if __name__ == "__main__":
  main()
