"""Language models of two layers with random weights and a real byte-level tokenizer, as Hugging Face folders."""

import functools
import json

import numpy as np
import safetensors.numpy

from inversionview_jax.tasks import ioi

# A tiny reader of IOI, with AdamW, which compiles faster than Muon; `--target` and `--workdir` follow.
TRAIN_IOI = ("train", "--config", "configs/ioi_smollm2.py:tiny", "--config.optimizer.name=adamw")


def prompts(count=400, seed=0):
  """IOI prompts with all of its words."""
  rng = np.random.default_rng(seed)
  out = []
  for number in range(count):
    one, other = rng.choice(len(ioi.NAMES), 2, replace=False)
    one, other = ioi.NAMES[one], ioi.NAMES[other]
    text = ioi.TEMPLATES[number % len(ioi.TEMPLATES)]
    place, thing = ioi.PLACES[number % len(ioi.PLACES)], ioi.OBJECTS[number % len(ioi.OBJECTS)]
    out.append(text.format(one, other, other, place=place, object=thing) + f" {one}")
  return out


def tokenizer_json(texts, vocabulary=2000):
  """A byte-level BPE tokenizer trained on `texts`, in which most of their words are one token."""
  return _tokenizer_json(tuple(texts), vocabulary)


@functools.cache
def _tokenizer_json(texts, vocabulary):
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  tokenizer = Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocabulary,
    special_tokens=["<|endoftext|>"],
    show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )
  tokenizer.train_from_iterator(texts, trainer)
  return tokenizer.to_str()


def gpt2_folder(folder, texts=None, layers=2, heads=2, width=16, context=48, seed=0):
  """A GPT-2 of this shape in `folder`, with the tokenizer of `texts` (default: IOI prompts); returns the folder."""
  content = tokenizer_json(prompts(2000) if texts is None else texts)
  words = 1 + max(json.loads(content)["model"]["vocab"].values())
  rng = np.random.default_rng(seed)

  def random(*shape):
    return (0.3 * rng.normal(size=shape)).astype(np.float32)

  tensors = {"wte.weight": random(words, width), "wpe.weight": random(context, width)}
  tensors |= {"ln_f.weight": 1 + random(width), "ln_f.bias": random(width)}
  for layer in range(layers):
    for name, shape in (
      ("attn.c_attn", (width, 3 * width)),
      ("attn.c_proj", (width, width)),
      ("mlp.c_fc", (width, 4 * width)),
      ("mlp.c_proj", (4 * width, width)),
    ):
      tensors |= {f"h.{layer}.{name}.weight": random(*shape), f"h.{layer}.{name}.bias": random(shape[1])}
    for name in ("ln_1", "ln_2"):
      tensors |= {f"h.{layer}.{name}.weight": 1 + random(width), f"h.{layer}.{name}.bias": random(width)}
  folder.mkdir(parents=True, exist_ok=True)
  config = {
      "model_type": "gpt2", "vocab_size": words, "n_positions": context, "n_ctx": context, "n_embd": width, "n_layer": layers, "n_head": heads,
      "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 0,
  }  # fmt: skip
  (folder / "config.json").write_text(json.dumps(config))
  (folder / "tokenizer.json").write_text(content)
  safetensors.numpy.save_file(tensors, folder / "model.safetensors")
  return folder
