"""Writes tests/golden: tiny random checkpoints of every family and what Hugging Face's transformers computes on them.

  pip install 'inversionview-jax[parity]'
  python tests/parity/make_golden.py

Each folder holds config.json and model.safetensors (written by save_pretrained) and expected.npz: `tokens` int32[B, T],
`logits` float32[B, T, V], `hidden_states` float32[L + 1, B, T, D] (the last one after the final norm) and `mid` float32[L, B, T, D], the
residual stream between attention and MLP, where there is one. With longrope, `short_logits` are those of the texts' first tokens, as many as
the shorter frequencies serve. sentencepiece.json holds a small tokenizer and the ids it gives, activations.json the activation functions
of transformers at a few points. Names behind the script write these checkpoints only. Two runs write the same bytes. A checkpoint in which some tensor or attribute would hardly matter is refused: a test against it could not notice an error.
"""

import copy
import io
import json
import pathlib
import sys

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"
TOLERANCE = 1e-4  # that of test_parity_transformers.py

_GPT2 = dict(model_type="gpt2", initializer_range=0.4)
_LLAMA = dict(
  vocab_size=19,
  hidden_size=24,
  intermediate_size=36,
  num_hidden_layers=2,
  num_attention_heads=4,
  max_position_embeddings=12,
  rms_norm_eps=1e-3,
  initializer_range=0.4,
)
# Smaller, since the repository holds them all.
_SMALL = _LLAMA | dict(vocab_size=13, hidden_size=16, intermediate_size=20)
_NEOX = _SMALL | dict(
  model_type="gpt_neox", num_attention_heads=2, intermediate_size=64, initializer_range=0.5, layer_norm_eps=1e-3
)
del _NEOX["rms_norm_eps"]
CHECKPOINTS = {
  "default": _GPT2 | dict(vocab_size=23, n_positions=12, n_embd=32, n_layer=2, n_head=4),
  "wide_mlp": _GPT2
  | dict(
    vocab_size=19,
    n_positions=11,
    n_embd=24,
    n_layer=3,
    n_head=3,
    n_inner=40,
    activation_function="gelu",
    layer_norm_epsilon=1e-3,
  ),
  "untied": _GPT2
  | dict(
    vocab_size=17,
    n_positions=10,
    n_embd=20,
    n_layer=2,
    n_head=5,
    activation_function="relu",
    tie_word_embeddings=False,
    scale_attn_weights=False,
  ),
  # Full attention, every bias, an unembedding of its own.
  "llama": _LLAMA | dict(model_type="llama", attention_bias=True, mlp_bias=True, rope_theta=100.0),
  # Grouped-query attention and Llama 3's scaling, whose three ranges of wavelengths all occur.
  "llama3": _LLAMA
  | dict(
    model_type="llama",
    num_key_value_heads=2,
    head_dim=12,
    tie_word_embeddings=True,
    rope_parameters=dict(
      rope_type="llama3",
      rope_theta=50.0,
      factor=4.0,
      low_freq_factor=0.3,
      high_freq_factor=1.2,
      original_max_position_embeddings=8,
    ),
  ),
  # Multi-query attention.
  "llama_linear": _LLAMA
  | dict(
    model_type="llama",
    num_key_value_heads=1,
    hidden_act="gelu",
    rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5),
  ),
  # "dynamic" changes nothing within the context.
  "mistral": _LLAMA
  | dict(
    model_type="mistral",
    num_key_value_heads=2,
    head_dim=8,
    sliding_window=4,
    rope_parameters=dict(rope_type="dynamic", rope_theta=100.0, factor=2.0),
  ),
  "qwen2": _LLAMA
  | dict(
    model_type="qwen2",
    num_key_value_heads=2,
    tie_word_embeddings=True,
    use_sliding_window=True,
    sliding_window=5,
    max_window_layers=1,
    hidden_size=32,
    rope_parameters=dict(
      rope_type="yarn", rope_theta=4.0, factor=2.0, original_max_position_embeddings=6, beta_fast=0.6, beta_slow=0.3
    ),
  ),
  "qwen3": _LLAMA | dict(model_type="qwen3", num_key_value_heads=2, head_dim=10, rope_theta=100.0, attention_bias=True),
  "smollm3": _LLAMA
  | dict(model_type="smollm3", num_key_value_heads=2, num_hidden_layers=3, no_rope_layer_interval=2, rope_theta=100.0),
  "gemma": _LLAMA | dict(model_type="gemma", num_key_value_heads=1, head_dim=8, rope_theta=100.0),
  "gemma2": _LLAMA
  | dict(
    model_type="gemma2",
    num_key_value_heads=2,
    head_dim=8,
    rope_theta=100.0,
    query_pre_attn_scalar=5,
    sliding_window=4,
    attn_logit_softcapping=3.0,
    final_logit_softcapping=4.0,
    num_hidden_layers=3,
    rms_norm_eps=1e-2,
  ),
  "by_layer": _GPT2
  | dict(
    vocab_size=13,
    n_positions=10,
    n_embd=16,
    n_layer=3,
    n_head=2,
    activation_function="quick_gelu",
    scale_attn_by_inverse_layer_idx=True,
  ),
  # Both rotary embeddings, with a scaling of one of them; the layers with a window are not those of the default pattern.
  "gemma3": _SMALL
  | dict(
    model_type="gemma3_text",
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=5,
    sliding_window=4,
    num_hidden_layers=3,
    layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    rms_norm_eps=1e-2,
    rope_parameters=dict(
      full_attention=dict(rope_type="linear", rope_theta=100.0, factor=2.0),
      sliding_attention=dict(rope_type="default", rope_theta=10.0),
    ),
  ),
  "pythia": _NEOX | dict(rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5)),
  "neox": _NEOX
  | dict(
    use_parallel_residual=False,
    attention_bias=False,
    tie_word_embeddings=True,
    hidden_act="gelu_fast",
    rope_parameters=dict(rope_type="default", rope_theta=100.0, partial_rotary_factor=1.0),
  ),
  "gpt_neo": dict(
    model_type="gpt_neo",
    vocab_size=13,
    hidden_size=16,
    num_layers=3,
    num_heads=4,
    max_position_embeddings=12,
    attention_types=[[["local"], 1], [["global", "local"], 1]],
    window_size=4,
    layer_norm_epsilon=1e-3,
    initializer_range=0.25,
  ),
  "olmo2": _SMALL | dict(model_type="olmo2", num_key_value_heads=2, rope_theta=100.0),
  # longrope of half of each head, in texts longer than it was trained on; a window in every layer.
  "phi3": _SMALL
  | dict(
    model_type="phi3",
    num_key_value_heads=2,
    hidden_size=32,
    sliding_window=6,
    original_max_position_embeddings=8,
    rope_parameters=dict(
      rope_type="longrope",
      rope_theta=100.0,
      partial_rotary_factor=0.5,
      short_factor=[1.0, 1.5],
      long_factor=[2.0, 3.0],
      original_max_position_embeddings=8,
    ),
  ),
  "mixtral": _SMALL
  | dict(
    model_type="mixtral",
    num_key_value_heads=2,
    num_local_experts=3,
    num_experts_per_tok=2,
    rope_theta=100.0,
    head_dim=8,
  ),
  # One layer has a plain MLP.
  "qwen3_moe": _SMALL
  | dict(
    model_type="qwen3_moe",
    num_key_value_heads=2,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=10,
    mlp_only_layers=[1],
    rope_theta=100.0,
    attention_bias=True,
  ),
  "gpt_oss": _SMALL
  | dict(
    model_type="gpt_oss",
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=3,
    num_experts_per_tok=2,
    sliding_window=4,
    swiglu_limit=0.7,
    rope_parameters=dict(
      rope_type="yarn",
      rope_theta=4.0,
      factor=2.0,
      original_max_position_embeddings=6,
      beta_fast=0.6,
      beta_slow=0.3,
      truncate=False,
    ),
  ),
}
# For each attribute that a reader could ignore, a value that must change the logits.
OTHERWISE = {
  "activation_function": {"gelu_new": "gelu", "gelu": "gelu_new", "relu": "gelu", "quick_gelu": "gelu"},
  "hidden_act": {"silu": "gelu", "gelu": "gelu_pytorch_tanh", "gelu_pytorch_tanh": "gelu", "gelu_fast": "gelu"},
  "hidden_activation": {"gelu_pytorch_tanh": "gelu"},
  "layer_norm_epsilon": {1e-3: 1e-5, 1e-5: 1e-3},
  "rms_norm_eps": {1e-3: 1e-5, 1e-2: 1e-5},
  "layer_norm_eps": {1e-3: 1e-5},
  "scale_attn_weights": {True: False, False: True},
  "scale_attn_by_inverse_layer_idx": {True: False, False: True},
  "use_parallel_residual": {True: False, False: True},
  "window_size": {4: 5},
  "swiglu_limit": {0.7: 1.0},
  "num_experts_per_tok": {2: 1},
  "norm_topk_prob": {True: False, False: True},
  "query_pre_attn_scalar": {5: 8},
  "sliding_window": {4: 5, 5: 6, 6: 7},
  "attn_logit_softcapping": {3.0: 4.0},
  "final_logit_softcapping": {4.0: 5.0},
  "no_rope_layers": {"[1, 0, 1]": [1, 1, 1]},
  "layer_types": {
    "['full_attention', 'sliding_attention']": ["sliding_attention", "full_attention"],
    "['sliding_attention', 'full_attention', 'sliding_attention']": ["full_attention"] * 3,
  },
}
# Of rope_parameters.
ROPE_OTHERWISE = {
  "rope_theta": 1.3,
  "factor": 1.3,
  "low_freq_factor": 1.3,
  "high_freq_factor": 1.3,
  "original_max_position_embeddings": 1.3,
  "beta_fast": 2,
  "beta_slow": 2,
  "partial_rotary_factor": 0.5,
}


