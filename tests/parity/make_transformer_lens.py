"""Writes tests/golden_transformer_lens: tiny random models of TransformerLens, and every activation that it caches of them.

  pip install 'transformer_lens<4' torch       # version 4 has no HookedTransformer any more
  python tests/parity/make_transformer_lens.py

Each folder holds config.json and model.safetensors, written as pretrained/README.md says, and expected.npz: `tokens` int32[B, T], `logits`, and the
cache by TransformerLens' names.
"""

import json
import pathlib

import numpy as np

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden_transformer_lens"
_SIZE = dict(n_layers=2, d_model=12, d_head=8, n_heads=2, n_ctx=6, d_vocab=7, d_mlp=10, eps=1e-3)
_ROTARY = dict(positional_embedding_type="rotary", rotary_base=100)
VARIANTS = {
  "attn_only": dict(attn_only=True, normalization_type=None),
  "no_norm": dict(normalization_type=None, act_fn="relu", d_vocab_out=3, default_prepend_bos=False),
  "ln": dict(normalization_type="LN", act_fn="gelu", use_attn_scale=False),
  "ln_solu_both_directions": dict(normalization_type="LN", act_fn="solu_ln", attention_dir="bidirectional"),
  "lnpre_solu_final_rms": dict(normalization_type="LNPre", act_fn="solu_ln", final_rms=True, attn_scale=3.0),
  "ln_attn_only_both_directions": dict(normalization_type="LN", attn_only=True, attention_dir="bidirectional", **_ROTARY),
  "rmspre_adjacent_parallel": dict(normalization_type="RMSPre", act_fn="gelu_new", rotary_adjacent_pairs=True, rotary_dim=4,
                                   parallel_attn_mlp=True, **_ROTARY),
  "rms_gated_grouped": dict(normalization_type="RMS", act_fn="silu", gated_mlp=True, n_key_value_heads=1, use_qk_norm=True, rotary_dim=4,
                            use_normalization_before_and_after=True, attn_scores_soft_cap=2.0, output_logits_soft_cap=3.0, **_ROTARY),
  "ln_local": dict(normalization_type="LN", act_fn="gelu_fast", use_local_attn=True, window_size=2, attn_types=["global", "local"],
                   scale_attn_by_inverse_layer_idx=True),
  "rms_ntk_sinks": dict(normalization_type="RMS", act_fn="relu", use_NTK_by_parts_rope=True, NTK_original_ctx_len=4,
                        use_attention_sinks=True, **_ROTARY),
}  # fmt: skip


def make(settings, seed=0):
  """A random model with every parameter different from its initial value: (model, tokens, logits, cache)."""
  import torch
  from transformer_lens import HookedTransformer, HookedTransformerConfig

  torch.manual_seed(seed)
  model = HookedTransformer(HookedTransformerConfig(**_SIZE | settings, device="cpu", use_attn_result=True))
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      noise = torch.randn_like(parameter)
      # Without norms activations grow, and softmax makes much of the last digits.
      size = 0.5 if model.cfg.normalization_type else 0.25
      parameter.copy_(1 + 0.3 * noise if name.endswith(".w") else size * noise)
      if settings.get("gated_mlp") and name.endswith("mlp.b_in"):
        parameter.zero_()
  tokens = torch.randint(0, _SIZE["d_vocab"], (2, 5))
  logits, cache = model.run_with_cache(tokens)
  arrays = {name: value.detach().numpy() for name, value in cache.items()}
  return model, tokens.numpy().astype(np.int32), logits.detach().numpy(), arrays


def write(folder, model):
  """The folder of a model, by the lines of pretrained/README.md."""
  import safetensors.torch

  folder.mkdir(parents=True, exist_ok=True)
  safetensors.torch.save_file(
    {k: v.contiguous().clone() for k, v in model.state_dict().items()}, folder / "model.safetensors"
  )
  (folder / "config.json").write_text(json.dumps(model.cfg.to_dict(), default=str))


def main():
  for name, settings in VARIANTS.items():
    model, tokens, logits, cache = make(settings)
    write(FOLDER / name, model)
    np.savez_compressed(FOLDER / name / "expected.npz", tokens=tokens, logits=logits, **cache)
    print(name, len(cache), sum(x.nbytes for x in cache.values()))


if __name__ == "__main__":
  main()
