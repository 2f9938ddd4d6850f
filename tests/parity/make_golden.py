"""Writes tests/golden: tiny random GPT-2 checkpoints and what Hugging Face's transformers computes on them.

  pip install 'inversionview-jax[parity]'
  python tests/parity/make_golden.py

Each folder holds config.json and model.safetensors (written by save_pretrained) and expected.npz: `tokens` int32[B, T],
`logits` float32[B, T, V] and `hidden_states` float32[L + 1, B, T, D] (the last one after ln_f). Two runs write the same
bytes. A checkpoint in which some tensor or attribute would hardly matter is refused: a test against it could not notice
an error.
"""

import json
import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 1e-4  # that of test_parity_transformers.py

CHECKPOINTS = {
    "default": dict(vocab_size=23, n_positions=12, n_embd=32, n_layer=2, n_head=4, initializer_range=0.4),
    "wide_mlp": dict(
        vocab_size=19, n_positions=11, n_embd=24, n_layer=3, n_head=3, n_inner=40, initializer_range=0.4,
        activation_function="gelu", layer_norm_epsilon=1e-3,
    ),
    "untied": dict(
        vocab_size=17, n_positions=10, n_embd=20, n_layer=2, n_head=5, initializer_range=0.4,
        activation_function="relu", tie_word_embeddings=False, scale_attn_weights=False,
    ),
}
# For each attribute that a reader could ignore, a value that must change the logits.
OTHERWISE = {
    "activation_function": {"gelu_new": "gelu", "gelu": "gelu_new", "relu": "gelu"},
    "layer_norm_epsilon": {1e-3: 1e-5, 1e-5: 1e-3},
    "scale_attn_weights": {True: False, False: True},
}


def random_model(seed: int, **shape) -> transformers.GPT2LMHeadModel:
  """A GPT-2 with random weights, biases and LayerNorms, all of a size that matters."""
  torch.manual_seed(seed)
  config = transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0)
  model = transformers.GPT2LMHeadModel(config).eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith(".bias"):
        parameter.normal_(0.0, 0.3)
      elif ".ln_" in name:
        parameter.normal_(1.0, 0.3)
  return model


def random_tokens(seed: int, config: transformers.GPT2Config, batch: int = 3) -> torch.Tensor:
  return torch.randint(config.vocab_size, (batch, config.n_positions), generator=torch.Generator().manual_seed(seed))


def expected(model: transformers.GPT2LMHeadModel, tokens: torch.Tensor) -> dict[str, np.ndarray]:
  """tokens, logits and hidden states of a forward pass, as stored in expected.npz."""
  with torch.no_grad():
    out = model(tokens, output_hidden_states=True)
  return {
      "tokens": tokens.numpy().astype(np.int32),
      "logits": out.logits.numpy(),
      "hidden_states": torch.stack(out.hidden_states).numpy(),
  }


def refuse_what_does_not_matter(model: transformers.GPT2LMHeadModel, tokens: torch.Tensor) -> None:
  """Raises if a tensor could be left out, or an attribute read wrongly, without moving a logit by ten tolerances."""

  def moved(other):
    with torch.no_grad():
      gap = (other(tokens).logits - logits).abs().max().item()
    return gap > 10 * TOLERANCE

  with torch.no_grad():
    logits = model(tokens).logits
    for name, parameter in model.named_parameters():
      kept = parameter.clone()
      parameter.fill_(1.0 if ".ln_" in name and name.endswith(".weight") else 0.0)
      if not moved(model):
        raise ValueError(f"{name} does not matter")
      parameter.copy_(kept)
  for attribute, otherwise in OTHERWISE.items():
    changed = transformers.GPT2Config.from_dict(model.config.to_dict())
    setattr(changed, attribute, otherwise[getattr(changed, attribute)])
    other = transformers.GPT2LMHeadModel(changed).eval()
    other.load_state_dict(model.state_dict())
    if not moved(other):
      raise ValueError(f"{attribute} does not matter")


def main() -> None:
  for seed, (name, shape) in enumerate(CHECKPOINTS.items()):
    model = random_model(seed, **shape)
    tokens = random_tokens(seed, model.config)
    refuse_what_does_not_matter(model, tokens)
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # says nothing about the forward pass
    np.savez(folder / "expected.npz", **expected(model, tokens))
    print(json.dumps({path.name: path.stat().st_size for path in sorted(folder.iterdir())}), folder)


if __name__ == "__main__":
  main()