def random_model(seed: int, **shape) -> transformers.PreTrainedModel:
  """A model with random weights, biases and norms, all of a size that matters."""
  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(**shape, bos_token_id=0, eos_token_id=0, pad_token_id=None)
  config._experts_implementation = "eager"  # the default one takes no widths as small as these
  model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if name.endswith(("bias", "sinks")):
        parameter.normal_(0.0, 0.3)
      elif is_norm(name):
        parameter.normal_(plain_norm(model), 0.3)
  return model


def is_norm(name: str) -> bool:
  return name.endswith(".weight") and (".ln_" in name or "norm" in name)


def plain_norm(model) -> float:
  """The weight with which a norm only normalizes: Gemma's multiply by 1 + weight."""
  return 0.0 if model.config.model_type.startswith("gemma") else 1.0


def random_tokens(seed: int, config, batch: int = 3) -> torch.Tensor:
  length = config.max_position_embeddings
  return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


# Model type -> the module that reads the residual stream between attention and MLP, where it is not "post_attention_layernorm".
BEFORE_MLP = {
  "gpt2": "ln_2",
  "gpt_neo": "ln_2",
  "gemma2": "pre_feedforward_layernorm",
  "gemma3_text": "pre_feedforward_layernorm",
  "olmo2": "mlp",
}


