"""Gemma 3: inside of its multimodal model, its tokenizer in a GGUF file, and the 270M model itself."""

import json
import pathlib
import runpy
import subprocess

import gguf
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import all_parts, copied, refusal, tensors_of

from inversionview_jax.pretrained import gguf_tokenizer
from inversionview_jax.pretrained.gguf_file import GgufFile
from inversionview_jax.targets import load_target

ROOT = pathlib.Path(__file__).parent.parent.parent
FETCH = runpy.run_path(str(ROOT / "launch" / "fetch_gemma3.py"))["fetch"]
PROMPTS = {
  "When Mary and John went to the store, John gave a drink to": " Mary",
  "The capital of France is": " the",
  "def fib(n):\n  if n < 2:\n    return": " n",
  "2 + 2 =": " ",
  "Once upon a time, there was a little": " girl",
  "Die Hauptstadt von Deutschland ist": " ein",
}


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])  # of transformers 4 and 5
def test_text_model_is_read_out_of_the_multimodal_one(tmp_path, prefix):
  plain = copied("gemma3", tmp_path / "plain")
  around = copied("gemma3", tmp_path / "around")
  text = json.loads((plain / "config.json").read_text())
  config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}, "mm_tokens_per_image": 4}
  (around / "config.json").write_text(json.dumps(config))
  tensors = {prefix + name.removeprefix("model."): value for name, value in tensors_of(plain).items()}
  vision = prefix.replace("language_model.", "") if prefix.startswith("model.") else ""
  tensors[f"{vision}vision_tower.x.weight"] = tensors[f"{vision}multi_modal_projector.y"] = np.ones(2, np.float32)
  safetensors.numpy.save_file(tensors, around / "model.safetensors")
  assert load_target(around).fingerprint == load_target(plain).fingerprint


def test_bidirectional_attention_is_refused_in_either_form(tmp_path):
  assert "use_bidirectional_attention" in refusal(
    copied("gemma3", tmp_path / "plain", use_bidirectional_attention=True)
  )


def test_windows_and_rotary_embeddings_follow_the_types_of_layers(tmp_path):
  config, _ = all_parts(copied("gemma3", tmp_path / "model"))
  assert (config.windows, config.local_layers) == ((4, 0, 4), (0, 2))
  assert config.rotary[1] == pytest.approx(100 ** (-1 / 4) / 2) and config.local_rotary[1] == pytest.approx(
    10 ** (-1 / 4)
  )
  default, _ = all_parts(
    copied("gemma3", tmp_path / "default", remove=["layer_types", "_sliding_window_pattern"], sliding_window_pattern=2)
  )
  assert default.local_layers == (0, 2) and default.windows == (4, 0, 4)


TEXTS = [
  "Hello  world",
  "a\n\nb\n\n\nc",
  "\t\ttabs\t and   spaces",
  " leading and trailing  ",
  "<start_of_turn>user\nHi<end_of_turn> [multimodal]",
  "naïve 漢字 😀",
  "hello he▁▁llo",
]


def test_tokenizer_in_a_gguf_file_gives_the_ids_of_transformers(tmp_path):
  convert = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping").convert_gguf_tokenizer
  special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
  own = ["[multimodal]", "\n", "\n\n", "  ", "   ", "\t\t"]
  pieces = ["lo", "el", "he", "ell", "▁w", "wo", "llo", "hello", "▁wor", "ld", "▁", "▁▁w", *"helowrd tabsncui\tHL"]
  rows = [*((token, 3) for token in special), *((token, 4) for token in own)]
  rows += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
  rows += [(piece, 1) for piece in dict.fromkeys(pieces) if piece not in own and piece != " "]
  tokens, kinds = zip(*rows, strict=True)
  path = tmp_path / "model.gguf"
  writer = gguf.GGUFWriter(path, "gemma3")
  for name, value in {"context_length": 8, "embedding_length": 4, "block_count": 0, "feed_forward_length": 4}.items():
    writer.add_uint32(f"gemma3.{name}", value)
  for name in ("head_count", "head_count_kv", "key_length"):
    writer.add_uint32(f"gemma3.attention.{name}", 2)
  writer.add_tokenizer_model("llama")
  writer.add_token_list(list(tokens))
  writer.add_token_scores([-1000.0] * len(tokens))
  writer.add_token_types(list(kinds))
  for add, token in ((writer.add_pad_token_id, 0), (writer.add_eos_token_id, 1), (writer.add_bos_token_id, 2)):
    add(token)
  writer.add_add_space_prefix(False)
  writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 4), np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  ours = gguf_tokenizer.from_gguf(GgufFile(path))
  fields = {"tokenizer_type": "llama", "tokens": list(tokens), "scores": [-1000.0] * len(tokens), "token_type": kinds}
  theirs, _ = convert("gemma3", fields)
  for text in TEXTS:
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text


@pytest.mark.slow
def test_gemma_3_270m_gives_the_logits_of_transformers():
  """tests/golden/gemma3_270m.npz: what transformers computes on the same file, at every 997th token and the likeliest ones."""
  try:
    path = FETCH()
  except (OSError, subprocess.TimeoutExpired) as error:
    pytest.skip(f"Gemma 3 270M is not to be had: {error}")
  target = load_target(path)
  with np.load(ROOT / "tests" / "golden" / "gemma3_270m.npz") as golden:
    for row, (prompt, answer) in enumerate(PROMPTS.items()):
      tokens = golden[f"tokens{row}"]
      assert target.encode(prompt)[0].tolist() == tokens.tolist()
      logits = np.asarray(target.run(prompt).last_logits)[0]
      assert target.tokenizer.strings([int(logits.argmax())]) == [answer]
      np.testing.assert_allclose(logits[golden[f"ids{row}"]], golden[f"logits{row}"], rtol=0, atol=2e-3)
