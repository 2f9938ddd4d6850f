"""Writes sites.npz into folders of tests/golden: what torch hooks on Hugging Face's modules see at the sites inside of attention and MLP.

  pip install 'inversionview-jax[parity]'
  python tests/parity/make_sites.py

Names are TransformerLens'. What no module of transformers gives out is computed from what some do, by the formulas of TransformerLens: the normalized
activation before the weights of its norm, its divisor, and the value of a gated MLP.
"""

import pathlib

import numpy as np
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden"
NAMES = {
  "gpt2": {"ln1": "ln_1", "ln2": "ln_2", "out": "attn.c_proj", "fc": "mlp.c_fc", "proj": "mlp.c_proj", "attn": "attn", "layers": "transformer.h",
           "final": "transformer.ln_f"},
  "llama": {"ln1": "input_layernorm", "ln2": "post_attention_layernorm", "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "fc": "mlp.up_proj",
            "proj": "mlp.down_proj", "attn": "self_attn", "layers": "model.layers", "final": "model.norm"},
  "gemma2": {"ln1": "input_layernorm", "ln2": "pre_feedforward_layernorm", "ln1_post": "post_attention_layernorm",
             "ln2_post": "post_feedforward_layernorm", "out": "self_attn.o_proj", "gate": "mlp.gate_proj", "fc": "mlp.up_proj",
             "proj": "mlp.down_proj", "attn": "self_attn", "layers": "model.layers", "final": "model.norm"},
}  # fmt: skip


def sites_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """TransformerLens' name -> activation."""
  model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
  config, tokens = model.config, torch.tensor(np.load(folder / "expected.npz")["tokens"], dtype=torch.long)
  names = NAMES[config.model_type]
  heads, seen = config.num_attention_heads, {}

  def keep(key, take):
    return lambda module, inputs, output: seen.__setitem__(key, take(inputs, output))

  def first_in(inputs, output):
    return inputs[0]

  def out(inputs, output):
    return output[0] if isinstance(output, tuple) else output

  def norm(prefix, module):
    eps = getattr(module, "eps", None) or module.variance_epsilon

    def hook(module, inputs, output):
      x = inputs[0]
      x = x - x.mean(-1, keepdim=True) if isinstance(module, torch.nn.LayerNorm) else x
      seen[f"{prefix}.hook_scale"] = (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
      seen[f"{prefix}.hook_normalized"] = x / seen[f"{prefix}.hook_scale"]

    module.register_forward_hook(hook)

  def submodule(path):
    return model.get_submodule(path)

  for number in range(config.num_hidden_layers):
    layer, prefix = f"{names['layers']}.{number}", f"blocks.{number}"
    for name in ("ln1", "ln2", "ln1_post", "ln2_post"):
      if name in names:
        norm(f"{prefix}.{name}", submodule(f"{layer}.{names[name]}"))
    attn = submodule(f"{layer}.{names['attn']}")
    attn.register_forward_hook(keep(f"{prefix}.attn.hook_pattern", lambda inputs, output: output[1]))
    submodule(f"{layer}.{names['out']}").register_forward_hook(
      keep(f"{prefix}.attn.hook_z", lambda i, o: i[0].reshape(*i[0].shape[:2], heads, -1))
    )
    written = names.get("ln1_post", names["out"])
    submodule(f"{layer}.{written}").register_forward_hook(keep(f"{prefix}.hook_attn_out", out))
    if config.model_type == "gpt2":

      def split(inputs, output, prefix=prefix):
        for name, x in zip("qkv", output.chunk(3, dim=-1), strict=True):
          seen[f"{prefix}.attn.hook_{name}"] = x.reshape(*x.shape[:2], heads, -1)

      attn.c_attn.register_forward_hook(lambda m, i, o, split=split: split(i, o))
    else:
      for name in "qkv":
        width = config.head_dim if getattr(config, "head_dim", None) else config.hidden_size // heads
        getattr(attn, f"{name}_proj").register_forward_hook(
          keep(f"{prefix}.attn.hook_{name}", lambda i, o, width=width: o.reshape(*o.shape[:2], -1, width))
        )
    pre = names.get("gate", names["fc"])
    submodule(f"{layer}.{pre}").register_forward_hook(keep(f"{prefix}.mlp.hook_pre", out))
    if "gate" in names:
      submodule(f"{layer}.{names['fc']}").register_forward_hook(keep(f"{prefix}.mlp.hook_pre_linear", out))
    submodule(f"{layer}.{names['proj']}").register_forward_hook(keep(f"{prefix}.mlp.hook_post", first_in))
  norm("ln_final", submodule(names["final"]))
  with torch.no_grad():
    model(tokens, output_attentions=True)
  return {name: x.detach().numpy() for name, x in sorted(seen.items())}


if __name__ == "__main__":
  for case in ("default", "llama3", "gemma2"):
    np.savez_compressed(FOLDER / case / "sites.npz", **sites_of(FOLDER / case))