def expected(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> dict[str, np.ndarray]:
  """tokens, logits, hidden states and what lies between attention and MLP, as stored in expected.npz."""
  mid = {}
  before_mlp = BEFORE_MLP.get(model.config.model_type, "post_attention_layernorm")
  hooks = [
    module.register_forward_pre_hook(lambda module, inputs, name=name: mid.update({name: inputs[0]}))
    for name, module in model.named_modules()
    if name.endswith(before_mlp)
  ]
  with torch.no_grad():
    out = model(tokens, output_hidden_states=True)
  for hook in hooks:
    hook.remove()
  made = {
    "tokens": tokens.numpy().astype(np.int32),
    "logits": out.logits.numpy(),
    "hidden_states": torch.stack(out.hidden_states).numpy(),
  }
  if not getattr(model.config, "use_parallel_residual", False):
    made["mid"] = torch.stack(list(mid.values())).numpy()
  rope = getattr(model.config, "rope_parameters", None) or {}
  if rope.get("rope_type") == "longrope":
    with torch.no_grad():
      made["short_logits"] = model(tokens[:, : rope["original_max_position_embeddings"]]).logits.numpy()
  return made


def refuse_what_does_not_matter(model: transformers.PreTrainedModel, tokens: torch.Tensor) -> None:
  """Raises if a tensor could be left out, or an attribute read wrongly, without moving a logit by ten tolerances."""

  def moved(other):
    with torch.no_grad():
      gap = (other(tokens).logits - logits).abs().max().item()
    return gap > 10 * TOLERANCE

  def changed(config):
    other = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    other.load_state_dict(model.state_dict())
    return moved(other)

  with torch.no_grad():
    logits = model(tokens).logits
    for name, parameter in model.named_parameters():
      # A bias of the keys adds the same to all scores of a query, unless the keys are turned.
      if name.endswith("k_proj.bias") and model.config.model_type == "gpt2":
        continue
      kept = parameter.clone()
      parameter.fill_(plain_norm(model) if is_norm(name) else 0.0)
      if not moved(model):
        raise ValueError(f"{name} does not matter")
      parameter.copy_(kept)
  for attribute, otherwise in OTHERWISE.items():
    value = getattr(model.config, attribute, None)
    value = str(value) if isinstance(value, list) else value
    if attribute == "hidden_act" and model.config.model_type == "gpt_oss":  # which always has the same function
      continue
    if value is None or (isinstance(value, str) and value.startswith("[") and value not in otherwise):
      continue
    config = copy.deepcopy(model.config)
    setattr(config, attribute, otherwise[value])
    if not changed(config):
      raise ValueError(f"{attribute} does not matter")
  every = getattr(model.config, "rope_parameters", None) or {}
  for kind, rope in every.items() if "full_attention" in every else [(None, every)]:
    for attribute in rope:
      if attribute not in ROPE_OTHERWISE or rope["rope_type"] == "dynamic" and attribute == "factor":
        continue
      if rope["rope_type"] == "longrope" and attribute in ("partial_rotary_factor", "original_max_position_embeddings"):
        continue  # as many factors as pairs; and texts shorter than trained are compared by themselves
      config = copy.deepcopy(model.config)
      other = dict(rope) | {attribute: rope[attribute] * ROPE_OTHERWISE[attribute]}
      config.rope_parameters = other if kind is None else dict(every) | {kind: other}
      if not changed(config):
        raise ValueError(f"{attribute} of rope_parameters does not matter")


def sentencepiece_tokenizer() -> dict:
  """A small tokenizer as Llama 2's is made, with the ids that SentencePiece gives some texts."""
  import sentencepiece

  sentences = [
    "the cat sat on the mat, the mats are 1234 years old; don't worry",
    "a dog and a cat meet at the old mill; the dog barks",
    "naïve façades, über alles",
  ] * 30
  written = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(sentences),
    model_writer=written,
    vocab_size=400,
    model_type="bpe",
    byte_fallback=True,
    character_coverage=0.99,
    normalization_rule_name="identity",
    remove_extra_whitespaces=False,
    add_dummy_prefix=True,
    split_digits=True,
    allow_whitespace_only_pieces=True,
    minloglevel=2,
    num_threads=1,
  )
  made = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
  texts = [
    "the cat sat on the mat",
    "The  cat's 1234 mats\n\n\tare naïve, 漢字 😀!",
    " leading and trailing ",
    "a dog, an old catmat",
    "",
    "aaa bbb the the",
  ]

  def kind(i):  # as GGUF numbers them
    return 2 if made.is_unknown(i) else 3 if made.is_control(i) else 6 if made.is_byte(i) else 1

  ids = range(made.get_piece_size())
  return {
    "tokens": [made.id_to_piece(i) for i in ids],
    "scores": [made.get_score(i) for i in ids],
    "types": [kind(i) for i in ids],
    "texts": texts,
    "ids": [made.encode(text) for text in texts],
  }


