"""Writes tests/golden/gemma3_270m.npz: what Hugging Face's transformers computes on the GGUF file of Gemma 3 270M.

  pip install 'inversionview-jax[parity]' accelerate
  python tests/parity/make_gemma3.py

For each prompt of tests/pretrained/test_gemma3.py its token ids, and the logits behind its last token: those of every 997th token and of
the 50 likeliest ones.
"""

import pathlib
import runpy

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
  path = runpy.run_path(str(ROOT / "launch" / "fetch_gemma3.py"))["fetch"]()
  prompts = runpy.run_path(str(ROOT / "tests" / "pretrained" / "test_gemma3.py"))["PROMPTS"]
  where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
  tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
  model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager")
  made = {}
  for row, prompt in enumerate(prompts):
    tokens = tokenizer(prompt)["input_ids"]
    with torch.no_grad():
      logits = model.eval()(torch.tensor([tokens])).logits[0, -1].numpy()
    ids = np.union1d(np.arange(0, len(logits), 997), np.argsort(-logits)[:50]).astype(np.int32)
    made |= {f"tokens{row}": np.int32(tokens), f"ids{row}": ids, f"logits{row}": logits[ids]}
  np.savez(ROOT / "tests" / "golden" / "gemma3_270m.npz", **made)


if __name__ == "__main__":
  main()