def activation_functions() -> dict:
  """Activation functions without parameters at a few points: {"points": [...], "values": {name: [...]}}."""
  points = torch.tensor([-12.0, -3.3, -2.0, -1.1, -0.4, -0.01, 0.0, 0.02, 0.3, 0.9, 1.6, 2.5, 3.7, 7.0, 12.0])
  functions = {name: transformers.activations.ACT2FN[name] for name in transformers.activations.ACT2FN}
  plain = {name: function for name, function in functions.items() if not list(function.parameters())}
  return {
    "points": points.tolist(),
    "values": {name: function(points).tolist() for name, function in plain.items()},
    "with_parameters": sorted(set(functions) - set(plain)),
  }


def main(names: list[str]) -> None:
  (FOLDER / "activations.json").write_text(json.dumps(activation_functions()) + "\n")
  (FOLDER / "sentencepiece.json").write_text(json.dumps(sentencepiece_tokenizer(), ensure_ascii=False) + "\n")
  for seed, (name, shape) in enumerate(CHECKPOINTS.items()):
    if names and name not in names:
      continue
    model = random_model(seed, **shape)
    tokens = random_tokens(seed, model.config)
    refuse_what_does_not_matter(model, tokens)
    folder = FOLDER / name
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # has no part in the forward pass
    np.savez(folder / "expected.npz", **expected(model, tokens))
    print(json.dumps({path.name: path.stat().st_size for path in sorted(folder.iterdir())}), folder)


if __name__ == "__main__":
  main(sys.argv[1:])
